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

use std::mem::MaybeUninit;

use super::call::{Call, MAX_BLOCK, MR, QUERY_STRIDE, Raw, Rows, SCORE_STRIDE, Tiles, block_keys};
use super::dropout::{DropoutRow, mask_row};
use super::pack::pack_transposed;
use super::scores::{
    DotTile, Exponentials, QueryRows, ScoreTile, Seen, TileSeen, Transform, copy_query, dot_tile, first_score,
    fold_rows, score_tile,
};
use super::spec::{AttentionSpec, Causal, Shape, Window};
use super::values::{Hidden, ScoreRows, SumEnds, ValueTile, store_row, value_tile};
use crate::simd::reduce::NARROW;
use crate::simd::{Isa, Job, Simd, dispatch, math};
use crate::softmax::ln;
use crate::workspace::round_up;

/// Elements of the queries and outputs of a task, about: enough rows for packing a block of keys to cost less than a
/// hundredth of what they do with it, and so few that what is kept of them stays in the caches.
const TASK_ELEMENTS: usize = 768 * 128;

/// Operations of a task, at least: far more than handing it out costs.
const TASK_FLOPS: f64 = 2e6;

/// Up to so many rows share a head of keys, packing keys does not pay: each key is read once and met by all rows.
const FEW_ROWS: usize = 12;

/// Keys of a block for few rows: their values stay in the first-level cache, or next to it.
const FEW_BLOCK: usize = 64;

/// Keys of a piece for few rows: a task on its own, whose sums are merged with those of other pieces in order.
pub(super) const PIECE: usize = 1024;

/// Floats kept for a tile besides its sums of values: maxima, and sums of 16 lanes for each row.
const TILE_STATE: usize = 16 + MR * 16;

/// Whether a call has so few rows for each head of keys that keys are cut into pieces instead of rows.
pub(super) fn few_rows(spec: &AttentionSpec, shape: Shape) -> bool {
    spec.group().saturating_mul(shape.q_len) <= FEW_ROWS
}

/// How the rows of a call are cut into units of work, and units into tasks. Cuts sums into pieces of keys by the shape
/// alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// Pieces of keys, each with partial sums of its own; 0 where rows are cut instead.
    pub key_pieces: usize,
    /// Pieces of a head, if heads are long.
    pieces: usize,
    /// Heads of a unit, if heads are short.
    heads: usize,
    /// Units of a group of heads.
    units: usize,
    per_task: usize,
    pub tasks: usize,
    /// Tiles of a unit.
    tiles: usize,
}

impl Cut {
    pub fn new(call: &Call<'_>) -> Self {
        let (shape, spec) = (call.shape, &call.spec);
        let group = spec.group();
        let few = few_rows(spec, shape);
        let task_rows = TASK_ELEMENTS / (spec.head_dim + spec.v_dim);
        let pieces = if few { 1 } else { shape.q_len.div_ceil(task_rows) };
        let heads = match (few, pieces) {
            (true, _) => group,
            (false, 1) => (task_rows / shape.q_len.max(1)).clamp(1, group),
            _ => 1,
        };
        let key_pieces = if few { shape.kv_len.div_ceil(PIECE).max(1) } else { 0 };
        let units = group.div_ceil(heads) * pieces * key_pieces.max(1);
        let rows = shape.q_len.div_ceil(pieces);
        let keys = if few { shape.kv_len.min(PIECE) } else { shape.kv_len };
        // Few rows wait for memory: each key counts as much as eight rows do.
        let rows_worth = if few { 8 } else { heads * rows };
        let flops = 2.0 * rows_worth as f64 * (keys * (spec.head_dim + spec.v_dim)) as f64;
        let all = shape.batch * spec.kv_heads * units;
        let per_task = ((TASK_FLOPS / flops.max(1.0)) as usize).clamp(1, all.max(1));
        let tiles = (heads * rows).div_ceil(MR);
        Self { key_pieces, pieces, heads, units, per_task, tasks: all.div_ceil(per_task), tiles }
    }

    fn all(&self, call: &Call<'_>) -> usize {
        call.shape.batch * call.spec.kv_heads * self.units
    }

    /// Floats that all tasks share: the partial sums of pieces of keys.
    pub fn partial_len(&self, call: &Call<'_>, layout: &Scratch) -> usize {
        if self.key_pieces == 0 { 0 } else { self.all(call).saturating_mul(layout.unit_len(self)) }
    }
}

