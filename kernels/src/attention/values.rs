//! The weighted sum of values: rows of exponentials times the values of a block, in place.

use super::ahead::{Ahead, PIECE};
use super::call::{MAX_PANEL, MR, Rows};
use super::pack::panel_vectors;
use super::rows::{OfRows, by_rows};
use super::scores::Seen;
use crate::gemm::lhs::LhsAddress;
use crate::gemm::micro::{multiply, multiply_masked, multiply_with_tail};
use crate::gemm::rhs::StridedRhs;
use crate::simd::{Job, Simd};

/// A row of exponentials that are exactly 0 because the key is hidden, marked in the slow path.
pub(super) const HIDDEN: u32 = 0x8000_0000;

/// Vectors of columns of a tile of one row.
const WIDE: usize = 8;

/// Rows of scores, `STRIDE` apart.
#[derive(Clone, Copy)]
pub(super) struct ScoreRows<const STRIDE: usize>(pub *const f32);

impl<const STRIDE: usize> LhsAddress for ScoreRows<STRIDE> {
    #[inline(always)]
    unsafe fn at(&self, i: usize, k: usize) -> *const f32 {
        // SAFETY: the caller's contract.
        unsafe { self.0.add(i * STRIDE + k) }
    }
}

/// Weights of a tile, by row and by what is summed over.
pub(super) trait Weights: LhsAddress {
    /// Those from row `row` and term `term` on.
    fn starting_at(self, row: usize, term: usize) -> Self;
}

impl<const STRIDE: usize> Weights for ScoreRows<STRIDE> {
    #[inline(always)]
    fn starting_at(self, row: usize, term: usize) -> Self {
        Self(self.0.wrapping_add(row * STRIDE + term))
    }
}

impl<const STRIDE: usize> Weights for ScoreColumns<STRIDE> {
    #[inline(always)]
    fn starting_at(self, row: usize, term: usize) -> Self {
        Self(self.0.wrapping_add(term * STRIDE + row))
    }
}

/// Columns of such rows: a tile of keys.
#[derive(Clone, Copy)]
pub(super) struct ScoreColumns<const STRIDE: usize>(pub *const f32);

impl<const STRIDE: usize> LhsAddress for ScoreColumns<STRIDE> {
    #[inline(always)]
    unsafe fn at(&self, i: usize, k: usize) -> *const f32 {
        // SAFETY: the caller's contract.
        unsafe { self.0.add(k * STRIDE + i) }
    }
}

/// Where the sums of a tile come from and go to.
#[derive(Clone, Copy)]
pub(super) struct SumEnds {
    /// The sums of earlier blocks, to be multiplied by `rescale`; null to start at +0.
    pub from: *const f32,
    /// One for each row.
    pub rescale: [f32; MR],
    /// Where unfinished sums go, `stride` apart like those of earlier blocks.
    pub sums: *mut f32,
    pub stride: isize,
    /// In the last block: the output's rows, the distance of their elements, and what to multiply with.
    pub out: Option<([*mut f32; MR], isize, [f32; MR])>,
}

impl SumEnds {
    /// Adds to sums, `stride` apart.
    #[inline(always)]
    pub fn add_to(sums: *mut f32, stride: isize) -> Self {
        Self { from: sums, rescale: [1.0; MR], sums, stride, out: None }
    }

    /// Those of row `row` alone.
    #[inline(always)]
    fn row(self, row: usize) -> Self {
        let skip = row as isize * self.stride;
        Self {
            from: if self.from.is_null() { self.from } else { self.from.wrapping_offset(skip) },
            rescale: [self.rescale[row]; MR],
            sums: self.sums.wrapping_offset(skip),
            stride: self.stride,
            out: self.out.map(|(rows, step, factors)| ([rows[row]; MR], step, [factors[row]; MR])),
        }
    }
}

/// `M` rows of sums over the keys `seen` of a block. Returns whether all of them are finite.
///
/// Whoever makes one vouches that
/// - `weights` has `M` rows, `values` rows of `dim` neighbouring elements, for the keys `seen`;
/// - `ends` is readable and writable for `M` rows of `dim` elements.
pub(super) struct ValueTile<'a, L, const M: usize> {
    pub weights: L,
    pub values: Rows<f32>,
    pub seen: Seen,
    pub dim: usize,
    pub ends: SumEnds,
    /// Leaves out hidden keys one by one: of a tile of one row.
    pub careful: bool,
    pub ahead: &'a mut Ahead,
}

