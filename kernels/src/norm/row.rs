//! What layer and RMS norm share: rows, normalised each on its own, and columns, scaled each on its own.
//!
//! A row is looked at three times forward (mean, centred squares, output) and five times backward (two sums and the
//! gradients more); only the first time finds it in memory.

use crate::error::Error;
use crate::execution::Execution;
use crate::parts::Parts;
use crate::simd::each::{Step, each_vector, load, store};
use crate::simd::reduce::{Arriving, Pairs, Sum, Terms, reduce_row, sum_pairs};
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

/// `(x - mean)^2`, while what will be written is asked for: a store that waits for its line holds up those behind.
pub(super) struct Squares {
    pub x: *const f32,
    pub mean: f32,
    /// Any address is fine.
    pub to: *const f32,
}

impl Terms for Squares {
    #[inline(always)]
    unsafe fn term<S: Simd>(&mut self, simd: S, at: usize, count: usize) -> S::F {
        simd.prefetch(self.to.wrapping_add(at));
        // SAFETY: the caller's contract: `at + count` is within the row.
        let centred = unsafe { simd.sub(load(simd, self.x.add(at), count), simd.splat(self.mean)) };
        simd.mul(centred, centred)
    }
}

/// `x^2`, while the row that is `next` is asked for.
struct PlainSquares {
    x: *const f32,
    next: *const f32,
}

impl Terms for PlainSquares {
    #[inline(always)]
    unsafe fn term<S: Simd>(&mut self, simd: S, at: usize, count: usize) -> S::F {
        // SAFETY: the caller's contract.
        let x = unsafe { Arriving { x: self.x, next: self.next }.term(simd, at, count) };
        simd.mul(x, x)
    }
}

/// The mean (0 unless `CENTRED`) and `1 / sqrt(variance + epsilon)` of a row. Where `CENTRED`, the row that will be
/// written to `to` is asked for; any address is fine.
///
/// # Safety
/// - `len` elements are readable at `x`.
#[inline(always)]
pub(super) unsafe fn moments<S: Simd, const CENTRED: bool>(
    simd: S,
    x: *const f32,
    to: *const f32,
    len: usize,
    epsilon: f32,
) -> (f32, f32) {
    let next = x.wrapping_add(len);
    // SAFETY: the caller's contract.
    unsafe {
        let (mean, squares) = if CENTRED {
            let mean = reduce_row::<S, Sum, _>(simd, &mut Arriving { x, next }, len) / len as f32;
            (mean, reduce_row::<S, Sum, _>(simd, &mut Squares { x, mean, to }, len))
        } else {
            (0.0, reduce_row::<S, Sum, _>(simd, &mut PlainSquares { x, next }, len))
        };
        (mean, 1.0 / (squares / len as f32 + epsilon).sqrt())
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
    let block = rows_per_task(columns) * columns;
    let parts = Parts::new(y, block);
    parallelism.for_each(parts.count(), parallelism.threads(), &|index, _| {
        // SAFETY: each index comes up once.
        let y = unsafe { parts.take(index) };
        let x = &x[index * block..][..y.len()];
        dispatch(isa, Forward::<CENTRED> { columns, x, affine, epsilon, y });
    });
    Ok(())
}

struct Forward<'a, const CENTRED: bool> {
    columns: usize,
    x: &'a [f32],
    affine: Affine<'a>,
    epsilon: f32,
    y: &'a mut [f32],
}

impl<const CENTRED: bool> Job for Forward<'_, CENTRED> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { columns, x, affine, epsilon, y } = self;
        let (gamma, beta) = (affine.gamma.map(<[f32]>::as_ptr), affine.beta.map(<[f32]>::as_ptr));
        for (x, y) in x.chunks_exact(columns).zip(y.chunks_exact_mut(columns)) {
            let (x, y) = (x.as_ptr(), y.as_mut_ptr());
            // SAFETY: rows, and the parameters where there are any, have `columns` elements.
            unsafe {
                let (mean, r) = moments::<S, CENTRED>(simd, x, y, columns, epsilon);
                each_vector(simd, columns, &Normalise::<CENTRED> { x, y, mean, r, gamma, beta });
            }
        }
    }
}

/// The output of one row, or of some columns with the moments that they share.
struct Normalise<const CENTRED: bool> {
    x: *const f32,
    y: *mut f32,
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
            store(simd, self.y.add(at), count, v);
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
    {
        let partials = Parts::new(workspace, 2 * columns);
        parallelism.for_each(parts.count(), parallelism.threads(), &|index, _| {
            // SAFETY: each index comes up once.
            let (dx, sums) = unsafe { (parts.take(index), partials.take(index)) };
            let (x, dy) = (&x[index * block..][..dx.len()], &dy[index * block..][..dx.len()]);
            let (dgamma, dbeta) = sums.split_at_mut(columns);
            dispatch(isa, Backward::<CENTRED> { columns, x, gamma, dy, epsilon, dx, dgamma, dbeta, wanted });
        });
    }
    merge(workspace, columns, dgamma, dbeta);
    Ok(())
}

