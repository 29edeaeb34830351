//! Softmax and its logarithm over an axis whose elements are not neighbours: channels of an image, for example.
//!
//! ```text
//! [outer][len][inner]       softmax over len, for each of outer * inner
//!
//!            inner ──►
//!           ┌────────────┬────────────┬──
//!  len  │   │ strip of   │ strip      │     a strip: 64 neighbours of inner, in the lanes,
//!       ▼   │ 64 columns │            │     goes down the axis three times, as a row does
//!           └────────────┴────────────┴──
//! ```
//!
//! Each maximum and each sum is one chain down the axis, so that neither threads nor the width of vectors nor what lies
//! beside a column show in its bits. Everything else is as in [`softmax`](super), special values too.

use std::marker::PhantomData;

use super::{PART, SECONDS_PER_ELEMENT, check};
use crate::error::Error;
use crate::execution::Execution;
use crate::simd::each::{load, store};
use crate::simd::{Job, Simd, dispatch, math};

/// Columns of a strip: four cache lines side by side.
const STRIP: usize = 64;

/// Vectors of a strip, with the fewest lanes that there are.
const VECTORS: usize = STRIP / 4;

/// `y = softmax(x)` over the middle one of `shape = [outer, len, inner]`.
///
/// Errs as [`softmax::forward`](super::forward) does for rows of `len` columns.
///
/// ```
/// use kernels::{Parallelism, softmax};
/// let mut y = [0.0; 4];
/// softmax::axis::forward([1, 2, 2], &[3.0, 0.0, 3.0, -200.0], &mut y, Parallelism::Serial)?;
/// assert_eq!(y, [0.5, 1.0, 0.5, 0.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`] for a slice that does not fit `shape`, [`Error::Overflow`].
pub fn forward<'t>(
    shape: [usize; 3],
    x: &[f32],
    y: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    check(shape, [("x", x.len()), ("y", y.len())])?;
    if shape[2] == 1 {
        return super::forward([shape[0], shape[1]], x, y, execution);
    }
    for_each_strip(shape, y, execution.into(), |strip, start, y| Forward::<false> { strip, x: x[start..].as_ptr(), y })
}

/// `y = ln(softmax(x))` over the middle one of `shape = [outer, len, inner]`.
///
/// Errs as [`softmax::log_forward`](super::log_forward) does for rows of `len` columns.
///
/// # Errors
/// Those of [`forward`].
pub fn log_forward<'t>(
    shape: [usize; 3],
    x: &[f32],
    y: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    check(shape, [("x", x.len()), ("y", y.len())])?;
    if shape[2] == 1 {
        return super::log_forward([shape[0], shape[1]], x, y, execution);
    }
    for_each_strip(shape, y, execution.into(), |strip, start, y| Forward::<true> { strip, x: x[start..].as_ptr(), y })
}

/// `dx = y (dy - sum of dy y)` over the middle one of `shape`, from the output `y` of [`forward`].
///
/// Errs as [`softmax::backward`](super::backward) does for rows of `len` columns.
///
/// # Errors
/// Those of [`forward`].
pub fn backward<'t>(
    shape: [usize; 3],
    y: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    check(shape, [("y", y.len()), ("dy", dy.len()), ("dx", dx.len())])?;
    if shape[2] == 1 {
        return super::backward([shape[0], shape[1]], y, dy, dx, execution);
    }
    for_each_strip(shape, dx, execution.into(), |strip, start, dx| Backward::<false> {
        strip,
        y: y[start..].as_ptr(),
        dy: dy[start..].as_ptr(),
        dx,
    })
}

/// `dx = dy - exp(y) sum of dy` over the middle one of `shape`, from the output `y` of [`log_forward`].
///
/// Errs as [`softmax::log_backward`](super::log_backward) does for rows of `len` columns.
///
/// # Errors
/// Those of [`forward`].
pub fn log_backward<'t>(
    shape: [usize; 3],
    y: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    check(shape, [("y", y.len()), ("dy", dy.len()), ("dx", dx.len())])?;
    if shape[2] == 1 {
        return super::log_backward([shape[0], shape[1]], y, dy, dx, execution);
    }
    for_each_strip(shape, dx, execution.into(), |strip, start, dx| Backward::<true> {
        strip,
        y: y[start..].as_ptr(),
        dy: dy[start..].as_ptr(),
        dx,
    })
}

/// `count` columns, at most [`STRIP`], of `len` elements that are `inner` apart.
#[derive(Clone, Copy)]
struct Strip {
    len: usize,
    inner: usize,
    count: usize,
}

/// An output whose strips tasks on several threads own.
struct Strips<'a> {
    start: *mut f32,
    output: PhantomData<&'a mut [f32]>,
}

// SAFETY: each strip belongs to one task.
unsafe impl Sync for Strips<'_> {}

impl Strips<'_> {
    fn at(&self, start: usize) -> *mut f32 {
        self.start.wrapping_add(start)
    }
}

