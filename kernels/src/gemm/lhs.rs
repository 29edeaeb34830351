//! Where a tile's left-hand elements lie: in packed panels, in rows or columns of a matrix, at offsets of a table.
//!
//! ```text
//! PackedPanel, ContiguousColumns    │ column k: MR neighbours
//! ContiguousRows, RowsAhead         │ row i: neighbours, k after k
//! ColumnBlocks                      │ row i: 16 neighbours; the next 16 columns stand elsewhere
//! RowsLhs, OffsetLhs                │ row i anywhere, column k at an offset of a table
//! ```

use crate::simd::Simd;
use crate::workspace::LINE;

/// Where the tile's `MR` left-hand elements of column `k` are.
pub(crate) trait LhsAddress: Copy {
    /// Columns that lie at regular distances; after so many, [`LhsAddress::from`] says where the next are.
    const BLOCK: usize = usize::MAX;

    /// Whether the loop over `k` may take several steps at a time. Not where tall tiles read rows that lie apart by
    /// what is known at run time only: of 16 registers there are none left for it (788 x 1152 x 384, AVX2 on Zen 4:
    /// 67 GFLOP/s four at a time, 106 one by one).
    const UNROLLS: bool = true;

    /// The operand from column `k` on, a multiple of `BLOCK`.
    #[inline(always)]
    fn from(self, _k: usize) -> Self {
        self
    }

    /// The address of the element in row `i` of column `k`.
    ///
    /// # Safety
    /// - `i` and `k` are within the operand.
    unsafe fn at(&self, i: usize, k: usize) -> *const f32;

    /// What else is done while column `k` of `rows` rows is multiplied.
    #[inline(always)]
    fn meanwhile<S: Simd>(&self, _simd: S, _k: usize, _rows: usize) {}

    /// The start of the operand if it is a packed panel of `rows` rows, whose distances the compiler then knows.
    #[inline(always)]
    fn packed_panel(&self, _rows: usize) -> Option<*const f32> {
        None
    }
}

/// A packed panel: the `ROWS` elements of a column are neighbours.
#[derive(Clone, Copy)]
pub(crate) struct PackedPanel<const ROWS: usize>(pub *const f32);

impl<const ROWS: usize> LhsAddress for PackedPanel<ROWS> {
    #[inline(always)]
    unsafe fn at(&self, i: usize, k: usize) -> *const f32 {
        // SAFETY: the caller's contract.
        unsafe { self.0.add(k * ROWS + i) }
    }
}

/// A matrix whose rows are contiguous: the elements of a row are neighbours.
#[derive(Clone, Copy)]
pub(crate) struct ContiguousRows {
    pub start: *const f32,
    pub row_stride: isize,
}

impl LhsAddress for ContiguousRows {
    #[inline(always)]
    unsafe fn at(&self, i: usize, k: usize) -> *const f32 {
        // SAFETY: the caller's contract.
        unsafe { self.start.offset(i as isize * self.row_stride).add(k) }
    }
}

/// Whether there is time to ask for what comes later: a step of 14 x 2 vectors lasts 28 cycles or 14, one of 6 x 2 only
/// 6, and its addresses fill the registers (32 x 32 x 32, AVX2 on Zen 4: 85 GFLOP/s without, 68 with). Nor between
/// small tiles, whose outputs and shares of the next block are many requests at once: without any, 512 x 512 x 512 runs
/// at 88.5 GFLOP/s instead of 86.9, and Winograd's products 3 to 16 % faster (AVX2 on Zen 4, peak 91.3).
#[inline(always)]
pub(crate) const fn asks_ahead<S: Simd>() -> bool {
    S::REGISTERS >= 32
}

/// Rows of a strip at least that others may follow: strips have 14 rows at most and are nearly equal.
const ALONE: usize = 7;

