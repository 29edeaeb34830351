//! Pooling where the pixels of a row are neighbours.
//!
//! A window is separable: first down its rows, with vectors along the width, into a strip; then along the strip, with
//! vectors of windows (stride 1: shifted loads; stride 2: even and odd elements; else one by one).
//!
//! ```text
//! x   ─────────────────────  ┐
//!     ─────────────────────  │ kernel height     strip ┌───┬──────────────┬──┐      y ───────
//!     ─────────────────────  ┘              ──►        └───┴──────────────┴──┘  ──►
//!                                                 padding      image     padding
//! ```
//!
//! The strip holds what the padding contributes (-infinity to a maximum, 0 to a sum), so the second step has no edges.
//! The backward pass of an average runs the same steps the other way.

use super::spec::{Axis, Geometry};
use super::{Band, Pooling};
use crate::simd::each::{load, store};
use crate::simd::reduce::{Elements, Sum, reduce_row};
use crate::simd::{Job, Simd};

/// Floats of a strip: 8 KiB, so that it stays in L1 beside the rows that it is made from.
const STRIP: usize = 2048;
/// The second step reads whole vectors: at stride 2 it may pass the end of the strip by two of them and a tap.
pub(super) const SLACK: usize = 48;

type Strip = [f32; STRIP + SLACK];

/// A piece of an output row, and the padded columns of its windows.
pub(super) struct Piece {
    /// The first window.
    pub first: usize,
    /// The number of windows.
    pub count: usize,
    /// Columns of all windows together.
    pub len: usize,
    /// The columns of the strip that lie in the image.
    pub low: usize,
    pub high: usize,
    /// The image's column under `low`.
    pub column: usize,
}

impl Piece {
    /// The piece that starts with window `first` and fits a strip of `most` columns. No window is wider.
    #[inline(always)]
    pub fn at(axis: &Axis, first: usize, most: usize) -> Self {
        let fit = (most - axis.window) / axis.stride + 1;
        // Whole vectors, where there are several.
        let fit = if fit > 16 { fit - fit % 16 } else { fit };
        let count = fit.min(axis.output - first);
        let start = first * axis.stride;
        let len = (count - 1) * axis.stride + axis.window;
        let high = (axis.before + axis.size).saturating_sub(start).min(len);
        let low = axis.before.saturating_sub(start).min(high);
        // Where no column is in the image, `column` is not used.
        Self { first, count, len, low, high, column: (start + low).saturating_sub(axis.before) }
    }
}

/// Max or average pooling of a run of output rows.
pub(super) struct Forward<'a, P> {
    pub geometry: &'a Geometry,
    #[expect(dead_code, reason = "names the type; holds nothing")]
    pub pooling: P,
    pub x: &'a [f32],
    /// The first row, counted through all planes.
    pub first: usize,
    pub y: &'a mut [f32],
}

impl<P: Pooling> Job for Forward<'_, P> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { geometry, x, first, y, .. } = self;
        let (rows, columns) = (&geometry.rows, &geometry.columns);
        let plane_len = rows.size * columns.size;
        let is_global = rows.taps(0) == (0..rows.size) && columns.taps(0) == (0..columns.size);
        let mut strip = [0.0; STRIP + SLACK];
        for (i, y) in y.chunks_exact_mut(columns.output).enumerate() {
            let (plane, oh) = ((first + i) / rows.output, (first + i) % rows.output);
            let x = &x[plane * plane_len..][..plane_len];
            if P::MEAN && is_global && y.len() == 1 && rows.output == 1 {
                // One window over all of the plane is one row of neighbours.
                // SAFETY: the plane has as many elements.
                y[0] = unsafe { reduce_row::<S, Sum, _>(simd, &mut Elements(x.as_ptr()), plane_len) };
            } else if columns.window > STRIP {
                for ow in 0..y.len() {
                    y[ow] = one_window::<P>(geometry, x, oh, ow);
                }
            } else {
                // SAFETY: `x` is a plane, `y` a row of the output, and the window fits the strip.
                unsafe { row::<S, P>(simd, geometry, x.as_ptr(), oh, y, &mut strip) };
            }
            if P::MEAN {
                divide(geometry, oh, y);
            }
        }
    }
}

/// One window that is too wide for a strip.
#[inline(always)]
fn one_window<P: Pooling>(geometry: &Geometry, x: &[f32], oh: usize, ow: usize) -> f32 {
    let (rows, columns) = (&geometry.rows, &geometry.columns);
    let mut result = P::START;
    for kh in rows.taps(oh) {
        let row = &x[rows.pixel(oh, kh) * columns.size..][..columns.size];
        let mut partial = P::START;
        for kw in columns.taps(ow) {
            partial = P::join_one(partial, row[columns.pixel(ow, kw)]);
        }
        result = P::join_one(result, partial);
    }
    result
}