impl<'a, L: Weights> OfRows for ValueTile<'a, L, MR> {
    type Output = bool;
    type Of<const M: usize> = ValueTile<'a, L, M>;

    #[inline(always)]
    fn of_rows<const M: usize>(self) -> ValueTile<'a, L, M> {
        let Self { weights, values, seen, dim, ends, careful, ahead } = self;
        ValueTile { weights, values, seen, dim, ends, careful, ahead }
    }
}

impl<L: Weights, const M: usize> Job for ValueTile<'_, L, M> {
    type Output = bool;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> bool {
        if const { S::REGISTERS >= 32 } { self.columns::<S, 4>(simd) } else { self.columns::<S, 2>(simd) }
    }
}

impl<L: Weights, const M: usize> ValueTile<'_, L, M> {
    #[inline(always)]
    fn columns<S: Simd, const NV: usize>(mut self, simd: S) -> bool {
        debug_assert_eq!(NV, panel_vectors(S::REGISTERS));
        let width = NV * S::LANES;
        let mut finite = true;
        let mut at = 0;
        // SAFETY: the job's contract covers `dim` columns.
        unsafe {
            // One row of weights leaves registers for more columns: values are read nearly in the order of memory, which
            // the hardware foresees (decoding 1.2 times as fast with AVX2 on Zen 4). Each column has its own chain.
            if const { M == 1 } {
                while at + WIDE * S::LANES <= self.dim {
                    finite &= self.tile::<S, WIDE, false>(simd, at, S::LANES);
                    at += WIDE * S::LANES;
                }
            }
            while at + width <= self.dim {
                finite &= self.tile::<S, NV, false>(simd, at, S::LANES);
                at += width;
            }
            let rest = self.dim - at;
            if rest == 0 {
                return finite;
            }
            // Up to half a vector costs half where vectors of half the lanes are half as dear.
            let last = rest % S::LANES;
            if (1..=S::Narrow::LANES).contains(&last) && S::Narrow::LANES < S::LANES {
                return finite
                    & match rest / S::LANES {
                        0 => self.tile::<S::Narrow, 1, false>(simd.narrow(), at, last),
                        1 => self.tile::<S, 1, true>(simd, at, last),
                        2 => self.tile::<S, 2, true>(simd, at, last),
                        _ => self.tile::<S, 3, true>(simd, at, last),
                    };
            }
            let last = rest - (rest - 1) / S::LANES * S::LANES;
            finite
                & match rest.div_ceil(S::LANES) {
                    1 => self.tile::<S, 1, false>(simd, at, last),
                    2 => self.tile::<S, 2, false>(simd, at, last),
                    3 if NV > 3 => self.tile::<S, 3, false>(simd, at, last),
                    _ => self.tile::<S, NV, false>(simd, at, last),
                }
        }
    }

    /// `NV` vectors of columns from `at` on, `last` lanes in the last of them; with `TAIL`, `NV` whole vectors and a
    /// narrow one of `last` lanes.
    ///
    /// # Safety
    /// - The columns are within `dim`.
    #[inline(always)]
    unsafe fn tile<S: Simd, const NV: usize, const TAIL: bool>(&mut self, simd: S, at: usize, last: usize) -> bool {
        let narrow = simd.narrow();
        let mut acc = [[simd.zero(); NV]; M];
        let mut tail = [narrow.zero(); M];
        let tail_at = at + NV * S::LANES;
        // Lanes of the last whole vector, and of the narrow one.
        let (last, tail_lanes) = if TAIL { (S::LANES, last) } else { (last, 0) };
        // SAFETY: the contracts of the function and of the job.
        unsafe {
            self.start(simd, &mut acc, at, last);
            if TAIL {
                let mut columns = tail.map(|sum| [sum]);
                self.start(narrow, &mut columns, tail_at, tail_lanes);
                tail = columns.map(|[sum]| sum);
            }
            if M == 1 && self.careful {
                self.add_carefully(simd, &mut acc, at, last);
                if TAIL {
                    let mut columns = tail.map(|sum| [sum]);
                    self.add_carefully(narrow, &mut columns, tail_at, tail_lanes);
                    tail = columns.map(|[sum]| sum);
                }
            } else {
                let mut key = self.seen.first;
                while key < self.seen.end {
                    let depth = PIECE.min(self.seen.end - key);
                    let lhs = self.weights.starting_at(0, key);
                    let rhs = StridedRhs { start: self.values.at(key, at), row_stride: self.values.row_stride };
                    if TAIL {
                        let mask = (tail_lanes < S::Narrow::LANES).then(|| narrow.mask_first(tail_lanes));
                        multiply_with_tail::<S, _, M, NV>(simd, &mut acc, &mut tail, lhs, rhs, depth, mask);
                    } else if last == S::LANES {
                        multiply::<S, _, M, NV>(simd, &mut acc, lhs, rhs, depth);
                    } else {
                        multiply_masked::<S, _, M, NV>(simd, &mut acc, lhs, rhs, depth, simd.mask_first(last));
                    }
                    self.ahead.step(simd);
                    key += PIECE;
                }
            }
            let finite = self.finish(simd, acc, at, last);
            finite & (!TAIL || self.finish(narrow, tail.map(|sum| [sum]), tail_at, tail_lanes))
        }
    }

    /// The sums of earlier blocks, rescaled.
    ///
    /// # Safety
    /// - The columns are within `dim`.
    #[inline(always)]
    unsafe fn start<S: Simd, const NV: usize>(&self, simd: S, acc: &mut [[S::F; NV]; M], at: usize, last: usize) {
        let SumEnds { from, rescale, stride, .. } = self.ends;
        if from.is_null() {
            return;
        }
        let mask = simd.mask_first(last);
        for i in 0..M {
            for v in 0..NV {
                // SAFETY: the contracts of the function and of the job.
                let sum = unsafe {
                    let from = from.offset(i as isize * stride).add(at + v * S::LANES);
                    if last == S::LANES || v + 1 < NV { simd.load(from) } else { simd.load_masked(from, mask) }
                };
                acc[i][v] = simd.mul(sum, simd.splat(rescale[i]));
            }
        }
    }

    /// Adds the values of keys that are not hidden.
    ///
    /// # Safety
    /// - The columns are within `dim`.
    #[inline(always)]
    unsafe fn add_carefully<S: Simd, const NV: usize>(
        &self,
        simd: S,
        acc: &mut [[S::F; NV]; M],
        at: usize,
        last: usize,
    ) {
        debug_assert_eq!(M, 1);
        let mask = simd.mask_first(last);
        for key in self.seen.first..self.seen.end {
            // SAFETY: the contracts of the function and of the job.
            unsafe {
                if (*self.weights.at(0, key)).to_bits() != HIDDEN {
                    let lhs = self.weights.starting_at(0, key);
                    let rhs = StridedRhs { start: self.values.at(key, at), row_stride: 0 };
                    multiply_masked::<S, _, M, NV>(simd, acc, lhs, rhs, 1, mask);
                }
            }
        }
    }

    /// Writes sums, or outputs. Returns whether outputs are finite.
    ///
    /// # Safety
    /// - The columns are within `dim`.
    #[inline(always)]
    unsafe fn finish<S: Simd, const NV: usize>(
        &self,
        simd: S,
        mut acc: [[S::F; NV]; M],
        at: usize,
        last: usize,
    ) -> bool {
        let SumEnds { sums, stride, out, .. } = &self.ends;
        let mut finite = simd.eq(simd.zero(), simd.zero());
        let mask = simd.mask_first(last);
        // SAFETY: the contracts of the function and of the job.
        unsafe {
            match out {
                None => {
                    for i in 0..M {
                        for v in 0..NV {
                            let to = sums.offset(i as isize * stride).add(at + v * S::LANES);
                            if last == S::LANES || v + 1 < NV {
                                simd.store(to, acc[i][v]);
                            } else {
                                simd.store_masked(to, mask, acc[i][v]);
                            }
                        }
                    }
                }
                Some((rows, step, factors)) => {
                    for i in 0..M {
                        let factor = simd.splat(factors[i]);
                        for v in 0..NV {
                            acc[i][v] = simd.mul(acc[i][v], factor);
                            finite = simd.and(finite, simd.eq(simd.sub(acc[i][v], acc[i][v]), simd.zero()));
                        }
                    }
                    if *step == 1 {
                        for i in 0..M {
                            for v in 0..NV {
                                let to = rows[i].add(at + v * S::LANES);
                                if last == S::LANES || v + 1 < NV {
                                    simd.store(to, acc[i][v]);
                                } else {
                                    simd.store_masked(to, mask, acc[i][v]);
                                }
                            }
                        }
                    } else {
                        let mut buffer = [[0.0; MAX_PANEL]; MR];
                        for i in 0..M {
                            for v in 0..NV {
                                simd.store(buffer[i].as_mut_ptr().add(v * S::LANES), acc[i][v]);
                            }
                        }
                        scatter(&buffer, &rows[..M], *step, at, (NV - 1) * S::LANES + last);
                    }
                }
            }
        }
        simd.bits(finite).count_ones() as usize == S::LANES
    }
}