/// Scratch of one task, in floats, each part on cache lines of its own.
#[derive(Clone, Copy)]
pub(super) struct Scratch {
    queries: usize,
    packed: usize,
    values: usize,
    /// Maxima and sums of the unit at work, and its sums of values.
    unit: usize,
    stride: usize,
    pub len: usize,
}

impl Scratch {
    pub fn new(call: &Call<'_>, cut: &Cut) -> Self {
        let spec = &call.spec;
        let few = cut.key_pieces > 0;
        let block = if few { FEW_BLOCK } else { block_keys(spec) };
        let keys = block.min(call.shape.kv_len).next_multiple_of(64);
        let stride = spec.v_dim.next_multiple_of(64);
        let queries = round_up(MR * SCORE_STRIDE);
        let packed = queries + round_up(MR * QUERY_STRIDE);
        let gathers = call.gathers(block) && !(few && call.short_pages(block));
        let packs_keys = !few || call.k.strides[3] != 1 || gathers;
        let values = packed + if packs_keys { round_up(keys * spec.head_dim) } else { 0 };
        // Keys that are gathered before they are packed pass through the place of the values.
        let wide = if gathers || call.k.strides[3] == 0 { spec.head_dim.max(spec.v_dim) } else { spec.v_dim };
        let unit = values + if call.v.strides[3] == 1 && !gathers { 0 } else { round_up(keys * wide) };
        let mut layout = Self { queries, packed, values, unit, stride, len: unit };
        if !few {
            let sums = call.shape.kv_len > block;
            layout.len += if sums { layout.unit_len(cut) } else { cut.tiles * TILE_STATE };
        }
        layout
    }

    /// What is kept of a unit between blocks: states of tiles, then their sums of values.
    fn unit_len(&self, cut: &Cut) -> usize {
        cut.tiles * (TILE_STATE + MR * self.stride)
    }
}

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
        for index in self.task * self.cut.per_task..all.min((self.task + 1) * self.cut.per_task) {
            let unit = Unit::new(&self, index);
            // SAFETY: units are disjoint sets of rows.
            unsafe {
                if !unit.run(simd, false) {
                    unit.run(simd, true);
                }
            }
        }
    }
}

/// Neighbouring rows of one or more heads that share a head of keys, and the keys they meet.
struct Unit<'a> {
    task: &'a Forward<'a>,
    batch: usize,
    kv_head: usize,
    first_head: usize,
    first_row: usize,
    /// Rows of each head.
    rows: usize,
    tiles: Tiles,
    /// The first of the keys that the unit meets, if others meet the rest.
    keys: [usize; 2],
    /// Maxima, sums and sums of values of the tiles.
    states: *mut f32,
    sums: *mut f32,
}

/// A tile of a unit: rows of one head after the other.
#[derive(Clone, Copy)]
struct Tile {
    index: usize,
    count: usize,
    /// Head and row of each of them.
    places: [(usize, usize); MR],
}

