//! Forward, block by block: the matrix of scores never exists.
//!
//! ```text
//!                        keys: blocks (outer loop)
//!                       ┌────────┬────────┬────────┐     for each block of keys:
//!  rows of a task:      │ packed │        │        │         pack k transposed
//!  tiles (inner loop)   └────────┴────────┴────────┘         for each tile of rows that sees some of it:
//!    ┌──┐ ┌─────────┐   ┌────────┬ ─ ─                           scores, maxima     (q k^T)
//!    │q │ │ sums of │   │ scores │                               exponentials, sums (online softmax)
//!    └──┘ │ values  │   └────────┴ ─ ─                           sums of values     (p v)
//!         └─────────┘                                        in a tile's last block: divide, write
//! ```
//!
//! A task is some rows of the query heads that share a head of keys, so that packing is repaid by many rows. Sums of
//! values stay in scratch memory between blocks; each is one chain through a block, multiplied by `exp(old maximum -
//! new maximum)` before the next (M. Milakov, N. Gimelshein, "Online normalizer calculation for softmax", 2018; T. Dao,
//! "FlashAttention-2", 2023).

use super::ahead::{self, Ahead};
use super::call::{Call, MR, Raw, Tiles, block_keys};
use super::cut::{Cut, FEW_BLOCK, PIECE, Scratch, TILE_STATE};
use super::meet::Block;
use super::pack::pack_transposed;
use super::scores::{Seen, TileSeen};
use super::spec::{Causal, Window};
use super::values::store_row;
use crate::gemm::Lines;
use crate::simd::{Isa, Job, Simd, dispatch, math};

/// Where a call writes.
pub(super) struct Outputs {
    pub out: Raw<f32>,
    /// Null where it is not asked for.
    pub lse: *mut f32,
    /// The distance of the log-sum-exps of neighbouring heads; those of sequences lie side by side.
    pub lse_stride: usize,
}

// SAFETY: tasks write different rows.
unsafe impl Sync for Outputs {}

/// One task of a forward call.
///
/// Whoever makes one vouches that
/// - the outputs fit the call, and no other task with this number runs;
/// - `scratch` has `Scratch::len` floats, this task's own, and `partial` has `Cut::partial_len`.
pub(super) struct Forward<'a> {
    pub call: &'a Call<'a>,
    pub outputs: &'a Outputs,
    pub cut: Cut,
    pub layout: Scratch,
    pub scratch: *mut f32,
    /// The partial sums of all units, where keys are cut into pieces.
    pub partial: *mut f32,
    pub task: usize,
}

impl Forward<'_> {
    pub fn start(self, isa: Isa) {
        dispatch(isa, self);
    }
}

impl Job for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let all = self.cut.all(self.call);
        let first = self.task * self.cut.per_task;
        let mut following = (first < all).then(|| Unit::new(&self, first));
        for index in first..all.min(first + self.cut.per_task) {
            let Some(unit) = following else { break };
            following = (index + 1 < all).then(|| Unit::new(&self, index + 1));
            // SAFETY: units are disjoint sets of rows.
            unsafe {
                let (next, keys) = (following.as_ref(), self.call.keys(unit.batch));
                let finite = match unit.rows {
                    0 => true,
                    _ if unit.is_whole(keys) => unit.run_whole(simd, next, keys),
                    _ => unit.run(simd, next, false),
                };
                if !finite {
                    unit.run(simd, None, true);
                }
            }
        }
    }
}

/// Steps of a tile that asks for memory with each piece of what it sees: each piece comes twice, with the scores and
/// with the values.
#[inline(always)]
pub(super) fn steps(seen: &TileSeen) -> usize {
    2 * seen.outer.end.saturating_sub(seen.outer.first).div_ceil(ahead::PIECE)
}

