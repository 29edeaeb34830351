//! The gradient of max pooling as its input sees it: small windows that overlap, without dilation.
//!
//! First each window says which of its taps was the first maximum; then each pixel asks the windows that it is in
//! whether it was theirs. Both are loops over vectors of neighbours, and nothing is scattered:
//!
//! ```text
//! found[ow]  =  the first tap with x == y                       rows of the image between columns of NaN,
//! dx[ih, iw] =  sum over the windows around it                  which equals nothing
//!                 of  dy[oh, ow]  where  found[oh, ow] == (ih - oh * stride, iw - ow * stride)
//! ```
//!
//! The sum takes the windows in their order, so it has the bits of `dx[found] += dy`, window by window.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::Band;
use super::max_backward::find_one;
use super::spec::{Axis, Geometry};
use crate::simd::Simd;
use crate::simd::each::{load, store};

/// Taps along an axis.
const TAPS: usize = 4;
/// Columns of the image.
const COLUMNS: usize = 256;
/// Columns before the first window and behind the last that vectors may touch.
const MARGIN: usize = 16;
/// Floats of a row with its margins.
const PITCH: usize = COLUMNS + 4 * MARGIN;
/// The rows of three kinds that are kept: the image's, the taps that were found, the gradients.
type Room = MaybeUninit<[[f32; PITCH]; 3 * TAPS]>;

/// Whether these windows are small enough.
pub(super) fn suits(geometry: &Geometry) -> bool {
    let small = |axis: &Axis| axis.kernel <= TAPS && axis.dilation == 1 && axis.stride <= 2;
    small(&geometry.rows) && small(&geometry.columns) && geometry.columns.size <= COLUMNS
}

/// What a plane's gradient is made from.
pub(super) struct Plane<'a> {
    pub geometry: &'a Geometry,
    pub band: Band,
    /// The whole plane.
    pub x: &'a [f32],
    /// All planes.
    pub y: &'a [f32],
    pub dy: &'a [f32],
}

impl Plane<'_> {
    /// Writes all of `dx`, the rows of the band. The windows [suit](suits).
    #[inline(always)]
    pub fn run<S: Simd>(&self, simd: S, dx: &mut [f32]) {
        let columns = &self.geometry.columns;
        // Naming the common windows unrolls their loops.
        match (columns.kernel, columns.stride) {
            (2, 2) => self.rows(simd, 2, 2, dx),
            (3, 1) => self.rows(simd, 3, 1, dx),
            (3, 2) => self.rows(simd, 3, 2, dx),
            (kernel, stride) => self.rows(simd, kernel, stride, dx),
        }
    }

    #[inline(always)]
    fn rows<S: Simd>(&self, simd: S, kernel: usize, stride: usize, dx: &mut [f32]) {
        let Self { geometry: Geometry { rows, columns, .. }, band, .. } = self;
        let mut room = Room::uninit();
        let room = Rows(room.as_mut_ptr().cast());
        let (mut next_row, mut next_window) = (band.top, band.first);
        for (at, dx) in dx.chunks_exact_mut(columns.size).enumerate() {
            let padded = band.top + at + rows.before;
            let first = (padded + 1).saturating_sub(rows.kernel).div_ceil(rows.stride).max(band.first);
            let windows = first..(padded / rows.stride + 1).min(band.last);
            while next_window < windows.end {
                let taps = rows.taps(next_window);
                // SAFETY: taps are rows of the plane, and `TAPS` of them are kept: those of a window. No row is longer
                // than `COLUMNS`, and no row of windows longer than that by more than a padding.
                unsafe {
                    if !taps.is_empty() {
                        next_row = next_row.max(rows.pixel(next_window, taps.start));
                        while next_row <= rows.pixel(next_window, taps.end - 1) {
                            self.lay_out(simd, next_row, room.image(next_row));
                            next_row += 1;
                        }
                    }
                    self.find(simd, kernel, stride, next_window, room);
                }
                next_window += 1;
            }
            let meeting = Meeting { kernel, stride, padded, rows_apart: rows.stride, windows, room };
            if stride == 1 {
                for iw in (0..columns.size).step_by(S::LANES) {
                    let count = S::LANES.min(columns.size - iw);
                    // SAFETY: so many columns are left in the row, whose windows have been found.
                    unsafe { store(simd, dx.as_mut_ptr().add(iw), count, meeting.sum(simd, iw + columns.before, 0)) };
                }
                continue;
            }
            for pair in (0..(columns.before + columns.size).div_ceil(2)).step_by(S::LANES) {
                // SAFETY: the pair holds a column of the image, whose windows have been found.
                let (even, odd) = unsafe { (meeting.sum(simd, pair, 0), meeting.sum(simd, pair, 1)) };
                let (low, high) = simd.interleave(even, odd);
                for (v, first) in [(low, 2 * pair), (high, 2 * pair + S::LANES)] {
                    if first >= columns.before {
                        let iw = (first - columns.before).min(columns.size);
                        let count = S::LANES.min(columns.size - iw);
                        // SAFETY: so many columns are left in the row.
                        unsafe { store(simd, dx.as_mut_ptr().add(iw), count, v) };
                        continue;
                    }
                    let mut values = [0.0; 16];
                    let skip = columns.before - first;
                    let count = (S::LANES - skip).min(columns.size);
                    // SAFETY: a vector has at most 16 lanes.
                    unsafe { simd.store(values.as_mut_ptr(), v) };
                    dx[..count].copy_from_slice(&values[skip..][..count]);
                }
            }
        }
    }

    /// A row of the image between columns of NaN.
    ///
    /// # Safety
    /// - `row` is one of the plane, `to` has room for `PITCH` floats.
    #[inline(always)]
    unsafe fn lay_out<S: Simd>(&self, simd: S, row: usize, to: *mut f32) {
        let columns = &self.geometry.columns;
        let from = self.x[row * columns.size..][..columns.size].as_ptr();
        // SAFETY: `before` is at most a half of `TAPS`, so that all of this is within `PITCH`.
        unsafe {
            // Both sides, as far as vectors of windows read, then the image.
            let start = to.add(columns.before);
            simd.store(to, simd.splat(f32::NAN));
            for at in (0..4 * MARGIN).step_by(S::LANES) {
                let behind = columns.before + columns.size + at;
                simd.store(to.add(behind.min(PITCH - S::LANES)), simd.splat(f32::NAN));
            }
            for at in (0..columns.size).step_by(S::LANES) {
                let count = S::LANES.min(columns.size - at);
                store(simd, start.add(at), count, load(simd, from.add(at), count));
            }
        }
    }

    /// The number of the first maximum's tap of each window of a row, and the window's gradient; -1 where there is
    /// none, and on both sides.
    ///
    /// # Safety
    /// - The rows of the windows' taps are laid out.
    #[inline(always)]
    unsafe fn find<S: Simd>(&self, simd: S, kernel: usize, stride: usize, oh: usize, room: Rows) {
        let Geometry { rows, columns, .. } = self.geometry;
        let at = (self.band.plane * rows.output + oh) * columns.output;
        let (y, dy) = (&self.y[at..][..columns.output], &self.dy[at..][..columns.output]);
        let (to, gradients) = (room.found(oh), room.gradients(oh));
        // SAFETY: the caller's contract; a row of windows is no longer than `COLUMNS` and a padding.
        unsafe {
            for side in [0, MARGIN + columns.output, 2 * MARGIN + columns.output] {
                for at in (side..side + MARGIN).step_by(S::LANES) {
                    simd.store(to.add(at), simd.splat(-1.0));
                    simd.store(gradients.add(at), simd.zero());
                }
            }
            for ow in (0..columns.output).step_by(S::LANES) {
                let count = S::LANES.min(columns.output - ow);
                let value = load(simd, y.as_ptr().add(ow), count);
                let mut found = simd.splat(-1.0);
                // Backwards, so that the first tap has the last word.
                for kh in rows.taps(oh).rev() {
                    let from = room.image(rows.pixel(oh, kh)).add(ow * stride);
                    for kw in (0..kernel).rev() {
                        let v = if stride == 1 {
                            simd.load(from.add(kw))
                        } else {
                            simd.even_odd(simd.load(from.add(kw)), simd.load(from.add(kw + S::LANES))).0
                        };
                        found = simd.select(simd.eq(v, value), simd.splat((kh * kernel + kw) as f32), found);
                    }
                }
                store(simd, to.add(MARGIN + ow), count, found);
                store(simd, gradients.add(MARGIN + ow), count, load(simd, dy.as_ptr().add(ow), count));
                let mut unknown = simd.bits(simd.and(simd.is_nan(value), simd.mask_first(count)));
                while unknown != 0 {
                    let ow = ow + unknown.trailing_zeros() as usize;
                    unknown &= unknown - 1;
                    if let Some(at) = find_one(self.geometry, self.x, f32::NAN, oh, ow) {
                        let kh = at / columns.size + rows.before - oh * rows.stride;
                        let kw = at % columns.size + columns.before - ow * stride;
                        *to.add(MARGIN + ow) = (kh * kernel + kw) as f32;
                    }
                }
            }
        }
    }
}

