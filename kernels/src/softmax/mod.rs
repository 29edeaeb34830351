//! Softmax and its logarithm over the last axis; over any other in [`axis`].
//!
//! ```text
//! m = max of x,  s = sum of exp(x - m)         y = exp(x - m) / s        log y = (x - m) - ln s
//! dx = y (dy - sum of dy y)                                              dx = dy - exp(log y) sum of dy
//! ```
//!
//! Shifting by the maximum keeps every exponential within [0, 1]; dividing by the sum, rather than subtracting its
//! logarithm in the exponent, keeps the result as accurate as the exponentials are (P. Blanchard, D. Higham, N. Higham,
//! "Accurately computing the log-sum-exp and softmax functions", IMA Journal of Numerical Analysis, 2021).
//!
//! A row goes through three passes, which find it in a cache: maximum, exponentials and their sum, division. Its bits
//! depend on nothing but its elements: sums go through 64 virtual lanes whatever the other rows are.
//!
//! A row that holds NaN or +infinity, or nothing but -infinity, comes out as NaN, as the formula says. An element of
//! -infinity beside finite ones has the probability 0.

pub mod axis;

use crate::error::{Error, check_len, checked_len};
use crate::execution::Execution;
use crate::parts::Parts;
use crate::simd::each::{Step, each_vector, load, store};
use crate::simd::output::{Output, each_result, goes_past};
use crate::simd::reduce::{Elements, Max, Sum, Terms, reduce_row};
use crate::simd::{Isa, Job, Simd, dispatch, math};

/// A rough cost per element on one core, in seconds; the exponential is most of it.
const SECONDS_PER_ELEMENT: f64 = 1.2e-9;

/// Elements of a task, in whole rows: small enough for rows to stay in L2 from pass to pass.
const PART: usize = 16 * 1024;

/// `y = softmax(x)` for each of `shape = [rows, columns]`.
///
/// With `h = ln(columns)` and `u = 2^-24`, element `i` errs by at most
/// `y[i] * u * (|x[i] - m| + h + columns + 7)`, and by exp(-87.3) < 1.23e-38 where `x[i] - m` is below -87.3.
///
/// ```
/// use kernels::{Parallelism, softmax};
/// let mut y = [0.0; 4];
/// softmax::forward([2, 2], &[3.0, 3.0, 0.0, -200.0], &mut y, Parallelism::Serial)?;
/// assert_eq!(y, [0.5, 0.5, 1.0, 0.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`] for a slice that does not have `rows * columns` elements, [`Error::Overflow`].
pub fn forward<'t>(
    shape: [usize; 2],
    x: &[f32],
    y: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    check(shape, [("x", x.len()), ("y", y.len())])?;
    for_each_row_block(shape, y, execution.into(), &|isa, at, y| {
        dispatch(isa, Forward::<false> { columns: shape[1], x: x[at..].as_ptr(), y });
    })
}

/// `y = ln(softmax(x))` for each of `shape = [rows, columns]`.
///
/// With the terms of [`forward`], element `i` errs by at most
/// `u * (2 |y[i]| + 2 |x[i] - m| + 2 ln(columns) + columns + 7)`.
///
/// # Errors
/// Those of [`forward`].
pub fn log_forward<'t>(
    shape: [usize; 2],
    x: &[f32],
    y: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    check(shape, [("x", x.len()), ("y", y.len())])?;
    for_each_row_block(shape, y, execution.into(), &|isa, at, y| {
        dispatch(isa, Forward::<true> { columns: shape[1], x: x[at..].as_ptr(), y });
    })
}

/// `dx = y (dy - sum of dy y)` for each row, from the output `y` of [`forward`].
///
/// Element `i` errs by at most `(columns + 3) u y[i] (|dy[i]| + sum of |dy y|)` for the `y` given.
///
/// # Errors
/// Those of [`forward`].
pub fn backward<'t>(
    shape: [usize; 2],
    y: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    check(shape, [("y", y.len()), ("dy", dy.len()), ("dx", dx.len())])?;
    let past = goes_past(dx.len(), shape[1]);
    for_each_row_block(shape, dx, execution.into(), &|isa, at, dx| {
        dispatch(isa, Backward::<false> { columns: shape[1], y: y[at..].as_ptr(), dy: dy[at..].as_ptr(), dx, past });
    })
}

