//! Images become rows.

use kernels::Parallelism;

use crate::error::{Error, Result};
use crate::inference::Role;
use crate::layer::{Layer, single, single_shape};
use crate::tensor::{Tensor, check_gradient, count, reshape, row_major};

/// `[batch, a, b, ...]` becomes `[batch, a * b * ...]`, in row-major order. No element is moved.
#[derive(Default)]
pub struct Flatten {
    /// The shapes of the last input and output.
    cache: Option<(Vec<usize>, [usize; 2])>,
}

impl Layer for Flatten {
    fn kind(&self) -> &'static str {
        "Flatten"
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        match single_shape(inputs)? {
            [batch, rest @ ..] => Ok(vec![*batch, count("x", rest)?]),
            given => Err(Error::shape("x", "[batch, ...]", given)),
        }
    }

    fn role(&self) -> Role {
        Role::View
    }

    fn forward(&mut self, inputs: &[&Tensor], _: Parallelism<'_>) -> Result<Tensor> {
        let x = row_major(single(inputs)?);
        let Some((&batch, rest)) = x.shape().split_first() else {
            return Err(Error::shape("x", "[batch, ...]", x.shape()));
        };
        let shape = [batch, count("x", rest)?];
        self.cache = Some((x.shape().to_vec(), shape));
        reshape(x, &shape)
    }

    fn backward(&mut self, d_output: &Tensor, _: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let (x_shape, y_shape) = self.cache.as_ref().ok_or(Error::NoForward)?;
        check_gradient(d_output, y_shape)?;
        let dx = reshape(row_major(d_output), x_shape)?;
        self.cache = None;
        Ok(vec![dx])
    }
}
