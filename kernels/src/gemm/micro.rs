//! The micro-kernel: a small tile of the output stays in registers while `k` runs.
//!
//! ```text
//!              rhs row k: NV vectors
//!             ┌────────┬────────┐
//!             └────────┴────────┘        acc[i][v] += lhs[i][k] * rhs[k][v]
//!  lhs    ┌─┐ ┌────────┬────────┐
//!  column │ │ │        │        │
//!  k:     │ │ │  acc   │  acc   │  MR rows
//!  MR     │ │ │        │        │
//!         └─┘ └────────┴────────┘
//! ```
//!
//! One body serves every product of the library. Where its operands lie is a pair of small traits
//! ([`super::lhs`], [`super::rhs`]): packed panels, strided matrices, rows found by a table of offsets (a
//! convolution's taps), rows at any address.
//! A chain of fused multiply-adds runs through `k` in order for each output, so how `k` is cut into calls, and
//! how rows and columns are cut into tiles, never changes a bit.
//!
//! Source: K. Goto, R. van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34 (2008).

use super::lhs::LhsAddress;
use super::rhs::RhsAddress;
use crate::simd::Simd;

/// Continues the chains of a tile: `acc[i][v] += sum over k < depth of lhs[i][k] * rhs[k][v]`, in order of `k`.
///
/// # Safety
/// - `lhs.at(i, k)` is readable for `i < MR`, `k < depth`.
/// - `NV * LANES` floats are readable at `rhs.row(k)` for `k < depth`.
#[inline(always)]
pub(crate) unsafe fn multiply<S: Simd, L: LhsAddress, const MR: usize, const NV: usize>(
    simd: S,
    acc: &mut [[S::F; NV]; MR],
    lhs: L,
    rhs: impl RhsAddress,
    depth: usize,
) {
    let mut first = 0;
    while first < depth {
        let len = L::BLOCK.min(depth - first);
        // SAFETY: the caller's contract, for these columns.
        unsafe { multiply_block(simd, acc, lhs.from(first), rhs, first, len) };
        first = first.saturating_add(L::BLOCK);
    }
}

/// [`multiply`] for the columns `first .. first + depth`; `lhs` starts with them.
///
/// # Safety
/// - As for [`multiply`], for these columns.
#[inline(always)]
unsafe fn multiply_block<S: Simd, L: LhsAddress, R: RhsAddress, const MR: usize, const NV: usize>(
    simd: S,
    acc: &mut [[S::F; NV]; MR],
    lhs: L,
    rhs: R,
    first: usize,
    depth: usize,
) {
    // Where another thread shares the core's front end, half of its slots are left: a tile of 6 x 2 vectors needs 20 of
    // 36 for a step, and counting and branching 3 more. Four steps at a time raise such a tile from 77 to 88 % of
    // the peak (measured on Zen 3; alone on a core both reach 97 %). Small tiles wait for their chains anyway. With
    // 32 registers a step is long enough by itself, and of four at once the compiler loads so many broadcasts ahead
    // that it spills, unless all distances are constants: 32 x 32 x 32 in place 68 GFLOP/s instead of 90 (Zen 4,
    // AVX-512).
    let unrolled =
        if MR * NV >= UNROLL_FROM && S::REGISTERS < 32 && L::UNROLLS && R::UNROLLS { depth / 4 * 4 } else { 0 };
    let mut k = 0;
    // SAFETY: the caller's contract, for each `k`.
    unsafe {
        while k < unrolled {
            step(simd, acc, lhs, rhs, first, k);
            step(simd, acc, lhs, rhs, first, k + 1);
            step(simd, acc, lhs, rhs, first, k + 2);
            step(simd, acc, lhs, rhs, first, k + 3);
            k += 4;
        }
        while k < depth {
            step(simd, acc, lhs, rhs, first, k);
            k += 1;
        }
    }
}

