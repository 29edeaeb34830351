//! What an attention's results may differ from the reference's by.
//!
//! The bounds are derived per row: the errors of its logits (roundings of `q . k`, of bias and slopes) become errors of
//! its weights through the exponential, those of the output through the weighted sum, and in backward through each of
//! the five products. Each is computed in f64 beside the reference, from magnitudes.

use kernels::attention::{AttentionSpec, Causal, Shape};
use kernels::{Isa, Parallelism};

use super::{Case, Memory, broadcast_strides, strides};
use crate::guard::Side;

/// Half a unit in the last place of 1.
const U: f64 = 1.0 / (1 << 24) as f64;
/// The error of a weight's exponential, in units of `U`.
const EXP: f64 = 2.5;

fn gamma(n: usize) -> f64 {
    n as f64 * U / (1.0 - n as f64 * U)
}

/// What the output, the log-sum-exp and the gradients may differ by, element by element.
#[derive(Clone, Debug, Default)]
pub struct Bounds {
    /// Of the output.
    pub out: Vec<f64>,
    /// Of the log-sum-exp.
    pub lse: Vec<f64>,
    /// Of the gradients of queries, keys, values, bias and sinks.
    pub gradients: [Vec<f64>; 5],
}

/// Where the elements of a position along the last axis of a tensor are.
#[derive(Clone, Copy)]
struct Line {
    start: usize,
    step: usize,
}

impl Line {
    fn at(self, element: usize) -> usize {
        self.start + element * self.step
    }
}

impl Case {
    /// How positions of queries, keys, values and outputs, by number, become lines.
    fn lines(&self, which: usize) -> impl Fn([usize; 3]) -> Line {
        let [batch, head, position, element] = strides(self.shapes()[which], self.order).map(|stride| stride as usize);
        move |at: [usize; 3]| Line { start: at[0] * batch + at[1] * head + at[2] * position, step: element }
    }

