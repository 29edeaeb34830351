//! Tiles whose number of rows is chosen at run time: each number has a function of its own.

use super::call::MR;
use crate::simd::{Job, Simd};

/// A tile of `MR` rows, or of as many as there are.
pub(super) trait OfRows: Sized {
    /// What a tile leaves.
    type Output;
    /// The tile of `M` rows.
    type Of<const M: usize>: Job<Output = Self::Output>;

    /// The first `M` rows.
    fn of_rows<const M: usize>(self) -> Self::Of<M>;
}

/// Runs the first `rows` rows of a tile, 1 to `MR`.
#[inline(always)]
pub(super) fn by_rows<S: Simd, T: OfRows>(simd: S, rows: usize, tile: T) -> T::Output {
    debug_assert!((1..=MR).contains(&rows));
    match rows {
        1 => simd.call(tile.of_rows::<1>()),
        2 => simd.call(tile.of_rows::<2>()),
        3 => simd.call(tile.of_rows::<3>()),
        4 => simd.call(tile.of_rows::<4>()),
        5 => simd.call(tile.of_rows::<5>()),
        _ => simd.call(tile.of_rows::<MR>()),
    }
}
