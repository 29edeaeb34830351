//! The gradient of the input at a stride of 2, straight from the planes: even and odd columns of a row together, taps
//! known when compiled.
//!
//! ```text
//! dy     y0  y1  y2  y3 ...                   loads at y + each tap
//! even   x0  x2  x4  x6 ...   of some taps  ┐
//! odd    x1  x3  x5  x7 ...   of the others ┘ interleaved: x0 x1 x2 x3 ...    whole rows are written
//! ```
//!
//! A 3 x 3 kernel leaves one to four products for each pixel, so loops over taps would take longer than the products.
//! Each target is one chain of fused multiply-adds over tap rows and tap columns in order; lanes whose column is
//! padding are masked, rows that are padding left out.

use super::axis::{Axis, Phase, Taps};
use super::finish::Finish;
use super::source::inside;
use crate::simd::{Job, Simd};

/// Target rows of a block, two of the plane's apart.
const ROWS: usize = 4;

/// Rows `begin .. end` of a plane of targets.
///
/// Whoever makes one vouches that [`fits`] holds, that the source is readable, that there are weights for all taps, and
/// that the rows of the targets, and what `finish` names for them, belong to it.
pub(super) struct Halves<'a> {
    pub source: *const f32,
    pub source_size: [usize; 2],
    pub rows: &'a Axis,
    pub columns: &'a Axis,
    /// `[row phase][column phase][tap row][tap column]`
    pub weights: *const f32,
    /// The whole plane.
    pub target: *mut f32,
    pub size: [usize; 2],
    pub begin: usize,
    pub end: usize,
    pub finish: Finish,
}

/// The tap rows of a row phase, and the tap columns of even and odd columns, if they are neighbours.
fn counts(row_phase: &Phase, columns: &Axis) -> Option<[usize; 3]> {
    let [a, b] = &columns.phases[..] else { return None };
    let [even, odd] = if a.first == 0 { [a, b] } else { [b, a] };
    let phases = [row_phase, even, odd];
    let neighbours = phases.iter().all(|phase| phase.taps.windows(2).all(|pair| pair[1].offset == pair[0].offset + 1));
    neighbours.then(|| phases.map(|phase| phase.taps.len()))
}

/// Whether there are kernels for all phases.
pub(super) fn fits(rows: &Axis, columns: &Axis) -> bool {
    let gradient = columns.step == 1 && columns.out_step == 2 && rows.step == 1;
    let known = |phase: &Phase| {
        matches!(
            counts(phase, columns),
            Some([1, 1, 2] | [1, 2, 1] | [2, 1, 2] | [2, 2, 1] | [2, 2, 3] | [2, 3, 2] | [3, 2, 3] | [3, 3, 2])
        )
    };
    gradient && rows.phases.iter().all(known)
}

impl Job for Halves<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { rows, columns, .. } = self;
        let mut weights = self.weights;
        for row_phase in &rows.phases {
            // The phase's targets below a row of the plane.
            let below = |row: usize| row.saturating_sub(row_phase.first).div_ceil(rows.out_step);
            let row_taps = Taps::new(rows, &row_phase.taps);
            let mut halves = [Half { taps: row_taps, weights }; 2];
            for column_phase in &columns.phases {
                let taps = Taps::new(columns, &column_phase.taps);
                halves[column_phase.first] = Half { taps, weights };
                weights = weights.wrapping_add(row_taps.count * taps.count);
            }
            let strip = Strip {
                call: &self,
                rows: row_taps,
                row_first: row_phase.first,
                begin: below(self.begin),
                end: below(self.end),
                halves,
                count: self.size[1].div_ceil(2),
            };
            match (row_taps.count, halves[0].taps.count, halves[1].taps.count) {
                (1, 1, 2) => simd.call(Sweep::<1, 1, 2>(strip)),
                (1, 2, 1) => simd.call(Sweep::<1, 2, 1>(strip)),
                (2, 1, 2) => simd.call(Sweep::<2, 1, 2>(strip)),
                (2, 2, 1) => simd.call(Sweep::<2, 2, 1>(strip)),
                (2, 2, 3) => simd.call(Sweep::<2, 2, 3>(strip)),
                (2, 3, 2) => simd.call(Sweep::<2, 3, 2>(strip)),
                (3, 2, 3) => simd.call(Sweep::<3, 2, 3>(strip)),
                (3, 3, 2) => simd.call(Sweep::<3, 3, 2>(strip)),
                other => unreachable!("a kernel for {other:?} taps, as `fits` says"),
            }
        }
    }
}

/// Even or odd columns.
#[derive(Clone, Copy)]
struct Half {
    taps: Taps,
    weights: *const f32,
}

/// The rows of a row phase.
struct Strip<'a> {
    call: &'a Halves<'a>,
    rows: Taps,
    /// The row of the phase's first target.
    row_first: usize,
    /// Targets of the phase, down.
    begin: usize,
    end: usize,
    halves: [Half; 2],
    /// Pairs of columns.
    count: usize,
}

impl Strip<'_> {
    /// Finishes and writes neighbouring targets, from column `c` of the plane on, as far as the row goes.
    ///
    /// # Safety
    /// - The row is a target.
    #[inline(always)]
    unsafe fn write<S: Simd>(&self, simd: S, bias: Option<S::F>, row: usize, c: usize, sums: S::F) {
        let width = self.call.size[1];
        if c < width {
            // SAFETY: the caller's contract.
            unsafe { self.call.finish.write(simd, bias, self.call.target, row * width + c, width - c, sums) };
        }
    }
}

/// A strip whose phases have `KH` tap rows, and `KA` and `KB` tap columns. Made by [`Halves`] alone, whose contract it
/// carries.
struct Sweep<'a, const KH: usize, const KA: usize, const KB: usize>(Strip<'a>);

impl<const KH: usize, const KA: usize, const KB: usize> Job for Sweep<'_, KH, KA, KB> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let strip = &self.0;
        let [_, width] = strip.call.source_size;
        let [a, b] = [strip.halves[0].taps.first, strip.halves[1].taps.first];
        // SAFETY: the maker's promise.
        let bias = unsafe { strip.call.finish.bias(simd) };
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
                            let row = strip.row_first + (j + q) * strip.call.rows.out_step;
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
        let [height, width] = strip.call.source_size;
        let row = self.row + p as isize;
        if p >= ROWS - 1 + KH || row < 0 || row >= height as isize {
            return;
        }
        let start = strip.call.source.wrapping_add(row as usize * width);
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
                        let weight = simd.splat(*strip.halves[0].weights.add((p - q) * KA + k));
                        self.acc[0][q] = simd.fma(weight, even[k], self.acc[0][q]);
                    }
                    for k in 0..KB {
                        let weight = simd.splat(*strip.halves[1].weights.add((p - q) * KB + k));
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
