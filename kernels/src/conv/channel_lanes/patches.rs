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

/// Packs the patches of a tile of `rows` pixels, whose windows start at `windows`: `to[k * rows + i] = windows[i] +
/// offsets[k]`.
///
/// # Safety
/// - All of these elements are readable, and `to` has room for them; `rows` is 1 to `MAX_ROWS`.
pub(super) unsafe fn pack_windows(windows: &[*const f32; MAX_ROWS], rows: usize, offsets: &[usize], to: *mut f32) {
    debug_assert!((1..=MAX_ROWS).contains(&rows));
    // SAFETY: passed on.
    unsafe {
        match rows {
            5 => pack_rows::<5>(windows, offsets, to),
            6 => pack_rows::<6>(windows, offsets, to),
            _ => {
                for (k, offset) in offsets.iter().enumerate() {
                    for i in 0..rows {
                        *to.add(k * rows + i) = *windows[i].add(*offset);
                    }
                }
            }
        }
    }
}

/// [`pack_windows`] of as many rows as most tiles have.
///
/// # Safety
/// - As for [`pack_windows`].
unsafe fn pack_rows<const ROWS: usize>(windows: &[*const f32; MAX_ROWS], offsets: &[usize], to: *mut f32) {
    let neighbours = (1..ROWS).all(|i| windows[i] == windows[0].wrapping_add(i));
    for (k, offset) in offsets.iter().enumerate() {
        // SAFETY: the caller's contract.
        unsafe {
            let to = to.add(k * ROWS).cast::<[f32; ROWS]>();
            to.write(if neighbours {
                windows[0].add(*offset).cast::<[f32; ROWS]>().read()
            } else {
                std::array::from_fn(|i| *windows[i].add(*offset))
            });
        }
    }
}
