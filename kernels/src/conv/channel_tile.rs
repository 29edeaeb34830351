//! Tiles of a few rows x the output channels of a panel: sums started or continued, whatever the rows are.
//!
//! ```text
//!              panel: 1 to 4 vectors of output channels
//!             ┌───────────────────────────┐
//!   up to 6   │ sums in registers         │  += the products of all k, in order      [`Products`]
//!   rows      └───────────────────────────┘
//! ```
//!
//! Rows are pixels where outputs are computed, and pairs of an input channel and a tap where weights' gradients are.

use super::sums::{load_sums, store_sums};
use crate::simd::{Isa, Job, Simd};

/// Rows of a tile: as many row addresses as the general registers hold.
pub(super) const MAX_ROWS: usize = 6;

/// Vectors of a panel, so that six rows of them fill the registers.
pub(super) const fn panel_vectors(isa: Isa) -> usize {
    match isa {
        Isa::Avx512 => 4,
        Isa::Avx2 | Isa::Portable => 2,
    }
}

/// What the sums of a tile run through.
pub(super) trait Products: Copy {
    /// Continues the chains of `ROWS` rows of `V` vectors. Must be `#[inline(always)]`.
    ///
    /// # Safety
    /// - The operands are those of a tile of this size.
    unsafe fn add_to<S: Simd, const ROWS: usize, const V: usize>(self, simd: S, acc: &mut [[S::F; V]; ROWS]);
}

/// A tile of a panel whose rows have `row_len` channels.
#[derive(Clone, Copy)]
pub(super) struct ChannelTile<P> {
    pub products: P,
    /// Writable for all rows of `row_len`; holds sums unless `first`.
    pub sums: *mut f32,
    pub first: bool,
}

impl<P: Products> ChannelTile<P> {
    /// Starts or continues the chains.
    ///
    /// # Safety
    /// - `sums` keeps what it promises for `rows` rows of `row_len`, and so do the operands of the products.
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
            1 => simd.call(FixedTile::<P, 1, V>(self)),
            2 => simd.call(FixedTile::<P, 2, V>(self)),
            3 => simd.call(FixedTile::<P, 3, V>(self)),
            4 => simd.call(FixedTile::<P, 4, V>(self)),
            5 => simd.call(FixedTile::<P, 5, V>(self)),
            _ => {
                debug_assert_eq!(rows, MAX_ROWS);
                simd.call(FixedTile::<P, MAX_ROWS, V>(self));
            }
        }
    }
}

/// A tile whose size is known at compile time: `ROWS` rows of `V` vectors.
struct FixedTile<P, const ROWS: usize, const V: usize>(ChannelTile<P>);

impl<P: Products, const ROWS: usize, const V: usize> Job for FixedTile<P, ROWS, V> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        // Tiles that do not fit the registers are never asked for: this keeps their code from being generated.
        if const { ROWS * V + V + 1 > S::REGISTERS } {
            return;
        }
        let ChannelTile { products, sums, first } = self.0;
        let row_len = V * S::LANES;
        let mut acc = [[simd.zero(); V]; ROWS];
        // SAFETY: the contract of `ChannelTile::multiply`.
        unsafe {
            if !first {
                acc = load_sums(simd, sums, row_len);
            }
            products.add_to(simd, &mut acc);
            store_sums(simd, &acc, sums, row_len);
        }
    }
}
