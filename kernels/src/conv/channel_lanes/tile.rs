//! Tiles of pixels x output channels: chains started or continued.

use super::MAX_ROWS;
use crate::gemm::micro::{OffsetLhs, PackedPanel, StridedRhs, multiply};
use crate::simd::{Job, Simd};

/// The left-hand side of a tile.
#[derive(Clone, Copy)]
pub(super) enum Lhs<'a> {
    Packed(*const f32),
    Windows(&'a [*const f32; MAX_ROWS], *const usize),
}

/// A tile of `rows` pixels x `row_len` channels.
#[derive(Clone, Copy)]
pub(super) struct Tile<'a> {
    /// Readable for all rows and `depth` columns.
    pub lhs: Lhs<'a>,
    /// A panel of `depth` rows of `row_len`.
    pub rhs: *const f32,
    pub depth: usize,
    /// Writable for all rows of `row_len`; holds sums unless `first`.
    pub sums: *mut f32,
    pub first: bool,
}

impl Tile<'_> {
    /// Starts or continues the chains.
    ///
    /// # Safety
    /// - The pointers keep what the fields promise for `rows` rows of `row_len`.
    #[inline(always)]
    pub unsafe fn multiply<S: Simd>(self, simd: S, rows: usize, row_len: usize) {
        match row_len / S::LANES {
            1 => self.by_rows::<S, 1>(simd, rows),
            2 => self.by_rows::<S, 2>(simd, rows),
            3 => self.by_rows::<S, 3>(simd, rows),
            _ => {
                debug_assert_eq!(row_len, 4 * S::LANES);
                self.by_rows::<S, 4>(simd, rows);
            }
        }
    }

    /// Picks the instance for the number of rows.
    #[inline(always)]
    fn by_rows<S: Simd, const V: usize>(self, simd: S, rows: usize) {
        match rows {
            1 => simd.call(FixedTile::<1, V>(self)),
            2 => simd.call(FixedTile::<2, V>(self)),
            3 => simd.call(FixedTile::<3, V>(self)),
            4 => simd.call(FixedTile::<4, V>(self)),
            5 => simd.call(FixedTile::<5, V>(self)),
            _ => {
                debug_assert_eq!(rows, MAX_ROWS);
                simd.call(FixedTile::<MAX_ROWS, V>(self));
            }
        }
    }
}

/// A tile whose size is known at compile time: `ROWS` rows of `V` vectors.
struct FixedTile<'a, const ROWS: usize, const V: usize>(Tile<'a>);

impl<const ROWS: usize, const V: usize> Job for FixedTile<'_, ROWS, V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // Tiles that do not fit the registers are never asked for: this keeps their code from being generated.
        if ROWS * V + V + 1 > S::REGISTERS {
            return;
        }
        let Tile { lhs, rhs, depth, sums, first } = self.0;
        let row_len = V * S::LANES;
        let rhs = StridedRhs { start: rhs, row_stride: row_len as isize };
        let mut acc = [[simd.zero(); V]; ROWS];
        // SAFETY: the contract of `Tile::multiply`.
        unsafe {
            if !first {
                for i in 0..ROWS {
                    for v in 0..V {
                        acc[i][v] = simd.load(sums.add(i * row_len + v * S::LANES));
                    }
                }
            }
            match lhs {
                Lhs::Packed(panel) => multiply(simd, &mut acc, PackedPanel::<ROWS>(panel), rhs, depth),
                Lhs::Windows(windows, offsets) => {
                    let mut rows = [windows[0]; ROWS];
                    rows.copy_from_slice(&windows[..ROWS]);
                    multiply(simd, &mut acc, OffsetLhs { rows, offsets }, rhs, depth);
                }
            }
            for i in 0..ROWS {
                for v in 0..V {
                    simd.store(sums.add(i * row_len + v * S::LANES), acc[i][v]);
                }
            }
        }
    }
}
