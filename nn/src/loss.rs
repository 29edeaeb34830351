//! The loss of a classifier.
//!
//! ```text
//! p = softmax(z)        p[n, c] = exp(z[n, c]) / sum over classes of exp(z[n, ...])
//! L = mean over n of  -ln p[n, label[n]]
//! dL/dz = (p - y) / batch          y: 1 at the label, else 0
//! ```

use kernels::Parallelism;

use crate::error::{Error, Result};
use crate::shim;
use crate::tensor::{Tensor, elements, row_major, tensor};

/// Softmax cross-entropy, the mean over the batch.
///
/// ```
/// use nn::{Parallelism, SCELoss, tensor};
/// let mut loss = SCELoss::default();
/// let z = tensor(&[1, 2], vec![0.0, 0.0])?;
/// assert_eq!(loss.forward(&z, &[1], Parallelism::Serial)?, 2f32.ln());
/// assert_eq!(loss.backward()?, ndarray::array![[0.5, -0.5]].into_dyn());
/// # Ok::<(), nn::Error>(())
/// ```
#[derive(Default)]
pub struct SCELoss {
    /// The gradient of the last logits: it falls off on the way to the loss.
    cache: Option<Tensor>,
}

impl SCELoss {
    /// The loss of logits `[batch, classes]` against the classes that were right.
    ///
    /// # Errors
    /// [`Error::Shape`] unless there is a row of logits for each label and at least one row,
    /// [`Error::Invalid`] for a label that is no class.
    pub fn forward(&mut self, z: &Tensor, labels: &[usize], parallelism: Parallelism<'_>) -> Result<f32> {
        let _ = parallelism;
        let z = row_major(z);
        let classes = match *z.shape() {
            [batch, classes] if batch == labels.len() && batch > 0 && classes > 0 => classes,
            _ => return Err(Error::shape("z", format!("[{}, classes], not empty", labels.len()), z.shape())),
        };
        if let Some(label) = labels.iter().find(|&&label| label >= classes) {
            return Err(Error::invalid("labels", format!("below {classes}, the number of classes"), label));
        }
        let mut dz = vec![0.0; z.len()];
        let loss = shim::softmax_cross_entropy(elements(&z), labels, classes, &mut dz);
        self.cache = Some(tensor(z.shape(), dz)?);
        Ok(loss)
    }

    /// The gradient of the last call's logits: `(softmax(z) - y) / batch`.
    ///
    /// # Errors
    /// [`Error::NoForward`] without a `forward` before.
    pub fn backward(&mut self) -> Result<Tensor> {
        self.cache.take().ok_or(Error::NoForward)
    }
}

/// The class with the largest logit in each row of `[batch, classes]`; the first of several.
///
/// # Errors
/// [`Error::Shape`] unless there are two dimensions and at least one class.
pub fn classify(z: &Tensor) -> Result<Vec<usize>> {
    let z = row_major(z);
    let classes = match *z.shape() {
        [_, classes] if classes > 0 => classes,
        _ => return Err(Error::shape("z", "[batch, classes], at least one class", z.shape())),
    };
    let mut winners = Vec::with_capacity(z.shape()[0]);
    for row in elements(&z).chunks_exact(classes) {
        let mut winner = 0;
        for c in 1..classes {
            if row[c] > row[winner] {
                winner = c;
            }
        }
        winners.push(winner);
    }
    Ok(winners)
}
