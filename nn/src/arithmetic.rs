//! The nodes of arithmetic: sum, product, minimum and maximum of tensors of one shape, element by element.
//!
//! ```text
//!            y                  gradient of input i
//! sum        x1 + x2 + ...      dy
//! product    x1 * x2 * ...      dy * (the product of the other inputs)
//! minimum    min(x1, x2, ...)   dy where xi = y, else 0
//! maximum    max(x1, x2, ...)   dy where xi = y, else 0
//! ```
//!
//! Where several inputs equal the minimum or maximum, each of them gets the whole gradient.

use kernels::extremum::{self, Extremum};
use kernels::{Parallelism, product, sum};

use crate::error::{Error, Result};
use crate::inference::Role;
use crate::layer::Layer;
use crate::memory::room;
use crate::tensor::{Tensor, check_gradient, elements, row_major, tensor};

/// The sum of its inputs.
#[derive(Default)]
pub struct Sum {
    /// How many inputs there were, and their shape.
    cache: Option<(usize, Vec<usize>)>,
}

/// The product of its inputs.
#[derive(Default)]
pub struct Product {
    cache: Option<Vec<Tensor>>,
}

/// The smallest of its inputs. A NaN is passed on.
#[derive(Default)]
pub struct Minimum(Chosen);

/// The largest of its inputs. A NaN is passed on.
#[derive(Default)]
pub struct Maximum(Chosen);

/// The inputs of the last call and the output, which equals one of them in each element.
#[derive(Default)]
struct Chosen(Option<(Vec<Tensor>, Tensor)>);

impl Layer for Sum {
    fn kind(&self) -> &'static str {
        "Sum"
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        common_shape(inputs)
    }

    fn role(&self) -> Role {
        Role::Sum
    }

    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let (terms, shape) = in_one_shape(inputs)?;
        let mut y = room(shape.iter().product());
        sum::forward(&all_elements(&terms), &mut y, parallelism)?;
        let y = tensor(&shape, y)?;
        self.cache = Some((inputs.len(), shape));
        Ok(y)
    }

    fn backward(&mut self, d_output: &Tensor, _: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let (inputs, shape) = self.cache.as_ref().ok_or(Error::NoForward)?;
        check_gradient(d_output, shape)?;
        let gradients = vec![d_output.clone(); *inputs];
        self.cache = None;
        Ok(gradients)
    }
}

impl Layer for Product {
    fn kind(&self) -> &'static str {
        "Product"
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        common_shape(inputs)
    }

    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let (factors, shape) = in_one_shape(inputs)?;
        let mut y = room(shape.iter().product());
        product::forward(&all_elements(&factors), &mut y, parallelism)?;
        let y = tensor(&shape, y)?;
        self.cache = Some(factors);
        Ok(y)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let inputs = self.cache.as_ref().ok_or(Error::NoForward)?;
        check_gradient(d_output, inputs[0].shape())?;
        let (dy, factors) = (row_major(d_output), all_elements(inputs));
        let mut gradients = Vec::with_capacity(inputs.len());
        for which in 0..inputs.len() {
            let mut dx = room(dy.len());
            product::backward(&factors, which, elements(&dy), &mut dx, parallelism)?;
            gradients.push(tensor(dy.shape(), dx)?);
        }
        self.cache = None;
        Ok(gradients)
    }
}

impl Layer for Minimum {
    fn kind(&self) -> &'static str {
        "Minimum"
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        common_shape(inputs)
    }

    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        self.0.forward(Extremum::Minimum, inputs, parallelism)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        self.0.backward(d_output, parallelism)
    }
}

impl Layer for Maximum {
    fn kind(&self) -> &'static str {
        "Maximum"
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        common_shape(inputs)
    }

    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        self.0.forward(Extremum::Maximum, inputs, parallelism)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        self.0.backward(d_output, parallelism)
    }
}

impl Chosen {
    fn forward(&mut self, which: Extremum, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let (inputs, shape) = in_one_shape(inputs)?;
        let mut y = room(shape.iter().product());
        extremum::forward(which, &all_elements(&inputs), &mut y, parallelism)?;
        let y = tensor(&shape, y)?;
        self.0 = Some((inputs, y.clone()));
        Ok(y)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let (inputs, y) = self.0.as_ref().ok_or(Error::NoForward)?;
        check_gradient(d_output, y.shape())?;
        let dy = row_major(d_output);
        let mut gradients = Vec::with_capacity(inputs.len());
        for x in inputs {
            let mut dx = room(dy.len());
            extremum::backward(elements(x), elements(y), elements(&dy), &mut dx, parallelism)?;
            gradients.push(tensor(dy.shape(), dx)?);
        }
        self.0 = None;
        Ok(gradients)
    }
}

/// The shape that all inputs have.
fn common_shape(inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
    let Some((first, rest)) = inputs.split_first() else {
        return Err(Error::invalid("inputs", "at least 1 tensor", 0));
    };
    match rest.iter().find(|&shape| shape != first) {
        None => Ok(first.clone()),
        Some(other) => Err(Error::shape("inputs", format!("{first:?}, that of the first"), other)),
    }
}

/// The inputs in row-major order, and the shape that all of them have.
fn in_one_shape(inputs: &[&Tensor]) -> Result<(Vec<Tensor>, Vec<usize>)> {
    let shapes: Vec<Vec<usize>> = inputs.iter().map(|x| x.shape().to_vec()).collect();
    let shape = common_shape(&shapes)?;
    Ok((inputs.iter().map(|x| row_major(x)).collect(), shape))
}

fn all_elements(tensors: &[Tensor]) -> Vec<&[f32]> {
    tensors.iter().map(elements).collect()
}
