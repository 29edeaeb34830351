//! Transforming the weights: `u = G w Gᵀ`, in f64, rounded once.
//!
//! ```text
//! weights[out channel][in channel][tap] ──► 8 filters side by side ──► G w ──► (G w) Gᵀ ──► u[frequency][panel][in channel][column]
//! ```
//!
//! Training does this in each step, so it is work like any other: filters in the lanes, tasks over panels of output
//! channels and some input channels each. Each element is the same sum in the same order whoever computes it.

use std::ops::Range;

use super::points::MOST;
use super::{Direction, Winograd};
use crate::simd::{Job, Simd};

/// Filters side by side: a register of f64 on AVX-512. Only a panel of one short vector is narrower.
const SIDE: usize = 8;

/// Input channels of a task: a few microseconds.
pub(super) const CHANNELS: usize = 32;

/// The most taps of an axis.
const TAPS: usize = 5;

/// Numbers of as many filters.
type Lanes = [f64; SIDE];

/// Transforms the filters of a panel, for some input channels.
pub(super) struct PackFilters<'a> {
    pub plan: &'a Winograd,
    pub weights: &'a [f32],
    pub group: usize,
    /// The first output channel of the panel, and the columns that it has.
    pub first: usize,
    pub width: usize,
    pub channels: Range<usize>,
    /// `plan.u`, of which this job alone writes its part.
    pub u: *mut f32,
}

impl Job for PackFilters<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Self { plan, group, first, .. } = self;
        let [down, along] = plan.axes;
        let [rows, columns] = [down, along].map(|axis| {
            let mut g = [[0.0f64; TAPS]; MOST];
            for point in 0..axis.points() {
                for tap in 0..axis.taps {
                    g[point][tap] = axis.weight(point, tap);
                }
            }
            g
        });
        for ic in self.channels.clone() {
            for column in (0..self.width.min(plan.out_channels - first)).step_by(SIDE) {
                let filters = self.filters(first + column, ic);
                for p in 0..down.points() {
                    let mut row: [Lanes; TAPS] = [[0.0; SIDE]; TAPS];
                    for kw in 0..along.taps {
                        for kh in 0..down.taps {
                            let (g, filter) = (rows[p][kh], &filters[kh * along.taps + kw]);
                            for lane in 0..SIDE {
                                row[kw][lane] += g * filter[lane];
                            }
                        }
                    }
                    for q in 0..along.points() {
                        let mut sum: Lanes = [0.0; SIDE];
                        for kw in 0..along.taps {
                            for lane in 0..SIDE {
                                sum[lane] += row[kw][lane] * columns[q][kw];
                            }
                        }
                        let at = plan.frequency(group, p * along.points() + q);
                        let at = at + first * plan.in_channels + ic * self.width + column;
                        let count = SIDE.min(self.width - column);
                        // SAFETY: a panel has `width` columns for each input channel of each frequency, and this job alone
                        // writes those of its channels.
                        unsafe { self.u.add(at).copy_from_nonoverlapping(sum.map(|sum| sum as f32).as_ptr(), count) };
                    }
                }
            }
        }
    }
}

impl PackFilters<'_> {
    /// The taps of the filters from an output channel on, for one input channel; zeros beyond the last.
    #[inline(always)]
    fn filters(&self, oc: usize, ic: usize) -> [Lanes; TAPS * TAPS] {
        let Winograd { in_channels, out_channels, direction, .. } = *self.plan;
        let taps = self.plan.axes[0].taps * self.plan.axes[1].taps;
        let mut filters = [[0.0; SIDE]; TAPS * TAPS];
        for lane in 0..SIDE.min(out_channels - oc) {
            let oc = oc + lane;
            let filter = match direction {
                Direction::Forward => (self.group * out_channels + oc) * in_channels + ic,
                Direction::BackwardData => (self.group * in_channels + ic) * out_channels + oc,
            };
            let filter = &self.weights[filter * taps..][..taps];
            for tap in 0..taps {
                let from = if direction == Direction::Forward { tap } else { taps - 1 - tap };
                filters[tap][lane] = f64::from(filter[from]);
            }
        }
        filters
    }
}
