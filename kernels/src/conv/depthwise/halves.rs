//! The gradient of the input at a stride of 2, straight from the planes: even and odd columns of two rows together,
//! taps known when compiled.
//!
//! ```text
//! dy     row m - 1   y0  y1  y2  y3 ...       loads at y + each tap, kept while two pairs of rows see them
//!        row m       y0  y1  y2  y3 ...
//!
//! even   x0  x2  x4  x6 ...   of some taps  ┐
//! odd    x1  x3  x5  x7 ...   of the others ┘ interleaved: x0 x1 x2 x3 ...    whole rows are written
//! ```
//!
//! Of the taps of an odd kernel, every other target along an axis sees one more than its neighbours do: it is *wide*.
//! The *narrow* one below a wide row sees the same source rows but the first, so they are a pair; so are the two
//! columns. A 3 x 3 kernel leaves one to four products for each pixel, so loops over taps would take longer than the
//! products, and so would a load for each of them.
//!
//! Each target is one chain of fused multiply-adds over tap rows and tap columns in order; lanes whose column is
//! padding are masked, rows that are padding are zeros.

use super::axis::{Axis, Taps};
use super::finish::Finish;
use super::source::inside;
use crate::simd::{Job, Simd};

/// Up to so many columns, strips of a vector are computed from the top down, their masks made once; wider planes in
/// bands of rows: vectors of a strip would be too far apart to be foreseen.
const MOST_COLUMNS: usize = 64;

/// Pairs of target rows of a band.
const BAND: usize = 4;

/// Wide taps whose weights stay in registers; those of larger kernels are broadcast from memory.
const KEPT: usize = 2;

/// Rows `begin .. end` of a plane of targets.
///
/// Whoever makes one vouches that [`fits`] holds, that the source is readable, that there are weights for all taps, and
/// that the rows of the targets belong to it.
pub(super) struct Halves<'a> {
    pub source: *const f32,
    pub source_size: [usize; 2],
    pub rows: &'a Axis,
    pub columns: &'a Axis,
    /// `[row phase][column phase][tap row][tap column]`
    pub weights: *const f32,
    /// The whole plane.
    pub target: *mut f32,
    pub size: [usize; 2],
    pub begin: usize,
    pub end: usize,
}

/// The taps of the wide targets along an axis, and whether those are the even ones, if there are two phases whose taps
/// are neighbours.
fn wide(axis: &Axis) -> Option<(Taps, bool)> {
    let [a, b] = &axis.phases[..] else { return None };
    let neighbours = [a, b].iter().all(|phase| phase.taps.windows(2).all(|pair| pair[1].offset == pair[0].offset + 1));
    let (wide, narrow) = if a.taps.len() > b.taps.len() { (a, b) } else { (b, a) };
    let odd = wide.taps.len() == narrow.taps.len() + 1;
    let fits = axis.step == 1 && axis.out_step == 2 && neighbours && odd;
    fits.then(|| (Taps::new(axis, &wide.taps), wide.first == 0))
}

/// Whether there are kernels for all phases.
pub(super) fn fits(rows: &Axis, columns: &Axis) -> bool {
    let counts = [rows, columns].map(|axis| wide(axis).map(|(taps, _)| taps.count));
    matches!(counts, [Some(2), Some(2)] | [Some(3), Some(3)])
}

impl Job for Halves<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (Some((rows, even_rows)), Some((columns, even_columns))) = (wide(self.rows), wide(self.columns)) else {
            unreachable!("two phases along each axis, as `fits` says")
        };
        let mut weights = [[self.weights; 2]; 2];
        let mut at = self.weights;
        for row_phase in &self.rows.phases {
            for column_phase in &self.columns.phases {
                weights[usize::from((row_phase.first == 0) != even_rows)][column_phase.first] = at;
                at = at.wrapping_add(row_phase.taps.len() * column_phase.taps.len());
            }
        }
        let strips = Strips {
            row: rows.first,
            column: columns.first,
            wide_row: isize::from(!even_rows),
            weights,
            count: self.size[1].div_ceil(2),
            call: self,
        };
        match (rows.count, even_columns) {
            (2, true) => simd.call(Sweep::<2, true>(strips)),
            (2, false) => simd.call(Sweep::<2, false>(strips)),
            (_, true) => simd.call(Sweep::<3, true>(strips)),
            (_, false) => simd.call(Sweep::<3, false>(strips)),
        }
    }
}

/// What the kernels know of a call.
struct Strips<'a> {
    call: Halves<'a>,
    /// The source row and column of the first taps of the first wide targets.
    row: isize,
    column: isize,
    /// The first wide row.
    wide_row: isize,
    /// Those of wide and narrow rows, for even and odd columns.
    weights: [[*const f32; 2]; 2],
    /// Pairs of columns.
    count: usize,
}

/// Strips for `W` taps of wide targets, which even columns are if `EVEN`. Made by [`Halves`] alone, whose contract it
/// carries.
struct Sweep<'a, const W: usize, const EVEN: bool>(Strips<'a>);

