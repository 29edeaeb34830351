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

use super::call::{Call, MR, Raw, Rows, SCORE_STRIDE, Tiles, block_keys};
use super::pack::{copy_rows, pack_transposed};
use super::scores::{ScoreTile, TileSeen, Transform, exponentials, first_score, fold_rows};
use super::values::{Hidden, SumEnds, ValueTile, store_row};
use crate::gemm::micro::ContiguousRows;
use crate::simd::reduce::NARROW;
use crate::simd::{Isa, Job, Simd, dispatch, math};
use crate::softmax::ln;
use crate::workspace::round_up;

/// Rows of a task, about: packing a block of keys and copying it costs less than a hundredth of what the rows do with
/// it, and what is kept of the rows stays in the caches.
const TASK_ROWS: usize = 768;

/// Operations of a task, at least: far more than handing it out costs.
const TASK_FLOPS: f64 = 2e6;

/// Floats kept for a tile besides its sums of values: maxima, and sums of 16 lanes for each row.
const TILE_STATE: usize = 16 + MR * 16;

/// How the rows of a call are cut into units of work, and units into tasks. Cuts no sum.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// Pieces of a head, if heads are long.
    pieces: usize,
    /// Heads of a unit, if heads are short.
    heads: usize,
    /// Units of a group of heads.
    units: usize,
    per_task: usize,
    pub tasks: usize,
    tiles: usize,
}

impl Cut {
    pub fn new(call: &Call<'_>) -> Self {
        let (shape, spec) = (call.shape, &call.spec);
        let group = spec.group();
        let pieces = shape.q_len.div_ceil(TASK_ROWS).max(1);
        let heads = if pieces > 1 { 1 } else { (TASK_ROWS / shape.q_len.max(1)).clamp(1, group) };
        let units = group.div_ceil(heads) * pieces;
        let rows = shape.q_len.div_ceil(pieces);
        let flops = 2.0 * (heads * rows) as f64 * (shape.kv_len * (spec.head_dim + spec.v_dim)) as f64;
        let all = shape.batch * spec.kv_heads * units;
        let per_task = ((TASK_FLOPS / flops.max(1.0)) as usize).clamp(1, all.max(1));
        Self { pieces, heads, units, per_task, tasks: all.div_ceil(per_task), tiles: heads * rows.div_ceil(MR) }
    }

    fn all(&self, call: &Call<'_>) -> usize {
        call.shape.batch * call.spec.kv_heads * self.units
    }
}

/// Scratch of one task, in floats, each part on cache lines of its own.
#[derive(Clone, Copy)]
pub(super) struct Scratch {
    packed: usize,
    values: usize,
    queries: usize,
    states: usize,
    sums: usize,
    stride: usize,
    pub len: usize,
}

impl Scratch {
    pub fn new(call: &Call<'_>, cut: &Cut) -> Self {
        let spec = &call.spec;
        let keys = block_keys(spec).min(call.shape.kv_len).next_multiple_of(64);
        let stride = round_up(spec.v_dim).next_multiple_of(64);
        let scores = round_up(MR * SCORE_STRIDE);
        let values = if call.v.strides[3] == 1 { 0 } else { round_up(keys * spec.v_dim) };
        let queries = if call.q.strides[3] == 1 { 0 } else { round_up(cut.tiles * MR * spec.head_dim) };
        let packed_at = scores;
        let values_at = packed_at + round_up(keys * spec.head_dim);
        let queries_at = values_at + values;
        let states_at = queries_at + queries;
        let sums_at = states_at + cut.tiles * TILE_STATE;
        let sums = if call.shape.kv_len > block_keys(spec) { cut.tiles * MR * stride } else { 0 };
        Self {
            packed: packed_at,
            values: values_at,
            queries: queries_at,
            states: states_at,
            sums: sums_at,
            stride,
            len: sums_at + sums,
        }
    }
}

/// Where a call writes.
pub(super) struct Outputs {
    pub out: Raw<f32>,
    /// Null where it is not asked for.
    pub lse: *mut f32,
}

// SAFETY: tasks write different rows.
unsafe impl Sync for Outputs {}