/// Rows that are contiguous, while those of the next strip are asked for: runs of a few cache lines are too short for
/// the hardware to foresee. Of each line's worth of columns, one row a step.
#[derive(Clone, Copy)]
pub(crate) struct RowsAhead {
    pub rows: ContiguousRows,
    /// Row 0 of the next strip; as far apart as these.
    pub next: *const f32,
}

impl RowsAhead {
    /// Nothing but what is there already is asked for.
    pub fn alone(rows: ContiguousRows) -> Self {
        Self { rows, next: rows.start }
    }
}

impl LhsAddress for RowsAhead {
    const UNROLLS: bool = false;

    #[inline(always)]
    unsafe fn at(&self, i: usize, k: usize) -> *const f32 {
        // SAFETY: the caller's contract.
        unsafe { self.rows.at(i, k) }
    }

    #[inline(always)]
    fn meanwhile<S: Simd>(&self, simd: S, k: usize, rows: usize) {
        // Strips of fewer rows than half of the tallest come alone: none follows. And where weights come from memory
        // row by row, one request more a row took AlexNet's dense layers of one image 60 % longer.
        if !asks_ahead::<S>() || rows < ALONE {
            return;
        }
        let row = (k % LINE).min(rows - 1) as isize;
        simd.prefetch(self.next.wrapping_offset(row.wrapping_mul(self.rows.row_stride)).wrapping_add(k / LINE * LINE));
    }
}

/// A matrix whose columns are contiguous: a packed panel of any height, or a transposed matrix.
#[derive(Clone, Copy)]
pub(crate) struct ContiguousColumns {
    pub start: *const f32,
    pub column_stride: isize,
}

impl LhsAddress for ContiguousColumns {
    #[inline(always)]
    unsafe fn at(&self, i: usize, k: usize) -> *const f32 {
        // SAFETY: the caller's contract.
        unsafe { self.start.offset(k as isize * self.column_stride).add(i) }
    }

    #[inline(always)]
    fn packed_panel(&self, rows: usize) -> Option<*const f32> {
        (self.column_stride == rows as isize).then_some(self.start)
    }
}

/// Blocks of 16 columns, a row of a block in one cache line and the rows side by side: what a transform leaves that
/// works on 16 channels at once. The addresses of a block differ by constants.
#[derive(Clone, Copy)]
pub(crate) struct ColumnBlocks {
    pub start: *const f32,
    pub block_stride: usize,
}

impl LhsAddress for ColumnBlocks {
    const BLOCK: usize = 16;

    #[inline(always)]
    fn from(self, k: usize) -> Self {
        Self { start: self.start.wrapping_add(k / Self::BLOCK * self.block_stride), ..self }
    }

    #[inline(always)]
    unsafe fn at(&self, i: usize, k: usize) -> *const f32 {
        // SAFETY: the caller's contract.
        unsafe { self.start.add(i * Self::BLOCK + k) }
    }
}

/// Rows at any address, each a run of elements `step` apart.
#[derive(Clone, Copy)]
pub(crate) struct RowsLhs<const ROWS: usize> {
    pub rows: [*const f32; ROWS],
    pub step: isize,
}

impl<const ROWS: usize> LhsAddress for RowsLhs<ROWS> {
    #[inline(always)]
    unsafe fn at(&self, i: usize, k: usize) -> *const f32 {
        // SAFETY: the caller's contract.
        unsafe { self.rows[i].offset(k as isize * self.step) }
    }
}

/// Rows at any address whose elements are found by a table of offsets.
#[derive(Clone, Copy)]
pub(crate) struct OffsetLhs<const ROWS: usize> {
    pub rows: [*const f32; ROWS],
    pub offsets: *const usize,
}

impl<const ROWS: usize> LhsAddress for OffsetLhs<ROWS> {
    #[inline(always)]
    unsafe fn at(&self, i: usize, k: usize) -> *const f32 {
        // SAFETY: the caller's contract.
        unsafe { self.rows[i].add(*self.offsets.add(k)) }
    }
}