impl<'a> Unit<'a> {
    #[inline(always)]
    fn new(task: &'a Forward<'a>, index: usize) -> Self {
        let Forward { call, cut, layout, .. } = *task;
        let (spec, shape) = (&call.spec, call.shape);
        // Later rows of a causal head see more; long units go first.
        let (group_at, unit) = (index / cut.units, cut.units - 1 - index % cut.units);
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
        }
    }

    #[inline(always)]
    fn tile(&self, index: usize) -> Tile {
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
    fn state(&self, tile: &Tile) -> *mut f32 {
        self.states.wrapping_add(tile.index * TILE_STATE)
    }

    /// What the rows of a tile see of the sequence, and the keys from the first to the last that any sees.
    #[inline(always)]
    fn seen(&self, tile: &Tile, keys: usize) -> ([[usize; 2]; MR], [usize; 2]) {
        let call = self.task.call;
        let (mut rows, mut outer) = ([[0; 2]; MR], [usize::MAX, 0]);
        let [from, to] = self.keys;
        if call.spec.causal == Causal::None && call.spec.window == Window::default() {
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

    /// All rows of the unit. Returns whether all outputs are finite.
    ///
    /// # Safety
    /// - The contract of [`Forward`]; no other task has these rows and keys.
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, simd: S, careful: bool) -> bool {
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
                for index in 0..self.tiles.count {
                    let tile = self.tile(index);
                    let (rows, outer) = self.seen(&tile, keys);
                    if outer[0] < end && start < outer[1] {
                        let seen = TileSeen::new(&rows, tile.count, start, end);
                        // Rows of different heads may see nothing of a block between those that they see.
                        if seen.outer.first >= seen.outer.end {
                            continue;
                        }
                        let first = outer[0] >= start;
                        let last = outer[1] <= end;
                        let block = Block { start, keys: count, step, k, v, first, last, length: keys, careful };
                        finite &= self.block(simd, &tile, &seen, &block);
                    }
                }
                start += block;
            }
        }
        finite
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
    unsafe fn finish_without_keys<S: Simd>(&self, simd: S, tile: &Tile) {
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

    #[inline(always)]
    fn lse_at(&self, head: usize, row: usize) -> usize {
        (self.batch * self.task.call.spec.heads + head) * self.task.outputs.lse_stride + row
    }

    /// Keys and values from key `at` of a block on, as far as they lie together.
    ///
    /// # Safety
    /// - The key is in the block, and `at` a multiple of its step.
    #[inline(always)]
    unsafe fn page(&self, block: &Block, at: usize) -> (Rows<f32>, Rows<f32>) {
        if at == 0 {
            return (block.k, block.v);
        }
        let Forward { call, .. } = *self.task;
        let (place, keys) = ([self.batch, self.kv_head], [block.start + at, block.step, block.step]);
        let nowhere = std::ptr::null_mut();
        // SAFETY: the caller's contract; short pages have rows of neighbouring elements and need no copy.
        unsafe {
            let k = call.rows(&call.k, place, keys, call.spec.head_dim, nowhere, false);
            (k, call.rows(&call.v, place, keys, call.spec.v_dim, nowhere, false))
        }
    }

    /// One tile of `M` rows and one block of keys. Returns whether finished sums are finite.
    ///
    /// # Safety
    /// - The tile has been started; the block is packed, and some row sees some of it.
    #[inline(always)]
    unsafe fn block<S: Simd>(&self, simd: S, tile: &Tile, seen: &TileSeen, block: &Block) -> bool {
        let Forward { call, layout, scratch, outputs, cut, .. } = *self.task;
        let spec = &call.spec;
        let (dim, rows) = (spec.head_dim, tile.count);
        let few = cut.key_pieces > 0;
        let plain = !few && call.plain();
        // SAFETY: the scratch memory is laid out for this; the job contracts hold for a packed block.
        unsafe {
            let scores = scratch;
            let state = self.state(tile);
            let queries = scratch.add(layout.queries);
            for i in 0..rows {
                let (head, row) = tile.places[i];
                let q = call.q.head(self.batch, head);
                copy_query(simd, q.at(row, 0), q.step, dim, queries.add(i * QUERY_STRIDE));
            }
            let (q, packed) = (QueryRows(queries), scratch.add(layout.packed));
            let mut maxima = [f32::NEG_INFINITY; 16];
            let (at, end) = (first_score(simd, seen), seen.outer.end.next_multiple_of(16));
            let (keys, maxima_at) = (block.keys, maxima.as_mut_ptr());
            let factor = if plain {
                let job = ScoreTile { q, packed, dim, keys, seen, scores, maxima: maxima_at };
                score_tile::<S, true>(simd, rows, job);
                spec.scale * std::f32::consts::LOG2_E
            } else {
                if few {
                    let mut at = 0;
                    while at < keys {
                        let keys = block.step.min(keys - at);
                        let (k, v) = self.page(block, at);
                        dot_tile(simd, rows, DotTile { q, k, v, dim, v_dim: spec.v_dim, keys, scores: scores.add(at) });
                        at += block.step;
                    }
                } else {
                    let job = ScoreTile { q, packed, dim, keys, seen, scores, maxima: maxima_at };
                    score_tile::<S, false>(simd, rows, job);
                }
                let mut lanes = [simd.splat(f32::NEG_INFINITY); MR];
                for i in 0..rows {
                    let (head, row) = tile.places[i];
                    let transform = Transform {
                        scale: spec.scale,
                        softcap: spec.softcap,
                        extras: &call.extras,
                        batch: self.batch,
                        head,
                        row,
                        position: row as isize + spec.offset(call.shape.q_len, block.length),
                        first_key: block.start,
                        seen: seen.rows[i],
                    };
                    lanes[i] = transform.run(simd, scores.add(i * SCORE_STRIDE), at, end);
                }
                fold_rows::<S, true, MR>(simd, &lanes, maxima_at);
                std::f32::consts::LOG2_E
            };

            // New maxima, and what the sums so far are worth next to them.
            let mut shifts = [0.0f32; 16];
            let mut rescale = [1.0f32; 16];
            let mut lane = 0;
            while lane < rows {
                let old = simd.load(state.add(lane));
                let new = simd.max(simd.load(maxima.as_ptr().add(lane)), old);
                let nothing = simd.eq(new, simd.splat(f32::NEG_INFINITY));
                let shift = simd.select(nothing, simd.zero(), new);
                let change = simd.mul(simd.sub(old, shift), simd.splat(factor));
                simd.store(state.add(lane), new);
                simd.store(shifts.as_mut_ptr().add(lane), shift);
                simd.store(rescale.as_mut_ptr().add(lane), math::exp2_nonpositive(simd, change));
                lane += S::LANES;
            }
            let sums = state.add(16);
            let exponentials = Exponentials { scores, rows, at, end, factor, shifts, rescale, sums };
            let mut hidden = [const { Hidden::NONE }; MR];
            if block.careful {
                for i in 0..rows {
                    hidden[i] = Hidden::find(scores.add(i * SCORE_STRIDE), at, end);
                }
            }
            simd.call(exponentials);
            if let Some(dropout) = &call.dropout {
                for i in 0..rows {
                    let (head, row) = tile.places[i];
                    let (place, first_key) = ([self.batch, head, row], block.start);
                    // Those that stay are divided with the sums, in the end.
                    let mut factors = MaybeUninit::<[f32; MAX_BLOCK]>::uninit();
                    let factors = factors.as_mut_ptr().cast();
                    simd.call(DropoutRow { dropout, place, first_key, at, end, kept: 1.0, factors });
                    mask_row(simd, scores.add(i * SCORE_STRIDE), factors, at, end);
                }
            }
            if block.careful {
                for i in 0..rows {
                    hidden[i].mark(scores.add(i * SCORE_STRIDE), at, end);
                }
            }

            let sums = self.sums.add(tile.index * MR * layout.stride);
            let from = if block.first { std::ptr::null() } else { sums.cast_const() };
            let mut ends = SumEnds { from, rescale: [1.0; MR], sums, stride: layout.stride as isize, out: None };
            ends.rescale[..rows].copy_from_slice(&rescale[..rows]);
            if block.last && !few {
                let mut totals = [0.0f32; 16];
                fold_sums(simd, state, &mut totals);
                let mut to = [std::ptr::null_mut(); MR];
                let mut divisors = [1.0; MR];
                for i in 0..rows {
                    let (head, row) = tile.places[i];
                    to[i] = outputs.out.head(self.batch, head).at(row, 0).cast_mut();
                    // A row that sees none of the keys of its tile has sums of 0.
                    divisors[i] = if totals[i] == 0.0 { 1.0 } else { totals[i] * call.stays() };
                    if !outputs.lse.is_null() {
                        let scale = if plain { spec.scale } else { 1.0 };
                        let lse = *state.add(i) * scale + ln(simd, totals[i]);
                        *outputs.lse.add(self.lse_at(head, row)) = lse;
                    }
                }
                ends.out = Some((to, outputs.out.strides[3], divisors));
            }
            let mut finite = true;
            let mut at = seen.outer.first / block.step * block.step;
            while at < seen.outer.end {
                let part = Seen { first: seen.outer.first.max(at) - at, end: seen.outer.end.min(at + block.step) - at };
                let job = ValueTile {
                    weights: ScoreRows(scores.add(at)),
                    values: self.page(block, at).1,
                    seen: part,
                    dim: spec.v_dim,
                    ends,
                    careful: block.careful,
                };
                finite = value_tile(simd, rows, job);
                // Later pages go on where the first has stopped.
                (ends.from, ends.rescale) = (sums, [1.0; MR]);
                at += block.step;
            }
            finite && !(few && block.last && !are_finite(sums, rows, layout.stride, spec.v_dim))
        }
    }
}

/// Whether the first `count` elements of each row are finite.
///
/// # Safety
/// - `rows` rows are readable, `stride` apart.
#[inline(always)]
unsafe fn are_finite(start: *const f32, rows: usize, stride: usize, count: usize) -> bool {
    let mut finite = true;
    for i in 0..rows {
        for c in 0..count {
            // SAFETY: the caller's contract.
            finite &= unsafe { *start.add(i * stride + c) }.is_finite();
        }
    }
    finite
}

/// A block of keys as a tile meets it.
struct Block {
    start: usize,
    /// Keys that are packed, or readable at `k`.
    keys: usize,
    /// Keys that lie together: fewer than a block where `k` and `v` are the first of several pages.
    step: usize,
    k: Rows<f32>,
    v: Rows<f32>,
    /// The tile sees nothing before this block.
    first: bool,
    /// The tile sees nothing after this block.
    last: bool,
    /// Keys of the sequence.
    length: usize,
    careful: bool,
}

/// The sums of the rows of a tile, each folded from its 16 lanes in halves.
///
/// # Safety
/// - `state` is that of a tile.
#[inline(always)]
unsafe fn fold_sums<S: Simd>(simd: S, state: *const f32, totals: &mut [f32; 16]) {
    let mut rows = [simd.zero(); MR];
    for i in 0..MR {
        let mut vectors = 16 / S::LANES;
        let mut lanes = [simd.zero(); NARROW];
        for v in 0..vectors {
            // SAFETY: the caller's contract.
            lanes[v] = unsafe { simd.load(state.add(16 + i * 16 + v * S::LANES)) };
        }
        while vectors > 1 {
            vectors /= 2;
            for v in 0..vectors {
                lanes[v] = simd.add(lanes[v], lanes[v + vectors]);
            }
        }
        rows[i] = lanes[0];
    }
    // SAFETY: there is room for 16.
    unsafe { fold_rows::<S, false, MR>(simd, &rows, totals.as_mut_ptr()) };
}

/// The last step where keys are cut into pieces: the sums of all pieces of a group of rows, merged in order.
///
/// ```text
/// out = sum over pieces of exp(m[piece] - m) sums[piece] / sum over pieces of exp(m[piece] - m) total[piece]
/// ```
pub(super) struct Merge<'a>(pub Forward<'a>);

