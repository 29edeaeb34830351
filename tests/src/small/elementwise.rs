//! Activations and dropout, element by element.

use kernels::activation::gated::{self, Gated};
use kernels::{Activation, Dropout, activation, reference};

use super::call::{Call, Output, Values, narrow, wide};
use crate::data::random;
use crate::oracle::UNIT;

/// Values over many magnitudes, with special ones among them.
fn values(seed: u64, len: usize) -> Vec<f32> {
    let special = [
        0.0,
        -0.0,
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        6.0,
        -1.5,
        -0.5,
        1e-40,
        -100.0,
        -87.4,
        -13.3,
        13.3,
        1e25,
        -1e25,
        f32::MAX,
    ];
    let wide = Values::Uniform.draw(seed, 1, len);
    (0..len)
        .map(|i| {
            let bits = random(seed, i as u64);
            if bits.is_multiple_of(13) {
                special[(bits >> 32) as usize % special.len()]
            } else {
                wide[i] * 2f32.powi((bits >> 40) as i32 % 18 - 9)
            }
        })
        .collect()
}

/// Gradients, a NaN here and there.
fn gradients(seed: u64, len: usize) -> Vec<f32> {
    let is_nan = |i: usize| random(seed, 1_000_000 + i as u64).is_multiple_of(29);
    let drawn = Values::Integers.draw(seed, 2, len);
    drawn.into_iter().enumerate().map(|(i, dy)| if is_nan(i) { f32::NAN } else { dy }).collect()
}

fn ulp(exact: f64) -> f64 {
    let exponent = (exact.abs().to_bits() >> 52) as i32 - 1023;
    ((exponent.max(-126) - 23) as f64).exp2()
}

/// An output, and the same made in place of `before`.
fn twice(output: impl Fn() -> Output, before: &[f32]) -> [Output; 2] {
    [output(), output().over(before.to_vec())]
}

pub(super) fn activations(function: Activation, len: usize, seed: u64) -> Vec<Call> {
    let (x, dy) = (values(seed, len), gradients(seed, len));
    let mut exact = vec![0.0; len];
    reference::activation_forward(function, &wide(&x), &mut exact).expect("equal lengths");
    let promised = match function {
        Activation::Sigmoid => 2.5,
        Activation::Tanh => 1.8,
        _ => 0.0,
    };
    let forward = || {
        Output::within("y", exact.clone(), |i| {
            // Where the exponential overflows, 0 will do.
            let underflow = if function == Activation::Sigmoid && x[i] < -87.3 { 2f64.powi(-126) } else { 0.0 };
            (promised * ulp(exact[i])).max(underflow)
        })
    };
    let y = narrow(&exact);
    let mut slopes = vec![0.0; len];
    reference::activation_backward(function, &wide(&y), &wide(&dy), &mut slopes).expect("equal lengths");
    let backward = || {
        let within = Output::within("dx", slopes.clone(), |i| {
            // 1 - y y may cancel: its roundings are relative to 1.
            let scale = if function == Activation::Tanh { f64::from(dy[i].abs()) } else { slopes[i].abs() };
            3.01 * scale * UNIT + 2f64.powi(-148)
        });
        // Where the slope is 0 the definition stops the gradient; a product lets NaN through.
        within.except(|i| slopes[i] == 0.0 && dy[i].is_nan())
    };
    let [y_out, y_in_place] = twice(forward, &x);
    let [dx_out, dx_in_place] = twice(backward, &dy);
    vec![
        Call::new("forward", vec![("x", x)], vec![y_out], move |inputs, outputs, _, execution| {
            activation::forward(function, inputs[0], outputs[0], execution)
        }),
        Call::new("forward in place", vec![], vec![y_in_place], move |_, outputs, _, execution| {
            activation::forward_in_place(function, outputs[0], execution)
        })
        .of_any_length(),
        Call::new(
            "backward",
            vec![("y", y.clone()), ("dy", dy)],
            vec![dx_out],
            move |inputs, outputs, _, execution| {
                activation::backward(function, inputs[0], inputs[1], outputs[0], execution)
            },
        ),
        Call::new("backward in place", vec![("y", y)], vec![dx_in_place], move |inputs, outputs, _, execution| {
            activation::backward_in_place(function, inputs[0], outputs[0], execution)
        }),
    ]
}

