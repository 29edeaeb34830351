//! Scores of a tile of rows against the panels of a block, and their exponentials.
//!
//! ```text
//!                    packed keys: panels                 row maxima in registers
//!                   ┌─────┬─────┬─────┐
//!  rows of q  ┌──┐  ├─────┼─────┼─────┤   ──►  scores, in L1  ──►  exp, in place; sums of 16 lanes a row
//!  (MR)       └──┘  └─────┴─────┴─────┘
//! ```

use super::ahead::{Ahead, PIECE};
use super::call::{MAX_PANEL, MR, SCORE_STRIDE};
use super::pack::panel_vectors;
use super::rows::OfRows;
use crate::gemm::lhs::ContiguousRows;
use crate::gemm::micro::{multiply, multiply_with_tail};
use crate::gemm::rhs::StridedRhs;
use crate::simd::reduce::NARROW;
use crate::simd::{Job, Simd, math};

/// The keys `first..end` of a block that a row sees.
#[derive(Clone, Copy, Default)]
pub(super) struct Seen {
    pub first: usize,
    pub end: usize,
}

/// What each row of a tile sees, in keys of a block.
#[derive(Clone, Copy)]
pub(super) struct TileSeen {
    pub rows: [Seen; MR],
    /// Every row sees what is in between.
    pub inner: Seen,
    /// No row sees more.
    pub outer: Seen,
}

impl TileSeen {
    /// Of rows that all see the same.
    #[inline(always)]
    pub fn all(seen: Seen) -> Self {
        Self { rows: [seen; MR], inner: seen, outer: seen }
    }

    /// Of rows that see `rows` of the whole sequence, within the block `start..end`.
    #[inline(always)]
    pub fn new(rows: &[[usize; 2]; MR], count: usize, start: usize, end: usize) -> Self {
        let mut seen = Self {
            rows: [Seen::default(); MR],
            inner: Seen { first: 0, end: usize::MAX },
            outer: Seen { first: usize::MAX, end: 0 },
        };
        for i in 0..count {
            let [first, last] = rows[i];
            let row = Seen { first: first.clamp(start, end) - start, end: last.clamp(start, end) - start };
            seen.rows[i] = row;
            seen.inner = Seen { first: seen.inner.first.max(row.first), end: seen.inner.end.min(row.end) };
            if row.first < row.end {
                seen.outer = Seen { first: seen.outer.first.min(row.first), end: seen.outer.end.max(row.end) };
            }
        }
        seen
    }
}

/// The lanes of a vector whose first lane is key `at` that lie in `seen`.
#[inline(always)]
pub(super) fn seen_lanes<S: Simd>(simd: S, seen: Seen, at: usize) -> S::M {
    let end = simd.mask_first(seen.end.saturating_sub(at));
    let before = simd.mask_first(seen.first.saturating_sub(at));
    simd.and(end, simd.not(before))
}

/// Copies a query next to others of its tile; up to the next multiple of 16, zeros follow.
///
/// # Safety
/// - `dim` elements `step` apart are readable at `from`; `QUERY_STRIDE` floats are writable at `to`.
#[inline(always)]
pub(super) unsafe fn copy_query<S: Simd>(simd: S, from: *const f32, step: isize, dim: usize, to: *mut f32) {
    // SAFETY: the caller's contract; `dim` is at most `MAX_HEAD_DIM`.
    unsafe {
        let mut at = 0;
        if step == 1 {
            while at < dim {
                let lanes = S::LANES.min(dim - at);
                let x = if lanes == S::LANES { simd.load(from.add(at)) } else { simd.load_first(from.add(at), lanes) };
                simd.store(to.add(at), x);
                at += S::LANES;
            }
        } else {
            while at < dim {
                *to.add(at) = *from.offset(at as isize * step);
                at += 1;
            }
        }
        for i in at..dim.next_multiple_of(16) {
            *to.add(i) = 0.0;
        }
    }
}

/// Where the scores of a tile start: with a panel, and with a lane 0 of the sums.
#[inline(always)]
pub(super) fn first_score<S: Simd>(_: S, seen: &TileSeen) -> usize {
    let step = (panel_vectors(S::REGISTERS) * S::LANES).max(MAX_LANES);
    seen.outer.first / step * step
}

