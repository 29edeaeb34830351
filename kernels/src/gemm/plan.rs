//! How a product is done: what is packed, by whom, and how the output is cut into tasks.
//!
//! | operand | in place | packed by each task for itself | packed once for all tasks |
//! | --- | --- | --- | --- |
//! | lhs | rows are contiguous, or columns are and rhs has few or lhs is small | - | else; rows that crowd the cache are spread |
//! | rhs | few rows of lhs, or small | else | if rows of tasks balance better than columns, and it is packed in a pass of its own |
//!
//! What a task packs for itself it packs on its way, unless rhs has to be transposed: the first strip that meets a
//! panel copies it while it multiplies. A pass of its own took 10 % of 64 x 3136 x 576 (111 GFLOP/s instead of 100, Zen
//! 4). The same for lhs, a strip by the first block of columns, gained nothing.
//!
//! A few rows of lhs against contiguous columns of rhs need no plan ([`super::few_rows`]), nor do small products
//! ([`super::small`]).
//!
//! Nothing here changes a bit of the result.

use super::blocking::Blocking;
use super::pack::Strips;
use super::tile::{Matrix, NV, max_height};
use crate::error::Error;
use crate::parts::balanced;
use crate::simd::Isa;
use crate::workspace::LINE;

/// What the caller hands over.
#[derive(Clone, Copy)]
pub(super) enum Operand {
    Matrix(Matrix),
    /// Packed ahead of time, for the instruction set of the call.
    Packed(*const f32),
}

impl Operand {
    /// The matrix that starts `elements` further on.
    pub fn offset(mut self, elements: isize) -> Self {
        if let Self::Matrix(matrix) = &mut self {
            matrix.start = matrix.start.wrapping_offset(elements);
        }
        self
    }
}

/// Where rhs is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RhsPacking {
    InPlace,
    Prepacked,
    Private,
    Shared,
}

/// Where lhs is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LhsPacking {
    InPlace,
    Prepacked,
    /// Packed in strips.
    Shared,
    /// Copied, rows `pitch` apart, and then read as if in place.
    Spread,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub lhs: LhsPacking,
    pub rhs: RhsPacking,
    pub strips: Strips,
    /// Panels of `NR` columns.
    pub panels: usize,
    /// Depth of a block.
    pub kc: usize,
    /// Panels of a block.
    pub block_panels: usize,
    /// From row to row of a copy of lhs.
    pub pitch: usize,
    /// Depth, and strips, of lhs that are packed at once.
    pub chunk_depth: usize,
    pub chunk_strips: usize,
    /// Tasks along rows and along columns.
    pub grid: [usize; 2],
    /// Floats that all tasks share: packed lhs, packed rhs.
    pub shared_lhs: usize,
    pub shared_rhs: usize,
    /// Floats that each task needs for itself.
    pub private: usize,
}

/// The share of `threads` that works when `size` is cut into `tasks` whole numbers of `items` of `item` each (the last
/// may be smaller), and the fullest thread sets the time.
fn balance([size, item]: [usize; 2], tasks: usize, threads: usize) -> f64 {
    let per_task = size.div_ceil(item).div_ceil(tasks.max(1)).max(1);
    let tasks = size.div_ceil(item).div_ceil(per_task).max(1);
    size as f64 / (per_task * item * tasks.div_ceil(threads) * threads) as f64
}

/// Depths of blocks are multiples of it: the micro-kernel's loop takes four steps at a time, a cache line holds 16.
const DEPTH_STEP: usize = 16;

/// Floats after which addresses fall into the same set of an L1 cache: 4 KiB on every x86-64 CPU.
const SAME_SET: isize = 1024;

/// Rows of a strip that find room in one set of 8 ways beside a panel of rhs and a line of output.
const UNCROWDED: usize = 6;

/// The distance of rows of `depth` that do not all share a set; at most `2 * LINE - 1` longer.
fn pitch(depth: usize) -> usize {
    let lines = depth.next_multiple_of(LINE);
    if lines as isize % SAME_SET == 0 { lines + LINE } else { lines }
}

/// Rows of a thread for which it may well read all of a packed rhs: a float of it serves 256 operations. On two
/// threads, 788 x 384 x 384 is 215 GFLOP/s if threads have columns and 224 if they have rows, 788 x 1152 x 384 218 and
/// 224 (Zen 4).
const MANY_ROWS: usize = 128;

