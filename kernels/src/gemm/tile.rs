//! A row of tiles of the output: for each, load or clear the accumulators, run the micro-kernel, store.
//!
//! ```text
//!             panel 0  panel 1  panel 2
//!            ┌────────┬────────┬────────┐
//!            │        │        │        │  rhs: from L2, each panel once per strip
//!            └────────┴────────┴────────┘
//!     ┌─────┐┌────────┬────────┬────────┐
//!     │strip││  tile  │  tile  │  tile  │  out
//!     └─────┘└────────┴────────┴────────┘
//!      lhs: in L1 from the second tile on
//! ```

use std::mem::MaybeUninit;

use super::ahead::{Ahead, Rows};
use super::epilogue::Finish;
use super::lhs::{LhsAddress, PackedPanel};
use super::micro::{multiply, multiply_masked};
use super::rhs::{Later, PackingRhs, StreamedRhs, StridedRhs};
use crate::simd::{Job, Simd};
use crate::tensor::View;
use crate::workspace::{LINE, Line};

/// A matrix as pointer and strides.
#[derive(Clone, Copy)]
pub(crate) struct Matrix {
    pub start: *const f32,
    pub row_stride: isize,
    pub column_stride: isize,
}

impl Matrix {
    pub fn new(view: &View<'_, f32, 2>) -> Self {
        let [row_stride, column_stride] = view.strides();
        Self { start: view.as_ptr(), row_stride, column_stride }
    }

    pub fn transposed(self) -> Self {
        Self { start: self.start, row_stride: self.column_stride, column_stride: self.row_stride }
    }

    /// The address of an element, or of where it would be.
    #[inline(always)]
    pub fn at(self, row: usize, column: usize) -> *const f32 {
        self.start.wrapping_offset(row as isize * self.row_stride + column as isize * self.column_stride)
    }
}

/// Vectors side by side in a panel.
pub(crate) const NV: usize = 2;

/// Vectors side by side in a tile of few rows: one row has as many chains as hide the latency of an addition.
pub(crate) const WIDE: usize = 4;

/// The most rows of any tile of any instruction set.
pub(crate) const MAX_HEIGHT: usize = 14;

/// The most columns of any tile of any instruction set.
pub(crate) const MAX_WIDTH: usize = 16 * WIDE;

/// Room for the largest tile, whose rows are `MAX_WIDTH` apart.
pub(super) type TileBuffer = MaybeUninit<[Line; MAX_HEIGHT * MAX_WIDTH / LINE]>;

/// The most rows of a tile of `nv` vectors: the accumulators, one row of rhs and one broadcast fit the registers
/// (6 x 16 of AVX2, 14 x 32 of AVX-512, 6 x 8 of SSE2 and NEON). A single vector across needs more rows, or
/// the chains would wait for their own latency.
pub(crate) const fn max_height(registers: usize, nv: usize) -> usize {
    match (registers >= 32, nv) {
        (true, _) => 14,
        (false, 1) => 12,
        (false, _) => 6,
    }
}

/// The most rows of a tile of `WIDE` vectors: with more, one of `NV` hides the latency as well.
pub(crate) const fn max_wide_height(registers: usize) -> usize {
    if registers >= 32 { 6 } else { 2 }
}

/// How panels of rhs are read: from where they are packed.
pub(crate) const PACKED: u8 = 0;
/// From the matrix itself.
pub(crate) const IN_PLACE: u8 = 1;
/// From the matrix itself, and packed on the way.
pub(crate) const PACKING: u8 = 2;

/// The panels of rhs that a strip of lhs meets, side by side.
#[derive(Clone, Copy)]
pub(crate) struct Panels {
    /// Row 0 of the first.
    pub start: *const f32,
    /// From row to row of a panel.
    pub row_stride: isize,
    /// From panel to panel.
    pub step: usize,
    pub count: usize,
    /// Where the panels are packed, one behind the other; null unless they are.
    pub pack_to: *mut f32,
    /// What is asked for while the first panel is met, if panels are packed: of the panel that follows (what is asked
    /// for with the others is as far apart as they are), and of the strip that follows, piece after piece.
    pub later: [Later; 2],
}