/// One task of a forward call.
///
/// Whoever makes one vouches that
/// - the outputs fit the call, and no other task with this number runs;
/// - `scratch` has `Scratch::len` floats, this task's own.
pub(super) struct Forward<'a> {
    pub call: &'a Call<'a>,
    pub outputs: &'a Outputs,
    pub cut: Cut,
    pub layout: Scratch,
    pub scratch: *mut f32,
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
            // Later rows of a causal head see more; long units go first.
            let (group_at, unit) = (index / self.cut.units, self.cut.units - 1 - index % self.cut.units);
            let (batch, kv_head) = (group_at / self.call.spec.kv_heads, group_at % self.call.spec.kv_heads);
            let (heads_at, piece) = (unit / self.cut.pieces * self.cut.heads, unit % self.cut.pieces);
            let group = self.call.spec.group();
            let heads = self.cut.heads.min(group - heads_at);
            let q_len = self.call.shape.q_len;
            let unit = Unit {
                task: &self,
                batch,
                kv_head,
                first_head: kv_head * group + heads_at,
                heads,
                first_row: q_len * piece / self.cut.pieces,
                end_row: q_len * (piece + 1) / self.cut.pieces,
            };
            // SAFETY: units are disjoint sets of rows.
            unsafe {
                if !unit.run(simd, false) {
                    unit.run(simd, true);
                }
            }
        }
    }
}

/// Neighbouring rows of one or more heads that share a head of keys.
struct Unit<'a> {
    task: &'a Forward<'a>,
    batch: usize,
    kv_head: usize,
    first_head: usize,
    heads: usize,
    first_row: usize,
    end_row: usize,
}

/// A tile of a unit: rows of one head.
#[derive(Clone, Copy)]
struct Tile {
    index: usize,
    head: usize,
    row: usize,
    count: usize,
}

