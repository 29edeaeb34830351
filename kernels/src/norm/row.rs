//! What layer and RMS norm share: rows, normalised each on its own, and columns, scaled each on its own.
//!
//! A row is looked at three times forward and backward: for sums (of x, and of g), for centred sums (of squares, and of
//! g x^), for the output. Without a mean the first is left out. Only the first finds it in memory; backward asks for
//! the next row's lines while it works on this one's, a share in each of its later looks. Its products are those of `g`
//! and `x - mean`: rows of both below 1e-19, or with products beyond 1e38, leave the range of floats.

use crate::error::Error;
use crate::execution::Execution;
use crate::parts::Parts;
use crate::simd::each::{Step, load, store};
use crate::simd::output::{Output, each_result, goes_past};
use crate::simd::reduce::{Elements, Pairs, Sum, Terms, reduce_row, sum_pairs};
use crate::simd::{Job, Simd, dispatch};

use super::{Affine, Gradients, PART, SECONDS_PER_ELEMENT, merge};

/// Pieces that sums over rows are cut into, at most.
const PIECES: usize = 32;

/// Whole rows of one task.
pub(super) fn rows_per_task(columns: usize) -> usize {
    (PART / columns.max(1)).max(1)
}

/// Rows whose parameters' gradients are summed one after the other: by the shape alone.
pub(super) fn rows_per_piece([rows, columns]: [usize; 2]) -> usize {
    rows.div_ceil(PIECES).max(rows_per_task(columns))
}

/// Elements of scratch memory for [`backward`].
pub(super) fn workspace_len(shape: [usize; 2]) -> usize {
    let [rows, columns] = shape;
    if columns == 0 { 0 } else { rows.div_ceil(rows_per_piece(shape)) * 2 * columns }
}

/// `(x - mean)^2`, while a row that comes `next`, a short one, is asked for: memory would stand still. The hardware
/// foresees longer ones.
pub(super) struct Squares {
    pub x: *const f32,
    pub mean: f32,
    pub next: Option<*const f32>,
}

impl Terms for Squares {
    #[inline(always)]
    unsafe fn term<S: Simd>(&mut self, simd: S, at: usize, count: usize) -> S::F {
        if let Some(next) = self.next {
            simd.prefetch(next.wrapping_add(at));
        }
        // SAFETY: the caller's contract: `at + count` is within the row.
        let centred = unsafe { simd.sub(load(simd, self.x.add(at), count), simd.splat(self.mean)) };
        simd.mul(centred, centred)
    }
}

/// `x^2`
struct PlainSquares(*const f32);

impl Terms for PlainSquares {
    #[inline(always)]
    unsafe fn term<S: Simd>(&mut self, simd: S, at: usize, count: usize) -> S::F {
        // SAFETY: the caller's contract.
        let x = unsafe { load(simd, self.0.add(at), count) };
        simd.mul(x, x)
    }
}

/// `1 / sqrt(variance + epsilon)`
#[inline(always)]
fn inverse_deviation(squares: f32, len: usize, epsilon: f32) -> f32 {
    1.0 / (squares / len as f32 + epsilon).sqrt()
}

/// The mean (0 unless `CENTRED`) and `1 / sqrt(variance + epsilon)` of a row; see [`Squares`] for `next`.
///
/// # Safety
/// - `len` elements are readable at `x`.
#[inline(always)]
pub(super) unsafe fn moments<S: Simd, const CENTRED: bool>(
    simd: S,
    x: *const f32,
    next: Option<*const f32>,
    len: usize,
    epsilon: f32,
) -> (f32, f32) {
    // SAFETY: the caller's contract.
    unsafe {
        let (mean, squares) = if CENTRED {
            let mean = reduce_row::<S, Sum, _>(simd, &mut Elements(x), len) / len as f32;
            (mean, reduce_row::<S, Sum, _>(simd, &mut Squares { x, mean, next }, len))
        } else {
            (0.0, reduce_row::<S, Sum, _>(simd, &mut PlainSquares(x), len))
        };
        (mean, inverse_deviation(squares, len, epsilon))
    }
}

/// `y` from `x`, row by row. Lengths have been checked.
pub(super) fn forward<const CENTRED: bool>(
    columns: usize,
    x: &[f32],
    affine: Affine,
    epsilon: f32,
    y: &mut [f32],
    execution: Execution,
) -> Result<(), Error> {
    let isa = execution.isa()?;
    let parallelism = execution.parallelism.for_seconds(x.len() as f64 * SECONDS_PER_ELEMENT);
    let past = goes_past(x.len(), columns);
    let block = rows_per_task(columns) * columns;
    let parts = Parts::new(y, block);
    parallelism.for_each(parts.count(), parallelism.threads(), &|index, _| {
        // SAFETY: each index comes up once.
        let y = unsafe { parts.take(index) };
        let x = &x[index * block..][..y.len()];
        dispatch(isa, Forward::<CENTRED> { columns, x, affine, epsilon, y, past });
    });
    Ok(())
}