/// Sums of a tile whose number of rows is chosen at run time.
///
/// # Safety
/// - The contract of [`ValueTile`]; `rows` is 1 to `MR`.
#[inline(always)]
pub(super) unsafe fn value_tile<S: Simd, L: Weights>(simd: S, rows: usize, tile: ValueTile<'_, L, MR>) -> bool {
    debug_assert!((1..=MR).contains(&rows));
    if tile.careful {
        let ValueTile { weights, values, seen, dim, ends, careful, ahead } = tile;
        let mut finite = true;
        for i in 0..rows {
            let (weights, ends) = (weights.starting_at(i, 0), ends.row(i));
            finite &= simd.call(ValueTile::<L, 1> { weights, values, seen, dim, ends, careful, ahead: &mut *ahead });
        }
        return finite;
    }
    by_rows(simd, rows, tile)
}

/// Writes `columns` elements of each row, from element `at` on, `step` apart. A function of its own: outputs whose
/// elements are no neighbours are rare.
///
/// # Safety
/// - These elements are writable.
#[inline(never)]
unsafe fn scatter(from: &[[f32; MAX_PANEL]; MR], rows: &[*mut f32], step: isize, at: usize, columns: usize) {
    for (values, row) in from.iter().zip(rows) {
        for (c, value) in values[..columns].iter().enumerate() {
            // SAFETY: the caller's contract.
            unsafe { *row.wrapping_offset((at + c) as isize * step) = *value };
        }
    }
}

