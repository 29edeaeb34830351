//! Transforming the weights: `u = G w Gᵀ`, in f64, rounded once.
//!
//! ```text
//! weights[out channel][in channel][tap] ──► 8 filters side by side ──► G w ──► (G w) Gᵀ ──► u[frequency][panel][in channel][column]
//! ```
//!
//! Training does this in each step, so it is work like any other: filters in the lanes, tasks over panels of output
//! channels and some input channels each. Each element is the same sum in the same order whoever computes it.
//!
//! The taps of a filter are neighbours in memory, and so are the filters of an output channel (backward-data: of an
//! input channel), so squares of them are transposed in registers:
//!
//! ```text
//! 16 output channels ─┬─ [ic 0: taps][ic 1: taps] ...  ──►  [ic 0, tap 0][16 lanes]
//!                     └─ ...                                [ic 0, tap 1][16 lanes] ...
//! ```

use std::ops::Range;

use super::points::MOST;
use super::{Axis, Direction, Winograd};
use crate::simd::{Job, Simd};

/// Filters side by side: a cache line of their transforms. Only a panel of one short vector is narrower.
const SIDE: usize = 16;

/// Input channels of a task: a few microseconds.
pub(super) const CHANNELS: usize = 32;

/// Input channels whose filters are laid out at once, at most.
const RUN: usize = 8;

/// Taps of all filters of a run, at most: 25 KiB.
const RUN_TAPS: usize = RUN * 7 * 7;

/// Rows of filters: those of a run, and what a square of 16 has too much.
const ROWS: usize = RUN_TAPS + 16;

/// Numbers of as many filters.
type Lanes<T> = [T; SIDE];

/// Elements `[point][tap]` of `G`.
type Matrix = [[f64; MOST]; MOST];

/// Transforms the filters of a panel, for some input channels.
pub(super) struct PackFilters<'a> {
    pub plan: &'a Winograd,
    pub weights: &'a [f32],
    pub group: usize,
    /// The first output channel of the panel, and the columns that it has.
    pub first: usize,
    pub width: usize,
    /// Whether transforms are written past the caches.
    pub stream: bool,
    pub channels: Range<usize>,
    /// `plan.u`, of which this job alone writes its part.
    pub u: *mut f32,
}

