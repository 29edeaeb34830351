//! Reductions whose bits are the same on every instruction set.
//!
//! Element `j` of a row belongs to virtual lane `j mod 64`. A vector register holds some neighbouring virtual lanes (4,
//! 8 or 16 of them), so the number of registers differs per instruction set, and nothing else. At the end the lanes
//! are folded in halves, across registers as long as there are several, then inside the last one:
//!
//! ```text
//! 64 lanes   a[j] += a[j + 32]   32 lanes   a[j] += a[j + 16]   ...   a[0] += a[1]
//! ```
//!
//! 64 lanes make enough independent chains to hide the latency of an addition. A kernel that works on several rows at
//! once has those chains anyway and takes 16 lanes a row; for rows of up to 16 elements that is the same tree.

use super::Simd;

/// Arrays of `WIDE` registers hold 64 virtual lanes, of `NARROW` 16, with 4 lanes a register; with more lanes a
/// register the rest stays unused.
pub(crate) const WIDE: usize = 64 / 4;
/// See [`WIDE`].
pub(crate) const NARROW: usize = 16 / 4;

/// How two partial results are joined.
pub(crate) trait Reduction {
    /// The result of nothing.
    const START: f32;
    /// Joins lane by lane.
    fn join<S: Simd>(simd: S, a: S::F, b: S::F) -> S::F;
    /// Joins two lanes.
    fn join_one(a: f32, b: f32) -> f32;
}

/// The sum, from +0.
pub(crate) struct Sum;

impl Reduction for Sum {
    const START: f32 = 0.0;
    #[inline(always)]
    fn join<S: Simd>(simd: S, a: S::F, b: S::F) -> S::F {
        simd.add(a, b)
    }
    #[inline(always)]
    fn join_one(a: f32, b: f32) -> f32 {
        a + b
    }
}

/// The maximum of numbers; among NaNs anything may come out.
pub(crate) struct Max;

impl Reduction for Max {
    const START: f32 = f32::NEG_INFINITY;
    #[inline(always)]
    fn join<S: Simd>(simd: S, a: S::F, b: S::F) -> S::F {
        simd.max(a, b)
    }
    #[inline(always)]
    fn join_one(a: f32, b: f32) -> f32 {
        if a > b { a } else { b }
    }
}

/// What is reduced, made on the fly.
pub(crate) trait Terms {
    /// The terms `at .. at + count` in the first `count` lanes; the other lanes may hold anything.
    ///
    /// # Safety
    /// - `count <= S::LANES`, and `at + count` is within the row.
    unsafe fn term<S: Simd>(&mut self, simd: S, at: usize, count: usize) -> S::F;
}

/// Reduces a row of `len` terms through 64 virtual lanes.
///
/// # Safety
/// - `terms` has `len` terms.
#[inline(always)]
pub(crate) unsafe fn reduce_row<S: Simd, R: Reduction, T: Terms>(simd: S, terms: &mut T, len: usize) -> f32 {
    if len <= 16 {
        // SAFETY: the caller's contract.
        unsafe { reduce_lanes::<S, R, T, NARROW>(simd, terms, len) }
    } else {
        // SAFETY: the caller's contract.
        unsafe { reduce_lanes::<S, R, T, WIDE>(simd, terms, len) }
    }
}

/// # Safety
/// - `terms` has `len` terms.
#[inline(always)]
unsafe fn reduce_lanes<S: Simd, R: Reduction, T: Terms, const N: usize>(simd: S, terms: &mut T, len: usize) -> f32 {
    let registers = 4 * N / S::LANES;
    let mut lanes = [simd.splat(R::START); N];
    let mut at = 0;
    while at + 4 * N <= len {
        for r in 0..registers {
            // SAFETY: the whole block is within the row.
            let term = unsafe { terms.term(simd, at + r * S::LANES, S::LANES) };
            lanes[r] = R::join(simd, lanes[r], term);
        }
        at += 4 * N;
    }
    for r in 0..registers {
        let start = at + r * S::LANES;
        if start < len {
            let count = S::LANES.min(len - start);
            // SAFETY: `start + count` is at most `len`.
            let term = unsafe { terms.term(simd, start, count) };
            let term = simd.select(simd.mask_first(count), term, simd.splat(R::START));
            lanes[r] = R::join(simd, lanes[r], term);
        }
    }
    fold::<S, R, N>(simd, lanes)
}

/// What is summed twice over, made on the fly: two sums for one way over memory.
pub(crate) trait Pairs {
    /// The terms of both sums, as [`Terms::term`].
    ///
    /// # Safety
    /// - `count <= S::LANES`, and `at + count` is within the row.
    unsafe fn pair<S: Simd>(&mut self, simd: S, at: usize, count: usize) -> [S::F; 2];
}

/// The two sums of a row of `len` pairs, each with the bits of [`reduce_row`].
///
/// # Safety
/// - `pairs` has `len` pairs.
#[inline(always)]
pub(crate) unsafe fn sum_pairs<S: Simd, P: Pairs>(simd: S, pairs: &mut P, len: usize) -> [f32; 2] {
    if len <= 16 {
        // SAFETY: the caller's contract.
        unsafe { sum_pair_lanes::<S, P, NARROW>(simd, pairs, len) }
    } else {
        // SAFETY: the caller's contract.
        unsafe { sum_pair_lanes::<S, P, WIDE>(simd, pairs, len) }
    }
}