impl Panels {
    /// `count` packed panels of rows of `width`, `step` apart.
    #[inline(always)]
    pub fn packed(start: *const f32, width: usize, step: usize, count: usize) -> Self {
        let (pack_to, later) = (std::ptr::null_mut(), [Later::nothing(start); 2]);
        Self { start, row_stride: width as isize, step, count, pack_to, later }
    }

    /// While strip `strip` of so many meets these panels of `depth` rows, its share of the panels that are met next is
    /// asked for: those that stand as these do, from `next` on.
    #[inline(always)]
    pub fn before_panels(mut self, next: *const f32, depth: usize, [strip, strips]: [usize; 2]) -> Self {
        let width = self.row_stride as usize;
        let share = width.div_ceil(strips);
        // More than a line with each row is more than one request a row can bring.
        if strip * share < width && share <= LINE {
            self.later[0] = Later { at: next.wrapping_add(strip * share * depth), share };
        }
        self
    }

    /// While panels from number `panel` of so many on meet their strip, their shares of the next strip, `height` rows
    /// packed at `next`, are asked for.
    #[inline(always)]
    pub fn before_strip(mut self, next: *const f32, [height, depth]: [usize; 2], [panel, panels]: [usize; 2]) -> Self {
        let share = height.div_ceil(panels);
        self.later[1] = Later { at: next.wrapping_add(panel * share * depth), share };
        self
    }
}

/// Where a row of tiles starts from, and where it goes.
#[derive(Clone, Copy)]
pub(crate) struct Ends<'a> {
    /// The partial results to continue; null to start at +0.
    pub from: *const f32,
    pub from_stride: isize,
    pub to: *mut f32,
    pub to_stride: isize,
    /// Columns of each tile that exist: all of them unless there is one panel only.
    pub columns: usize,
    /// What is done to outputs on their way.
    pub finish: Option<Finish<'a>>,
}

