//! Backward: keys outside, queries inside, five products, no matrix of scores.
//!
//! ```text
//! for each block of keys:                        k, v transposed once
//!   for each block of rows of each head:
//!     for each tile of rows:                     s = q k^T      p = exp(logit - lse)
//!                                                dp = dout v^T  ds = scale p (dp - D)     D = rowsum(dout out)
//!     for each tile of keys:                     dv += p^T dout
//!                                                dk += ds^T q
//!     for each tile of rows:                     dq += ds k
//! ```
//!
//! A task is a head of keys with all query heads that share it, so every gradient is one chain: `dk` and `dv` over heads
//! and rows in order, `dq` over keys (T. Dao et al., "FlashAttention", 2022).

use std::f32::consts::LOG2_E;
use std::mem::MaybeUninit;

use super::call::{Call, MAX_BLOCK, MAX_PANEL, MR, QUERY_STRIDE, Raw, Rows, SCORE_STRIDE, Tiles};
use super::dropout::{DropoutRow, mask_row};
use super::gradients::Gradients;
use super::pack::{copy_rows, pack_transposed};
use super::scores::{
    QueryRows, ScoreTile, Seen, TileSeen, Transform, copy_query, first_score, fold_rows, score_tile, seen_lanes,
};
use super::spec::{AttentionSpec, Causal, Window};
use super::values::{HIDDEN, ScoreColumns, ScoreRows, SumEnds, ValueTile, store_row, value_tile};
use crate::simd::{Isa, Job, Simd, dispatch, math};
use crate::workspace::round_up;

/// Keys of a block: transposed keys and values and the sums of their gradients stay in the second-level cache.
const KEYS: usize = 128;

/// Tiles of rows of a block: weights and gradients of their scores, 48 rows of 128 keys each, stay there too.
const TILES: usize = 8;

/// A log-sum-exp beyond this has lost what the sum of exponentials adds to the largest logit, so the sum is made again:
/// rows that are masked with the least float as a whole are means, as they are forward.
const LARGE: f32 = 256.0;

/// Operations of a task, at least.
const TASK_FLOPS: f64 = 4e6;

/// Numbers that are kept for each row.
const ROW_NUMBERS: usize = 3;

/// Scratch of one task, in floats, each part on cache lines of its own.
#[derive(Clone, Copy)]
pub(super) struct Layout {
    gradients: usize,
    slopes: usize,
    queries: usize,
    packed_k: usize,
    packed_v: usize,
    k_rows: usize,
    q_rows: usize,
    dout_rows: usize,
    dk: usize,
    dv: usize,
    /// For each row: the log-sum-exp, D, and what a large log-sum-exp has lost.
    rows: usize,
    dq: usize,
    k_stride: usize,
    v_stride: usize,
    pub len: usize,
    pub per_task: usize,
    pub tasks: usize,
}

impl Layout {
    /// `copies`: whether rows of q, dout, k and dq need copies, for their elements are not neighbours.
    pub fn new(call: &Call<'_>, [q, dout, k, dq]: [bool; 4]) -> Self {
        let (spec, shape) = (&call.spec, call.shape);
        let block = TILES * MR;
        let total = spec.group() * shape.q_len;
        let (k_stride, v_stride) = (spec.head_dim.next_multiple_of(64), spec.v_dim.next_multiple_of(64));
        let mut at = 0;
        let mut part = |len: usize, needed: bool| {
            let start = at;
            at += if needed { round_up(len) } else { 0 };
            start
        };
        part(block * SCORE_STRIDE, true);
        let gradients = part(block * SCORE_STRIDE, true);
        let slopes = part(MR * SCORE_STRIDE, spec.softcap.is_some());
        let queries = part(MR * QUERY_STRIDE, true);
        let packed_k = part(KEYS * spec.head_dim, true);
        let packed_v = part(KEYS * spec.v_dim, true);
        let k_rows = part(KEYS * spec.head_dim, k);
        let q_rows = part(block * spec.head_dim, q);
        let dout_rows = part(block * spec.v_dim, dout);
        let dk = part(KEYS * k_stride, true);
        let dv = part(KEYS * v_stride, true);
        let rows = part(ROW_NUMBERS * total, true);
        let dq = part(total * k_stride, dq);
        let units = shape.batch * spec.kv_heads;
        let flops = 5.0 * total as f64 * (shape.kv_len * (spec.head_dim + spec.v_dim)) as f64;
        let per_task = ((TASK_FLOPS / flops.max(1.0)) as usize).clamp(1, units.max(1));
        let tasks = units.div_ceil(per_task);
        Self {
            gradients,
            slopes,
            queries,
            packed_k,
            packed_v,
            k_rows,
            q_rows,
            dout_rows,
            dk,
            dv,
            rows,
            dq,
            k_stride,
            v_stride,
            len: at,
            per_task,
            tasks,
        }
    }
}

