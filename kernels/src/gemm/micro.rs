//! The micro-kernel: a small tile of the output stays in registers while `k` runs.
//!
//! ```text
//!              rhs row k: NV vectors
//!             ┌────────┬────────┐
//!             └────────┴────────┘        acc[i][v] += lhs[i][k] * rhs[k][v]
//!  lhs    ┌─┐ ┌────────┬────────┐
//!  column │ │ │        │        │
//!  k:     │ │ │  acc   │  acc   │  MR rows
//!  MR     │ │ │        │        │
//!         └─┘ └────────┴────────┘
//! ```
//!
//! One body serves every product of the library. Where its operands lie is a pair of small traits: packed
//! panels, strided matrices, rows found by a table of offsets (a convolution's taps), rows at any address.
//! A chain of fused multiply-adds runs through `k` in order for each output, so how `k` is cut into calls, and
//! how rows and columns are cut into tiles, never changes a bit.
//!
//! Source: K. Goto, R. van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34 (2008).

use crate::simd::Simd;
use crate::workspace::LINE;

/// Where the tile's `MR` left-hand elements of column `k` are.
pub(crate) trait LhsAddress: Copy {
    /// Columns that lie at regular distances; after so many, [`LhsAddress::from`] says where the next are.
    const BLOCK: usize = usize::MAX;

    /// Whether the loop over `k` may take several steps at a time. Not where distances are no constants: of 16 registers there
    /// are none left for it (788 x 1152 x 384, AVX2 on Zen 4: 67 GFLOP/s four at a time, 106 one by one).
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

/// Where the tile's right-hand row `k` starts.
pub(crate) trait RhsAddress: Copy {
    /// Whether the loop over `k` may take several steps at a time; what stores in between would need more registers then.
    const UNROLLS: bool = true;

    /// The address of the first element of row `k`.
    ///
    /// # Safety
    /// - `k` is within the operand.
    unsafe fn row(&self, k: usize) -> *const f32;

    /// The vectors of row `k`, for [`multiply`] alone: where a vector is masked, the others read from [`RhsAddress::row`] on.
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

/// Whether a step has time to ask for what comes later: one of 14 x 2 vectors lasts 28 cycles or 14, one of 6 x 2 only 6,
/// and its addresses fill the registers (32 x 32 x 32, AVX2 on Zen 4: 85 GFLOP/s without, 68 with).
#[inline(always)]
pub(crate) const fn asks_in_steps<S: Simd>() -> bool {
    S::REGISTERS >= 32
}

/// Rows that are contiguous, while those of the next strip are asked for: runs of a few cache lines are too short for the
/// hardware to foresee. Of each line's worth of columns, one row a step.
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
        if !asks_in_steps::<S>() {
            return;
        }
        // Lines of rows that are not there would take the place of weights on their way from memory: one row of AlexNet's
        // dense layers took 17 % longer with them.
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

/// Blocks of 16 columns, a row of a block in one cache line and the rows side by side: what a transform leaves that works
/// on 16 channels at once. The addresses of a block differ by constants.
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

/// Rows as those of [`OffsetRhs`], some vectors of which are in two pieces: pixels up to the end of a line of the image,
/// and on from the start of the next. A second load costs nothing where a step waits for its multiplications.
///
/// ```text
/// memory   . . . a a a a | gap | a a a a a a . . .
/// vector         a a a a         a a a a a a             `kept` of the first piece
/// ```
///
/// Whoever makes one vouches that of every vector both pieces are readable, whole: `LANES` floats at its start, and as many
/// `gap` floats behind it, at each offset.
#[derive(Clone, Copy)]
pub(crate) struct BrokenRhs<const VECTORS: usize> {
    /// Where each vector starts.
    pub starts: [*const f32; VECTORS],
    /// Lanes of each vector before the gap.
    pub kept: [usize; VECTORS],
    pub gap: usize,
    pub offsets: *const usize,
}

impl<const VECTORS: usize> RhsAddress for BrokenRhs<VECTORS> {
    #[inline(always)]
    unsafe fn row(&self, k: usize) -> *const f32 {
        // SAFETY: the caller's contract.
        unsafe { self.starts[0].add(*self.offsets.add(k)) }
    }