/// `dx = dy - exp(y) sum of dy` for each row, from the output `y` of [`log_forward`].
///
/// Element `i` errs by at most `(columns + 4) u (|dy[i]| + exp(y[i]) sum of |dy|)` for the `y` given, and by
/// `1.23e-38 sum of |dy|` more where `y[i] < -87.3`.
///
/// # Errors
/// Those of [`forward`].
pub fn log_backward<'t>(
    shape: [usize; 2],
    y: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    check(shape, [("y", y.len()), ("dy", dy.len()), ("dx", dx.len())])?;
    let past = goes_past(dx.len(), shape[1]);
    for_each_row_block(shape, dx, execution.into(), &|isa, at, dx| {
        dispatch(isa, Backward::<true> { columns: shape[1], y: y[at..].as_ptr(), dy: dy[at..].as_ptr(), dx, past });
    })
}

fn check(shape: impl AsRef<[usize]>, lengths: impl IntoIterator<Item = (&'static str, usize)>) -> Result<(), Error> {
    let len = checked_len("shape", shape.as_ref())?;
    for (argument, given) in lengths {
        check_len(argument, len, given)?;
    }
    Ok(())
}

/// Rows of one task.
pub(crate) fn rows_per_task(columns: usize) -> usize {
    (PART / columns.max(1)).max(1)
}

/// Runs `task(isa, start, rows)` for blocks of whole rows of an output.
fn for_each_row_block(
    [rows, columns]: [usize; 2],
    output: &mut [f32],
    execution: Execution,
    task: &(dyn Fn(Isa, usize, &mut [f32]) + Sync),
) -> Result<(), Error> {
    let isa = execution.isa()?;
    let parallelism = execution.parallelism.for_seconds(rows as f64 * columns as f64 * SECONDS_PER_ELEMENT);
    let block = rows_per_task(columns) * columns;
    let parts = Parts::new(output, block);
    parallelism.for_each(parts.count(), parallelism.threads(), &|index, _| {
        // SAFETY: each index comes up once.
        task(isa, index * block, unsafe { parts.take(index) });
    });
    Ok(())
}

/// `exp(x - m)`, written to `y` on the way if there is a `y`.
pub(crate) struct Exponentials {
    pub x: *const f32,
    pub maximum: f32,
    pub y: Option<*mut f32>,
}

impl Terms for Exponentials {
    #[inline(always)]
    unsafe fn term<S: Simd>(&mut self, simd: S, at: usize, count: usize) -> S::F {
        // SAFETY: the caller's contract: `at + count` is within the row.
        unsafe {
            let x = load(simd, self.x.add(at), count);
            let e = math::exp_nonpositive(simd, simd.sub(x, simd.splat(self.maximum)));
            if let Some(y) = self.y {
                store(simd, y.add(at), count, e);
            }
            e
        }
    }
}

/// `a * b`
struct Products {
    a: *const f32,
    b: *const f32,
}

impl Terms for Products {
    #[inline(always)]
    unsafe fn term<S: Simd>(&mut self, simd: S, at: usize, count: usize) -> S::F {
        // SAFETY: the caller's contract: `at + count` is within the row.
        unsafe { simd.mul(load(simd, self.a.add(at), count), load(simd, self.b.add(at), count)) }
    }
}

/// The largest element of a row of numbers; for a row with NaN anything, -infinity for an empty one.
///
/// # Safety
/// - `len` elements are readable at `x`.
#[inline(always)]
pub(crate) unsafe fn maximum<S: Simd>(simd: S, x: *const f32, len: usize) -> f32 {
    // SAFETY: the caller's contract.
    unsafe { reduce_row::<S, Max, _>(simd, &mut Elements(x), len) }
}

/// The natural logarithm of one number, with the bits of the vector function.
#[inline(always)]
pub(crate) fn ln<S: Simd>(simd: S, x: f32) -> f32 {
    let mut lanes = [0.0f32; 16];
    debug_assert!(S::LANES <= lanes.len());
    // SAFETY: there is room for the widest vector.
    unsafe { simd.store(lanes.as_mut_ptr(), math::ln(simd, simd.splat(x))) };
    lanes[0]
}

/// With `LOG`, the logarithm.
struct Forward<'a, const LOG: bool> {
    columns: usize,
    /// As many elements as `y`.
    x: *const f32,
    y: &'a mut [f32],
}