/// Neighbouring rows of one or more heads that share a head of keys, and the keys they meet.
pub(super) struct Unit<'a> {
    pub task: &'a Forward<'a>,
    pub batch: usize,
    pub kv_head: usize,
    first_head: usize,
    pub first_row: usize,
    /// Rows of each head.
    pub rows: usize,
    pub tiles: Tiles,
    /// The first of the keys that the unit meets, if others meet the rest.
    keys: [usize; 2],
    /// Maxima, sums and sums of values of the tiles.
    states: *mut f32,
    pub sums: *mut f32,
    /// Whether every row sees every key.
    pub bare: bool,
}

/// A tile of a unit: rows of one head after the other.
#[derive(Clone, Copy)]
pub(super) struct Tile {
    pub index: usize,
    pub count: usize,
    /// Head and row of each of them.
    pub places: [(usize, usize); MR],
}

impl<'a> Unit<'a> {
    #[inline(always)]
    pub fn new(task: &'a Forward<'a>, index: usize) -> Self {
        let Forward { call, cut, layout, .. } = *task;
        let (spec, shape) = (&call.spec, call.shape);
        // Later rows of a causal head see more; long units go first, and where tasks are few those of all heads.
        let (group_at, unit) = if cut.longest_first {
            let groups = call.shape.batch * spec.kv_heads;
            (index % groups, cut.units - 1 - index / groups)
        } else {
            (index / cut.units, cut.units - 1 - index % cut.units)
        };
        let (batch, kv_head) = (group_at / spec.kv_heads, group_at % spec.kv_heads);
        let (mut rest, mut keys, mut own) = (unit, [0, usize::MAX], task.scratch.wrapping_add(layout.unit));
        if cut.key_pieces > 0 {
            let piece = unit % cut.key_pieces;
            (rest, keys) = (unit / cut.key_pieces, [piece * PIECE, (piece + 1) * PIECE]);
            own = task.partial.wrapping_add((group_at * cut.units + unit) * layout.unit_len(&cut));
        }
        let (heads_at, piece) = (rest / cut.pieces * cut.heads, rest % cut.pieces);
        let heads = cut.heads.min(spec.group() - heads_at);
        let first_row = shape.q_len * piece / cut.pieces;
        let rows = shape.q_len * (piece + 1) / cut.pieces - first_row;
        Self {
            task,
            batch,
            kv_head,
            first_head: kv_head * spec.group() + heads_at,
            first_row,
            rows,
            tiles: Tiles::new(heads * rows),
            keys,
            states: own,
            sums: own.wrapping_add(cut.tiles * TILE_STATE),
            bare: spec.causal == Causal::None && spec.window == Window::default(),
        }
    }

    #[inline(always)]
    pub fn tile(&self, index: usize) -> Tile {
        let (start, end) = (self.tiles.start(index), self.tiles.start(index + 1));
        let mut places = [(0, 0); MR];
        let (mut head, mut row) = if start < self.rows { (0, start) } else { (start / self.rows, start % self.rows) };
        for i in 0..end - start {
            places[i] = (self.first_head + head, self.first_row + row);
            row += 1;
            if row == self.rows {
                (head, row) = (head + 1, 0);
            }
        }
        Tile { index, count: end - start, places }
    }

    #[inline(always)]
    pub fn state(&self, tile: &Tile) -> *mut f32 {
        self.states.wrapping_add(tile.index * TILE_STATE)
    }

    /// What the rows of a tile see of the sequence, and the keys from the first to the last that any sees.
    #[inline(always)]
    fn seen(&self, tile: &Tile, keys: usize) -> ([[usize; 2]; MR], [usize; 2]) {
        let call = self.task.call;
        let (mut rows, mut outer) = ([[0; 2]; MR], [usize::MAX, 0]);
        let [from, to] = self.keys;
        if self.bare {
            let (from, to) = (from.min(keys), to.min(keys));
            rows[..tile.count].fill([from, to]);
            return (rows, [from, to]);
        }
        for i in 0..tile.count {
            let visible = call.spec.visible_keys(tile.places[i].1, call.shape.q_len, keys);
            rows[i] = [visible.start.max(from), visible.end.min(to)];
            if rows[i][0] < rows[i][1] {
                outer = [outer[0].min(rows[i][0]), outer[1].max(rows[i][1])];
            }
        }
        (rows, outer)
    }

