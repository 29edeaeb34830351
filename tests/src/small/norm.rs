//! Layer, RMS, group and batch norm, within the errors that the page of `norm` derives.

use kernels::conv::Layout;
use kernels::norm::{Affine, Gradients, batch, group, layer, rms};
use kernels::reference::{Sharing, norm_backward, norm_forward};

use super::call::{Call, Output, Values, narrow, wide};
use crate::oracle::UNIT;

const EPSILON: f32 = 1e-5;

/// Which norm, and of what.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// Each row by its mean and variance.
    Layer([usize; 2]),
    /// Each row by its root mean square.
    Rms([usize; 2]),
    /// Groups of channels of an image.
    Group(group::Shape),
    /// Channels of all images.
    Batch(batch::Shape),
}
use Norm::{Batch, Group, Layer, Rms};

/// The gradient of the input, and as much of the parameters' as was asked for.
fn gradients<'a>(outputs: &'a mut [&mut [f32]]) -> Gradients<'a> {
    let [dx, parameters @ ..] = outputs else { unreachable!("at least the gradient of the input") };
    let mut parameters = parameters.iter_mut().map(|gradient| &mut **gradient);
    Gradients { dx, dgamma: parameters.next(), dbeta: parameters.next() }
}

impl Norm {
    pub(super) fn name(self) -> &'static str {
        match self {
            Layer(_) => "layer-norm",
            Rms(_) => "rms-norm",
            Group(_) => "group-norm",
            Batch(_) => "batch-norm",
        }
    }

    fn len(self) -> usize {
        match self {
            Layer([rows, columns]) | Rms([rows, columns]) => rows * columns,
            Group(s) => s.batch * s.channels * s.pixels,
            Batch(s) => s.batch * s.channels * s.pixels,
        }
    }

    fn sets(self) -> usize {
        match self {
            Layer([rows, _]) | Rms([rows, _]) => rows,
            Group(s) => s.batch * s.groups,
            Batch(s) => s.channels,
        }
    }

    fn parameters(self) -> usize {
        match self {
            Layer([_, columns]) | Rms([_, columns]) => columns,
            Group(s) => s.channels,
            Batch(s) => s.channels,
        }
    }

    fn set(self, i: usize) -> usize {
        match self {
            Layer([_, columns]) | Rms([_, columns]) => i / columns,
            Group(s) => i / (s.channels / s.groups * s.pixels),
            Batch(_) => self.parameter(i),
        }
    }

    fn parameter(self, i: usize) -> usize {
        match self {
            Layer([_, columns]) | Rms([_, columns]) => i % columns,
            Group(s) => i / s.pixels % s.channels,
            Batch(s) if s.layout == Layout::Nhwc => i % s.channels,
            Batch(s) => i / s.pixels % s.channels,
        }
    }

    /// The depths of sums: for moments, for the sums of `g`, for the parameters' gradients.
    fn depths(self) -> [f64; 3] {
        let lanes = |len: usize| (len / 64 + 8) as f64;
        match self {
            Layer([rows, columns]) | Rms([rows, columns]) => [lanes(columns), lanes(columns), (rows + 32) as f64],
            Group(s) => {
                let (channels, run) = (s.channels / s.groups, lanes(s.pixels));
                [lanes(channels * s.pixels), run + channels as f64, run + s.batch as f64]
            }
            Batch(s) if s.layout == Layout::Nhwc || s.pixels == 1 => {
                let rows = s.batch * s.pixels;
                let piece = rows.min(rows.div_ceil(64).max(16384 / s.channels)) as f64 / 4.0 + 8.0;
                [piece, piece + 64.0, piece + 64.0]
            }
            Batch(s) => {
                let run = lanes(s.pixels) + 4.0;
                [run, run + s.batch as f64, run + s.batch as f64]
            }
        }
    }

    /// Forward, backward, and the inference of batch norm; without scale, shift and their gradients if `is_plain`.
    pub(super) fn calls(self, is_plain: bool, values: Values, seed: u64) -> Vec<Call> {
        let (len, parameters) = (self.len(), self.parameters());
        let x = values.draw(seed, 1, len);
        let dy = Values::Uniform.draw(seed, 2, len);
        let [gamma, beta] = [(3, 1.0), (4, 0.0)].map(|(operand, plain)| {
            if is_plain { vec![plain; parameters] } else { Values::Uniform.draw(seed, operand, parameters) }
        });
        let Expected { y, dx, dgamma, dbeta, mean, r } = self.expected([&x, &dy, &gamma, &beta]);
        let is_batch = matches!(self, Batch(_));
        let moments = [&mean, &r].map(|moment| narrow(&moment.exact));

        let mut inputs = vec![("x", x.clone())];
        if !is_plain {
            inputs.push(("gamma", gamma.clone()));
            inputs.extend((!matches!(self, Rms(_))).then(|| ("beta", beta.clone())));
        }
        let outputs = if is_batch { vec![y, mean, r] } else { vec![y] };
        let forward = Call::new("forward", inputs, outputs, move |inputs, outputs, workspace, execution| {
            let affine = Affine { gamma: inputs.get(1).copied(), beta: inputs.get(2).copied() };
            let x = inputs[0];
            match self {
                Layer(shape) => layer::forward(shape, x, affine, EPSILON, outputs[0], execution),
                Rms(shape) => rms::forward(shape, x, affine.gamma, EPSILON, outputs[0], execution),
                Group(shape) => group::forward(shape, x, affine, EPSILON, outputs[0], execution),
                Batch(shape) => {
                    let [y, mean, inverse_deviation] = outputs else { unreachable!("an output and two moments") };
                    let moments = batch::Moments { mean, inverse_deviation };
                    batch::forward(shape, x, affine, EPSILON, y, moments, None, workspace, execution)
                }
            }
        });

        let mut inputs = vec![("x", x.clone()), ("dy", dy)];
        if is_batch {
            let [mean, r] = moments;
            inputs.extend([("mean", mean), ("r", r)]);
        }
        inputs.extend((!is_plain).then(|| ("gamma", gamma.clone())));
        let outputs = if is_plain { vec![dx] } else { vec![dx, dgamma, dbeta] };
        let backward = Call::new("backward", inputs, outputs, move |inputs, outputs, workspace, execution| {
            let gradients = gradients(outputs);
            let (x, dy, gamma) = (inputs[0], inputs[1], inputs.get(if is_batch { 4 } else { 2 }).copied());
            match self {
                Layer(shape) => layer::backward(shape, x, gamma, dy, EPSILON, gradients, workspace, execution),
                Rms(shape) => rms::backward(shape, x, gamma, dy, EPSILON, gradients, workspace, execution),
                Group(shape) => group::backward(shape, x, gamma, dy, EPSILON, gradients, workspace, execution),
                Batch(shape) => {
                    let (mean, r) = (inputs[2], inputs[3]);
                    batch::backward(shape, x, mean, r, gamma, dy, gradients, workspace, execution)
                }
            }
        });

        let fits = "a small problem";
        let (forward_len, backward_len) = match self {
            Layer(shape) => (0, layer::backward_workspace_len(shape).expect(fits)),
            Rms(shape) => (0, rms::backward_workspace_len(shape).expect(fits)),
            Group(shape) => (0, group::backward_workspace_len(shape).expect(fits)),
            Batch(shape) => [batch::workspace_len(shape).expect(fits); 2].into(),
        };
        let mut calls = vec![forward.workspace(forward_len), backward.workspace(backward_len)];
        if let Batch(shape) = self {
            calls.push(self.inference(shape, x, [gamma, beta], values, seed));
        }
        calls
    }

    /// Batch norm by moments that training kept.
    fn inference(
        self,
        shape: batch::Shape,
        x: Vec<f32>,
        [gamma, beta]: [Vec<f32>; 2],
        values: Values,
        seed: u64,
    ) -> Call {
        let mean = values.finite().draw(seed, 5, shape.channels);
        let variance: Vec<f32> = Values::Uniform.draw(seed, 6, shape.channels).iter().map(|v| v.abs()).collect();
        let terms: Vec<[f64; 3]> = (0..self.len())
            .map(|i| {
                let c = self.parameter(i);
                let scale = f64::from(gamma[c]) / (f64::from(variance[c]) + f64::from(EPSILON)).sqrt();
                [f64::from(x[i]) * scale, f64::from(mean[c]) * scale, f64::from(beta[c])]
            })
            .collect();
        let exact = (terms.iter().zip(&x).enumerate())
            .map(|(i, ([_, _, beta], &x))| {
                let c = self.parameter(i);
                let scale = f64::from(gamma[c]) / (f64::from(variance[c]) + f64::from(EPSILON)).sqrt();
                (f64::from(x) - f64::from(mean[c])) * scale + beta
            })
            .collect();
        let y = Output::within("y", exact, |i| 4.0 * UNIT * terms[i].iter().map(|term| term.abs()).sum::<f64>());
        let inputs = vec![("x", x), ("mean", mean), ("variance", variance), ("gamma", gamma), ("beta", beta)];
        Call::new("inference", inputs, vec![y], move |inputs, outputs, workspace, execution| {
            let &[x, mean, variance, gamma, beta] = inputs else { unreachable!("five inputs") };
            let affine = Affine::new(gamma, beta);
            batch::inference(shape, x, mean, variance, affine, EPSILON, outputs[0], workspace, execution)
        })
        .workspace(batch::workspace_len(shape).expect("a small problem"))
    }

    /// The exact results and how far others may be from them.
    fn expected(self, [x, dy, gamma, beta]: [&[f32]; 4]) -> Expected {
        let (len, parameters, sets) = (self.len(), self.parameters(), self.sets());
        let (set, parameter) = (|i| self.set(i), |i| self.parameter(i));
        let is_centred = !matches!(self, Rms(_));
        let sharing = Sharing { len, sets, parameters, set: &set, parameter: &parameter, is_centred };
        let [x, dy, gamma, beta] = [x, dy, gamma, beta].map(wide);
        let beta = if is_centred { beta } else { vec![0.0; parameters] };
        let (epsilon, fits) = (f64::from(EPSILON), "lengths that fit");
        let (mut y, mut dx) = (vec![0.0; len], vec![0.0; len]);
        let (mut dgamma, mut dbeta) = (vec![0.0; parameters], vec![0.0; parameters]);
        norm_forward(&sharing, &x, &gamma, &beta, epsilon, &mut y).expect(fits);
        norm_backward(&sharing, &x, &gamma, &dy, epsilon, &mut dx, &mut dgamma, &mut dbeta).expect(fits);

        let (means, rs) = sharing.moments(&x, epsilon);
        let [d, d_sums, k] = self.depths();
        let (mut count, mut size, mut square) = (vec![0.0; sets], vec![0.0; sets], vec![0.0; sets]);
        for i in 0..len {
            count[set(i)] += 1.0;
            size[set(i)] += x[i].abs();
            square[set(i)] += x[i] * x[i];
        }
        let em = |s: usize| if is_centred { (d + 2.0) * UNIT * size[s] / count[s] } else { 0.0 };
        // Relative to r. Batch norm merges the moments of runs, whose means err each for itself.
        let er = |s: usize| match self {
            Batch(_) => {
                let merged = (d + 2.0) * UNIT * (square[s] / count[s]).sqrt() * rs[s];
                (d / 2.0 + 6.0) * UNIT + merged + merged.powi(2)
            }
            _ => (d / 2.0 + 6.0) * UNIT + em(s).powi(2) * rs[s].powi(2) / 2.0,
        };
        let hat = |i: usize| (x[i] - means[set(i)]) * rs[set(i)];
        let eh = |i: usize| rs[set(i)] * em(set(i)) + hat(i).abs() * (er(set(i)) + 3.0 * UNIT);
        let g = |i: usize| (dy[i] * gamma[parameter(i)]).abs();
        let (mut mean_g, mut mean_gh, mut mean_ge) = (vec![0.0; sets], vec![0.0; sets], vec![0.0; sets]);
        let (mut e_gamma, mut e_beta) = (vec![0.0; parameters], vec![0.0; parameters]);
        for i in 0..len {
            let s = set(i);
            mean_g[s] += if is_centred { g(i) / count[s] } else { 0.0 };
            mean_gh[s] += g(i) * hat(i).abs() / count[s];
            mean_ge[s] += g(i) * eh(i) / count[s];
            e_gamma[parameter(i)] += dy[i].abs() * (eh(i) + (k + 4.0) * UNIT * hat(i).abs());
            e_beta[parameter(i)] += (k + 2.0) * UNIT * dy[i].abs();
        }
        let e_y = |i: usize| {
            let (gamma, beta) = (gamma[parameter(i)].abs(), beta[parameter(i)].abs());
            gamma * eh(i) + 2.0 * UNIT * (gamma * hat(i).abs() + beta)
        };
        let slopes = dx.clone();
        let e_dx = |i: usize| {
            let s = set(i);
            let terms = g(i) + mean_g[s] + hat(i).abs() * mean_gh[s];
            let sums = (d_sums + 12.0) * UNIT * terms + eh(i) * mean_gh[s] + hat(i).abs() * mean_ge[s];
            rs[s] * (sums + er(s) * (terms.min((slopes[i] / rs[s]).abs() + sums)))
        };
        // Products of errors, and what underflows.
        let more = |bound: f64| bound * 1.01 + 2f64.powi(-140);
        Expected {
            y: Output::within("y", y, |i| more(e_y(i))),
            dx: Output::within("dx", dx, |i| more(e_dx(i))),
            dgamma: Output::within("dgamma", dgamma, |i| more(e_gamma[i])),
            dbeta: Output::within("dbeta", dbeta, |i| more(e_beta[i])),
            // Merged, an infinite mean is the difference of infinities.
            mean: Output::within("mean", means.clone(), |s| more(em(s))).except(|s| means[s].is_infinite()),
            r: Output::within("r", rs.clone(), |s| more(er(s) * rs[s])),
        }
    }
}

/// Every result of a norm.
struct Expected {
    y: Output,
    dx: Output,
    dgamma: Output,
    dbeta: Output,
    mean: Output,
    r: Output,
}
