//! The maximum of each window.
//!
//! ```text
//! y[n, c, oh, ow] = max over kh, kw of  x[n, c, oh * stride + kh - padding, ow * stride + kw - padding]
//! dx: each window gives its dy to its first maximum
//! ```

use kernels::Parallelism;
use kernels::conv::{Layout, Shape};
use kernels::pool::{self, Pool2dSpec};

use crate::error::{Error, Result};
use crate::layer::{Layer, single};
use crate::tensor::{Tensor, check_gradient, elements, row_major, tensor};

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

    /// The images' shape for the kernels, and their channels.
    fn shape(x: &Tensor) -> Result<(Shape, usize)> {
        match *x.shape() {
            [batch, channels, height, width] => Ok((Shape::new(batch, height, width), channels)),
            _ => Err(Error::shape("x", "[batch, channels, height, width]", x.shape())),
        }
    }
}

impl Layer for MaxPool2d {
    fn kind(&self) -> &'static str {
        "MaxPool2d"
    }

    /// x [batch, channels, height, width] -> y [batch, channels, output height, output width]
    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let x = row_major(single(inputs)?);
        let (shape, channels) = Self::shape(&x)?;
        let sizes = self.spec.sizes(shape, channels)?;
        let mut y = vec![0.0; sizes.y_len];
        pool::max_forward(&self.spec, shape, channels, elements(&x), &mut y, parallelism)?;
        let y = tensor(&[shape.batch, channels, sizes.output[0], sizes.output[1]], y)?;
        self.cache = Some((x, y.clone()));
        Ok(y)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let (x, y) = self.cache.as_ref().ok_or(Error::NoForward)?;
        check_gradient(d_output, y.shape())?;
        let ((shape, channels), dy) = (Self::shape(x)?, row_major(d_output));
        let mut dx = vec![0.0; x.len()];
        let (spec, x_elements) = (&self.spec, elements(x));
        pool::max_backward(spec, shape, channels, x_elements, elements(y), elements(&dy), &mut dx, parallelism)?;
        let dx = tensor(x.shape(), dx)?;
        self.cache = None;
        Ok(vec![dx])
    }
}