impl Unit<'_> {
    #[inline(always)]
    fn tile(&self, tiles: Tiles, index: usize) -> Tile {
        let (head, tile) = (self.first_head + index / tiles.count, index % tiles.count);
        let (start, end) = (tiles.start(tile), tiles.start(tile + 1));
        Tile { index, head, row: self.first_row + start, count: end - start }
    }

    /// What the rows of a tile see of the whole sequence, and the keys from the first to the last that any sees.
    #[inline(always)]
    fn seen(&self, tile: Tile, keys: usize) -> ([[usize; 2]; MR], [usize; 2]) {
        let call = self.task.call;
        let (mut rows, mut outer) = ([[0; 2]; MR], [usize::MAX, 0]);
        for i in 0..tile.count {
            let visible = call.spec.visible_keys(tile.row + i, call.shape.q_len, keys);
            rows[i] = [visible.start, visible.end];
            if !visible.is_empty() {
                outer = [outer[0].min(visible.start), outer[1].max(visible.end)];
            }
        }
        (rows, outer)
    }

    /// All rows of the unit. Returns whether all outputs are finite.
    ///
    /// # Safety
    /// - The contract of [`Forward`]; no other task has these rows.
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, simd: S, careful: bool) -> bool {
        let Forward { call, layout, scratch, .. } = *self.task;
        if self.first_row == self.end_row {
            return true;
        }
        let keys = call.keys(self.batch);
        let tiles = Tiles::new(self.end_row - self.first_row);
        let (spec, count) = (&call.spec, self.heads * tiles.count);
        let (mut first_key, mut end_key) = (usize::MAX, 0);
        let mut finite = true;
        // SAFETY: the scratch memory is laid out for as many tiles.
        unsafe {
            for index in 0..count {
                let tile = self.tile(tiles, index);
                let (_, [first, end]) = self.seen(tile, keys);
                (first_key, end_key) = (first_key.min(first), end_key.max(end));
                self.start_tile(simd, tile);
                if first >= end {
                    self.finish_without_keys(simd, tile);
                }
            }
            let block = block_keys(spec);
            let mut start = first_key.min(end_key) / block * block;
            while start < end_key {
                let end = (start + block).min(keys);
                let k = call.k.head(self.batch, self.kv_head);
                let k = Rows { start: k.at(start, 0), ..k };
                pack_transposed(simd, k, end.min(end_key) - start, spec.head_dim, scratch.add(layout.packed));
                let v = call.v.head(self.batch, self.kv_head);
                let mut v = Rows { start: v.at(start, 0), ..v };
                if v.step != 1 {
                    v = copy_rows(v, end.min(end_key) - start, spec.v_dim, scratch.add(layout.values));
                }
                for index in 0..count {
                    let tile = self.tile(tiles, index);
                    let (rows, outer) = self.seen(tile, keys);
                    if outer[0] < end && start < outer[1] {
                        let seen = TileSeen::new(&rows, tile.count, start, end);
                        let block = Block {
                            start,
                            keys: end.min(end_key) - start,
                            v,
                            first: outer[0] >= start,
                            last: outer[1] <= end,
                            length: keys,
                            careful,
                        };
                        finite &= match tile.count {
                            1 => self.block::<S, 1>(simd, tile, &seen, &block),
                            2 => self.block::<S, 2>(simd, tile, &seen, &block),
                            3 => self.block::<S, 3>(simd, tile, &seen, &block),
                            4 => self.block::<S, 4>(simd, tile, &seen, &block),
                            5 => self.block::<S, 5>(simd, tile, &seen, &block),
                            _ => self.block::<S, 6>(simd, tile, &seen, &block),
                        };
                    }
                }
                start += block;
            }
        }
        finite
    }

    /// Maxima and sums of nothing, or of the sink; queries whose elements are not neighbours are copied.
    ///
    /// # Safety
    /// - The scratch memory has room for the tile.
    #[inline(always)]
    unsafe fn start_tile<S: Simd>(&self, _: S, tile: Tile) {
        let Forward { call, layout, scratch, .. } = *self.task;
        // SAFETY: the caller's contract; there is a sink for each head.
        unsafe {
            let state = scratch.add(layout.states + tile.index * TILE_STATE);
            let sink = call.extras.sinks.map_or(f32::NEG_INFINITY, |sinks| *sinks.add(tile.head));
            for i in 0..16 {
                *state.add(i) = sink;
            }
            for i in 0..MR * 16 {
                *state.add(16 + i) = if i % 16 == 0 && sink != f32::NEG_INFINITY { 1.0 } else { 0.0 };
            }
            let q = call.q.head(self.batch, tile.head);
            if q.step != 1 {
                let dim = call.spec.head_dim;
                let q = Rows { start: q.at(tile.row, 0), ..q };
                copy_rows(q, tile.count, dim, scratch.add(layout.queries + tile.index * MR * dim));
            }
        }
    }

    /// # Safety
    /// - The tile has been started and sees no key.
    #[inline(always)]
    unsafe fn finish_without_keys<S: Simd>(&self, simd: S, tile: Tile) {
        let Forward { call, outputs, .. } = *self.task;
        let out = outputs.out.head(self.batch, tile.head);
        // A sink alone is its own log-sum-exp, even if it is NaN; then the outputs are, too.
        // SAFETY: the rows of the tile; there is a sink for each head.
        unsafe {
            let sink = call.extras.sinks.map_or(f32::NEG_INFINITY, |sinks| *sinks.add(tile.head));
            let zero = simd.splat(if sink.is_nan() || sink == f32::INFINITY { f32::NAN } else { 0.0 });
            for row in tile.row..tile.row + tile.count {
                for at in (0..call.spec.v_dim).step_by(S::LANES) {
                    store_row(simd, out, row, at, S::LANES.min(call.spec.v_dim - at), zero);
                }
                if !outputs.lse.is_null() {
                    let lse = if sink == f32::INFINITY { f32::NAN } else { sink };
                    *outputs.lse.add(self.lse_at(tile.head, row)) = lse;
                }
            }
        }
    }

    #[inline(always)]
    fn lse_at(&self, head: usize, row: usize) -> usize {
        (self.batch * self.task.call.spec.heads + head) * self.task.call.shape.q_len + row
    }

    /// One tile of `M` rows and one block of keys. Returns whether finished outputs are finite.
    ///
    /// # Safety
    /// - The tile has been started; the block is packed, and some row sees some of it.
    #[inline(always)]
    unsafe fn block<S: Simd, const M: usize>(&self, simd: S, tile: Tile, seen: &TileSeen, block: &Block) -> bool {
        let Forward { call, layout, scratch, outputs, .. } = *self.task;
        let spec = &call.spec;
        let dim = spec.head_dim;
        let plain = call.plain();
        // SAFETY: the scratch memory is laid out for this; the job contracts hold for a packed block.
        unsafe {
            let scores = scratch;
            let state = scratch.add(layout.states + tile.index * TILE_STATE);
            let q = call.q.head(self.batch, tile.head);
            let q = if q.step == 1 {
                ContiguousRows { start: q.at(tile.row, 0), row_stride: q.row_stride }
            } else {
                let start = scratch.add(layout.queries + tile.index * MR * dim);
                ContiguousRows { start, row_stride: dim as isize }
            };
            let packed = scratch.add(layout.packed);
            let mut maxima = [f32::NEG_INFINITY; 16];
            let (at, end) = (first_score(simd, seen), seen.outer.end.next_multiple_of(16));
            let (keys, maxima_at) = (block.keys, maxima.as_mut_ptr());
            let factor = if plain {
                simd.call(ScoreTile::<M, true> { q, packed, dim, keys, seen, scores, maxima: maxima_at });
                spec.scale * std::f32::consts::LOG2_E
            } else {
                simd.call(ScoreTile::<M, false> { q, packed, dim, keys, seen, scores, maxima: maxima_at });
                let mut lanes = [simd.splat(f32::NEG_INFINITY); M];
                for i in 0..M {
                    let transform = Transform {
                        scale: spec.scale,
                        softcap: spec.softcap,
                        extras: &call.extras,
                        batch: self.batch,
                        head: tile.head,
                        row: tile.row + i,
                        position: (tile.row + i) as isize + spec.offset(call.shape.q_len, block.length),
                        first_key: block.start,
                        seen: seen.rows[i],
                    };
                    lanes[i] = transform.run(simd, scores.add(i * SCORE_STRIDE), at, end);
                }
                fold_rows::<S, true, M>(simd, &lanes, maxima_at);
                std::f32::consts::LOG2_E
            };

            // New maxima, and what the sums so far are worth next to them.
            let mut shifts = [0.0f32; 16];
            let mut rescale = [1.0f32; 16];
            let mut lane = 0;
            while lane < M {
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
            for i in 0..M {
                let row = scores.add(i * SCORE_STRIDE);
                let hidden = if block.careful { Some(Hidden::find(row, at, end)) } else { None };
                let sums = state.add(16 + i * 16);
                exponentials(simd, row, at, end, [shifts[i], factor, rescale[i]], sums);
                if let Some(hidden) = hidden {
                    hidden.mark(row, at, end);
                }
            }

            let sums = scratch.add(layout.sums + tile.index * MR * layout.stride);
            let mut ends = SumEnds {
                from: if block.first { std::ptr::null() } else { sums },
                rescale: [1.0; MR],
                sums,
                stride: layout.stride,
                out: None,
            };
            for i in 0..M {
                ends.rescale[i] = rescale[i];
            }
            if block.last {
                let mut totals = [0.0f32; 16];
                let mut lanes = [simd.zero(); M];
                for i in 0..M {
                    lanes[i] = sum_lanes(simd, state.add(16 + i * 16));
                }
                fold_rows::<S, false, M>(simd, &lanes, totals.as_mut_ptr());
                let mut divisors = [1.0; MR];
                for i in 0..M {
                    // A row that sees none of the keys of its tile has sums of 0.
                    divisors[i] = if totals[i] == 0.0 { 1.0 } else { totals[i] };
                    if !outputs.lse.is_null() {
                        let scale = if plain { spec.scale } else { 1.0 };
                        let lse = *state.add(i) * scale + ln(simd, totals[i]);
                        *outputs.lse.add(self.lse_at(tile.head, tile.row + i)) = lse;
                    }
                }
                let out = outputs.out.head(self.batch, tile.head);
                ends.out = Some((Rows { start: out.at(tile.row, 0), ..out }, divisors));
            }
            simd.call(ValueTile::<M> {
                weights: scores,
                values: block.v,
                seen: seen.outer,
                dim: spec.v_dim,
                ends,
                careful: block.careful,
            })
        }
    }
}

/// A block of keys as a tile meets it.
struct Block {
    start: usize,
    /// Packed keys.
    keys: usize,
    v: Rows<f32>,
    /// The tile sees nothing before this block.
    first: bool,
    /// The tile sees nothing after this block.
    last: bool,
    /// Keys of the sequence.
    length: usize,
    careful: bool,
}

/// The 16 lanes of a row's sum, folded to one vector in halves.
///
/// # Safety
/// - 16 floats are readable.
#[inline(always)]
unsafe fn sum_lanes<S: Simd>(simd: S, sums: *const f32) -> S::F {
    let mut vectors = 16 / S::LANES;
    let mut lanes = [simd.zero(); NARROW];
    for v in 0..vectors {
        // SAFETY: the caller's contract.
        lanes[v] = unsafe { simd.load(sums.add(v * S::LANES)) };
    }
    while vectors > 1 {
        vectors /= 2;
        for v in 0..vectors {
            lanes[v] = simd.add(lanes[v], lanes[v + vectors]);
        }
    }
    lanes[0]
}
