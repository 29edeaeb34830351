//! Where a tile's right-hand rows lie: in a packed panel or a matrix, at offsets of a table, or in two pieces, and what
//! is done on their way: packing them, asking for those that follow.

use crate::simd::Simd;
use crate::workspace::LINE;

/// Where the tile's right-hand row `k` starts.
pub(crate) trait RhsAddress: Copy {
    /// Whether the loop over `k` may take several steps at a time; what stores in between would need more registers
    /// then.
    const UNROLLS: bool = true;

    /// The address of the first element of row `k`.
    ///
    /// # Safety
    /// - `k` is within the operand.
    unsafe fn row(&self, k: usize) -> *const f32;

    /// The vectors of row `k`, for [`multiply`](super::micro::multiply) alone: where a vector is masked, the others
    /// read from [`RhsAddress::row`] on.
    ///
    /// # Safety
    /// - `k` is within the operand, `NV * LANES` floats of which are readable.
    #[inline(always)]
    unsafe fn load<S: Simd, const NV: usize>(&self, simd: S, k: usize) -> [S::F; NV] {
        let mut row = [simd.zero(); NV];
        // SAFETY: the caller's contract.
        unsafe {
            let from = self.row(k);
            for v in 0..NV {
                row[v] = simd.load(from.add(v * S::LANES));
            }
        }
        row
    }

    /// What else becomes of row `k` once it stands in registers.
    ///
    /// # Safety
    /// - `k` is within the operand.
    #[inline(always)]
    unsafe fn loaded<S: Simd, const NV: usize>(&self, _simd: S, _k: usize, _row: &[S::F; NV]) {}
}

/// Rows at a constant distance: a packed panel, or a matrix whose columns are neighbours.
#[derive(Clone, Copy)]
pub(crate) struct StridedRhs {
    pub start: *const f32,
    pub row_stride: isize,
}

impl RhsAddress for StridedRhs {
    #[inline(always)]
    unsafe fn row(&self, k: usize) -> *const f32 {
        // SAFETY: the caller's contract.
        unsafe { self.start.offset(k as isize * self.row_stride) }
    }
}

/// Memory that is needed soon, asked for little by little: `share` floats with each row of a panel.
#[derive(Clone, Copy)]
pub(crate) struct Later {
    pub at: *const f32,
    pub share: usize,
}

impl Later {
    /// Asks for nothing but what is there already.
    pub fn nothing(there: *const f32) -> Self {
        Self { at: there, share: 0 }
    }
}

/// Rows of a packed panel, while the panel and the strip that follow are asked for.
///
/// What is met for the first time comes from L3 or from memory, and a tile is done sooner than it arrives.
#[derive(Clone, Copy)]
pub(crate) struct StreamedRhs {
    pub start: *const f32,
    pub row_stride: isize,
    pub later: [Later; 2],
}

impl RhsAddress for StreamedRhs {
    #[inline(always)]
    unsafe fn row(&self, k: usize) -> *const f32 {
        // SAFETY: the caller's contract.
        unsafe { self.start.offset(k as isize * self.row_stride) }
    }

    #[inline(always)]
    unsafe fn loaded<S: Simd, const NV: usize>(&self, simd: S, k: usize, _: &[S::F; NV]) {
        for Later { at, share } in self.later {
            simd.prefetch(at.wrapping_add(k * share));
        }
    }
}

/// Rows at a constant distance that are packed on the way: the first strip that meets a panel copies it for the others.
///
/// A row is in registers anyway, and the loop waits for its multiplications, so the copy is free but for the stores.
/// Rows far apart are nothing that the hardware foresees, so each step asks for a later one.
#[derive(Clone, Copy)]
pub(crate) struct PackingRhs {
    pub start: *const f32,
    pub row_stride: isize,
    /// Where row 0 of the packed panel goes.
    pub to: *mut f32,
}

impl PackingRhs {
    /// So many steps ahead a row is asked for: of a tall tile 300 to 700 cycles, what L3 or memory take.
    const AHEAD: usize = 24;
}

impl RhsAddress for PackingRhs {
    const UNROLLS: bool = false;

    #[inline(always)]
    unsafe fn row(&self, k: usize) -> *const f32 {
        // SAFETY: the caller's contract.
        unsafe { self.start.offset(k as isize * self.row_stride) }
    }

