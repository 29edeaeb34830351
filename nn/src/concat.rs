//! Branches side by side, one channel after the other.
//!
//! ```text
//! y[n] = x1[n] ++ x2[n] ++ ...        dx: each input gets its part of dy back
//! ```

use kernels::Parallelism;

use crate::error::{Error, Result};
use crate::inference::Role;
use crate::layer::Layer;
use crate::memory::room;
use crate::tensor::{Tensor, check_gradient, elements, row_major, tensor};

/// Joins `[batch, a, ...]`, `[batch, b, ...]`, ... into `[batch, a + b + ..., ...]`.
///
/// ```
/// use nn::{Concat, Layer, Parallelism, tensor};
/// let (a, b) = (tensor(&[2, 1], vec![1.0, 2.0])?, tensor(&[2, 2], vec![3.0, 4.0, 5.0, 6.0])?);
/// let y = Concat::default().forward(&[&a, &b], Parallelism::Serial)?;
/// assert_eq!(y, tensor(&[2, 3], vec![1.0, 3.0, 4.0, 2.0, 5.0, 6.0])?);
/// # Ok::<(), nn::Error>(())
/// ```
#[derive(Default)]
pub struct Concat {
    /// The shapes of the last inputs, and of the output.
    cache: Option<(Vec<Vec<usize>>, Vec<usize>)>,
}

impl Layer for Concat {
    fn kind(&self) -> &'static str {
        "Concat"
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        let mut joined = match inputs {
            [first, ..] if first.len() >= 2 => first.clone(),
            [first, ..] => return Err(Error::shape("inputs", "[batch, channels, ...]", first)),
            [] => return Err(Error::invalid("inputs", "at least 1 tensor", 0)),
        };
        for other in &inputs[1..] {
            let fits = other.len() == joined.len() && other[0] == joined[0] && other[2..] == joined[2..];
            let sum = if fits { joined[1].checked_add(other[1]) } else { None };
            joined[1] = sum.ok_or_else(|| {
                Error::shape("inputs", format!("{:?} but for the channels, as the first", inputs[0]), other)
            })?;
        }
        Ok(joined)
    }

    fn role(&self) -> Role {
        Role::Concat
    }

    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let shapes: Vec<Vec<usize>> = inputs.iter().map(|x| x.shape().to_vec()).collect();
        let shape = self.output_shape(&shapes)?;
        let parts: Vec<Tensor> = inputs.iter().map(|x| row_major(x)).collect();
        let mut y = room(shape.iter().product());
        let mut rest = y.as_mut_slice();
        for n in 0..shape[0] {
            for part in &parts {
                let len = part.len() / shape[0];
                let (own, others) = rest.split_at_mut(len);
                kernels::sum::forward(&[&elements(part)[n * len..][..len]], own, parallelism)?;
                rest = others;
            }
        }
        let y = tensor(&shape, y)?;
        self.cache = Some((shapes, shape));
        Ok(y)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let (shapes, shape) = self.cache.as_ref().ok_or(Error::NoForward)?;
        check_gradient(d_output, shape)?;
        let dy = row_major(d_output);
        let mut rest = elements(&dy);
        let mut parts: Vec<Vec<f32>> = shapes.iter().map(|shape| room(shape.iter().product())).collect();
        for n in 0..shape[0] {
            for (part, shape) in parts.iter_mut().zip(shapes) {
                let len = shape[1..].iter().product();
                let (own, others) = rest.split_at(len);
                kernels::sum::forward(&[own], &mut part[n * len..][..len], parallelism)?;
                rest = others;
            }
        }
        let gradients = parts.into_iter().zip(shapes).map(|(part, shape)| tensor(shape, part)).collect();
        self.cache = None;
        gradients
    }
}
