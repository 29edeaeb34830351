//! What becomes of complete sums: pieces are added, and rows written, transposed, as gradients.

use std::ops::Range;

use super::{Context, MERGED_ROWS};
use crate::simd::{Job, Simd};

/// Writes rows of sums, transposed, as gradients.
///
/// # Safety
/// - `sums` holds the rows of the channels, `cut.pitch` apart; nobody else writes these gradients.
#[inline(always)]
pub(super) unsafe fn write<S: Simd>(
    simd: S,
    context: &Context<'_>,
    group: usize,
    rows: Range<usize>,
    channels: Range<usize>,
    sums: *const f32,
) {
    let (plan, cut) = (context.plan, &context.cut);
    let all_rows = plan.group_in() * plan.taps();
    let start = (group * plan.group_out() + channels.start) * all_rows + rows.start;
    for row in (0..rows.len()).step_by(S::LANES) {
        let height = S::LANES.min(rows.len() - row);
        for channel in (0..channels.len()).step_by(S::LANES) {
            let width = S::LANES.min(channels.len() - channel);
            // SAFETY: the caller's contract; whole squares are inside of both.
            unsafe {
                let from = sums.add(row * cut.pitch + channel);
                let to = context.dw.add(start + channel * all_rows + row);
                if height == S::LANES && width == S::LANES {
                    simd.transpose(from, cut.pitch as isize, to, all_rows as isize);
                    continue;
                }
                for i in 0..width {
                    for j in 0..height {
                        *to.add(i * all_rows + j) = *from.add(j * cut.pitch + i);
                    }
                }
            }
        }
    }
}

/// Adds the pieces' sums of some rows, then writes them.
pub(super) struct Merge<'a> {
    pub context: &'a Context<'a>,
    pub group: usize,
    pub block: usize,
}

impl Job for Merge<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Merge { context, group, block } = self;
        let (plan, cut) = (context.plan, &context.cut);
        let all_rows = plan.group_in() * plan.taps();
        let rows = block * MERGED_ROWS..all_rows.min((block + 1) * MERGED_ROWS);
        let len = rows.len() * cut.pitch;
        let piece = |piece: usize| {
            let at = (group * cut.pieces + piece) * cut.piece_len + rows.start * cut.pitch;
            context.sums.wrapping_add(at)
        };
        let mut distance = 1;
        while distance < cut.pieces {
            for first in (0..cut.pieces - distance).step_by(2 * distance) {
                let (to, from) = (piece(first), piece(first + distance));
                let mut at = 0;
                while at < len {
                    // SAFETY: both pieces hold these rows, which are whole lines, so whole vectors.
                    unsafe {
                        let sum = simd.add(simd.load(to.add(at)), simd.load(from.add(at)));
                        simd.store(to.add(at), sum);
                    }
                    at += S::LANES;
                }
            }
            distance *= 2;
        }
        // SAFETY: the sums are complete, and these rows are this task's.
        unsafe { write(simd, context, group, rows.clone(), 0..plan.group_out(), piece(0)) };
    }
}
