//! Activations that let an element through as far as it is positive.
//!
//! ```text
//! GELU   x P(x)              P: the share of a normal distribution below x; or x / (1 + e^(-1.702 x)), nearly the same
//! SiLU   x / (1 + e^-x)
//! ```
//!
//! Their derivatives are taken from the input.

use kernels::Parallelism;
use kernels::activation::gated::{self, Gated};

use crate::error::{Error, Result};
use crate::inference::{Call, Fused, Kernel, Role};
use crate::layer::{Layer, single, single_shape};
use crate::memory::room;
use crate::tensor::{Tensor, check_gradient, elements, row_major, tensor};

/// `x P(x)`, with the distribution function `P` of a normal variable. Hendrycks, Gimpel, "Gaussian error linear units",
/// 2016.
///
/// ```
/// use nn::{GELU, Layer, Parallelism, tensor};
/// let y = GELU::default().forward(&[&tensor(&[2], vec![0.0, 10.0])?], Parallelism::Serial)?;
/// assert_eq!(y, tensor(&[2], vec![0.0, 10.0])?);
/// # Ok::<(), nn::Error>(())
/// ```
pub struct GELU(Gate);

/// `x / (1 + exp(-x))`, also called swish. Elfwing, Uchibe, Doya, "Sigmoid-weighted linear units", 2017.
pub struct SiLU(Gate);

impl GELU {
    /// The approximation by tanh, as GPT-2 and CLIP's successors have it.
    pub const fn tanh() -> Self {
        Self(Gate { function: Gated::GeluTanh, cache: None })
    }

    /// The approximation by a logistic function, as CLIP has it: `x / (1 + exp(-1.702 x))`.
    pub const fn quick() -> Self {
        Self(Gate { function: Gated::GeluQuick, cache: None })
    }
}

impl Default for GELU {
    fn default() -> Self {
        Self(Gate { function: Gated::Gelu, cache: None })
    }
}

impl Default for SiLU {
    fn default() -> Self {
        Self(Gate { function: Gated::Silu, cache: None })
    }
}

/// A function and its last input.
struct Gate {
    function: Gated,
    cache: Option<Tensor>,
}

impl Gate {
    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let x = row_major(single(inputs)?);
        let mut y = room(x.len());
        gated::forward(self.function, elements(&x), &mut y, parallelism)?;
        let y = tensor(x.shape(), y)?;
        self.cache = Some(x);
        Ok(y)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let x = self.cache.as_ref().ok_or(Error::NoForward)?;
        check_gradient(d_output, x.shape())?;
        let mut dx = room(x.len());
        gated::backward(self.function, elements(x), elements(&row_major(d_output)), &mut dx, parallelism)?;
        let dx = tensor(x.shape(), dx)?;
        self.cache = None;
        Ok(vec![dx])
    }
}

/// The forward pass of a plan.
struct Planned(Gated);

impl Kernel for Planned {
    fn run(&self, call: Call<'_>) -> Result<()> {
        gated::forward(self.0, call.inputs.get(0), call.y, call.parallelism)?;
        Ok(())
    }
}

impl Layer for GELU {
    fn kind(&self) -> &'static str {
        "GELU"
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        single_shape(inputs).map(<[usize]>::to_vec)
    }

    fn role(&self) -> Role {
        Role::Compute { activation: false, residual: false }
    }

    fn kernel(&self, _: &[Vec<usize>], _: Fused) -> Result<Box<dyn Kernel>> {
        Ok(Box::new(Planned(self.0.function)))
    }

    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        self.0.forward(inputs, parallelism)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        self.0.backward(d_output, parallelism)
    }
}

impl Layer for SiLU {
    fn kind(&self) -> &'static str {
        "SiLU"
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        single_shape(inputs).map(<[usize]>::to_vec)
    }

    fn role(&self) -> Role {
        Role::Compute { activation: false, residual: false }
    }

    fn kernel(&self, _: &[Vec<usize>], _: Fused) -> Result<Box<dyn Kernel>> {
        Ok(Box::new(Planned(self.0.function)))
    }

    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        self.0.forward(inputs, parallelism)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        self.0.backward(d_output, parallelism)
    }
}
