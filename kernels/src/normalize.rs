//! Rows scaled to unit length: what is compared by its direction alone, as the embeddings of CLIP are.
//!
//! ```text
//! l = sqrt(sum of x^2)        y = x / l        dx = (dy - y (sum of dy y)) / l
//! ```
//!
//! A row of zeros has no direction: its length counts as the smallest normal number, so it stays a row of zeros.

use crate::error::{Error, check_len, checked_len};
use crate::execution::Execution;
use crate::parts::Parts;
use crate::simd::each::{load, store};
use crate::simd::reduce::{Sum, Terms, reduce_row};
use crate::simd::{Job, Simd, dispatch};
use crate::softmax::rows_per_task;

/// A rough cost per element on one core, in seconds: memory traffic.
const SECONDS_PER_ELEMENT: f64 = 0.5e-9;

/// `y = x / l` for each of `shape = [rows, columns]`; `lengths` receives each row's `l`.
///
/// Squares must neither overflow nor all vanish: then an element errs by at most `u |y| (columns / 64 + 12)`,
/// `u = 2^-24`.
///
/// ```
/// use kernels::{Parallelism, normalize};
/// let (mut y, mut lengths) = ([0.0; 2], [0.0]);
/// normalize::forward([1, 2], &[3.0, 4.0], &mut y, &mut lengths, Parallelism::Serial)?;
/// assert_eq!((y, lengths), ([0.6, 0.8], [5.0]));
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`] for a slice that does not fit `shape`, [`Error::Overflow`].
pub fn forward<'t>(
    shape: [usize; 2],
    x: &[f32],
    y: &mut [f32],
    lengths: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    let [rows, columns] = shape;
    let len = checked_len("shape", &shape)?;
    check_len("x", len, x.len())?;
    check_len("y", len, y.len())?;
    check_len("lengths", rows, lengths.len())?;
    let execution = execution.into();
    let isa = execution.isa()?;
    let parallelism = execution.parallelism.for_seconds(len as f64 * SECONDS_PER_ELEMENT);
    let block = rows_per_task(columns);
    let (length_parts, y_parts) = (Parts::new(lengths, block), Parts::new(y, block * columns));
    parallelism.for_each(length_parts.count(), parallelism.threads(), &|index, _| {
        // SAFETY: each index comes up once.
        let (lengths, y) = unsafe { (length_parts.take(index), y_parts.take(index)) };
        let x = &x[index * block * columns..][..lengths.len() * columns];
        dispatch(isa, Forward { columns, x, y, lengths });
    });
    Ok(())
}

/// The gradient of [`forward`]'s input, from its output `y`, its `lengths` and the gradient `dy` of `y`.
///
/// With `t` the sum of a row's `|dy y|`, an element errs by at most `u ((3 |dy| + (columns / 64 + 12) |y| t) / l)` for
/// the `y` and `l` given.
///
/// # Errors
/// Those of [`forward`].
pub fn backward<'t>(
    shape: [usize; 2],
    y: &[f32],
    lengths: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    let [rows, columns] = shape;
    let len = checked_len("shape", &shape)?;
    check_len("y", len, y.len())?;
    check_len("lengths", rows, lengths.len())?;
    check_len("dy", len, dy.len())?;
    check_len("dx", len, dx.len())?;
    let execution = execution.into();
    let isa = execution.isa()?;
    if len == 0 {
        return Ok(());
    }
    let parallelism = execution.parallelism.for_seconds(len as f64 * SECONDS_PER_ELEMENT);
    let block = rows_per_task(columns);
    let parts = Parts::new(dx, block * columns);
    parallelism.for_each(parts.count(), parallelism.threads(), &|index, _| {
        // SAFETY: each index comes up once.
        let dx = unsafe { parts.take(index) };
        let range = index * block * columns..index * block * columns + dx.len();
        let (y, dy, lengths) = (&y[range.clone()], &dy[range], &lengths[index * block..]);
        dispatch(isa, Backward { columns, y, dy, lengths, dx });
    });
    Ok(())
}

/// `a * b`
struct Products(*const f32, *const f32);

impl Terms for Products {
    #[inline(always)]
    unsafe fn term<S: Simd>(&mut self, simd: S, at: usize, count: usize) -> S::F {
        // SAFETY: the caller's contract: `at + count` is within the row.
        unsafe { simd.mul(load(simd, self.0.add(at), count), load(simd, self.1.add(at), count)) }
    }
}

struct Forward<'a> {
    columns: usize,
    /// As many elements as `y`, in as many rows as `lengths`.
    x: &'a [f32],
    y: &'a mut [f32],
    lengths: &'a mut [f32],
}

impl Job for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { columns, x, y, lengths } = self;
        for (row, length) in lengths.iter_mut().enumerate() {
            let (x, y) = (&x[row * columns..][..columns], &mut y[row * columns..][..columns]);
            // SAFETY: both rows have `columns` elements.
            unsafe {
                let squares = reduce_row::<S, Sum, _>(simd, &mut Products(x.as_ptr(), x.as_ptr()), columns);
                let root = squares.sqrt();
                // Not `max`, which would lose a NaN.
                *length = if root < f32::MIN_POSITIVE { f32::MIN_POSITIVE } else { root };
                let divisor = simd.splat(*length);
                let mut at = 0;
                while at < columns {
                    let count = S::LANES.min(columns - at);
                    let value = load(simd, x.as_ptr().add(at), count);
                    store(simd, y.as_mut_ptr().add(at), count, simd.div(value, divisor));
                    at += S::LANES;
                }
            }
        }
    }
}

struct Backward<'a> {
    columns: usize,
    /// As many elements as `dx`.
    y: &'a [f32],
    /// As many elements as `dx`.
    dy: &'a [f32],
    /// At least one for each row.
    lengths: &'a [f32],
    dx: &'a mut [f32],
}

impl Job for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { columns, y, dy, lengths, dx } = self;
        for (row, dx) in dx.chunks_exact_mut(columns).enumerate() {
            let (y, dy) = (&y[row * columns..][..columns], &dy[row * columns..][..columns]);
            // SAFETY: all rows have `columns` elements.
            unsafe {
                let sum = reduce_row::<S, Sum, _>(simd, &mut Products(dy.as_ptr(), y.as_ptr()), columns);
                let (sum, divisor) = (simd.splat(-sum), simd.splat(lengths[row]));
                let mut at = 0;
                while at < columns {
                    let count = S::LANES.min(columns - at);
                    let (y, dy) = (load(simd, y.as_ptr().add(at), count), load(simd, dy.as_ptr().add(at), count));
                    store(simd, dx.as_mut_ptr().add(at), count, simd.div(simd.fma(y, sum, dy), divisor));
                    at += S::LANES;
                }
            }
        }
    }
}
