//! Attention over packed sequences by definition: each is an attention of its own.

use super::{Float, attention_backward, attention_forward};
use crate::attention::{AttentionSpec, Gradients, RaggedGradients, RaggedInputs, check_shape};
use crate::error::{Error, check_len};
use crate::tensor::{View, ViewMut};

/// [`attention_forward`] for each sequence; `out` is `[all queries, heads, v_dim]`, `lse` `[heads][all queries]`.
///
/// # Errors
/// Those of [`RaggedInputs::check`], [`Error::Shape`] and [`Error::Length`] for outputs that do not fit.
pub fn ragged_attention_forward<T: Float>(
    spec: &AttentionSpec,
    inputs: &RaggedInputs<'_, T>,
    out: &mut ViewMut<'_, T, 3>,
    lse: &mut [T],
) -> Result<(), Error> {
    let sequences = inputs.check(spec)?;
    let (all, heads) = (inputs.q.shape()[0], spec.heads);
    check_shape("out", [all, heads, spec.v_dim], out.shape())?;
    check_len("lse", heads * all, lse.len())?;
    for b in 0..sequences {
        let sequence = inputs.sequence(b);
        let (first, q_len) = (inputs.q_starts[b], sequence.q.shape()[2]);
        let shape = [1, heads, q_len, spec.v_dim];
        let (mut of, mut of_lse) = (vec![T::ZERO; shape.iter().product()], vec![T::ZERO; heads * q_len]);
        let mut view = ViewMut::new(&mut of, shape)?;
        attention_forward(spec, &sequence, &mut view, &mut of_lse)?;
        write(out, first, &of, q_len);
        for h in 0..heads {
            for i in 0..q_len {
                lse[h * all + first + i] = of_lse[h * q_len + i];
            }
        }
    }
    Ok(())
}

/// [`attention_backward`] for each sequence; the gradients of sinks are sums over all of them.
///
/// # Errors
/// Those of [`RaggedInputs::check`], [`Error::Shape`] and [`Error::Length`] for gradients that do not fit.
pub fn ragged_attention_backward<T: Float>(
    spec: &AttentionSpec,
    inputs: &RaggedInputs<'_, T>,
    dout: &View<'_, T, 3>,
    gradients: &mut RaggedGradients<'_, '_, T>,
) -> Result<(), Error> {
    let sequences = inputs.check(spec)?;
    check_shape("dout", [inputs.q.shape()[0], spec.heads, spec.v_dim], dout.shape())?;
    gradients.check(spec, inputs)?;
    if let Some(dsinks) = &mut gradients.dsinks {
        dsinks.fill(T::ZERO);
    }
    for b in 0..sequences {
        let sequence = inputs.sequence(b);
        let (queries, keys) = (inputs.q_starts[b], inputs.kv_starts[b]);
        let [q_len, kv_len] = [sequence.q.shape()[2], sequence.k.shape()[2]];
        let shapes = [sequence.q.shape(), sequence.k.shape(), sequence.v.shape()];
        let [mut dq, mut dk, mut dv] = shapes.map(|shape| vec![T::ZERO; shape.iter().product()]);
        let mut dsinks = vec![T::ZERO; spec.heads];
        let mut of = Gradients::new(
            ViewMut::new(&mut dq, shapes[0])?,
            ViewMut::new(&mut dk, shapes[1])?,
            ViewMut::new(&mut dv, shapes[2])?,
        );
        if gradients.dsinks.is_some() {
            of = of.dsinks(&mut dsinks);
        }
        attention_backward(spec, &sequence, &dout.sequence([queries, q_len]), &mut of)?;
        write(&mut gradients.dq, queries, &dq, q_len);
        write(&mut gradients.dk, keys, &dk, kv_len);
        write(&mut gradients.dv, keys, &dv, kv_len);
        if let Some(sums) = &mut gradients.dsinks {
            for h in 0..spec.heads {
                sums[h] += dsinks[h];
            }
        }
    }
    Ok(())
}

/// Writes the `[heads][len][dim]` of one sequence to its rows among all.
fn write<T: Float>(to: &mut ViewMut<'_, T, 3>, first: usize, of: &[T], len: usize) {
    let [_, heads, dim] = to.shape();
    for h in 0..heads {
        for i in 0..len {
            for d in 0..dim {
                to.set([first + i, h, d], of[(h * len + i) * dim + d]);
            }
        }
    }
}