/// What a backward call reads beside the inputs, and what it writes.
pub(super) struct Outputs {
    pub out: Raw<f32>,
    pub dout: Raw<f32>,
    pub lse: *const f32,
    /// The distance of the log-sum-exps of neighbouring heads.
    pub lse_stride: usize,
    pub dq: Raw<f32>,
    pub dk: Raw<f32>,
    pub dv: Raw<f32>,
    /// The gradient of the bias, with strides of 0 where it is broadcast.
    pub dbias: Option<Raw<f32>>,
}

// SAFETY: tasks write the gradients of different heads of keys.
unsafe impl Sync for Outputs {}

impl Outputs {
    pub fn new(
        out: Raw<f32>,
        dout: Raw<f32>,
        (lse, lse_stride): (&[f32], usize),
        gradients: &mut Gradients<'_, '_>,
        bias: Option<Raw<f32>>,
    ) -> Self {
        let raw = |view: &mut crate::ViewMut<'_, f32, 4>| {
            let strides = view.strides();
            Raw { start: view.as_mut_ptr().cast_const(), strides }
        };
        let dbias = gradients.dbias.as_mut().map(|view| {
            let mut dbias = raw(view);
            let bias = bias.map_or([0; 4], |bias| bias.strides);
            for axis in 0..4 {
                if bias[axis] == 0 {
                    dbias.strides[axis] = 0;
                }
            }
            dbias
        });
        Self {
            out,
            dout,
            lse: lse.as_ptr(),
            lse_stride,
            dq: raw(&mut gradients.dq),
            dk: raw(&mut gradients.dk),
            dv: raw(&mut gradients.dv),
            dbias,
        }
    }

    /// Whether different tasks add to the same elements, so that they have to come one after the other.
    pub fn needs_order(&self, call: &Call<'_>) -> bool {
        let several = call.shape.batch * call.spec.kv_heads > 1;
        several && self.dbias.is_some_and(|dbias| dbias.strides[0] == 0 || dbias.strides[1] == 0)
    }
}

/// One task of a backward call: some heads of keys with all their query heads.
///
/// Whoever makes one vouches that
/// - everything fits the call, and no other task with this number runs;
/// - `scratch` has `Layout::len` floats, this task's own.
pub(super) struct Backward<'a> {
    pub call: &'a Call<'a>,
    pub outputs: &'a Outputs,
    pub layout: &'a Layout,
    pub scratch: *mut f32,
    pub task: usize,
}

impl Backward<'_> {
    pub fn start(self, isa: Isa) {
        dispatch(isa, self);
    }
}

impl Job for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let units = self.call.shape.batch * self.call.spec.kv_heads;
        for unit in self.task * self.layout.per_task..units.min((self.task + 1) * self.layout.per_task) {
            let (batch, kv_head) = (unit / self.call.spec.kv_heads, unit % self.call.spec.kv_heads);
            // SAFETY: the job's contract; units are different heads of keys.
            unsafe { Unit::new(&self, batch, kv_head).run(simd) }
        }
    }
}

/// A head of keys with all query heads that share it.
struct Unit<'a> {
    task: &'a Backward<'a>,
    batch: usize,
    kv_head: usize,
    first_head: usize,
    /// Keys of the sequence.
    length: usize,
    plain: bool,
}

/// Rows of one head that go through a block of keys together.
#[derive(Clone, Copy)]
struct RowBlock {
    head: usize,
    tiles: Tiles,
    q: Rows<f32>,
    dout: Rows<f32>,
}

