//! A tile of rows meets a block of keys: scores, exponentials, sums of values.
//!
//! ```text
//! scores      = q k^T                                      row maxima on the way
//! p           = exp2((scores - maximum) factor)            in place, sums of 16 lanes a row
//! sums        = rescale sums + p v                         in the tile's last block times 1 / sum of p, to the output
//! ```

use std::mem::MaybeUninit;

use super::ahead::Ahead;
use super::call::{MAX_BLOCK, MR, Rows, SCORE_STRIDE};
use super::dots::DotTile;
use super::dropout::{DropoutRow, mask_row};
use super::forward::{Forward, Tile, Unit};
use super::logits::Transform;
use super::rows::by_rows;
use super::scores::{Exponentials, MAX_LANES, ScoreTile, Seen, TileSeen, first_score, fold_lanes, fold_rows};
use super::values::{Hidden, ScoreRows, SumEnds, ValueTile, value_tile};
use crate::simd::reduce::NARROW;
use crate::simd::{Simd, math};

/// A block of keys as a tile meets it.
pub(super) struct Block {
    pub start: usize,
    /// Keys that are packed, or readable at `k`.
    pub keys: usize,
    /// Keys that lie together: fewer than a block where `k` and `v` are the first of several pages.
    pub step: usize,
    pub k: Rows<f32>,
    pub v: Rows<f32>,
    /// The tile sees nothing before this block.
    pub first: bool,
    /// The tile sees nothing after this block.
    pub last: bool,
    /// Keys of the sequence.
    pub length: usize,
    pub careful: bool,
}

