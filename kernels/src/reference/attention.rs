//! Attention as a lecture writes it: scores, softmax, weighted sum, each a loop.

use super::Float;
use crate::attention::{AttentionSpec, Gradients, Inputs, Shape, check_gradients, check_shape};
use crate::error::{Error, check_len};
use crate::tensor::{View, ViewMut};

/// The logits of one query, -infinity where a key is hidden, and what softcap's derivative needs: `1 - tanh^2`.
fn logits<T: Float>(
    spec: &AttentionSpec,
    inputs: &Inputs<'_, T>,
    shape: Shape,
    [b, h, i]: [usize; 3],
) -> (Vec<T>, Vec<T>) {
    let kv_head = h / spec.group();
    let len = inputs.keys_of(b, shape.kv_len);
    let visible = spec.visible_keys(i, shape.q_len, len);
    let mut logits = vec![T::NEG_INFINITY; shape.kv_len];
    let mut slopes = vec![T::ONE; shape.kv_len];
    for j in visible {
        if inputs.keep.is_some_and(|keep| !keep.get([b, h, i, j])) {
            continue;
        }
        if inputs.bias.is_some_and(|bias| bias.get([b, h, i, j]) == T::NEG_INFINITY) {
            continue;
        }
        let [at, row] = inputs.place(b, j);
        let mut score = T::ZERO;
        for d in 0..spec.head_dim {
            score += inputs.q.get([b, h, i, d]) * inputs.k.get([at, kv_head, row, d]);
        }
        let mut logit = T::from_f64(spec.scale as f64) * score;
        if let Some(cap) = spec.softcap {
            let cap = T::from_f64(cap as f64);
            let tanh = (logit / cap).tanh();
            logit = cap * tanh;
            slopes[j] = T::ONE - tanh * tanh;
        }
        if let Some(bias) = inputs.bias {
            logit += bias.get([b, h, i, j]);
        }
        if let Some(alibi) = inputs.alibi {
            let distance = (i as isize + spec.offset(shape.q_len, len) - j as isize).unsigned_abs();
            logit = logit - alibi[h] * T::from_f64(distance as f64);
        }
        logits[j] = logit;
    }
    (logits, slopes)
}

/// The softmax of one row, its sink included, and the row's log-sum-exp.
fn weights<T: Float>(logits: &[T], sink: Option<T>) -> (Vec<T>, T) {
    let mut maximum = sink.unwrap_or(T::NEG_INFINITY);
    for &logit in logits {
        if logit > maximum || logit.is_nan() {
            maximum = logit;
        }
    }
    if maximum == T::NEG_INFINITY {
        return (vec![T::ZERO; logits.len()], T::NEG_INFINITY);
    }
    let mut sum = sink.map_or(T::ZERO, |sink| (sink - maximum).exp());
    for &logit in logits {
        sum += (logit - maximum).exp();
    }
    let weights = logits.iter().map(|&logit| (logit - maximum).exp() / sum).collect();
    (weights, maximum + sum.ln())
}

/// What dropout multiplies the weight of a key with.
fn factor<T: Float>(inputs: &Inputs<'_, T>, [b, h, i, j]: [usize; 4]) -> T {
    match inputs.dropout {
        None => T::ONE,
        Some(dropout) if dropout.keeps([b, h, i, j]) => T::from_f64(dropout.factor()),
        Some(_) => T::ZERO,
    }
}

/// `out = softmax(logits) v`, and the log-sum-exp of each row of logits, `[batch][heads][q_len]`.
///
/// # Errors
/// Those of [`Inputs::check`], [`Error::Shape`] and [`Error::Length`] for outputs that do not fit.
pub fn attention_forward<T: Float>(
    spec: &AttentionSpec,
    inputs: &Inputs<'_, T>,
    out: &mut ViewMut<'_, T, 4>,
    lse: &mut [T],
) -> Result<(), Error> {
    let shape = inputs.check(spec)?;
    check_shape("out", [shape.batch, spec.heads, shape.q_len, spec.v_dim], out.shape())?;
    check_len("lse", shape.batch * spec.heads * shape.q_len, lse.len())?;
    for b in 0..shape.batch {
        for h in 0..spec.heads {
            for i in 0..shape.q_len {
                let (logits, _) = logits(spec, inputs, shape, [b, h, i]);
                let (weights, row_lse) = weights(&logits, inputs.sinks.map(|sinks| sinks[h]));
                lse[(b * spec.heads + h) * shape.q_len + i] = row_lse;
                for c in 0..spec.v_dim {
                    let mut sum = T::ZERO;
                    for j in 0..shape.kv_len {
                        if logits[j] != T::NEG_INFINITY {
                            let [at, row] = inputs.place(b, j);
                            let value = inputs.v.get([at, h / spec.group(), row, c]);
                            sum += weights[j] * factor(inputs, [b, h, i, j]) * value;
                        }
                    }
                    out.set([b, h, i, c], sum);
                }
            }
        }
    }
    Ok(())
}

