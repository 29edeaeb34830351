//! The gradient of max pooling where the pixels of a row are neighbours.
//!
//! The forward pass leaves no trace of where its maxima were, so they are sought again: the rows under a row of windows
//! are laid out in strips, vectors of windows compare tap after tap with their maximum, and the first tap that equals
//! it receives the gradient.
//!
//! ```text
//! x   ───────────────  ┐          strips  NaN │ image │ NaN  ┐
//!     ───────────────  │ taps ──►         NaN │ image │ NaN  │ == y ? ──► offset of the tap ──► dx[offset] += dy
//!     ───────────────  ┘                  NaN │ image │ NaN  ┘
//! ```
//!
//! Padding is NaN in the strips, which equals nothing, so windows at an edge are like all others. Small windows, which
//! most are, give their gradients without scattering: [`max_apart`] and [`max_meet`].

use super::Band;
use super::max_apart;
use super::max_meet::{self, Plane};
use super::nchw::{Piece, SLACK};
use super::spec::Geometry;
use crate::simd::each::{load, store};
use crate::simd::{Job, Simd};

/// Floats of all strips: 16 KiB, half of an L1 cache.
const STRIPS: usize = 4096;

/// The gradient of max pooling for one band.
pub(super) struct MaxBackward<'a> {
    pub geometry: &'a Geometry,
    pub x: &'a [f32],
    pub y: &'a [f32],
    pub dy: &'a [f32],
    pub band: Band,
    pub dx: &'a mut [f32],
}

impl Job for MaxBackward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { geometry, x, y, dy, band, dx } = self;
        let (rows, columns) = (&geometry.rows, &geometry.columns);
        let x = &x[band.plane * rows.size * columns.size..][..rows.size * columns.size];
        let plane = Plane { geometry, band, x, y, dy };
        if max_apart::suits(geometry) {
            return max_apart::run(&plane, simd, dx);
        }
        if max_meet::suits(geometry) {
            return plane.run(simd, dx);
        }
        // Offsets within a window go through 32-bit lanes.
        let reach = rows.window.saturating_mul(columns.size).saturating_add(columns.window);
        let has_vectors = columns.stride <= 2 && reach < i32::MAX as usize;
        let mut strips = [0.0; STRIPS];
        dx.fill(0.0);
        for oh in band.first..band.last {
            let taps = rows.taps(oh).len();
            if taps == 0 {
                continue;
            }
            let at = (band.plane * rows.output + oh) * columns.output;
            let (y, dy) = (&y[at..][..columns.output], &dy[at..][..columns.output]);
            let one_by_one = |dx: &mut [f32], from: usize, count: usize| {
                for ow in from..from + count {
                    if let Some(found) = find_one(geometry, x, y[ow], oh, ow) {
                        dx[found - band.top * columns.size] += dy[ow];
                    }
                }
            };
            let most = (STRIPS / taps).saturating_sub(SLACK);
            if !has_vectors || columns.window > most {
                one_by_one(dx, 0, columns.output);
                continue;
            }
            let top = rows.pixel(oh, rows.taps(oh).start);
            let mut first = 0;
            while first < columns.output {
                let piece = Piece::at(columns, first, most);
                let pitch = piece.len + SLACK;
                // SAFETY: the taps are rows of the plane; so many strips of this pitch fit, by the choice of `most`.
                unsafe { lay_out(simd, geometry, x.as_ptr().add(top * columns.size), taps, &piece, &mut strips) };
                for i in (0..piece.count).step_by(S::LANES) {
                    let (ow, count) = (first + i, S::LANES.min(piece.count - i));
                    let from = strips[i * columns.stride..].as_ptr();
                    // SAFETY: the last window starts a vector before the end of the piece's at most, so that loads pass
                    // its columns by less than two vectors and a tap, for which the strips have
                    // slack.
                    let offsets = unsafe { find(simd, geometry, [taps, pitch], from, &y[ow..][..count]) };
                    let Some(offsets) = offsets else {
                        one_by_one(dx, ow, count);
                        continue;
                    };
                    let base = (top - band.top) * columns.size + ow * columns.stride;
                    for l in 0..count {
                        let offset = offsets[l].to_bits() as i32;
                        if offset >= 0 {
                            dx[base + l * columns.stride + offset as usize - columns.before] += dy[ow + l];
                        }
                    }
                }
                first += piece.count;
            }
        }
    }
}