/// A block of keys, `start..start + keys`.
#[derive(Clone, Copy)]
struct KeyBlock {
    start: usize,
    keys: usize,
    k: Rows<f32>,
    careful: bool,
}

impl<'a> Unit<'a> {
    #[inline(always)]
    fn new(task: &'a Backward<'a>, batch: usize, kv_head: usize) -> Self {
        let call = task.call;
        let first_head = kv_head * call.spec.group();
        Self { task, batch, kv_head, first_head, length: call.keys(batch), plain: call.plain() }
    }

    /// # Safety
    /// - The contract of [`Backward`].
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, simd: S) {
        let Backward { call, outputs, layout, scratch, .. } = *self.task;
        let (spec, q_len) = (&call.spec, call.shape.q_len);
        let (dk, dv) = (outputs.dk.head(self.batch, self.kv_head), outputs.dv.head(self.batch, self.kv_head));
        // SAFETY: the contract; the scratch memory is laid out for what follows.
        unsafe {
            let careful = self.hides_something() && !self.is_finite();
            for head in self.first_head..self.first_head + spec.group() {
                self.start_head(simd, head);
            }
            let mut start = 0;
            while start < call.shape.kv_len {
                let all = KEYS.min(call.shape.kv_len - start);
                let keys = all.min(self.length.saturating_sub(start));
                scratch.add(layout.dk).write_bytes(0, all * layout.k_stride);
                scratch.add(layout.dv).write_bytes(0, all * layout.v_stride);
                if keys > 0 {
                    let block = self.pack(simd, start, keys, careful);
                    for head in self.first_head..self.first_head + spec.group() {
                        let tiles = Tiles::new(q_len);
                        let mut first = 0;
                        while first < tiles.count {
                            self.rows(simd, &block, head, tiles, first);
                            first += TILES;
                        }
                    }
                }
                copy_out(simd, scratch.add(layout.dk), layout.k_stride, dk, start, all, spec.head_dim);
                copy_out(simd, scratch.add(layout.dv), layout.v_stride, dv, start, all, spec.v_dim);
                start += KEYS;
            }
            for head in self.first_head..self.first_head + spec.group() {
                let dq = outputs.dq.head(self.batch, head);
                if dq.step != 1 {
                    copy_out(simd, self.dq(head).start, layout.k_stride, dq, 0, q_len, spec.head_dim);
                }
            }
        }
    }

    fn hides_something(&self) -> bool {
        let call = self.task.call;
        let bare = call.spec.causal == Causal::None && call.spec.window == Window::default();
        !bare || call.extras.keep.is_some() || call.extras.bias.is_some()
    }

    /// Whether everything that is multiplied with weights is finite.
    ///
    /// # Safety
    /// - The contract of [`Backward`].
    unsafe fn is_finite(&self) -> bool {
        let Backward { call, outputs, .. } = *self.task;
        let (spec, q_len) = (&call.spec, call.shape.q_len);
        let check = |rows: Rows<f32>, count: usize, dim: usize| {
            let mut finite = true;
            for row in 0..count {
                for d in 0..dim {
                    // SAFETY: the rows of a head.
                    finite &= unsafe { *rows.at(row, d) }.is_finite();
                }
            }
            finite
        };
        let mut finite = check(call.k.head(self.batch, self.kv_head), self.length, spec.head_dim)
            && check(call.v.head(self.batch, self.kv_head), self.length, spec.v_dim);
        for head in self.first_head..self.first_head + spec.group() {
            finite = finite
                && check(call.q.head(self.batch, head), q_len, spec.head_dim)
                && check(outputs.dout.head(self.batch, head), q_len, spec.v_dim);
        }
        finite
    }

    /// Where the gradients of a head's queries add up.
    #[inline(always)]
    fn dq(&self, head: usize) -> Rows<f32> {
        let Backward { call, outputs, layout, scratch, .. } = *self.task;
        let dq = outputs.dq.head(self.batch, head);
        if dq.step == 1 {
            return dq;
        }
        let first = (head - self.first_head) * call.shape.q_len;
        let start = scratch.wrapping_add(layout.dq + first * layout.k_stride);
        Rows { start, row_stride: layout.k_stride as isize, step: 1 }
    }

    /// For each row of a head: the log-sum-exp (as an exponent of 2 where scores are logits but for the scale), D, and the
    /// exponent of 2 that is to be taken off besides.
    #[inline(always)]
    fn row_numbers(&self, head: usize, row: usize) -> *mut f32 {
        let Backward { call, layout, scratch, .. } = *self.task;
        scratch.wrapping_add(layout.rows + ROW_NUMBERS * ((head - self.first_head) * call.shape.q_len + row))
    }

    /// Clears the gradients of the queries, and computes D, a sum of 16 lanes.
    ///
    /// # Safety
    /// - The contract of [`Backward`].
    #[inline(always)]
    unsafe fn start_head<S: Simd>(&self, simd: S, head: usize) {
        let Backward { call, outputs, layout, scratch, .. } = *self.task;
        let spec = &call.spec;
        let (out, dout, dq) = (outputs.out.head(self.batch, head), outputs.dout.head(self.batch, head), self.dq(head));
        // SAFETY: the rows of a head; two rows of queries hold an output and its gradient, padded with zeros.
        unsafe {
            let (a, b) = (scratch.add(layout.queries), scratch.add(layout.queries + QUERY_STRIDE));
            for row in 0..call.shape.q_len {
                for at in (0..spec.head_dim).step_by(S::LANES) {
                    let lanes = S::LANES.min(spec.head_dim - at);
                    store_row(simd, dq.at(row, at).cast_mut(), 1, lanes, simd.zero());
                }
                copy_query(simd, out.at(row, 0), out.step, spec.v_dim, a);
                copy_query(simd, dout.at(row, 0), dout.step, spec.v_dim, b);
                let vectors = 16 / S::LANES;
                let mut lanes = [simd.zero(); 4];
                for at in (0..spec.v_dim).step_by(16) {
                    for v in 0..vectors {
                        let place = at + v * S::LANES;
                        lanes[v] = simd.fma(simd.load(a.add(place)), simd.load(b.add(place)), lanes[v]);
                    }
                }
                let mut half = vectors;
                while half > 1 {
                    half /= 2;
                    for v in 0..half {
                        lanes[v] = simd.add(lanes[v], lanes[v + half]);
                    }
                }
                let mut sum = [0.0f32; 16];
                fold_rows::<S, false, 1>(simd, &[lanes[0]], sum.as_mut_ptr());
                let lse = *outputs.lse.add((self.batch * spec.heads + head) * outputs.lse_stride + row);
                let numbers = self.row_numbers(head, row);
                // A row without keys has no weights.
                let factor = if self.plain { LOG2_E } else { 1.0 };
                *numbers = if lse == f32::NEG_INFINITY { f32::INFINITY } else { lse * factor };
                *numbers.add(1) = sum[0];
                let lost = !self.plain && lse.is_finite() && lse.abs() > LARGE;
                *numbers.add(2) = if lost { self.lost(simd, head, row, lse) } else { 0.0 };
            }
        }
    }

    /// The sum of `exp(logit - lse)` of a row as an exponent of 2: 0 but for rounding, unless that is all that is left.
    ///
    /// # Safety
    /// - The contract of [`Backward`].
    unsafe fn lost<S: Simd>(&self, simd: S, head: usize, row: usize, lse: f32) -> f32 {
        let Backward { call, scratch, .. } = *self.task;
        let spec = &call.spec;
        let (q, k) = (call.q.head(self.batch, head), call.k.head(self.batch, self.kv_head));
        let visible = spec.visible_keys(row, call.shape.q_len, self.length);
        let mut sum = 0.0f32;
        // SAFETY: the rows of a head; the scratch memory has room for a row of scores.
        unsafe {
            if let Some(sinks) = call.extras.sinks {
                sum += (*sinks.add(head) - lse).exp();
            }
            let mut start = visible.start / KEYS * KEYS;
            while start < visible.end {
                let seen = Seen { first: visible.start.max(start) - start, end: visible.end.min(start + KEYS) - start };
                for key in 0..seen.end {
                    let mut score = 0.0f32;
                    for d in 0..spec.head_dim {
                        score += *q.at(row, d) * *k.at(start + key, d);
                    }
                    *scratch.add(key) = score;
                }
                let end = seen.end.next_multiple_of(16);
                for key in seen.end..end {
                    *scratch.add(key) = 0.0;
                }
                self.transform(head, row, start, seen).run(simd, scratch, 0, end);
                for key in seen.first..seen.end {
                    sum += (*scratch.add(key) - lse).exp();
                }
                start += KEYS;
            }
        }
        sum.log2()
    }

    /// Scores of a row become logits.
    #[inline(always)]
    fn transform(&self, head: usize, row: usize, first_key: usize, seen: Seen) -> Transform<'a> {
        let call = self.task.call;
        Transform {
            scale: call.spec.scale,
            softcap: call.spec.softcap,
            extras: &call.extras,
            batch: self.batch,
            head,
            row,
            position: row as isize + call.spec.offset(call.shape.q_len, self.length),
            first_key,
            seen,
        }
    }

    /// Transposes a block of keys and values.
    ///
    /// # Safety
    /// - The contract of [`Backward`]; the keys are within the sequence.
    #[inline(always)]
    unsafe fn pack<S: Simd>(&self, simd: S, start: usize, keys: usize, careful: bool) -> KeyBlock {
        let Backward { call, layout, scratch, .. } = *self.task;
        let (k, v) = (call.k.head(self.batch, self.kv_head), call.v.head(self.batch, self.kv_head));
        let mut k = Rows { start: k.at(start, 0), ..k };
        let v = Rows { start: v.at(start, 0), ..v };
        // SAFETY: the scratch memory has room for a block.
        unsafe {
            pack_transposed(simd, k, keys, call.spec.head_dim, scratch.add(layout.packed_k));
            pack_transposed(simd, v, keys, call.spec.v_dim, scratch.add(layout.packed_v));
            if k.step != 1 {
                k = copy_rows(k, keys, call.spec.head_dim, scratch.add(layout.k_rows));
            }
        }
        KeyBlock { start, keys, k, careful }
    }

    /// A block of rows meets a block of keys.
    ///
    /// # Safety
    /// - The contract of [`Backward`]; the block is packed.
    #[inline(always)]
    unsafe fn rows<S: Simd>(&self, simd: S, block: &KeyBlock, head: usize, tiles: Tiles, first_tile: usize) {
        let Backward { call, outputs, layout, scratch, .. } = *self.task;
        let spec = &call.spec;
        let end_tile = tiles.count.min(first_tile + TILES);
        let (first_row, end_row) = (tiles.start(first_tile), tiles.start(end_tile));
        // The rows that see any of the keys, and the keys that any of them sees.
        let (mut first, mut end) = (end_tile, first_tile);
        let mut union = Seen { first: usize::MAX, end: 0 };
        for tile in first_tile..end_tile {
            let seen = self.seen(block, tiles, tile);
            if seen.outer.first < seen.outer.end {
                (first, end) = (first.min(tile), tile + 1);
                union = Seen { first: union.first.min(seen.outer.first), end: union.end.max(seen.outer.end) };
            }
        }
        if first >= end {
            return;
        }
        // SAFETY: the rows of a head, a packed block of keys, scratch memory laid out for both.
        unsafe {
            let rows = |raw: &Raw<f32>, dim: usize, copy: usize| {
                let rows = raw.head(self.batch, head);
                let rows = Rows { start: rows.at(first_row, 0), ..rows };
                if rows.step == 1 { rows } else { copy_rows(rows, end_row - first_row, dim, scratch.add(copy)) }
            };
            let q = rows(&call.q, spec.head_dim, layout.q_rows);
            let dout = rows(&outputs.dout, spec.v_dim, layout.dout_rows);
            let rows = RowBlock { head, tiles, q, dout };
            for tile in first..end {
                self.tile(simd, block, &rows, first_row, tile);
            }

            let (weights, gradients) = (scratch, scratch.add(layout.gradients));
            let (from, to) = (tiles.start(first) - first_row, tiles.start(end) - first_row);
            let keys = Tiles::new(union.end - union.first);
            let (dk, dv) = (scratch.add(layout.dk), scratch.add(layout.dv));
            for tile in 0..keys.count {
                let key = union.first + keys.start(tile);
                let count = keys.start(tile + 1) - keys.start(tile);
                let seen = Seen { first: from, end: to };
                let sums = dv.add(key * layout.v_stride);
                let job = ValueTile {
                    weights: ScoreColumns(weights.add(key)),
                    values: dout,
                    seen,
                    dim: spec.v_dim,
                    ends: SumEnds::add_to(sums, layout.v_stride as isize),
                    careful: block.careful,
                };
                value_tile(simd, count, job);
                let sums = dk.add(key * layout.k_stride);
                let job = ValueTile {
                    weights: ScoreColumns(gradients.add(key)),
                    values: q,
                    seen,
                    dim: spec.head_dim,
                    ends: SumEnds::add_to(sums, layout.k_stride as isize),
                    careful: block.careful,
                };
                value_tile(simd, count, job);
            }
            for tile in first..end {
                let seen = self.seen(block, tiles, tile);
                if seen.outer.first < seen.outer.end {
                    let (row, dq) = (tiles.start(tile), self.dq(head));
                    let job = ValueTile {
                        weights: ScoreRows(gradients.add((row - first_row) * SCORE_STRIDE)),
                        values: block.k,
                        seen: seen.outer,
                        dim: spec.head_dim,
                        ends: SumEnds::add_to(dq.at(row, 0).cast_mut(), dq.row_stride),
                        careful: block.careful,
                    };
                    value_tile(simd, tiles.start(tile + 1) - row, job);
                }
            }
        }
    }

    /// What the rows of a tile see of a block.
    #[inline(always)]
    fn seen(&self, block: &KeyBlock, tiles: Tiles, tile: usize) -> TileSeen {
        let call = self.task.call;
        let (first, end) = (tiles.start(tile), tiles.start(tile + 1));
        let mut rows = [[0; 2]; MR];
        for row in first..end {
            let visible = call.spec.visible_keys(row, call.shape.q_len, self.length);
            rows[row - first] = [visible.start, visible.end];
        }
        TileSeen::new(&rows, end - first, block.start, block.start + block.keys)
    }

    /// Weights, and gradients of scores, of a tile.
    ///
    /// # Safety
    /// - The contract of [`Backward`]; the block is packed.
    #[inline(always)]
    unsafe fn tile<S: Simd>(&self, simd: S, block: &KeyBlock, rows: &RowBlock, first_row: usize, tile: usize) {
        let Backward { call, layout, scratch, outputs, .. } = *self.task;
        let spec = &call.spec;
        let seen = self.seen(block, rows.tiles, tile);
        let (row, count) = (rows.tiles.start(tile), rows.tiles.start(tile + 1) - rows.tiles.start(tile));
        let local = row - first_row;
        // SAFETY: the rows of a head, a packed block, scratch memory laid out for both.
        unsafe {
            let weights = scratch.add(local * SCORE_STRIDE);
            let gradients = scratch.add(layout.gradients + local * SCORE_STRIDE);
            let width = block.keys.next_multiple_of(16);
            let (at, end) = if seen.outer.first < seen.outer.end {
                (first_score(simd, &seen), seen.outer.end.next_multiple_of(16))
            } else {
                (0, 0)
            };
            if at < end {
                let queries = scratch.add(layout.queries);
                let mut maxima = [0.0f32; 16];
                let (keys, seen_at) = (block.keys, &seen);
                for i in 0..count {
                    copy_query(simd, rows.q.at(local + i, 0), 1, spec.head_dim, queries.add(i * QUERY_STRIDE));
                }
                let (dim, packed, scores, to) =
                    (spec.head_dim, scratch.add(layout.packed_k), weights, maxima.as_mut_ptr());
                let job = ScoreTile { q: QueryRows(queries), packed, dim, keys, seen: seen_at, scores, maxima: to };
                score_tile::<S, false>(simd, count, job);
                for i in 0..count {
                    copy_query(simd, rows.dout.at(local + i, 0), 1, spec.v_dim, queries.add(i * QUERY_STRIDE));
                }
                let (dim, packed, scores) = (spec.v_dim, scratch.add(layout.packed_v), gradients);
                let job = ScoreTile { q: QueryRows(queries), packed, dim, keys, seen: seen_at, scores, maxima: to };
                score_tile::<S, false>(simd, count, job);
            }
            // What the tile does not see counts as zeros to those who meet its rows among others. Marked after the scores,
            // which are stored by whole panels.
            for i in 0..count {
                for start in [weights, gradients] {
                    let start = start.add(i * SCORE_STRIDE);
                    for key in (0..at).chain(end..width) {
                        *start.add(key) = f32::from_bits(HIDDEN);
                    }
                }
            }
            if at >= end {
                return;
            }
            for i in 0..count {
                let numbers = self.row_numbers(rows.head, row + i);
                let (weights, gradients) = (weights.add(i * SCORE_STRIDE), gradients.add(i * SCORE_STRIDE));
                let mut slopes = std::ptr::null_mut();
                if !self.plain {
                    if let Some(cap) = spec.softcap {
                        slopes = scratch.add(layout.slopes);
                        softcap_slopes(simd, weights, [at, end], spec.scale / cap, slopes);
                    }
                    self.transform(rows.head, row + i, block.start, seen.rows[i]).run(simd, weights, at, end);
                }
                let job = RowGradients {
                    weights,
                    gradients,
                    slopes,
                    at,
                    end,
                    seen: seen.rows[i],
                    factor: spec.scale * LOG2_E,
                    lse: *numbers,
                    mean: *numbers.add(1),
                    lost: *numbers.add(2),
                    scale: spec.scale,
                };
                let mut factors = MaybeUninit::<[f32; MAX_BLOCK]>::uninit();
                let factors = factors.as_mut_ptr().cast();
                if let Some(dropout) = &call.dropout {
                    let (place, first_key) = ([self.batch, rows.head, row + i], block.start);
                    let kept = dropout.factor() as f32;
                    simd.call(DropoutRow { dropout, place, first_key, at, end, kept, factors });
                    mask_row(simd, gradients, factors, at, end);
                }
                if let Some(dbias) = &outputs.dbias {
                    // The gradient of the logits themselves, before scale and slopes.
                    let mut logits = [0.0f32; KEYS + MAX_PANEL];
                    std::ptr::copy_nonoverlapping(gradients.add(at), logits.as_mut_ptr().add(at), end - at);
                    let mut kept = [0.0f32; KEYS + MAX_PANEL];
                    std::ptr::copy_nonoverlapping(weights.add(at), kept.as_mut_ptr().add(at), end - at);
                    let (weights, gradients) = (kept.as_mut_ptr(), logits.as_mut_ptr());
                    let slopes = std::ptr::null_mut();
                    let unscaled = RowGradients { weights, gradients, slopes, scale: 1.0, ..job };
                    simd.call(unscaled);
                    let dbias = dbias.head(self.batch, rows.head);
                    for key in seen.rows[i].first..seen.rows[i].end {
                        if logits[key].to_bits() != HIDDEN {
                            *dbias.at(row + i, block.start + key).cast_mut() += logits[key];
                        }
                    }
                }
                if self.plain {
                    simd.call(PlainGradients(job));
                } else {
                    simd.call(job);
                }
                if call.dropout.is_some() {
                    mask_row(simd, weights, factors, at, end);
                }
            }
        }
    }
}