    /// What the rows of a tile see of the block `start..end`, and the keys from the first to the last that any sees at
    /// all.
    #[inline(always)]
    pub(super) fn seen_of(&self, tile: &Tile, keys: usize, [start, end]: [usize; 2]) -> (TileSeen, [usize; 2]) {
        let (rows, outer) = self.seen(tile, keys);
        if self.bare {
            let all = Seen { first: outer[0].clamp(start, end) - start, end: outer[1].clamp(start, end) - start };
            return (TileSeen::all(all), outer);
        }
        (TileSeen::new(&rows, tile.count, start, end), outer)
    }

    /// [`Unit::seen_of`] of a tile of neighbouring rows that see the whole block, which is most of what there is: later
    /// rows see no earlier keys, and earlier rows no later ones, so that two rows speak for all.
    #[inline(always)]
    fn sees_all(&self, tile: &Tile, keys: usize, [start, end]: [usize; 2]) -> Option<(TileSeen, [usize; 2])> {
        let call = self.task.call;
        let (first, last) = (tile.places[0], tile.places[tile.count - 1]);
        if self.bare || first.0 != last.0 {
            return None;
        }
        let [first, last] = [first.1, last.1].map(|row| call.spec.visible_keys(row, call.shape.q_len, keys));
        let all = last.start.max(self.keys[0]) <= start && first.end.min(self.keys[1]) >= end;
        let outer = [first.start.max(self.keys[0]), last.end.min(self.keys[1])];
        all.then(|| (TileSeen::all(Seen { first: 0, end: end - start }), outer))
    }

    /// Steps of all tiles with a block, about: what they see of it grows or shrinks from the first to the last.
    #[inline(always)]
    pub(super) fn block_steps(&self, keys: usize, block: [usize; 2]) -> usize {
        let [first, last] =
            [0, self.tiles.count - 1].map(|index| steps(&self.seen_of(&self.tile(index), keys, block).0));
        (self.tiles.count * (first + last)).div_ceil(2)
    }

