//! Where queries, keys and values stand in what the projections make.

use kernels::attention::{AttentionSpec, Inputs};
use kernels::rotary::{self, Rotary};
use kernels::{Parallelism, View};

use crate::error::Result;

/// Numbers of a position.
pub(super) fn features(spec: &AttentionSpec) -> usize {
    spec.heads * spec.head_dim
}

/// Where a part of `[batch, n, parts, heads, dim]` starts, its shape `[batch, heads, n, dim]` and strides.
pub(super) fn part(
    spec: &AttentionSpec,
    [batch, length]: [usize; 2],
    parts: usize,
    part: usize,
) -> (usize, [usize; 4], [isize; 4]) {
    let (features, dim) = (features(spec), spec.head_dim);
    let row = (parts * features) as isize;
    let shape = [batch, spec.heads, length, dim];
    (part * features, shape, [row * length as isize, dim as isize, row, 1])
}

/// A part of a projection, to read. Nothing to read has no part.
pub(super) fn view<'a>(
    spec: &AttentionSpec,
    size: [usize; 2],
    x: &'a [f32],
    parts: usize,
    at: usize,
) -> Result<View<'a, f32, 4>> {
    let (offset, shape, strides) = part(spec, size, parts, at);
    Ok(View::strided(x, if x.is_empty() { 0 } else { offset }, shape, strides)?)
}

/// Queries, keys and values of one projection `[batch, n, 3 d]`, or of two, `[batch, q_len, d]` and `[batch, kv_len, 2
/// d]`.
pub(super) fn heads<'a>(
    spec: &AttentionSpec,
    [batch, q_len, kv_len]: [usize; 3],
    projected: &[&'a [f32]],
) -> Result<Inputs<'a>> {
    match *projected {
        [q, kv] => {
            let [k, v] = [0, 1].map(|at| view(spec, [batch, kv_len], kv, 2, at));
            Ok(Inputs::new(view(spec, [batch, q_len], q, 1, 0)?, k?, v?))
        }
        _ => {
            let [q, k, v] = [0, 1, 2].map(|at| view(spec, [batch, q_len], projected[0], 3, at));
            Ok(Inputs::new(q?, k?, v?))
        }
    }
}

/// Turns queries and keys of `[batch, length, 3 d]` by the angles of their positions. Values stay, so that rows are
/// turned one by one.
pub(super) fn turn(rotary: &Rotary, spec: &AttentionSpec, length: usize, qkv: &mut [f32]) -> Result<()> {
    let features = features(spec);
    let shape = rotary::Shape { outer: 1, length: 1, inner: 2 * spec.heads, head_dim: spec.head_dim };
    for (row, qkv) in qkv.chunks_exact_mut(3 * features).enumerate() {
        rotary.forward_in_place(shape, row % length, &mut qkv[..2 * features], Parallelism::Serial)?;
    }
    Ok(())
}
