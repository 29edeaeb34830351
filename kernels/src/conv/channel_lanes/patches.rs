//! What the sums of a tile of pixels run through: their patches, packed or where they are, and a panel of weights.

use crate::conv::channel_tile::{MAX_ROWS, Products};
use crate::gemm::lhs::{OffsetLhs, PackedPanel};
use crate::gemm::micro::multiply;
use crate::gemm::rhs::StridedRhs;
use crate::simd::Simd;

/// The left-hand side of a tile.
#[derive(Clone, Copy)]
pub(super) enum Lhs<'a> {
    Packed(*const f32),
    Windows(&'a [*const f32; MAX_ROWS], *const usize),
}

/// The patches of a tile's pixels times a panel.
#[derive(Clone, Copy)]
pub(super) struct Patches<'a> {
    /// Readable for all rows and `depth` columns.
    pub lhs: Lhs<'a>,
    /// A panel of `depth` rows as wide as the tile's.
    pub rhs: *const f32,
    pub depth: usize,
}

impl Products for Patches<'_> {
    #[inline(always)]
    unsafe fn add_to<S: Simd, const ROWS: usize, const V: usize>(self, simd: S, acc: &mut [[S::F; V]; ROWS]) {
        let Self { lhs, rhs, depth } = self;
        let rhs = StridedRhs { start: rhs, row_stride: (V * S::LANES) as isize };
        // SAFETY: what the fields promise.
        unsafe {
            match lhs {
                Lhs::Packed(panel) => multiply(simd, acc, PackedPanel::<ROWS>(panel), rhs, depth),
                Lhs::Windows(windows, offsets) => {
                    let mut rows = [windows[0]; ROWS];
                    rows.copy_from_slice(&windows[..ROWS]);
                    multiply(simd, acc, OffsetLhs { rows, offsets }, rhs, depth);
                }
            }
        }
    }
}
