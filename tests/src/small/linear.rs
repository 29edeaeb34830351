//! The linear layer and its gradients.

use kernels::linear::{Gradients, Linear};
use kernels::{Activation, reference};

use super::call::{Call, Output, Values, absolute, wide};
use crate::data::random;
use crate::oracle::{UNIT, activate};

pub(super) fn linear(
    sizes: [usize; 3],
    activation: Activation,
    has_bias: bool,
    values: Values,
    seed: u64,
) -> Vec<Call> {
    let [batch, i, o] = sizes;
    let [x, w, bias, dy] =
        [(1, batch * i), (2, o * i), (3, o), (4, batch * o)].map(|(operand, len)| values.draw(seed, operand, len));
    let checked = "lengths that fit";
    let forward = |of: &dyn Fn(&[f32]) -> Vec<f64>| {
        let (mut y, bias) = (vec![0.0; batch * o], has_bias.then(|| of(&bias)));
        reference::linear_forward(sizes, &of(&x), &of(&w), bias.as_deref(), &mut y).expect(checked);
        y
    };
    let backward = |of: &dyn Fn(&[f32]) -> Vec<f64>| {
        let [mut dx, mut dw, mut db] = [x.len(), w.len(), o].map(|len| vec![0.0; len]);
        reference::linear_backward(sizes, &of(&x), &of(&w), &of(&dy), &mut dx, &mut dw, &mut db).expect(checked);
        [dx, dw, db]
    };
    // Of a chain of so many terms with this sum of magnitudes, and one more rounding.
    let bound = |terms: usize, magnitude: f64| {
        let roundings = (terms + 2) as f64 * UNIT;
        if values.is_exact() { 0.0 } else { roundings / (1.0 - roundings) * magnitude }
    };
    let (before, magnitudes) = (forward(&wide), forward(&absolute));
    let y = before.iter().map(|&value| activate(activation, value)).collect();
    let y_out = Output::within("y", y, |at| {
        let argument = bound(i + 1, magnitudes[at]);
        let value = activate(activation, before[at]);
        match activation {
            Activation::Sigmoid => 0.25 * argument + 16.0 * UNIT * value + 2.0 * f64::from(f32::MIN_POSITIVE),
            Activation::Tanh => argument + 16.0 * UNIT * value.abs() + 2.0 * f64::from(f32::MIN_POSITIVE),
            _ => argument,
        }
    });
    let (accumulate_dx, accumulate_parameters) = (random(seed, 5) & 1 == 0, random(seed, 6) & 1 == 0);
    let (gradients, sizes_of_terms) = (backward(&wide), backward(&absolute));
    let outputs = ["dx", "dw", "db"].into_iter().zip(gradients).zip(sizes_of_terms).enumerate().map(
        |(number, ((name, mut exact), mut magnitudes))| {
            let terms = [o, batch, batch][number];
            if !([accumulate_dx, accumulate_parameters, accumulate_parameters][number]) {
                return Output::within(name, exact, |at| bound(terms, magnitudes[at]));
            }
            let standing = values.finite().draw(seed, 7 + number as u64, exact.len());
            for (at, &value) in standing.iter().enumerate() {
                exact[at] += f64::from(value);
                magnitudes[at] += f64::from(value).abs();
            }
            Output::within(name, exact, |at| bound(terms + 1, magnitudes[at])).over(standing)
        },
    );
    let outputs = outputs.collect();

    let workspace = [1, 2, 3].map(|slots| Linear::new(i, o).workspace_len(batch, slots).expect("a small layer"));
    let layer = move |isa| Linear { activation, isa, ..Linear::new(i, o) };
    let mut inputs = vec![("x", x.clone()), ("w", w.clone())];
    inputs.extend(has_bias.then_some(("bias", bias)));
    let forward = Call::new("forward", inputs, vec![y_out], move |inputs, outputs, workspace, execution| {
        let bias = inputs.get(2).copied();
        let (isa, parallelism) = (execution.isa, execution.parallelism);
        layer(isa).forward(batch, inputs[0], inputs[1], bias, outputs[0], workspace, parallelism)
    });
    let inputs = vec![("x", x), ("w", w), ("dy", dy)];
    let backward = Call::new("backward", inputs, outputs, move |inputs, outputs, workspace, execution| {
        let (&[x, w, dy], [dx, dw, db]) = (inputs, outputs) else { unreachable!("three inputs, three outputs") };
        let gradients = Gradients { dx: Some(dx), dw: Some(dw), db: Some(db), accumulate_dx, accumulate_parameters };
        layer(execution.isa).backward(batch, x, w, dy, gradients, workspace, execution.parallelism)
    });
    [forward, backward].map(|call| Call { workspace, ..call }).into()
}
