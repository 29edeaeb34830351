//! What a backward call writes.

use super::inputs::{Inputs, check_shape};
use super::spec::{AttentionSpec, Shape};
use crate::error::{Error, check_len};
use crate::tensor::ViewMut;

/// The gradients that a backward call writes, each in a memory order of its own.
#[derive(Debug)]
pub struct Gradients<'a, 'v, T = f32> {
    /// Of the queries, `[batch, heads, q_len, head_dim]`.
    pub dq: ViewMut<'v, T, 4>,
    /// Of the keys, `[batch, kv_heads, kv_len, head_dim]`.
    pub dk: ViewMut<'v, T, 4>,
    /// Of the values, `[batch, kv_heads, kv_len, v_dim]`.
    pub dv: ViewMut<'v, T, 4>,
    /// Of the bias, `[batch, heads, q_len, kv_len]`, 1 in dimensions that the bias is broadcast over.
    pub dbias: Option<ViewMut<'v, T, 4>>,
    /// Of the sinks, one for each head.
    pub dsinks: Option<&'a mut [T]>,
}

impl<'a, 'v, T: Copy> Gradients<'a, 'v, T> {
    /// Gradients of queries, keys and values.
    pub fn new(dq: ViewMut<'v, T, 4>, dk: ViewMut<'v, T, 4>, dv: ViewMut<'v, T, 4>) -> Self {
        Self { dq, dk, dv, dbias: None, dsinks: None }
    }

    /// Also that of the bias.
    pub fn dbias(mut self, dbias: ViewMut<'v, T, 4>) -> Self {
        self.dbias = Some(dbias);
        self
    }

    /// Also those of the sinks.
    pub fn dsinks(mut self, dsinks: &'a mut [T]) -> Self {
        self.dsinks = Some(dsinks);
        self
    }

    /// Sets every gradient.
    pub(crate) fn fill(&mut self, value: T) {
        for view in [&mut self.dq, &mut self.dk, &mut self.dv].into_iter().chain(&mut self.dbias) {
            fill(view, value);
        }
        if let Some(dsinks) = &mut self.dsinks {
            dsinks.fill(value);
        }
    }
}

/// Sets every element of a view.
pub(crate) fn fill<T: Copy>(view: &mut ViewMut<'_, T, 4>, value: T) {
    let [a, b, c, d] = view.shape();
    for i in 0..a {
        for j in 0..b {
            for k in 0..c {
                for l in 0..d {
                    view.set([i, j, k, l], value);
                }
            }
        }
    }
}

/// Whether the gradients fit the inputs.
pub(crate) fn check_gradients<T: Copy>(
    spec: &AttentionSpec,
    inputs: &Inputs<'_, T>,
    shape: Shape,
    gradients: &Gradients<'_, '_, T>,
) -> Result<(), Error> {
    check_shape("dq", inputs.q.shape(), gradients.dq.shape())?;
    check_shape("dk", inputs.k.shape(), gradients.dk.shape())?;
    check_shape("dv", inputs.v.shape(), gradients.dv.shape())?;
    if let Some(dbias) = &gradients.dbias {
        let Some(bias) = inputs.bias else {
            return Err(Error::invalid("dbias", "none where there is no bias", "one"));
        };
        let (pairs, strides) = ([shape.batch, spec.heads, shape.q_len, shape.kv_len], bias.strides());
        let expected = [0, 1, 2, 3].map(|axis| if strides[axis] == 0 { pairs[axis].min(1) } else { pairs[axis] });
        check_shape("dbias", expected, dbias.shape())?;
    }
    if let Some(dsinks) = &gradients.dsinks {
        if inputs.sinks.is_none() {
            return Err(Error::invalid("dsinks", "none where there are no sinks", "some"));
        }
        check_len("dsinks", spec.heads, dsinks.len())?;
    }
    Ok(())
}
