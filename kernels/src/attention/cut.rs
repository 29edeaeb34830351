//! How a forward call is cut into tasks, and what scratch memory each needs.
//!
//! ```text
//! many rows     units of rows:   some rows of a head, or some short heads that share a head of keys
//! few rows      units of keys:   all rows that share a head of keys, and a piece of the keys
//! tasks         neighbouring units, enough to repay handing them out
//! ```

use super::call::{Call, MR, QUERY_STRIDE, SCORE_STRIDE, block_keys};
use super::spec::{AttentionSpec, Shape};
use crate::workspace::round_up;

/// Elements of the queries and outputs of a task, about: enough rows for packing a block of keys to cost less than a
/// hundredth of what they do with it, and so few that what is kept of them stays in the caches.
const TASK_ELEMENTS: usize = 768 * 128;

/// Operations of a task, at least: far more than handing it out costs.
const TASK_FLOPS: f64 = 2e6;

/// Tasks that there are at least, where there is work for so many: two threads then end a few hundredths apart.
const TASKS: usize = 32;

/// Heads that are so few are cut into as many tasks, of so many rows at least: packing a block of keys again for each
/// costs about a hundredth there.
const SHARED_TASKS: usize = 8;
const LEAST_ROWS: usize = 192;

/// How many of so many units a task gets that is to have so many operations at least, each unit having `flops`.
pub(super) fn units_of_task(units: usize, flops: f64, least_flops: f64) -> usize {
    ((least_flops / flops.max(1.0)) as usize).clamp(1, (units / TASKS).max(1))
}

/// Up to so many rows share a head of keys, packing keys does not pay: each key is read once and met by all rows.
const FEW_ROWS: usize = 12;

/// Keys of a block for few rows: their values stay in the first-level cache, or next to it.
pub(super) const FEW_BLOCK: usize = 64;

/// Keys of a piece for few rows: a task on its own, whose sums are merged with those of other pieces in order.
pub(super) const PIECE: usize = 1024;

/// Floats kept for a tile besides its sums of values: maxima, and sums of 16 lanes for each row.
pub(super) const TILE_STATE: usize = 16 + MR * 16;

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
    pub pieces: usize,
    /// Heads of a unit, if heads are short.
    pub heads: usize,
    /// Units of a group of heads.
    pub units: usize,
    /// The last units of all heads come first, then those before them.
    pub longest_first: bool,
    pub per_task: usize,
    pub tasks: usize,
    /// Tiles of a unit.
    pub tiles: usize,
}

impl Cut {
    pub fn new(call: &Call<'_>) -> Self {
        let (shape, spec) = (call.shape, &call.spec);
        let group = spec.group();
        let few = few_rows(spec, shape);
        let task_rows = TASK_ELEMENTS / (spec.head_dim + spec.v_dim);
        // Few heads are cut further, for threads to share them: two, four or eight pieces of any head go into even
        // shares.
        let shared =
            (shape.q_len / LEAST_ROWS).min(SHARED_TASKS.div_ceil(shape.batch.saturating_mul(spec.heads).max(1)));
        let pieces = if few { 1 } else { shape.q_len.div_ceil(task_rows).max(1 << shared.max(1).ilog2()) };
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
        let per_task = units_of_task(all, flops, TASK_FLOPS);
        let tiles = (heads * rows).div_ceil(MR);
        // Heads side by side share nothing in the caches, so many of them stay together.
        let longest_first = !few && all <= TASKS;
        Self { key_pieces, pieces, heads, units, longest_first, per_task, tasks: all.div_ceil(per_task), tiles }
    }

    /// Units of the call.
    pub fn all(&self, call: &Call<'_>) -> usize {
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
    pub queries: usize,
    pub packed: usize,
    pub values: usize,
    /// Maxima and sums of the unit at work, and its sums of values.
    pub unit: usize,
    pub stride: usize,
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
    pub fn unit_len(&self, cut: &Cut) -> usize {
        cut.tiles * (TILE_STATE + MR * self.stride)
    }
}
