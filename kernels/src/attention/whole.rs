//! Rows whose keys fit one block: the softmax of a whole row at once, with no running maximum and no sums to keep.
//!
//! ```text
//! for each tile of rows:   scores, maxima ──► exponentials, sums     one function: nothing but weights leaves it
//!                          out = (p v) / sums
//! ```
//!
//! Short heads spend as much time between the products as in them, so what a tile needs is worked out once for all of
//! them, queries are read where they lie, and nothing is prepared that only longer heads need. The same operations in
//! the same order as block by block: the same bits.

use super::ahead::{self, Ahead};
use super::call::{MR, QUERY_STRIDE, SCORE_STRIDE, block_keys};
use super::forward::{Forward, Tile, Unit, steps};
use super::pack::pack_transposed;
use super::rows::{OfRows, by_rows};
use super::scores::{ScoreTile, Seen, TileSeen, copy_query, exponentials, first_score, fold_lanes, fold_rows};
use super::values::{ScoreRows, SumEnds, ValueTile, value_tile};
use crate::gemm::lhs::ContiguousRows;
use crate::simd::reduce::NARROW;
use crate::simd::{Job, Simd};

/// Maxima of the scores of a tile, and the sums of their exponentials.
struct Totals {
    maxima: [f32; 16],
    sums: [f32; 16],
}

/// The weights of a tile before they are divided by their sums.
///
/// Whoever makes one vouches for the contract of its scores.
struct WeightTile<'a, const M: usize> {
    scores: ScoreTile<'a, M, true, SCORE_STRIDE>,
    factor: f32,
    totals: &'a mut Totals,
}

impl<'a> OfRows for WeightTile<'a, MR> {
    type Output = ();
    type Of<const M: usize> = WeightTile<'a, M>;

    #[inline(always)]
    fn of_rows<const M: usize>(self) -> WeightTile<'a, M> {
        WeightTile { scores: self.scores.of_rows(), factor: self.factor, totals: self.totals }
    }
}

impl<const M: usize> Job for WeightTile<'_, M> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { mut scores, factor, totals } = self;
        let (start, at, end) =
            (scores.scores, first_score(simd, scores.seen), scores.seen.outer.end.next_multiple_of(S::LANES));
        scores.maxima = totals.maxima.as_mut_ptr();
        scores.run(simd);
        let mut shifts = [0.0f32; 16];
        for lane in (0..M).step_by(S::LANES) {
            // SAFETY: there is room for 16.
            unsafe {
                let largest = simd.load(totals.maxima.as_ptr().add(lane));
                let nothing = simd.eq(largest, simd.splat(f32::NEG_INFINITY));
                simd.store(shifts.as_mut_ptr().add(lane), simd.select(nothing, simd.zero(), largest));
            }
        }
        let factor = simd.splat(factor);
        let mut sums = [simd.zero(); M];
        for i in 0..M {
            let shift = simd.splat(shifts[i]);
            let mut lanes = [simd.zero(); NARROW];
            // SAFETY: the contract of the scores.
            unsafe { exponentials(simd, start.add(i * SCORE_STRIDE), [at, end], shift, factor, &mut lanes) };
            sums[i] = fold_lanes(simd, lanes);
        }
        // SAFETY: there is room for 16.
        unsafe { fold_rows::<S, false, M>(simd, &sums, totals.sums.as_mut_ptr()) };
    }
}

