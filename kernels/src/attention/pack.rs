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
                while d < dim {
                    // So many short runs side by side are foreseen by no hardware.
                    if rows.step == 1 && first + key + S::LANES < keys {
                        for row in 0..S::LANES {
                            simd.prefetch(rows.at(first + key + S::LANES + row, d));
                        }
                    }
                    let (from, to) = (rows.at(first + key, d), to.add(d * width + key));
                    if lanes == S::LANES && rows.step == 1 && d + S::LANES <= dim {
                        simd.transpose(from, rows.row_stride, to, width as isize);
                    } else {
                        let rows = Rows { start: from, ..rows };
                        transpose_edge(simd, rows, [lanes, S::LANES.min(dim - d)], to, width);
                    }
                    d += S::LANES;
                }
                key += S::LANES;
            }
        }
        first += panel;
    }
}

/// Transposes `count` rows of `dim` elements, at most as many as there are lanes. Lanes beyond the last row are 0.
///
/// # Safety
/// - These elements are readable, and `dim` vectors writable, `width` apart.
#[inline(always)]
unsafe fn transpose_edge<S: Simd>(simd: S, rows: Rows<f32>, [count, dim]: [usize; 2], to: *mut f32, width: usize) {
    let [mut whole, mut columns] = [[0.0f32; 16 * 16]; 2];
    let stride = S::LANES as isize;
    // SAFETY: the caller's contract; the squares have room for as many vectors as the widest has lanes.
    unsafe {
        for row in 0..count {
            let line = whole.as_mut_ptr().add(row * S::LANES);
            if rows.step == 1 {
                simd.store(line, simd.load_first(rows.at(row, 0), dim));
            } else {
                for d in 0..dim {
                    *line.add(d) = *rows.at(row, d);
                }
            }
        }
        simd.transpose(whole.as_ptr(), stride, columns.as_mut_ptr(), stride);
        for d in 0..dim {
            simd.store(to.add(d * width), simd.load(columns.as_ptr().add(d * S::LANES)));
        }
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
