//! The same products for 3 x 3 taps at a step of 1 or 2 in planes so narrow that each column has a lane of its own.
//!
//! ```text
//! row r of x       meets rows r, r - 1, r - 2 of dy, which stay for the next
//!                  at a step of 2: if r is even, rows r / 2 and r / 2 - 1, else row (r - 1) / 2 alone
//! ```
//!
//! Rows of x count from the first that a window meets, padding included.
//!
//! All nine sums stay in registers over the rows that meet all of their rows of dy; at the upper and the
//! lower edge they are in memory, so that the rows in between are a loop without a branch: with the conditions inside,
//! 16 registers were too few. They have the order of [`products`](super::products).

use super::source::{Masks, Source};
use crate::simd::{Job, Simd};

/// Makes the lanes of 9 taps from planes of one channel.
///
/// Whoever makes one vouches that `count` planes, `source_step` and `dy_step` apart, are readable, that no row of `dy`
/// is longer than `lanes`, and that `sums` has room.
#[derive(Clone, Copy)]
pub(super) struct SmallProducts<const STEP: usize> {
    pub source: Source<3, STEP>,
    pub source_step: usize,
    pub dy: *const f32,
    pub size: [usize; 2],
    pub dy_step: usize,
    pub count: usize,
    /// `[tap][lane]`
    pub sums: *mut f32,
    pub lanes: usize,
}

impl<const STEP: usize> Job for SmallProducts<STEP> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { source, source_step, size: [height, width], dy_step, count, lanes, .. } = self;
        debug_assert!(width <= lanes && lanes.is_multiple_of(S::LANES));
        // Rows that meet two or three of dy, and are rows of x.
        let all = height + 2 / STEP;
        let [above, below] =
            [-source.origin[0], source.size[0] as isize - source.origin[0]].map(|at| at.max(0) as usize);
        let first = above.div_ceil(STEP).max(2 / STEP).min(all);
        let end = height.min(below / STEP).max(first);
        for c in (0..lanes).step_by(S::LANES) {
            for tap in 0..9 {
                // SAFETY: the sums have room.
                unsafe { simd.store(self.sums.add(tap * lanes + c), simd.zero()) };
            }
            let masks = source.masks(simd, c);
            for image in 0..if c < width { count } else { 0 } {
                let image = Self {
                    source: Source { start: source.start.wrapping_add(image * source_step), ..source },
                    dy: self.dy.wrapping_add(image * dy_step),
                    ..self
                };
                // SAFETY: the maker's promise.
                unsafe {
                    for r in 0..first {
                        image.edge(simd, r, c, &masks);
                    }
                    if first < end {
                        image.inner(simd, [first, end], c, &masks);
                    }
                    for r in end..all {
                        image.edge(simd, r, c, &masks);
                    }
                }
            }
        }
    }
}

impl<const STEP: usize> SmallProducts<STEP> {
    /// Adds the products of row `r`, and at a step of 2 of the row behind it, for columns from `c` on.
    ///
    /// # Safety
    /// - The contract of the job; the row is one of those that windows meet.
    #[inline(always)]
    unsafe fn edge<S: Simd>(&self, simd: S, r: usize, c: usize, masks: &Masks<S>) {
        let height = self.size[0];
        // SAFETY: passed on.
        unsafe {
            if self.source.has_row(r * STEP) {
                let x = self.source.row_inside(simd, r * STEP, c, Some(masks));
                if r < height {
                    self.add(simd, 0, x, r, c);
                }
                if STEP == 1 && r >= 1 && r <= height {
                    self.add(simd, 1, x, r - 1, c);
                }
                if r >= 2 / STEP {
                    self.add(simd, 2, x, r - 2 / STEP, c);
                }
            }
            if STEP == 2 && r < height && self.source.has_row(2 * r + 1) {
                let x = self.source.row_inside(simd, 2 * r + 1, c, Some(masks));
                self.add(simd, 1, x, r, c);
            }
        }
    }

    /// Adds the products of rows `first .. end`, all of which are rows of x and meet rows of dy with each of their
    /// taps.
    ///
    /// # Safety
    /// - The contract of the job.
    #[inline(always)]
    unsafe fn inner<S: Simd>(&self, simd: S, [first, end]: [usize; 2], c: usize, masks: &Masks<S>) {
        let &Self { source, sums, lanes, .. } = self;
        let mut acc = [simd.zero(); 9];
        // SAFETY: passed on.
        unsafe {
            for tap in 0..9 {
                acc[tap] = simd.load(sums.add(tap * lanes + c));
            }
            let mut d1 = self.dy_row(simd, first - 1, c);
            let mut d2 = self.dy_row(simd, first - 2 / STEP, c);
            for r in first..end {
                let d = self.dy_row(simd, r, c);
                let x = source.row_inside(simd, r * STEP, c, Some(masks));
                add(simd, &mut acc, 0, x, d);
                if STEP == 1 {
                    add(simd, &mut acc, 1, x, d1);
                    add(simd, &mut acc, 2, x, d2);
                } else {
                    add(simd, &mut acc, 2, x, d1);
                    let x = source.row_inside(simd, 2 * r + 1, c, Some(masks));
                    add(simd, &mut acc, 1, x, d);
                }
                (d1, d2) = (d, d1);
            }
            for tap in 0..9 {
                simd.store(sums.add(tap * lanes + c), acc[tap]);
            }
        }
    }

    /// Adds the products of a row of x and row `r` of dy to the sums of tap row `h`.
    ///
    /// # Safety
    /// - The contract of the job.
    #[inline(always)]
    unsafe fn add<S: Simd>(&self, simd: S, h: usize, x: [S::F; 3], r: usize, c: usize) {
        // SAFETY: passed on.
        unsafe {
            let d = self.dy_row(simd, r, c);
            for k in 0..3 {
                let sum = self.sums.add((3 * h + k) * self.lanes + c);
                simd.store(sum, simd.fma(x[k], d, simd.load(sum)));
            }
        }
    }

    /// Row `r` of dy from column `c` on.
    ///
    /// # Safety
    /// - The contract of the job; there is such a column.
    #[inline(always)]
    unsafe fn dy_row<S: Simd>(&self, simd: S, r: usize, c: usize) -> S::F {
        let width = self.size[1];
        // SAFETY: passed on.
        unsafe { simd.load_first(self.dy.add(r * width + c), width - c) }
    }
}

/// Adds the products of a row of x and one of dy to the taps of row `h`.
#[inline(always)]
fn add<S: Simd>(simd: S, acc: &mut [S::F; 9], h: usize, x: [S::F; 3], d: S::F) {
    for k in 0..3 {
        acc[3 * h + k] = simd.fma(x[k], d, acc[3 * h + k]);
    }
}
