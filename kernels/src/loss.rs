//! Losses. Softmax cross-entropy: how surprised a classifier is by the right answer, and the gradient that teaches it.
//!
//! ```text
//! loss[row] = -ln softmax(z)[target] = ln(sum of exp(z - m)) + (m - z[target]),   m = max of z
//! d mean loss / d z = (softmax(z) - [1 at target, 0 elsewhere]) / rows
//! ```
//!
//! Loss and gradient share the exponentials, so both come from one visit to each row.
//!
//! Mean squared error: how far numbers are from those that were asked for.
//!
//! ```text
//! loss = sum of (prediction - target)^2 / n        gradient = 2 (prediction - target) / n
//! ```

use crate::error::{Error, check_len, checked_len};
use crate::execution::Execution;
use crate::parts::Parts;
use crate::simd::each::{each_vector, load, store};
use crate::simd::reduce::{Elements, Sum, Terms, reduce_row};
use crate::simd::{Job, Simd, dispatch};
use crate::softmax::{Exponentials, Shares, ln, maximum, rows_per_task};

/// A rough cost per element on one core, in seconds; the exponential is most of it.
const SECONDS_PER_ELEMENT: f64 = 1.2e-9;

/// The mean over the rows of the cross-entropy between `softmax(logits)` and the classes in `targets`.
///
/// `logits` is `[rows, classes]`, `targets` and `losses` have one element a row; `losses` receives each row's loss, and
/// `gradient`, if given, the gradient of the mean with respect to the logits.
///
/// With `u = 2^-24` and `d = max - min` of a row's logits, its loss errs by at most `u (4 loss + d + classes + 9)`,
/// each element of its gradient by at most `u (2 d + classes + 12) / rows`. The mean adds `u (rows / 64 + 8)` of
/// itself.
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

/// The mean of `(prediction - target)^2` over all elements.
///
/// `gradient`, if given, receives the gradient of the mean with respect to the prediction, `2 (prediction - target) /
/// n`.
///
/// With `u = 2^-24` the mean errs by at most `u (n / 64 + 12)` of itself, an element of the gradient by `4 u` of
/// itself.
///
/// ```
/// use kernels::{Parallelism, loss};
/// let mut gradient = [0.0; 2];
/// let mean = loss::mean_squared_error(&[1.0, 5.0], &[2.0, 2.0], Some(&mut gradient), Parallelism::Serial)?;
/// assert_eq!((mean, gradient), (5.0, [-1.0, 3.0]));
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`] for slices of different lengths, [`Error::Invalid`] for no elements at all.
pub fn mean_squared_error<'t>(
    prediction: &[f32],
    target: &[f32],
    gradient: Option<&mut [f32]>,
    execution: impl Into<Execution<'t>>,
) -> Result<f32, Error> {
    let len = prediction.len();
    check_len("target", len, target.len())?;
    check_len("gradient", len, gradient.as_ref().map_or(len, |gradient| gradient.len()))?;
    if len == 0 {
        return Err(Error::invalid("prediction", "at least 1 element, for a mean", 0));
    }
    // One reduction: it streams through both operands once, which one thread nearly does as fast as several.
    let isa = execution.into().isa()?;
    let y = gradient.map(|gradient| gradient.as_mut_ptr());
    Ok(dispatch(isa, MeanSquare { prediction, target, y }))
}

/// The mean of squared differences, and `2 / n` of each on the way if there is a `y`.
struct MeanSquare<'a> {
    prediction: &'a [f32],
    /// As many elements.
    target: &'a [f32],
    /// As many elements, writable, borrowed by nobody else.
    y: Option<*mut f32>,
}

impl Job for MeanSquare<'_> {
    type Output = f32;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f32 {
        let (len, a, b) = (self.prediction.len(), self.prediction.as_ptr(), self.target.as_ptr());
        let mut squares = Squares { a, b, y: self.y, scale: 2.0 / len as f32 };
        // SAFETY: all slices have `len` elements.
        let sum = unsafe { reduce_row::<S, Sum, _>(simd, &mut squares, len) };
        sum / len as f32
    }
}

/// `(a - b)^2`
struct Squares {
    a: *const f32,
    b: *const f32,
    y: Option<*mut f32>,
    scale: f32,
}

impl Terms for Squares {
    #[inline(always)]
    unsafe fn term<S: Simd>(&mut self, simd: S, at: usize, count: usize) -> S::F {
        // SAFETY: the caller's contract: `at + count` is within the slices.
        unsafe {
            let difference = simd.sub(load(simd, self.a.add(at), count), load(simd, self.b.add(at), count));
            if let Some(y) = self.y {
                store(simd, y.add(at), count, simd.mul(difference, simd.splat(self.scale)));
            }
            simd.mul(difference, difference)
        }
    }
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
        let factor = 1.0 / rows as f32;
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
                    let at_target = (*y.add(target) / sum - 1.0) * factor;
                    each_vector(simd, classes, &Shares { y, sum, factor });
                    *y.add(target) = at_target;
                }
            }
        }
    }
}
