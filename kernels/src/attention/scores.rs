//! Scores of a tile of rows against the panels of a block, what is added to them, and their exponentials.
//!
//! ```text
//!                    packed keys: panels                 row maxima in registers
//!                   ┌─────┬─────┬─────┐
//!  rows of q  ┌──┐  ├─────┼─────┼─────┤   ──►  scores, in L1  ──►  exp, in place; sums of 16 lanes a row
//!  (MR)       └──┘  └─────┴─────┴─────┘
//! ```

use std::mem::MaybeUninit;

use super::call::{Extras, MAX_PANEL, MR, QUERY_STRIDE, Rows, SCORE_STRIDE};
use super::pack::panel_vectors;
use crate::gemm::micro::{LhsAddress, StridedRhs, multiply};
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

/// Rows of queries, copied to a constant distance: addresses in the micro-kernel then cost no instruction.
#[derive(Clone, Copy)]
pub(super) struct QueryRows(pub *const f32);

impl LhsAddress for QueryRows {
    #[inline(always)]
    unsafe fn at(&self, i: usize, k: usize) -> *const f32 {
        // SAFETY: the caller's contract.
        unsafe { self.0.add(i * QUERY_STRIDE + k) }
    }
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

/// Scores of `M` queries where there are too few for packing keys to pay: the dimensions lie in the lanes.
///
/// Each score is a sum of 16 lanes, folded in halves. While keys come, the values of the same block are fetched, and
/// the keys of the next.
///
/// Whoever makes one vouches that
/// - `q` has `M` rows of queries, padded with zeros to 16; `keys` rows of neighbouring elements are readable at `k`;
/// - `M` rows of scores have room for `keys` rounded up to 16.
pub(super) struct DotTile<const M: usize> {
    pub q: QueryRows,
    pub k: Rows<f32>,
    pub v: Rows<f32>,
    pub dim: usize,
    pub v_dim: usize,
    pub keys: usize,
    pub scores: *mut f32,
}

/// Keys whose sums are folded together.
const FOLDED: usize = 8;

impl<const M: usize> Job for DotTile<M> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let vectors = MAX_LANES / S::LANES;
        let mut first = 0;
        while first < self.keys {
            let mut sums = [[simd.zero(); FOLDED]; M];
            for key in first..self.keys.min(first + FOLDED) {
                let row = self.k.at(key, 0);
                let mut acc = [[simd.zero(); 4]; M];
                // SAFETY: the job's contract; elements beyond `dim` are not read from the key.
                unsafe {
                    let (ahead, value) = (self.k.at(key + self.keys, 0), self.v.at(key, 0));
                    for at in (0..self.dim).step_by(16) {
                        simd.prefetch(ahead.wrapping_add(at));
                    }
                    for at in (0..self.v_dim).step_by(16) {
                        simd.prefetch(value.wrapping_add(at));
                    }
                    let mut at = 0;
                    while at + MAX_LANES <= self.dim {
                        for v in 0..vectors {
                            let d = at + v * S::LANES;
                            let k = simd.load(row.add(d));
                            for i in 0..M {
                                acc[i][v] = simd.fma(simd.load(self.q.at(i, d)), k, acc[i][v]);
                            }
                        }
                        at += MAX_LANES;
                    }
                    for v in 0..vectors {
                        let d = at + v * S::LANES;
                        if d < self.dim {
                            let k = simd.load_first(row.add(d), self.dim - d);
                            for i in 0..M {
                                acc[i][v] = simd.fma(simd.load(self.q.at(i, d)), k, acc[i][v]);
                            }
                        }
                    }
                }
                for i in 0..M {
                    let mut half = vectors;
                    while half > 1 {
                        half /= 2;
                        for v in 0..half {
                            acc[i][v] = simd.add(acc[i][v], acc[i][v + half]);
                        }
                    }
                    sums[i][key - first] = acc[i][0];
                }
            }
            for i in 0..M {
                let mut folded = [0.0f32; 16];
                // SAFETY: the scores have room for the keys rounded up.
                unsafe {
                    fold_rows::<S, false, FOLDED>(simd, &sums[i], folded.as_mut_ptr());
                    for j in 0..FOLDED {
                        *self.scores.add(i * SCORE_STRIDE + first + j) = folded[j];
                    }
                }
            }
            first += FOLDED;
        }
    }
}

