//! Softmax cross-entropy: how surprised a classifier is by the right answer, and the gradient that teaches it.
//!
//! ```text
//! loss[row] = -ln softmax(z)[target] = ln(sum of exp(z - m)) + (m - z[target]),   m = max of z
//! d mean loss / d z = (softmax(z) - [1 at target, 0 elsewhere]) / rows
//! ```
//!
//! Loss and gradient share the exponentials, so both come from one visit to each row.

use crate::error::{Error, check_len, checked_len};
use crate::execution::Execution;
use crate::parts::Parts;
use crate::simd::reduce::{Elements, Sum, reduce_row};
use crate::simd::{Job, Simd, dispatch};
use crate::softmax::{Exponentials, ln, load, maximum, rows_per_task, store};

/// A rough cost per element on one core, in seconds; the exponential is most of it.
const SECONDS_PER_ELEMENT: f64 = 1.2e-9;

/// The mean over the rows of the cross-entropy between `softmax(logits)` and the classes in `targets`.
///
/// `logits` is `[rows, classes]`, `targets` and `losses` have one element a row; `losses` receives each row's loss, and
/// `gradient`, if given, the gradient of the mean with respect to the logits.
///
/// With `u = 2^-24` and `d = max - min` of a row's logits, its loss errs by at most `u (4 loss + d + classes + 9)`, each
/// element of its gradient by at most `u (2 d + classes + 12) / rows`. The mean adds `u (rows / 64 + 8)` of itself.
///
/// A row that holds NaN or +infinity, or nothing but -infinity, makes its loss, its gradient and the mean NaN. A target
/// whose logit is -infinity beside finite ones costs +infinity.
///
/// ```
/// use kernels::{Parallelism, loss};
/// let logits = [0.0, 0.0, 0.0, 0.0];
/// let (mut losses, mut gradient) = ([0.0; 2], [0.0; 4]);
/// let mean = loss::softmax_cross_entropy(
///     [2, 2], &logits, &[0, 1], &mut losses, Some(&mut gradient), Parallelism::Serial,
/// )?;
/// assert!((mean - 2f32.ln()).abs() < 1e-6);
/// assert_eq!(gradient, [-0.25, 0.25, 0.25, -0.25]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`] for a slice that does not fit `shape`, [`Error::Invalid`] for no rows at all and for a target that
/// is no class, [`Error::Overflow`].
pub fn softmax_cross_entropy<'t>(
    shape: [usize; 2],
    logits: &[f32],
    targets: &[usize],
    losses: &mut [f32],
    gradient: Option<&mut [f32]>,
    execution: impl Into<Execution<'t>>,
) -> Result<f32, Error> {
    let [rows, classes] = shape;
    let len = checked_len("shape", &shape)?;
    check_len("logits", len, logits.len())?;
    check_len("targets", rows, targets.len())?;
    check_len("losses", rows, losses.len())?;
    check_len("gradient", len, gradient.as_ref().map_or(len, |gradient| gradient.len()))?;
    if rows == 0 {
        return Err(Error::invalid("rows", "at least 1, for a mean", rows));
    }
    if let Some(target) = targets.iter().find(|&&target| target >= classes) {
        return Err(Error::invalid("targets", format!("classes below {classes}"), target));
    }
    let execution = execution.into();
    let isa = execution.isa()?;

    let has_gradient = gradient.is_some();
    let block = rows_per_task(classes);
    let parallelism = execution.parallelism.for_seconds(len as f64 * SECONDS_PER_ELEMENT);
    let loss_parts = Parts::new(losses, block);
    let gradient_parts = Parts::new(gradient.unwrap_or_default(), block * classes);
    parallelism.for_each(loss_parts.count(), parallelism.threads(), &|index, _| {
        let first = index * block;
        // SAFETY: each index comes up once.
        let (losses, gradient) = unsafe { (loss_parts.take(index), gradient_parts.take(index)) };
        let logits = &logits[first * classes..][..losses.len() * classes];
        let targets = &targets[first..][..losses.len()];
        let gradient = has_gradient.then_some(gradient);
        dispatch(isa, Rows { classes, rows, logits, targets, losses, gradient });
    });
    Ok(dispatch(isa, Mean(losses)))
}

/// The mean of the rows' losses.
struct Mean<'a>(&'a [f32]);

impl Job for Mean<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        // SAFETY: the slice has as many elements.
        let sum = unsafe { reduce_row::<S, Sum, _>(simd, &mut Elements(self.0.as_ptr()), self.0.len()) };
        sum / self.0.len() as f32
    }
}

/// Losses and gradients of some rows.
struct Rows<'a> {
    classes: usize,
    /// Rows of the whole batch, by which the gradient is divided.
    rows: usize,
    logits: &'a [f32],
    /// Below `classes`, one for each of `losses`.
    targets: &'a [usize],
    losses: &'a mut [f32],
    gradient: Option<&'a mut [f32]>,
}

impl Job for Rows<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { classes, rows, logits, targets, losses, mut gradient } = self;
        let scale = 1.0 / rows as f32;
        for row in 0..losses.len() {
            let z = &logits[row * classes..][..classes];
            let target = targets[row];
            let gradient = gradient.as_deref_mut().map(|gradient| &mut gradient[row * classes..][..classes]);
            let y = gradient.map(|gradient| gradient.as_mut_ptr());
            // SAFETY: `z` and the gradient's row have `classes` elements, and the target is one of them.
            unsafe {
                let x = z.as_ptr();
                let maximum = maximum(simd, x, classes);
                let sum = reduce_row::<S, Sum, _>(simd, &mut Exponentials { x, maximum, y }, classes);
                losses[row] = ln(simd, sum) + (maximum - z[target]);
                if let Some(y) = y {
                    let at_target = (*y.add(target) / sum - 1.0) * scale;
                    let (sum, scale) = (simd.splat(sum), simd.splat(scale));
                    let mut at = 0;
                    while at < classes {
                        let count = S::LANES.min(classes - at);
                        let p = simd.div(load(simd, y.add(at), count), sum);
                        store(simd, y.add(at), count, simd.mul(p, scale));
                        at += S::LANES;
                    }
                    *y.add(target) = at_target;
                }
            }
        }
    }
}
