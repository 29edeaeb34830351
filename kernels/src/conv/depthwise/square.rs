//! 3 x 3 neighbourhoods at a step of 1 or 2, and 5 x 5 at 2, straight from the image.
//!
//! ```text
//!              columns c-1   c   c+1 of a source row: a load each (two for a pair, its even and odd lanes, at a step of 2)
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

/// Taps along an axis whose square stays in registers; those of larger ones are broadcast from memory.
const KEPT: usize = 3;

/// Rows `begin .. end` of a plane of targets.
///
/// Whoever makes one vouches that the source is readable, that there are K x K weights, and that the rows of the
/// targets, and what `finish` names for them, belong to it.
pub(super) struct Square<const K: usize, const STEP: usize> {
    pub source: Source<K, STEP>,
    pub weights: *const f32,
    /// The whole plane.
    pub target: *mut f32,
    pub size: [usize; 2],
    pub begin: usize,
    pub end: usize,
    pub finish: Finish,
}

impl<const K: usize, const STEP: usize> Job for Square<K, STEP> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { source, weights, target, size: [_, width], begin, end, finish } = self;
        let mut kept = [[simd.zero(); K]; K];
        if K == KEPT {
            for kh in 0..K {
                for kw in 0..K {
                    // SAFETY: a weight for each tap.
                    kept[kh][kw] = simd.splat(unsafe { *weights.add(K * kh + kw) });
                }
            }
        }
        let w = (weights, &kept);
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
                // SAFETY: the maker's promise.
                unsafe {
                    let acc = if source.is_inner::<S>(c) {
                        sums_of::<S, K, STEP, true>(simd, &source, first * STEP, c, &masks, w)
                    } else {
                        sums_of::<S, K, STEP, false>(simd, &source, first * STEP, c, &masks, w)
                    };
                    for r in 0..ROWS {
                        if first + r < end {
                            finish.write(simd, bias, target, (first + r) * width + c, width - c, acc[r]);
                        }
                    }
                }
            }
        }
    }
}

/// The sums of a block whose first row's first tap is at `top`.
///
/// # Safety
/// - The source is readable, and `INNER` only where no padding is seen to the left or to the right.
#[inline(always)]
unsafe fn sums_of<S: Simd, const K: usize, const STEP: usize, const INNER: bool>(
    simd: S,
    source: &Source<K, STEP>,
    top: usize,
    c: usize,
    masks: &Masks<S>,
    w: (*const f32, &[[S::F; K]; K]),
) -> [S::F; ROWS] {
    let mut acc = [simd.zero(); ROWS];
    // SAFETY: the caller's contract.
    unsafe {
        // Written out, so that numbers of accumulators are constants for sure.
        add::<S, K, STEP, INNER>(simd, source, top, 0, c, masks, w, &mut acc);
        add::<S, K, STEP, INNER>(simd, source, top, 1, c, masks, w, &mut acc);
        add::<S, K, STEP, INNER>(simd, source, top, 2, c, masks, w, &mut acc);
        add::<S, K, STEP, INNER>(simd, source, top, 3, c, masks, w, &mut acc);
        add::<S, K, STEP, INNER>(simd, source, top, 4, c, masks, w, &mut acc);
        add::<S, K, STEP, INNER>(simd, source, top, 5, c, masks, w, &mut acc);
        if STEP == 2 {
            add::<S, K, STEP, INNER>(simd, source, top, 6, c, masks, w, &mut acc);
            add::<S, K, STEP, INNER>(simd, source, top, 7, c, masks, w, &mut acc);
            add::<S, K, STEP, INNER>(simd, source, top, 8, c, masks, w, &mut acc);
        }
        if K == 5 {
            add::<S, K, STEP, INNER>(simd, source, top, 9, c, masks, w, &mut acc);
            add::<S, K, STEP, INNER>(simd, source, top, 10, c, masks, w, &mut acc);
        }
    }
    acc
}

/// Adds the products of the source row at `top + position` to the rows of a block that see it: row `r` meets tap rows
/// 0, 1 and so on from position `r * STEP` on.
///
/// # Safety
/// - The source is readable.
#[inline(always)]
unsafe fn add<S: Simd, const K: usize, const STEP: usize, const INNER: bool>(
    simd: S,
    source: &Source<K, STEP>,
    top: usize,
    position: usize,
    c: usize,
    masks: &Masks<S>,
    (weights, kept): (*const f32, &[[S::F; K]; K]),
    acc: &mut [S::F; ROWS],
) {
    if K > KEPT && !source.has_row(top + position) {
        return;
    }
    // SAFETY: the caller's contract.
    let x = unsafe { source.row::<S, INNER>(simd, top + position, c, masks) };
    for r in 0..ROWS {
        if r * STEP <= position && position < r * STEP + K {
            for k in 0..K {
                let kh = position - r * STEP;
                // SAFETY: a weight for each tap.
                let w = if K == KEPT { kept[kh][k] } else { simd.splat(unsafe { *weights.add(kh * K + k) }) };
                acc[r] = simd.fma(x[k], w, acc[r]);
            }
        }
    }
}
