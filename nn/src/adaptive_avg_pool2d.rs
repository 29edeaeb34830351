//! Average pooling to an output of a given size, whatever the size of the input.
//!
//! ```text
//! window o of an axis:  from floor(o * input / output) up to ceil((o + 1) * input / output)
//! dx: each window gives dy / its pixels to each of its pixels
//! ```

use kernels::conv::Layout;
use kernels::{Parallelism, pool};

use crate::error::{Error, Result};
use crate::inference::{Call, Fused, Kernel, Role};
use crate::layer::{Layer, single, single_shape};
use crate::memory::room;
use crate::tensor::{Tensor, check_gradient, elements, image_shape, row_major, tensor};

/// The mean of windows that cover images `[batch, channels, height, width]` evenly.
///
/// ```
/// use nn::{AdaptiveAvgPool2d, Layer, Parallelism, tensor};
/// let mut pool = AdaptiveAvgPool2d::new([1, 2])?;
/// let x = tensor(&[1, 1, 1, 3], vec![1.0, 3.0, 5.0])?;
/// assert_eq!(pool.forward(&[&x], Parallelism::Serial)?, tensor(&[1, 1, 1, 2], vec![2.0, 4.0])?);
/// # Ok::<(), nn::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct AdaptiveAvgPool2d {
    output: [usize; 2],
    /// The shapes of the last input and output.
    cache: Option<[Vec<usize>; 2]>,
}

impl AdaptiveAvgPool2d {
    /// A layer with an output of `[height, width]`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an empty output.
    pub fn new(output: [usize; 2]) -> Result<Self> {
        if output.contains(&0) {
            return Err(Error::invalid("output", "at least 1", format!("{output:?}")));
        }
        Ok(Self { output, cache: None })
    }

    /// Global average pooling: the mean of each channel, `[batch, channels, 1, 1]`.
    pub const fn global() -> Self {
        Self { output: [1, 1], cache: None }
    }
}

impl Layer for AdaptiveAvgPool2d {
    fn kind(&self) -> &'static str {
        "AdaptiveAvgPool2d"
    }

    fn details(&self) -> String {
        format!("to {}x{}", self.output[0], self.output[1])
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        let (shape, channels) = image_shape(single_shape(inputs)?)?;
        if shape.height == 0 || shape.width == 0 {
            return Err(Error::shape("x", "[batch, channels, height, width], with pixels", &inputs[0]));
        }
        Ok(vec![shape.batch, channels, self.output[0], self.output[1]])
    }

    fn role(&self) -> Role {
        Role::Compute { activation: false, residual: false }
    }

    fn kernel(&self, _: &[Vec<usize>], _: Fused) -> Result<Box<dyn Kernel>> {
        Ok(Box::new(Pooling(self.output)))
    }

    /// x [batch, channels, height, width] -> y [batch, channels, output height, output width]
    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let x = row_major(single(inputs)?);
        let y_shape = self.output_shape(&[x.shape().to_vec()])?;
        let (shape, channels) = image_shape(x.shape())?;
        let mut y = room(y_shape.iter().product());
        pool::adaptive_average_forward(self.output, Layout::Nchw, shape, channels, elements(&x), &mut y, parallelism)?;
        let y = tensor(&y_shape, y)?;
        self.cache = Some([x.shape().to_vec(), y_shape]);
        Ok(y)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let [x_shape, y_shape] = self.cache.as_ref().ok_or(Error::NoForward)?;
        check_gradient(d_output, y_shape)?;
        let ((shape, channels), dy) = (image_shape(x_shape)?, row_major(d_output));
        let mut dx = room(x_shape.iter().product());
        pool::adaptive_average_backward(
            self.output,
            Layout::Nchw,
            shape,
            channels,
            elements(&dy),
            &mut dx,
            parallelism,
        )?;
        let dx = tensor(x_shape, dx)?;
        self.cache = None;
        Ok(vec![dx])
    }
}

/// The forward pass of a plan.
struct Pooling([usize; 2]);

impl Kernel for Pooling {
    fn run(&self, call: Call<'_>) -> Result<()> {
        let ((shape, channels), x) = (image_shape(&call.shapes[0])?, call.inputs.get(0));
        pool::adaptive_average_forward(self.0, Layout::Nchw, shape, channels, x, call.y, call.parallelism)?;
        Ok(())
    }
}
