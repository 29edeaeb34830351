//! The maximum of each window.

use kernels::Parallelism;

use crate::error::{Error, Result};
use crate::layer::{Layer, single};
use crate::shim;
use crate::tensor::{Tensor, check_gradient, elements, row_major, tensor};

/// Max pooling over images `[batch, channels, height, width]`: the maximum of each window. The gradient goes to the
/// first element of the window that equals it.
pub struct MaxPool2d {
    kernel: [usize; 2],
    stride: [usize; 2],
    cache: Option<(Vec<u32>, Vec<usize>, Vec<usize>)>,
}

impl MaxPool2d {
    /// Windows of `kernel` [height, width] that touch but do not overlap.
    pub fn new(kernel: [usize; 2]) -> Self {
        Self { kernel, stride: kernel, cache: None }
    }
}

impl Layer for MaxPool2d {
    fn kind(&self) -> &'static str {
        "MaxPool2d"
    }

    fn forward(&mut self, inputs: &[&Tensor], _: Parallelism<'_>) -> Result<Tensor> {
        let x = row_major(single(inputs)?);
        let &[n, c, h, w] = x.shape() else {
            return Err(Error::shape("x", "[batch, channels, height, width]", x.shape()));
        };
        if h < self.kernel[0] || w < self.kernel[1] {
            return Err(Error::shape("x", format!("images of at least {:?}", self.kernel), x.shape()));
        }
        let out = [(h - self.kernel[0]) / self.stride[0] + 1, (w - self.kernel[1]) / self.stride[1] + 1];
        let len = n * c * out[0] * out[1];
        let (mut y, mut at) = (vec![0.0; len], vec![0; len]);
        shim::max_pool_forward(elements(&x), &mut y, &mut at, n * c, [h, w], out, self.kernel, self.stride, [0, 0]);
        let y_shape = vec![n, c, out[0], out[1]];
        let y = tensor(&y_shape, y)?;
        self.cache = Some((at, x.shape().to_vec(), y_shape));
        Ok(y)
    }

    fn backward(&mut self, d_output: &Tensor, _: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let (at, x_shape, y_shape) = self.cache.as_ref().ok_or(Error::NoForward)?;
        check_gradient(d_output, y_shape)?;
        let mut dx = vec![0.0; x_shape.iter().product()];
        shim::max_pool_backward(elements(&row_major(d_output)), at, &mut dx);
        let dx = tensor(x_shape, dx)?;
        self.cache = None;
        Ok(vec![dx])
    }
}
