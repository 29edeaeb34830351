//! Targets of one channel from one plane, of an image or of padded rows: every vector that is read meets all the target
//! rows of a stack that see it.
//!
//! ```text
//!                    V vectors of columns, and half of one
//!   source row i    ├────────┼────────┼────┤   at the shift of tap column kw
//!                       │        │      │
//!   target row 0        ▼        ▼      ▼      acc[0] += w[i    ][kw] * x
//!   target row 1        ▼        ▼      ▼      acc[1] += w[i - 1][kw] * x      (at a step of 1)
//!   target row 2        ▼        ▼      ▼      acc[2] += w[i - 2][kw] * x
//!   target row 3        ▼        ▼      ▼      acc[3] += w[i - 3][kw] * x
//! ```
//!
//! A vector at an odd place crosses a cache line and takes the time of two products, so four products for each are
//! what keeps the multipliers busy; weights are broadcast from memory, which costs next to nothing. The rows of a stack
//! that see a source row follow each other, so each kind of source row has a body of its own, and any kernel height
//! does. Tap columns are neighbours; in an image, where their number decides which vectors need masks, it is known when
//! compiled.
//!
//! Each target is one chain of fused multiply-adds over tap rows and tap columns in order.

use super::axis::{Axis, Tap};
use super::finish::Finish;
use super::source::inside;
use crate::simd::{Isa, Job, Simd};

/// Target rows of a stack, at most.
const ROWS: usize = 5;

/// Vectors of columns that are computed together: 8 sums of 16 registers, or 12 of 32 with a half. With three, 7 x 7
/// taps on 56 x 56 pixels took a tenth longer.
const MOST_VECTORS: usize = 2;

/// Up to so many columns of an image, strips are computed from the top down; wider ones a few rows at a time, as the
/// vectors of a strip would be too far apart to be foreseen.
const MOST_COLUMNS: usize = 64;
const WIDE_ROWS: usize = 4;

/// Tap columns that are read straight from an image, at most: one mask register for each.
const MOST_MASKS: usize = 7;

/// A rectangle of targets of one channel, and what they are gathered from.
///
/// Whoever makes one vouches that the padded rows hold the positions of all targets and `SPARE` elements more, that
/// there is a weight for each tap, and that `y` is writable, and what `finish` names for it readable, at `row * y_row +
/// column` for each target and below `y_len`.
#[derive(Clone, Copy)]
pub(super) struct Stack<'a> {
    /// What the first target's first tap row reads, from the position of column 0 on.
    pub x: *const f32,
    /// If that is an image itself and not a padded copy: what of it there is.
    pub image: Option<Image>,
    /// Elements from one tap row to the next, as from one row of a stack to the next.
    pub x_row: usize,
    /// Target rows from one row of a stack to the next, and elements from a target row to the next in the source.
    pub apart: usize,
    pub x_target: usize,
    pub tap_rows: usize,
    pub columns: &'a [Tap],
    /// `[tap row][tap column]`
    pub weights: *const f32,
    pub y: *mut f32,
    pub y_row: usize,
    /// Target rows and columns.
    pub size: [usize; 2],
    /// Full vectors may be written below this offset from `y`, even past a row's end, if rows are written in order.
    pub y_len: usize,
    pub finish: Finish,
}

/// The image that a stack reads where it is, at a step of 1.
#[derive(Clone, Copy)]
pub(super) struct Image {
    pub size: [usize; 2],
    /// The row and column that the first target's first tap reads: negative where that is padding.
    pub origin: [isize; 2],
}

/// Whether tap columns are neighbours.
pub(super) fn is_dense(taps: &[Tap]) -> bool {
    taps.iter().enumerate().all(|(k, tap)| tap.slot == 0 && tap.shift == taps[0].shift + k)
}

/// Whether stacks can read an image where it is: with mask registers, and neighbouring taps.
pub(super) fn reads_images(isa: Isa, rows: &Axis, columns: &Axis) -> bool {
    if !(rows.sees_neighbours() && columns.sees_neighbours() && [rows.step, columns.step] == [1, 1]) {
        return false;
    }
    // With 32 registers the weights of 3 x 3 taps stay there, in a kernel of its own.
    matches!((isa, columns.phases[0].taps.len()), (Isa::Avx512, 5 | 7) | (Isa::Avx2, 3 | 5 | 7))
}