/// A row of tiles of `height` rows and `nv` vectors, each chosen at run time.
///
/// # Safety
/// - `1 <= height <= max_height(nv)` and `1 <= nv <= NV`.
/// - The contract of [`Tiles`].
#[inline(always)]
pub(crate) unsafe fn tiles_of<S: Simd, L: LhsAddress, const RHS: u8>(
    simd: S,
    [height, nv]: [usize; 2],
    lhs: L,
    rhs: Panels,
    depth: usize,
    ends: Ends<'_>,
    ahead: &mut Ahead,
) {
    debug_assert!(height >= 1 && height <= max_height(S::REGISTERS, nv));
    if nv == 1 {
        match height {
            1 => simd.call(Tiles::<L, 1, 1, RHS> { lhs, rhs, depth, ends, ahead }),
            2 => simd.call(Tiles::<L, 2, 1, RHS> { lhs, rhs, depth, ends, ahead }),
            3 => simd.call(Tiles::<L, 3, 1, RHS> { lhs, rhs, depth, ends, ahead }),
            4 => simd.call(Tiles::<L, 4, 1, RHS> { lhs, rhs, depth, ends, ahead }),
            5 => simd.call(Tiles::<L, 5, 1, RHS> { lhs, rhs, depth, ends, ahead }),
            6 => simd.call(Tiles::<L, 6, 1, RHS> { lhs, rhs, depth, ends, ahead }),
            7 => simd.call(Tiles::<L, 7, 1, RHS> { lhs, rhs, depth, ends, ahead }),
            8 => simd.call(Tiles::<L, 8, 1, RHS> { lhs, rhs, depth, ends, ahead }),
            9 => simd.call(Tiles::<L, 9, 1, RHS> { lhs, rhs, depth, ends, ahead }),
            10 => simd.call(Tiles::<L, 10, 1, RHS> { lhs, rhs, depth, ends, ahead }),
            11 => simd.call(Tiles::<L, 11, 1, RHS> { lhs, rhs, depth, ends, ahead }),
            12 => simd.call(Tiles::<L, 12, 1, RHS> { lhs, rhs, depth, ends, ahead }),
            13 if const { S::REGISTERS >= 32 } => simd.call(Tiles::<L, 13, 1, RHS> { lhs, rhs, depth, ends, ahead }),
            14 if const { S::REGISTERS >= 32 } => simd.call(Tiles::<L, 14, 1, RHS> { lhs, rhs, depth, ends, ahead }),
            _ => {}
        }
        return;
    }
    match height {
        1 => simd.call(Tiles::<L, 1, 2, RHS> { lhs, rhs, depth, ends, ahead }),
        2 => simd.call(Tiles::<L, 2, 2, RHS> { lhs, rhs, depth, ends, ahead }),
        3 => simd.call(Tiles::<L, 3, 2, RHS> { lhs, rhs, depth, ends, ahead }),
        4 => simd.call(Tiles::<L, 4, 2, RHS> { lhs, rhs, depth, ends, ahead }),
        5 => simd.call(Tiles::<L, 5, 2, RHS> { lhs, rhs, depth, ends, ahead }),
        6 => simd.call(Tiles::<L, 6, 2, RHS> { lhs, rhs, depth, ends, ahead }),
        7 if const { S::REGISTERS >= 32 } => simd.call(Tiles::<L, 7, 2, RHS> { lhs, rhs, depth, ends, ahead }),
        8 if const { S::REGISTERS >= 32 } => simd.call(Tiles::<L, 8, 2, RHS> { lhs, rhs, depth, ends, ahead }),
        9 if const { S::REGISTERS >= 32 } => simd.call(Tiles::<L, 9, 2, RHS> { lhs, rhs, depth, ends, ahead }),
        10 if const { S::REGISTERS >= 32 } => simd.call(Tiles::<L, 10, 2, RHS> { lhs, rhs, depth, ends, ahead }),
        11 if const { S::REGISTERS >= 32 } => simd.call(Tiles::<L, 11, 2, RHS> { lhs, rhs, depth, ends, ahead }),
        12 if const { S::REGISTERS >= 32 } => simd.call(Tiles::<L, 12, 2, RHS> { lhs, rhs, depth, ends, ahead }),
        13 if const { S::REGISTERS >= 32 } => simd.call(Tiles::<L, 13, 2, RHS> { lhs, rhs, depth, ends, ahead }),
        14 if const { S::REGISTERS >= 32 } => simd.call(Tiles::<L, 14, 2, RHS> { lhs, rhs, depth, ends, ahead }),
        _ => {}
    }
}

/// A row of tiles of `height` rows and `WIDE` vectors, of a matrix that is read in place.
///
/// # Safety
/// - `1 <= height <= max_wide_height()`.
/// - The contract of [`Tiles`].
#[inline(always)]
pub(super) unsafe fn wide_tiles_of<S: Simd, L: LhsAddress>(
    simd: S,
    height: usize,
    lhs: L,
    rhs: Panels,
    depth: usize,
    ends: Ends<'_>,
    ahead: &mut Ahead,
) {
    debug_assert!(height >= 1 && height <= max_wide_height(S::REGISTERS));
    match height {
        1 => simd.call(Tiles::<L, 1, WIDE, IN_PLACE> { lhs, rhs, depth, ends, ahead }),
        2 => simd.call(Tiles::<L, 2, WIDE, IN_PLACE> { lhs, rhs, depth, ends, ahead }),
        3 if const { S::REGISTERS >= 32 } => simd.call(Tiles::<L, 3, WIDE, IN_PLACE> { lhs, rhs, depth, ends, ahead }),
        4 if const { S::REGISTERS >= 32 } => simd.call(Tiles::<L, 4, WIDE, IN_PLACE> { lhs, rhs, depth, ends, ahead }),
        5 if const { S::REGISTERS >= 32 } => simd.call(Tiles::<L, 5, WIDE, IN_PLACE> { lhs, rhs, depth, ends, ahead }),
        6 if const { S::REGISTERS >= 32 } => simd.call(Tiles::<L, 6, WIDE, IN_PLACE> { lhs, rhs, depth, ends, ahead }),
        _ => {}
    }
}

