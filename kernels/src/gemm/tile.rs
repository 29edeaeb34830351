//! One tile of the output: load or clear the accumulators, run the micro-kernel, store.

use super::micro::{LhsAddress, PackedPanel, StridedRhs, multiply, multiply_masked};
use crate::simd::{Job, Simd};
use crate::tensor::View;

/// A matrix as pointer and strides.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    pub start: *const f32,
    pub row_stride: isize,
    pub column_stride: isize,
}

impl Matrix {
    pub fn new(view: &View<'_, f32, 2>) -> Self {
        let [row_stride, column_stride] = view.strides();
        Self { start: view.as_ptr(), row_stride, column_stride }
    }

    pub fn transposed(self) -> Self {
        Self { start: self.start, row_stride: self.column_stride, column_stride: self.row_stride }
    }

    /// The address of an element, or of where it would be.
    #[inline(always)]
    pub fn at(self, row: usize, column: usize) -> *const f32 {
        self.start.wrapping_offset(row as isize * self.row_stride + column as isize * self.column_stride)
    }
}

/// Vectors side by side in the widest tile.
pub(super) const NV: usize = 2;

/// The most rows of any tile of any instruction set.
pub(super) const MAX_HEIGHT: usize = 14;

/// The most columns of any tile of any instruction set.
pub(super) const MAX_WIDTH: usize = 16 * NV;

/// The most rows of a tile of `nv` vectors: the accumulators, one row of rhs and one broadcast fit the registers
/// (6 x 16 of AVX2, 14 x 32 of AVX-512, 6 x 8 of SSE2 and NEON). A single vector across needs more rows, or
/// the chains would wait for their own latency.
pub(super) const fn max_height(registers: usize, nv: usize) -> usize {
    match (registers >= 32, nv) {
        (true, _) => 14,
        (false, 1) => 12,
        (false, _) => 6,
    }
}

/// Where a tile starts from, and where it goes.
#[derive(Clone, Copy)]
pub(super) struct Ends {
    /// The partial results to continue; null to start at +0.
    pub from: *const f32,
    pub from_stride: isize,
    pub to: *mut f32,
    pub to_stride: isize,
    /// Columns that exist.
    pub columns: usize,
}

/// A tile of `height` rows and `nv` vectors, each chosen at run time.
///
/// # Safety
/// - `1 <= height <= max_height(nv)` and `1 <= nv <= NV`.
/// - The contract of [`Tile`].
#[inline(always)]
pub(super) unsafe fn tile_of<S: Simd, L: LhsAddress, const MASKED: bool>(
    simd: S,
    [height, nv]: [usize; 2],
    lhs: L,
    rhs: StridedRhs,
    depth: usize,
    ends: Ends,
) {
    debug_assert!(height >= 1 && height <= max_height(S::REGISTERS, nv));
    if nv == 1 {
        match height {
            1 => simd.call(Tile::<L, 1, 1, MASKED> { lhs, rhs, depth, ends }),
            2 => simd.call(Tile::<L, 2, 1, MASKED> { lhs, rhs, depth, ends }),
            3 => simd.call(Tile::<L, 3, 1, MASKED> { lhs, rhs, depth, ends }),
            4 => simd.call(Tile::<L, 4, 1, MASKED> { lhs, rhs, depth, ends }),
            5 => simd.call(Tile::<L, 5, 1, MASKED> { lhs, rhs, depth, ends }),
            6 => simd.call(Tile::<L, 6, 1, MASKED> { lhs, rhs, depth, ends }),
            7 => simd.call(Tile::<L, 7, 1, MASKED> { lhs, rhs, depth, ends }),
            8 => simd.call(Tile::<L, 8, 1, MASKED> { lhs, rhs, depth, ends }),
            9 => simd.call(Tile::<L, 9, 1, MASKED> { lhs, rhs, depth, ends }),
            10 => simd.call(Tile::<L, 10, 1, MASKED> { lhs, rhs, depth, ends }),
            11 => simd.call(Tile::<L, 11, 1, MASKED> { lhs, rhs, depth, ends }),
            12 => simd.call(Tile::<L, 12, 1, MASKED> { lhs, rhs, depth, ends }),
            13 if S::REGISTERS >= 32 => simd.call(Tile::<L, 13, 1, MASKED> { lhs, rhs, depth, ends }),
            14 if S::REGISTERS >= 32 => simd.call(Tile::<L, 14, 1, MASKED> { lhs, rhs, depth, ends }),
            _ => {}
        }
        return;
    }
    match height {
        1 => simd.call(Tile::<L, 1, 2, MASKED> { lhs, rhs, depth, ends }),
        2 => simd.call(Tile::<L, 2, 2, MASKED> { lhs, rhs, depth, ends }),
        3 => simd.call(Tile::<L, 3, 2, MASKED> { lhs, rhs, depth, ends }),
        4 => simd.call(Tile::<L, 4, 2, MASKED> { lhs, rhs, depth, ends }),
        5 => simd.call(Tile::<L, 5, 2, MASKED> { lhs, rhs, depth, ends }),
        6 => simd.call(Tile::<L, 6, 2, MASKED> { lhs, rhs, depth, ends }),
        _ => {}
    }
    if S::REGISTERS >= 32 {
        match height {
            7 => simd.call(Tile::<L, 7, 2, MASKED> { lhs, rhs, depth, ends }),
            8 => simd.call(Tile::<L, 8, 2, MASKED> { lhs, rhs, depth, ends }),
            9 => simd.call(Tile::<L, 9, 2, MASKED> { lhs, rhs, depth, ends }),
            10 => simd.call(Tile::<L, 10, 2, MASKED> { lhs, rhs, depth, ends }),
            11 => simd.call(Tile::<L, 11, 2, MASKED> { lhs, rhs, depth, ends }),
            12 => simd.call(Tile::<L, 12, 2, MASKED> { lhs, rhs, depth, ends }),
            13 => simd.call(Tile::<L, 13, 2, MASKED> { lhs, rhs, depth, ends }),
            14 => simd.call(Tile::<L, 14, 2, MASKED> { lhs, rhs, depth, ends }),
            _ => {}
        }
    }
}