/// Whether the vectors of a row of an image that need masks are those that have them: all where there is one; else
/// padding is to the left of the first and to the right of the last, and no wider than half of the taps. What is left
/// after whole vectors has to be as wide too: the right taps of the vector before it are read without masks, and so are
/// the left ones of a last vector that is moved to the left, which then starts so far from the row's start.
pub(super) fn masks_suffice(lanes: usize, columns: &Axis, source_width: usize, target_width: usize) -> bool {
    let half = columns.phases[0].taps.len() / 2;
    let first = columns.first_tap();
    let right = (target_width + half) as isize + first - source_width as isize;
    let rest = target_width % lanes;
    target_width <= lanes || (-first <= half as isize && right <= 0 && (rest == 0 || rest >= half))
}

/// What a stack reads: padded rows, or an image.
const PADDED: u8 = 0;
const IMAGE: u8 = 1;

impl Job for Stack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match (self.image, self.columns.len()) {
            (None, _) => self.sweep::<S, PADDED, 0>(simd, [0; 2]),
            (Some(image), 3) if const { S::REGISTERS < 32 } => self.sweep::<S, IMAGE, 3>(simd, image.origin),
            (Some(image), 5) => self.sweep::<S, IMAGE, 5>(simd, image.origin),
            (Some(image), 7) => self.sweep::<S, IMAGE, 7>(simd, image.origin),
            (Some(_), other) => unreachable!("a kernel for {other} tap columns in place"),
        }
    }
}

impl Stack<'_> {
    /// Covers the rectangle by strips.
    #[inline(always)]
    fn sweep<S: Simd, const SOURCE: u8, const KW: usize>(&self, simd: S, origin: [isize; 2]) {
        let width = self.size[1];
        let rest = width % S::LANES;
        // A half is enough for what is left, and may be moved to the left.
        let half = 2 * S::Narrow::LANES == S::LANES && (1..=S::Narrow::LANES).contains(&rest) && width > S::LANES;
        let vectors = if half { width / S::LANES } else { width.div_ceil(S::LANES) };
        let strips = vectors.div_ceil(MOST_VECTORS);
        let (each, longer) = (vectors / strips.max(1), vectors % strips.max(1));
        for class in 0..self.apart.min(self.size[0]) {
            let rows = (self.size[0] - class).div_ceil(self.apart);
            let block = if SOURCE == IMAGE && width > MOST_COLUMNS { WIDE_ROWS } else { rows };
            let mut first = 0;
            while first < rows {
                let (row, rows) = (class + first * self.apart, block.min(rows - first));
                let mut c = 0;
                for i in 0..strips {
                    let count = each + usize::from(i < longer);
                    // The last vector, or the half, ends where the row ends.
                    let half = half && i + 1 == strips;
                    let lanes = if half { S::Narrow::LANES } else { S::LANES };
                    let at = if half { count } else { count - 1 } * S::LANES;
                    let last = at.min(width.saturating_sub(c + lanes));
                    // A vector that comes alone is moved as a whole.
                    let start = if count == 1 && !half { c.min(width.saturating_sub(lanes)) } else { c };
                    let origin = [origin[0], origin[1] + start as isize];
                    let part = Part { stack: self, row, rows, c: start, last, origin };
                    match (count, half) {
                        (1, false) => simd.call(Strip::<SOURCE, KW, 1, false>(part)),
                        (_, false) => simd.call(Strip::<SOURCE, KW, 2, false>(part)),
                        (1, true) => simd.call(Strip::<SOURCE, KW, 1, true>(part)),
                        (_, true) => simd.call(Strip::<SOURCE, KW, 2, true>(part)),
                    }
                    c += count * S::LANES;
                }
                first += block;
            }
        }
    }
}

/// Some rows of some columns of a stack's targets: `rows` from `row` on, and the columns from `c` on, of which the last
/// vector, or the half that comes after them, starts at `c + last`.
struct Part<'a> {
    stack: &'a Stack<'a>,
    row: usize,
    rows: usize,
    c: usize,
    last: usize,
    /// The row and column of an image that are read for row 0.
    origin: [isize; 2],
}

/// `V` vectors of columns, and a half. Made by [`Stack::sweep`] alone, whose contract it carries.
struct Strip<'a, const SOURCE: u8, const KW: usize, const V: usize, const HALF: bool>(Part<'a>);

/// The sums of the rows of a stack.
struct Sums<S: Simd, const V: usize> {
    whole: [[S::F; V]; ROWS],
    half: [<S::Narrow as Simd>::F; ROWS],
}