/// Tasks of a thread along columns, at most, if each has a block: 1024 x 1024 x 1024 on two threads, 213 GFLOP/s with 1
/// task, 217 with 2, 218 with 4.
const TASKS: usize = 4;

/// The number of tasks, at least `least`, a multiple of `threads` if there are as many items.
fn tasks_for(items: usize, least: usize, threads: usize) -> usize {
    least.max(1).next_multiple_of(threads).min(items.max(1))
}

impl Plan {
    pub fn new(
        [m, n, k]: [usize; 3],
        lhs: &Operand,
        rhs: &Operand,
        isa: Isa,
        blocking: &Blocking,
        threads: usize,
    ) -> Self {
        let nr = NV * isa.lanes();
        let panels = n.div_ceil(nr);
        let (lhs_packing, height) = match lhs {
            Operand::Packed(_) => (LhsPacking::Prepacked, max_height(isa.registers(), NV)),
            Operand::Matrix(lhs) => {
                let rows_run = lhs.column_stride == 1 || m == 1;
                let little = n <= blocking.thin_columns || m.saturating_mul(k) <= blocking.in_place;
                let nv = if n <= isa.lanes() { 1 } else { NV };
                let height = max_height(isa.registers(), nv);
                // Rows that share a set of L1 push each other out of it, if a strip has more of them than the set has
                // ways.
                let crowded = lhs.row_stride != 0 && lhs.row_stride % SAME_SET == 0 && height.min(m) > UNCROWDED;
                match rows_run {
                    true if crowded && little => (LhsPacking::InPlace, UNCROWDED),
                    true if crowded => (LhsPacking::Spread, height),
                    true => (LhsPacking::InPlace, height),
                    false if lhs.row_stride == 1 && little => (LhsPacking::InPlace, height),
                    false => (LhsPacking::Shared, height),
                }
            }
        };
        let strips = Strips::new(m, height);
        let (mut kc, mut nc) = (blocking.kc, blocking.nc);
        let mut rhs_packing = match rhs {
            Operand::Packed(_) => RhsPacking::Prepacked,
            Operand::Matrix(rhs) => {
                let runs = rhs.column_stride == 1 || n == 1;
                let small = k.saturating_mul(n) <= blocking.in_place;
                let near = k.saturating_mul(n) <= blocking.near;
                if runs && near && m <= blocking.thin_rows {
                    kc = blocking.deep_kc;
                } else if runs && !small && m <= blocking.thin_rows {
                    (kc, nc) = (blocking.thin_kc, blocking.thin_nc);
                } else if panels == 1 || m <= blocking.thin_rows && rhs.row_stride == 1 {
                    // One operand streams through, row after row: the longer its rows, the better they are foreseen.
                    (kc, nc) = (blocking.deep_kc, nr);
                }
                if runs && (small || m <= blocking.thin_rows) { RhsPacking::InPlace } else { RhsPacking::Private }
            }
        };
        // Few rows stay in L2, as deep a block of all of them as fits, and a packed rhs comes by panel after panel, if
        // that takes no more passes over the output.
        let deepest = kc.min(blocking.lhs_block / m.max(1)).max(1);
        let streams = matches!(rhs, Operand::Packed(_)) && k.div_ceil(deepest) <= k.div_ceil(kc);
        if streams {
            (kc, nc) = (deepest, nr);
        }
        // Blocks of nearly the same depth and width: 576 is 3 x 192, not 256 + 256 + 64. Less deep, they may be wider.
        let block = kc * nc;
        if kc > DEPTH_STEP {
            kc = balanced(k, kc).next_multiple_of(DEPTH_STEP);
        }
        let depth = kc.min(k).max(1);
        let block_panels = balanced(panels, (block / depth / nr).max(1));

        let blocks = panels / (block_panels * threads);
        let columns = if threads == 1 { 1 } else { tasks_for(panels, threads * blocks.clamp(1, TASKS), threads) };
        let mut grid = [1, columns];
        if threads > 1 {
            let rows = tasks_for(strips.count, threads, threads);
            let whole = n.next_multiple_of(isa.lanes()).saturating_mul(k);
            let by_rows = balance([strips.count, 1], rows, threads);
            let by_columns = balance([n.div_ceil(isa.lanes()), NV], columns, threads);
            // Threads that have rows of their own read the other operand as a whole: no harm if it stays in L2 and is
            // the smaller one, or if all that is read meets many rows.
            let small = whole <= block && m > n;
            let suits_rows = rhs_packing == RhsPacking::Prepacked && (small || m >= threads * MANY_ROWS);
            let wins = by_columns < 0.97 && by_rows > by_columns || suits_rows && by_rows > 0.95 * by_columns;
            // Each thread packs on the way what it reads, or threads share what takes a pass of its own.
            let on_the_way = matches!(rhs, Operand::Matrix(rhs) if rhs.column_stride == 1);
            if wins && (rhs_packing != RhsPacking::Private || on_the_way || whole <= blocking.shared) {
                if rhs_packing == RhsPacking::Private && !on_the_way {
                    rhs_packing = RhsPacking::Shared;
                }
                grid = [rows, 1];
                if rows < threads {
                    grid[1] = tasks_for(panels, threads.div_ceil(rows), 1);
                }
            }
        }

        // A task of 12 panels has three blocks of 4, not 5, 5 and 2.
        let block_panels = balanced(panels.div_ceil(grid[1]), block_panels);

        // A block of few rows meets all panels before the next block of them does.
        let meets_all = streams && m.saturating_mul(k) > blocking.lhs_block;
        let (mut chunk_depth, mut chunk_strips) = (if meets_all { kc } else { k }, strips.count);
        let row = |depth: usize| if lhs_packing == LhsPacking::Spread { pitch(depth) } else { depth };
        let mut shared_lhs = 0;
        if matches!(lhs_packing, LhsPacking::Shared | LhsPacking::Spread) {
            if m.saturating_mul(row(chunk_depth)) > blocking.shared {
                let longest = (blocking.shared / m).saturating_sub(row(kc) - kc);
                chunk_depth = (longest / kc * kc).max(kc);
                chunk_strips = (blocking.shared / row(chunk_depth) / height).clamp(1, strips.count);
            }
            shared_lhs = (strips.start(chunk_strips) * row(chunk_depth.min(k))).next_multiple_of(LINE);
        }
        let whole =
            |depth: usize, columns: usize| (depth * columns.next_multiple_of(isa.lanes())).next_multiple_of(LINE);
        let shared_rhs = if rhs_packing == RhsPacking::Shared { whole(k, n) } else { 0 };
        let private = if rhs_packing == RhsPacking::Private { whole(depth, n.min(block_panels * nr)) } else { 0 };
        Self {
            lhs: lhs_packing,
            rhs: rhs_packing,
            strips,
            panels,
            kc,
            block_panels,
            pitch: row(chunk_depth.min(k)),
            chunk_depth,
            chunk_strips,
            grid,
            shared_lhs,
            shared_rhs,
            private,
        }
    }

