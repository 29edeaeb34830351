//! Packing: operands re-ordered so that the micro-kernel reads them from front to back.
//!
//! ```text
//! lhs: strips of MR rows                     rhs: panels of NR columns
//!   a00 a01 a02                                b00 b01 | b02 b03
//!   a10 a11 a12   ──►  a00 a10 a01 a11 ...     b10 b11 | b12 b13   ──►  b00 b01 b10 b11 ...  b02 b03 b12 b13 ...
//!   ───────────                                (the last panel is filled up to whole vectors with zeros)
//!   a20 a21 a22   ──►  a20 a21 a22
//! ```
//!
//! Strips and panels run through the whole depth of what is packed, so a block of any depth is a part of each.

use std::ops::Range;

use super::tile::{MAX_HEIGHT, Matrix, NV};
use crate::simd::Simd;

/// Rows cut into strips of nearly the same height: 49 rows are 9 strips of 5 or 6, not 8 of 6 and one of 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Strips {
    /// How many.
    pub count: usize,
    /// Rows of each of the first `tall` strips; the others have one less.
    height: usize,
    tall: usize,
}

impl Strips {
    /// As few strips as possible, none higher than `max_height`.
    pub fn new(rows: usize, max_height: usize) -> Self {
        let count = rows.div_ceil(max_height);
        let height = if count == 0 { 1 } else { rows.div_ceil(count) };
        Self { count, height, tall: rows - count * (height - 1) }
    }

    /// The first row of strip `i`; all rows for `i = count`.
    #[inline(always)]
    pub fn start(&self, i: usize) -> usize {
        i * (self.height - 1) + i.min(self.tall)
    }

    /// The rows of strip `i`.
    #[inline(always)]
    pub fn height(&self, i: usize) -> usize {
        self.height - (i >= self.tall) as usize
    }
}

/// The vectors across a panel that starts at column `from` of `n`.
#[inline(always)]
pub(super) fn panel_vectors<S: Simd>(from: usize, n: usize) -> usize {
    (n - from).div_ceil(S::LANES).min(NV)
}

/// Floats of a row that are read at once: 4 lines.
const RUN: usize = 64;

/// Packs a strip: `to[k * height + i] = lhs[row + i, ks.start + k]`.
///
/// # Safety
/// - Rows `row .. row + height` and columns `ks` of `lhs` are readable; `row + height <= rows`, and every row below
///   `rows` is readable there.
/// - `to` has room for `height * ks.len()` floats; `height <= MAX_HEIGHT`.
#[inline(always)]
pub(crate) unsafe fn pack_strip<S: Simd>(
    simd: S,
    lhs: Matrix,
    rows: usize,
    [row, height]: [usize; 2],
    ks: Range<usize>,
    to: *mut f32,
) {
    let (depth, len) = (ks.len(), height * ks.len());
    let whole = height.next_multiple_of(S::LANES);
    let mut done = 0;
    // SAFETY: what is read is inside of the rows and columns named; a vector is stored whole only where `len` has
    // room for it, and what it writes beyond its own column is written again, later, by the next columns.
    unsafe {
        if lhs.column_stride == 1 {
            // Long runs of each row first: rows of 4 KiB share a set of L1, which has no room for a line of each.
            let mut runs = [0.0f32; MAX_HEIGHT.next_multiple_of(16) * RUN];
            let mut block = [0.0f32; 16 * 16];
            while done < depth {
                let run = RUN.min(depth - done);
                for i in 0..height {
                    let from = lhs.at(row + i, ks.start + done);
                    let mut k = 0;
                    while k + S::LANES <= run {
                        simd.store(runs.as_mut_ptr().add(i * RUN + k), simd.load(from.add(k)));
                        k += S::LANES;
                    }
                    if k < run {
                        simd.store(runs.as_mut_ptr().add(i * RUN + k), simd.load_first(from.add(k), run - k));
                    }
                }
                for k in (0..run).step_by(S::LANES) {
                    let at = (done + k) * height;
                    let direct = k + S::LANES <= run && at + (S::LANES - 1) * height + whole <= len;
                    // From the last rows on: what a column has too much, the next one or the rows above write again.
                    for i in (0..height).step_by(S::LANES).rev() {
                        let from = runs.as_ptr().add(i * RUN + k);
                        if direct {
                            simd.transpose(from, RUN as isize, to.add(at + i), height as isize);
                        } else {
                            simd.transpose(from, RUN as isize, block.as_mut_ptr().add(i), 16);
                        }
                    }
                    if direct {
                        continue;
                    }
                    for j in 0..S::LANES.min(run - k) {
                        for i in (0..height).step_by(S::LANES) {
                            let at = at + j * height + i;
                            simd.store_first(to.add(at), len - at, simd.load(block.as_ptr().add(j * 16 + i)));
                        }
                    }
                }
                done += run;
            }
        } else if lhs.row_stride == 1 && row + whole <= rows {
            while done < depth {
                for i in (0..height).step_by(S::LANES) {
                    let at = done * height + i;
                    simd.store_first(to.add(at), len - at, simd.load(lhs.at(row + i, ks.start + done)));
                }
                done += 1;
            }
        }
        for k in done..depth {
            for i in 0..height {
                *to.add(k * height + i) = *lhs.at(row + i, ks.start + k);
            }
        }
    }
    debug_assert!(height <= MAX_HEIGHT);
}