    #[inline(always)]
    unsafe fn load<S: Simd, const NV: usize>(&self, simd: S, k: usize) -> [S::F; NV] {
        let mut row = [simd.zero(); NV];
        // SAFETY: the promise of the maker, for both pieces.
        unsafe {
            let offset = *self.offsets.add(k);
            for v in 0..NV {
                let from = self.starts[v].add(offset);
                let (before, behind) = (simd.load(from), simd.load(from.add(self.gap)));
                row[v] = simd.select(simd.mask_first(self.kept[v]), before, behind);
            }
        }
        row
    }
}

/// Continues the chains of a tile: `acc[i][v] += sum over k < depth of lhs[i][k] * rhs[k][v]`, in order of `k`.
///
/// # Safety
/// - `lhs.at(i, k)` is readable for `i < MR`, `k < depth`.
/// - `NV * LANES` floats are readable at `rhs.row(k)` for `k < depth`.
#[inline(always)]
pub(crate) unsafe fn multiply<S: Simd, L: LhsAddress, const MR: usize, const NV: usize>(
    simd: S,
    acc: &mut [[S::F; NV]; MR],
    lhs: L,
    rhs: impl RhsAddress,
    depth: usize,
) {
    let mut first = 0;
    while first < depth {
        let len = L::BLOCK.min(depth - first);
        // SAFETY: the caller's contract, for these columns.
        unsafe { multiply_block(simd, acc, lhs.from(first), rhs, first, len) };
        first = first.saturating_add(L::BLOCK);
    }
}

/// [`multiply`] for the columns `first .. first + depth`; `lhs` starts with them.
///
/// # Safety
/// - As for [`multiply`], for these columns.
#[inline(always)]
unsafe fn multiply_block<S: Simd, L: LhsAddress, R: RhsAddress, const MR: usize, const NV: usize>(
    simd: S,
    acc: &mut [[S::F; NV]; MR],
    lhs: L,
    rhs: R,
    first: usize,
    depth: usize,
) {
    // Where another thread shares the core's front end, half of its slots are left: a tile of 6 x 2 vectors needs 20 of 36
    // for a step, and counting and branching 3 more. Four steps at a time raise such a tile from 77 to 88 % of the peak
    // (measured on Zen 3; alone on a core both reach 97 %). Small tiles wait for their chains anyway. With 32 registers a
    // step is long enough by itself, and of four at once the compiler loads so many broadcasts ahead that it spills, unless
    // all distances are constants: 32 x 32 x 32 in place 68 GFLOP/s instead of 90 (Zen 4, AVX-512).
    let unrolled =
        if MR * NV >= UNROLL_FROM && S::REGISTERS < 32 && L::UNROLLS && R::UNROLLS { depth / 4 * 4 } else { 0 };
    let mut k = 0;
    // SAFETY: the caller's contract, for each `k`.
    unsafe {
        while k < unrolled {
            step(simd, acc, lhs, rhs, first, k);
            step(simd, acc, lhs, rhs, first, k + 1);
            step(simd, acc, lhs, rhs, first, k + 2);
            step(simd, acc, lhs, rhs, first, k + 3);
            k += 4;
        }
        while k < depth {
            step(simd, acc, lhs, rhs, first, k);
            k += 1;
        }
    }
}

/// Tiles of fewer accumulators are not unrolled.
const UNROLL_FROM: usize = 8;

/// One step of [`multiply_block`].
///
/// # Safety
/// - As for [`multiply_block`], for this `k`.
#[inline(always)]
unsafe fn step<S: Simd, const MR: usize, const NV: usize>(
    simd: S,
    acc: &mut [[S::F; NV]; MR],
    lhs: impl LhsAddress,
    rhs: impl RhsAddress,
    first: usize,
    k: usize,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let b: [S::F; NV] = rhs.load(simd, first + k);
        rhs.loaded(simd, first + k, &b);
        lhs.meanwhile(simd, k, MR);
        for i in 0..MR {
            let a = simd.splat(*lhs.at(i, k));
            for v in 0..NV {
                acc[i][v] = simd.fma(a, b[v], acc[i][v]);
            }
        }
    }
}

/// [`multiply`] where the last vector of each right-hand row is cut off: lanes outside of `mask` are not read.
///
/// # Safety
/// - `lhs.at(i, k)` is readable for `i < MR`, `k < depth`.
/// - `(NV - 1) * LANES` floats, and then the lanes of `mask`, are readable at `rhs.row(k)` for `k < depth`.
#[inline(always)]
pub(crate) unsafe fn multiply_masked<S: Simd, L: LhsAddress, const MR: usize, const NV: usize>(
    simd: S,
    acc: &mut [[S::F; NV]; MR],
    lhs: L,
    rhs: impl RhsAddress,
    depth: usize,
    mask: S::M,
) {
    for k in 0..depth {
        let lhs = lhs.from(k / L::BLOCK * L::BLOCK);
        // SAFETY: the caller's contract, for this `k`.
        unsafe {
            let row = rhs.row(k);
            let mut b = [simd.zero(); NV];
            for v in 0..NV - 1 {
                b[v] = simd.load(row.add(v * S::LANES));
            }
            b[NV - 1] = simd.load_masked(row.add((NV - 1) * S::LANES), mask);
            rhs.loaded(simd, k, &b);
            lhs.meanwhile(simd, k % L::BLOCK, MR);
            for i in 0..MR {
                let a = simd.splat(*lhs.at(i, k % L::BLOCK));
                for v in 0..NV {
                    acc[i][v] = simd.fma(a, b[v], acc[i][v]);
                }
            }
        }
    }
}

/// [`multiply`] where up to half a vector follows the `NV` whole ones, at half the cost: lanes outside of `mask` are not
/// read.
///
/// # Safety
/// - `lhs.at(i, k)` is readable for `i < MR`, `k < depth`.
/// - `NV * LANES` floats, and then the lanes of `mask`, are readable at `rhs.row(k)` for `k < depth`.
#[inline(always)]
pub(crate) unsafe fn multiply_with_tail<S: Simd, L: LhsAddress, const MR: usize, const NV: usize>(
    simd: S,
    acc: &mut [[S::F; NV]; MR],
    tail: &mut [<S::Narrow as Simd>::F; MR],
    lhs: L,
    rhs: impl RhsAddress,
    depth: usize,
    mask: Option<<S::Narrow as Simd>::M>,
) {
    debug_assert!(L::BLOCK > depth);
    let narrow = simd.narrow();
    for k in 0..depth {
        // SAFETY: the caller's contract, for this `k`.
        unsafe {
            let b: [S::F; NV] = rhs.load(simd, k);
            let last = rhs.row(k).add(NV * S::LANES);
            let last = match mask {
                None => narrow.load(last),
                Some(mask) => narrow.load_masked(last, mask),
            };
            for i in 0..MR {
                let a = lhs.at(i, k);
                for v in 0..NV {
                    acc[i][v] = simd.fma(simd.splat(*a), b[v], acc[i][v]);
                }
                tail[i] = narrow.fma(narrow.splat(*a), last, tail[i]);
            }
        }
    }
}
