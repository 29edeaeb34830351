//! The maximum of each window.
//!
//! ```text
//! y[n, c, oh, ow] = max over kh, kw of  x[n, c, oh * stride + kh - padding, ow * stride + kw - padding]
//! dx: each window gives its dy to its first maximum
//! ```

use kernels::Parallelism;
use kernels::conv::Layout;
use kernels::pool::{self, Pool2dSpec};

use crate::error::{Error, Result};
use crate::inference::{Call, Fused, Kernel, Role};
use crate::layer::{Layer, single, single_shape};
use crate::memory::room;
use crate::tensor::{Tensor, check_gradient, elements, image_shape, row_major, tensor};

/// Max pooling over images `[batch, channels, height, width]`.
pub struct MaxPool2d {
    spec: Pool2dSpec,
    /// The last input and output.
    cache: Option<(Tensor, Tensor)>,
}

impl MaxPool2d {
    /// A layer for windows of any kernel, stride, padding and dilation.
    ///
    /// # Errors
    /// Those of [`Pool2dSpec::check`], and [`Error::Invalid`] for another layout than NCHW.
    pub fn new(spec: Pool2dSpec) -> Result<Self> {
        spec.check()?;
        if spec.layout != Layout::Nchw {
            return Err(Error::invalid("layout", "Nchw", format!("{:?}", spec.layout)));
        }
        Ok(Self { spec, cache: None })
    }
}

impl Layer for MaxPool2d {
    fn kind(&self) -> &'static str {
        "MaxPool2d"
    }

    fn details(&self) -> String {
        let Pool2dSpec { kernel: [kh, kw], stride: [sh, sw], ceil_mode, .. } = self.spec;
        format!("{kh}x{kw} stride {sh}x{sw}{}", if ceil_mode { " ceil" } else { "" })
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        let (shape, channels) = image_shape(single_shape(inputs)?)?;
        let [height, width] = self.spec.sizes(shape, channels)?.output;
        Ok(vec![shape.batch, channels, height, width])
    }

    fn role(&self) -> Role {
        Role::Compute { activation: false, residual: false }
    }

    fn kernel(&self, _: &[Vec<usize>], _: Fused) -> Result<Box<dyn Kernel>> {
        Ok(Box::new(Pooling(self.spec)))
    }

    /// x [batch, channels, height, width] -> y [batch, channels, output height, output width]
    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let x = row_major(single(inputs)?);
        let (shape, channels) = image_shape(x.shape())?;
        let sizes = self.spec.sizes(shape, channels)?;
        let mut y = room(sizes.y_len);
        pool::max_forward(&self.spec, shape, channels, elements(&x), &mut y, parallelism)?;
        let y = tensor(&[shape.batch, channels, sizes.output[0], sizes.output[1]], y)?;
        self.cache = Some((x, y.clone()));
        Ok(y)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let (x, y) = self.cache.as_ref().ok_or(Error::NoForward)?;
        check_gradient(d_output, y.shape())?;
        let ((shape, channels), dy) = (image_shape(x.shape())?, row_major(d_output));
        let mut dx = room(x.len());
        let (spec, x_elements) = (&self.spec, elements(x));
        pool::max_backward(spec, shape, channels, x_elements, elements(y), elements(&dy), &mut dx, parallelism)?;
        let dx = tensor(x.shape(), dx)?;
        self.cache = None;
        Ok(vec![dx])
    }
}

/// The forward pass of a plan.
struct Pooling(Pool2dSpec);

impl Kernel for Pooling {
    fn run(&self, call: Call<'_>) -> Result<()> {
        let (shape, channels) = image_shape(&call.shapes[0])?;
        pool::max_forward(&self.0, shape, channels, call.inputs.get(0), call.y, call.parallelism)?;
        Ok(())
    }
}