/// `1 - tanh(score * factor)^2` over `at..end`.
///
/// # Safety
/// - Scores are readable, slopes writable, up to `end`, a multiple of 16.
#[inline(always)]
unsafe fn softcap_slopes<S: Simd>(simd: S, scores: *const f32, [at, end]: [usize; 2], factor: f32, slopes: *mut f32) {
    for at in (at..end).step_by(S::LANES) {
        // SAFETY: the caller's contract.
        unsafe {
            let tanh = math::tanh(simd, simd.mul(simd.load(scores.add(at)), simd.splat(factor)));
            let slope = simd.fma(simd.sub(simd.zero(), tanh), tanh, simd.splat(1.0));
            simd.store(slopes.add(at), slope);
        }
    }
}

/// Scores become weights, and gradients of weights those of scores, in place:
///
/// ```text
/// p = exp(s - lse) exp2(-lost), plain: exp2(factor s - lse)      ds = p (dp - mean) scale slope
/// ```
///
/// Whoever makes one vouches that all rows are readable and writable up to `end`, a multiple of 16 like `at`.
#[derive(Clone, Copy)]
struct RowGradients {
    weights: *mut f32,
    gradients: *mut f32,
    /// Null for slopes of 1.
    slopes: *mut f32,
    at: usize,
    end: usize,
    seen: Seen,
    factor: f32,
    lse: f32,
    mean: f32,
    lost: f32,
    scale: f32,
}