/// Packs panels side by side: `to[p * NR * depth + k * width + j] = rhs[ks.start + k, p * NR + j]` for each panel
/// `p` counted from `panels.start`, zeros in the columns that do not exist.
///
/// # Safety
/// - Rows `ks` and all columns below `n` of `rhs` are readable.
/// - `to` has room for the panels: `ks.len()` times their columns, rounded up to whole vectors.
#[inline(always)]
pub(crate) unsafe fn pack_panels<S: Simd>(
    simd: S,
    rhs: Matrix,
    n: usize,
    panels: Range<usize>,
    ks: Range<usize>,
    to: *mut f32,
) {
    let (nr, depth) = (NV * S::LANES, ks.len());
    let first = panels.start * nr;
    let end = n.min(panels.end * nr);
    // Panels that are whole come first; a last one that is not follows.
    let whole = (end - first) / nr;
    // SAFETY: reads stay inside of rows `ks` and columns below `n`, writes inside of the panels.
    unsafe {
        if rhs.column_stride == 1 {
            // Row after row through all panels: long runs of memory are read, and each line written is whole.
            for k in 0..depth {
                let from = rhs.at(ks.start + k, first);
                for p in 0..whole {
                    for v in 0..NV {
                        let x = simd.load(from.add(p * nr + v * S::LANES));
                        simd.store(to.add((p * depth + k) * nr + v * S::LANES), x);
                    }
                }
            }
        } else if rhs.row_stride == 1 {
            for p in 0..whole {
                pack_transposed(simd, rhs, ks.clone(), [first + p * nr, nr], nr, to.add(p * depth * nr));
            }
        } else {
            for p in 0..whole {
                pack_any(rhs, ks.clone(), [first + p * nr, nr], nr, to.add(p * depth * nr));
            }
        }
        let column = first + whole * nr;
        if column < end {
            let columns = end - column;
            let width = columns.next_multiple_of(S::LANES);
            let to = to.add(whole * depth * nr);
            if rhs.column_stride == 1 {
                for k in 0..depth {
                    let from = rhs.at(ks.start + k, column);
                    for j in (0..columns).step_by(S::LANES) {
                        simd.store(to.add(k * width + j), simd.load_first(from.add(j), columns - j));
                    }
                }
            } else if rhs.row_stride == 1 {
                pack_transposed(simd, rhs, ks, [column, columns], width, to);
            } else {
                pack_any(rhs, ks, [column, columns], width, to);
            }
        }
    }
}

/// Packs one panel of a matrix whose columns are contiguous, in square blocks.
///
/// # Safety
/// - Rows `ks` and the `columns` from `column` on are readable; `to` has room for `width * ks.len()`.
#[inline(always)]
pub(crate) unsafe fn pack_transposed<S: Simd>(
    simd: S,
    rhs: Matrix,
    ks: Range<usize>,
    [column, columns]: [usize; 2],
    width: usize,
    to: *mut f32,
) {
    let (mut j, mut k) = (0, 0);
    let whole = ks.len() / S::LANES * S::LANES;
    // SAFETY: blocks are taken only where LANES rows and columns exist; the rest goes element by element.
    unsafe {
        while j + S::LANES <= columns {
            k = 0;
            while k < whole {
                let from = rhs.at(ks.start + k, column + j);
                simd.transpose(from, rhs.column_stride, to.add(k * width + j), width as isize);
                k += S::LANES;
            }
            j += S::LANES;
        }
        // Below the blocks, then to the right of them.
        if j > 0 && k < ks.len() {
            pack_any_part(rhs, ks.start + k..ks.end, [column, j], j, width, to.add(k * width));
        }
        if j < width {
            pack_any_part(rhs, ks, [column + j, columns - j], width - j, width, to.add(j));
        }
    }
}

/// Packs one panel of a matrix with any strides.
///
/// # Safety
/// - As for [`pack_transposed`].
#[inline(always)]
unsafe fn pack_any(rhs: Matrix, ks: Range<usize>, columns: [usize; 2], width: usize, to: *mut f32) {
    // SAFETY: passed on.
    unsafe { pack_any_part(rhs, ks, columns, width, width, to) }
}

/// Packs `fill` columns, of which `columns` exist, of a panel that is `width` wide.
///
/// # Safety
/// - Rows `ks` and the `columns` from `column` on are readable; `to` has room for `fill` floats every `width`.
#[inline(always)]
unsafe fn pack_any_part(
    rhs: Matrix,
    ks: Range<usize>,
    [column, columns]: [usize; 2],
    fill: usize,
    width: usize,
    to: *mut f32,
) {
    for k in 0..ks.len() {
        for j in 0..fill {
            // SAFETY: the caller's contract.
            unsafe {
                *to.add(k * width + j) = if j < columns { *rhs.at(ks.start + k, column + j) } else { 0.0 };
            }
        }
    }
}
