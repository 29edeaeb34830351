//! Scratch memory of a backward task, and the arrays that it reads and writes.

use crate::attention::call::{Call, MR, QUERY_STRIDE, Raw};
use crate::attention::cut::units_of_task;
use crate::attention::gradients::Gradients;
use crate::attention::spec::AttentionSpec;
use crate::workspace::round_up;

/// The most keys of a block.
pub(super) const MAX_KEYS: usize = 256;

/// The distance of rows of weights: an odd number of cache lines, so that they do not share sets of the first-level
/// cache.
pub(super) const STRIDE: usize = MAX_KEYS + 16;

/// Tiles of rows of a block. Gradients of keys and values are sums over so many rows between a load and a store;
/// weights and gradients of their scores, 96 rows of each, stay in the second-level cache.
pub(super) const TILES: usize = 16;

/// Operations of a task, at least.
const TASK_FLOPS: f64 = 4e6;

/// Numbers that are kept for each row.
pub(super) const ROW_NUMBERS: usize = 3;

/// Keys of a block: transposed keys and values and the sums of their gradients stay in the second-level cache.
pub(super) fn block_keys(spec: &AttentionSpec) -> usize {
    if spec.head_dim.max(spec.v_dim) <= 64 { MAX_KEYS } else { MAX_KEYS / 2 }
}

/// Scratch of one task, in floats, each part on cache lines of its own.
#[derive(Clone, Copy)]
pub(in crate::attention) struct Layout {
    pub gradients: usize,
    pub slopes: usize,
    /// Two rows whose elements are no neighbours, gathered.
    pub queries: usize,
    pub packed_k: usize,
    pub packed_v: usize,
    pub k_rows: usize,
    pub q_rows: usize,
    pub dout_rows: usize,
    pub dk: usize,
    pub dv: usize,
    /// For each row: the log-sum-exp, D, and what a large log-sum-exp has lost.
    pub rows: usize,
    pub dq: usize,
    pub k_stride: usize,
    pub v_stride: usize,
    pub len: usize,
    pub per_task: usize,
    pub tasks: usize,
}

impl Layout {
    /// `copies`: whether rows of q, dout, k and dq need copies, for their elements are not neighbours.
    pub fn new(call: &Call<'_>, [q, dout, k, dq]: [bool; 4]) -> Self {
        let (spec, shape) = (&call.spec, call.shape);
        let block = TILES * MR;
        let keys = block_keys(spec);
        let total = spec.group() * shape.q_len;
        let (k_stride, v_stride) = (spec.head_dim.next_multiple_of(64), spec.v_dim.next_multiple_of(64));
        let mut at = 0;
        let mut part = |len: usize, needed: bool| {
            let start = at;
            at += if needed { round_up(len) } else { 0 };
            start
        };
        part(block * STRIDE, true);
        let gradients = part(block * STRIDE, true);
        let slopes = part(MR * STRIDE, spec.softcap.is_some());
        let queries = part(2 * QUERY_STRIDE, true);
        let packed_k = part(keys * spec.head_dim, true);
        let packed_v = part(keys * spec.v_dim, true);
        let k_rows = part(keys * spec.head_dim, k);
        let q_rows = part(block * spec.head_dim, q);
        let dout_rows = part(block * spec.v_dim, dout);
        let dk = part(keys * k_stride, true);
        let dv = part(keys * v_stride, true);
        let rows = part(ROW_NUMBERS * total, true);
        let dq = part(total * k_stride, dq);
        let units = shape.batch * spec.kv_heads;
        let flops = 5.0 * total as f64 * (shape.kv_len * (spec.head_dim + spec.v_dim)) as f64;
        let per_task = units_of_task(units, flops, TASK_FLOPS);
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
pub(in crate::attention) struct Outputs {
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