impl Job for RowGradients {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.each::<S, false>(simd);
    }
}

/// Where scores are logits but for the scale.
struct PlainGradients(RowGradients);

impl Job for PlainGradients {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.0.each::<S, true>(simd);
    }
}

impl RowGradients {
    #[inline(always)]
    fn each<S: Simd, const PLAIN: bool>(self, simd: S) {
        let Self { weights, gradients, slopes, at, end, seen, factor, lse, mean, lost, scale } = self;
        let (one, lost) = (simd.splat(LOG2_E), simd.splat(-lost));
        let (factor, mean, scale) = (simd.splat(factor), simd.splat(mean), simd.splat(scale));
        let (lse, hidden) = (simd.splat(-lse), simd.splat(f32::from_bits(HIDDEN)));
        let nothing = simd.splat(f32::NEG_INFINITY);
        for at in (at..end).step_by(S::LANES) {
            // SAFETY: the job's contract.
            unsafe {
                let score = simd.load(weights.add(at));
                let lanes = simd.and(seen_lanes(simd, seen, at), simd.not(simd.eq(score, nothing)));
                let x = if PLAIN {
                    simd.fma(score, factor, lse)
                } else {
                    // The difference first: both may be so large that a factor of 1.44 is too much.
                    simd.fma(simd.add(score, lse), one, lost)
                };
                let p = math::exp2_nonpositive(simd, x);
                let mut gradient = simd.mul(simd.mul(p, simd.sub(simd.load(gradients.add(at)), mean)), scale);
                if !slopes.is_null() {
                    gradient = simd.mul(gradient, simd.load(slopes.add(at)));
                }
                simd.store(weights.add(at), simd.select(lanes, p, hidden));
                simd.store(gradients.add(at), simd.select(lanes, gradient, hidden));
            }
        }
    }
}

