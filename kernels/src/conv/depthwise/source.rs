//! Rows of an image as they are, padding being lanes that are masked: no copy, no memory read.

use crate::simd::Simd;

/// Lanes that are columns of a row of `width`, for a vector from column `at` on.
#[inline(always)]
pub(super) fn inside<S: Simd>(simd: S, width: usize, at: isize) -> S::M {
    let lanes = |n: isize| simd.mask_first(n.clamp(0, S::LANES as isize) as usize);
    simd.and(lanes(width as isize - at), simd.not(lanes(-at)))
}

/// A plane of the image as `K` x `K` neighbours at a step of `STEP` see it.
#[derive(Clone, Copy)]
pub(super) struct Source<const K: usize, const STEP: usize> {
    pub start: *const f32,
    pub size: [usize; 2],
    /// The row and column that the first target's first tap reads: negative where that is padding.
    pub origin: [isize; 2],
}

/// The lanes inside of a row, of each vector that the taps of a row read: one for each tap, or two for each pair.
pub(super) type Masks<S> = [<S as Simd>::M; 6];

impl<const K: usize, const STEP: usize> Source<K, STEP> {
    /// For targets from column `c` on.
    #[inline(always)]
    pub fn masks<S: Simd>(&self, simd: S, c: usize) -> Masks<S> {
        let mut masks = [simd.mask_first(S::LANES); 6];
        for k in 0..if STEP == 1 { K } else { K.next_multiple_of(2) } {
            let offset = if STEP == 1 { k } else { k / 2 * 2 + k % 2 * S::LANES };
            masks[k] = inside(simd, self.size[1], (c * STEP + offset) as isize + self.origin[1]);
        }
        masks
    }

    /// Whether the row at `position` is one of the image, not padding.
    #[inline(always)]
    pub fn has_row(&self, position: usize) -> bool {
        // Negative ones are large.
        (self.origin[0].wrapping_add_unsigned(position) as usize) < self.size[0]
    }

    /// Whether no target of a vector from column `c` on sees padding to the left or to the right.
    #[inline(always)]
    pub fn is_inner<S: Simd>(&self, c: usize) -> bool {
        let at = (c * STEP) as isize + self.origin[1];
        at >= 0 && at as usize + K - 1 + STEP * S::LANES <= self.size[1]
    }

    /// What the taps of the row at `position` read for targets from column `c` on; zeros where padding is. Without
    /// masks if all is `INNER`.
    ///
    /// # Safety
    /// - The plane is readable.
    #[inline(always)]
    pub unsafe fn row<S: Simd, const INNER: bool>(
        &self,
        simd: S,
        position: usize,
        c: usize,
        masks: &Masks<S>,
    ) -> [S::F; K] {
        if !self.has_row(position) {
            return [simd.zero(); K];
        }
        // SAFETY: passed on.
        unsafe { self.row_inside(simd, position, c, if INNER { None } else { Some(masks) }) }
    }

    /// [`Source::row`] of a row that is one of the image.
    ///
    /// # Safety
    /// - The plane is readable, and has the row.
    #[inline(always)]
    pub unsafe fn row_inside<S: Simd>(
        &self,
        simd: S,
        position: usize,
        c: usize,
        masks: Option<&Masks<S>>,
    ) -> [S::F; K] {
        debug_assert!(self.has_row(position));
        let mut x = [simd.zero(); K];
        let row = position as isize + self.origin[0];
        let start = self.start.wrapping_offset(row * self.size[1] as isize + self.origin[1]).wrapping_add(c * STEP);
        // SAFETY: the masked lanes lie inside of the row.
        unsafe {
            let vector = |offset: usize, mask: usize| {
                let from = start.wrapping_add(offset);
                match masks {
                    None => simd.load(from),
                    Some(masks) => simd.load_masked(from, masks[mask]),
                }
            };
            if STEP == 1 {
                for k in 0..K {
                    x[k] = vector(k, k);
                }
            } else {
                for k in (0..K).step_by(2) {
                    let (even, odd) = simd.even_odd(vector(k, k), vector(k + S::LANES, k + 1));
                    x[k] = even;
                    if k + 1 < K {
                        x[k + 1] = odd;
                    }
                }
            }
        }
        x
    }
}