/// Where the scores of a tile start: with a panel, and with a lane 0 of the sums.
#[inline(always)]
pub(super) fn first_score<S: Simd>(_: S, seen: &TileSeen) -> usize {
    let step = (panel_vectors(S::REGISTERS) * S::LANES).max(MAX_LANES);
    seen.outer.first / step * step
}

/// Scores of `M` rows of q, from panel to panel. `MASK`: hidden lanes become -infinity and maxima are taken; otherwise
/// the scores are stored as they are.
///
/// Whoever makes one vouches that
/// - `q` has `M` rows of `dim` elements; `packed` holds the panels up to `seen.outer.end`;
/// - `M` rows of scores, `SCORE_STRIDE` apart, have room for the panels of `seen.outer`;
/// - `maxima` has room for 16 floats.
pub(super) struct ScoreTile<'a, const M: usize, const MASK: bool> {
    pub q: QueryRows,
    pub packed: *const f32,
    pub dim: usize,
    /// Keys of the block.
    pub keys: usize,
    pub seen: &'a TileSeen,
    pub scores: *mut f32,
    pub maxima: *mut f32,
}

impl<const M: usize, const MASK: bool> Job for ScoreTile<'_, M, MASK> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        if S::REGISTERS >= 32 { self.panels::<S, 4>(simd) } else { self.panels::<S, 2>(simd) }
    }
}

impl<const M: usize, const MASK: bool> ScoreTile<'_, M, MASK> {
    #[inline(always)]
    fn panels<S: Simd, const NV: usize>(self, simd: S) {
        debug_assert_eq!(NV, panel_vectors(S::REGISTERS));
        let panel = NV * S::LANES;
        let mut maxima = [simd.splat(f32::NEG_INFINITY); M];
        let mut at = first_score(simd, self.seen);
        // SAFETY: the job's contract covers every panel that the rows see.
        unsafe {
            while at < self.seen.outer.end {
                match (self.keys - at).div_ceil(S::LANES) {
                    1 if NV > 1 => self.panel::<S, 1>(simd, at, &mut maxima),
                    2 if NV > 2 => self.panel::<S, 2>(simd, at, &mut maxima),
                    3 if NV > 3 => self.panel::<S, 3>(simd, at, &mut maxima),
                    _ => self.panel::<S, NV>(simd, at, &mut maxima),
                }
                at += panel;
            }
            // Where the last panel ends within 16 lanes, the sums go on to their end.
            at = self.keys.next_multiple_of(S::LANES).min(at);
            while MASK && !at.is_multiple_of(MAX_LANES) {
                for i in 0..M {
                    simd.store(self.scores.add(i * SCORE_STRIDE + at), simd.splat(f32::NEG_INFINITY));
                }
                at += S::LANES;
            }
            if MASK {
                fold_rows::<S, true, M>(simd, &maxima, self.maxima);
            }
        }
    }

    /// # Safety
    /// - The panel at key `at` is packed and has `NV` vectors.
    #[inline(always)]
    unsafe fn panel<S: Simd, const NV: usize>(&self, simd: S, at: usize, maxima: &mut [S::F; M]) {
        let mut acc = [[simd.zero(); NV]; M];
        // SAFETY: the contracts of the function and of the job.
        unsafe {
            let start = self.packed.add(at * self.dim);
            let rhs = StridedRhs { start, row_stride: (NV * S::LANES) as isize };
            multiply::<S, _, M, NV>(simd, &mut acc, self.q, rhs, self.dim);
            if MASK && (at < self.seen.inner.first || at + NV * S::LANES > self.seen.inner.end) {
                let hidden = simd.splat(f32::NEG_INFINITY);
                for i in 0..M {
                    for v in 0..NV {
                        let lanes = seen_lanes(simd, self.seen.rows[i], at + v * S::LANES);
                        acc[i][v] = simd.select(lanes, acc[i][v], hidden);
                    }
                }
            }
            for i in 0..M {
                let row = self.scores.add(i * SCORE_STRIDE + at);
                for v in 0..NV {
                    simd.store(row.add(v * S::LANES), acc[i][v]);
                    if MASK {
                        maxima[i] = simd.max(maxima[i], acc[i][v]);
                    }
                }
            }
        }
    }
}

