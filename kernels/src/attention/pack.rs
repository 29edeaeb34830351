//! Keys across the lanes: a block of rows, transposed into panels.
//!
//! ```text
//! rows of k, in any memory order          panels of PANEL keys; the last as many vectors as it needs
//! k0: d0 d1 d2 ...                        d0: k0 k1 k2 ... k15 | k16 k17 ...
//! k1: d0 d1 d2 ...             ──►        d1: k0 k1 k2 ... k15 | k16 k17 ...
//! ```

use super::call::Rows;
use crate::simd::Simd;

/// Vectors of a full panel: a tile of 6 rows leaves registers for one row of the panel and a broadcast.
pub(super) const fn panel_vectors(registers: usize) -> usize {
    if registers >= 32 { 4 } else { 2 }
}

/// Packs `keys` rows of `dim` elements. Lanes beyond the last key are 0.
///
/// # Safety
/// - `rows.at(key, d)` is readable for `key < keys`, `d < dim`.
/// - `to` has room for `keys` rounded up to whole panels, times `dim`.
#[inline(always)]
pub(super) unsafe fn pack_transposed<S: Simd>(simd: S, rows: Rows<f32>, keys: usize, dim: usize, to: *mut f32) {
    let panel = panel_vectors(S::REGISTERS) * S::LANES;
    let mut first = 0;
    while first < keys {
        let count = panel.min(keys - first);
        let width = count.next_multiple_of(S::LANES);
        // SAFETY: the panel starts after those before it, and holds `width * dim` elements.
        unsafe {
            let to = to.add(first * dim);
            let mut key = 0;
            while key < count {
                let lanes = S::LANES.min(count - key);
                let mut d = 0;
                if lanes == S::LANES && rows.step == 1 {
                    while d + S::LANES <= dim {
                        simd.transpose(
                            rows.at(first + key, d),
                            rows.row_stride,
                            to.add(d * width + key),
                            width as isize,
                        );
                        d += S::LANES;
                    }
                }
                while d < dim {
                    let to = to.add(d * width + key);
                    if lanes < S::LANES {
                        simd.store(to, simd.zero());
                    }
                    for lane in 0..lanes {
                        *to.add(lane) = *rows.at(first + key + lane, d);
                    }
                    d += 1;
                }
                key += S::LANES;
            }
        }
        first += panel;
    }
}

/// Copies rows whose elements are not neighbours, or whose distance is a bad one, side by side.
///
/// # Safety
/// - `rows.at(row, d)` is readable for `row < count`, `d < dim`.
/// - `to` has room for `count * dim` elements.
#[inline(always)]
pub(super) unsafe fn copy_rows(rows: Rows<f32>, count: usize, dim: usize, to: *mut f32) -> Rows<f32> {
    for row in 0..count {
        // SAFETY: the caller's contract.
        unsafe {
            let to = to.add(row * dim);
            if rows.step == 1 {
                std::ptr::copy_nonoverlapping(rows.at(row, 0), to, dim);
            } else {
                for d in 0..dim {
                    *to.add(d) = *rows.at(row, d);
                }
            }
        }
    }
    Rows { start: to, row_stride: dim as isize, step: 1 }
}