/// Rows in turn: of the image, of the taps that were found, of the gradients.
#[derive(Clone, Copy)]
struct Rows(*mut [f32; PITCH]);

impl Rows {
    #[inline(always)]
    fn image(self, row: usize) -> *mut f32 {
        self.0.wrapping_add(row % TAPS).cast()
    }
    #[inline(always)]
    fn found(self, oh: usize) -> *mut f32 {
        self.0.wrapping_add(TAPS + oh % TAPS).cast()
    }
    #[inline(always)]
    fn gradients(self, oh: usize) -> *mut f32 {
        self.0.wrapping_add(2 * TAPS + oh % TAPS).cast()
    }
}

/// A row of the image, number `padded` with the padding above, and the windows that it meets.
struct Meeting {
    kernel: usize,
    stride: usize,
    padded: usize,
    rows_apart: usize,
    windows: Range<usize>,
    room: Rows,
}

impl Meeting {
    /// The gradient of a vector of padded columns: number `first * stride + column` and those a stride apart.
    ///
    /// # Safety
    /// - The windows have been found, and the first of the columns is in the image or its padding.
    #[inline(always)]
    unsafe fn sum<S: Simd>(&self, simd: S, first: usize, column: usize) -> S::F {
        let mut sum = simd.zero();
        for oh in self.windows.clone() {
            let kh = self.padded - oh * self.rows_apart;
            for kw in (column..self.kernel).step_by(self.stride).rev() {
                let at = MARGIN + first - kw / self.stride;
                // SAFETY: at most `TAPS - 1` columns before the first window, and a vector from the columns behind the
                // last on, that touch the image: within the margins.
                let (tap, dy) =
                    unsafe { (simd.load(self.room.found(oh).add(at)), simd.load(self.room.gradients(oh).add(at))) };
                let own = simd.eq(tap, simd.splat((kh * self.kernel + kw) as f32));
                sum = simd.add(sum, simd.select(own, dy, simd.zero()));
            }
        }
        sum
    }
}
