//! The last transform: sums to `Gᵀ u G`, the gradients of the weights.
//!
//! ```text
//! sums[frequency][out channel][in channel] ──► for each out channel, each vector of in channels:
//!     down the columns:   n rows ──► rows of taps
//!     along the rows:     n columns ──► taps          ──► [tap][channel], transposed ──► dw[oc][ic][tap]
//! ```

use std::ops::Range;

use super::super::points::{MOST, taps};
use super::Context;
use crate::simd::{Job, Simd};

/// Writes the gradients of some channels from their sums.
///
/// Whoever makes one vouches that `sums` holds those of the channels, the first of them in front, and that no other task
/// writes these gradients.
pub(super) struct Taps<'a> {
    pub context: &'a Context<'a>,
    /// Channels of the group, in and out.
    pub ics: Range<usize>,
    pub ocs: Range<usize>,
    pub group: usize,
    pub sums: *const f32,
}

/// The most taps of a kernel, and the most lanes.
const TAPS: usize = 25;
const LANES: usize = 16;
/// Taps in whole vectors.
const SQUARES: usize = 32;

impl Job for Taps<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { context, ics, ocs, group, sums } = self;
        let (plan, cut) = (context.plan, &context.cut);
        let [down, along] = plan.axes;
        let taps = down.taps * along.taps;
        let mut by_tap = [0.0f32; SQUARES * LANES];
        let mut by_channel = [0.0f32; SQUARES * LANES];
        // A whole vector is stored behind the last tap.
        let mut dense = [0.0f32; TAPS * LANES + SQUARES];
        for oc in ocs.clone() {
            for ic in ics.clone().step_by(S::LANES) {
                let count = S::LANES.min(ics.end - ic);
                let from = sums.wrapping_add((oc - ocs.start) * cut.sums_row + ic - ics.start);
                let to = by_tap.as_mut_ptr();
                let rows = Rows { from, plane: cut.sums_plane, across: along.points() };
                let mut halves = [[simd.zero(); MOST]; MOST];
                match (down.pairs, down.taps) {
                    (0, _) => down_to::<S, 0, 1>(simd, rows, &mut halves),
                    (1, _) => down_to::<S, 1, 3>(simd, rows, &mut halves),
                    (2, 3) => down_to::<S, 2, 3>(simd, rows, &mut halves),
                    (2, _) => down_to::<S, 2, 5>(simd, rows, &mut halves),
                    (_, 3) => down_to::<S, 3, 3>(simd, rows, &mut halves),
                    _ => down_to::<S, 3, 5>(simd, rows, &mut halves),
                }
                match (along.pairs, along.taps) {
                    (0, _) => along_to::<S, 0, 1>(simd, &halves, down.taps, to),
                    (1, _) => along_to::<S, 1, 3>(simd, &halves, down.taps, to),
                    (2, 3) => along_to::<S, 2, 3>(simd, &halves, down.taps, to),
                    (2, _) => along_to::<S, 2, 5>(simd, &halves, down.taps, to),
                    (_, 3) => along_to::<S, 3, 3>(simd, &halves, down.taps, to),
                    _ => along_to::<S, 3, 5>(simd, &halves, down.taps, to),
                }
                // SAFETY: all indices are below `SQUARES * LANES`, or `taps * LANES` and a vector; the gradients are the
                // maker's promise.
                unsafe {
                    for tap in (0..taps).step_by(S::LANES) {
                        let (from, to) = (by_tap.as_ptr().add(tap * S::LANES), by_channel.as_mut_ptr());
                        simd.transpose(from, S::LANES as isize, to.add(tap * S::LANES), S::LANES as isize);
                    }
                    for lane in 0..count {
                        for tap in (0..taps).step_by(S::LANES) {
                            let v = simd.load(by_channel.as_ptr().add((tap + lane) * S::LANES));
                            simd.store(dense.as_mut_ptr().add(lane * taps + tap), v);
                        }
                    }
                    let at = ((group * plan.group_out + oc) * plan.group_in + ic) * taps;
                    for i in (0..count * taps).step_by(S::LANES) {
                        let v = simd.load(dense.as_ptr().add(i));
                        simd.store_first(context.dw.add(at + i), count * taps - i, v);
                    }
                }
            }
        }
    }
}

/// The sums of a vector of channels.
#[derive(Clone, Copy)]
struct Rows {
    from: *const f32,
    /// From frequency to frequency.
    plane: usize,
    /// Frequencies along.
    across: usize,
}

/// Down the columns: `to[tap][frequency along]`.
#[inline(always)]
fn down_to<S: Simd, const PAIRS: usize, const TAPS: usize>(simd: S, rows: Rows, to: &mut [[S::F; MOST]; MOST]) {
    let points = if PAIRS == 0 { 1 } else { 2 * PAIRS + 2 };
    for q in 0..rows.across {
        let mut m = [simd.zero(); MOST];
        for p in 0..points {
            // SAFETY: the sums of every frequency are there.
            m[p] = unsafe { simd.load(rows.from.add((p * rows.across + q) * rows.plane)) };
        }
        let w = taps::<S, PAIRS, TAPS>(simd, &m);
        for tap in 0..TAPS {
            to[tap][q] = w[tap];
        }
    }
}

/// Along the rows: `to[tap][lane]`.
#[inline(always)]
fn along_to<S: Simd, const PAIRS: usize, const TAPS: usize>(
    simd: S,
    halves: &[[S::F; MOST]; MOST],
    rows: usize,
    to: *mut f32,
) {
    for row in 0..rows {
        let w = taps::<S, PAIRS, TAPS>(simd, &halves[row]);
        for tap in 0..TAPS {
            // SAFETY: there is room for every tap.
            unsafe { simd.store(to.add((row * TAPS + tap) * S::LANES), w[tap]) };
        }
    }
}