    /// All rows of the unit, while the memory of the `next` is asked for. Returns whether all outputs are finite.
    ///
    /// # Safety
    /// - The contract of [`Forward`]; no other task has these rows and keys.
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, simd: S, next: Option<&Self>, careful: bool) -> bool {
        let Forward { call, layout, scratch, cut, .. } = *self.task;
        if self.rows == 0 {
            return true;
        }
        let few = cut.key_pieces > 0;
        let keys = call.keys(self.batch);
        let spec = &call.spec;
        let (mut first_key, mut end_key) = (usize::MAX, 0);
        let mut finite = true;
        // SAFETY: the scratch memory is laid out for as many tiles.
        unsafe {
            for index in 0..self.tiles.count {
                let tile = self.tile(index);
                let (_, [first, end]) = self.seen(&tile, keys);
                (first_key, end_key) = (first_key.min(first), end_key.max(end));
                self.start_tile(&tile);
                if first >= end && !few {
                    self.finish_without_keys(simd, &tile);
                }
            }
            let block = if few { FEW_BLOCK } else { block_keys(spec) };
            let mut start = first_key.min(end_key) / block * block;
            while start < end_key {
                let end = (start + block).min(keys);
                let count = end.min(end_key) - start;
                let (place, keys_at) = ([self.batch, self.kv_head], [start, count, block]);
                let (packed, values) = (scratch.add(layout.packed), scratch.add(layout.values));
                // Few rows meet short pages one by one, where they lie.
                let step = match call.pages {
                    Some(pages) if few && call.short_pages(block) => pages.rows,
                    _ => block,
                };
                let to = if few { packed } else { values };
                let keys_at = if step < block { [start, count.min(step), step] } else { keys_at };
                let k = call.rows(&call.k, place, keys_at, spec.head_dim, to, few);
                if !few {
                    pack_transposed(simd, k, count, spec.head_dim, packed);
                }
                let v = call.rows(&call.v, place, keys_at, spec.v_dim, values, true);
                let mut ahead = Ahead::new(ahead::pays::<S>(call.floats) && !few);
                if ahead.fetches() {
                    let steps = self.block_steps(keys, [start, end]);
                    ahead.block(match next {
                        _ if end < end_key => self.ahead(end, block.min(end_key - end), steps),
                        Some(next) => next.ahead(0, block.min(call.keys(next.batch)), steps),
                        None => [Lines::NONE; 4],
                    });
                }
                let mut tile = self.tile(0);
                for index in 0..self.tiles.count {
                    let following = if index + 1 < self.tiles.count { self.tile(index + 1) } else { tile };
                    let found = self.sees_all(&tile, keys, [start, end]);
                    let (seen, outer) = found.unwrap_or_else(|| self.seen_of(&tile, keys, [start, end]));
                    // Rows of different heads may see nothing of a block between those that they see.
                    if outer[0] < end && start < outer[1] && seen.outer.first < seen.outer.end {
                        if ahead.fetches() {
                            let steps = steps(&seen);
                            ahead.tile(self.tile_ahead(&following, steps, outer[0] < start, outer[1] <= end));
                        }
                        let (first, last) = (outer[0] >= start, outer[1] <= end);
                        let block = Block { start, keys: count, step, k, v, first, last, length: keys, careful };
                        finite &= self.meet(simd, &tile, &seen, &block, &mut ahead);
                    }
                    tile = following;
                }
                start += block;
            }
        }
        finite
    }

    /// The keys and the values `start..start + count`, in `steps` steps.
    #[inline(always)]
    pub(super) fn ahead(&self, start: usize, count: usize, steps: usize) -> [Lines; 4] {
        let call = self.task.call;
        if call.pages.is_some() {
            return [Lines::NONE; 4];
        }
        let [k, v] = [&call.k, &call.v].map(|of| of.head(self.batch, self.kv_head));
        let (dim, v_dim) = (call.spec.head_dim, call.spec.v_dim);
        let (k, v) = (ahead::lines(k, start, count, dim, steps), ahead::lines(v, start, count, v_dim, steps));
        [k, v, Lines::NONE, Lines::NONE]
    }

    /// What a tile is about to read and write: its queries, its sums if it has some, its outputs if it ends. Those of
    /// its first head, that is.
    #[inline(always)]
    pub(super) fn tile_ahead(&self, tile: &Tile, steps: usize, sums: bool, ends: bool) -> [Lines; 3] {
        let Forward { call, layout, outputs, .. } = *self.task;
        let (head, row) = tile.places[0];
        let count = tile.count.min(self.first_row + self.rows - row);
        let (dim, v_dim) = (call.spec.head_dim, call.spec.v_dim);
        let [mut out, mut kept] = [Lines::NONE; 2];
        if ends {
            out = ahead::lines(outputs.out.head(self.batch, head), row, count, v_dim, steps);
        }
        if sums {
            let start = self.sums.wrapping_add(tile.index * MR * layout.stride);
            kept = Lines::new(start, tile.count, layout.stride as isize, v_dim, steps);
        }
        [ahead::lines(call.q.head(self.batch, head), row, count, dim, steps), out, kept]
    }

    /// Maxima and sums of nothing, or of the sink, which belongs to the first keys.
    ///
    /// # Safety
    /// - The scratch memory has room for the tile.
    #[inline(always)]
    unsafe fn start_tile(&self, tile: &Tile) {
        let Forward { call, .. } = *self.task;
        // SAFETY: the caller's contract; there is a sink for each head.
        unsafe {
            let state = self.state(tile);
            for i in 0..16 {
                *state.add(i) = f32::NEG_INFINITY;
            }
            for i in 0..MR * 16 {
                *state.add(16 + i) = 0.0;
            }
            if let Some(sinks) = call.extras.sinks
                && self.keys[0] == 0
            {
                for i in 0..tile.count {
                    let sink = *sinks.add(tile.places[i].0);
                    *state.add(i) = sink;
                    *state.add(16 + i * 16) = if sink == f32::NEG_INFINITY { 0.0 } else { 1.0 };
                }
            }
            // What is merged later must be there even if the rows see none of these keys.
            if self.task.cut.key_pieces > 0 {
                let stride = self.task.layout.stride;
                for i in 0..MR * stride {
                    *self.sums.add(tile.index * MR * stride + i) = 0.0;
                }
            }
        }
    }

    /// # Safety
    /// - The tile sees no key.
    #[inline(always)]
    pub(super) unsafe fn finish_without_keys<S: Simd>(&self, simd: S, tile: &Tile) {
        let Forward { call, outputs, .. } = *self.task;
        for i in 0..tile.count {
            let (head, row) = tile.places[i];
            let out = outputs.out.head(self.batch, head);
            // A sink alone is its own log-sum-exp; what is not finite makes no weights.
            // SAFETY: the rows of the tile; there is a sink for each head.
            unsafe {
                let sink = call.extras.sinks.map_or(f32::NEG_INFINITY, |sinks| *sinks.add(head));
                let bad = sink.is_nan() || sink == f32::INFINITY;
                let zero = simd.splat(if bad { f32::NAN } else { 0.0 });
                for at in (0..call.spec.v_dim).step_by(S::LANES) {
                    let lanes = S::LANES.min(call.spec.v_dim - at);
                    store_row(simd, out.at(row, at).cast_mut(), out.step, lanes, zero);
                }
                if !outputs.lse.is_null() {
                    *outputs.lse.add(self.lse_at(head, row)) = if bad { f32::NAN } else { sink };
                }
            }
        }
    }

    /// The outputs of a tile, and what its sums of values are multiplied with. Writes log-sum-exps, of maxima that are
    /// to be multiplied by `scale`. Dropout has left `stays` of the weights.
    ///
    /// # Safety
    /// - The contract of [`Forward`]; 16 maxima are readable.
    #[inline(always)]
    pub(super) unsafe fn outputs_of<S: Simd>(
        &self,
        simd: S,
        tile: &Tile,
        (maxima, sums): (*const f32, &[f32; 16]),
        scale: f32,
        stays: f32,
    ) -> ([*mut f32; MR], isize, [f32; MR]) {
        let outputs = &self.task.outputs;
        let (mut to, mut factors) = ([std::ptr::null_mut(); MR], [1.0; MR]);
        for i in 0..tile.count {
            let (head, row) = tile.places[i];
            to[i] = outputs.out.head(self.batch, head).at(row, 0).cast_mut();
            // A row that sees none of the keys of its tile has sums of 0.
            factors[i] = if sums[i] == 0.0 { 1.0 } else { 1.0 / (sums[i] * stays) };
        }
        if !outputs.lse.is_null() {
            let mut lse = [0.0f32; 16];
            for lane in (0..tile.count).step_by(S::LANES) {
                // SAFETY: there is room for 16.
                unsafe {
                    let largest = simd.load(maxima.add(lane));
                    let logarithm = math::ln(simd, simd.load(sums.as_ptr().add(lane)));
                    let sum = simd.add(simd.mul(largest, simd.splat(scale)), logarithm);
                    simd.store(lse.as_mut_ptr().add(lane), sum);
                }
            }
            for i in 0..tile.count {
                let (head, row) = tile.places[i];
                // SAFETY: a log-sum-exp for each row of the call.
                unsafe { *outputs.lse.add(self.lse_at(head, row)) = lse[i] };
            }
        }
        (to, outputs.out.strides[3], factors)
    }

    #[inline(always)]
    pub fn lse_at(&self, head: usize, row: usize) -> usize {
        (self.batch * self.task.call.spec.heads + head) * self.task.outputs.lse_stride + row
    }
}
