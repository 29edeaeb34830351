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

use kernels::{Parallelism, sum};
use ndarray::Zip;

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
pub struct Minimum(Extremum);

/// The largest of its inputs. A NaN is passed on.
#[derive(Default)]
pub struct Maximum(Extremum);

/// The inputs of the last call and the output, which equals one of them in each element.
#[derive(Default)]
struct Extremum(Option<(Vec<Tensor>, Tensor)>);

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
        let shapes: Vec<Vec<usize>> = inputs.iter().map(|x| x.shape().to_vec()).collect();
        let shape = common_shape(&shapes)?;
        let terms: Vec<Tensor> = inputs.iter().map(|x| row_major(x)).collect();
        let terms: Vec<&[f32]> = terms.iter().map(elements).collect();
        let mut y = room(shape.iter().product());
        sum::forward(&terms, &mut y, parallelism)?;
        let y = tensor(&shape, y)?;
        self.cache = Some((inputs.len(), y.shape().to_vec()));
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

    fn forward(&mut self, inputs: &[&Tensor], _: Parallelism<'_>) -> Result<Tensor> {
        let y = fold(inputs, |product, x| product * x)?;
        self.cache = Some(inputs.iter().map(|&x| x.clone()).collect());
        Ok(y)
    }

    fn backward(&mut self, d_output: &Tensor, _: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let inputs = self.cache.as_ref().ok_or(Error::NoForward)?;
        check_gradient(d_output, inputs[0].shape())?;
        let mut gradients = Vec::with_capacity(inputs.len());
        for i in 0..inputs.len() {
            // Not y / xi, which fails for zeros.
            let mut gradient = d_output.clone();
            for (j, x) in inputs.iter().enumerate() {
                if j != i {
                    gradient *= x;
                }
            }
            gradients.push(gradient);
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

    fn forward(&mut self, inputs: &[&Tensor], _: Parallelism<'_>) -> Result<Tensor> {
        self.0.forward(inputs, |least, x| if x < least || x.is_nan() { x } else { least })
    }

    fn backward(&mut self, d_output: &Tensor, _: Parallelism<'_>) -> Result<Vec<Tensor>> {
        self.0.backward(d_output)
    }
}

impl Layer for Maximum {
    fn kind(&self) -> &'static str {
        "Maximum"
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        common_shape(inputs)
    }

    fn forward(&mut self, inputs: &[&Tensor], _: Parallelism<'_>) -> Result<Tensor> {
        self.0.forward(inputs, |largest, x| if x > largest || x.is_nan() { x } else { largest })
    }

    fn backward(&mut self, d_output: &Tensor, _: Parallelism<'_>) -> Result<Vec<Tensor>> {
        self.0.backward(d_output)
    }
}

impl Extremum {
    fn forward(&mut self, inputs: &[&Tensor], choose: impl Fn(f32, f32) -> f32) -> Result<Tensor> {
        let y = fold(inputs, choose)?;
        self.0 = Some((inputs.iter().map(|&x| x.clone()).collect(), y.clone()));
        Ok(y)
    }

    fn backward(&mut self, d_output: &Tensor) -> Result<Vec<Tensor>> {
        let (inputs, y) = self.0.as_ref().ok_or(Error::NoForward)?;
        check_gradient(d_output, y.shape())?;
        let mut gradients = Vec::with_capacity(inputs.len());
        for x in inputs {
            let mut gradient = d_output.clone();
            Zip::from(&mut gradient).and(x).and(y).for_each(|d, &x, &y| {
                if x != y {
                    *d = 0.0;
                }
            });
            gradients.push(gradient);
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

/// The inputs joined from left to right, element by element.
fn fold(inputs: &[&Tensor], join: impl Fn(f32, f32) -> f32) -> Result<Tensor> {
    let Some((&first, rest)) = inputs.split_first() else {
        return Err(Error::invalid("inputs", "at least 1 tensor", 0));
    };
    if let Some(other) = rest.iter().find(|x| x.shape() != first.shape()) {
        return Err(Error::shape("inputs", format!("{:?}, that of the first", first.shape()), other.shape()));
    }
    let mut y = first.clone();
    for &x in rest {
        Zip::from(&mut y).and(x).for_each(|y, &x| *y = join(*y, x));
    }
    Ok(y)
}