/// Runs the job that `make(strip, start, output)` makes, for each strip. Lengths have been checked.
fn for_each_strip<J: Job<Output = ()>>(
    [outer, len, inner]: [usize; 3],
    output: &mut [f32],
    execution: Execution,
    make: impl Fn(Strip, usize, *mut f32) -> J + Sync,
) -> Result<(), Error> {
    let isa = execution.isa()?;
    if output.is_empty() {
        return Ok(());
    }
    let parallelism = execution.parallelism.for_seconds(output.len() as f64 * SECONDS_PER_ELEMENT);
    let strips = inner.div_ceil(STRIP);
    let all = outer * strips;
    let per_task = (PART / (len * STRIP)).clamp(1, all);
    let output = Strips { start: output.as_mut_ptr(), output: PhantomData };
    parallelism.for_each(all.div_ceil(per_task), parallelism.threads(), &|task, _| {
        for index in task * per_task..all.min((task + 1) * per_task) {
            let (o, first) = (index / strips, index % strips * STRIP);
            let start = o * len * inner + first;
            let strip = Strip { len, inner, count: STRIP.min(inner - first) };
            dispatch(isa, make(strip, start, output.at(start)));
        }
    });
    Ok(())
}

impl Strip {
    /// Where vector `v` of row `l` lies, and how many lanes of it are in the strip.
    #[inline(always)]
    fn place<S: Simd>(self, _: S, l: usize, v: usize) -> (usize, usize) {
        let at = v * S::LANES;
        (l * self.inner + at, S::LANES.min(self.count - at))
    }
}

/// Whoever makes one vouches that the strip is readable at `x` and writable at `y`.
struct Forward<const LOG: bool> {
    strip: Strip,
    x: *const f32,
    y: *mut f32,
}

impl<const LOG: bool> Job for Forward<LOG> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // In a whole strip the number of vectors is a constant, and they stay in registers.
        match self.strip.count {
            STRIP => self.down(simd, Strip { count: STRIP, ..self.strip }, STRIP / S::LANES),
            count => self.down(simd, self.strip, count.div_ceil(S::LANES)),
        }
    }
}

impl<const LOG: bool> Forward<LOG> {
    #[inline(always)]
    fn down<S: Simd>(&self, simd: S, strip: Strip, vectors: usize) {
        let Self { x, y, .. } = *self;
        let mut maxima = [simd.splat(f32::NEG_INFINITY); VECTORS];
        let mut sums = [simd.zero(); VECTORS];
        for l in 0..strip.len {
            for v in 0..vectors {
                let (at, lanes) = strip.place(simd, l, v);
                // SAFETY: the place is within the strip.
                maxima[v] = simd.max(unsafe { load(simd, x.add(at), lanes) }, maxima[v]);
            }
        }
        // Where NaN makes a maximum meaningless, it makes the sum NaN all the same.
        for l in 0..strip.len {
            for v in 0..vectors {
                let (at, lanes) = strip.place(simd, l, v);
                // SAFETY: the place is within the strip.
                unsafe {
                    let e = math::exp(simd, simd.sub(load(simd, x.add(at), lanes), maxima[v]));
                    if !LOG {
                        store(simd, y.add(at), lanes, e);
                    }
                    sums[v] = simd.add(sums[v], e);
                }
            }
        }
        for v in 0..vectors {
            if LOG {
                sums[v] = math::ln(simd, sums[v]);
            }
        }
        for l in 0..strip.len {
            for v in 0..vectors {
                let (at, lanes) = strip.place(simd, l, v);
                // SAFETY: the place is within the strip.
                unsafe {
                    let value = if LOG {
                        simd.sub(simd.sub(load(simd, x.add(at), lanes), maxima[v]), sums[v])
                    } else {
                        simd.div(load(simd, y.add(at), lanes), sums[v])
                    };
                    store(simd, y.add(at), lanes, value);
                }
            }
        }
    }
}

/// Whoever makes one vouches that the strip is readable at `y` and `dy` and writable at `dx`.
struct Backward<const LOG: bool> {
    strip: Strip,
    y: *const f32,
    dy: *const f32,
    dx: *mut f32,
}

impl<const LOG: bool> Job for Backward<LOG> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.strip.count {
            STRIP => self.down(simd, Strip { count: STRIP, ..self.strip }, STRIP / S::LANES),
            count => self.down(simd, self.strip, count.div_ceil(S::LANES)),
        }
    }
}

impl<const LOG: bool> Backward<LOG> {
    #[inline(always)]
    fn down<S: Simd>(&self, simd: S, strip: Strip, vectors: usize) {
        let Self { y, dy, dx, .. } = *self;
        let mut sums = [simd.zero(); VECTORS];
        for l in 0..strip.len {
            for v in 0..vectors {
                let (at, lanes) = strip.place(simd, l, v);
                // SAFETY: the place is within the strip.
                unsafe {
                    let dy = load(simd, dy.add(at), lanes);
                    let term = if LOG { dy } else { simd.mul(load(simd, y.add(at), lanes), dy) };
                    sums[v] = simd.add(sums[v], term);
                }
            }
        }
        for l in 0..strip.len {
            for v in 0..vectors {
                let (at, lanes) = strip.place(simd, l, v);
                // SAFETY: the place is within the strip.
                unsafe {
                    let (y, dy) = (load(simd, y.add(at), lanes), load(simd, dy.add(at), lanes));
                    let value = if LOG {
                        simd.fma(math::exp(simd, y), simd.sub(simd.zero(), sums[v]), dy)
                    } else {
                        simd.mul(y, simd.sub(dy, sums[v]))
                    };
                    store(simd, dx.add(at), lanes, value);
                }
            }
        }
    }
}