/// The argument of the exponential of GELU by tanh.
fn argument(x: f64) -> f64 {
    (1.595_769_121_605_731 * (x + 0.044715 * x * x * x)).abs()
}

/// The smallest gate that is not rounded to 0.
const CUT: f64 = 1.3e-38;

pub(super) fn gated_activations(function: Gated, len: usize, seed: u64) -> Vec<Call> {
    let (x, dy) = (values(seed, len), gradients(seed, len));
    let (mut exact, mut slopes) = (vec![0.0; len], vec![0.0; len]);
    reference::gated_forward(function, &wide(&x), &mut exact).expect("equal lengths");
    reference::gated_backward(function, &wide(&x), &wide(&dy), &mut slopes).expect("equal lengths");
    let forward = || {
        Output::within("y", exact.clone(), |i| {
            let x = f64::from(x[i]);
            let factor = match function {
                Gated::Gelu => x * x / 2.0 + 14.0,
                Gated::GeluTanh => 7.0 * argument(x) + 10.0,
                Gated::GeluQuick => 2.0 * (1.702 * x).abs() + 8.0,
                _ => 8.0,
            };
            let relative = if exact[i] == 0.0 { 0.0 } else { UNIT * exact[i].abs() * factor };
            relative + CUT * x.abs() + 2f64.powi(-148)
        })
    };
    let backward = || {
        Output::within("dx", slopes.clone(), |i| {
            let (x, dy) = (f64::from(x[i]), f64::from(dy[i]));
            let factor = match function {
                Gated::Gelu => x * x / 2.0 + 16.0,
                Gated::GeluTanh => 7.0 * argument(x) + 20.0,
                Gated::GeluQuick => 4.0 * (1.702 * x).abs() + 20.0,
                _ => 16.0,
            };
            // The gate and x times its slope, which may cancel.
            let gate = if x == 0.0 { 0.5 } else { (exact[i] / x).min(1.0) };
            let term = if dy == 0.0 { 0.0 } else { (slopes[i] / dy - gate).abs() };
            UNIT * dy.abs() * (gate + term) * factor + CUT * dy.abs() * (1.0 + x.abs().powi(3))
        })
    };
    let [y_out, y_in_place] = twice(forward, &x);
    let [dx_out, dx_in_place] = twice(backward, &dy);
    vec![
        Call::new("forward", vec![("x", x.clone())], vec![y_out], move |inputs, outputs, _, execution| {
            gated::forward(function, inputs[0], outputs[0], execution)
        }),
        Call::new("forward in place", vec![], vec![y_in_place], move |_, outputs, _, execution| {
            gated::forward_in_place(function, outputs[0], execution)
        })
        .of_any_length(),
        Call::new(
            "backward",
            vec![("x", x.clone()), ("dy", dy)],
            vec![dx_out],
            move |inputs, outputs, _, execution| gated::backward(function, inputs[0], inputs[1], outputs[0], execution),
        ),
        Call::new("backward in place", vec![("x", x)], vec![dx_in_place], move |inputs, outputs, _, execution| {
            gated::backward_in_place(function, inputs[0], outputs[0], execution)
        }),
    ]
}

pub(super) fn dropout(probability: f32, len: usize, values: Values, seed: u64) -> Vec<Call> {
    let dropout = Dropout { probability, seed, stream: seed >> 3 };
    let x = values.draw(seed, 1, len);
    let mut expected = vec![0.0; len];
    reference::dropout(&dropout, &x, &mut expected).expect("equal lengths");
    let [y, in_place] = twice(|| Output::exactly("y", &expected), &x);
    vec![
        Call::new("forward", vec![("x", x.clone())], vec![y], move |inputs, outputs, _, execution| {
            dropout.forward(inputs[0], outputs[0], execution)
        }),
        Call::new("forward in place", vec![], vec![in_place], move |_, outputs, _, execution| {
            dropout.forward_in_place(outputs[0], execution)
        })
        .of_any_length(),
        Call::new(
            "backward",
            vec![("dy", x)],
            vec![Output::exactly("dx", &expected)],
            move |inputs, outputs, _, execution| dropout.backward(inputs[0], outputs[0], execution),
        ),
    ]
}
