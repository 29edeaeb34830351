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
//! A task is a head of keys with all query heads that share it, so every gradient is one chain: `dk` and `dv` over
//! heads and rows in order, `dq` over keys (T. Dao et al., "FlashAttention", 2022).

mod layout;
mod numbers;
mod weights;

pub(super) use self::layout::{Layout, Outputs};
use self::layout::{STRIDE, TILES, block_keys};
use super::ahead::{self, Ahead};
use super::call::{Call, MR, Raw, Rows, Tiles};
use super::pack::{copy_rows, pack_transposed};
use super::scores::{Seen, TileSeen};
use super::spec::{AttentionSpec, Causal, Window};
use super::values::{ScoreColumns, ScoreRows, SumEnds, ValueTile, store_row, value_tile};
use crate::gemm::Lines;
use crate::simd::{Isa, Job, Simd, dispatch};

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
            let unit_at =
                |unit: usize| Unit::new(&self, unit / self.call.spec.kv_heads, unit % self.call.spec.kv_heads);
            let next = (unit + 1 < units).then(|| unit_at(unit + 1));
            // SAFETY: the job's contract; units are different heads of keys.
            unsafe { unit_at(unit).run(simd, next.as_ref()) }
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
    /// Whether every row sees every key.
    bare: bool,
}