/// Scores of `M` rows of q, from panel to panel, `STRIDE` apart, as far as the rows see, up to a whole vector. `MASK`:
/// hidden lanes become -infinity and maxima are taken; otherwise the scores are stored as they are.
///
/// Whoever makes one vouches that
/// - `q` has `M` rows of `dim` elements; `packed` holds the panels up to `seen.outer.end`;
/// - `M` rows of scores have room for the panels of `seen.outer`;
/// - `maxima` has room for 16 floats.
pub(super) struct ScoreTile<'a, const M: usize, const MASK: bool, const STRIDE: usize> {
    pub q: ContiguousRows,
    pub packed: *const f32,
    pub dim: usize,
    /// Keys of the block.
    pub keys: usize,
    pub seen: &'a TileSeen,
    pub scores: *mut f32,
    pub maxima: *mut f32,
    pub ahead: &'a mut Ahead,
}

impl<const M: usize, const MASK: bool, const STRIDE: usize> Job for ScoreTile<'_, M, MASK, STRIDE> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        if const { S::REGISTERS >= 32 } { self.panels::<S, 4>(simd) } else { self.panels::<S, 2>(simd) }
    }
}

impl<'a, const MASK: bool, const STRIDE: usize> OfRows for ScoreTile<'a, MR, MASK, STRIDE> {
    type Output = ();
    type Of<const M: usize> = ScoreTile<'a, M, MASK, STRIDE>;

    #[inline(always)]
    fn of_rows<const M: usize>(self) -> ScoreTile<'a, M, MASK, STRIDE> {
        self.of()
    }
}

impl<'a, const M: usize, const MASK: bool, const STRIDE: usize> ScoreTile<'a, M, MASK, STRIDE> {
    /// The tile that hides lanes and takes maxima.
    #[inline(always)]
    pub fn masked(self) -> ScoreTile<'a, M, true, STRIDE> {
        self.of()
    }

    #[inline(always)]
    fn of<const N: usize, const TO: bool>(self) -> ScoreTile<'a, N, TO, STRIDE> {
        let Self { q, packed, dim, keys, seen, scores, maxima, ahead } = self;
        ScoreTile { q, packed, dim, keys, seen, scores, maxima, ahead }
    }

    #[inline(always)]
    fn panels<S: Simd, const NV: usize>(self, simd: S) {
        debug_assert_eq!(NV, panel_vectors(S::REGISTERS));
        let panel = NV * S::LANES;
        let mut maxima = [simd.splat(f32::NEG_INFINITY); M];
        let mut at = first_score(simd, self.seen);
        // SAFETY: the job's contract covers every panel that the rows see.
        unsafe {
            while at < self.seen.outer.end {
                // The last panel of a block may be narrow, and of the last that is seen not all may be.
                let width = (self.keys - at).div_ceil(S::LANES).min(NV);
                let left = self.seen.outer.end - at;
                let seen = left.div_ceil(S::LANES).min(NV);
                let tail = left % S::LANES;
                // Up to half a vector costs half where vectors of half the lanes are half as dear.
                if left < panel && (1..=S::Narrow::LANES).contains(&tail) && S::Narrow::LANES < S::LANES {
                    match seen {
                        1 => self.panel::<S, 0, true>(simd, at, width, &mut maxima),
                        2 => self.panel::<S, 1, true>(simd, at, width, &mut maxima),
                        3 => self.panel::<S, 2, true>(simd, at, width, &mut maxima),
                        _ => self.panel::<S, 3, true>(simd, at, width, &mut maxima),
                    }
                } else {
                    match seen {
                        1 => self.panel::<S, 1, false>(simd, at, width, &mut maxima),
                        2 if NV > 2 => self.panel::<S, 2, false>(simd, at, width, &mut maxima),
                        3 if NV > 3 => self.panel::<S, 3, false>(simd, at, width, &mut maxima),
                        _ => self.panel::<S, NV, false>(simd, at, width, &mut maxima),
                    }
                }
                at += panel;
                if at.is_multiple_of(PIECE) {
                    self.ahead.step(simd);
                }
            }
            if MASK {
                fold_rows::<S, true, M>(simd, &maxima, self.maxima);
            }
        }
    }

    /// The first `NV` vectors of a panel, and with `TAIL` the lower half of the next.
    ///
    /// # Safety
    /// - The panel at key `at` is packed and has `width` vectors, as many as are asked for or more.
    #[inline(always)]
    unsafe fn panel<S: Simd, const NV: usize, const TAIL: bool>(
        &self,
        simd: S,
        at: usize,
        width: usize,
        maxima: &mut [S::F; M],
    ) {
        let mut acc = [[simd.zero(); NV]; M];
        let mut tail = [simd.narrow().zero(); M];
        let hidden = simd.splat(f32::NEG_INFINITY);
        // SAFETY: the contracts of the function and of the job.
        unsafe {
            let start = self.packed.add(at * self.dim);
            let rhs = StridedRhs { start, row_stride: (width * S::LANES) as isize };
            if TAIL {
                multiply_with_tail::<S, _, M, NV>(simd, &mut acc, &mut tail, self.q, rhs, self.dim, None);
            } else {
                multiply::<S, _, M, NV>(simd, &mut acc, self.q, rhs, self.dim);
            }
            let to = self.scores.add(at);
            let end = at + (NV + TAIL as usize) * S::LANES;
            // What is hidden goes through memory: the accumulators stay registers only where each has one place in the
            // code.
            let masks = MASK && (at < self.seen.inner.first || end > self.seen.inner.end);
            for i in 0..M {
                for v in 0..NV {
                    simd.store(to.add(i * STRIDE + v * S::LANES), acc[i][v]);
                    if MASK && !masks {
                        maxima[i] = simd.max(maxima[i], acc[i][v]);
                    }
                }
                if TAIL {
                    let score = simd.widen(tail[i], hidden);
                    simd.store(to.add(i * STRIDE + NV * S::LANES), score);
                    if MASK && !masks {
                        maxima[i] = simd.max(maxima[i], score);
                    }
                }
            }
            if masks {
                self.hide(simd, [at, end], maxima);
            }
        }
    }

    /// Scores that a row does not see become -infinity; the others count for its maximum.
    ///
    /// # Safety
    /// - The scores of whole vectors `at..end` have been stored.
    #[inline(always)]
    unsafe fn hide<S: Simd>(&self, simd: S, [at, end]: [usize; 2], maxima: &mut [S::F; M]) {
        let hidden = simd.splat(f32::NEG_INFINITY);
        for place in (at..end).step_by(S::LANES) {
            let masks = place < self.seen.inner.first || place + S::LANES > self.seen.inner.end;
            for i in 0..M {
                // SAFETY: the contracts of the function and of the job.
                unsafe {
                    let to = self.scores.add(i * STRIDE + place);
                    let mut score = simd.load(to);
                    if masks {
                        score = simd.select(seen_lanes(simd, self.seen.rows[i], place), score, hidden);
                        simd.store(to, score);
                    }
                    maxima[i] = simd.max(maxima[i], score);
                }
            }
        }
    }
}

