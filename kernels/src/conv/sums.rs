//! The sums of a tile between memory, where they wait from block to block, and the registers.

use crate::simd::Simd;

/// Reads the sums of a tile, `row_len` from row to row.
///
/// # Safety
/// - `V` vectors are readable in each of `ROWS` rows.
#[inline(always)]
pub(super) unsafe fn load_sums<S: Simd, const ROWS: usize, const V: usize>(
    simd: S,
    sums: *const f32,
    row_len: usize,
) -> [[S::F; V]; ROWS] {
    let mut acc = [[simd.zero(); V]; ROWS];
    for i in 0..ROWS {
        for v in 0..V {
            // SAFETY: the caller's contract.
            acc[i][v] = unsafe { simd.load(sums.add(i * row_len + v * S::LANES)) };
        }
    }
    acc
}

/// Writes the sums of a tile, `row_len` from row to row.
///
/// # Safety
/// - `V` vectors are writable in each of `ROWS` rows.
#[inline(always)]
pub(super) unsafe fn store_sums<S: Simd, const ROWS: usize, const V: usize>(
    simd: S,
    acc: &[[S::F; V]; ROWS],
    sums: *mut f32,
    row_len: usize,
) {
    for i in 0..ROWS {
        for v in 0..V {
            // SAFETY: the caller's contract.
            unsafe { simd.store(sums.add(i * row_len + v * S::LANES), acc[i][v]) };
        }
    }
}