/// Writes sums to rows of a gradient, from `row` on.
///
/// # Safety
/// - `count` rows of `dim` sums are readable, `stride` apart, and as many rows of the gradient writable.
#[inline(always)]
unsafe fn copy_out<S: Simd>(
    simd: S,
    sums: *const f32,
    stride: usize,
    to: Rows<f32>,
    row: usize,
    count: usize,
    dim: usize,
) {
    for i in 0..count {
        for at in (0..dim).step_by(S::LANES) {
            let lanes = S::LANES.min(dim - at);
            // SAFETY: the caller's contract; sums have room for whole vectors.
            unsafe {
                let value = simd.load(sums.add(i * stride + at));
                let to_at = to.at(row + i, at).cast_mut();
                store_row(simd, to_at, to.step, lanes, value);
            }
        }
    }
}

/// Adds to the gradient of each sink `- sum over batch and rows of exp(sink - lse) D`, in that order.
///
/// # Safety
/// - Everything fits the call.
pub(super) unsafe fn sinks(spec: &AttentionSpec, call: &Call<'_>, outputs: &Outputs, sinks: &[f32], to: &mut [f32]) {
    for head in 0..spec.heads {
        let mut sum = to[head];
        for batch in 0..call.shape.batch {
            let (out, dout) = (outputs.out.head(batch, head), outputs.dout.head(batch, head));
            for row in 0..call.shape.q_len {
                let mut mean = 0.0f32;
                // SAFETY: the caller's contract.
                let lse = unsafe {
                    for c in 0..spec.v_dim {
                        mean = (*out.at(row, c)).mul_add(*dout.at(row, c), mean);
                    }
                    *outputs.lse.add((batch * spec.heads + head) * outputs.lse_stride + row)
                };
                if lse != f32::NEG_INFINITY {
                    sum -= (sinks[head] - lse).exp() * mean;
                }
            }
        }
        to[head] = sum;
    }
}
