//! Channels side by side: a task is some pixels with all of their channels.
//!
//! Sums over pixels take four rows at a time, in memory of the length of a row, so that memory is read in order:
//!
//! ```text
//! sum[c] += (x[0, c] + x[2, c]) + (x[1, c] + x[3, c])
//! ```

use crate::parallel::Parallelism;
use crate::parts::Parts;
use crate::simd::each::{Step, each_vector, load, store};
use crate::simd::{Isa, Job, Simd, dispatch};

use super::super::row::rows_per_task;
use super::super::{Affine, merge};
use super::{Inputs, Sample, Shape};

/// Pieces that sums over pixels are cut into, at most.
pub(super) const PIECES: usize = 64;

/// Pixels of a piece, by the shape alone.
fn rows_per_piece(shape: Shape) -> usize {
    shape.count().div_ceil(PIECES).max(rows_per_task(shape.channels))
}

/// Pieces; 0 where channels are not side by side.
pub(super) fn pieces(shape: Shape) -> usize {
    if shape.is_nhwc() { shape.count().div_ceil(rows_per_piece(shape)) } else { 0 }
}

/// What is summed over rows. A trait, not a closure: a closure that is not inlined would lose the instruction set.
trait RowTerms {
    /// The terms of columns `at .. at + count` in a row.
    ///
    /// # Safety
    /// - The row exists, and `at + count` is within it, `count <= S::LANES`.
    unsafe fn term<S: Simd>(&self, simd: S, row: usize, at: usize, count: usize) -> S::F;
}

/// Adds the terms of the rows `first .. first + ROWS` to the sums: of four rows, or of one.
struct AddRows<'a, T, const ROWS: usize> {
    first: usize,
    sums: *mut f32,
    terms: &'a T,
}

impl<T: RowTerms, const ROWS: usize> Step for AddRows<'_, T, ROWS> {
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, simd: S, at: usize, count: usize) {
        let Self { first, sums, terms } = *self;
        // SAFETY: the caller's contract.
        unsafe {
            let sum = load(simd, sums.add(at), count);
            let more = if ROWS == 4 {
                let even = simd.add(terms.term(simd, first, at, count), terms.term(simd, first + 2, at, count));
                let odd = simd.add(terms.term(simd, first + 1, at, count), terms.term(simd, first + 3, at, count));
                simd.add(even, odd)
            } else {
                terms.term(simd, first, at, count)
            };
            store(simd, sums.add(at), count, simd.add(sum, more));
        }
    }
}

/// Adds the terms of `rows` to `sums`, which are +0 at first.
///
/// # Safety
/// - There are terms for each of the rows and for as many columns as there are sums.
#[inline(always)]
unsafe fn add_rows<S: Simd>(simd: S, rows: std::ops::Range<usize>, sums: &mut [f32], terms: &impl RowTerms) {
    let (columns, sums) = (sums.len(), sums.as_mut_ptr());
    let mut first = rows.start;
    while first + 4 <= rows.end {
        // SAFETY: the caller's contract.
        unsafe { each_vector(simd, columns, &AddRows::<_, 4> { first, sums, terms }) };
        first += 4;
    }
    while first < rows.end {
        // SAFETY: the caller's contract.
        unsafe { each_vector(simd, columns, &AddRows::<_, 1> { first, sums, terms }) };
        first += 1;
    }
}

/// Elements as they are.
struct Plain {
    x: *const f32,
    columns: usize,
}

impl RowTerms for Plain {
    #[inline(always)]
    unsafe fn term<S: Simd>(&self, simd: S, row: usize, at: usize, count: usize) -> S::F {
        // SAFETY: the caller's contract.
        unsafe { load(simd, self.x.add(row * self.columns + at), count) }
    }
}

/// `(x - mean)^2`
struct Squares {
    x: *const f32,
    columns: usize,
    mean: *const f32,
}