    /// Floats that are needed to run on one thread at a time, from a cache line on.
    pub fn least_workspace(&self) -> usize {
        self.shared_lhs + self.shared_rhs + self.private
    }
}

/// Floats of workspace for a product of `m x k` by `k x n` on at most `slots` threads at once, enough for every
/// instruction set, any strides and any CPU.
///
/// It is bounded: at most 16 MiB, and 768 KiB for each slot.
///
/// # Errors
/// [`Error::Overflow`] when so many slots cannot be addressed.
pub fn workspace_len(m: usize, n: usize, k: usize, slots: usize) -> Result<usize, Error> {
    // The last vector, and the last cache line, of each part.
    const SLACK: usize = 2 * LINE;
    let overflow = || Error::Overflow { argument: "workspace" };
    let lhs = m.saturating_mul(k.saturating_add(2 * LINE)).min(Blocking::LARGEST_SHARED) + SLACK;
    let width = n.saturating_add(LINE);
    let shared = width.saturating_mul(k).min(Blocking::LARGEST_SHARED) + SLACK;
    // A block has a depth, even where chains have no term.
    let private = width.saturating_mul(k.max(1)).min(Blocking::LARGEST_BLOCK) + SLACK;
    let private = private.checked_mul(slots.max(1)).ok_or_else(overflow)?;
    let total = private.checked_add(lhs + shared + LINE).ok_or_else(overflow)?;
    // The rule of `checked_len`, whose call takes 3 % of a product of 32 x 32 x 32.
    if total <= isize::MAX as usize / size_of::<f64>() { Ok(total) } else { Err(overflow()) }
}
