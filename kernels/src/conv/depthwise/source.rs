//! Rows of an image as they are, padding being lanes that are masked: no copy, no memory read.

use crate::simd::Simd;

/// Lanes that are columns of a row of `width`, for a vector from column `at` on.
#[inline(always)]
pub(super) fn inside<S: Simd>(simd: S, width: usize, at: isize) -> S::M {
    let lanes = |n: isize| simd.mask_first(n.clamp(0, S::LANES as isize) as usize);
    simd.and(lanes(width as isize - at), simd.not(lanes(-at)))
}

/// A plane of the image as 3 x 3 neighbours at a step of `STEP` see it.
#[derive(Clone, Copy)]
pub(super) struct Source<const STEP: usize> {
    pub start: *const f32,
    pub size: [usize; 2],
    /// The row and column that the first target's first tap reads: negative where that is padding.
    pub origin: [isize; 2],
}

/// The lanes inside of a row, of each vector that the three taps of a row read.
pub(super) type Masks<S> = [<S as Simd>::M; 4];

impl<const STEP: usize> Source<STEP> {
    /// For targets from column `c` on.
    #[inline(always)]
    pub fn masks<S: Simd>(&self, simd: S, c: usize) -> Masks<S> {
        let lanes = S::LANES as isize;
        let offsets = if STEP == 1 { [0, 1, 2, 2] } else { [0, lanes, 2, lanes + 2] };
        let mut masks = [simd.mask_first(S::LANES); 4];
        for i in 0..4 {
            masks[i] = inside(simd, self.size[1], (c * STEP) as isize + self.origin[1] + offsets[i]);
        }
        masks
    }

    /// What the three taps of the row at `position` read for targets from column `c` on; zeros where padding is.
    ///
    /// # Safety
    /// - The plane is readable.
    #[inline(always)]
    pub unsafe fn row<S: Simd>(&self, simd: S, position: usize, c: usize, masks: &Masks<S>) -> [S::F; 3] {
        let row = position as isize + self.origin[0];
        if row < 0 || row >= self.size[0] as isize {
            return [simd.zero(); 3];
        }
        let start = self.start.wrapping_offset(row * self.size[1] as isize + self.origin[1]).wrapping_add(c * STEP);
        // SAFETY: the masked lanes lie inside of the row.
        unsafe {
            let vector = |offset: usize, mask: usize| simd.load_masked(start.wrapping_add(offset), masks[mask]);
            if STEP == 1 {
                return [vector(0, 0), vector(1, 1), vector(2, 2)];
            }
            let (even, odd) = simd.even_odd(vector(0, 0), vector(S::LANES, 1));
            let (next, _) = simd.even_odd(vector(2, 2), vector(S::LANES + 2, 3));
            [even, odd, next]
        }
    }
}
