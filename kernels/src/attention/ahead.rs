//! What will be needed soon, asked for a little at a time.
//!
//! A head's rows are runs of a few cache lines, too short for the hardware to foresee, and a core waits for some 24
//! lines at once: asking for a whole tile's rows in one go would hold up everything behind. So each piece of a product,
//! some thousand cycles long, asks for its share.
//!
//! ```text
//! product:  64 keys | 64 keys | 64 keys ...        each asks for a share of
//!           next tile: its rows ......             what the next tile reads and writes
//!           next block: k and v .................. what the tiles after this block read
//! ```

use super::call::Rows;
use crate::gemm::Lines;
use crate::simd::Simd;
use crate::tensor::View;

/// Keys, or rows, of a piece.
pub(super) const PIECE: usize = 64;

/// Inputs of so few floats stay in the second-level caches from call to call, so there is nothing to wait for.
const RESIDENT: usize = 1 << 18;

/// And of so few where tiles have 16 registers: what the third level holds arrives in time for them, and asking takes
/// more (AVX2 on Zen 4: 64 times 50 keys of four heads take 0.87 to 0.92 of the time without, 32 times 77 of eight 1.02
/// to 1.05).
const RESIDENT_NARROW: usize = 1 << 21;

/// Floats of all inputs of a call.
pub(super) fn floats(q: &View<'_, f32, 4>, k: &View<'_, f32, 4>) -> usize {
    let len = |view: &View<'_, f32, 4>| view.shape().iter().fold(1, |len: usize, size| len.saturating_mul(*size));
    len(q).saturating_add(len(k)).saturating_mul(2)
}

/// Whether inputs of so many floats are worth asking for.
#[inline(always)]
pub(super) fn pays<S: Simd>(floats: usize) -> bool {
    floats > if const { S::REGISTERS >= 32 } { RESIDENT } else { RESIDENT_NARROW }
}

/// Runs of lines of the next block or the next head, and of the next tile.
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    /// Four of the block or the head, three of the tile.
    lines: [Lines; 7],
    /// How many of them count: all or none. A number that the compiler does not know keeps the steps a loop, which is
    /// compiled into every tile.
    live: usize,
}

impl Ahead {
    /// Nothing yet; what is asked for later counts if it `fetches`.
    #[inline(always)]
    pub fn new(fetches: bool) -> Self {
        Self { lines: [Lines::NONE; 7], live: if fetches { 7 } else { 0 } }
    }

    /// Whether it is worth saying what comes next.
    #[inline(always)]
    pub fn fetches(&self) -> bool {
        self.live > 0
    }

    /// What tiles after this block read.
    #[inline(always)]
    pub fn block(&mut self, lines: [Lines; 4]) {
        self.lines[..4].copy_from_slice(&lines);
    }

    /// What the next tile reads and writes.
    #[inline(always)]
    pub fn tile(&mut self, lines: [Lines; 3]) {
        self.lines[4..].copy_from_slice(&lines);
    }

    /// One piece's share.
    #[inline(always)]
    pub fn step<S: Simd>(&mut self, simd: S) {
        for lines in &mut self.lines[..self.live] {
            lines.step(simd);
        }
    }
}

/// `count` rows from `row` on, in `steps` steps. Rows whose elements are not neighbours are left to themselves.
#[inline(always)]
pub(super) fn lines(rows: Rows<f32>, row: usize, count: usize, dim: usize, steps: usize) -> Lines {
    if rows.step == 1 { Lines::new(rows.at(row, 0), count, rows.row_stride, dim, steps) } else { Lines::NONE }
}
