//! 3 x 3 neighbourhoods at a step of 1 or 2, straight from the image, the weights in registers.
//!
//! ```text
//!              columns c-1   c   c+1 of a source row: three loads (four, and their even and odd lanes, at a step of 2)
//! source row     ┌────────┬────────┬────────┐
//!                └────────┴────────┴────────┘      each vector meets all target rows that see it
//! ```
//!
//! Each target is one chain of fused multiply-adds over tap rows and tap columns in order.

use super::finish::Finish;
use super::source::{Masks, Source};
use crate::simd::{Job, Simd};

/// Up to so many columns, strips of a vector are computed from the top down, their masks made once; wider planes row
/// after row: vectors of a strip would be too far apart to be foreseen.
const MOST_COLUMNS: usize = 64;

/// Target rows that are computed together.
const ROWS: usize = 4;

/// Rows `begin .. end` of a plane of targets.
///
/// Whoever makes one vouches that the source is readable, that there are 9 weights, and that the rows of the targets,
/// and what `finish` names for them, belong to it.
pub(super) struct Three<const STEP: usize> {
    pub source: Source<STEP>,
    pub weights: *const f32,
    /// The whole plane.
    pub target: *mut f32,
    pub size: [usize; 2],
    pub begin: usize,
    pub end: usize,
    pub finish: Finish,
}

impl<const STEP: usize> Job for Three<STEP> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { source, weights, target, size: [_, width], begin, end, finish } = self;
        let mut w = [simd.zero(); 9];
        for tap in 0..9 {
            // SAFETY: nine weights.
            w[tap] = simd.splat(unsafe { *weights.add(tap) });
        }
        // SAFETY: the maker's promise.
        let bias = unsafe { finish.bias(simd) };
        let (strips, blocks) = (width.div_ceil(S::LANES), (end - begin).div_ceil(ROWS));
        let by_strips = width <= MOST_COLUMNS;
        let (outer, inner) = if by_strips { (strips, blocks) } else { (blocks, strips) };
        for i in 0..outer {
            let mut masks = source.masks(simd, i * S::LANES);
            for j in 0..inner {
                let (strip, block) = if by_strips { (i, j) } else { (j, i) };
                let (c, first) = (strip * S::LANES, begin + block * ROWS);
                if !by_strips {
                    masks = source.masks(simd, c);
                }
                let mut acc = [simd.zero(); ROWS];
                // SAFETY: the maker's promise.
                unsafe {
                    // Written out, so that numbers of accumulators are constants for sure.
                    let top = first * STEP;
                    add(simd, &source, top, 0, c, &masks, &w, &mut acc);
                    add(simd, &source, top, 1, c, &masks, &w, &mut acc);
                    add(simd, &source, top, 2, c, &masks, &w, &mut acc);
                    add(simd, &source, top, 3, c, &masks, &w, &mut acc);
                    add(simd, &source, top, 4, c, &masks, &w, &mut acc);
                    add(simd, &source, top, 5, c, &masks, &w, &mut acc);
                    if STEP == 2 {
                        add(simd, &source, top, 6, c, &masks, &w, &mut acc);
                        add(simd, &source, top, 7, c, &masks, &w, &mut acc);
                        add(simd, &source, top, 8, c, &masks, &w, &mut acc);
                    }
                }
                for r in 0..ROWS {
                    if first + r < end {
                        // SAFETY: the maker's promise: a row of targets from column `c` on.
                        unsafe { finish.write(simd, bias, target, (first + r) * width + c, width - c, acc[r]) };
                    }
                }
            }
        }
    }
}

/// Adds the products of the source row at `top + position` to the rows of a block that see it: row `r` meets tap rows
/// 0, 1 and 2 from position `r * STEP` on.
///
/// # Safety
/// - The source is readable.
#[inline(always)]
unsafe fn add<S: Simd, const STEP: usize>(
    simd: S,
    source: &Source<STEP>,
    top: usize,
    position: usize,
    c: usize,
    masks: &Masks<S>,
    w: &[S::F; 9],
    acc: &mut [S::F; ROWS],
) {
    // SAFETY: the caller's contract.
    let x = unsafe { source.row(simd, top + position, c, masks) };
    for r in 0..ROWS {
        if r * STEP <= position && position <= r * STEP + 2 {
            for k in 0..3 {
                acc[r] = simd.fma(x[k], w[3 * (position - r * STEP) + k], acc[r]);
            }
        }
    }
}