impl RowTerms for Squares {
    #[inline(always)]
    unsafe fn term<S: Simd>(&self, simd: S, row: usize, at: usize, count: usize) -> S::F {
        // SAFETY: the caller's contract.
        unsafe {
            let x = load(simd, self.x.add(row * self.columns + at), count);
            let centred = simd.sub(x, load(simd, self.mean.add(at), count));
            simd.mul(centred, centred)
        }
    }
}

/// `dy x^`
struct Weighted {
    x: *const f32,
    dy: *const f32,
    columns: usize,
    mean: *const f32,
    r: *const f32,
}

impl RowTerms for Weighted {
    #[inline(always)]
    unsafe fn term<S: Simd>(&self, simd: S, row: usize, at: usize, count: usize) -> S::F {
        // SAFETY: the caller's contract.
        unsafe {
            let x = load(simd, self.x.add(row * self.columns + at), count);
            let hat = simd.mul(simd.sub(x, load(simd, self.mean.add(at), count)), load(simd, self.r.add(at), count));
            simd.mul(hat, load(simd, self.dy.add(row * self.columns + at), count))
        }
    }
}

#[allow(clippy::too_many_arguments)]
pub(super) fn forward<'w>(
    shape: Shape,
    isa: Isa,
    x: &[f32],
    affine: Affine,
    epsilon: f32,
    y: &mut [f32],
    mean: &mut [f32],
    r: &mut [f32],
    workspace: &'w mut [f32],
    parallelism: Parallelism,
) -> &'w [f32] {
    let channels = shape.channels;
    let rows = rows_per_piece(shape);
    let (head, rest) = workspace.split_at_mut(2 * channels);
    let partials = &mut rest[..pieces(shape) * 2 * channels];
    {
        let parts = Parts::new(partials, 2 * channels);
        parallelism.for_each(parts.count(), parallelism.threads(), &|index, _| {
            // SAFETY: each index comes up once.
            let (mean, squares) = unsafe { parts.take(index) }.split_at_mut(channels);
            let from = index * rows * channels;
            let x = &x[from..(from + rows * channels).min(x.len())];
            dispatch(isa, Piece { x, mean, squares });
        });
    }
    let variance = &mut head[..channels];
    for c in 0..channels {
        let mut sample = Sample::default();
        for (index, piece) in partials.chunks_exact(2 * channels).enumerate() {
            let count = rows.min(shape.count() - index * rows);
            let (mean, squares) = (piece[c].into(), piece[channels + c].into());
            sample = sample.merge(Sample { count: count as f64, mean, squares });
        }
        (mean[c], r[c]) = sample.moments(epsilon);
        variance[c] = (sample.squares / sample.count) as f32;
    }
    let (mean, r) = (&*mean, &*r);
    let block = rows_per_task(channels) * channels;
    let parts = Parts::new(y, block);
    parallelism.for_each(parts.count(), parallelism.threads(), &|index, _| {
        // SAFETY: each index comes up once.
        let y = unsafe { parts.take(index) };
        let x = &x[index * block..][..y.len()];
        dispatch(isa, Normalise { x, mean, r, affine, y });
    });
    variance
}

/// Means and sums of centred squares of a piece.
struct Piece<'a> {
    x: &'a [f32],
    mean: &'a mut [f32],
    squares: &'a mut [f32],
}

impl Job for Piece<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, mean, squares } = self;
        let columns = mean.len();
        let rows = x.len() / columns;
        let x = x.as_ptr();
        mean.fill(0.0);
        squares.fill(0.0);
        // SAFETY: the piece has `rows` rows of `columns` elements.
        unsafe { add_rows(simd, 0..rows, mean, &Plain { x, columns }) };
        for mean in mean.iter_mut() {
            *mean /= rows as f32;
        }
        let mean = mean.as_ptr();
        // SAFETY: as before, and there is a mean for each column.
        unsafe { add_rows(simd, 0..rows, squares, &Squares { x, columns, mean }) };
    }
}