/// Folds a vector of each of `M` rows to one number, written to `to[row]`, by the tree of halves: maxima or sums.
///
/// ```text
/// groups of 8   a0..a7 | a8..a15   b0..b7 | b8..b15   ──►   a0..a7 + a8..a15 | b0..b7 + b8..b15
/// groups of 4   two such vectors                      ──►   a | b | c | d                        and so on
/// ```
///
/// # Safety
/// - 16 floats are writable at `to`.
#[inline(always)]
pub(super) unsafe fn fold_rows<S: Simd, const MAX: bool, const M: usize>(simd: S, rows: &[S::F; M], to: *mut f32) {
    let mut first = 0;
    while first < M {
        let mut folded = [simd.zero(); MAX_LANES];
        let here = S::LANES.min(M - first);
        folded[..here].copy_from_slice(&rows[first..first + here]);
        let mut count = here.next_power_of_two();
        if const { S::LANES >= 16 } {
            count = fold_groups::<S, MAX, 8>(simd, &mut folded, count);
        }
        if const { S::LANES >= 8 } {
            count = fold_groups::<S, MAX, 4>(simd, &mut folded, count);
        }
        count = fold_groups::<S, MAX, 2>(simd, &mut folded, count);
        fold_groups::<S, MAX, 1>(simd, &mut folded, count);
        // SAFETY: there is room for all rows, rounded up.
        unsafe { simd.store(to.add(first), folded[0]) };
        first += S::LANES;
    }
}

