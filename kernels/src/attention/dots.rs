//! Scores of few rows: each key is read once, where it lies, and met by all rows.
//!
//! ```text
//! key    ──► d0..d15 | d16..d31 | ...          a vector of the key, then of each row's query: sums of 16 lanes a row,
//! rows   ──► d0..d15 | d16..d31 | ...          folded for eight keys at a time
//! ```

use super::call::{MR, QUERY_STRIDE, Rows, SCORE_STRIDE};
use super::rows::OfRows;
use super::scores::{MAX_LANES, fold_lanes, fold_rows};
use crate::simd::reduce::NARROW;
use crate::simd::{Job, Simd};

/// Scores of `M` queries where there are too few for packing keys to pay: the dimensions lie in the lanes.
///
/// Each score is a sum of 16 lanes, folded in halves. While keys come, the values of the same block are asked for. Keys
/// that follow each other in memory the hardware foresees, and better: a core waits for some 24 lines that it asked for
/// itself, and for more of the others (4096 keys of 32 heads with AVX2 on Zen 4: 1.2 times as fast). Keys of the next
/// block are asked for where they lie apart (8 heads of keys side by side: 1.3 times).
///
/// Whoever makes one vouches that
/// - `q` has `M` rows of queries, `QUERY_STRIDE` apart, padded with zeros to 16; `keys` rows of neighbouring elements
///   are readable at `k`;
/// - `M` rows of scores have room for `keys` rounded up to 16.
pub(super) struct DotTile<const M: usize> {
    pub q: *const f32,
    pub k: Rows<f32>,
    pub v: Rows<f32>,
    pub dim: usize,
    pub v_dim: usize,
    pub keys: usize,
    pub scores: *mut f32,
}

/// Keys whose sums are folded together.
const FOLDED: usize = 8;

impl OfRows for DotTile<MR> {
    type Output = ();
    type Of<const M: usize> = DotTile<M>;

    #[inline(always)]
    fn of_rows<const M: usize>(self) -> DotTile<M> {
        let Self { q, k, v, dim, v_dim, keys, scores } = self;
        DotTile { q, k, v, dim, v_dim, keys, scores }
    }
}

impl<const M: usize> Job for DotTile<M> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let vectors = MAX_LANES / S::LANES;
        let apart = self.k.row_stride != self.dim as isize;
        let mut first = 0;
        while first < self.keys {
            let mut sums = [[simd.zero(); FOLDED]; M];
            for key in first..self.keys.min(first + FOLDED) {
                let row = self.k.at(key, 0);
                let mut acc = [[simd.zero(); NARROW]; M];
                // SAFETY: the job's contract; elements beyond `dim` are not read from the key.
                unsafe {
                    let (ahead, value) = (self.k.at(key + self.keys, 0), self.v.at(key, 0));
                    for at in (0..if apart { self.dim } else { 0 }).step_by(16) {
                        simd.prefetch(ahead.wrapping_add(at));
                    }
                    for at in (0..self.v_dim).step_by(16) {
                        simd.prefetch(value.wrapping_add(at));
                    }
                    let mut at = 0;
                    while at + MAX_LANES <= self.dim {
                        for v in 0..vectors {
                            let d = at + v * S::LANES;
                            let k = simd.load(row.add(d));
                            for i in 0..M {
                                acc[i][v] = simd.fma(simd.load(self.q.add(i * QUERY_STRIDE + d)), k, acc[i][v]);
                            }
                        }
                        at += MAX_LANES;
                    }
                    for v in 0..vectors {
                        let d = at + v * S::LANES;
                        if d < self.dim {
                            let k = simd.load_first(row.add(d), self.dim - d);
                            for i in 0..M {
                                acc[i][v] = simd.fma(simd.load(self.q.add(i * QUERY_STRIDE + d)), k, acc[i][v]);
                            }
                        }
                    }
                }
                for i in 0..M {
                    sums[i][key - first] = fold_lanes(simd, acc[i]);
                }
            }
            for i in 0..M {
                let mut folded = [0.0f32; 16];
                // SAFETY: the scores have room for the keys rounded up.
                unsafe {
                    fold_rows::<S, false, FOLDED>(simd, &sums[i], folded.as_mut_ptr());
                    for j in 0..FOLDED {
                        *self.scores.add(i * SCORE_STRIDE + first + j) = folded[j];
                    }
                }
            }
            first += FOLDED;
        }
    }
}
