//! The calls of layer, RMS, group and batch norm.

use kernels::norm::{Affine, Gradients, batch, group, layer, rms};

use super::call::{Call, Output, Values, narrow};
use crate::norm::Norm::{self, Batch, Group, Layer, Rms};
use crate::norm::{EPSILON, Expected};
use crate::oracle::UNIT;

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

    /// Forward, backward, and the inference of batch norm; without scale, shift and their gradients if `is_plain`.
    pub(super) fn calls(self, is_plain: bool, values: Values, seed: u64) -> Vec<Call> {
        let (len, parameters) = (self.elements(), self.parameters());
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
        let terms: Vec<[f64; 3]> = (0..self.elements())
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
}