struct Forward<'a, const CENTRED: bool> {
    columns: usize,
    x: &'a [f32],
    affine: Affine<'a>,
    epsilon: f32,
    y: &'a mut [f32],
    /// Whether `y` goes past the caches.
    past: bool,
}

impl<const CENTRED: bool> Job for Forward<'_, CENTRED> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { columns, x, affine, epsilon, y, past } = self;
        let (gamma, beta) = (affine.gamma.map(<[f32]>::as_ptr), affine.beta.map(<[f32]>::as_ptr));
        let y = Output { start: y.as_mut_ptr(), past };
        for (row, x) in x.chunks_exact(columns).enumerate() {
            let (x, y) = (x.as_ptr(), y.at(row * columns));
            // SAFETY: rows, and the parameters where there are any, have `columns` elements.
            unsafe {
                let (mean, r) = moments::<S, CENTRED>(simd, x, Some(x.wrapping_add(columns)), columns, epsilon);
                each_result(simd, y, columns, &Normalise::<CENTRED> { x, y, mean, r, gamma, beta });
            }
        }
        y.finish(simd);
    }
}

/// The output of one row, or of some columns with the moments that they share.
struct Normalise<const CENTRED: bool> {
    x: *const f32,
    y: Output,
    mean: f32,
    r: f32,
    gamma: Option<*const f32>,
    beta: Option<*const f32>,
}

impl<const CENTRED: bool> Step for Normalise<CENTRED> {
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, simd: S, at: usize, count: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            let v = load(simd, self.x.add(at), count);
            let centred = if CENTRED { simd.sub(v, simd.splat(self.mean)) } else { v };
            let hat = simd.mul(centred, simd.splat(self.r));
            let v = match (self.gamma, self.beta) {
                (Some(gamma), Some(beta)) => {
                    simd.fma(hat, load(simd, gamma.add(at), count), load(simd, beta.add(at), count))
                }
                (Some(gamma), None) => simd.mul(hat, load(simd, gamma.add(at), count)),
                (None, Some(beta)) => simd.add(hat, load(simd, beta.add(at), count)),
                (None, None) => hat,
            };
            self.y.put(simd, at, count, v);
        }
    }
}

/// The gradients, row by row. Lengths have been checked, and the workspace holds [`workspace_len`] elements.
#[allow(clippy::too_many_arguments)]
pub(super) fn backward<const CENTRED: bool>(
    shape: [usize; 2],
    x: &[f32],
    gamma: Option<&[f32]>,
    dy: &[f32],
    epsilon: f32,
    gradients: Gradients,
    workspace: &mut [f32],
    execution: Execution,
) -> Result<(), Error> {
    let isa = execution.isa()?;
    let columns = shape[1];
    let Gradients { dx, dgamma, dbeta } = gradients;
    if x.is_empty() {
        merge(&[], columns, dgamma, dbeta);
        return Ok(());
    }
    let parallelism = execution.parallelism.for_seconds(2.0 * x.len() as f64 * SECONDS_PER_ELEMENT);
    let block = rows_per_piece(shape) * columns;
    let workspace = &mut workspace[..workspace_len(shape)];
    let parts = Parts::new(dx, block);
    let wanted = [dgamma.is_some(), dbeta.is_some()];
    let past = goes_past(x.len(), columns);
    {
        let partials = Parts::new(workspace, 2 * columns);
        parallelism.for_each(parts.count(), parallelism.threads(), &|index, _| {
            // SAFETY: each index comes up once.
            let (dx, sums) = unsafe { (parts.take(index), partials.take(index)) };
            let (x, dy) = (&x[index * block..][..dx.len()], &dy[index * block..][..dx.len()]);
            let (dgamma, dbeta) = sums.split_at_mut(columns);
            dispatch(isa, Backward::<CENTRED> { columns, x, gamma, dy, epsilon, dx, past, dgamma, dbeta, wanted });
        });
    }
    merge(workspace, columns, dgamma, dbeta);
    Ok(())
}

/// What one row's gradients are made from.
struct Incoming<const CENTRED: bool> {
    x: *const f32,
    dy: *const f32,
    gamma: Option<*const f32>,
    mean: f32,
}

impl<const CENTRED: bool> Incoming<CENTRED> {
    /// `x - mean`, `dy`, and `g = dy gamma`.
    ///
    /// # Safety
    /// - `at + count` is within the row, `count` at most `LANES`.
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, simd: S, at: usize, count: usize) -> [S::F; 3] {
        // SAFETY: the caller's contract.
        unsafe {
            let x = load(simd, self.x.add(at), count);
            let dy = load(simd, self.dy.add(at), count);
            let g = match self.gamma {
                Some(gamma) => simd.mul(dy, load(simd, gamma.add(at), count)),
                None => dy,
            };
            [if CENTRED { simd.sub(x, simd.splat(self.mean)) } else { x }, dy, g]
        }
    }
}

/// `x` and `g`, for their sums.
struct Plain<'a, const CENTRED: bool>(&'a Incoming<CENTRED>);

