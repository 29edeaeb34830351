//! What the sums of a tile of pixels run through: their patches, packed or where they are, and a panel of weights.

use crate::conv::channel_tile::{MAX_ROWS, Products};
use crate::gemm::lhs::{OffsetLhs, PackedPanel};
use crate::gemm::micro::multiply;
use crate::gemm::rhs::{RhsAddress, StridedRhs};
use crate::simd::{Job, Simd};

/// The left-hand side of a tile.
#[derive(Clone, Copy)]
pub(super) enum Lhs<'a> {
    Packed(*const f32),
    Windows(&'a [*const f32; MAX_ROWS], *const usize),
}

impl Lhs<'_> {
    /// [`multiply`] with these rows.
    ///
    /// # Safety
    /// - They are readable for `ROWS` rows and `depth` columns; that of [`multiply`] for `rhs`.
    #[inline(always)]
    pub unsafe fn multiply<S: Simd, const ROWS: usize, const V: usize>(
        self,
        simd: S,
        acc: &mut [[S::F; V]; ROWS],
        rhs: impl RhsAddress,
        depth: usize,
    ) {
        // SAFETY: passed on.
        unsafe {
            match self {
                Self::Packed(panel) => multiply(simd, acc, PackedPanel::<ROWS>(panel), rhs, depth),
                Self::Windows(windows, offsets) => {
                    let mut rows = [windows[0]; ROWS];
                    rows.copy_from_slice(&windows[..ROWS]);
                    multiply(simd, acc, OffsetLhs { rows, offsets }, rhs, depth);
                }
            }
        }
    }
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
        let rhs = StridedRhs { start: self.rhs, row_stride: (V * S::LANES) as isize };
        // SAFETY: what the fields promise.
        unsafe { self.lhs.multiply(simd, acc, rhs, self.depth) }
    }
}

/// Packs the patches of a tile of `rows` pixels, whose windows start at `windows`: `to[k * rows + i] = windows[i] +
/// offsets[k]`.
///
/// # Safety
/// - All of these elements are readable, and `to` has room for them; `rows` is 1 to `MAX_ROWS`.
#[inline(always)]
pub(super) unsafe fn pack_windows<S: Simd>(
    simd: S,
    windows: &[*const f32; MAX_ROWS],
    rows: usize,
    offsets: &[usize],
    to: *mut f32,
) {
    debug_assert!((1..=MAX_ROWS).contains(&rows));
    match rows {
        5 => simd.call(PackRows::<5> { windows, offsets, to }),
        6 => simd.call(PackRows::<6> { windows, offsets, to }),
        _ => {
            for (k, offset) in offsets.iter().enumerate() {
                for i in 0..rows {
                    // SAFETY: the caller's contract.
                    unsafe { *to.add(k * rows + i) = *windows[i].add(*offset) };
                }
            }
        }
    }
}

/// [`pack_windows`] of as many rows as most tiles have, with its contract.
struct PackRows<'a, const ROWS: usize> {
    windows: &'a [*const f32; MAX_ROWS],
    offsets: &'a [usize],
    to: *mut f32,
}

impl<const ROWS: usize> Job for PackRows<'_, ROWS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { windows, offsets, to } = self;
        let neighbours = (1..ROWS).all(|i| windows[i] == windows[0].wrapping_add(i));
        let mut square = [0.0f32; 16 * 16];
        let mut k = 0;
        // SAFETY: the contract; a square that is transposed writes no further than the columns that follow.
        unsafe {
            while k < offsets.len() {
                // Taps side by side, as of a patch of 16 x 16: a square of them at once.
                let fits = (k + S::LANES) * ROWS + S::LANES - ROWS.min(S::LANES) <= offsets.len() * ROWS;
                if !neighbours && ROWS <= S::LANES && fits && is_run(&offsets[k..k + S::LANES]) {
                    for i in 0..ROWS {
                        simd.store(square.as_mut_ptr().add(i * S::LANES), simd.load(windows[i].add(offsets[k])));
                    }
                    simd.transpose(square.as_ptr(), S::LANES as isize, to.add(k * ROWS), ROWS as isize);
                    k += S::LANES;
                    continue;
                }
                let to = to.add(k * ROWS).cast::<[f32; ROWS]>();
                let offset = offsets[k];
                to.write(if neighbours {
                    windows[0].add(offset).cast::<[f32; ROWS]>().read()
                } else {
                    std::array::from_fn(|i| *windows[i].add(offset))
                });
                k += 1;
            }
        }
    }
}

/// Whether each offset is one more than the one before.
#[inline(always)]
fn is_run(offsets: &[usize]) -> bool {
    offsets.iter().enumerate().all(|(i, &offset)| offset == offsets[0] + i)
}