/// Rows of one head that go through a block of keys together.
#[derive(Clone, Copy)]
struct RowBlock {
    head: usize,
    tiles: Tiles,
    /// The first of them.
    first_row: usize,
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
        let bare = call.spec.causal == Causal::None && call.spec.window == Window::default();
        Self { task, batch, kv_head, first_head, length: call.keys(batch), plain: call.plain(), bare }
    }

    /// All gradients of the unit, while the memory of the `next` is asked for.
    ///
    /// # Safety
    /// - The contract of [`Backward`].
    #[inline(always)]
    unsafe fn run<S: Simd>(&self, simd: S, next: Option<&Self>) {
        let Backward { call, outputs, layout, scratch, .. } = *self.task;
        let (spec, q_len) = (&call.spec, call.shape.q_len);
        let (dk, dv) = (outputs.dk.head(self.batch, self.kv_head), outputs.dv.head(self.batch, self.kv_head));
        // SAFETY: the contract; the scratch memory is laid out for what follows.
        unsafe {
            let careful = self.hides_something() && !self.is_finite(simd);
            for head in self.first_head..self.first_head + spec.group() {
                self.start_head(simd, head);
            }
            let keys_of = block_keys(spec);
            let mut start = 0;
            while start < call.shape.kv_len {
                let all = keys_of.min(call.shape.kv_len - start);
                let keys = all.min(self.length.saturating_sub(start));
                scratch.add(layout.dk).write_bytes(0, all * layout.k_stride);
                scratch.add(layout.dv).write_bytes(0, all * layout.v_stride);
                if keys > 0 {
                    let block = self.pack(simd, start, keys, careful);
                    let mut ahead = Ahead::new(ahead::pays::<S>(call.floats));
                    if ahead.fetches() {
                        let left = self.length.saturating_sub(start + keys_of).min(keys_of);
                        // Each tile takes its pieces twice: with scores, and with the gradients of weights.
                        let steps = spec.group() * q_len.div_ceil(MR) * 2 * keys.div_ceil(ahead::PIECE);
                        ahead.block(match next {
                            Some(next) if left == 0 => next.first_ahead(steps),
                            _ => self.ahead(start + keys_of, left, steps),
                        });
                    }
                    for head in self.first_head..self.first_head + spec.group() {
                        let tiles = Tiles::new(q_len);
                        let mut first = 0;
                        while first < tiles.count {
                            self.rows(simd, &block, head, tiles, first, &mut ahead);
                            first += TILES;
                        }
                    }
                }
                copy_out(simd, scratch.add(layout.dk), layout.k_stride, dk, start, all, spec.head_dim);
                copy_out(simd, scratch.add(layout.dv), layout.v_stride, dv, start, all, spec.v_dim);
                start += keys_of;
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
        !self.bare || call.extras.keep.is_some() || call.extras.bias.is_some()
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

    /// The keys and the values `start..start + count`, in `steps` steps.
    #[inline(always)]
    fn ahead(&self, start: usize, count: usize, steps: usize) -> [Lines; 4] {
        let call = self.task.call;
        let [k, v] = [&call.k, &call.v].map(|of| of.head(self.batch, self.kv_head));
        let (dim, v_dim) = (call.spec.head_dim, call.spec.v_dim);
        let (k, v) = (ahead::lines(k, start, count, dim, steps), ahead::lines(v, start, count, v_dim, steps));
        [k, v, Lines::NONE, Lines::NONE]
    }

    /// What a unit reads first: its outputs and their gradients, and a block of keys and values.
    #[inline(always)]
    fn first_ahead(&self, steps: usize) -> [Lines; 4] {
        let Backward { call, outputs, .. } = *self.task;
        let [k, v, ..] = self.ahead(0, block_keys(&call.spec).min(self.length), steps);
        let [out, dout] = [&outputs.out, &outputs.dout]
            .map(|of| ahead::lines(of.head(self.batch, self.first_head), 0, call.shape.q_len, call.spec.v_dim, steps));
        [k, v, out, dout]
    }

    /// The rows of a tile, if there is one.
    #[inline(always)]
    fn tile_ahead(&self, head: usize, tiles: Tiles, tile: usize, steps: usize) -> [Lines; 3] {
        let Backward { call, outputs, .. } = *self.task;
        if tile >= tiles.count {
            return [Lines::NONE; 3];
        }
        let (row, count) = (tiles.start(tile), tiles.start(tile + 1) - tiles.start(tile));
        let (q, dout, dq) = (call.q.head(self.batch, head), outputs.dout.head(self.batch, head), self.dq(head));
        [(q, call.spec.head_dim), (dout, call.spec.v_dim), (dq, call.spec.head_dim)]
            .map(|(rows, dim)| ahead::lines(rows, row, count, dim, steps))
    }

    /// A block of rows meets a block of keys.
    ///
    /// # Safety
    /// - The contract of [`Backward`]; the block is packed.
    #[inline(always)]
    unsafe fn rows<S: Simd>(
        &self,
        simd: S,
        block: &KeyBlock,
        head: usize,
        tiles: Tiles,
        first_tile: usize,
        ahead: &mut Ahead,
    ) {
        let Backward { call, outputs, layout, scratch, .. } = *self.task;
        let spec = &call.spec;
        let end_tile = tiles.count.min(first_tile + TILES);
        let (first_row, end_row) = (tiles.start(first_tile), tiles.start(end_tile));
        // The rows that see any of the keys, and the keys that any of them sees.
        let (mut first, mut end) = (end_tile, first_tile);
        let mut union = Seen { first: usize::MAX, end: 0 };
        let mut sees = [Seen::default(); TILES];
        for tile in first_tile..end_tile {
            let seen = self.seen(block, tiles, tile);
            if seen.outer.first < seen.outer.end {
                sees[tile - first_tile] = seen.outer;
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
            let rows = RowBlock { head, tiles, first_row, q, dout };
            for tile in first..end {
                let seen = self.seen(block, tiles, tile);
                if seen.outer.first < seen.outer.end {
                    if ahead.fetches() {
                        ahead.tile(self.tile_ahead(head, tiles, tile + 1, 2 * block.keys.div_ceil(ahead::PIECE)));
                    }
                    self.tile(simd, block, &rows, tile, &seen, ahead);
                }
            }

            let (weights, gradients) = (scratch, scratch.add(layout.gradients));
            let keys = Tiles::new(union.end - union.first);
            let (dk, dv) = (scratch.add(layout.dk), scratch.add(layout.dv));
            for tile in 0..keys.count {
                let key = union.first + keys.start(tile);
                let count = keys.start(tile + 1) - keys.start(tile);
                // The rows that see any of them.
                let meets = |&row: &usize| {
                    let sees = sees[row - first_tile];
                    sees.first < key + count && key < sees.end
                };
                let Some(from) = (first..end).find(meets) else { continue };
                let to = (from..end).rfind(meets).unwrap_or(from) + 1;
                let seen = Seen { first: tiles.start(from) - first_row, end: tiles.start(to) - first_row };
                let sums = dv.add(key * layout.v_stride);
                let job = ValueTile {
                    weights: ScoreColumns::<STRIDE>(weights.add(key)),
                    values: dout,
                    seen,
                    dim: spec.v_dim,
                    ends: SumEnds::add_to(sums, layout.v_stride as isize),
                    careful: block.careful,
                    ahead,
                };
                value_tile(simd, count, job);
                let sums = dk.add(key * layout.k_stride);
                let job = ValueTile {
                    weights: ScoreColumns::<STRIDE>(gradients.add(key)),
                    values: q,
                    seen,
                    dim: spec.head_dim,
                    ends: SumEnds::add_to(sums, layout.k_stride as isize),
                    careful: block.careful,
                    ahead,
                };
                value_tile(simd, count, job);
            }
            for tile in first..end {
                let seen = sees[tile - first_tile];
                if seen.first < seen.end {
                    let (row, dq) = (tiles.start(tile), self.dq(head));
                    let job = ValueTile {
                        weights: ScoreRows::<STRIDE>(gradients.add((row - first_row) * STRIDE)),
                        values: block.k,
                        seen,
                        dim: spec.head_dim,
                        ends: SumEnds::add_to(dq.at(row, 0).cast_mut(), dq.row_stride),
                        careful: block.careful,
                        ahead,
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
        if self.bare {
            return TileSeen::all(Seen { first: 0, end: block.keys });
        }
        let (first, end) = (tiles.start(tile), tiles.start(tile + 1));
        let mut rows = [[0; 2]; MR];
        for row in first..end {
            let visible = call.spec.visible_keys(row, call.shape.q_len, self.length);
            rows[row - first] = [visible.start, visible.end];
        }
        TileSeen::new(&rows, end - first, block.start, block.start + block.keys)
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
