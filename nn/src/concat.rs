//! Branches side by side, one channel after the other.
//!
//! ```text
//! y[n] = x1[n] ++ x2[n] ++ ...        dx: each input gets its part of dy back
//! ```

use kernels::Parallelism;

use crate::error::{Error, Result};
use crate::inference::Role;
use crate::layer::Layer;
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

    fn forward(&mut self, inputs: &[&Tensor], _: Parallelism<'_>) -> Result<Tensor> {
        let shapes: Vec<Vec<usize>> = inputs.iter().map(|x| x.shape().to_vec()).collect();
        let shape = self.output_shape(&shapes)?;
        let parts: Vec<Tensor> = inputs.iter().map(|x| row_major(x)).collect();
        let mut y = Vec::with_capacity(shape.iter().product());
        for n in 0..shape[0] {
            for part in &parts {
                let len = part.len() / shape[0];
                y.extend_from_slice(&elements(part)[n * len..][..len]);
            }
        }
        let y = tensor(&shape, y)?;
        self.cache = Some((shapes, shape));
        Ok(y)
    }

    fn backward(&mut self, d_output: &Tensor, _: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let (shapes, shape) = self.cache.as_ref().ok_or(Error::NoForward)?;
        check_gradient(d_output, shape)?;
        let dy = row_major(d_output);
        let mut rest = elements(&dy);
        let mut parts: Vec<Vec<f32>> = vec![Vec::new(); shapes.len()];
        for _ in 0..shape[0] {
            for (part, shape) in parts.iter_mut().zip(shapes) {
                let (own, others) = rest.split_at(shape[1..].iter().product());
                part.extend_from_slice(own);
                rest = others;
            }
        }
        let gradients = parts.into_iter().zip(shapes).map(|(part, shape)| tensor(shape, part)).collect();
        self.cache = None;
        gradients
    }
}