impl<S: Simd, const V: usize> Sums<S, V> {
    #[inline(always)]
    fn new(simd: S) -> Self {
        Self { whole: [[simd.zero(); V]; ROWS], half: [simd.narrow().zero(); ROWS] }
    }
}

impl<const SOURCE: u8, const KW: usize, const V: usize, const HALF: bool> Job for Strip<'_, SOURCE, KW, V, HALF> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (part, stack) = (&self.0, *self.0.stack);
        let mut sight = Sight {
            x: stack.x.wrapping_add(part.c),
            row: part.origin[0],
            height: stack.image.map_or(0, |image| image.size[0]),
            masks: [simd.mask_first(S::LANES); MOST_MASKS],
            half: [simd.narrow().mask_first(S::LANES); MOST_MASKS],
        };
        if let (IMAGE, Some(image)) = (SOURCE, stack.image) {
            for k in 0..KW {
                let last = part.origin[1] + (part.last + k) as isize;
                let c = if V == 1 && !HALF || k < KW / 2 { part.origin[1] + k as isize } else { last };
                sight.masks[k] = inside(simd, image.size[1], c);
                sight.half[k] = inside(simd.narrow(), image.size[1], last);
            }
        }
        let (mut row, mut left) = (part.row, part.rows);
        while left > 0 {
            let here = Sight { x: sight.x.wrapping_add(row * stack.x_target), row: sight.row + row as isize, ..sight };
            // SAFETY: the maker's promise; the rows are targets.
            let done = unsafe {
                if V == 1 && !HALF && (left == 5 || left > 8) && stack.tap_rows >= 5 {
                    self.block::<S, 5>(simd, here, row)
                } else if left >= 4 && stack.tap_rows >= 4 {
                    self.block::<S, 4>(simd, here, row)
                } else if left >= 2 && stack.tap_rows >= 2 {
                    self.block::<S, 2>(simd, here, row)
                } else {
                    self.block::<S, 1>(simd, here, row)
                }
            };
            row += done * stack.apart;
            left -= done;
        }
    }
}

/// What a block sees of its source.
#[derive(Clone, Copy)]
struct Sight<S: Simd> {
    /// The first row's first tap.
    x: *const f32,
    /// In an image: its row, the number of rows, and the lanes that are columns, for each tap column.
    row: isize,
    height: usize,
    masks: [S::M; MOST_MASKS],
    half: [<S::Narrow as Simd>::M; MOST_MASKS],
}