/// Divides a row of sums by the number of taps.
#[inline(always)]
fn divide(geometry: &Geometry, oh: usize, y: &mut [f32]) {
    let interior = geometry.columns.interior();
    for ow in (0..interior.start.min(y.len())).chain(interior.end.max(interior.start)..y.len()) {
        y[ow] /= geometry.divisor(oh, ow);
    }
    if !interior.is_empty() {
        let divisor = geometry.divisor(oh, interior.start);
        for sum in &mut y[interior] {
            *sum /= divisor;
        }
    }
}

/// A row of outputs, before any division.
///
/// # Safety
/// - `x` is a plane of the geometry, `oh` one of its windows, `y` has a row's outputs.
/// - A window is at most [`STRIP`] wide.
#[inline(always)]
unsafe fn row<S: Simd, P: Pooling>(
    simd: S,
    geometry: &Geometry,
    x: *const f32,
    oh: usize,
    y: &mut [f32],
    strip: &mut Strip,
) {
    debug_assert!(geometry.columns.window <= STRIP && y.len() == geometry.columns.output);
    let mut first = 0;
    while first < y.len() {
        let piece = Piece::at(&geometry.columns, first, STRIP);
        // SAFETY: the caller's contract; a piece's strip is at most STRIP long, and its windows are within `y`.
        unsafe {
            down::<S, P>(simd, geometry, x, oh, &piece, strip);
            along::<S, P>(simd, &geometry.columns, &piece, strip, y.as_mut_ptr().add(first));
        }
        first += piece.count;
    }
}

/// Fills a strip with the maxima or sums of columns.
///
/// # Safety
/// - As for [`row`]; the piece belongs to the geometry's columns.
#[inline(always)]
unsafe fn down<S: Simd, P: Pooling>(
    simd: S,
    geometry: &Geometry,
    x: *const f32,
    oh: usize,
    piece: &Piece,
    strip: &mut Strip,
) {
    let (rows, width) = (&geometry.rows, geometry.columns.size);
    strip[..piece.low].fill(P::START);
    strip[piece.high..piece.len].fill(P::START);
    let taps = rows.taps(oh);
    if taps.is_empty() {
        strip[piece.low..piece.high].fill(P::START);
        return;
    }
    let step = rows.dilation.wrapping_mul(width);
    let strip = strip.as_mut_ptr();
    // SAFETY: the taps are rows of the plane, the piece's columns from `low` to `high` are within them.
    unsafe {
        let x = x.add(rows.pixel(oh, taps.start) * width + piece.column);
        let mut at = piece.low;
        while at < piece.high {
            let count = S::LANES.min(piece.high - at);
            let mut p = x.add(at - piece.low);
            let mut v = P::join(simd, simd.splat(P::START), load(simd, p, count));
            for _ in 1..taps.len() {
                p = p.add(step);
                v = P::join(simd, v, load(simd, p, count));
            }
            store(simd, strip.add(at), count, v);
            at += S::LANES;
        }
    }
}

/// Joins the columns of each window of a piece.
///
/// # Safety
/// - The strip is filled; `y` has room for the piece's windows.
#[inline(always)]
unsafe fn along<S: Simd, P: Pooling>(simd: S, columns: &Axis, piece: &Piece, strip: &Strip, y: *mut f32) {
    if columns.stride > 2 {
        for i in 0..piece.count {
            let mut result = P::START;
            for kw in 0..columns.kernel {
                result = P::join_one(result, strip[i * columns.stride + kw * columns.dilation]);
            }
            // SAFETY: `i` is one of the piece's windows.
            unsafe { *y.add(i) = result };
        }
        return;
    }
    let strip = strip.as_ptr();
    let mut i = 0;
    while i < piece.count {
        let mut v = simd.splat(P::START);
        // SAFETY: the last window starts a vector before the end of the windows at most, so its loads pass the piece's
        // end by less than two vectors and a tap, for which the strip has slack.
        unsafe {
            let p = strip.add(i * columns.stride);
            let mut kw = 0;
            while kw < columns.kernel {
                let at = p.add(kw * columns.dilation);
                if columns.stride == 1 {
                    v = P::join(simd, v, simd.load(at));
                } else {
                    let (even, odd) = simd.even_odd(simd.load(at), simd.load(at.add(S::LANES)));
                    v = P::join(simd, v, even);
                    if columns.dilation == 1 && kw + 1 < columns.kernel {
                        v = P::join(simd, v, odd);
                        kw += 1;
                    }
                }
                kw += 1;
            }
            store(simd, y.add(i), S::LANES.min(piece.count - i), v);
        }
        i += S::LANES;
    }
}