/// # Safety
/// - `pairs` has `len` pairs.
#[inline(always)]
unsafe fn sum_pair_lanes<S: Simd, P: Pairs, const N: usize>(simd: S, pairs: &mut P, len: usize) -> [f32; 2] {
    let registers = 4 * N / S::LANES;
    let (mut left, mut right) = ([simd.zero(); N], [simd.zero(); N]);
    let mut at = 0;
    while at + 4 * N <= len {
        for r in 0..registers {
            // SAFETY: the whole block is within the row.
            let [a, b] = unsafe { pairs.pair(simd, at + r * S::LANES, S::LANES) };
            (left[r], right[r]) = (simd.add(left[r], a), simd.add(right[r], b));
        }
        at += 4 * N;
    }
    for r in 0..registers {
        let start = at + r * S::LANES;
        if start < len {
            let count = S::LANES.min(len - start);
            // SAFETY: `start + count` is at most `len`.
            let [a, b] = unsafe { pairs.pair(simd, start, count) };
            let of = simd.mask_first(count);
            left[r] = simd.add(left[r], simd.select(of, a, simd.zero()));
            right[r] = simd.add(right[r], simd.select(of, b, simd.zero()));
        }
    }
    [fold::<S, Sum, N>(simd, left), fold::<S, Sum, N>(simd, right)]
}

/// Folds `4 * N` virtual lanes in halves.
#[inline(always)]
pub(crate) fn fold<S: Simd, R: Reduction, const N: usize>(simd: S, mut lanes: [S::F; N]) -> f32 {
    let mut registers = 4 * N / S::LANES;
    while registers > 1 {
        registers /= 2;
        for r in 0..registers {
            lanes[r] = R::join(simd, lanes[r], lanes[r + registers]);
        }
    }
    let mut last = [0.0f32; 16];
    debug_assert!(S::LANES <= last.len());
    // SAFETY: there is room for the widest vector.
    unsafe { simd.store(last.as_mut_ptr(), lanes[0]) };
    let mut half = S::LANES;
    while half > 1 {
        half /= 2;
        for l in 0..half {
            last[l] = R::join_one(last[l], last[l + half]);
        }
    }
    last[0]
}

/// The elements of a row as they are.
pub(crate) struct Elements(pub *const f32);

impl Terms for Elements {
    #[inline(always)]
    unsafe fn term<S: Simd>(&mut self, simd: S, at: usize, count: usize) -> S::F {
        // SAFETY: the caller's contract.
        unsafe { if count == S::LANES { simd.load(self.0.add(at)) } else { simd.load_first(self.0.add(at), count) } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, Job, dispatch};

    struct Reduce<'a, R>(&'a [f32], R);

    impl<R: Reduction> Job for Reduce<'_, R> {
        type Output = f32;
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> f32 {
            // SAFETY: the row has as many terms.
            unsafe { reduce_row::<S, R, _>(simd, &mut Elements(self.0.as_ptr()), self.0.len()) }
        }
    }

    /// The elements, and their squares.
    struct AndSquares(Elements);

    impl Pairs for AndSquares {
        #[inline(always)]
        unsafe fn pair<S: Simd>(&mut self, simd: S, at: usize, count: usize) -> [S::F; 2] {
            // SAFETY: the caller's contract.
            let x = unsafe { self.0.term(simd, at, count) };
            [x, simd.mul(x, x)]
        }
    }

    struct ReducePairs<'a>(&'a [f32]);

    impl Job for ReducePairs<'_> {
        type Output = [f32; 2];
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> [f32; 2] {
            // SAFETY: the row has as many elements.
            unsafe { sum_pairs(simd, &mut AndSquares(Elements(self.0.as_ptr())), self.0.len()) }
        }
    }

    /// The definition of the order, with scalars.
    fn by_definition<R: Reduction>(row: &[f32]) -> f32 {
        let mut lanes = [R::START; 64];
        for (j, &x) in row.iter().enumerate() {
            lanes[j % 64] = R::join_one(lanes[j % 64], x);
        }
        for half in [32, 16, 8, 4, 2, 1] {
            for l in 0..half {
                lanes[l] = R::join_one(lanes[l], lanes[l + half]);
            }
        }
        lanes[0]
    }

    #[test]
    fn every_instruction_set_folds_the_same_tree() {
        let data: Vec<f32> = (0..400).map(|i| ((i * 7919 % 1009) as f32 - 500.0) * 1.1f32.powi(i % 40)).collect();
        for isa in Isa::available() {
            for len in (0..200).chain([255, 256, 257, 320, 383]) {
                for offset in [0, 1, 5] {
                    let row = &data[offset..offset + len];
                    assert_eq!(dispatch(isa, Reduce(row, Sum)).to_bits(), by_definition::<Sum>(row).to_bits());
                    assert_eq!(dispatch(isa, Reduce(row, Max)), by_definition::<Max>(row));
                    let squares: Vec<f32> = row.iter().map(|x| x * x).collect();
                    let expected = [row, &squares].map(|of| by_definition::<Sum>(of).to_bits());
                    assert_eq!(dispatch(isa, ReducePairs(row)).map(f32::to_bits), expected);
                }
            }
        }
    }
}