/// Folds a vector of each of `M` rows to one number, written to `to[row]`, by the tree of halves: maxima or sums.
///
/// # Safety
/// - 16 floats are writable at `to`.
#[inline(always)]
pub(super) unsafe fn fold_rows<S: Simd, const MAX: bool, const M: usize>(simd: S, rows: &[S::F; M], to: *mut f32) {
    // Left as they are: clearing them would cost more than the sums.
    let mut square = MaybeUninit::<[f32; MAX_LANES * MAX_LANES]>::uninit();
    let mut columns = MaybeUninit::<[f32; MAX_LANES * MAX_LANES]>::uninit();
    let (square, columns) = (square.as_mut_ptr().cast::<f32>(), columns.as_mut_ptr().cast::<f32>());
    let mut first = 0;
    while first < M {
        for i in first..first + S::LANES {
            let row = if i < M { rows[i] } else { simd.zero() };
            // SAFETY: the square has room for as many vectors as lanes, and `to` for all rows, rounded up.
            unsafe { simd.store(square.add((i - first) * S::LANES), row) };
        }
        let stride = S::LANES as isize;
        // SAFETY: both squares are large enough and apart.
        unsafe {
            simd.transpose(square, stride, columns, stride);
            let mut lanes = [simd.zero(); MAX_LANES];
            for l in 0..S::LANES {
                lanes[l] = simd.load(columns.add(l * S::LANES));
            }
            let mut half = S::LANES / 2;
            while half > 0 {
                for l in 0..half {
                    let (a, b) = (lanes[l], lanes[l + half]);
                    lanes[l] = if MAX { simd.max(a, b) } else { simd.add(a, b) };
                }
                half /= 2;
            }
            simd.store(to.add(first), lanes[0]);
        }
        first += S::LANES;
    }
}

/// Lanes of the widest vector.
const MAX_LANES: usize = 16;

/// Turns stored scores into logits where more than a positive scale is asked for: scale, softcap, bias, ALiBi, masks.
pub(super) struct Transform<'a> {
    pub scale: f32,
    pub softcap: Option<f32>,
    pub extras: &'a Extras,
    pub batch: usize,
    pub head: usize,
    /// The row of queries.
    pub row: usize,
    /// Its position among the keys.
    pub position: isize,
    /// The first key of the block.
    pub first_key: usize,
    /// What the row sees, in keys of the block.
    pub seen: Seen,
}

impl Transform<'_> {
    /// Transforms the scores `at..end`, a multiple of the lanes apart, in place. Returns lanes of maxima.
    ///
    /// # Safety
    /// - The scores are readable and writable; bias and mask hold the pairs of `seen`.
    #[inline(always)]
    pub unsafe fn run<S: Simd>(&self, simd: S, scores: *mut f32, at: usize, end: usize) -> S::F {
        let hidden = simd.splat(f32::NEG_INFINITY);
        let mut maxima = hidden;
        let slope = match self.extras.alibi {
            // SAFETY: there is a slope for each head.
            Some(slopes) => unsafe { *slopes.add(self.head) },
            None => 0.0,
        };
        let mut at = at;
        while at < end {
            // SAFETY: the contract; lanes outside of `seen` are not read from bias and mask.
            unsafe {
                let mut lanes = seen_lanes(simd, self.seen, at);
                let mut x = simd.mul(simd.load(scores.add(at)), simd.splat(self.scale));
                if let Some(cap) = self.softcap {
                    let tanh = math::tanh(simd, simd.div(x, simd.splat(cap)));
                    x = simd.mul(simd.splat(cap), tanh);
                }
                let bits = simd.bits(lanes);
                if let Some(bias) = &self.extras.bias {
                    let row = bias.head(self.batch, self.head);
                    let start = row.at(self.row, self.first_key + at);
                    let added = if row.step == 1 {
                        simd.load_masked(start, lanes)
                    } else {
                        let mut buffer = [0.0f32; MAX_LANES];
                        for l in 0..S::LANES {
                            if bits >> l & 1 == 1 {
                                buffer[l] = *start.offset(l as isize * row.step);
                            }
                        }
                        simd.load(buffer.as_ptr())
                    };
                    x = simd.add(x, added);
                }
                if self.extras.alibi.is_some() {
                    let first = self.position.saturating_sub((self.first_key + at) as isize);
                    let distance = simd.sub(simd.splat(first as f32), simd.load(LANE_NUMBERS.as_ptr()));
                    let distance = simd.max(distance, simd.sub(simd.zero(), distance));
                    x = simd.fma(simd.splat(-slope), distance, x);
                }
                if let Some(keep) = &self.extras.keep {
                    let row = keep.head(self.batch, self.head);
                    let start = row.at(self.row, self.first_key + at);
                    let mut buffer = [0.0f32; MAX_LANES];
                    for l in 0..S::LANES {
                        if bits >> l & 1 == 1 && *start.offset(l as isize * row.step) {
                            buffer[l] = 1.0;
                        }
                    }
                    let kept = simd.eq(simd.load(buffer.as_ptr()), simd.splat(1.0));
                    lanes = simd.and(lanes, kept);
                }
                x = simd.select(lanes, x, hidden);
                simd.store(scores.add(at), x);
                maxima = simd.max(maxima, x);
            }
            at += S::LANES;
        }
        maxima
    }
}