/// Writes the first `lanes` lanes to elements `step` apart.
///
/// # Safety
/// - These elements are writable.
#[inline(always)]
pub(super) unsafe fn store_row<S: Simd>(simd: S, to: *mut f32, step: isize, lanes: usize, value: S::F) {
    // SAFETY: the caller's contract.
    unsafe {
        if step == 1 {
            if lanes == S::LANES { simd.store(to, value) } else { simd.store_first(to, lanes, value) }
        } else {
            let mut buffer = [0.0f32; 16];
            simd.store(buffer.as_mut_ptr(), value);
            for l in 0..lanes {
                *to.offset(l as isize * step) = buffer[l];
            }
        }
    }
}

/// Marks the weights of keys whose logits are -infinity, before and after these become weights.
pub(super) struct Hidden([u64; super::call::MAX_BLOCK / 64]);

impl Hidden {
    /// No key.
    pub const NONE: Self = Self([0; super::call::MAX_BLOCK / 64]);

    /// Of the logits `at..end`.
    ///
    /// # Safety
    /// - They are readable, and `end` is at most a block.
    pub unsafe fn find(logits: *const f32, at: usize, end: usize) -> Self {
        let mut hidden = [0; super::call::MAX_BLOCK / 64];
        for key in at..end {
            // SAFETY: the caller's contract.
            if unsafe { *logits.add(key) } == f32::NEG_INFINITY {
                hidden[key / 64] |= 1 << (key % 64);
            }
        }
        Self(hidden)
    }

    /// Marks the weights.
    ///
    /// # Safety
    /// - As for [`Hidden::find`], and they are writable.
    pub unsafe fn mark(&self, weights: *mut f32, at: usize, end: usize) {
        for key in at..end {
            if self.0[key / 64] >> (key % 64) & 1 == 1 {
                // SAFETY: the caller's contract.
                unsafe { *weights.add(key) = f32::from_bits(HIDDEN) };
            }
        }
    }
}