/// Copies the columns of a piece from so many rows of the image, a dilation apart, into strips, NaN for padding.
///
/// # Safety
/// - `x` is the first of the rows, and all of them are in the plane; the strips fit.
#[inline(always)]
unsafe fn lay_out<S: Simd>(
    simd: S,
    geometry: &Geometry,
    x: *const f32,
    taps: usize,
    piece: &Piece,
    strips: &mut [f32; STRIPS],
) {
    let pitch = piece.len + SLACK;
    for tap in 0..taps {
        let strip = &mut strips[tap * pitch..][..pitch];
        strip[..piece.low].fill(f32::NAN);
        strip[piece.high..piece.len].fill(f32::NAN);
        // SAFETY: the piece's columns from `low` to `high` are within the row, and within the strip.
        unsafe {
            let from = x.add(tap * geometry.rows.dilation * geometry.columns.size + piece.column);
            let to = strip.as_mut_ptr().add(piece.low);
            let len = piece.high - piece.low;
            for at in (0..len).step_by(S::LANES) {
                let count = S::LANES.min(len - at);
                store(simd, to.add(at), count, load(simd, from.add(at), count));
            }
        }
    }
}

/// Where the first maxima of a vector of windows are, in elements of the image from the start of each window (as bits;
/// -1 where none is), or `None` if one of the maxima is NaN.
///
/// # Safety
/// - `from` is the first column of the first window in the first strip, and the others are a pitch apart; `(kernel - 1)
///   * dilation + 2 * LANES` elements are readable in each.
#[inline(always)]
unsafe fn find<S: Simd>(
    simd: S,
    geometry: &Geometry,
    [taps, pitch]: [usize; 2],
    from: *const f32,
    y: &[f32],
) -> Option<[f32; 16]> {
    let (rows, columns) = (&geometry.rows, &geometry.columns);
    debug_assert!(y.len() <= S::LANES && S::LANES <= 16);
    // SAFETY: as many lanes of `y` are loaded as it has; the strips are the caller's contract.
    unsafe {
        let y = load(simd, y.as_ptr(), y.len());
        if simd.bits(simd.is_nan(y)) != 0 {
            return None;
        }
        let mut found = simd.int_to_bits(simd.splat_int(-1));
        // Backwards, so that the first tap has the last word.
        for kh in (0..taps).rev() {
            for kw in (0..columns.kernel).rev() {
                let at = from.add(kh * pitch + kw * columns.dilation);
                let v = if columns.stride == 1 {
                    simd.load(at)
                } else {
                    simd.even_odd(simd.load(at), simd.load(at.add(S::LANES))).0
                };
                let offset = kh * rows.dilation * columns.size + kw * columns.dilation;
                let index = simd.int_to_bits(simd.splat_int(offset as i32));
                found = simd.select(simd.eq(v, y), index, found);
            }
        }
        let mut offsets = [0.0f32; 16];
        simd.store(offsets.as_mut_ptr(), found);
        Some(offsets)
    }
}

/// The index within the plane of the first maximum of one window; of the last NaN, if the maximum is NaN.
#[inline(always)]
pub(super) fn find_one(geometry: &Geometry, x: &[f32], y: f32, oh: usize, ow: usize) -> Option<usize> {
    let (rows, columns) = (&geometry.rows, &geometry.columns);
    let mut found = None;
    for kh in rows.taps(oh) {
        for kw in columns.taps(ow) {
            let at = rows.pixel(oh, kh) * columns.size + columns.pixel(ow, kw);
            if y.is_nan() && x[at].is_nan() {
                found = Some(at);
            } else if x[at] == y {
                return Some(at);
            }
        }
    }
    found
}
