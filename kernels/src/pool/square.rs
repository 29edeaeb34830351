//! The largest of each window of two or three pixels squared, where the pixels of a row are neighbours: in registers,
//! with no strip between.
//!
//! A vector of windows goes down its columns. Each row of the image becomes a vector of maxima along the row, once; an
//! output is the largest of as many of these as the window is high, and the next takes over those that it shares.
//!
//! ```text
//! x   ───[─────────]───   maxima of a row's windows ┐
//!     ───[─────────]───                             ├ K of them ──► y ──[───]──
//!     ───[─────────]───                             ┘
//!     ───[─────────]───   STRIDE new ones ──► the next row of y
//! ```
//!
//! With [`super::nchw`], which any window fits, a row costs a strip that is written and read at other places, and
//! choices that are made again for each: the pooling was a quarter of LeNet-5's time for 64 images, and is a tenth (Zen
//! 4, AVX-512, one thread).

use super::MaxOrNan;
use super::spec::Geometry;
use crate::simd::each::store;
use crate::simd::reduce::Reduction;
use crate::simd::{Job, Simd};

/// Floats of the image that vectors go down before the next ones follow: 16 KiB, half of a first-level cache, for
/// neighbouring vectors share lines.
const BAND: usize = 4096;
/// Rows of a band at least: one or two rows more are met twice, a quarter of these at stride 2.
const LEAST_ROWS: usize = 4;

/// The windows that this file is for.
#[derive(Clone, Copy)]
pub(super) enum Square {
    Two1,
    Two2,
    Three1,
    Three2,
}

impl Square {
    pub fn of(geometry: &Geometry) -> Option<Self> {
        let [rows, columns] = [&geometry.rows, &geometry.columns].map(|axis| (axis.kernel, axis.stride, axis.dilation));
        if rows != columns {
            return None;
        }
        match rows {
            (2, 1, 1) => Some(Self::Two1),
            (2, 2, 1) => Some(Self::Two2),
            (3, 1, 1) => Some(Self::Three1),
            (3, 2, 1) => Some(Self::Three2),
            _ => None,
        }
    }
}

/// Max pooling of a run of output rows.
pub(super) struct Forward<'a> {
    pub geometry: &'a Geometry,
    pub square: Square,
    pub x: &'a [f32],
    /// The first row, counted through all planes.
    pub first: usize,
    pub y: &'a mut [f32],
}

impl Job for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.square {
            Square::Two1 => self.bands::<S, 2, 1>(simd),
            Square::Two2 => self.bands::<S, 2, 2>(simd),
            Square::Three1 => self.bands::<S, 3, 1>(simd),
            Square::Three2 => self.bands::<S, 3, 2>(simd),
        }
    }
}

impl Forward<'_> {
    #[inline(always)]
    fn bands<S: Simd, const K: usize, const STRIDE: usize>(self, simd: S) {
        let Self { geometry, x, first, y, .. } = self;
        let (rows, columns) = (&geometry.rows, &geometry.columns);
        let plane_len = rows.size * columns.size;
        let most = (BAND / (STRIDE * columns.size)).max(LEAST_ROWS);
        let (mut plane, mut oh) = (first / rows.output, first % rows.output);
        let mut rest = y;
        while !rest.is_empty() {
            let count = most.min(rows.output - oh).min(rest.len() / columns.output);
            let (band, after) = rest.split_at_mut(count * columns.output);
            let x = &x[plane * plane_len..][..plane_len];
            for at in (0..columns.output).step_by(S::LANES) {
                let windows = Windows::<S>::at::<K, STRIDE>(simd, geometry, at);
                // SAFETY: the plane and the rows of the band are the geometry's, and nothing is masked only if all
                // columns are in the image.
                unsafe {
                    if windows.inside {
                        windows.down::<K, STRIDE, false>(simd, geometry, x, oh, band);
                    } else {
                        windows.down::<K, STRIDE, true>(simd, geometry, x, oh, band);
                    }
                }
            }
            rest = after;
            oh += count;
            if oh == rows.output {
                (plane, oh) = (plane + 1, 0);
            }
        }
    }
}

/// Vectors that a row of windows is made from, at most: two for all but the last tap of three at stride 2, and two for
/// that.
const LOADS: usize = 4;

/// A vector of windows of an output row.
struct Windows<S: Simd> {
    /// The first window, and how many there are.
    first: usize,
    count: usize,
    /// The column of the image under the first tap of the first window; in the padding it wraps.
    column: usize,
    /// The columns that are in the image, for each vector that is read.
    masks: [S::M; LOADS],
    /// Whether all are.
    inside: bool,
}

/// Where the vectors begin that a row of windows is made from, counted from the first tap of the first window.
const fn offsets<const K: usize, const STRIDE: usize>(lanes: usize) -> [usize; LOADS] {
    // What a window does not have repeats what it has.
    match (K, STRIDE) {
        (_, 1) => [0, 1, K - 1, K - 1],
        (3, _) => [0, lanes, 2, 2 + lanes],
        _ => [0, lanes, 0, lanes],
    }
}