impl<const SOURCE: u8, const KW: usize, const V: usize, const HALF: bool> Strip<'_, SOURCE, KW, V, HALF> {
    /// `R` rows of a stack from `row` on, at a step of 1, with as many tap rows or more. Returns their number.
    ///
    /// # Safety
    /// - They are targets.
    #[inline(always)]
    unsafe fn block<S: Simd, const R: usize>(&self, simd: S, sight: Sight<S>, row: usize) -> usize {
        let mut sums = Sums::new(simd);
        let taps = self.0.stack.tap_rows;
        // SAFETY: the rows are those that the targets see.
        unsafe {
            if R > 1 {
                self.add_row::<S, 0, 1>(simd, &sight, 0, &mut sums);
            }
            if R > 2 {
                self.add_row::<S, 0, 2>(simd, &sight, 1, &mut sums);
            }
            if R > 3 {
                self.add_row::<S, 0, 3>(simd, &sight, 2, &mut sums);
            }
            if R > 4 {
                self.add_row::<S, 0, 4>(simd, &sight, 3, &mut sums);
            }
            for i in R - 1..taps {
                self.add_row::<S, 0, R>(simd, &sight, i, &mut sums);
            }
            if R > 1 {
                self.add_row::<S, 1, R>(simd, &sight, taps, &mut sums);
            }
            if R > 2 {
                self.add_row::<S, 2, R>(simd, &sight, taps + 1, &mut sums);
            }
            if R > 3 {
                self.add_row::<S, 3, R>(simd, &sight, taps + 2, &mut sums);
            }
            if R > 4 {
                self.add_row::<S, 4, R>(simd, &sight, taps + 3, &mut sums);
            }
            self.finish(simd, row, R, &sums);
        }
        R
    }

    /// Adds the products of source row `i` of a block, if it is not padding.
    ///
    /// # Safety
    /// - As [`Strip::add`].
    #[inline(always)]
    unsafe fn add_row<S: Simd, const LOW: usize, const HIGH: usize>(
        &self,
        simd: S,
        sight: &Sight<S>,
        i: usize,
        sums: &mut Sums<S, V>,
    ) {
        // Negative rows are large.
        if SOURCE == IMAGE && sight.row.wrapping_add_unsigned(i) as usize >= sight.height {
            return;
        }
        let stack = self.0.stack;
        let count = if KW == 0 { stack.columns.len() } else { KW };
        let w = stack.weights.wrapping_add((i - LOW) * count);
        // SAFETY: passed on.
        unsafe { self.add::<S, LOW, HIGH>(simd, sight, sight.x.wrapping_add(i * stack.x_row), w, count, sums) };
    }

    /// Finishes and writes the sums of `live` rows.
    ///
    /// # Safety
    /// - They are targets.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, simd: S, row: usize, live: usize, sums: &Sums<S, V>) {
        let stack = self.0.stack;
        // SAFETY: the maker's promise.
        unsafe {
            let bias = stack.finish.bias(simd);
            for q in 0..ROWS {
                if q < live {
                    let row = row + q * stack.apart;
                    for v in 0..V {
                        let c = self.0.c + if v + 1 == V && !HALF { self.0.last } else { v * S::LANES };
                        self.write(simd, bias, row, c, sums.whole[q][v]);
                    }
                    if HALF {
                        let bias = stack.finish.bias(simd.narrow());
                        self.write(simd.narrow(), bias, row, self.0.c + self.0.last, sums.half[q]);
                    }
                }
            }
        }
    }

    /// Adds the products of a source row to the rows `LOW .. HIGH` of a stack; `w` is the tap row that the first of
    /// them meets it with, and the next meets it with the weights `down` before them.
    ///
    /// # Safety
    /// - The row is one that the targets see.
    #[inline(always)]
    unsafe fn add<S: Simd, const LOW: usize, const HIGH: usize>(
        &self,
        simd: S,
        sight: &Sight<S>,
        x: *const f32,
        w: *const f32,
        down: usize,
        sums: &mut Sums<S, V>,
    ) {
        let (stack, narrow) = (self.0.stack, simd.narrow());
        let count = if KW == 0 { stack.columns.len() } else { KW };
        let x = if SOURCE == PADDED { x.wrapping_add(stack.columns.first().map_or(0, |first| first.shift)) } else { x };
        for k in 0..count {
            let x = x.wrapping_add(k);
            // SAFETY: positions of the targets, in padded rows; those of an image that `masks_suffice` has not found to
            // lie in the row are masked.
            unsafe {
                let mut vectors = [simd.zero(); V];
                for v in 0..V {
                    let at = if v + 1 == V && !HALF { self.0.last } else { v * S::LANES };
                    let x = x.wrapping_add(at);
                    // Padding is to the left of the first vector and to the right of the last.
                    let left = v == 0 && (k < KW / 2 || V == 1 && !HALF);
                    let right = v + 1 == V && !HALF && k > KW / 2;
                    let masked = SOURCE == IMAGE && (left || right);
                    vectors[v] = if masked { simd.load_masked(x, sight.masks[k]) } else { simd.load(x) };
                }
                let half = match x.wrapping_add(self.0.last) {
                    x if HALF && SOURCE == IMAGE && k > KW / 2 => narrow.load_masked(x, sight.half[k]),
                    x if HALF => narrow.load(x),
                    _ => narrow.zero(),
                };
                for q in LOW..HIGH {
                    let weight = *w.wrapping_add(k).wrapping_sub((q - LOW) * down);
                    for v in 0..V {
                        sums.whole[q][v] = simd.fma(simd.splat(weight), vectors[v], sums.whole[q][v]);
                    }
                    if HALF {
                        sums.half[q] = narrow.fma(narrow.splat(weight), half, sums.half[q]);
                    }
                }
            }
        }
    }

    /// Finishes and writes a vector of targets.
    ///
    /// # Safety
    /// - They are targets up to the end of the row.
    #[inline(always)]
    unsafe fn write<T: Simd>(&self, simd: T, bias: Option<T::F>, row: usize, c: usize, sums: T::F) {
        let stack = self.0.stack;
        let at = row * stack.y_row + c;
        let left = if at + T::LANES <= stack.y_len { T::LANES } else { stack.size[1] - c };
        // SAFETY: the maker's promise; whole vectors only where they may be written.
        unsafe { stack.finish.write(simd, bias, stack.y, at, left, sums) };
    }
}
