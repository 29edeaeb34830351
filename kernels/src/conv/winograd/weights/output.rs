//! The last transform: sums to `Gᵀ u G`, the gradients of the weights.
//!
//! ```text
//! sums[frequency][out channel][in channel] ──► for each out channel, each vector of in channels:
//!     down the columns:   n rows ──► rows of taps
//!     along the rows:     n columns ──► taps          ──► [tap][channel], transposed ──► dw[oc][ic][tap]
//! ```

use std::marker::PhantomData;
use std::ops::Range;

use super::super::axis::Axis;
use super::super::points::MOST;
use super::super::scheme::{Scheme, Visit, with_forward};
use super::Context;
use crate::simd::{Job, Simd};

/// Writes the gradients of some channels from their sums.
///
/// Whoever makes one vouches that `sums` holds those of the channels, the first of them in front, and that no other
/// task writes these gradients.
pub(super) struct Taps<'a> {
    pub context: &'a Context<'a>,
    /// Channels of the group, in and out.
    pub ics: Range<usize>,
    pub ocs: Range<usize>,
    pub group: usize,
    pub sums: *const f32,
}

/// The most taps of a kernel, 7 along an axis that has a tile, and the most lanes.
const TAPS: usize = 7 * MOST;
const LANES: usize = 16;
/// Taps in whole vectors.
const SQUARES: usize = TAPS.next_multiple_of(LANES);

impl Job for Taps<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { context, ics, ocs, group, sums } = self;
        let (plan, cut) = (context.plan, &context.cut);
        let [down, along] = plan.axes;
        let taps = down.taps * along.taps;
        debug_assert!(taps <= TAPS && S::LANES <= LANES);
        let mut halves = [0.0f32; MOST * MOST * LANES];
        let mut by_tap = [0.0f32; SQUARES * LANES];
        let mut by_channel = [0.0f32; SQUARES * LANES];
        // A whole vector is stored behind the last tap.
        let mut dense = [0.0f32; TAPS * LANES + SQUARES];
        for oc in ocs.clone() {
            for ic in ics.clone().step_by(S::LANES) {
                let count = S::LANES.min(ics.end - ic);
                let from = sums.wrapping_add((oc - ocs.start) * cut.sums_row + ic - ics.start);
                // Rows of frequencies to rows of taps, then frequencies to taps in each row.
                let (points, plane) = (along.points(), cut.sums_plane);
                let columns = Lines { from, step: points * plane, next: plane, lines: points };
                let to = halves.as_mut_ptr();
                columns.transform(simd, down, to, points * S::LANES, S::LANES);
                let rows = Lines { from: to, step: S::LANES, next: points * S::LANES, lines: down.taps };
                rows.transform(simd, along, by_tap.as_mut_ptr(), S::LANES, along.taps * S::LANES);
                // SAFETY: all indices are below `SQUARES * LANES`, or `taps * LANES` and a vector; the gradients are
                // the maker's promise.
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

/// Rows or columns of sums of a vector of channels.
#[derive(Clone, Copy)]
struct Lines {
    from: *const f32,
    /// From sum to sum of a line, and from line to line.
    step: usize,
    next: usize,
    lines: usize,
}

impl Lines {
    /// `Gᵀ` of each line, whose taps are stored `step` apart, and lines `next`.
    #[inline(always)]
    fn transform<S: Simd>(self, simd: S, axis: Axis, to: *mut f32, step: usize, next: usize) {
        with_forward(axis, Call(simd, (self, to, [step, next])));
    }
}

/// Lines, where their taps go, and the distances of those.
type Task = (Lines, *mut f32, [usize; 2]);

/// Calls the pass of a scheme.
struct Call<S>(S, Task);

impl<S: Simd> Visit for Call<S> {
    type Output = ();

    #[inline(always)]
    fn visit<A: Scheme>(self) {
        self.0.call(Pass::<A>(self.1, PhantomData));
    }
}

/// `Gᵀ` of some lines with one scheme, in a function of its own.
struct Pass<A>(Task, PhantomData<A>);

impl<A: Scheme> Job for Pass<A> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (lines, to, [step, next]) = self.0;
        for line in 0..lines.lines {
            // SAFETY: the sums of every frequency are there, and room for every tap.
            unsafe {
                let from = lines.from.add(line * lines.next);
                let mut m = [simd.zero(); MOST];
                for p in 0..A::POINTS {
                    m[p] = simd.load(from.add(p * lines.step));
                }
                let w = A::taps(simd, &m);
                for tap in 0..A::TAPS {
                    simd.store(to.add(line * next + tap * step), w[tap]);
                }
            }
        }
    }
}