/// A tile of `MR` rows and `NV` vectors: `to = from + lhs * rhs`, one chain per output. A function of its own.
///
/// Whoever makes one vouches that
/// - `(NV - 1) * LANES < ends.columns <= NV * LANES`;
/// - `lhs.at(i, k)` is readable for `i < MR`, `k < depth`;
/// - at `rhs.row(k)`, `NV * LANES` floats are readable, or `ends.columns` if `MASKED`, for `k < depth`;
/// - `MR` rows of `ends.columns` floats are readable at `ends.from` (unless null) and writable at `ends.to`.
struct Tile<L, const MR: usize, const NV: usize, const MASKED: bool> {
    lhs: L,
    rhs: StridedRhs,
    depth: usize,
    ends: Ends,
}

impl<L: LhsAddress, const MR: usize, const NV: usize, const MASKED: bool> Job for Tile<L, MR, NV, MASKED> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { lhs, rhs, depth, ends } = self;
        let whole = ends.columns == NV * S::LANES;
        let mask = simd.mask_first(ends.columns - (NV - 1) * S::LANES);
        let mut acc = [[simd.zero(); NV]; MR];
        // SAFETY: the caller's contract; vectors before the last are whole, the last is masked unless it is whole too.
        unsafe {
            // The lines of the output arrive while the loop runs.
            for i in 0..MR {
                simd.prefetch(ends.to.offset(i as isize * ends.to_stride));
            }
            if !ends.from.is_null() {
                for i in 0..MR {
                    let row = ends.from.offset(i as isize * ends.from_stride);
                    for v in 0..NV {
                        let from = row.add(v * S::LANES);
                        acc[i][v] = if whole || v + 1 < NV { simd.load(from) } else { simd.load_masked(from, mask) };
                    }
                }
            }
            if MASKED && !whole {
                multiply_masked::<S, MR, NV>(simd, &mut acc, lhs, rhs, depth, mask);
            } else if let Some(panel) = lhs.packed_panel(MR)
                && rhs.row_stride == (NV * S::LANES) as isize
            {
                // Distances that are constants cost no instruction in the loop.
                let rhs = StridedRhs { start: rhs.start, row_stride: (NV * S::LANES) as isize };
                multiply::<S, MR, NV>(simd, &mut acc, PackedPanel::<MR>(panel), rhs, depth);
            } else {
                multiply::<S, MR, NV>(simd, &mut acc, lhs, rhs, depth);
            }
            for i in 0..MR {
                let row = ends.to.offset(i as isize * ends.to_stride);
                for v in 0..NV {
                    let to = row.add(v * S::LANES);
                    if whole || v + 1 < NV {
                        simd.store(to, acc[i][v]);
                    } else {
                        simd.store_masked(to, mask, acc[i][v]);
                    }
                }
            }
        }
    }
}