/// Panels of rhs packed side by side (see [`super::pack`]), each through `depth` rows.
#[derive(Clone, Copy)]
pub(crate) struct PackedBlock {
    pub start: *const f32,
    pub depth: usize,
    pub columns: usize,
}

/// A strip of lhs against all columns of a block, for rows `ks` of the block, which are the columns of `lhs`.
///
/// # Safety
/// - `1 <= height <= max_height(NV)`.
/// - `lhs.at(i, k)` is readable for `i < height`, `k < ks.len()`; the block is packed, and holds rows `ks`.
/// - `height` rows of `rhs.columns` floats are readable at `ends.from` (unless null) and writable at `ends.to`.
#[inline(always)]
pub(crate) unsafe fn strip_across<S: Simd, L: LhsAddress>(
    simd: S,
    height: usize,
    lhs: L,
    rhs: PackedBlock,
    ks: std::ops::Range<usize>,
    ends: Ends<'_>,
) {
    let nr = NV * S::LANES;
    let (whole, rest) = (rhs.columns / nr, rhs.columns % nr);
    let mut ahead = Ahead::OUTPUTS;
    // SAFETY: the caller's contract; a last panel that is not whole is as wide as its vectors.
    unsafe {
        if whole > 0 {
            let start = rhs.start.wrapping_add(ks.start * nr);
            let panels = Panels::packed(start, nr, nr * rhs.depth, whole);
            let ends = Ends { columns: nr, ..ends };
            tiles_of::<S, L, PACKED>(simd, [height, NV], lhs, panels, ks.len(), ends, &mut ahead);
        }
        if rest > 0 {
            let nv = rest.div_ceil(S::LANES);
            let start = rhs.start.wrapping_add(whole * nr * rhs.depth + ks.start * nv * S::LANES);
            let panels = Panels::packed(start, nv * S::LANES, 0, 1);
            let from = if ends.from.is_null() { ends.from } else { ends.from.wrapping_add(whole * nr) };
            let ends = Ends { from, to: ends.to.wrapping_add(whole * nr), columns: rest, ..ends };
            tiles_of::<S, L, PACKED>(simd, [height, nv], lhs, panels, ks.len(), ends, &mut ahead);
        }
    }
}

/// Tiles of `MR` rows and `NV` vectors: `to = from + lhs * rhs`, one chain per output. A function of its own.
///
/// Whoever makes one vouches that
/// - `(NV - 1) * LANES < ends.columns <= NV * LANES`, and `ends.columns == NV * LANES` if `rhs.count > 1`;
/// - `lhs.at(i, k)` is readable for `i < MR`, `k < depth`;
/// - in each row `k < depth` of each panel `NV * LANES` floats are readable, or `ends.columns` unless they are
///   `PACKED`; if they are, `rhs.row_stride == NV * LANES`;
/// - if it is `PACKING`, `NV * LANES * depth` floats per panel are writable at `rhs.pack_to`;
/// - `MR` rows of `ends.columns` floats per panel are readable at `ends.from` (unless null) and writable at `ends.to`.
struct Tiles<'a, L, const MR: usize, const NV: usize, const RHS: u8> {
    lhs: L,
    rhs: Panels,
    depth: usize,
    ends: Ends<'a>,
    ahead: &'a mut Ahead,
}