/// The gradients of everything that goes into the logits and of the values, from the gradient of the output:
///
/// ```text
/// D[i]        = sum over j of p[i, j] f[i, j] (dout[i] . v[j])    dv[j] = sum over i of p[i, j] f[i, j] dout[i]
/// dlogit[i,j] = p[i, j] (f[i, j] (dout[i] . v[j]) - D[i])         dsink = sum over i of -p_sink[i] D[i]
/// dq[i]       = sum over j of dscore[i, j] k[j]                   dk[j] = sum over i of dscore[i, j] q[i]
/// dscore      = scale * cap'(...) * dlogit                        dbias = dlogit
/// ```
///
/// `f` is 1, or with dropout 0 or `1 / (1 - probability)`.
///
/// The gradient of a broadcast bias has a dimension of 1 where the bias has a stride of 0, and sums over it.
///
/// # Errors
/// Those of [`Inputs::check`], [`Error::Shape`] and [`Error::Length`] for gradients that do not fit.
pub fn attention_backward<T: Float>(
    spec: &AttentionSpec,
    inputs: &Inputs<'_, T>,
    dout: &View<'_, T, 4>,
    gradients: &mut Gradients<'_, '_, T>,
) -> Result<(), Error> {
    let shape = inputs.check(spec)?;
    if inputs.pages.is_some() {
        return Err(Error::invalid("pages", "none in a backward call", "some"));
    }
    check_shape("dout", [shape.batch, spec.heads, shape.q_len, spec.v_dim], dout.shape())?;
    check_gradients(spec, inputs, shape, gradients)?;
    gradients.fill(T::ZERO);
    let Gradients { dq, dk, dv, dbias, dsinks } = gradients;
    let scale = T::from_f64(spec.scale as f64);
    for b in 0..shape.batch {
        for h in 0..spec.heads {
            let kv_head = h / spec.group();
            for i in 0..shape.q_len {
                let sink = inputs.sinks.map(|sinks| sinks[h]);
                let (logits, slopes) = logits(spec, inputs, shape, [b, h, i]);
                let (weights, lse) = weights(&logits, sink);
                let visible = |j: &usize| logits[*j] != T::NEG_INFINITY;
                let mut dweights = vec![T::ZERO; shape.kv_len];
                let mut mean = T::ZERO;
                for j in (0..shape.kv_len).filter(visible) {
                    let factor = factor(inputs, [b, h, i, j]);
                    for c in 0..spec.v_dim {
                        dweights[j] += factor * dout.get([b, h, i, c]) * inputs.v.get([b, kv_head, j, c]);
                        add(dv, [b, kv_head, j, c], weights[j] * factor * dout.get([b, h, i, c]));
                    }
                    mean += weights[j] * dweights[j];
                }
                for j in (0..shape.kv_len).filter(visible) {
                    let dlogit = weights[j] * (dweights[j] - mean);
                    let dscore = scale * slopes[j] * dlogit;
                    for d in 0..spec.head_dim {
                        add(dq, [b, h, i, d], dscore * inputs.k.get([b, kv_head, j, d]));
                        add(dk, [b, kv_head, j, d], dscore * inputs.q.get([b, h, i, d]));
                    }
                    if let Some(dbias) = dbias {
                        let size = dbias.shape();
                        let at = [b, h, i, j];
                        add(dbias, [0, 1, 2, 3].map(|axis| if size[axis] == 1 { 0 } else { at[axis] }), dlogit);
                    }
                }
                if let (Some(dsinks), Some(sink)) = (&mut *dsinks, sink)
                    && lse != T::NEG_INFINITY
                {
                    dsinks[h] = dsinks[h] - (sink - lse).exp() * mean;
                }
            }
        }
    }
    Ok(())
}