impl Unit<'_> {
    /// Keys and values from key `at` of a block on, as far as they lie together.
    ///
    /// # Safety
    /// - The key is in the block, and `at` a multiple of its step.
    #[inline(always)]
    unsafe fn page(&self, block: &Block, at: usize) -> (Rows<f32>, Rows<f32>) {
        if at == 0 {
            return (block.k, block.v);
        }
        let Forward { call, .. } = *self.task;
        let (place, keys) = ([self.batch, self.kv_head], [block.start + at, block.step, block.step]);
        let nowhere = std::ptr::null_mut();
        // SAFETY: the caller's contract; short pages have rows of neighbouring elements and need no copy.
        unsafe {
            let k = call.rows(&call.k, place, keys, call.spec.head_dim, nowhere, false);
            (k, call.rows(&call.v, place, keys, call.spec.v_dim, nowhere, false))
        }
    }

    /// One tile of rows and one block of keys. Returns whether finished sums are finite.
    ///
    /// # Safety
    /// - The tile has been started; the block is packed, and some row sees some of it.
    #[inline(always)]
    pub(super) unsafe fn meet<S: Simd>(
        &self,
        simd: S,
        tile: &Tile,
        seen: &TileSeen,
        block: &Block,
        ahead: &mut Ahead,
    ) -> bool {
        let Forward { call, layout, scratch, cut, .. } = *self.task;
        let spec = &call.spec;
        let (dim, rows) = (spec.head_dim, tile.count);
        let few = cut.key_pieces > 0;
        let plain = !few && call.plain();
        // SAFETY: the scratch memory is laid out for this; the job contracts hold for a packed block.
        unsafe {
            let scores = scratch;
            let state = self.state(tile);
            let q = if few { self.copied(simd, tile) } else { self.queries(simd, tile) };
            let packed = scratch.add(layout.packed);
            let mut maxima = [f32::NEG_INFINITY; 16];
            let (at, end) = (first_score(simd, seen), seen.outer.end.next_multiple_of(S::LANES));
            let (keys, maxima_at) = (block.keys, maxima.as_mut_ptr());
            let job: ScoreTile<'_, MR, false, SCORE_STRIDE> =
                ScoreTile { q, packed, dim, keys, seen, scores, maxima: maxima_at, ahead };
            let factor = if plain {
                by_rows(simd, rows, job.masked());
                spec.scale * std::f32::consts::LOG2_E
            } else {
                if few {
                    let mut at = 0;
                    while at < keys {
                        let keys = block.step.min(keys - at);
                        let (k, v) = self.page(block, at);
                        let (q, scores) = (q.start, scores.add(at));
                        by_rows(simd, rows, DotTile { q, k, v, dim, v_dim: spec.v_dim, keys, scores });
                        at += block.step;
                    }
                } else {
                    by_rows(simd, rows, job);
                }
                let mut lanes = [simd.splat(f32::NEG_INFINITY); MR];
                for i in 0..rows {
                    let (head, row) = tile.places[i];
                    let transform = Transform {
                        scale: spec.scale,
                        softcap: spec.softcap,
                        extras: &call.extras,
                        batch: self.batch,
                        head,
                        row,
                        position: row as isize + spec.offset(call.shape.q_len, block.length),
                        first_key: block.start,
                        seen: seen.rows[i],
                    };
                    lanes[i] = transform.run(simd, scores.add(i * SCORE_STRIDE), at, end);
                }
                fold_rows::<S, true, MR>(simd, &lanes, maxima_at);
                std::f32::consts::LOG2_E
            };

            // New maxima, and what the sums so far are worth next to them.
            let mut shifts = [0.0f32; 16];
            let mut rescale = [1.0f32; 16];
            let fresh = block.first && !few && call.extras.sinks.is_none();
            let mut lane = 0;
            while lane < rows {
                let mut new = simd.load(maxima.as_ptr().add(lane));
                let old = simd.load(state.add(lane));
                if !fresh {
                    new = simd.max(new, old);
                }
                let nothing = simd.eq(new, simd.splat(f32::NEG_INFINITY));
                let shift = simd.select(nothing, simd.zero(), new);
                simd.store(state.add(lane), new);
                simd.store(shifts.as_mut_ptr().add(lane), shift);
                if !fresh {
                    let change = simd.mul(simd.sub(old, shift), simd.splat(factor));
                    simd.store(rescale.as_mut_ptr().add(lane), math::exp2_nonpositive(simd, change));
                }
                lane += S::LANES;
            }
            let sums = state.add(16);
            let exponentials = Exponentials { scores, rows, at, end, factor, shifts, rescale, sums, fresh };
            let mut hidden = [const { Hidden::NONE }; MR];
            if block.careful {
                for i in 0..rows {
                    hidden[i] = Hidden::find(scores.add(i * SCORE_STRIDE), at, end);
                }
            }
            simd.call(exponentials);
            if let Some(dropout) = &call.dropout {
                for i in 0..rows {
                    let (head, row) = tile.places[i];
                    let (place, first_key) = ([self.batch, head, row], block.start);
                    // Those that stay are divided with the sums, in the end.
                    let mut factors = MaybeUninit::<[f32; MAX_BLOCK]>::uninit();
                    let factors = factors.as_mut_ptr().cast();
                    simd.call(DropoutRow { dropout, place, first_key, at, end, kept: 1.0, factors });
                    mask_row(simd, scores.add(i * SCORE_STRIDE), factors, at, end);
                }
            }
            if block.careful {
                for i in 0..rows {
                    hidden[i].mark(scores.add(i * SCORE_STRIDE), at, end);
                }
            }

            let sums = self.sums.add(tile.index * MR * layout.stride);
            let from = if block.first { std::ptr::null() } else { sums.cast_const() };
            let mut ends = SumEnds { from, rescale: [1.0; MR], sums, stride: layout.stride as isize, out: None };
            ends.rescale[..rows].copy_from_slice(&rescale[..rows]);
            if block.last && !few {
                let mut totals = [0.0f32; 16];
                fold_sums(simd, state, &mut totals);
                let scale = if plain { spec.scale } else { 1.0 };
                ends.out = Some(self.outputs_of(simd, tile, (state, &totals), scale, call.stays()));
            }
            let mut finite = true;
            let mut at = seen.outer.first / block.step * block.step;
            while at < seen.outer.end {
                let part = Seen { first: seen.outer.first.max(at) - at, end: seen.outer.end.min(at + block.step) - at };
                let job = ValueTile {
                    weights: ScoreRows::<SCORE_STRIDE>(scores.add(at)),
                    values: self.page(block, at).1,
                    seen: part,
                    dim: spec.v_dim,
                    ends,
                    careful: block.careful,
                    ahead,
                };
                finite = value_tile(simd, rows, job);
                // Later pages go on where the first has stopped.
                (ends.from, ends.rescale) = (sums, [1.0; MR]);
                at += block.step;
            }
            finite && !(few && block.last && !are_finite(sums, rows, layout.stride, spec.v_dim))
        }
    }
}

/// Whether the first `count` elements of each row are finite.
///
/// # Safety
/// - `rows` rows are readable, `stride` apart.
#[inline(always)]
unsafe fn are_finite(start: *const f32, rows: usize, stride: usize, count: usize) -> bool {
    let mut finite = true;
    for i in 0..rows {
        for c in 0..count {
            // SAFETY: the caller's contract.
            finite &= unsafe { *start.add(i * stride + c) }.is_finite();
        }
    }
    finite
}

/// The sums of the rows of a tile, each folded from its 16 lanes in halves.
///
/// # Safety
/// - `state` is that of a tile.
#[inline(always)]
pub(super) unsafe fn fold_sums<S: Simd>(simd: S, state: *const f32, totals: &mut [f32; 16]) {
    let mut rows = [simd.zero(); MR];
    for i in 0..MR {
        let mut lanes = [simd.zero(); NARROW];
        for v in 0..MAX_LANES / S::LANES {
            // SAFETY: the caller's contract.
            lanes[v] = unsafe { simd.load(state.add(16 + i * 16 + v * S::LANES)) };
        }
        rows[i] = fold_lanes(simd, lanes);
    }
    // SAFETY: there is room for 16.
    unsafe { fold_rows::<S, false, MR>(simd, &rows, totals.as_mut_ptr()) };
}
