//! Pixels of a batch in runs of neighbours: gradients meet them in blocks that begin and end anywhere.
//!
//! ```text
//! images of 2 x 4 pixels                image 0      image 1
//! pixels 2 .. 13 are four runs          . . 0 1      6 7 8 9
//! (here number `at` of each pixel)      2 3 4 5      10 . . .
//! ```

use std::ops::Range;

/// Some pixels of an image that are neighbours in a row of its grid, number `at ..` of their block.
#[derive(Clone, Copy)]
pub(super) struct PixelRun {
    pub n: usize,
    pub oh: usize,
    pub ow: usize,
    pub len: usize,
    pub at: usize,
}

/// The runs of some pixels of the batch, whose images have `grid[0]` rows of `grid[1]`.
pub(super) struct PixelRuns {
    grid: [usize; 2],
    next: PixelRun,
    left: usize,
}

impl PixelRuns {
    #[inline(always)]
    pub fn new(grid: [usize; 2], pixels: Range<usize>) -> Self {
        let plane = grid[0] * grid[1];
        let (n, rest) = (pixels.start / plane, pixels.start % plane);
        let next = PixelRun { n, oh: rest / grid[1], ow: rest % grid[1], len: 0, at: 0 };
        Self { grid, next, left: pixels.len() }
    }
}

impl Iterator for PixelRuns {
    type Item = PixelRun;

    #[inline(always)]
    fn next(&mut self) -> Option<PixelRun> {
        if self.left == 0 {
            return None;
        }
        let run = PixelRun { len: (self.grid[1] - self.next.ow).min(self.left), ..self.next };
        self.left -= run.len;
        self.next = PixelRun { oh: run.oh + 1, ow: 0, at: run.at + run.len, ..run };
        if self.next.oh == self.grid[0] {
            self.next = PixelRun { n: run.n + 1, oh: 0, ..self.next };
        }
        Some(run)
    }
}