impl Merge<'_> {
    pub fn start(self, isa: Isa) {
        dispatch(isa, self);
    }
}

impl Job for Merge<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self(task) = self;
        let Forward { call, outputs, cut, layout, .. } = task;
        let factor = simd.splat(std::f32::consts::LOG2_E);
        // Units go backwards: the last is the first piece.
        let unit = Unit::new(&task, task.task * cut.units + cut.units - 1);
        let unit_len = layout.unit_len(&cut);
        for index in 0..unit.tiles.count {
            let tile = unit.tile(index);
            let mut totals = [simd.zero(); 4];
            let mut maxima = [simd.splat(f32::NEG_INFINITY); 4];
            let groups = 16 / S::LANES;
            // SAFETY: every unit of the group has left its states and sums here; the outputs are the group's.
            unsafe {
                for piece in 0..cut.key_pieces {
                    let state = unit.state(&tile).add(piece * unit_len);
                    for g in 0..groups {
                        maxima[g] = simd.max(simd.load(state.add(g * S::LANES)), maxima[g]);
                    }
                }
                for g in 0..groups {
                    let nothing = simd.eq(maxima[g], simd.splat(f32::NEG_INFINITY));
                    let shift = simd.select(nothing, simd.zero(), maxima[g]);
                    for piece in 0..cut.key_pieces {
                        let state = unit.state(&tile).add(piece * unit_len);
                        let change = simd.mul(simd.sub(simd.load(state.add(g * S::LANES)), shift), factor);
                        let weight = math::exp2_nonpositive(simd, change);
                        let mut sums = [0.0f32; 16];
                        fold_sums(simd, state, &mut sums);
                        totals[g] = simd.fma(weight, simd.load(sums.as_ptr().add(g * S::LANES)), totals[g]);
                        // From here on the weight stands where the maximum was.
                        simd.store(state.add(g * S::LANES), weight);
                    }
                }
                let (mut sums, mut shifts) = ([0.0f32; 16], [0.0f32; 16]);
                for g in 0..groups {
                    simd.store(sums.as_mut_ptr().add(g * S::LANES), totals[g]);
                    simd.store(shifts.as_mut_ptr().add(g * S::LANES), maxima[g]);
                }
                for i in 0..tile.count {
                    let (head, row) = tile.places[i];
                    let out = outputs.out.head(unit.batch, head);
                    let divisor = simd.splat(if sums[i] == 0.0 { 1.0 } else { sums[i] * call.stays() });
                    if !outputs.lse.is_null() {
                        *outputs.lse.add(unit.lse_at(head, row)) = shifts[i] + ln(simd, sums[i]);
                    }
                    for at in (0..call.spec.v_dim).step_by(S::LANES) {
                        let mut sum = simd.zero();
                        for piece in 0..cut.key_pieces {
                            let weight = *unit.state(&tile).add(piece * unit_len + i);
                            let from = (tile.index * MR + i) * layout.stride + at;
                            let values = simd.load(unit.sums.add(piece * unit_len + from));
                            sum = simd.fma(simd.splat(weight), values, sum);
                        }
                        let lanes = S::LANES.min(call.spec.v_dim - at);
                        let value = simd.div(sum, divisor);
                        store_row(simd, out.at(row, at).cast_mut(), out.step, lanes, value);
                    }
                }
            }
        }
    }
}