impl Job for PackFilters<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { plan, group, first, width, .. } = self;
        let [down, along] = plan.axes;
        let [rows, columns] = [matrix(down), matrix(along)];
        let taps = down.taps * along.taps;
        let mut filters = [[0.0f32; SIDE]; ROWS];
        let mut half = [[0.0f64; SIDE]; MOST * MOST];
        // Fewer of large kernels.
        let most = RUN.min(RUN_TAPS / taps);
        // Sums are along axes that have a tile; elsewhere `G` is the identity.
        let [taps_down, taps_along] = plan.axes.map(|axis| if axis.saves() { axis.taps } else { 0 });
        for start in self.channels.clone().step_by(most) {
            let run = most.min(self.channels.end - start);
            for column in (0..width.min(plan.out_channels - first)).step_by(SIDE) {
                self.lay_out(simd, first + column, start, run, &mut filters);
                let count = SIDE.min(width - column);
                let stream = self.stream && count == SIDE;
                for i in 0..run {
                    let filter = &filters[i * taps..][..taps];
                    match taps_down {
                        3 => sums_down::<3>(&rows, down.points(), filter, along.taps, &mut half),
                        4 => sums_down::<4>(&rows, down.points(), filter, along.taps, &mut half),
                        5 => sums_down::<5>(&rows, down.points(), filter, along.taps, &mut half),
                        7 => sums_down::<7>(&rows, down.points(), filter, along.taps, &mut half),
                        _ => {
                            for tap in 0..taps {
                                for lane in 0..SIDE {
                                    half[tap][lane] = f64::from(filter[tap][lane]);
                                }
                            }
                        }
                    }
                    let at = first * plan.in_channels + (start + i) * width + column;
                    let (step, points) = (plan.frequency(0, 1), along.points());
                    for p in 0..down.points() {
                        let row = &half[p * along.taps..][..along.taps];
                        let to = self.u.wrapping_add(plan.frequency(group, p * points) + at);
                        // SAFETY: a panel has `width` columns for each input channel of each frequency, and this job
                        // alone writes those of its channels.
                        unsafe {
                            match taps_along {
                                3 => sums_along::<S, 3>(simd, stream, &columns, points, row, to, step, count),
                                4 => sums_along::<S, 4>(simd, stream, &columns, points, row, to, step, count),
                                5 => sums_along::<S, 5>(simd, stream, &columns, points, row, to, step, count),
                                7 => sums_along::<S, 7>(simd, stream, &columns, points, row, to, step, count),
                                _ => {
                                    for q in 0..points {
                                        let (tap, to) = (&row[q..=q], to.wrapping_add(q * step));
                                        sums_along::<S, 1>(simd, stream, &columns, 1, tap, to, step, count);
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
        simd.fence();
    }
}

/// `G` of an axis.
#[inline(always)]
fn matrix(axis: Axis) -> Matrix {
    let mut g = [[0.0; MOST]; MOST];
    for point in 0..axis.points() {
        for tap in 0..axis.taps {
            g[point][tap] = axis.weight(point, tap);
        }
    }
    g
}

/// The sum over taps of `g[tap] * from[tap]`, the first tap first.
#[inline(always)]
fn sum<const N: usize>(g: &[f64; MOST], from: &[Lanes<f64>; N]) -> Lanes<f64> {
    let mut sum = [0.0; SIDE];
    for tap in 0..N {
        for lane in 0..SIDE {
            sum[lane] += g[tap] * from[tap][lane];
        }
    }
    sum
}

/// `half[point][column]` for a filter of `N` rows.
#[inline(always)]
fn sums_down<const N: usize>(
    g: &Matrix,
    points: usize,
    filter: &[Lanes<f32>],
    columns: usize,
    half: &mut [Lanes<f64>; MOST * MOST],
) {
    for column in 0..columns {
        let mut taps = [[0.0; SIDE]; N];
        for kh in 0..N {
            for lane in 0..SIDE {
                taps[kh][lane] = f64::from(filter[kh * columns + column][lane]);
            }
        }
        for p in 0..points {
            half[p * columns + column] = sum(&g[p], &taps);
        }
    }
}

/// The frequencies of a row of `N` taps, `step` floats apart.
///
/// # Safety
/// - `to` has room for `count` floats of each; to stream, those are `SIDE`, and `to` and `step` whole vectors.
#[inline(always)]
unsafe fn sums_along<S: Simd, const N: usize>(
    simd: S,
    stream: bool,
    g: &Matrix,
    points: usize,
    row: &[Lanes<f64>],
    to: *mut f32,
    step: usize,
    count: usize,
) {
    let mut taps = [[0.0; SIDE]; N];
    taps.copy_from_slice(row);
    for q in 0..points {
        let wide = sum(&g[q], &taps);
        let mut sums = [0.0f32; SIDE];
        for lane in 0..SIDE {
            sums[lane] = wide[lane] as f32;
        }
        // SAFETY: the caller's contract.
        unsafe {
            if stream {
                for lane in (0..SIDE).step_by(S::LANES) {
                    simd.stream(to.add(q * step + lane), simd.load(sums.as_ptr().add(lane)));
                }
            } else if count == SIDE {
                to.add(q * step).cast::<Lanes<f32>>().write_unaligned(sums);
            } else {
                to.add(q * step).copy_from_nonoverlapping(sums.as_ptr(), count);
            }
        }
    }
}

impl PackFilters<'_> {
    /// The filters from an output channel on, for a run of input channels, tap by tap; whatever there is in lanes
    /// beyond the last output channel of all, zeros at first.
    #[inline(always)]
    fn lay_out<S: Simd>(&self, simd: S, oc: usize, ic: usize, run: usize, filters: &mut [Lanes<f32>; ROWS]) {
        let Winograd { in_channels, out_channels, direction, .. } = *self.plan;
        let taps = self.plan.axes[0].taps * self.plan.axes[1].taps;
        let lanes = SIDE.min(out_channels - oc);
        // Where the lanes are, and where the parts that are neighbours in memory: how many and how long.
        let (first, lane_step, parts, part_step, len) = match direction {
            Direction::Forward => {
                let filter = (self.group * out_channels + oc) * in_channels + ic;
                (filter * taps, in_channels * taps, 1, 0, run * taps)
            }
            Direction::BackwardData => {
                let filter = (self.group * in_channels + ic) * out_channels + oc;
                (filter * taps, taps, run, out_channels * taps, taps)
            }
        };
        for part in 0..parts {
            let (first, row) = (first + part * part_step, part * len);
            for k in (0..len).step_by(S::LANES) {
                // A square may hold what follows the part, which the next part or nobody overwrites.
                let readable = first + (SIDE - 1) * lane_step + k + S::LANES <= self.weights.len();
                if lanes == SIDE && readable {
                    for lane in (0..SIDE).step_by(S::LANES) {
                        let from = self.weights[first + lane * lane_step + k..].as_ptr();
                        let to = filters[row + k..].as_mut_ptr().cast::<f32>();
                        // SAFETY: the last row of the last square ends within the weights; `ROWS` has room for the rows
                        // of a whole square behind the last tap.
                        unsafe { simd.transpose(from, lane_step as isize, to.add(lane), SIDE as isize) };
                    }
                    continue;
                }
                for tap in k..len.min(k + S::LANES) {
                    for lane in 0..lanes {
                        filters[row + tap][lane] = self.weights[first + lane * lane_step + tap];
                    }
                }
            }
        }
        if direction == Direction::BackwardData {
            for filter in filters[..run * taps].chunks_exact_mut(taps) {
                filter.reverse();
            }
        }
    }
}