impl<const LOG: bool> Job for Forward<'_, LOG> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let columns = self.columns;
        for (row, y) in self.y.chunks_exact_mut(columns).enumerate() {
            // SAFETY: `x` has as many elements as `y`, so this row too.
            unsafe {
                let (x, y) = (self.x.add(row * columns), y.as_mut_ptr());
                // Where NaN makes the maximum meaningless, it makes the sum NaN all the same.
                let maximum = maximum(simd, x, columns);
                let kept = (!LOG).then_some(y);
                let sum = reduce_row::<S, Sum, _>(simd, &mut Exponentials { x, maximum, y: kept }, columns);
                if LOG {
                    each_vector(simd, columns, &Shifted { x, maximum, logarithm: ln(simd, sum), y });
                } else {
                    each_vector(simd, columns, &Shares { y, sum, factor: 1.0 });
                }
            }
        }
    }
}

/// `x - m - ln s`
struct Shifted {
    x: *const f32,
    maximum: f32,
    logarithm: f32,
    y: *mut f32,
}

impl Step for Shifted {
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, simd: S, at: usize, count: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            let shifted = simd.sub(load(simd, self.x.add(at), count), simd.splat(self.maximum));
            store(simd, self.y.add(at), count, simd.sub(shifted, simd.splat(self.logarithm)));
        }
    }
}

/// `y = y / s`, times a factor.
pub(crate) struct Shares {
    pub y: *mut f32,
    pub sum: f32,
    pub factor: f32,
}

impl Step for Shares {
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, simd: S, at: usize, count: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            let share = simd.div(load(simd, self.y.add(at), count), simd.splat(self.sum));
            store(simd, self.y.add(at), count, simd.mul(share, simd.splat(self.factor)));
        }
    }
}

/// Of the logarithm, with `LOG`.
struct Backward<'a, const LOG: bool> {
    columns: usize,
    /// As many elements as `dx`.
    y: *const f32,
    /// As many elements as `dx`.
    dy: *const f32,
    dx: &'a mut [f32],
    /// Whether `dx` goes past the caches.
    past: bool,
}

impl<const LOG: bool> Job for Backward<'_, LOG> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { columns, y, dy, dx, past } = self;
        let rows = dx.len() / columns;
        let dx = Output { start: dx.as_mut_ptr(), past };
        for row in 0..rows {
            // SAFETY: `y` and `dy` have as many elements as `dx`, so this row too.
            unsafe {
                let (y, dy, dx) = (y.add(row * columns), dy.add(row * columns), dx.at(row * columns));
                let sum = if LOG {
                    -reduce_row::<S, Sum, _>(simd, &mut Elements(dy), columns)
                } else {
                    reduce_row::<S, Sum, _>(simd, &mut Products { a: y, b: dy }, columns)
                };
                each_result(simd, dx, columns, &Incoming::<LOG> { y, dy, sum, dx });
            }
        }
        dx.finish(simd);
    }
}

/// `y (dy - s)`, or with `LOG` `dy + exp(y) s`.
struct Incoming<const LOG: bool> {
    y: *const f32,
    dy: *const f32,
    sum: f32,
    dx: Output,
}

impl<const LOG: bool> Step for Incoming<LOG> {
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, simd: S, at: usize, count: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            let (y, dy) = (load(simd, self.y.add(at), count), load(simd, self.dy.add(at), count));
            let sum = simd.splat(self.sum);
            let v = if LOG { simd.fma(math::exp(simd, y), sum, dy) } else { simd.mul(y, simd.sub(dy, sum)) };
            self.dx.put(simd, at, count, v);
        }
    }
}