/// One step of [`fold_rows`]: the first `count` vectors become half as many. Returns how many are left.
#[inline(always)]
fn fold_groups<S: Simd, const MAX: bool, const WIDTH: usize>(
    simd: S,
    rows: &mut [S::F; MAX_LANES],
    count: usize,
) -> usize {
    let left = count.div_ceil(2);
    for i in 0..left {
        let (even, odd) = simd.groups::<WIDTH>(rows[2 * i], rows[(2 * i + 1).min(count - 1)]);
        rows[i] = if MAX { simd.max(even, odd) } else { simd.add(even, odd) };
    }
    left
}

/// Lanes of the widest vector.
pub(super) const MAX_LANES: usize = 16;

const _: () = assert!(MAX_PANEL.is_multiple_of(MAX_LANES));

/// `scores = exp2((scores - shift) * factor)` over `at..end`, from a multiple of 16 on whole vectors, in each row of a
/// tile, and their sums in 16 lanes on top of `sums * rescale`.
///
/// Whoever makes one vouches that the scores and 16 sums of each of `rows` rows are readable and writable.
pub(super) struct Exponentials {
    pub scores: *mut f32,
    pub rows: usize,
    pub at: usize,
    pub end: usize,
    pub factor: f32,
    pub shifts: [f32; 16],
    pub rescale: [f32; 16],
    pub sums: *mut f32,
    /// There are no sums yet.
    pub fresh: bool,
}

impl Job for Exponentials {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let factor = simd.splat(self.factor);
        let vectors = MAX_LANES / S::LANES;
        for i in 0..self.rows {
            let (shift, rescale) = (simd.splat(self.shifts[i]), simd.splat(self.rescale[i]));
            // SAFETY: the job's contract.
            unsafe {
                let (row, sums) = (self.scores.add(i * SCORE_STRIDE), self.sums.add(i * MAX_LANES));
                let mut lanes = [simd.zero(); NARROW];
                if !self.fresh {
                    for v in 0..vectors {
                        lanes[v] = simd.mul(simd.load(sums.add(v * S::LANES)), rescale);
                    }
                }
                exponentials(simd, row, [self.at, self.end], shift, factor, &mut lanes);
                for v in 0..vectors {
                    simd.store(sums.add(v * S::LANES), lanes[v]);
                }
            }
        }
    }
}

/// `row = exp2((row - shift) * factor)` over `at..end`, from a multiple of 16 on whole vectors, added to the sums of 16
/// lanes. Where no more is seen within the last 16, what those lanes would add is +0.
///
/// # Safety
/// - These scores are readable and writable.
#[inline(always)]
pub(super) unsafe fn exponentials<S: Simd>(
    simd: S,
    row: *mut f32,
    [at, end]: [usize; 2],
    shift: S::F,
    factor: S::F,
    lanes: &mut [S::F; NARROW],
) {
    debug_assert!(at.is_multiple_of(MAX_LANES) && end.is_multiple_of(S::LANES));
    let rest = end - (end - at) % MAX_LANES;
    // SAFETY: the caller's contract.
    unsafe {
        for at in (at..rest).step_by(MAX_LANES) {
            for v in 0..MAX_LANES / S::LANES {
                let p = exponential(simd, row.add(at + v * S::LANES), shift, factor);
                lanes[v] = simd.add(lanes[v], p);
            }
        }
        for v in 0..MAX_LANES / S::LANES - 1 {
            if rest + v * S::LANES < end {
                let p = exponential(simd, row.add(rest + v * S::LANES), shift, factor);
                lanes[v] = simd.add(lanes[v], p);
            }
        }
    }
}

/// One vector of [`exponentials`].
///
/// # Safety
/// - It is readable and writable.
#[inline(always)]
unsafe fn exponential<S: Simd>(simd: S, at: *mut f32, shift: S::F, factor: S::F) -> S::F {
    // SAFETY: the caller's contract.
    unsafe {
        let x = simd.mul(simd.sub(simd.load(at), shift), factor);
        let p = math::exp2_nonpositive(simd, x);
        simd.store(at, p);
        p
    }
}

/// The sums of 16 lanes as those of a vector, by the tree of halves.
#[inline(always)]
pub(super) fn fold_lanes<S: Simd>(simd: S, mut lanes: [S::F; NARROW]) -> S::F {
    let mut vectors = MAX_LANES / S::LANES;
    while vectors > 1 {
        vectors /= 2;
        for v in 0..vectors {
            lanes[v] = simd.add(lanes[v], lanes[v + vectors]);
        }
    }
    lanes[0]
}