fn add<T: Float>(to: &mut ViewMut<'_, T, 4>, index: [usize; 4], term: T) {
    let sum = to.as_view().get(index) + term;
    to.set(index, sum);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attention::{Causal, Dropout};

    fn numbers(len: usize, seed: u64) -> Vec<f64> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 53) as f64 * 2.0 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    /// `sum of dout * out` as a function of all the inputs in a row.
    struct Problem {
        spec: AttentionSpec,
        shape: Shape,
        keep: Vec<bool>,
        lens: Vec<usize>,
        dout: Vec<f64>,
        dropout: Option<Dropout>,
    }

    impl Problem {
        fn sizes(&self) -> [usize; 6] {
            let Shape { batch, q_len, kv_len } = self.shape;
            let AttentionSpec { heads, kv_heads, head_dim, v_dim, .. } = self.spec;
            [
                batch * heads * q_len * head_dim,
                batch * kv_heads * kv_len * head_dim,
                batch * kv_heads * kv_len * v_dim,
                heads * kv_len,
                heads,
                heads,
            ]
        }

        fn with<R>(&self, values: &[f64], run: impl FnOnce(&Inputs<'_, f64>) -> R) -> R {
            let Shape { batch, q_len, kv_len } = self.shape;
            let AttentionSpec { heads, kv_heads, head_dim, v_dim, .. } = self.spec;
            let mut rest = values;
            let parts = self.sizes().map(|len| {
                let (head, tail) = rest.split_at(len);
                rest = tail;
                head
            });
            let inputs = Inputs::new(
                View::new(parts[0], [batch, heads, q_len, head_dim]).unwrap(),
                View::new(parts[1], [batch, kv_heads, kv_len, head_dim]).unwrap(),
                View::new(parts[2], [batch, kv_heads, kv_len, v_dim]).unwrap(),
            )
            .bias(View::strided(parts[3], 0, [batch, heads, q_len, kv_len], [0, kv_len as isize, 0, 1]).unwrap())
            .keep(View::strided(&self.keep, 0, [batch, heads, q_len, kv_len], [0, 0, kv_len as isize, 1]).unwrap())
            .alibi(parts[4])
            .sinks(parts[5])
            .kv_lens(&self.lens);
            let inputs = Inputs { dropout: self.dropout, ..inputs };
            run(&inputs)
        }

        fn value(&self, values: &[f64]) -> f64 {
            let [batch, q_len] = [self.shape.batch, self.shape.q_len];
            let mut out = vec![0.0; self.dout.len()];
            let mut lse = vec![0.0; batch * self.spec.heads * q_len];
            let mut view = ViewMut::new(&mut out, [batch, self.spec.heads, q_len, self.spec.v_dim]).unwrap();
            self.with(values, |inputs| attention_forward(&self.spec, inputs, &mut view, &mut lse).unwrap());
            out.iter().zip(&self.dout).map(|(out, dout)| out * dout).sum()
        }
    }

    #[test]
    fn gradients_agree_with_differences_for_every_feature() {
        let dropouts = [None, Some(Dropout::new(0.3, 11)), None];
        for (causal, dropout) in [Causal::None, Causal::TopLeft, Causal::BottomRight].into_iter().zip(dropouts) {
            let spec =
                AttentionSpec::new(4, 3).kv_heads(2).v_dim(2).causal(causal).window(Some(3), Some(2)).softcap(1.5);
            let shape = Shape::new(2, 4, 5);
            let keep: Vec<bool> = (0..20).map(|at| at % 7 != 3).collect();
            let problem = Problem {
                spec,
                shape,
                keep,
                lens: vec![5, 3],
                dout: numbers(2 * spec.heads * 4 * spec.v_dim, 9),
                dropout,
            };
            let sizes = problem.sizes();
            let values = numbers(sizes.iter().sum(), 5);
            let [mut dq, mut dk, mut dv, mut dbias, _, mut dsinks] = sizes.map(|len| vec![0.0; len]);
            let mut gradients = Gradients::new(
                ViewMut::new(&mut dq, [2, 4, 4, 3]).unwrap(),
                ViewMut::new(&mut dk, [2, 2, 5, 3]).unwrap(),
                ViewMut::new(&mut dv, [2, 2, 5, 2]).unwrap(),
            )
            .dbias(ViewMut::new(&mut dbias, [1, 4, 1, 5]).unwrap())
            .dsinks(&mut dsinks);
            let dout = View::new(&problem.dout, [2, 4, 4, 2]).unwrap();
            problem.with(&values, |inputs| attention_backward(&spec, inputs, &dout, &mut gradients).unwrap());
            let slopes = vec![f64::NAN; spec.heads];
            let all = [dq, dk, dv, dbias, slopes, dsinks].concat();
            for (at, &gradient) in all.iter().enumerate() {
                if gradient.is_nan() {
                    continue;
                }
                let step = 1e-6;
                let moved = |by: f64| {
                    let mut values = values.clone();
                    values[at] += by;
                    problem.value(&values)
                };
                let difference = (moved(step) - moved(-step)) / (2.0 * step);
                assert!((difference - gradient).abs() < 1e-8, "{causal:?}, value {at}: {difference} and {gradient}");
            }
        }
    }

    #[test]
    fn a_row_without_keys_gives_zeros() {
        let spec = AttentionSpec::new(1, 1).causal(Causal::BottomRight);
        let (q, kv) = ([1.0f64; 3], [f64::NAN, 2.0]);
        let view = |data| View::new(data, [1, 1, 2, 1]).unwrap();
        let inputs = Inputs::new(View::new(&q, [1, 1, 3, 1]).unwrap(), view(&kv), view(&kv));
        let (mut out, mut lse) = ([9.0; 3], [9.0; 3]);
        attention_forward(&spec, &inputs, &mut ViewMut::new(&mut out, [1, 1, 3, 1]).unwrap(), &mut lse).unwrap();
        assert_eq!((out[0], lse[0]), (0.0, f64::NEG_INFINITY));
        assert!(out[1].is_nan() && out[2].is_nan());
    }
}
