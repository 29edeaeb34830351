//! The functions between the linear layers, element by element.
//!
//! ```text
//!             y                  dx, from y alone
//! ReLU        max(x, 0)          dy where y > 0, else 0
//! sigmoid     1 / (1 + e^-x)     dy y (1 - y)
//! tanh        tanh x             dy (1 - y^2)
//! ```

use kernels::{Activation, Parallelism, activation};

use crate::error::{Error, Result};
use crate::inference::Role;
use crate::layer::{Layer, single, single_shape};
use crate::memory::room;
use crate::tensor::{Tensor, check_gradient, elements, in_order, row_major, tensor};

/// `max(x, 0)`. A NaN stays one.
#[derive(Default)]
pub struct ReLU(Cache);

/// `1 / (1 + exp(-x))`
#[derive(Default)]
pub struct Sigmoid(Cache);

/// The hyperbolic tangent.
#[derive(Default)]
pub struct Tanh(Cache);

/// The last output: all that these derivatives need.
#[derive(Default)]
struct Cache(Option<Tensor>);

impl Cache {
    fn forward(&mut self, function: Activation, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let x = row_major(single(inputs)?);
        let mut y = room(x.len());
        activation::forward(function, elements(&x), &mut y, parallelism)?;
        let y = tensor(x.shape(), y)?;
        self.0 = Some(y.clone());
        Ok(y)
    }

    /// As `forward`, in the memory of `x` if nobody else has it.
    fn forward_own(&mut self, function: Activation, x: Tensor, parallelism: Parallelism<'_>) -> Result<Tensor> {
        let mut own = match in_order(x).try_into_owned_nocopy() {
            Ok(own) => own,
            Err(x) => return self.forward(function, &[&x], parallelism),
        };
        activation::forward_in_place(function, own.as_slice_mut().unwrap_or_default(), parallelism)?;
        let y = own.into_shared();
        self.0 = Some(y.clone());
        Ok(y)
    }

    /// As `backward`, in the memory of the gradient if nobody else has it.
    fn backward_own(
        &mut self,
        function: Activation,
        d_output: Tensor,
        parallelism: Parallelism<'_>,
    ) -> Result<Vec<Tensor>> {
        let y = self.0.as_ref().ok_or(Error::NoForward)?;
        check_gradient(&d_output, y.shape())?;
        let mut own = match in_order(d_output).try_into_owned_nocopy() {
            Ok(own) => own,
            Err(d_output) => return self.backward(function, &d_output, parallelism),
        };
        activation::backward_in_place(function, elements(y), own.as_slice_mut().unwrap_or_default(), parallelism)?;
        self.0 = None;
        Ok(vec![own.into_shared()])
    }

    fn backward(
        &mut self,
        function: Activation,
        d_output: &Tensor,
        parallelism: Parallelism<'_>,
    ) -> Result<Vec<Tensor>> {
        let y = self.0.as_ref().ok_or(Error::NoForward)?;
        check_gradient(d_output, y.shape())?;
        let mut dx = room(y.len());
        activation::backward(function, elements(y), elements(&row_major(d_output)), &mut dx, parallelism)?;
        let dx = tensor(y.shape(), dx)?;
        self.0 = None;
        Ok(vec![dx])
    }
}

impl Layer for ReLU {
    fn kind(&self) -> &'static str {
        "ReLU"
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        single_shape(inputs).map(<[usize]>::to_vec)
    }

    fn role(&self) -> Role {
        Role::Activation(Activation::Relu)
    }

    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        self.0.forward(Activation::Relu, inputs, parallelism)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        self.0.backward(Activation::Relu, d_output, parallelism)
    }

    fn forward_own(&mut self, x: Tensor, parallelism: Parallelism<'_>) -> Result<Tensor> {
        self.0.forward_own(Activation::Relu, x, parallelism)
    }

    fn backward_own(&mut self, d_output: Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        self.0.backward_own(Activation::Relu, d_output, parallelism)
    }
}

impl Layer for Sigmoid {
    fn kind(&self) -> &'static str {
        "Sigmoid"
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        single_shape(inputs).map(<[usize]>::to_vec)
    }

    fn role(&self) -> Role {
        Role::Activation(Activation::Sigmoid)
    }

    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        self.0.forward(Activation::Sigmoid, inputs, parallelism)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        self.0.backward(Activation::Sigmoid, d_output, parallelism)
    }

    fn forward_own(&mut self, x: Tensor, parallelism: Parallelism<'_>) -> Result<Tensor> {
        self.0.forward_own(Activation::Sigmoid, x, parallelism)
    }

    fn backward_own(&mut self, d_output: Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        self.0.backward_own(Activation::Sigmoid, d_output, parallelism)
    }
}

impl Layer for Tanh {
    fn kind(&self) -> &'static str {
        "Tanh"
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        single_shape(inputs).map(<[usize]>::to_vec)
    }

    fn role(&self) -> Role {
        Role::Activation(Activation::Tanh)
    }

    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        self.0.forward(Activation::Tanh, inputs, parallelism)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        self.0.backward(Activation::Tanh, d_output, parallelism)
    }

    fn forward_own(&mut self, x: Tensor, parallelism: Parallelism<'_>) -> Result<Tensor> {
        self.0.forward_own(Activation::Tanh, x, parallelism)
    }

    fn backward_own(&mut self, d_output: Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        self.0.backward_own(Activation::Tanh, d_output, parallelism)
    }
}