impl<const W: usize, const EVEN: bool> Job for Sweep<'_, W, EVEN> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let strips = &self.0;
        let Halves { begin, end, size, .. } = strips.call;
        // Pairs that begin or end outside of the rows are among them.
        let first = (begin as isize - strips.wide_row).div_euclid(2);
        let last = (end as isize - strips.wide_row + 1).div_euclid(2);
        let band = if size[1] <= MOST_COLUMNS { last - first } else { BAND as isize };
        let kept = self.keep(simd);
        let mut j = first;
        while j < last {
            let pairs = [j, last.min(j + band)];
            let mut c = 0;
            while c < strips.count {
                // A last, partial vector is moved to the left where there is room.
                let at = if strips.count - c >= S::LANES { c } else { strips.count.saturating_sub(S::LANES) };
                // SAFETY: the maker's promise.
                unsafe { self.strip(simd, pairs, at, &kept) };
                c += S::LANES;
            }
            j += band;
        }
    }
}

/// The weights of wide and narrow rows, for even and odd columns.
type Kept<S> = [[[<S as Simd>::F; KEPT * KEPT]; 2]; 2];

/// `W` neighbouring vectors of each of `W` rows of the source.
type Seen<S, const W: usize> = [[<S as Simd>::F; W]; W];

impl<const W: usize, const EVEN: bool> Sweep<'_, W, EVEN> {
    /// How many taps columns see, even or odd ones.
    const fn taps(odd: usize) -> usize {
        if EVEN == (odd == 0) { W } else { W - 1 }
    }

    /// Weights as vectors, where they fit into registers.
    #[inline(always)]
    fn keep<S: Simd>(&self, simd: S) -> Kept<S> {
        let mut kept = [[[simd.zero(); KEPT * KEPT]; 2]; 2];
        if W <= KEPT {
            for narrow in 0..2 {
                for odd in 0..2 {
                    for tap in 0..(W - narrow) * Self::taps(odd) {
                        // SAFETY: a weight for each tap.
                        kept[narrow][odd][tap] = simd.splat(unsafe { *self.0.weights[narrow][odd].add(tap) });
                    }
                }
            }
        }
        kept
    }

    /// Pairs of rows `pairs[0] .. pairs[1]`, for the pairs of columns from `at` on.
    ///
    /// # Safety
    /// - The source is readable, and the rows of the call are targets.
    #[inline(always)]
    unsafe fn strip<S: Simd>(&self, simd: S, pairs: [isize; 2], at: usize, kept: &Kept<S>) {
        let strips = &self.0;
        let &Halves { source, source_size: [height, width], target, size, begin, end, .. } = &strips.call;
        let column = strips.column + at as isize;
        let mut masks = [simd.mask_first(S::LANES); W];
        for k in 0..W {
            masks[k] = inside(simd, width, column + k as isize);
        }
        let load = |row: isize| {
            let mut x = [simd.zero(); W];
            // Negative rows are large.
            if (row as usize) < height {
                let start = source.wrapping_offset(row * width as isize + column);
                for k in 0..W {
                    // SAFETY: the lanes of the masks are columns of the row.
                    x[k] = unsafe { simd.load_masked(start.wrapping_add(k), masks[k]) };
                }
            }
            x
        };
        // SAFETY: the caller's contract.
        unsafe {
            let mut x = [[simd.zero(); W]; W];
            for i in 0..W - 1 {
                x[i + 1] = load(strips.row + pairs[0] + i as isize);
            }
            for j in pairs[0]..pairs[1] {
                for i in 0..W - 1 {
                    x[i] = x[i + 1];
                }
                x[W - 1] = load(strips.row + j + W as isize - 1);
                let rows = [self.row::<S, 0>(simd, &x, kept), self.row::<S, 1>(simd, &x, kept)];
                for narrow in 0..2 {
                    let row = (strips.wide_row + 2 * j) as usize;
                    let row = row.wrapping_add(narrow);
                    if row < begin || row >= end {
                        continue;
                    }
                    let (low, high) = rows[narrow];
                    for (sums, c) in [(low, 2 * at), (high, 2 * at + S::LANES)] {
                        if c < size[1] {
                            Finish::NOTHING.write(simd, None, target, row * size[1] + c, size[1] - c, sums);
                        }
                    }
                }
            }
        }
    }

    /// A wide row (`NARROW` is 0) or the narrow one below, as two vectors, from what they see of the source.
    ///
    /// # Safety
    /// - There are weights for all taps.
    #[inline(always)]
    unsafe fn row<S: Simd, const NARROW: usize>(&self, simd: S, x: &Seen<S, W>, kept: &Kept<S>) -> (S::F, S::F) {
        let mut sums = [simd.zero(); 2];
        for odd in 0..2 {
            let weights = self.0.weights[NARROW][odd];
            let taps = Self::taps(odd);
            // Of the columns that wide targets see, narrow ones to the right of those see all but the first.
            let first = if EVEN && odd == 1 { 1 } else { 0 };
            for i in 0..W - NARROW {
                for k in 0..taps {
                    let tap = i * taps + k;
                    let weight = if W <= KEPT {
                        kept[NARROW][odd][tap]
                    } else {
                        // SAFETY: the caller's contract.
                        simd.splat(unsafe { *weights.add(tap) })
                    };
                    sums[odd] = simd.fma(weight, x[i + NARROW][first + k], sums[odd]);
                }
            }
        }
        simd.interleave(sums[0], sums[1])
    }
}
