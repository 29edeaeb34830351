//! Keys across the lanes: a block of rows, transposed into panels.
//!
//! ```text
//! rows of k, in any memory order          panels of PANEL keys; the last as many vectors as it needs
//! k0: d0 d1 d2 ...                        d0: k0 k1 k2 ... k15 | k16 k17 ...
//! k1: d0 d1 d2 ...             ──►        d1: k0 k1 k2 ... k15 | k16 k17 ...
//! ```

use std::mem::MaybeUninit;

use super::call::Rows;
use crate::simd::{Job, Simd};

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
    for first in (0..keys).step_by(panel) {
        let count = panel.min(keys - first);
        let width = count.next_multiple_of(S::LANES);
        for key in (0..count).step_by(S::LANES) {
            let lanes = S::LANES.min(count - key);
            for d in (0..dim).step_by(S::LANES) {
                // The panel starts after those before it, and holds `width * dim` elements.
                simd.call(Square {
                    rows: Rows { start: rows.at(first + key, d), ..rows },
                    size: [lanes, S::LANES.min(dim - d)],
                    following: S::LANES.min(keys - first - key - lanes),
                    to: to.wrapping_add(first * dim + d * width + key),
                    width,
                });
            }
        }
    }
}

/// At most as many keys as there are lanes, and as many elements of each. A function of its own: inside of loops the
/// compiler keeps the address of every row in memory, and counts all of them up each time (a third of all the time that
/// 17 keys of 16 elements took).
///
/// Whoever makes one vouches that these elements are readable, and a vector for each of the elements of a key is
/// writable, `width` apart.
struct Square {
    rows: Rows<f32>,
    /// Keys, and elements.
    size: [usize; 2],
    /// The keys behind these that come next.
    following: usize,
    to: *mut f32,
    width: usize,
}

impl Job for Square {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { rows, size: [count, dim], following, to, width } = self;
        if rows.step == 1 {
            // So many short runs side by side are foreseen by no hardware.
            for row in 0..following {
                simd.prefetch(rows.at(count + row, 0));
            }
        }
        let stride = S::LANES as isize;
        let (mut whole, mut columns) = (SquareBuffer::uninit(), SquareBuffer::uninit());
        let (whole, columns) = (whole.as_mut_ptr().cast::<f32>(), columns.as_mut_ptr().cast::<f32>());
        // SAFETY: the job's contract; the squares have room for as many vectors as the widest has lanes, and all of
        // what is read of them has been written.
        unsafe {
            let (mut from, mut from_stride) = (rows.start, rows.row_stride);
            if rows.step != 1 || [count, dim] != [S::LANES; 2] {
                for row in 0..S::LANES {
                    let line = whole.add(row * S::LANES);
                    if row >= count {
                        simd.store(line, simd.zero());
                    } else if rows.step == 1 {
                        simd.store(line, simd.load_first(rows.at(row, 0), dim));
                    } else {
                        simd.store(line, simd.zero());
                        for d in 0..dim {
                            *line.add(d) = *rows.at(row, d);
                        }
                    }
                }
                (from, from_stride) = (whole, stride);
            }
            if dim == S::LANES {
                return simd.transpose(from, from_stride, to, width as isize);
            }
            simd.transpose(from, from_stride, columns, stride);
            for d in 0..dim {
                simd.store(to.add(d * width), simd.load(columns.add(d * S::LANES)));
            }
        }
    }
}

/// Room for a square of the widest vectors.
type SquareBuffer = MaybeUninit<[f32; 16 * 16]>;

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