/// The output of some pixels.
struct Normalise<'a> {
    x: &'a [f32],
    mean: &'a [f32],
    r: &'a [f32],
    affine: Affine<'a>,
    y: &'a mut [f32],
}

impl Job for Normalise<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, mean, r, affine, y } = self;
        let columns = mean.len();
        let (mean, r) = (mean.as_ptr(), r.as_ptr());
        let (gamma, beta) = (affine.gamma.map(<[f32]>::as_ptr), affine.beta.map(<[f32]>::as_ptr));
        for (x, y) in x.chunks_exact(columns).zip(y.chunks_exact_mut(columns)) {
            let step = NormaliseRow { x: x.as_ptr(), y: y.as_mut_ptr(), mean, r, gamma, beta };
            // SAFETY: rows and parameters have `columns` elements.
            unsafe { each_vector(simd, columns, &step) };
        }
    }
}

/// `y = (x - mean) r gamma + beta`
struct NormaliseRow {
    x: *const f32,
    y: *mut f32,
    mean: *const f32,
    r: *const f32,
    gamma: Option<*const f32>,
    beta: Option<*const f32>,
}

impl Step for NormaliseRow {
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, simd: S, at: usize, count: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            let centred = simd.sub(load(simd, self.x.add(at), count), load(simd, self.mean.add(at), count));
            let hat = simd.mul(centred, load(simd, self.r.add(at), count));
            let gamma = if let Some(gamma) = self.gamma { load(simd, gamma.add(at), count) } else { simd.splat(1.0) };
            let beta = if let Some(beta) = self.beta { load(simd, beta.add(at), count) } else { simd.zero() };
            store(simd, self.y.add(at), count, simd.fma(hat, gamma, beta));
        }
    }
}

pub(super) fn inference(
    shape: Shape,
    isa: Isa,
    x: &[f32],
    scale: &[f32],
    shift: &[f32],
    y: &mut [f32],
    parallelism: Parallelism,
) {
    let block = rows_per_task(shape.channels) * shape.channels;
    let parts = Parts::new(y, block);
    parallelism.for_each(parts.count(), parallelism.threads(), &|index, _| {
        // SAFETY: each index comes up once.
        let y = unsafe { parts.take(index) };
        dispatch(isa, Inference { x: &x[index * block..][..y.len()], scale, shift, y });
    });
}

struct Inference<'a> {
    x: &'a [f32],
    scale: &'a [f32],
    shift: &'a [f32],
    y: &'a mut [f32],
}

impl Job for Inference<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, scale, shift, y } = self;
        let columns = scale.len();
        let (scale, shift) = (scale.as_ptr(), shift.as_ptr());
        for (x, y) in x.chunks_exact(columns).zip(y.chunks_exact_mut(columns)) {
            // SAFETY: rows and parameters have `columns` elements.
            unsafe { each_vector(simd, columns, &ScaleRow { x: x.as_ptr(), y: y.as_mut_ptr(), scale, shift }) };
        }
    }
}

/// `y = x scale + shift`
struct ScaleRow {
    x: *const f32,
    y: *mut f32,
    scale: *const f32,
    shift: *const f32,
}

impl Step for ScaleRow {
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, simd: S, at: usize, count: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            let (scale, shift) = (load(simd, self.scale.add(at), count), load(simd, self.shift.add(at), count));
            store(simd, self.y.add(at), count, simd.fma(load(simd, self.x.add(at), count), scale, shift));
        }
    }
}

