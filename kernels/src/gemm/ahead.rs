//! What will be needed soon, asked for a little with each tile.
//!
//! The rows of a block of rhs that is packed next are runs of a few cache lines: too short for the hardware to foresee.
//! While one block is multiplied the next arrives, and while a tile is computed the lines of its output. The next strip
//! of lhs is asked for step by step instead ([`super::lhs::RowsAhead`]).
//!
//! ```text
//! block:  tile | tile | tile | tile         each asks for its output, and for
//!         next block of rhs ............    a share of the next block (L2)
//! ```
//!
//! Only where tiles are large, [`asks_ahead`].

use std::ops::Range;

use super::lhs::asks_ahead;
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

/// Rows of a matrix that are asked for at once.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    pub start: *const f32,
    pub stride: isize,
    /// Rows and columns.
    pub size: [usize; 2],
}

impl Rows {
    /// No row.
    pub const NONE: Self = Self { start: std::ptr::null(), stride: 0, size: [0; 2] };

    /// Rows seldom start with a line.
    #[inline(always)]
    fn ask<S: Simd>(self, simd: S) {
        let Self { start, stride, size: [rows, columns] } = self;
        for i in 0..rows {
            let row = start.wrapping_offset(i as isize * stride);
            for column in (0..columns).step_by(LINE) {
                simd.prefetch(row.wrapping_add(column));
            }
            simd.prefetch(row.wrapping_add(columns.max(1) - 1));
        }
    }
}

/// The next block of rhs, and whether a tile's outputs come from beyond L1.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    block: Lines,
    outputs: bool,
}

impl Ahead {
    /// Only outputs are asked for.
    pub const OUTPUTS: Self = Self { block: Lines::NONE, outputs: true };
    /// Nothing is asked for: all is in L1.
    pub const NONE: Self = Self { outputs: false, ..Self::OUTPUTS };

    /// With each of the following `steps` tiles a share of a block of rhs.
    pub fn block(&mut self, rhs: Matrix, ks: Range<usize>, columns: Range<usize>, steps: usize) {
        let start = rhs.at(ks.start, columns.start);
        self.block = match (rhs.row_stride, rhs.column_stride) {
            (stride, 1) => Lines::new(start, ks.len(), stride, columns.len(), steps),
            (1, stride) => Lines::new(start, columns.len(), stride, ks.len(), steps),
            _ => Lines::NONE,
        };
    }

    /// One tile's share, and the outputs that it, or the next, will meet; to be called while no accumulators are in
    /// registers.
    #[inline(always)]
    pub fn step<S: Simd>(&mut self, simd: S, outputs: [Rows; 2]) {
        if asks_ahead::<S>() && self.outputs {
            self.ask(simd, outputs);
        }
    }

    /// A function of its own: every tile would hold a copy.
    #[inline(never)]
    fn ask<S: Simd>(&mut self, simd: S, outputs: [Rows; 2]) {
        for rows in outputs {
            rows.ask(simd);
        }
        self.block.step(simd);
    }
}