    /// The bounds of every element, from the reference's output and log-sum-exp.
    pub fn bounds(&self, out: &[f64], lse: &[f64]) -> Bounds {
        let Shape { batch, q_len, kv_len } = self.shape;
        let AttentionSpec { heads, head_dim, v_dim, .. } = self.spec;
        let (sizes, of_bias) = self.gradient_sizes();
        let mut bounds =
            Bounds { out: vec![0.0; out.len()], lse: vec![0.0; lse.len()], gradients: sizes.map(|len| vec![0.0; len]) };
        let scale = f64::from(self.spec.scale);
        let pairs = [batch, heads, q_len, kv_len];
        let [q_lines, k_lines, v_lines, out_lines] = [0, 1, 2, 3].map(|which| self.lines(which));
        let rows = batch * heads * q_len;
        // Rescalings: a block has at least 64 keys, and pieces are merged.
        let blocks = kv_len / 64 + 2;
        let g = gamma(2 * kv_len + 3 * blocks + 3);
        let tiny = 2f64.powi(-126);
        for row in 0..rows {
            let (b, h, i) = (row / q_len / heads, row / q_len % heads, row % q_len);
            let kv_head = h / self.spec.group();
            let (q_line, out_line) = (q_lines([b, h, i]), out_lines([b, h, i]));
            let len = self.kv_lens.as_ref().map_or(kv_len, |lens| lens[b]);
            let offset = if self.spec.causal == Causal::BottomRight { len as f64 - q_len as f64 } else { 0.0 };
            // Logits, their errors, and the derivatives of softcap.
            let mut seen = Vec::new();
            for j in self.spec.visible_keys(i, q_len, len) {
                if let Some((keep, axes)) = &self.keep {
                    let strides = broadcast_strides(pairs, *axes).0;
                    let at: usize = [b, h, i, j].iter().zip(strides).map(|(at, stride)| at * stride as usize).sum();
                    if !keep[at] {
                        continue;
                    }
                }
                let (mut score, mut magnitude) = (0.0, 0.0);
                let k_line = k_lines([b, kv_head, j]);
                for d in 0..head_dim {
                    let product = f64::from(self.q[q_line.at(d)]) * f64::from(self.k[k_line.at(d)]);
                    score += product;
                    magnitude += product.abs();
                }
                let mut logit = scale * score;
                let mut error = scale.abs() * gamma(head_dim + 2) * magnitude + U * logit.abs();
                let (mut slope, mut slope_error) = (1.0, 0.0);
                if let Some(cap) = self.spec.softcap {
                    let cap = f64::from(cap);
                    let tanh = (logit / cap).tanh();
                    slope = 1.0 - tanh * tanh;
                    slope_error = 2.0 * (error / cap + 2.0 * U * (logit / cap).abs()) + 8.0 * U;
                    error += U * logit.abs() + 6.0 * U * cap * tanh.abs();
                    logit = cap * tanh;
                }
                if let Some((bias, axes)) = &self.bias {
                    let strides = broadcast_strides(pairs, *axes).0;
                    let at: usize = [b, h, i, j].iter().zip(strides).map(|(at, stride)| at * stride as usize).sum();
                    logit += f64::from(bias[at]);
                    error += U * logit.abs();
                }
                if let Some(alibi) = &self.alibi {
                    let added = f64::from(alibi[h]) * (i as f64 + offset - j as f64).abs();
                    logit -= added;
                    error += U * (logit.abs() + added.abs());
                }
                if logit > f64::NEG_INFINITY {
                    seen.push((j, logit, error, slope, slope_error));
                }
            }
            let sink = self.sinks.as_ref().map(|sinks| f64::from(sinks[h]));
            let maximum = seen.iter().map(|seen| seen.1).chain(sink).fold(f64::NEG_INFINITY, f64::max);
            let least = seen.iter().map(|seen| seen.1).chain(sink).fold(f64::INFINITY, f64::min);
            if maximum == f64::NEG_INFINITY {
                continue;
            }
            let worst = seen.iter().map(|seen| seen.2).fold(0.0, f64::max);
            let theta = 2.0 * worst + 3.0 * U * (maximum - least) + EXP * U + blocks as f64 * (EXP + 2.0) * U;
            let lse = lse[row];
            bounds.lse[row] = theta + gamma(kv_len + blocks + 1) + 3.0 * U * lse.abs() + 3.0 * U * maximum.abs();
            let relative = (2.0 * theta).exp_m1() * (1.0 + g) + g + if self.dropout.is_some() { 2.0 * U } else { 0.0 };
            let dout = |c: usize| f64::from(self.dout[out_line.at(c)]);
            let weight = |logit: f64| (logit - lse).exp();
            // What dropout multiplies a weight with: rounded once itself, and once as a factor.
            let factor = |j: usize| match self.dropout {
                None => 1.0,
                Some(dropout) if dropout.keeps([b, h, i, j]) => dropout.factor(),
                Some(_) => 0.0,
            };
            let roundings = if self.dropout.is_some() { 2.0 * U } else { 0.0 };
            let mut magnitudes = vec![0.0; v_dim];
            for &(j, logit, ..) in &seen {
                let (weight, v_line) = (weight(logit) * factor(j), v_lines([b, kv_head, j]));
                for (c, magnitude) in magnitudes.iter_mut().enumerate() {
                    *magnitude += weight * f64::from(self.v[v_line.at(c)]).abs();
                }
            }
            let (mut mean, mut mean_error) = (0.0, 0.0);
            for (c, magnitude) in magnitudes.into_iter().enumerate() {
                let at = out_line.at(c);
                let largest = self.dropout.map_or(1.0, |dropout| dropout.factor());
                bounds.out[at] = relative * magnitude + 2.0 * largest * kv_len as f64 * tiny;
                mean += dout(c) * out[at];
                mean_error += gamma(v_dim + 1) * (dout(c) * out[at]).abs() + dout(c).abs() * bounds.out[at];
            }
            // Backward computes weights from the log-sum-exp, which has an error of its own.
            let relative = (2.0 * theta + bounds.lse[row] + 4.0 * U * lse.abs()).exp_m1() + 2.0 * EXP * U;
            let count = self.spec.group() * q_len * batch;
            for (j, logit, _, slope, slope_error) in seen {
                let p = weight(logit);
                let (mut dp, mut dp_error) = (0.0, 0.0);
                let factor = factor(j);
                let (k_line, v_line) = (k_lines([b, kv_head, j]), v_lines([b, kv_head, j]));
                for c in 0..v_dim {
                    let product = factor * dout(c) * f64::from(self.v[v_line.at(c)]);
                    dp += product;
                    dp_error += (gamma(v_dim) + roundings) * product.abs();
                    bounds.gradients[2][v_line.at(c)] +=
                        (relative + roundings + gamma(count)) * p * factor * dout(c).abs() + tiny * factor.max(1.0);
                }
                let size = dp.abs() + mean.abs();
                let dlogit = p * (dp - mean);
                // A weight below the normal numbers is 0.
                let dlogit_error =
                    p * (relative * size + dp_error + mean_error + 4.0 * U * size) + tiny * (1.0 + 2.0 * size);
                let ds = scale.abs() * slope * dlogit.abs();
                let ds_error = scale.abs() * (slope * dlogit_error + (slope_error + U) * dlogit.abs()) + U * ds + tiny;
                for d in 0..head_dim {
                    let (at_q, at_k) = (q_line.at(d), k_line.at(d));
                    let (q, k) = (f64::from(self.q[at_q]).abs(), f64::from(self.k[at_k]).abs());
                    bounds.gradients[0][at_q] += (ds_error + gamma(kv_len) * ds) * k + tiny;
                    bounds.gradients[1][at_k] += (ds_error + gamma(count) * ds) * q + tiny;
                }
                if self.bias.is_some() {
                    let at = [b, h, i, j];
                    let index = (0..4)
                        .fold(0, |index, axis| index * of_bias[axis] + if of_bias[axis] == 1 { 0 } else { at[axis] });
                    bounds.gradients[3][index] += dlogit_error + gamma(rows * kv_len) * dlogit.abs();
                }
            }
            if let Some(sink) = sink {
                let p = (sink - lse).exp();
                bounds.gradients[4][h] += p * ((relative + gamma(count + 2)) * mean.abs() + mean_error) + tiny;
            }
        }
        if self.bias.is_none() {
            bounds.gradients[3].clear();
        }
        bounds
    }
}