impl<L: LhsAddress, const MR: usize, const NV: usize, const RHS: u8> Job for Tiles<'_, L, MR, NV, RHS> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { lhs, rhs, depth, ends, ahead } = self;
        debug_assert!(RHS != PACKED || rhs.row_stride == (NV * S::LANES) as isize);
        debug_assert!(rhs.count == 1 || ends.columns == NV * S::LANES);
        let whole = ends.columns == NV * S::LANES;
        let mask = simd.mask_first(ends.columns - (NV - 1) * S::LANES);
        let Ends { mut from, mut to, mut finish, .. } = ends;
        let (mut start, mut pack_to, mut later) = (rhs.start, rhs.pack_to, rhs.later);
        for panel in 0..rhs.count {
            // The lines of the output arrive while the loop runs, or those that the next tile continues: to the right,
            // or where the next strip starts.
            let (next, stride) = match panel + 1 == rhs.count {
                _ if from.is_null() => (to.cast_const(), ends.to_stride),
                false => (from.wrapping_add(NV * S::LANES), ends.from_stride),
                true => (ends.from.wrapping_offset(MR as isize * ends.from_stride), ends.from_stride),
            };
            let residual = finish.map_or(Rows::NONE, |finish| finish.residual([MR, ends.columns]));
            ahead.step(simd, [Rows { start: next, stride, size: [MR, ends.columns] }, residual]);
            let mut acc = [[simd.zero(); NV]; MR];
            // SAFETY: the maker's promise; vectors before the last are whole, the last is masked unless it is whole
            // too.
            unsafe {
                if !from.is_null() {
                    for i in 0..MR {
                        let row = from.offset(i as isize * ends.from_stride);
                        for v in 0..NV {
                            let at = row.add(v * S::LANES);
                            acc[i][v] = if whole || v + 1 < NV { simd.load(at) } else { simd.load_masked(at, mask) };
                        }
                    }
                    from = from.wrapping_add(NV * S::LANES);
                }
                if RHS == PACKING {
                    let rhs = PackingRhs { start, row_stride: rhs.row_stride, to: pack_to };
                    match lhs.packed_panel(MR) {
                        Some(panel) if whole => {
                            multiply::<S, _, MR, NV>(simd, &mut acc, PackedPanel::<MR>(panel), rhs, depth)
                        }
                        _ if whole => multiply::<S, _, MR, NV>(simd, &mut acc, lhs, rhs, depth),
                        _ => multiply_masked::<S, _, MR, NV>(simd, &mut acc, lhs, rhs, depth, mask),
                    }
                } else if RHS == IN_PLACE {
                    let rhs = StridedRhs { start, row_stride: rhs.row_stride };
                    if whole {
                        multiply::<S, _, MR, NV>(simd, &mut acc, lhs, rhs, depth);
                    } else {
                        multiply_masked::<S, _, MR, NV>(simd, &mut acc, lhs, rhs, depth, mask);
                    }
                } else {
                    // Distances that are constants cost no instruction in the loop.
                    let rhs = StreamedRhs { start, row_stride: (NV * S::LANES) as isize, later };
                    match lhs.packed_panel(MR) {
                        Some(panel) => multiply::<S, _, MR, NV>(simd, &mut acc, PackedPanel::<MR>(panel), rhs, depth),
                        None => multiply::<S, _, MR, NV>(simd, &mut acc, lhs, rhs, depth),
                    }
                }
                // A buffer has room for whole vectors.
                let (first, stride) = finish.map_or((to, ends.to_stride), |finish| (finish.buffer, MAX_WIDTH as isize));
                let whole = whole || finish.is_some();
                for i in 0..MR {
                    let row = first.offset(i as isize * stride);
                    for v in 0..NV {
                        let at = row.add(v * S::LANES);
                        if whole || v + 1 < NV {
                            simd.store(at, acc[i][v]);
                        } else {
                            simd.store_masked(at, mask, acc[i][v]);
                        }
                    }
                }
                if let Some(finish) = &mut finish {
                    simd.call(finish.tile([MR, ends.columns], to, ends.to_stride));
                    finish.column += NV * S::LANES;
                }
            }
            to = to.wrapping_add(NV * S::LANES);
            start = start.wrapping_add(rhs.step);
            later[0].at = later[0].at.wrapping_add(rhs.step);
            later[1].at = later[1].at.wrapping_add(later[1].share * depth);
            pack_to = pack_to.wrapping_add(NV * S::LANES * depth);
        }
    }
}