/// `sums` receives the gradients of gamma, then those of beta.
pub(super) fn backward(
    inputs: Inputs,
    dx: &mut [f32],
    sums: &mut [f32],
    partials: &mut [f32],
    parallelism: Parallelism,
) {
    let Inputs { shape, isa, x, .. } = inputs;
    let channels = shape.channels;
    let piece = rows_per_piece(shape) * channels;
    let partials = &mut partials[..pieces(shape) * 2 * channels];
    {
        let parts = Parts::new(partials, 2 * channels);
        parallelism.for_each(parts.count(), parallelism.threads(), &|index, _| {
            // SAFETY: each index comes up once.
            let (dgamma, dbeta) = unsafe { parts.take(index) }.split_at_mut(channels);
            let range = index * piece..((index + 1) * piece).min(x.len());
            dispatch(isa, Sums { inputs, range, dgamma, dbeta });
        });
    }
    let (dgamma, dbeta) = sums.split_at_mut(channels);
    merge(partials, channels, Some(dgamma), Some(dbeta));
    let (dgamma, dbeta) = (&*dgamma, &*dbeta);
    let block = rows_per_task(channels) * channels;
    let parts = Parts::new(dx, block);
    parallelism.for_each(parts.count(), parallelism.threads(), &|index, _| {
        // SAFETY: each index comes up once.
        let dx = unsafe { parts.take(index) };
        dispatch(isa, Backward { inputs, from: index * block, dgamma, dbeta, dx });
    });
}

/// The sums of a piece.
struct Sums<'a> {
    inputs: Inputs<'a>,
    range: std::ops::Range<usize>,
    dgamma: &'a mut [f32],
    dbeta: &'a mut [f32],
}

/// Rows whose terms are summed before the next ones are looked at, so that the second sum finds them in L1.
const ROWS: usize = 16;

impl Job for Sums<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let rows = self.range.len() / self.dgamma.len();
        self.dgamma.fill(0.0);
        self.dbeta.fill(0.0);
        for first in (0..rows).step_by(ROWS) {
            add_sums(simd, &self.inputs, self.range.start, first..rows.min(first + ROWS), self.dgamma, self.dbeta);
        }
    }
}

/// Adds the terms of some rows, counted from the one that starts at element `from`, to the gradients of gamma and beta.
#[inline(always)]
fn add_sums<S: Simd>(
    simd: S,
    inputs: &Inputs,
    from: usize,
    rows: std::ops::Range<usize>,
    dgamma: &mut [f32],
    dbeta: &mut [f32],
) {
    let columns = dgamma.len();
    let len = rows.end * columns;
    let (x, dy) = (inputs.x[from..][..len].as_ptr(), inputs.dy[from..][..len].as_ptr());
    let (mean, r) = (inputs.mean[..columns].as_ptr(), inputs.r[..columns].as_ptr());
    // SAFETY: there are as many rows of `columns` elements, and moments for each column.
    unsafe {
        add_rows(simd, rows.clone(), dbeta, &Plain { x: dy, columns });
        add_rows(simd, rows, dgamma, &Weighted { x, dy, columns, mean, r });
    }
}

/// The gradient of the input of some pixels.
struct Backward<'a> {
    inputs: Inputs<'a>,
    /// The first element.
    from: usize,
    dgamma: &'a [f32],
    dbeta: &'a [f32],
    dx: &'a mut [f32],
}

impl Job for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { inputs, from, dgamma, dbeta, dx } = self;
        let columns = dgamma.len();
        let len = dx.len();
        let (x, dy) = (&inputs.x[from..][..len], &inputs.dy[from..][..len]);
        let (mean, r) = (inputs.mean.as_ptr(), inputs.r.as_ptr());
        let gamma = inputs.gamma.map(<[f32]>::as_ptr);
        let (dgamma, dbeta) = (dgamma.as_ptr(), dbeta.as_ptr());
        let scale = 1.0 / inputs.shape.count() as f32;
        for (row, dx) in dx.chunks_exact_mut(columns).enumerate() {
            let (x, dy) = (x[row * columns..].as_ptr(), dy[row * columns..].as_ptr());
            let step = OutgoingRow { x, dy, dx: dx.as_mut_ptr(), mean, r, gamma, dgamma, dbeta, scale };
            // SAFETY: rows, moments and sums have `columns` elements.
            unsafe { each_vector(simd, columns, &step) };
        }
    }
}

