//! A tile of rows meets a block of keys: weights, and the gradients of their scores.
//!
//! ```text
//! p = exp(s - lse) exp2(-lost), plain: exp2(factor s - lse)      ds = p (dp - D) scale slope
//! ```

use std::f32::consts::LOG2_E;
use std::mem::MaybeUninit;

use super::layout::{MAX_KEYS, ROW_NUMBERS, STRIDE};
use super::{Backward, KeyBlock, RowBlock, Unit};
use crate::attention::ahead::Ahead;
use crate::attention::call::{MAX_BLOCK, MAX_PANEL, MR, Rows};
use crate::attention::dropout::{DropoutRow, mask_row};
use crate::attention::logits::Transform;
use crate::attention::rows::by_rows;
use crate::attention::scores::{ScoreTile, Seen, TileSeen, first_score, seen_lanes};
use crate::attention::values::HIDDEN;
use crate::gemm::lhs::ContiguousRows;
use crate::simd::{Job, Simd, math};

impl<'a> Unit<'a> {
    /// Scores of a row become logits.
    #[inline(always)]
    pub(super) fn transform(&self, head: usize, row: usize, first_key: usize, seen: Seen) -> Transform<'a> {
        let call = self.task.call;
        Transform {
            scale: call.spec.scale,
            softcap: call.spec.softcap,
            extras: &call.extras,
            batch: self.batch,
            head,
            row,
            position: row as isize + call.spec.offset(call.shape.q_len, self.length),
            first_key,
            seen,
        }
    }

    /// Weights, and gradients of scores, of a tile.
    ///
    /// # Safety
    /// - The contract of [`Backward`]; the block is packed.
    #[inline(always)]
    pub(super) unsafe fn tile<S: Simd>(
        &self,
        simd: S,
        block: &KeyBlock,
        rows: &RowBlock,
        tile: usize,
        seen: &TileSeen,
        ahead: &mut Ahead,
    ) {
        let Backward { call, layout, scratch, outputs, .. } = *self.task;
        let spec = &call.spec;
        let (row, count) = (rows.tiles.start(tile), rows.tiles.start(tile + 1) - rows.tiles.start(tile));
        let local = row - rows.first_row;
        // SAFETY: the rows of a head, a packed block, scratch memory laid out for both.
        unsafe {
            let weights = scratch.add(local * STRIDE);
            let gradients = scratch.add(layout.gradients + local * STRIDE);
            let width = block.keys.next_multiple_of(16);
            let (at, end) = (first_score(simd, seen), seen.outer.end.next_multiple_of(16));
            {
                let mut maxima = [0.0f32; 16];
                let keys = block.keys;
                let in_place = |of: &Rows<f32>| ContiguousRows { start: of.at(local, 0), row_stride: of.row_stride };
                let (dim, packed, scores, to) =
                    (spec.head_dim, scratch.add(layout.packed_k), weights, maxima.as_mut_ptr());
                let q = in_place(&rows.q);
                let job = ScoreTile::<MR, false, STRIDE> { q, packed, dim, keys, seen, scores, maxima: to, ahead };
                by_rows(simd, count, job);
                let (dim, packed, scores) = (spec.v_dim, scratch.add(layout.packed_v), gradients);
                let q = in_place(&rows.dout);
                let job = ScoreTile::<MR, false, STRIDE> { q, packed, dim, keys, seen, scores, maxima: to, ahead };
                by_rows(simd, count, job);
            }
            // Tiles of keys that this tile sees in part reach a few keys further, whose weights count as zeros. Marked
            // after the scores, which are stored by whole vectors.
            let hidden = simd.splat(f32::from_bits(HIDDEN));
            for i in 0..count {
                for start in [weights, gradients] {
                    let start = start.add(i * STRIDE);
                    for from in (at.saturating_sub(16)..at).chain(end..width.min(end + 16)).step_by(S::LANES) {
                        simd.store(start.add(from), hidden);
                    }
                }
            }
            if self.plain && call.dropout.is_none() && outputs.dbias.is_none() {
                let numbers = self.row_numbers(rows.head, row);
                let (factor, scale) = (spec.scale * LOG2_E, spec.scale);
                simd.call(PlainTile { weights, gradients, numbers, count, at, end, seen, factor, scale });
                return;
            }
            for i in 0..count {
                let numbers = self.row_numbers(rows.head, row + i);
                let (weights, gradients) = (weights.add(i * STRIDE), gradients.add(i * STRIDE));
                let mut slopes = std::ptr::null_mut();
                if !self.plain {
                    if let Some(cap) = spec.softcap {
                        slopes = scratch.add(layout.slopes);
                        softcap_slopes(simd, weights, [at, end], spec.scale / cap, slopes);
                    }
                    self.transform(rows.head, row + i, block.start, seen.rows[i]).run(simd, weights, at, end);
                }
                let job = RowGradients {
                    weights,
                    gradients,
                    slopes,
                    at,
                    end,
                    seen: seen.rows[i],
                    factor: spec.scale * LOG2_E,
                    lse: *numbers,
                    mean: *numbers.add(1),
                    lost: *numbers.add(2),
                    scale: spec.scale,
                };
                let mut factors = MaybeUninit::<[f32; MAX_BLOCK]>::uninit();
                let factors = factors.as_mut_ptr().cast();
                if let Some(dropout) = &call.dropout {
                    let (place, first_key) = ([self.batch, rows.head, row + i], block.start);
                    let kept = dropout.factor() as f32;
                    simd.call(DropoutRow { dropout, place, first_key, at, end, kept, factors });
                    mask_row(simd, gradients, factors, at, end);
                }
                if let Some(dbias) = &outputs.dbias {
                    // The gradient of the logits themselves, before scale and slopes.
                    let mut logits = [0.0f32; MAX_KEYS + MAX_PANEL];
                    std::ptr::copy_nonoverlapping(gradients.add(at), logits.as_mut_ptr().add(at), end - at);
                    let mut kept = [0.0f32; MAX_KEYS + MAX_PANEL];
                    std::ptr::copy_nonoverlapping(weights.add(at), kept.as_mut_ptr().add(at), end - at);
                    let (weights, gradients) = (kept.as_mut_ptr(), logits.as_mut_ptr());
                    let slopes = std::ptr::null_mut();
                    let unscaled = RowGradients { weights, gradients, slopes, scale: 1.0, ..job };
                    simd.call(unscaled);
                    let dbias = dbias.head(self.batch, rows.head);
                    for key in seen.rows[i].first..seen.rows[i].end {
                        if logits[key].to_bits() != HIDDEN {
                            *dbias.at(row + i, block.start + key).cast_mut() += logits[key];
                        }
                    }
                }
                if self.plain {
                    simd.call(PlainGradients(job));
                } else {
                    simd.call(job);
                }
                if call.dropout.is_some() {
                    mask_row(simd, weights, factors, at, end);
                }
            }
        }
    }
}