/// `g = dy gamma`, and `x^` beside it.
struct Incoming {
    x: *const f32,
    dy: *const f32,
    gamma: Option<*const f32>,
    mean: f32,
    r: f32,
}

impl Incoming {
    /// # Safety
    /// - `at + count` is within the row, `count` at most `LANES`.
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, simd: S, at: usize, count: usize) -> (S::F, S::F, S::F) {
        // SAFETY: the caller's contract.
        unsafe {
            let hat = simd.mul(simd.sub(load(simd, self.x.add(at), count), simd.splat(self.mean)), simd.splat(self.r));
            let dy = load(simd, self.dy.add(at), count);
            let g = match self.gamma {
                Some(gamma) => simd.mul(dy, load(simd, gamma.add(at), count)),
                None => dy,
            };
            (hat, dy, g)
        }
    }
}

/// `g` and `g x^`, for their sums, while the next row of `dy` is asked for.
struct Both<'a>(&'a Incoming, *const f32);

impl Pairs for Both<'_> {
    #[inline(always)]
    unsafe fn pair<S: Simd>(&mut self, simd: S, at: usize, count: usize) -> [S::F; 2] {
        simd.prefetch(self.1.wrapping_add(at));
        // SAFETY: the caller's contract.
        let (hat, _, g) = unsafe { self.0.load(simd, at, count) };
        [g, simd.mul(hat, g)]
    }
}

struct Backward<'a, const CENTRED: bool> {
    columns: usize,
    x: &'a [f32],
    gamma: Option<&'a [f32]>,
    dy: &'a [f32],
    epsilon: f32,
    dx: &'a mut [f32],
    /// One piece's sums, over whatever is there.
    dgamma: &'a mut [f32],
    dbeta: &'a mut [f32],
    wanted: [bool; 2],
}

impl<const CENTRED: bool> Job for Backward<'_, CENTRED> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { columns, x, gamma, dy, epsilon, dx, dgamma, dbeta, wanted } = self;
        dgamma.fill(0.0);
        dbeta.fill(0.0);
        let (dgamma, dbeta) = (dgamma.as_mut_ptr(), dbeta.as_mut_ptr());
        let gamma = gamma.map(<[f32]>::as_ptr);
        let scale = 1.0 / columns as f32;
        for row in 0..dx.len() / columns {
            // SAFETY: rows, parameters and sums have `columns` elements, and there are as many rows of each.
            unsafe {
                let from = row * columns;
                let (x, dy) = (x.as_ptr().add(from), dy.as_ptr().add(from));
                let dx = dx.as_mut_ptr().add(from);
                let (mean, r) = moments::<S, CENTRED>(simd, x, dx, columns, epsilon);
                let incoming = Incoming { x, dy, gamma, mean, r };
                let [plain, weighted] = sum_pairs(simd, &mut Both(&incoming, dy.wrapping_add(columns)), columns);
                let (plain, weighted) = (plain * scale, -(weighted * scale));
                let step = Outgoing::<CENTRED> { incoming: &incoming, dx, plain, weighted, dgamma, dbeta, wanted };
                each_vector(simd, columns, &step);
            }
        }
    }
}

/// The gradients of one row.
struct Outgoing<'a, const CENTRED: bool> {
    incoming: &'a Incoming,
    dx: *mut f32,
    /// The mean of `g`, and minus that of `g x^`.
    plain: f32,
    weighted: f32,
    dgamma: *mut f32,
    dbeta: *mut f32,
    wanted: [bool; 2],
}

impl<const CENTRED: bool> Step for Outgoing<'_, CENTRED> {
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, simd: S, at: usize, count: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            let (hat, dy, g) = self.incoming.load(simd, at, count);
            let centred = if CENTRED { simd.sub(g, simd.splat(self.plain)) } else { g };
            let v = simd.mul(simd.splat(self.incoming.r), simd.fma(hat, simd.splat(self.weighted), centred));
            store(simd, self.dx.add(at), count, v);
            if self.wanted[0] {
                let sum = simd.fma(dy, hat, load(simd, self.dgamma.add(at), count));
                store(simd, self.dgamma.add(at), count, sum);
            }
            if self.wanted[1] {
                let sum = simd.add(dy, load(simd, self.dbeta.add(at), count));
                store(simd, self.dbeta.add(at), count, sum);
            }
        }
    }
}