impl Unit<'_> {
    /// Whether [`Unit::run_whole`] does for all rows.
    #[inline(always)]
    pub(super) fn is_whole(&self, keys: usize) -> bool {
        let Forward { call, cut, .. } = *self.task;
        cut.key_pieces == 0 && keys <= block_keys(&call.spec) && call.plain() && call.dropout.is_none()
    }

    /// All rows of the unit, while the memory of the `next` is asked for. Returns whether all outputs are finite.
    ///
    /// # Safety
    /// - The contract of [`Forward`]; no other task has these rows, and keys fit one block.
    #[inline(always)]
    pub(super) unsafe fn run_whole<S: Simd>(&self, simd: S, next: Option<&Self>, keys: usize) -> bool {
        let Forward { call, layout, scratch, .. } = *self.task;
        let spec = &call.spec;
        let bare = self.bare.then(|| TileSeen::all(Seen { first: 0, end: keys }));
        // Later rows see no earlier keys, and earlier rows no later ones.
        let count = match bare {
            Some(_) => keys,
            None => spec.visible_keys(self.first_row + self.rows - 1, call.shape.q_len, keys).end,
        };
        let mut finite = true;
        // SAFETY: the scratch memory is laid out for a block of keys.
        unsafe {
            let (place, keys_at) = ([self.batch, self.kv_head], [0, count, block_keys(spec)]);
            let (packed, values) = (scratch.add(layout.packed), scratch.add(layout.values));
            let k = call.rows(&call.k, place, keys_at, spec.head_dim, values, false);
            pack_transposed(simd, k, count, spec.head_dim, packed);
            let v = call.rows(&call.v, place, keys_at, spec.v_dim, values, true);
            let mut ahead = Ahead::new(ahead::pays::<S>(call.floats));
            if let (true, Some(next)) = (ahead.fetches(), next) {
                let some = block_keys(spec).min(call.keys(next.batch));
                ahead.block(next.ahead(0, some, self.block_steps(keys, [0, keys])));
            }
            let mut tile = self.tile(0);
            for index in 0..self.tiles.count {
                let following = if index + 1 < self.tiles.count { self.tile(index + 1) } else { tile };
                let seen = bare.unwrap_or_else(|| self.seen_of(&tile, keys, [0, keys]).0);
                if ahead.fetches() {
                    ahead.tile(self.tile_ahead(&following, steps(&seen), false, true));
                }
                if seen.outer.first >= seen.outer.end {
                    self.finish_without_keys(simd, &tile);
                } else {
                    let mut totals = Totals { maxima: [f32::NEG_INFINITY; 16], sums: [0.0; 16] };
                    let scores = ScoreTile {
                        q: self.queries(simd, &tile),
                        packed,
                        dim: spec.head_dim,
                        keys: count,
                        seen: &seen,
                        scores: scratch,
                        maxima: std::ptr::null_mut(),
                        ahead: &mut ahead,
                    };
                    let factor = spec.scale * std::f32::consts::LOG2_E;
                    by_rows(simd, tile.count, WeightTile { scores, factor, totals: &mut totals });
                    let found = (totals.maxima.as_ptr(), &totals.sums);
                    let out = Some(self.outputs_of(simd, &tile, found, spec.scale, 1.0));
                    let job = ValueTile {
                        weights: ScoreRows::<SCORE_STRIDE>(scratch),
                        values: v,
                        seen: seen.outer,
                        dim: spec.v_dim,
                        ends: SumEnds {
                            from: std::ptr::null(),
                            rescale: [1.0; MR],
                            sums: std::ptr::null_mut(),
                            stride: 0,
                            out,
                        },
                        careful: false,
                        ahead: &mut ahead,
                    };
                    finite &= value_tile(simd, tile.count, job);
                }
                tile = following;
            }
        }
        finite
    }

    /// The queries of a tile, where they lie if they can be read there.
    ///
    /// # Safety
    /// - The contract of [`Forward`].
    #[inline(always)]
    pub(super) unsafe fn queries<S: Simd>(&self, simd: S, tile: &Tile) -> ContiguousRows {
        let call = self.task.call;
        let (head, row) = tile.places[0];
        let q = call.q.head(self.batch, head);
        if q.step == 1 && tile.places[tile.count - 1].0 == head {
            return ContiguousRows { start: q.at(row, 0), row_stride: q.row_stride };
        }
        // SAFETY: the caller's contract.
        unsafe { self.copied(simd, tile) }
    }

    /// The queries of a tile, copied side by side; up to the next multiple of 16 elements, zeros follow each.
    ///
    /// # Safety
    /// - The contract of [`Forward`].
    #[inline(always)]
    pub(super) unsafe fn copied<S: Simd>(&self, simd: S, tile: &Tile) -> ContiguousRows {
        let Forward { call, layout, scratch, .. } = *self.task;
        let queries = scratch.wrapping_add(layout.queries);
        for i in 0..tile.count {
            let (head, row) = tile.places[i];
            let q = call.q.head(self.batch, head);
            // SAFETY: the rows of a tile; there is room for as many queries.
            unsafe {
                copy_query(simd, q.at(row, 0), q.step, call.spec.head_dim, queries.add(i * QUERY_STRIDE));
            }
        }
        ContiguousRows { start: queries, row_stride: QUERY_STRIDE as isize }
    }
}
