//! 3 x 3 neighbourhoods at a step of 1 in planes that fit L1, straight from the image.
//!
//! ```text
//!              columns c-1   c   c+1 of a source row: three loads
//! source row     ┌────────┬────────┬────────┐
//!                └────────┴────────┴────────┘      lanes whose column is padding are masked: no copy, no memory read
//! ```
//!
//! Copying a small plane into padded rows takes longer than its products: 14 x 14 pixels are 126 multiply-adds of 16
//! lanes. Sums have the order of the padded kernels, so the bits are the same.

use super::tiles::{Finish, limit};
use crate::simd::{Job, Simd};

/// Columns beyond which a plane is not small: rows of a block of columns are too far apart to be foreseen.
pub(in crate::conv) const MOST_COLUMNS: usize = 64;

/// Target rows that are computed together.
const ROWS: usize = 4;

/// A plane of the image that targets read.
#[derive(Clone, Copy)]
pub(in crate::conv) struct Source {
    pub start: *const f32,
    pub size: [usize; 2],
    /// The row and column that the first target's first tap reads: negative where that is padding.
    pub origin: [isize; 2],
}

impl Source {
    /// The lanes of each tap that lie inside of a row, for targets from column `c` on.
    #[inline(always)]
    fn masks<S: Simd>(&self, simd: S, c: usize) -> [S::M; 3] {
        let lanes = |limit: isize| simd.mask_first(limit.clamp(0, S::LANES as isize) as usize);
        let mask = |k: isize| {
            let first = c as isize + self.origin[1] + k;
            simd.and(lanes(self.size[1] as isize - first), simd.not(lanes(-first)))
        };
        [mask(0), mask(1), mask(2)]
    }

    /// What the three taps of a row read for targets from column `c` on; zeros where padding is.
    ///
    /// # Safety
    /// - The plane is readable.
    #[inline(always)]
    unsafe fn row<S: Simd>(&self, simd: S, row: isize, c: usize, masks: &[S::M; 3]) -> [S::F; 3] {
        let row = row + self.origin[0];
        if row < 0 || row >= self.size[0] as isize {
            return [simd.zero(); 3];
        }
        let start = self.start.wrapping_offset(row * self.size[1] as isize + self.origin[1]).wrapping_add(c);
        // SAFETY: the masked lanes lie inside of the row.
        unsafe {
            [
                simd.load_masked(start, masks[0]),
                simd.load_masked(start.wrapping_add(1), masks[1]),
                simd.load_masked(start.wrapping_add(2), masks[2]),
            ]
        }
    }
}

/// A whole plane of targets.
///
/// Whoever makes one vouches that the source is readable, that there are 9 weights, and that the targets, and what `finish`
/// names for them, belong to it.
pub(in crate::conv) struct Plane {
    pub source: Source,
    pub weights: *const f32,
    pub target: *mut f32,
    pub size: [usize; 2],
    pub finish: Finish,
}

impl Job for Plane {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { source, weights, target, size: [height, width], finish } = self;
        // SAFETY: the maker's promise; rows and lanes of targets are below their numbers.
        unsafe {
            let mut w = [simd.zero(); 9];
            for tap in 0..9 {
                w[tap] = simd.splat(*weights.add(tap));
            }
            let bias = finish.bias.map(|bias| simd.splat(*bias));
            for c in (0..width).step_by(S::LANES) {
                let masks = source.masks(simd, c);
                for first in (0..height).step_by(ROWS) {
                    let mut acc = [simd.zero(); ROWS];
                    for position in 0..ROWS + 2 {
                        let x = source.row(simd, (first + position) as isize, c, &masks);
                        for r in 0..ROWS {
                            // Row `r` of the block meets tap rows 0, 1 and 2 at positions `r`, `r + 1` and `r + 2`.
                            if r <= position && position <= r + 2 {
                                for k in 0..3 {
                                    acc[r] = simd.fma(x[k], w[3 * (position - r) + k], acc[r]);
                                }
                            }
                        }
                    }
                    for r in 0..ROWS.min(height - first) {
                        let (at, left) = ((first + r) * width + c, width - c);
                        let mut v = acc[r];
                        if let Some(bias) = bias {
                            v = simd.add(v, bias);
                        }
                        if let Some(residual) = finish.residual {
                            v = simd.add(v, simd.load_first(residual.add(at), left));
                        }
                        simd.store_first(target.add(at), left, limit(simd, finish.activation, v));
                    }
                }
            }
        }
    }
}

/// The gradient of 9 weights from planes of one channel: each column has a virtual lane of its own, of which there are
/// `lanes` in `sums[tap][lane]`.
///
/// Whoever makes one vouches that `count` planes, `source_step` and `dy_step` apart, are readable, that no row of `dy` is
/// longer than `lanes`, and that `sums` has room.
pub(in crate::conv) struct Gradient {
    pub source: Source,
    pub source_step: usize,
    pub dy: *const f32,
    pub size: [usize; 2],
    pub dy_step: usize,
    pub count: usize,
    pub sums: *mut f32,
    pub lanes: usize,
}

impl Job for Gradient {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { source, source_step, dy, size: [height, width], dy_step, count, sums, lanes } = self;
        debug_assert!(width <= lanes && lanes.is_multiple_of(S::LANES));
        for c in (0..lanes).step_by(S::LANES) {
            let mut acc = [simd.zero(); 9];
            let masks = source.masks(simd, c);
            for image in 0..if c < width { count } else { 0 } {
                let source = Source { start: source.start.wrapping_add(image * source_step), ..source };
                let dy = dy.wrapping_add(image * dy_step);
                // SAFETY: the maker's promise.
                unsafe {
                    let mut x = [source.row(simd, 0, c, &masks), source.row(simd, 1, c, &masks), [simd.zero(); 3]];
                    for r in 0..height {
                        x[2] = source.row(simd, r as isize + 2, c, &masks);
                        let dy = simd.load_first(dy.add(r * width + c), width - c);
                        for tap in 0..9 {
                            acc[tap] = simd.fma(x[tap / 3][tap % 3], dy, acc[tap]);
                        }
                        (x[0], x[1]) = (x[1], x[2]);
                    }
                }
            }
            for tap in 0..9 {
                // SAFETY: the sums have room.
                unsafe { simd.store(sums.add(tap * lanes + c), acc[tap]) };
            }
        }
    }
}
