//! Losses: that of a classifier, and that of a prediction of numbers.
//!
//! ```text
//! p = softmax(z)        p[n, c] = exp(z[n, c]) / sum over classes of exp(z[n, ...])
//! L = mean over n of  -ln p[n, label[n]]
//! dL/dz = (p - y) / batch          y: 1 at the label, else 0
//!
//! L = mean of (y - target)^2       dL/dy = 2 (y - target) / elements
//! ```

use kernels::{Parallelism, loss};

use crate::error::{Error, Result};
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
    /// The loss of each row of the last call.
    losses: Vec<f32>,
}

impl SCELoss {
    /// The loss of logits `[batch, classes]`, or `[..., classes]`, against the classes that were right.
    ///
    /// # Errors
    /// [`Error::Shape`] unless there is a row of logits for each label, [`Error::Kernel`] for no rows at all and for a
    /// label that is no class.
    pub fn forward(&mut self, z: &Tensor, labels: &[usize], parallelism: Parallelism<'_>) -> Result<f32> {
        let z = row_major(z);
        let shape = match *z.shape() {
            [ref rows @ .., classes] if !rows.is_empty() && rows.iter().product::<usize>() == labels.len() => {
                [labels.len(), classes]
            }
            _ => return Err(Error::shape("z", format!("[{}, classes]", labels.len()), z.shape())),
        };
        self.losses.resize(labels.len(), 0.0);
        let mut dz = vec![0.0; z.len()];
        let mean =
            loss::softmax_cross_entropy(shape, elements(&z), labels, &mut self.losses, Some(&mut dz), parallelism)?;
        self.cache = Some(tensor(z.shape(), dz)?);
        Ok(mean)
    }

    /// The gradient of the last call's logits: `(softmax(z) - y) / batch`.
    ///
    /// # Errors
    /// [`Error::NoForward`] without a `forward` before.
    pub fn backward(&mut self) -> Result<Tensor> {
        self.cache.take().ok_or(Error::NoForward)
    }
}

/// The mean of squared differences.
///
/// ```
/// use nn::{MSELoss, Parallelism, tensor};
/// let mut loss = MSELoss::default();
/// let (y, target) = (tensor(&[2], vec![1.0, 5.0])?, tensor(&[2], vec![2.0, 2.0])?);
/// assert_eq!(loss.forward(&y, &target, Parallelism::Serial)?, 5.0);
/// assert_eq!(loss.backward()?, tensor(&[2], vec![-1.0, 3.0])?);
/// # Ok::<(), nn::Error>(())
/// ```
#[derive(Default)]
pub struct MSELoss {
    /// The gradient of the last prediction.
    cache: Option<Tensor>,
}

impl MSELoss {
    /// The mean of `(y - target)^2` over all elements.
    ///
    /// # Errors
    /// [`Error::Shape`] unless both have one shape, [`Error::Kernel`] for no elements at all.
    pub fn forward(&mut self, y: &Tensor, target: &Tensor, parallelism: Parallelism<'_>) -> Result<f32> {
        if y.shape() != target.shape() {
            return Err(Error::shape("target", format!("{:?}, that of y", y.shape()), target.shape()));
        }
        let (y, target) = (row_major(y), row_major(target));
        let mut dy = vec![0.0; y.len()];
        let mean = loss::mean_squared_error(elements(&y), elements(&target), Some(&mut dy), parallelism)?;
        self.cache = Some(tensor(y.shape(), dy)?);
        Ok(mean)
    }

    /// The gradient of the last call's `y`: `2 (y - target) / elements`.
    ///
    /// # Errors
    /// [`Error::NoForward`] without a `forward` before.
    pub fn backward(&mut self) -> Result<Tensor> {
        self.cache.take().ok_or(Error::NoForward)
    }
}

/// The class with the largest logit in each row of `[batch, classes]`, or `[..., classes]`; the first of several.
///
/// # Errors
/// [`Error::Shape`] unless there are at least two dimensions and one class.
pub fn classify(z: &Tensor) -> Result<Vec<usize>> {
    let z = row_major(z);
    let classes = match *z.shape() {
        [_, .., classes] if classes > 0 => classes,
        _ => return Err(Error::shape("z", "[batch, classes], at least one class", z.shape())),
    };
    let mut winners = Vec::with_capacity(z.len() / classes);
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
