//! The loss that CLIP learns from: each image is to find its own text among all of the batch, and each text its image.
//!
//! ```text
//! L = (cross-entropy of z's rows + that of its columns) / 2,   the right class of row n is n
//! dz = (d rows + (d columns)ᵀ) / 2
//! ```
//!
//! Radford et al., "Learning transferable visual models from natural language supervision", ICML 2021. The logits `z`
//! are those of [`CosineLogits`](crate::CosineLogits).

use kernels::{Parallelism, loss};

use crate::error::{Error, Result};
use crate::tensor::{Tensor, elements, row_major, tensor};

/// The symmetric contrastive loss: the mean of two cross-entropies.
///
/// ```
/// use nn::{ClipLoss, Parallelism, tensor};
/// let mut loss = ClipLoss::default();
/// let matching = loss.forward(&tensor(&[2, 2], vec![14.0, 0.0, 0.0, 14.0])?, Parallelism::Serial)?;
/// let crossed = loss.forward(&tensor(&[2, 2], vec![0.0, 14.0, 14.0, 0.0])?, Parallelism::Serial)?;
/// assert!(matching < 1e-5 && crossed > 13.9);
/// # Ok::<(), nn::Error>(())
/// ```
#[derive(Default)]
pub struct ClipLoss {
    /// The gradient of the last logits.
    cache: Option<Tensor>,
}

/// The other triangle of a square matrix.
fn transposed(z: &[f32], batch: usize) -> Vec<f32> {
    (0..z.len()).map(|at| z[at % batch * batch + at / batch]).collect()
}

impl ClipLoss {
    /// The loss of logits `[batch, batch]` of which row n, an image, belongs to column n, its text.
    ///
    /// # Errors
    /// [`Error::Shape`] unless there are as many rows as columns, [`Error::Kernel`] for none at all.
    pub fn forward(&mut self, z: &Tensor, parallelism: Parallelism<'_>) -> Result<f32> {
        let z = row_major(z);
        let batch = match *z.shape() {
            [rows, columns] if rows == columns => rows,
            _ => return Err(Error::shape("z", "[batch, batch]", z.shape())),
        };
        let (own, mut losses): (Vec<usize>, _) = ((0..batch).collect(), vec![0.0; batch]);
        let mut mean = |z: &[f32], dz: &mut [f32]| {
            loss::softmax_cross_entropy([batch; 2], z, &own, &mut losses, Some(dz), parallelism)
        };
        let [mut dz, mut d_columns] = [vec![0.0; z.len()], vec![0.0; z.len()]];
        let total = mean(elements(&z), &mut dz)? + mean(&transposed(elements(&z), batch), &mut d_columns)?;
        for (d, of_column) in dz.iter_mut().zip(transposed(&d_columns, batch)) {
            *d = 0.5 * (*d + of_column);
        }
        self.cache = Some(tensor(z.shape(), dz)?);
        Ok(0.5 * total)
    }

    /// The gradient of the last call's logits.
    ///
    /// # Errors
    /// [`Error::NoForward`] without a `forward` before.
    pub fn backward(&mut self) -> Result<Tensor> {
        self.cache.take().ok_or(Error::NoForward)
    }
}