impl<S: Simd> Windows<S> {
    #[inline(always)]
    fn at<const K: usize, const STRIDE: usize>(simd: S, geometry: &Geometry, first: usize) -> Self {
        let columns = &geometry.columns;
        let column = (first * STRIDE).wrapping_sub(columns.before);
        let mut masks = [simd.mask_first(0); LOADS];
        let mut inside = true;
        for (mask, offset) in masks.iter_mut().zip(offsets::<K, STRIDE>(S::LANES)) {
            let start = column.wrapping_add(offset) as isize;
            let before = (-start).clamp(0, S::LANES as isize) as usize;
            let until = (columns.size as isize - start).clamp(0, S::LANES as isize) as usize;
            *mask = simd.and(simd.mask_first(until), simd.not(simd.mask_first(before)));
            inside &= before == 0 && until == S::LANES;
        }
        Self { first, count: S::LANES.min(columns.output - first), column, masks, inside }
    }

    /// The windows of these columns in all rows of a band, which begins with row `oh`.
    ///
    /// # Safety
    /// - `x` is a plane of the geometry, `y` whole rows of its output.
    /// - Unless `MASKED`, these windows are `inside`.
    #[inline(always)]
    unsafe fn down<const K: usize, const STRIDE: usize, const MASKED: bool>(
        &self,
        simd: S,
        geometry: &Geometry,
        x: &[f32],
        oh: usize,
        y: &mut [f32],
    ) {
        let mut row = (oh * STRIDE).wrapping_sub(geometry.rows.before);
        let mut maxima = [simd.splat(MaxOrNan::START); K];
        for k in STRIDE..K {
            // SAFETY: the caller's contract.
            maxima[k] = unsafe { self.row::<K, STRIDE, MASKED>(simd, geometry, x, row) };
            row = row.wrapping_add(1);
        }
        for y in y.chunks_exact_mut(geometry.columns.output) {
            for k in STRIDE..K {
                maxima[k - STRIDE] = maxima[k];
            }
            for k in K - STRIDE..K {
                // SAFETY: the caller's contract.
                maxima[k] = unsafe { self.row::<K, STRIDE, MASKED>(simd, geometry, x, row) };
                row = row.wrapping_add(1);
            }
            let mut largest = maxima[0];
            for k in 1..K {
                largest = MaxOrNan::join(simd, largest, maxima[k]);
            }
            // SAFETY: so many windows are in the row.
            unsafe { store(simd, y[self.first..].as_mut_ptr(), self.count, largest) };
        }
    }

    /// The maxima of the windows along one row of a plane; outside of the image they are -infinity.
    ///
    /// # Safety
    /// - As for [`Windows::down`].
    #[inline(always)]
    unsafe fn row<const K: usize, const STRIDE: usize, const MASKED: bool>(
        &self,
        simd: S,
        geometry: &Geometry,
        x: &[f32],
        row: usize,
    ) -> S::F {
        if row >= geometry.rows.size {
            return simd.splat(MaxOrNan::START);
        }
        let start = x.as_ptr().wrapping_add((row * geometry.columns.size).wrapping_add(self.column));
        // SAFETY: the row is in the plane, and the caller's contract.
        let vectors = unsafe { self.vectors::<K, STRIDE, MASKED>(simd, start) };
        if STRIDE == 1 {
            let two = MaxOrNan::join(simd, vectors[0], vectors[1]);
            return if K == 3 { MaxOrNan::join(simd, two, vectors[2]) } else { two };
        }
        let (even, odd) = simd.even_odd(vectors[0], vectors[1]);
        let two = MaxOrNan::join(simd, even, odd);
        if K == 3 { MaxOrNan::join(simd, two, simd.even_odd(vectors[2], vectors[3]).0) } else { two }
    }

    /// The vectors that a row of windows is made from, of the row that has its first tap at `start`.
    ///
    /// # Safety
    /// - The columns that are in the image are readable; unless `MASKED`, all are in it.
    #[inline(always)]
    unsafe fn vectors<const K: usize, const STRIDE: usize, const MASKED: bool>(
        &self,
        simd: S,
        start: *const f32,
    ) -> [S::F; LOADS] {
        let offsets = offsets::<K, STRIDE>(S::LANES);
        let mut vectors = [simd.splat(MaxOrNan::START); LOADS];
        for i in 0..LOADS {
            let p = start.wrapping_add(offsets[i]);
            // SAFETY: the mask has the columns of the image; where there is none, they all are.
            unsafe {
                vectors[i] = if MASKED {
                    simd.select(self.masks[i], simd.load_masked(p, self.masks[i]), vectors[i])
                } else {
                    simd.load(p)
                };
            }
        }
        vectors
    }
}
