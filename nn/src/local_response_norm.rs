//! Local response normalisation, as AlexNet and the first Inception have it.
//!
//! ```text
//! s[c] = k + alpha / size * sum of x[c']^2 over the size channels around c        y[c] = x[c] / s[c]^beta
//! dx[c] = dy[c] / s[c]^beta - 2 alpha beta / size * x[c] * sum of dy[c'] y[c'] / s[c'] over the c' whose window holds c
//! ```

use kernels::{LocalResponse, Parallelism};

use crate::error::{Error, Result};
use crate::inference::{Call, Fused, Kernel, Role};
use crate::layer::{Layer, single, single_shape};
use crate::memory::room;
use crate::tensor::{Tensor, check_gradient, count, elements, row_major, tensor};

/// Damps each value of `[batch, channels, ...]` by those beside it in neighbouring channels.
#[derive(Clone, Debug)]
pub struct LocalResponseNorm {
    norm: LocalResponse,
    /// The last input and output.
    cache: Option<(Tensor, Tensor)>,
}

impl LocalResponseNorm {
    /// A layer with these constants.
    ///
    /// # Errors
    /// Those of [`LocalResponse::check`].
    pub fn new(norm: LocalResponse) -> Result<Self> {
        norm.check()?;
        Ok(Self { norm, cache: None })
    }
}

/// [batch, channels, pixels]
fn planes(shape: &[usize]) -> Result<[usize; 3]> {
    match shape {
        [batch, channels, rest @ ..] => Ok([*batch, *channels, count("x", rest)?]),
        _ => Err(Error::shape("x", "[batch, channels, ...]", shape)),
    }
}

impl Layer for LocalResponseNorm {
    fn kind(&self) -> &'static str {
        "LocalResponseNorm"
    }

    fn details(&self) -> String {
        let LocalResponse { size, alpha, beta, k } = self.norm;
        format!("size {size} alpha {alpha} beta {beta} k {k}")
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        let shape = single_shape(inputs)?;
        planes(shape).map(|_| shape.to_vec())
    }

    fn role(&self) -> Role {
        Role::Compute { activation: false, residual: false }
    }

    fn kernel(&self, _: &[Vec<usize>], _: Fused) -> Result<Box<dyn Kernel>> {
        Ok(Box::new(Damping(self.norm)))
    }

    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let x = row_major(single(inputs)?);
        let mut y = room(x.len());
        self.norm.forward(planes(x.shape())?, elements(&x), &mut y, parallelism)?;
        let y = tensor(x.shape(), y)?;
        self.cache = Some((x, y.clone()));
        Ok(y)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let (x, y) = self.cache.as_ref().ok_or(Error::NoForward)?;
        check_gradient(d_output, x.shape())?;
        let (dy, mut dx) = (row_major(d_output), room(x.len()));
        self.norm.backward(planes(x.shape())?, elements(x), elements(y), elements(&dy), &mut dx, parallelism)?;
        let dx = tensor(x.shape(), dx)?;
        self.cache = None;
        Ok(vec![dx])
    }
}

/// The forward pass of a plan.
struct Damping(LocalResponse);

impl Kernel for Damping {
    fn run(&self, call: Call<'_>) -> Result<()> {
        self.0.forward(planes(&call.shapes[0])?, call.inputs.get(0), call.y, call.parallelism)?;
        Ok(())
    }
}
