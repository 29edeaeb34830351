//! Tiles of output channels x pixels: chains started or continued, and the short way to the output.

use super::{MAX_ROWS, NV};
use crate::activation::{Activation, apply};
use crate::gemm::micro::{PackedPanel, RhsAddress, multiply};
use crate::simd::{Job, Simd};

/// A tile of `rows` x `len`, whose sums lie in rows of `NV * LANES`.
#[derive(Clone, Copy)]
pub(super) struct Tile<R> {
    /// A panel of `rows` rows and `depth` columns.
    pub lhs: *const f32,
    /// `NV * LANES` floats are readable at each of `depth` rows.
    pub rhs: R,
    pub depth: usize,
    /// Writable for all rows; holds sums unless `first`.
    pub sums: *mut f32,
    pub first: bool,
    /// Where the results go from the registers, if the tile is complete and nothing of it is cut off.
    pub whole: Option<Whole>,
}

/// The results of a whole tile, with no step between them.
#[derive(Clone, Copy)]
pub(super) struct Whole {
    /// Writable for `NV * LANES` elements of each row.
    pub output: *mut f32,
    /// From one row to the next.
    pub plane: usize,
    /// A bias for each row, or null.
    pub bias: *const f32,
    pub relu: bool,
}

impl<R: RhsAddress> Tile<R> {
    /// Starts or continues the chains.
    ///
    /// # Safety
    /// - The pointers keep what the fields promise for `rows` rows.
    #[inline(always)]
    pub unsafe fn multiply<S: Simd>(self, simd: S, rows: usize, len: usize) {
        if len <= S::LANES { self.by_rows::<S, 1>(simd, rows) } else { self.by_rows::<S, NV>(simd, rows) }
    }

    /// Picks the instance for the number of rows.
    #[inline(always)]
    fn by_rows<S: Simd, const V: usize>(self, simd: S, rows: usize) {
        match rows {
            1 => simd.call(FixedTile::<R, 1, V>(self)),
            2 => simd.call(FixedTile::<R, 2, V>(self)),
            3 => simd.call(FixedTile::<R, 3, V>(self)),
            4 => simd.call(FixedTile::<R, 4, V>(self)),
            5 => simd.call(FixedTile::<R, 5, V>(self)),
            6 => simd.call(FixedTile::<R, 6, V>(self)),
            7 => simd.call(FixedTile::<R, 7, V>(self)),
            8 => simd.call(FixedTile::<R, 8, V>(self)),
            9 => simd.call(FixedTile::<R, 9, V>(self)),
            10 => simd.call(FixedTile::<R, 10, V>(self)),
            11 => simd.call(FixedTile::<R, 11, V>(self)),
            12 => simd.call(FixedTile::<R, 12, V>(self)),
            13 => simd.call(FixedTile::<R, 13, V>(self)),
            _ => {
                debug_assert_eq!(rows, MAX_ROWS);
                simd.call(FixedTile::<R, MAX_ROWS, V>(self));
            }
        }
    }
}

/// A tile whose size is known at compile time: `ROWS` rows of `V` vectors.
struct FixedTile<R, const ROWS: usize, const V: usize>(Tile<R>);

impl<R: RhsAddress, const ROWS: usize, const V: usize> Job for FixedTile<R, ROWS, V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // Tiles that do not fit the registers are never asked for: this keeps their code from being generated.
        if ROWS * V + V + 1 > S::REGISTERS {
            return;
        }
        let Tile { lhs, rhs, depth, sums, first, whole } = self.0;
        let row_len = NV * S::LANES;
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
            multiply(simd, &mut acc, PackedPanel::<ROWS>(lhs), rhs, depth);
            if let Some(Whole { output, plane, bias, relu }) = whole {
                for i in 0..ROWS {
                    let bias = if bias.is_null() { simd.zero() } else { simd.splat(*bias.add(i)) };
                    for v in 0..V {
                        let mut value = simd.add(acc[i][v], bias);
                        if relu {
                            value = apply(simd, Activation::Relu, value);
                        }
                        simd.store(output.add(i * plane + v * S::LANES), value);
                    }
                }
                return;
            }
            for i in 0..ROWS {
                for v in 0..V {
                    simd.store(sums.add(i * row_len + v * S::LANES), acc[i][v]);
                }
            }
        }
    }
}