/// The gradient of average pooling for one band.
pub(super) struct AverageBackward<'a> {
    pub geometry: &'a Geometry,
    pub dy: &'a [f32],
    pub band: Band,
    pub dx: &'a mut [f32],
}

impl Job for AverageBackward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { geometry, dy, band, dx } = self;
        let (rows, columns) = (&geometry.rows, &geometry.columns);
        if [rows, columns].iter().all(|axis| axis.output == 1 && axis.taps(0) == (0..axis.size)) {
            // One window over all of the plane. Sums begin with +0.
            return dx.fill(0.0 + dy[band.plane] / geometry.divisor(0, 0));
        }
        let (mut shares, mut strip) = ([0.0; STRIP + SLACK], [0.0; STRIP + SLACK]);
        dx.fill(0.0);
        for oh in band.first..band.last {
            let at = (band.plane * rows.output + oh) * columns.output;
            let dy = &dy[at..][..columns.output];
            if columns.window > STRIP {
                spread_one_by_one(geometry, oh, band, dy, dx);
                continue;
            }
            let mut first = 0;
            while first < columns.output {
                let piece = Piece::at(columns, first, STRIP);
                spread_along(geometry, oh, &piece, dy, &mut shares, &mut strip);
                for kh in rows.taps(oh) {
                    let row = &mut dx[(rows.pixel(oh, kh) - band.top) * columns.size..][..columns.size];
                    // SAFETY: the piece's columns from `low` to `high` are in the image, and within the strip.
                    unsafe {
                        let to = row.as_mut_ptr().add(piece.column);
                        let from = strip.as_ptr().add(piece.low);
                        let mut at = 0;
                        while at < piece.high - piece.low {
                            let count = S::LANES.min(piece.high - piece.low - at);
                            let sum = simd.add(load(simd, to.add(at), count), load(simd, from.add(at), count));
                            store(simd, to.add(at), count, sum);
                            at += S::LANES;
                        }
                    }
                }
                first += piece.count;
            }
        }
    }
}

/// Adds up along a strip what each of its columns receives from the piece's windows.
#[inline(always)]
fn spread_along(geometry: &Geometry, oh: usize, piece: &Piece, dy: &[f32], shares: &mut Strip, strip: &mut Strip) {
    let columns = &geometry.columns;
    let interior = columns.interior();
    let full = if interior.is_empty() { 1.0 } else { geometry.divisor(oh, interior.start) };
    let shares = &mut shares[..piece.count];
    let dy = &dy[piece.first..][..piece.count];
    for i in 0..piece.count {
        shares[i] = dy[i] / full;
    }
    let before = interior.start.saturating_sub(piece.first).min(piece.count);
    let after = interior.end.saturating_sub(piece.first).clamp(before, piece.count);
    for i in (0..before).chain(after..piece.count) {
        shares[i] = dy[i] / geometry.divisor(oh, piece.first + i);
    }
    let strip = &mut strip[..piece.len];
    strip.fill(0.0);
    // Naming the common widths unrolls their loops.
    match columns.kernel {
        2 => add_shares(shares, strip, columns.stride, 2),
        3 => add_shares(shares, strip, columns.stride, 3),
        kernel => add_shares(shares, strip, columns.stride, kernel),
    }
}

/// `strip[i * stride + kw] += shares[i]` for each `kw < kernel`, window by window.
#[inline(always)]
fn add_shares(shares: &[f32], strip: &mut [f32], stride: usize, kernel: usize) {
    if stride == 1 {
        // The last tap first: each column then receives from its windows in order, and vectors do the work.
        for kw in (0..kernel).rev() {
            for (column, share) in strip[kw..].iter_mut().zip(shares) {
                *column += share;
            }
        }
        return;
    }
    for (i, share) in shares.iter().enumerate() {
        let window = &mut strip[i * stride..][..kernel];
        for kw in 0..kernel {
            window[kw] += share;
        }
    }
}

/// A row of windows that are too wide for a strip.
#[inline(always)]
fn spread_one_by_one(geometry: &Geometry, oh: usize, band: Band, dy: &[f32], dx: &mut [f32]) {
    let (rows, columns) = (&geometry.rows, &geometry.columns);
    for ow in 0..columns.output {
        let share = dy[ow] / geometry.divisor(oh, ow);
        for kh in rows.taps(oh) {
            let row = &mut dx[(rows.pixel(oh, kh) - band.top) * columns.size..][..columns.size];
            for kw in columns.taps(ow) {
                row[columns.pixel(ow, kw)] += share;
            }
        }
    }
}