    #[inline(always)]
    unsafe fn loaded<S: Simd, const NV: usize>(&self, simd: S, k: usize, row: &[S::F; NV]) {
        let later = self.start.wrapping_offset(((k + Self::AHEAD) as isize).wrapping_mul(self.row_stride));
        for v in 0..NV {
            // SAFETY: the caller's contract; whoever packs has room for the row.
            unsafe { simd.store(self.to.add((k * NV + v) * S::LANES), row[v]) };
            if v * S::LANES % LINE == 0 {
                simd.prefetch(later.wrapping_add(v * S::LANES));
            }
        }
        // Rows seldom start with a cache line, so the last line of a row is one more.
        simd.prefetch(later.wrapping_add(NV * S::LANES - 1));
    }
}

/// Rows found by a table of offsets: the taps of a convolution.
#[derive(Clone, Copy)]
pub(crate) struct OffsetRhs {
    pub start: *const f32,
    pub offsets: *const usize,
}

impl RhsAddress for OffsetRhs {
    #[inline(always)]
    unsafe fn row(&self, k: usize) -> *const f32 {
        // SAFETY: the caller's contract.
        unsafe { self.start.add(*self.offsets.add(k)) }
    }
}

/// Rows as those of [`OffsetRhs`], each vector of which starts where it likes.
#[derive(Clone, Copy)]
pub(crate) struct ScatteredRhs<const VECTORS: usize> {
    pub starts: [*const f32; VECTORS],
    pub offsets: *const usize,
}

impl<const VECTORS: usize> ScatteredRhs<VECTORS> {
    /// Where vector `v` of row `k` starts.
    ///
    /// # Safety
    /// - As for [`RhsAddress::row`].
    #[inline(always)]
    unsafe fn vector(&self, v: usize, k: usize) -> *const f32 {
        // SAFETY: the caller's contract.
        unsafe { self.starts[v].add(*self.offsets.add(k)) }
    }
}

impl<const VECTORS: usize> RhsAddress for ScatteredRhs<VECTORS> {
    #[inline(always)]
    unsafe fn row(&self, k: usize) -> *const f32 {
        // SAFETY: the caller's contract.
        unsafe { self.vector(0, k) }
    }

    #[inline(always)]
    unsafe fn load<S: Simd, const NV: usize>(&self, simd: S, k: usize) -> [S::F; NV] {
        let mut row = [simd.zero(); NV];
        for v in 0..NV {
            // SAFETY: the caller's contract.
            row[v] = unsafe { simd.load(self.vector(v, k)) };
        }
        row
    }
}

/// Rows as those of [`ScatteredRhs`], some vectors of which are in two pieces: pixels up to the end of a line of the
/// image, and on from the start of the next. A second load costs nothing where a step waits for its multiplications.
///
/// ```text
/// memory   . . . a a a a | gap | a a a a a a . . .
/// vector         a a a a         a a a a a a             `kept` of the first piece
/// ```
///
/// Whoever makes one vouches that of every vector both pieces are readable, whole: `LANES` floats at its start, and as
/// many `gap` floats behind it, at each offset.
#[derive(Clone, Copy)]
pub(crate) struct BrokenRhs<const VECTORS: usize> {
    /// The first pieces.
    pub first: ScatteredRhs<VECTORS>,
    /// Lanes of each vector before the gap.
    pub kept: [usize; VECTORS],
    pub gap: usize,
}

impl<const VECTORS: usize> RhsAddress for BrokenRhs<VECTORS> {
    #[inline(always)]
    unsafe fn row(&self, k: usize) -> *const f32 {
        // SAFETY: the caller's contract.
        unsafe { self.first.row(k) }
    }

    #[inline(always)]
    unsafe fn load<S: Simd, const NV: usize>(&self, simd: S, k: usize) -> [S::F; NV] {
        let mut row = [simd.zero(); NV];
        for v in 0..NV {
            // SAFETY: the promise of the maker, for both pieces.
            unsafe {
                let from = self.first.vector(v, k);
                let (before, behind) = (simd.load(from), simd.load(from.add(self.gap)));
                row[v] = simd.select(simd.mask_first(self.kept[v]), before, behind);
            }
        }
        row
    }
}
