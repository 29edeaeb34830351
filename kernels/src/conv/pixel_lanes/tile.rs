//! Tiles of output channels x pixels: chains started or continued, and the short way to the output.
//!
//! ```text
//! rhs      |  tile 0  |  tile 1  |  tile 2  |      so many elements apart
//! output   |  tile 0  |  tile 1  |  tile 2  |      one behind the other
//! ```
//!
//! Tiles that follow each other on both sides are one call: with 27 products to a sum, as in the first layer of a
//! network, finding a tile's place takes a tenth of its time.

use super::{MAX_ROWS, NV};
use crate::conv::sums::{load_sums, store_sums};
use crate::gemm::lhs::PackedPanel;
use crate::gemm::micro::multiply;
use crate::gemm::rhs::{BrokenRhs, OffsetRhs, PackingRhs, RhsAddress, ScatteredRhs, StridedRhs};
use crate::simd::{Job, Simd};

/// Right-hand rows that go on: those of the tile to the right.
pub(super) trait Onward: RhsAddress {
    /// The rows `elements` further.
    fn onward(self, elements: usize) -> Self;
}

impl Onward for StridedRhs {
    #[inline(always)]
    fn onward(self, elements: usize) -> Self {
        Self { start: self.start.wrapping_add(elements), ..self }
    }
}

impl Onward for OffsetRhs {
    #[inline(always)]
    fn onward(self, elements: usize) -> Self {
        Self { start: self.start.wrapping_add(elements), ..self }
    }
}

impl Onward for ScatteredRhs<NV> {
    #[inline(always)]
    fn onward(self, elements: usize) -> Self {
        Self { starts: self.starts.map(|start| start.wrapping_add(elements)), ..self }
    }
}

impl Onward for BrokenRhs<NV> {
    #[inline(always)]
    fn onward(self, elements: usize) -> Self {
        Self { first: self.first.onward(elements), ..self }
    }
}

/// Tiles that are packed on the way come one by one.
impl Onward for PackingRhs {
    #[inline(always)]
    fn onward(self, _: usize) -> Self {
        self
    }
}

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

/// Tiles side by side: how many, and how far apart their right-hand rows and their sums lie.
#[derive(Clone, Copy)]
pub(super) struct Series {
    pub count: usize,
    pub rhs_step: usize,
    pub sums_step: usize,
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
    /// Whether results below 0 become 0.
    pub relu: bool,
    /// Whether whole vectors are written past the caches; they are aligned then.
    pub stream: bool,
}

impl Whole {
    /// Adds the bias, cuts off below 0, writes.
    ///
    /// # Safety
    /// - The pointers keep what the fields promise for `ROWS` rows of at most `V` vectors, more than `V - 1` of them.
    #[inline(always)]
    unsafe fn write<S: Simd, const ROWS: usize, const V: usize>(self, simd: S, acc: &[[S::F; V]; ROWS]) {
        // SAFETY: passed on.
        unsafe {
            if self.relu {
                self.write_as::<S, ROWS, V, true>(simd, acc);
            } else {
                self.write_as::<S, ROWS, V, false>(simd, acc);
            }
        }
    }

    /// [`Whole::write`] for a `relu` known at compile time. The loops hold nothing but what they must, so that the sums
    /// stay in their registers; a comparison takes as long as a product.
    ///
    /// # Safety
    /// - As for [`Whole::write`].
    #[inline(always)]
    unsafe fn write_as<S: Simd, const ROWS: usize, const V: usize, const RELU: bool>(
        self,
        simd: S,
        acc: &[[S::F; V]; ROWS],
    ) {
        let Self { output, len, plane, bias, stream, .. } = self;
        let last = len - (V - 1) * S::LANES;
        // SAFETY: the caller's contract.
        unsafe {
            let result = |i: usize, v: usize| {
                let value = simd.add(acc[i][v], simd.splat(*bias.add(i)));
                // False for NaN, which stays.
                if RELU { simd.select(simd.le(value, simd.zero()), simd.zero(), value) } else { value }
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

impl<R: Onward> Tile<R> {
    /// Starts or continues the chains of tiles of which this is the first.
    ///
    /// # Safety
    /// - The pointers keep what the fields promise for `rows` rows of every tile; if there are several, `len` is `NV *
    ///   LANES`.
    #[inline(always)]
    pub unsafe fn multiply<S: Simd>(self, simd: S, rows: usize, len: usize, series: Series) {
        if len <= S::LANES {
            self.by_rows::<S, 1>(simd, rows, series);
        } else {
            self.by_rows::<S, NV>(simd, rows, series);
        }
    }

    /// Picks the instance for the number of rows.
    #[inline(always)]
    fn by_rows<S: Simd, const V: usize>(self, simd: S, rows: usize, series: Series) {
        match rows {
            1 => simd.call(FixedTiles::<R, 1, V>(self, series)),
            2 => simd.call(FixedTiles::<R, 2, V>(self, series)),
            3 => simd.call(FixedTiles::<R, 3, V>(self, series)),
            4 => simd.call(FixedTiles::<R, 4, V>(self, series)),
            5 => simd.call(FixedTiles::<R, 5, V>(self, series)),
            6 => simd.call(FixedTiles::<R, 6, V>(self, series)),
            7 => simd.call(FixedTiles::<R, 7, V>(self, series)),
            8 => simd.call(FixedTiles::<R, 8, V>(self, series)),
            9 => simd.call(FixedTiles::<R, 9, V>(self, series)),
            10 => simd.call(FixedTiles::<R, 10, V>(self, series)),
            11 => simd.call(FixedTiles::<R, 11, V>(self, series)),
            12 => simd.call(FixedTiles::<R, 12, V>(self, series)),
            13 => simd.call(FixedTiles::<R, 13, V>(self, series)),
            _ => {
                debug_assert_eq!(rows, MAX_ROWS);
                simd.call(FixedTiles::<R, MAX_ROWS, V>(self, series));
            }
        }
    }
}

/// Tiles whose size is known at compile time: `ROWS` rows of `V` vectors.
struct FixedTiles<R, const ROWS: usize, const V: usize>(Tile<R>, Series);

impl<R: Onward, const ROWS: usize, const V: usize> Job for FixedTiles<R, ROWS, V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // Tiles that do not fit the registers are never asked for: this keeps their code from being generated.
        if const { ROWS * V + V + 1 > S::REGISTERS } {
            return;
        }
        let Self(Tile { lhs, mut rhs, depth, mut sums, first, mut whole }, Series { count, rhs_step, sums_step }) =
            self;
        let row_len = NV * S::LANES;
        for _ in 0..count {
            let mut acc = [[simd.zero(); V]; ROWS];
            // SAFETY: the contract of `Tile::multiply`.
            unsafe {
                if !first {
                    acc = load_sums(simd, sums, row_len);
                }
                multiply(simd, &mut acc, PackedPanel::<ROWS>(lhs), rhs, depth);
                if let Some(whole) = &mut whole {
                    whole.write(simd, &acc);
                    whole.output = whole.output.wrapping_add(row_len);
                } else {
                    store_sums(simd, &acc, sums, row_len);
                }
            }
            rhs = rhs.onward(rhs_step);
            sums = sums.wrapping_add(sums_step);
        }
    }
}