/// Tiles of fewer accumulators are not unrolled.
const UNROLL_FROM: usize = 8;

/// One step of [`multiply_block`].
///
/// # Safety
/// - As for [`multiply_block`], for this `k`.
#[inline(always)]
unsafe fn step<S: Simd, const MR: usize, const NV: usize>(
    simd: S,
    acc: &mut [[S::F; NV]; MR],
    lhs: impl LhsAddress,
    rhs: impl RhsAddress,
    first: usize,
    k: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let b: [S::F; NV] = rhs.load(simd, first + k);
        rhs.loaded(simd, first + k, &b);
        lhs.meanwhile(simd, k, MR);
        for i in 0..MR {
            let a = simd.splat(*lhs.at(i, k));
            for v in 0..NV {
                acc[i][v] = simd.fma(a, b[v], acc[i][v]);
            }
        }
    }
}

/// [`multiply`] where the last vector of each right-hand row is cut off: lanes outside of `mask` are not read.
///
/// # Safety
/// - `lhs.at(i, k)` is readable for `i < MR`, `k < depth`.
/// - `(NV - 1) * LANES` floats, and then the lanes of `mask`, are readable at `rhs.row(k)` for `k < depth`.
#[inline(always)]
pub(crate) unsafe fn multiply_masked<S: Simd, L: LhsAddress, const MR: usize, const NV: usize>(
    simd: S,
    acc: &mut [[S::F; NV]; MR],
    lhs: L,
    rhs: impl RhsAddress,
    depth: usize,
    mask: S::M,
) {
    for k in 0..depth {
        let lhs = lhs.from(k / L::BLOCK * L::BLOCK);
        // SAFETY: the caller's contract, for this `k`.
        unsafe {
            let row = rhs.row(k);
            let mut b = [simd.zero(); NV];
            for v in 0..NV - 1 {
                b[v] = simd.load(row.add(v * S::LANES));
            }
            b[NV - 1] = simd.load_masked(row.add((NV - 1) * S::LANES), mask);
            rhs.loaded(simd, k, &b);
            lhs.meanwhile(simd, k % L::BLOCK, MR);
            for i in 0..MR {
                let a = simd.splat(*lhs.at(i, k % L::BLOCK));
                for v in 0..NV {
                    acc[i][v] = simd.fma(a, b[v], acc[i][v]);
                }
            }
        }
    }
}

/// [`multiply`] where up to half a vector follows the `NV` whole ones, at half the cost: lanes outside of `mask` are
/// not read.
///
/// # Safety
/// - `lhs.at(i, k)` is readable for `i < MR`, `k < depth`.
/// - `NV * LANES` floats, and then the lanes of `mask`, are readable at `rhs.row(k)` for `k < depth`.
#[inline(always)]
pub(crate) unsafe fn multiply_with_tail<S: Simd, L: LhsAddress, const MR: usize, const NV: usize>(
    simd: S,
    acc: &mut [[S::F; NV]; MR],
    tail: &mut [<S::Narrow as Simd>::F; MR],
    lhs: L,
    rhs: impl RhsAddress,
    depth: usize,
    mask: Option<<S::Narrow as Simd>::M>,
) {
    debug_assert!(L::BLOCK > depth);
    let narrow = simd.narrow();
    for k in 0..depth {
        // SAFETY: the caller's contract, for this `k`.
        unsafe {
            let b: [S::F; NV] = rhs.load(simd, k);
            let last = rhs.row(k).add(NV * S::LANES);
            let last = match mask {
                None => narrow.load(last),
                Some(mask) => narrow.load_masked(last, mask),
            };
            for i in 0..MR {
                let a = lhs.at(i, k);
                for v in 0..NV {
                    acc[i][v] = simd.fma(simd.splat(*a), b[v], acc[i][v]);
                }
                tail[i] = narrow.fma(narrow.splat(*a), last, tail[i]);
            }
        }
    }
}
