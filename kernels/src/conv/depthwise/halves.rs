//! The gradient of the input at a stride of 2: even and odd columns of a row phase together, taps known when compiled.
//!
//! ```text
//! dy     y0  y1  y2  y3 ...                   loads at y + each tap
//! even   x0  x2  x4  x6 ...   of some taps  ┐
//! odd    x1  x3  x5  x7 ...   of the others ┘ interleaved: x0 x1 x2 x3 ...    whole rows are written
//! ```
//!
//! A 3 x 3 kernel leaves one to four products for each pixel, so loops over taps would take longer than the products.

use super::gather::{ROWS, Strip};
use super::source::inside;
use crate::simd::{Job, Simd};

/// A strip whose phases have `KH` tap rows, and `KA` and `KB` tap columns, all neighbours, in one plane. Made by
/// [`Gather`](super::gather::Gather) alone, whose contract it carries.
pub(super) struct Halves<'a, const KH: usize, const KA: usize, const KB: usize>(pub Strip<'a>);

impl<const KH: usize, const KA: usize, const KB: usize> Job for Halves<'_, KH, KA, KB> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let strip = &self.0;
        let [_, width] = strip.gather.source_size;
        let [a, b] = [strip.phases[0].taps.first, strip.phases[1].taps.first];
        // SAFETY: the maker's promise.
        let bias = unsafe { strip.gather.finish.bias(simd) };
        let mut j = strip.begin;
        while j < strip.end {
            let live = (strip.end - j).min(ROWS);
            let mut c = 0;
            while c < strip.count {
                // A last, partial vector is moved to the left where there is room.
                let at = if strip.count - c >= S::LANES { c } else { strip.count.saturating_sub(S::LANES) };
                let column = at as isize;
                let mut block = Block {
                    acc: [[simd.zero(); ROWS]; 2],
                    masks: (masks::<S, KA>(simd, width, column + a), masks::<S, KB>(simd, width, column + b)),
                    columns: [column + a, column + b],
                    row: j as isize + strip.rows.first,
                };
                // SAFETY: the maker's promise.
                unsafe {
                    // Written out, so that numbers of accumulators are constants for sure.
                    block.add::<KH>(simd, strip, 0);
                    block.add::<KH>(simd, strip, 1);
                    block.add::<KH>(simd, strip, 2);
                    block.add::<KH>(simd, strip, 3);
                    block.add::<KH>(simd, strip, 4);
                    block.add::<KH>(simd, strip, 5);
                    block.add::<KH>(simd, strip, 6);
                    for q in 0..ROWS {
                        if q < live {
                            let row = strip.row_first + (j + q) * strip.gather.rows.out_step;
                            let (low, high) = simd.interleave(block.acc[0][q], block.acc[1][q]);
                            strip.write(simd, bias, row, 2 * at, low);
                            strip.write(simd, bias, row, 2 * at + S::LANES, high);
                        }
                    }
                }
                c += S::LANES;
            }
            j += ROWS;
        }
    }
}

/// Sums of a few rows, even and odd columns apart.
struct Block<S: Simd, const KA: usize, const KB: usize> {
    acc: [[S::F; ROWS]; 2],
    /// Lanes that are columns of the source, for each tap column.
    masks: ([S::M; KA], [S::M; KB]),
    /// The source columns of the first taps.
    columns: [isize; 2],
    /// The source row of the first tap row.
    row: isize,
}

impl<S: Simd, const KA: usize, const KB: usize> Block<S, KA, KB> {
    /// Adds the products of source row `p` to the rows that see it, with tap row `p - q` in row `q`.
    ///
    /// # Safety
    /// - The strip's source and weights are readable.
    #[inline(always)]
    unsafe fn add<const KH: usize>(&mut self, simd: S, strip: &Strip<'_>, p: usize) {
        let [height, width] = strip.gather.source_size;
        let row = self.row + p as isize;
        if p >= ROWS - 1 + KH || row < 0 || row >= height as isize {
            return;
        }
        let start = strip.gather.source.wrapping_add(row as usize * width);
        let (mut even, mut odd) = ([simd.zero(); KA], [simd.zero(); KB]);
        // SAFETY: the caller's contract; masked lanes are columns of the row.
        unsafe {
            for k in 0..KA {
                even[k] = simd.load_masked(start.wrapping_offset(self.columns[0] + k as isize), self.masks.0[k]);
            }
            for k in 0..KB {
                odd[k] = simd.load_masked(start.wrapping_offset(self.columns[1] + k as isize), self.masks.1[k]);
            }
            for q in 0..ROWS {
                if p >= q && p - q < KH {
                    for k in 0..KA {
                        let weight = simd.splat(*strip.phases[0].weights.add((p - q) * KA + k));
                        self.acc[0][q] = simd.fma(weight, even[k], self.acc[0][q]);
                    }
                    for k in 0..KB {
                        let weight = simd.splat(*strip.phases[1].weights.add((p - q) * KB + k));
                        self.acc[1][q] = simd.fma(weight, odd[k], self.acc[1][q]);
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn masks<S: Simd, const K: usize>(simd: S, width: usize, at: isize) -> [S::M; K] {
    let mut masks = [simd.mask_first(S::LANES); K];
    for k in 0..K {
        masks[k] = inside(simd, width, at + k as isize);
    }
    masks
}
