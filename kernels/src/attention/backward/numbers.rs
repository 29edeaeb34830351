//! What is known of each row before it meets any key: the log-sum-exp, and D, the sum of `dout * out`.

use std::f32::consts::LOG2_E;

use super::layout::{ROW_NUMBERS, block_keys};
use super::{Backward, Unit};
use crate::attention::call::{QUERY_STRIDE, Rows};
use crate::attention::scores::{Seen, copy_query, fold_lanes, fold_rows};
use crate::attention::values::store_row;
use crate::simd::Simd;
use crate::simd::reduce::NARROW;

/// A log-sum-exp beyond this has lost what the sum of exponentials adds to the largest logit, so the sum is made again:
/// rows that are masked with the least float as a whole are means, as they are forward.
const LARGE: f32 = 256.0;

/// Rows whose sums are folded together.
const FOLDED: usize = 16;

impl Unit<'_> {
    /// Whether everything that is multiplied with weights is finite.
    ///
    /// # Safety
    /// - The contract of [`Backward`].
    #[inline(always)]
    pub(super) unsafe fn is_finite<S: Simd>(&self, simd: S) -> bool {
        let Backward { call, outputs, .. } = *self.task;
        let (spec, q_len) = (&call.spec, call.shape.q_len);
        // SAFETY: the rows of a head.
        let check = |rows: Rows<f32>, count: usize, dim: usize| unsafe { are_finite(simd, rows, count, dim) };
        let mut finite = check(call.k.head(self.batch, self.kv_head), self.length, spec.head_dim)
            && check(call.v.head(self.batch, self.kv_head), self.length, spec.v_dim);
        for head in self.first_head..self.first_head + spec.group() {
            finite = finite
                && check(call.q.head(self.batch, head), q_len, spec.head_dim)
                && check(outputs.dout.head(self.batch, head), q_len, spec.v_dim);
        }
        finite
    }

    /// For each row of a head: the log-sum-exp (as an exponent of 2 where scores are logits but for the scale), D, and
    /// the exponent of 2 that is to be taken off besides.
    #[inline(always)]
    pub(super) fn row_numbers(&self, head: usize, row: usize) -> *mut f32 {
        let Backward { call, layout, scratch, .. } = *self.task;
        scratch.wrapping_add(layout.rows + ROW_NUMBERS * ((head - self.first_head) * call.shape.q_len + row))
    }

    /// Clears the gradients of the queries, and computes D, a sum of 16 lanes.
    ///
    /// # Safety
    /// - The contract of [`Backward`].
    #[inline(always)]
    pub(super) unsafe fn start_head<S: Simd>(&self, simd: S, head: usize) {
        let Self { task, .. } = self;
        let (call, outputs) = (task.call, task.outputs);
        let spec = &call.spec;
        let (out, dout, dq) = (outputs.out.head(self.batch, head), outputs.dout.head(self.batch, head), self.dq(head));
        let mut first = 0;
        while first < call.shape.q_len {
            let count = FOLDED.min(call.shape.q_len - first);
            let mut lanes = [simd.zero(); FOLDED];
            let mut sums = [0.0f32; FOLDED];
            // SAFETY: the rows of a head.
            unsafe {
                for i in 0..count {
                    for at in (0..spec.head_dim).step_by(S::LANES) {
                        let lanes = S::LANES.min(spec.head_dim - at);
                        store_row(simd, dq.at(first + i, at).cast_mut(), 1, lanes, simd.zero());
                    }
                    lanes[i] = self.dot(simd, out, dout, first + i);
                }
                fold_rows::<S, false, FOLDED>(simd, &lanes, sums.as_mut_ptr());
                for i in 0..count {
                    let row = first + i;
                    let lse = *outputs.lse.add((self.batch * spec.heads + head) * outputs.lse_stride + row);
                    let numbers = self.row_numbers(head, row);
                    // A row without keys has no weights.
                    let factor = if self.plain { LOG2_E } else { 1.0 };
                    *numbers = if lse == f32::NEG_INFINITY { f32::INFINITY } else { lse * factor };
                    *numbers.add(1) = sums[i];
                    let lost = !self.plain && lse.is_finite() && lse.abs() > LARGE;
                    *numbers.add(2) = if lost { self.lost(simd, head, row, lse) } else { 0.0 };
                }
            }
            first += FOLDED;
        }
    }

    /// The products of a row of `a` and a row of `b`, summed in 16 lanes and folded to one vector.
    ///
    /// # Safety
    /// - They are the outputs of a head and their gradients.
    #[inline(always)]
    unsafe fn dot<S: Simd>(&self, simd: S, a: Rows<f32>, b: Rows<f32>, row: usize) -> S::F {
        let (layout, dim) = (self.task.layout, self.task.call.spec.v_dim);
        let (mut x, mut y) = (a.at(row, 0), b.at(row, 0));
        let vectors = 16 / S::LANES;
        let mut lanes = [simd.zero(); NARROW];
        // SAFETY: the caller's contract; two rows of queries hold what has to be gathered, padded with zeros.
        unsafe {
            if a.step != 1 || b.step != 1 || !dim.is_multiple_of(16) {
                let queries = self.task.scratch.add(layout.queries);
                copy_query(simd, x, a.step, dim, queries);
                copy_query(simd, y, b.step, dim, queries.add(QUERY_STRIDE));
                (x, y) = (queries.cast_const(), queries.add(QUERY_STRIDE).cast_const());
            }
            for at in (0..dim).step_by(16) {
                for v in 0..vectors {
                    let place = at + v * S::LANES;
                    lanes[v] = simd.fma(simd.load(x.add(place)), simd.load(y.add(place)), lanes[v]);
                }
            }
        }
        fold_lanes(simd, lanes)
    }

    /// The sum of `exp(logit - lse)` of a row as an exponent of 2: 0 but for rounding, unless that is all that is left.
    ///
    /// # Safety
    /// - The contract of [`Backward`].
    unsafe fn lost<S: Simd>(&self, simd: S, head: usize, row: usize, lse: f32) -> f32 {
        let Backward { call, scratch, .. } = *self.task;
        let spec = &call.spec;
        let (q, k) = (call.q.head(self.batch, head), call.k.head(self.batch, self.kv_head));
        let visible = spec.visible_keys(row, call.shape.q_len, self.length);
        let block = block_keys(spec);
        let mut sum = 0.0f32;
        // SAFETY: the rows of a head; the scratch memory has room for a row of scores.
        unsafe {
            if let Some(sinks) = call.extras.sinks {
                sum += (*sinks.add(head) - lse).exp();
            }
            let mut start = visible.start / block * block;
            while start < visible.end {
                let seen =
                    Seen { first: visible.start.max(start) - start, end: visible.end.min(start + block) - start };
                for key in 0..seen.end {
                    let mut score = 0.0f32;
                    for d in 0..spec.head_dim {
                        score += *q.at(row, d) * *k.at(start + key, d);
                    }
                    *scratch.add(key) = score;
                }
                let end = seen.end.next_multiple_of(16);
                for key in seen.end..end {
                    *scratch.add(key) = 0.0;
                }
                self.transform(head, row, start, seen).run(simd, scratch, 0, end);
                for key in seen.first..seen.end {
                    sum += (*scratch.add(key) - lse).exp();
                }
                start += block;
            }
        }
        sum.log2()
    }
}

/// Whether all elements of `count` rows are finite.
///
/// # Safety
/// - They are readable.
#[inline(always)]
unsafe fn are_finite<S: Simd>(simd: S, rows: Rows<f32>, count: usize, dim: usize) -> bool {
    let mut finite = simd.eq(simd.zero(), simd.zero());
    for row in 0..count {
        // SAFETY: the caller's contract.
        unsafe {
            if rows.step == 1 {
                for at in (0..dim).step_by(S::LANES) {
                    let x = simd.load_first(rows.at(row, at), dim - at);
                    finite = simd.and(finite, simd.eq(simd.sub(x, x), simd.zero()));
                }
            } else if !(0..dim).all(|d| (*rows.at(row, d)).is_finite()) {
                return false;
            }
        }
    }
    simd.bits(finite).count_ones() as usize == S::LANES
}