/// Compares element by element.
///
/// # Errors
/// The first element that differs by more than its bound.
pub fn judge(name: &str, given: &[f32], expected: &[f64], bounds: &[f64]) -> Result<f64, String> {
    let mut worst = 0.0f64;
    for (at, ((&given, &expected), &bound)) in given.iter().zip(expected).zip(bounds).enumerate() {
        let given = f64::from(given);
        if given == expected {
            continue;
        }
        let error = (given - expected).abs();
        if error.is_nan() || error > bound {
            return Err(format!("{name}[{at}] is {given:e}, expected {expected:e} within {bound:e}"));
        }
        worst = worst.max(error / bound);
    }
    Ok(worst)
}

/// Forward and backward on every instruction set, within the bounds. The largest errors of both, as shares of their
/// bounds.
///
/// # Errors
/// What is wrong.
pub fn check(case: &Case, memory: &mut Memory) -> Result<[f64; 2], String> {
    check_on(case, &Isa::available().collect::<Vec<_>>(), memory)
}

/// [`check`] on some instruction sets.
///
/// # Errors
/// What is wrong.
pub fn check_on(case: &Case, isas: &[Isa], memory: &mut Memory) -> Result<[f64; 2], String> {
    let (expected_out, expected_lse) = case.reference();
    let expected = case.reference_gradients();
    let bounds = case.bounds(&expected_out, &expected_lse);
    let mut worst = [0.0f64; 2];
    for &isa in isas {
        let side = if case.seed.is_multiple_of(2) { Side::Left } else { Side::Right };
        let (out, lse) = case.forward(isa, Parallelism::Serial, memory, side);
        let on = |message: String| format!("on {isa}: {message}");
        worst[0] = worst[0].max(judge("out", &out, &expected_out, &bounds.out).map_err(on)?);
        judge("lse", &lse, &expected_lse, &bounds.lse).map_err(on)?;
        let given = case.backward(isa, Parallelism::Serial, memory, side, (&out, &lse));
        for (which, name) in ["dq", "dk", "dv", "dbias", "dsinks"].into_iter().enumerate() {
            let error = judge(name, &given[which], &expected[which], &bounds.gradients[which]).map_err(on)?;
            worst[1] = worst[1].max(error);
        }
    }
    Ok(worst)
}
