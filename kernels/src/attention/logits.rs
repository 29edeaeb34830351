//! What makes a score a logit where more than a positive scale is asked for: scale, softcap, bias, ALiBi, masks.

use super::call::Extras;
use super::scores::{MAX_LANES, Seen, seen_lanes};
use crate::simd::{Simd, math};

/// Turns stored scores into logits where more than a positive scale is asked for: scale, softcap, bias, ALiBi, masks.
pub(super) struct Transform<'a> {
    pub scale: f32,
    pub softcap: Option<f32>,
    pub extras: &'a Extras,
    pub batch: usize,
    pub head: usize,
    /// The row of queries.
    pub row: usize,
    /// Its position among the keys.
    pub position: isize,
    /// The first key of the block.
    pub first_key: usize,
    /// What the row sees, in keys of the block.
    pub seen: Seen,
}

impl Transform<'_> {
    /// Transforms the scores `at..end`, a multiple of the lanes apart, in place. Returns lanes of maxima.
    ///
    /// # Safety
    /// - The scores are readable and writable; bias and mask hold the pairs of `seen`.
    #[inline(always)]
    pub unsafe fn run<S: Simd>(&self, simd: S, scores: *mut f32, at: usize, end: usize) -> S::F {
        let hidden = simd.splat(f32::NEG_INFINITY);
        let mut maxima = hidden;
        let slope = match self.extras.alibi {
            // SAFETY: there is a slope for each head.
            Some(slopes) => unsafe { *slopes.add(self.head) },
            None => 0.0,
        };
        let mut at = at;
        while at < end {
            // SAFETY: the contract; lanes outside of `seen` are not read from bias and mask.
            unsafe {
                let mut lanes = seen_lanes(simd, self.seen, at);
                let mut x = simd.mul(simd.load(scores.add(at)), simd.splat(self.scale));
                if let Some(cap) = self.softcap {
                    let tanh = math::tanh(simd, simd.div(x, simd.splat(cap)));
                    x = simd.mul(simd.splat(cap), tanh);
                }
                let bits = simd.bits(lanes);
                if let Some(bias) = &self.extras.bias {
                    let row = bias.head(self.batch, self.head);
                    let start = row.at(self.row, self.first_key + at);
                    let added = if row.step == 1 {
                        simd.load_masked(start, lanes)
                    } else {
                        let mut buffer = [0.0f32; MAX_LANES];
                        for l in 0..S::LANES {
                            if bits >> l & 1 == 1 {
                                buffer[l] = *start.offset(l as isize * row.step);
                            }
                        }
                        simd.load(buffer.as_ptr())
                    };
                    // A bias of -infinity hides as a mask does: a NaN plus -infinity would not.
                    lanes = simd.and(lanes, simd.not(simd.eq(added, hidden)));
                    x = simd.add(x, added);
                }
                if self.extras.alibi.is_some() {
                    let first = self.position.saturating_sub((self.first_key + at) as isize);
                    let distance = simd.sub(simd.splat(first as f32), simd.load(LANE_NUMBERS.as_ptr()));
                    let distance = simd.max(distance, simd.sub(simd.zero(), distance));
                    x = simd.fma(simd.splat(-slope), distance, x);
                }
                if let Some(keep) = &self.extras.keep {
                    let row = keep.head(self.batch, self.head);
                    let start = row.at(self.row, self.first_key + at);
                    let mut buffer = [0.0f32; MAX_LANES];
                    for l in 0..S::LANES {
                        if bits >> l & 1 == 1 && *start.offset(l as isize * row.step) {
                            buffer[l] = 1.0;
                        }
                    }
                    let kept = simd.eq(simd.load(buffer.as_ptr()), simd.splat(1.0));
                    lanes = simd.and(lanes, kept);
                }
                x = simd.select(lanes, x, hidden);
                simd.store(scores.add(at), x);
                maxima = simd.max(maxima, x);
            }
            at += S::LANES;
        }
        maxima
    }
}

static LANE_NUMBERS: [f32; MAX_LANES] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];
