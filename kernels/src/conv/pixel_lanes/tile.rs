//! Tiles of output channels x pixels: chains started or continued, and the short way to the output.

use super::{MAX_ROWS, NV};
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
    /// Where the results go from the registers, if the tile is complete and one run.
    pub whole: Option<Whole>,
}

/// The results of a whole tile, with no step between them.
#[derive(Clone, Copy)]
pub(super) struct Whole {
    /// Writable for `len` elements of each row.
    pub output: *mut f32,
    /// At least one, and as many as the tile has vectors for.
    pub len: usize,
    /// From one row to the next.
    pub plane: usize,
    /// A bias for each row.
    pub bias: *const f32,
    /// Smaller results become this.
    pub least: f32,
    /// Whether whole vectors are written past the caches; they are aligned then.
    pub stream: bool,
}

impl Whole {
    /// Adds the bias, cuts off below, writes. The loops hold nothing but that, so that the sums stay in their registers.
    ///
    /// # Safety
    /// - The pointers keep what the fields promise for `ROWS` rows of at most `V` vectors, more than `V - 1` of them.
    #[inline(always)]
    unsafe fn write<S: Simd, const ROWS: usize, const V: usize>(self, simd: S, acc: &[[S::F; V]; ROWS]) {
        let Self { output, len, plane, bias, least, stream } = self;
        let least = simd.splat(least);
        let last = len - (V - 1) * S::LANES;
        // SAFETY: the caller's contract.
        unsafe {
            let result = |i: usize, v: usize| {
                let value = simd.add(acc[i][v], simd.splat(*bias.add(i)));
                // False for NaN, which stays.
                simd.select(simd.le(value, least), least, value)
            };
            let to = |i: usize, v: usize| output.add(i * plane + v * S::LANES);
            if last < S::LANES {
                let mask = simd.mask_first(last);
                for i in 0..ROWS {
                    for v in 0..V - 1 {
                        simd.store(to(i, v), result(i, v));
                    }
                    simd.store_masked(to(i, V - 1), mask, result(i, V - 1));
                }
            } else if stream {
                for i in 0..ROWS {
                    for v in 0..V {
                        simd.stream(to(i, v), result(i, v));
                    }
                }
            } else {
                for i in 0..ROWS {
                    for v in 0..V {
                        simd.store(to(i, v), result(i, v));
                    }
                }
            }
        }
    }
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
            if let Some(whole) = whole {
                return whole.write(simd, &acc);
            }
            for i in 0..ROWS {
                for v in 0..V {
                    simd.store(sums.add(i * row_len + v * S::LANES), acc[i][v]);
                }
            }
        }
    }
}