/// `1 - tanh(score * factor)^2` over `at..end`.
///
/// # Safety
/// - Scores are readable, slopes writable, up to `end`, a multiple of 16.
#[inline(always)]
unsafe fn softcap_slopes<S: Simd>(simd: S, scores: *const f32, [at, end]: [usize; 2], factor: f32, slopes: *mut f32) {
    for at in (at..end).step_by(S::LANES) {
        // SAFETY: the caller's contract.
        unsafe {
            let tanh = math::tanh(simd, simd.mul(simd.load(scores.add(at)), simd.splat(factor)));
            let slope = simd.fma(simd.sub(simd.zero(), tanh), tanh, simd.splat(1.0));
            simd.store(slopes.add(at), slope);
        }
    }
}

/// Scores become weights, and gradients of weights those of scores, in place.
///
/// Whoever makes one vouches that all rows are readable and writable up to `end`, a multiple of 16 like `at`.
#[derive(Clone, Copy)]
struct RowGradients {
    weights: *mut f32,
    gradients: *mut f32,
    /// Null for slopes of 1.
    slopes: *mut f32,
    at: usize,
    end: usize,
    seen: Seen,
    factor: f32,
    lse: f32,
    mean: f32,
    lost: f32,
    scale: f32,
}

impl Job for RowGradients {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.each::<S, false>(simd);
    }
}

/// Where scores are logits but for the scale.
struct PlainGradients(RowGradients);

impl Job for PlainGradients {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.0.each::<S, true>(simd);
    }
}

/// The rows of a tile whose scores are logits but for the scale.
///
/// Whoever makes one vouches for [`RowGradients`] of each row, and that there are numbers for each.
struct PlainTile<'a> {
    weights: *mut f32,
    gradients: *mut f32,
    numbers: *const f32,
    count: usize,
    at: usize,
    end: usize,
    seen: &'a TileSeen,
    factor: f32,
    scale: f32,
}

impl Job for PlainTile<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { weights, gradients, numbers, count, at, end, seen, factor, scale } = self;
        for i in 0..count {
            // SAFETY: the job's contract.
            let row = unsafe {
                let (weights, gradients) = (weights.add(i * STRIDE), gradients.add(i * STRIDE));
                let numbers = numbers.add(ROW_NUMBERS * i);
                let (lse, mean, slopes) = (*numbers, *numbers.add(1), std::ptr::null_mut());
                let seen = seen.rows[i];
                RowGradients { weights, gradients, slopes, at, end, seen, factor, lse, mean, lost: 0.0, scale }
            };
            row.each::<S, true>(simd);
        }
    }
}

impl RowGradients {
    #[inline(always)]
    fn each<S: Simd, const PLAIN: bool>(self, simd: S) {
        let Self { weights, gradients, slopes, at, end, seen, factor, lse, mean, lost, scale } = self;
        let (one, lost) = (simd.splat(LOG2_E), simd.splat(-lost));
        let (factor, mean, scale) = (simd.splat(factor), simd.splat(mean), simd.splat(scale));
        let (lse, hidden) = (simd.splat(-lse), simd.splat(f32::from_bits(HIDDEN)));
        let nothing = simd.splat(f32::NEG_INFINITY);
        for at in (at..end).step_by(S::LANES) {
            // SAFETY: the job's contract.
            unsafe {
                let score = simd.load(weights.add(at));
                let lanes = simd.and(seen_lanes(simd, seen, at), simd.not(simd.eq(score, nothing)));
                let x = if PLAIN {
                    simd.fma(score, factor, lse)
                } else {
                    // The difference first: both may be so large that a factor of 1.44 is too much.
                    simd.fma(simd.add(score, lse), one, lost)
                };
                let p = math::exp2_nonpositive(simd, x);
                let mut gradient = simd.mul(simd.mul(p, simd.sub(simd.load(gradients.add(at)), mean)), scale);
                if !slopes.is_null() {
                    gradient = simd.mul(gradient, simd.load(slopes.add(at)));
                }
                simd.store(weights.add(at), simd.select(lanes, p, hidden));
                simd.store(gradients.add(at), simd.select(lanes, gradient, hidden));
            }
        }
    }
}