static LANE_NUMBERS: [f32; MAX_LANES] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

const _: () = assert!(MAX_PANEL.is_multiple_of(MAX_LANES));

/// `scores = exp2((scores - shift) * factor)` over `at..end`, multiples of 16, in each row of a tile, and their sums in 16
/// lanes on top of `sums * rescale`.
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
                let mut lanes = [simd.zero(); 4];
                for v in 0..vectors {
                    lanes[v] = simd.mul(simd.load(sums.add(v * S::LANES)), rescale);
                }
                let mut at = self.at;
                while at < self.end {
                    for v in 0..vectors {
                        let place = row.add(at + v * S::LANES);
                        let x = simd.mul(simd.sub(simd.load(place), shift), factor);
                        let p = math::exp2_nonpositive(simd, x);
                        simd.store(place, p);
                        lanes[v] = simd.add(lanes[v], p);
                    }
                    at += MAX_LANES;
                }
                for v in 0..vectors {
                    simd.store(sums.add(v * S::LANES), lanes[v]);
                }
            }
        }
    }
}

/// Scores of a tile whose number of rows is chosen at run time.
///
/// # Safety
/// - The contract of [`ScoreTile`]; `rows` is 1 to `MR`.
#[inline(always)]
pub(super) unsafe fn score_tile<S: Simd, const MASK: bool>(simd: S, rows: usize, tile: ScoreTile<'_, MR, MASK>) {
    let ScoreTile { q, packed, dim, keys, seen, scores, maxima } = tile;
    debug_assert!((1..=MR).contains(&rows));
    match rows {
        1 => simd.call(ScoreTile::<1, MASK> { q, packed, dim, keys, seen, scores, maxima }),
        2 => simd.call(ScoreTile::<2, MASK> { q, packed, dim, keys, seen, scores, maxima }),
        3 => simd.call(ScoreTile::<3, MASK> { q, packed, dim, keys, seen, scores, maxima }),
        4 => simd.call(ScoreTile::<4, MASK> { q, packed, dim, keys, seen, scores, maxima }),
        5 => simd.call(ScoreTile::<5, MASK> { q, packed, dim, keys, seen, scores, maxima }),
        _ => simd.call(tile),
    }
}

/// Scores of few rows, their number chosen at run time.
///
/// # Safety
/// - The contract of [`DotTile`]; `rows` is 1 to `MR`.
#[inline(always)]
pub(super) unsafe fn dot_tile<S: Simd>(simd: S, rows: usize, tile: DotTile<MR>) {
    let DotTile { q, k, v, dim, v_dim, keys, scores } = tile;
    debug_assert!((1..=MR).contains(&rows));
    match rows {
        1 => simd.call(DotTile::<1> { q, k, v, dim, v_dim, keys, scores }),
        2 => simd.call(DotTile::<2> { q, k, v, dim, v_dim, keys, scores }),
        3 => simd.call(DotTile::<3> { q, k, v, dim, v_dim, keys, scores }),
        4 => simd.call(DotTile::<4> { q, k, v, dim, v_dim, keys, scores }),
        5 => simd.call(DotTile::<5> { q, k, v, dim, v_dim, keys, scores }),
        _ => simd.call(tile),
    }
}