impl<const CENTRED: bool> Pairs for Plain<'_, CENTRED> {
    #[inline(always)]
    unsafe fn pair<S: Simd>(&mut self, simd: S, at: usize, count: usize) -> [S::F; 2] {
        // SAFETY: the caller's contract.
        unsafe { [load(simd, self.0.x.add(at), count), self.0.load(simd, at, count)[2]] }
    }
}

/// `(x - mean)^2` and `g (x - mean)`, for their sums. Where these come second, the row of `dy` so many elements further
/// on is asked for: memory would stand still.
struct Centred<'a, const CENTRED: bool>(&'a Incoming<CENTRED>, usize);

impl<const CENTRED: bool> Pairs for Centred<'_, CENTRED> {
    #[inline(always)]
    unsafe fn pair<S: Simd>(&mut self, simd: S, at: usize, count: usize) -> [S::F; 2] {
        if CENTRED {
            simd.prefetch(self.0.dy.wrapping_add(self.1 + at));
        }
        // SAFETY: the caller's contract.
        let [centred, _, g] = unsafe { self.0.load(simd, at, count) };
        [simd.mul(centred, centred), simd.mul(centred, g)]
    }
}

struct Backward<'a, const CENTRED: bool> {
    columns: usize,
    x: &'a [f32],
    gamma: Option<&'a [f32]>,
    dy: &'a [f32],
    epsilon: f32,
    dx: &'a mut [f32],
    /// Whether `dx` goes past the caches.
    past: bool,
    /// One piece's sums, over whatever is there.
    dgamma: &'a mut [f32],
    dbeta: &'a mut [f32],
    wanted: [bool; 2],
}

impl<const CENTRED: bool> Job for Backward<'_, CENTRED> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { columns, x, gamma, dy, epsilon, dx, past, dgamma, dbeta, wanted } = self;
        dgamma.fill(0.0);
        dbeta.fill(0.0);
        let (dgamma, dbeta) = (dgamma.as_mut_ptr(), dbeta.as_mut_ptr());
        let gamma = gamma.map(<[f32]>::as_ptr);
        let dx = Output { start: dx.as_mut_ptr(), past };
        for (row, (x, dy)) in x.chunks_exact(columns).zip(dy.chunks_exact(columns)).enumerate() {
            let mut incoming = Incoming::<CENTRED> { x: x.as_ptr(), dy: dy.as_ptr(), gamma, mean: 0.0 };
            // SAFETY: rows, parameters and sums have `columns` elements, and there are as many rows of each.
            unsafe {
                let mut plain = 0.0;
                if CENTRED {
                    let [x, g] = sum_pairs(simd, &mut Plain(&incoming), columns);
                    incoming.mean = x / columns as f32;
                    plain = g;
                }
                let [squares, weighted] = sum_pairs(simd, &mut Centred(&incoming, columns), columns);
                let r = inverse_deviation(squares, columns, epsilon);
                let scale = r / columns as f32;
                let (plain, weighted) = (-plain * scale, -(weighted * r) * scale);
                let dx = dx.at(row * columns);
                let step = Outgoing { incoming, columns, r, plain, weighted, dx, dgamma, dbeta, wanted };
                each_result(simd, dx, columns, &step);
            }
        }
        dx.finish(simd);
    }
}

/// The gradients of one row, `dx = g r + (x^ weighted + plain)`, while what is left of the next one is asked for.
struct Outgoing<const CENTRED: bool> {
    incoming: Incoming<CENTRED>,
    columns: usize,
    r: f32,
    /// Minus `r` times the means of `g`, and of `g x^`.
    plain: f32,
    weighted: f32,
    dx: Output,
    dgamma: *mut f32,
    dbeta: *mut f32,
    wanted: [bool; 2],
}

impl<const CENTRED: bool> Step for Outgoing<CENTRED> {
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, simd: S, at: usize, count: usize) {
        let next = self.columns + at;
        simd.prefetch(self.incoming.x.wrapping_add(next));
        if !CENTRED {
            simd.prefetch(self.incoming.dy.wrapping_add(next));
        }
        // SAFETY: the caller's contract.
        unsafe {
            let [centred, dy, g] = self.incoming.load(simd, at, count);
            let hat = simd.mul(centred, simd.splat(self.r));
            let rest = if CENTRED {
                simd.fma(hat, simd.splat(self.weighted), simd.splat(self.plain))
            } else {
                simd.mul(hat, simd.splat(self.weighted))
            };
            // All loads before the first store: where arrays are whole pages apart, addresses differ in their high
            // bits alone, and a load waits for an earlier store that has the same low ones.
            let dgamma = simd.fma(dy, hat, load(simd, self.dgamma.add(at), count));
            let dbeta = simd.add(dy, load(simd, self.dbeta.add(at), count));
            self.dx.put(simd, at, count, simd.fma(g, simd.splat(self.r), rest));
            if self.wanted[0] {
                store(simd, self.dgamma.add(at), count, dgamma);
            }
            if self.wanted[1] {
                store(simd, self.dbeta.add(at), count, dbeta);
            }
        }
    }
}
