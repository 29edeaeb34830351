//! What will be needed soon, asked for a little with each tile.
//!
//! Rows of lhs that are read in place are runs of a few cache lines, and so are the rows of a block of rhs that is
//! packed next: too short for the hardware to foresee. While one strip is multiplied the next arrives, and while one
//! block is multiplied the next.
//!
//! ```text
//! strip:  tile | tile | tile | tile         each asks for a share of
//!         next strip's rows ............    the next strip (L1)
//!         next block of rhs ............    and of the next block (L2)
//! ```

use std::ops::Range;

use super::tile::Matrix;
use crate::simd::Simd;
use crate::workspace::LINE;

/// A matrix that is asked for line by line, a share with each step.
#[derive(Clone, Copy)]
pub(crate) struct Lines {
    /// The run that is asked for, and the next line of it.
    at: *const f32,
    line: usize,
    /// Runs left, the distance between them, and the lines of each.
    runs: usize,
    stride: isize,
    lines: usize,
    share: usize,
}

impl Lines {
    /// Nothing is asked for.
    pub const NONE: Self = Self { at: std::ptr::null(), line: 0, runs: 0, stride: 0, lines: 0, share: 0 };

    /// `runs` runs of `len` floats, in `steps` steps.
    pub fn new(at: *const f32, runs: usize, stride: isize, len: usize, steps: usize) -> Self {
        // One more where a run does not start with a line; what is asked for in vain costs little.
        let lines = len.div_ceil(LINE);
        Self { at, line: 0, runs, stride, lines, share: (runs * lines).div_ceil(steps.max(1)) }
    }

    /// One step's share.
    #[inline(always)]
    pub fn step<S: Simd>(&mut self, simd: S) {
        if self.runs == 0 {
            return;
        }
        for _ in 0..self.share {
            simd.prefetch(self.at.wrapping_add(self.line * LINE));
            self.line += 1;
            if self.line >= self.lines {
                (self.line, self.runs) = (0, self.runs - 1);
                self.at = self.at.wrapping_offset(self.stride);
                if self.runs == 0 {
                    return;
                }
            }
        }
    }
}

/// Asks for `rows` rows of `columns` floats, which seldom start with a line.
#[inline(always)]
pub(super) fn ask_for<S: Simd>(simd: S, start: *const f32, stride: isize, [rows, columns]: [usize; 2]) {
    for i in 0..rows {
        let row = start.wrapping_offset(i as isize * stride);
        for column in (0..columns).step_by(LINE) {
            simd.prefetch(row.wrapping_add(column));
        }
        simd.prefetch(row.wrapping_add(columns.max(1) - 1));
    }
}

/// The next strip of lhs and the next block of rhs.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    strip: Lines,
    block: Lines,
}

impl Ahead {
    /// Nothing is asked for.
    pub const NONE: Self = Self { strip: Lines::NONE, block: Lines::NONE };

    /// With each of the following `steps` tiles a share of a strip that is read in place: `height` rows from `row` on.
    #[inline(always)]
    pub fn strip(&mut self, lhs: Matrix, [row, height]: [usize; 2], ks: Range<usize>, steps: usize) {
        self.strip = Lines::new(lhs.at(row, ks.start), height, lhs.row_stride, ks.len(), steps);
    }

    /// With each of the following `steps` tiles a share of a block of rhs.
    pub fn block(&mut self, rhs: Matrix, ks: Range<usize>, columns: Range<usize>, steps: usize) {
        let start = rhs.at(ks.start, columns.start);
        self.block = match (rhs.row_stride, rhs.column_stride) {
            (stride, 1) => Lines::new(start, ks.len(), stride, columns.len(), steps),
            (1, stride) => Lines::new(start, columns.len(), stride, ks.len(), steps),
            _ => Lines::NONE,
        };
    }

    /// One tile's share; to be called while no accumulators are in registers.
    #[inline(always)]
    pub fn step<S: Simd>(&mut self, simd: S) {
        if self.strip.runs > 0 || self.block.runs > 0 {
            self.ask(simd);
        }
    }

    /// A function of its own: every tile would hold a copy.
    #[inline(never)]
    fn ask<S: Simd>(&mut self, simd: S) {
        self.strip.step(simd);
        self.block.step(simd);
    }
}