/// `dx = r gamma (dy - dbeta scale - x^ dgamma scale)`
struct OutgoingRow {
    x: *const f32,
    dy: *const f32,
    dx: *mut f32,
    mean: *const f32,
    r: *const f32,
    gamma: Option<*const f32>,
    dgamma: *const f32,
    dbeta: *const f32,
    scale: f32,
}

impl Step for OutgoingRow {
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, simd: S, at: usize, count: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            let r = load(simd, self.r.add(at), count);
            let centred = simd.sub(load(simd, self.x.add(at), count), load(simd, self.mean.add(at), count));
            let plain = simd.mul(load(simd, self.dbeta.add(at), count), simd.splat(self.scale));
            let weighted = simd.mul(load(simd, self.dgamma.add(at), count), simd.splat(-self.scale));
            let dy = simd.sub(load(simd, self.dy.add(at), count), plain);
            let v = simd.fma(simd.mul(centred, r), weighted, dy);
            let factor = if let Some(gamma) = self.gamma { simd.mul(r, load(simd, gamma.add(at), count)) } else { r };
            store(simd, self.dx.add(at), count, simd.mul(factor, v));
        }
    }
}

/// `sums` receives the gradients of gamma, then those of beta; `scale` is `gamma r`.
pub(super) fn inference_backward(
    inputs: Inputs,
    scale: &[f32],
    dx: &mut [f32],
    sums: &mut [f32],
    partials: &mut [f32],
    parallelism: Parallelism,
) {
    let Inputs { shape, isa, .. } = inputs;
    let channels = shape.channels;
    let piece = rows_per_piece(shape) * channels;
    let partials = &mut partials[..pieces(shape) * 2 * channels];
    {
        let (parts, outputs) = (Parts::new(partials, 2 * channels), Parts::new(dx, piece));
        parallelism.for_each(parts.count(), parallelism.threads(), &|index, _| {
            // SAFETY: each index comes up once.
            let (sums, dx) = unsafe { (parts.take(index), outputs.take(index)) };
            let (dgamma, dbeta) = sums.split_at_mut(channels);
            dispatch(isa, InferenceBackward { inputs, scale, from: index * piece, dx, dgamma, dbeta });
        });
    }
    let (dgamma, dbeta) = sums.split_at_mut(channels);
    merge(partials, channels, Some(dgamma), Some(dbeta));
}

/// The sums of a piece, and the gradient of its input.
struct InferenceBackward<'a> {
    inputs: Inputs<'a>,
    scale: &'a [f32],
    /// The first element.
    from: usize,
    dx: &'a mut [f32],
    dgamma: &'a mut [f32],
    dbeta: &'a mut [f32],
}

impl Job for InferenceBackward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { inputs, scale, from, dx, dgamma, dbeta } = self;
        let columns = scale.len();
        let rows = dx.len() / columns;
        let dy = &inputs.dy[from..][..dx.len()];
        dgamma.fill(0.0);
        dbeta.fill(0.0);
        for first in (0..rows).step_by(ROWS) {
            let some = first..rows.min(first + ROWS);
            add_sums(simd, &inputs, from, some.clone(), dgamma, dbeta);
            for row in some {
                let at = row * columns;
                let (dy, dx) = (dy[at..][..columns].as_ptr(), dx[at..][..columns].as_mut_ptr());
                // SAFETY: the rows have `columns` elements, as many as there are scales.
                unsafe { each_vector(simd, columns, &MultiplyRow { x: dy, y: dx, scale: scale.as_ptr() }) };
            }
        }
    }
}

/// `y = x scale`
struct MultiplyRow {
    x: *const f32,
    y: *mut f32,
    scale: *const f32,
}

impl Step for MultiplyRow {
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, simd: S, at: usize, count: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            let scale = load(simd, self.scale.add(at), count);
            store(simd, self.y.add(at), count, simd.mul(load(simd, self.x.add(at), count), scale));
        }
    }
}
