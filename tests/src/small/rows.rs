//! Softmax and losses, row by row, within the errors that their pages state.

use kernels::{loss, reference, softmax};

use super::call::{Call, Output, Values, narrow, wide};
use crate::data::random;
use crate::oracle::UNIT;

/// Exponentials below exp(-87.3) come out as 0.
const CUT: f64 = 1.23e-38;

/// The smallest number above 0.
const TINY: f64 = 1.401_298_464_324_817e-45;

/// Rows of every kind: ordinary, wide spread, all equal, one dominant, next to overflow, rising.
fn logits([rows, columns]: [usize; 2], kinds: usize, values: Values, seed: u64) -> Vec<f32> {
    let drawn = Values::Uniform.draw(seed, 1, rows * columns);
    let mut x = Vec::with_capacity(drawn.len());
    for row in 0..rows {
        let kind = random(seed, 500 + row as u64) as usize % kinds;
        for column in 0..columns {
            let uniform = drawn[row * columns + column];
            x.push(match kind {
                0 => 3.0 * uniform,
                1 => 60.0 * uniform,
                2 => -7.25,
                3 => uniform + if column == columns / 2 { 88.0 } else { 0.0 },
                4 => column as f32 * 0.01 + uniform,
                _ => 3e38 - 1e33 * uniform.abs(),
            });
        }
        // A NaN, an infinity, one element beside it that cannot be, or none that can be.
        if values == Values::Special && columns > 0 {
            let start = row * columns;
            let at = start + random(seed, 600 + row as u64) as usize % columns;
            match random(seed, 700 + row as u64) % 8 {
                0 => x[at] = f32::NAN,
                1 => x[at] = f32::INFINITY,
                2 | 3 => x[at] = f32::NEG_INFINITY,
                4 => x[start..].fill(f32::NEG_INFINITY),
                _ => {}
            }
        }
    }
    x
}

fn largest(row: &[f32]) -> f64 {
    row.iter().fold(f32::NEG_INFINITY, |a, &b| a.max(b)).into()
}

/// `[outer, inner, len]` to and from `[outer, len, inner]`.
fn turned<T: Copy>(x: &[T], [outer, rows, columns]: [usize; 3]) -> Vec<T> {
    (0..outer * rows * columns)
        .map(|i| {
            let (matrix, column, row) =
                (i / (rows * columns).max(1), i / rows.max(1) % columns.max(1), i % rows.max(1));
            x[(matrix * rows + row) * columns + column]
        })
        .collect()
}

/// Over the middle of `[outer, len, inner]`; through the functions for rows where `inner` is 1 and `by_rows`.
pub(super) fn softmax(
    [outer, len, inner]: [usize; 3],
    by_rows: bool,
    log: bool,
    values: Values,
    seed: u64,
) -> Vec<Call> {
    let (shape, rows) = ([outer, len, inner], [outer * inner, len]);
    let x = logits(rows, 6, values, seed);
    let dy = Values::Uniform.draw(seed, 2, x.len());
    let (mut exact, mut slopes) = (vec![0.0; x.len()], vec![0.0; x.len()]);
    let checked = "lengths that fit";
    if log {
        reference::log_softmax_forward(rows, &wide(&x), &mut exact).expect(checked);
    } else {
        reference::softmax_forward(rows, &wide(&x), &mut exact).expect(checked);
    }
    let y = narrow(&exact);
    if log {
        reference::log_softmax_backward(rows, &wide(&y), &wide(&dy), &mut slopes).expect(checked);
    } else {
        reference::softmax_backward(rows, &wide(&y), &wide(&dy), &mut slopes).expect(checked);
    }
    let n = len as f64;
    let bounds: Vec<[f64; 2]> = (0..x.len())
        .map(|i| {
            let row = i / len * len..(i / len + 1) * len;
            let distance = largest(&x[row.clone()]) - f64::from(x[i]);
            let (g, p) = (f64::from(dy[i]).abs(), f64::from(y[i]));
            if log {
                let sum: f64 = dy[row].iter().map(|dy| f64::from(dy.abs())).sum();
                let forward = UNIT * (2.0 * exact[i].abs() + 2.0 * distance + 2.0 * n.ln() + n + 7.0);
                [forward, 1.001 * (n + 4.0) * UNIT * (g + p.exp() * sum) + CUT * sum]
            } else {
                let products: f64 = row.map(|j| (f64::from(y[j]) * f64::from(dy[j])).abs()).sum();
                let forward = exact[i] * UNIT * (distance + n.ln() + n + 7.0) * 1.001;
                let forward = forward + if distance > 87.29 { CUT } else { TINY };
                [forward, 1.001 * (n + 3.0) * UNIT * p * (g + products) + n * 2f64.powi(-148)]
            }
        })
        .collect();
    // Rows that hold infinities are exact, or NaN: an impossible element has the probability 0.
    let to_memory = |values: Vec<f64>| turned(&values, [outer, inner, len]);
    let [y_bounds, dx_bounds] = [0, 1].map(|of| to_memory(bounds.iter().map(|bound| bound[of]).collect()));
    let y_out = Output::within("y", to_memory(exact), |i| y_bounds[i]);
    let dx_out = Output::within("dx", to_memory(slopes), |i| dx_bounds[i]);
    let [x, y, dy] = [x, y, dy].map(|values| turned(&values, [outer, inner, len]));
    let of_rows = [outer, len];
    vec![
        Call::new("forward", vec![("x", x)], vec![y_out], move |inputs, outputs, _, execution| {
            let (x, y) = (inputs[0], &mut *outputs[0]);
            match (by_rows, log) {
                (true, false) => softmax::forward(of_rows, x, y, execution),
                (true, true) => softmax::log_forward(of_rows, x, y, execution),
                (false, false) => softmax::axis::forward(shape, x, y, execution),
                (false, true) => softmax::axis::log_forward(shape, x, y, execution),
            }
        }),
        Call::new("backward", vec![("y", y), ("dy", dy)], vec![dx_out], move |inputs, outputs, _, execution| {
            let (y, dy, dx) = (inputs[0], inputs[1], &mut *outputs[0]);
            match (by_rows, log) {
                (true, false) => softmax::backward(of_rows, y, dy, dx, execution),
                (true, true) => softmax::log_backward(of_rows, y, dy, dx, execution),
                (false, false) => softmax::axis::backward(shape, y, dy, dx, execution),
                (false, true) => softmax::axis::log_backward(shape, y, dy, dx, execution),
            }
        }),
    ]
}

pub(super) fn cross_entropy([rows, classes]: [usize; 2], values: Values, seed: u64) -> Vec<Call> {
    let shape = [rows, classes];
    // Without rows next to overflow, whose losses are sums of huge differences.
    let z = logits(shape, 5, values, seed);
    let targets: Vec<usize> = (0..rows).map(|row| random(seed, 800 + row as u64) as usize % classes).collect();
    let (mut losses, mut gradient) = (vec![0.0; rows], vec![0.0; z.len()]);
    let mean = reference::softmax_cross_entropy(shape, &wide(&z), &targets, &mut losses, &mut gradient)
        .expect("a row, and targets that are classes");
    let n = classes as f64;
    let spreads: Vec<f64> = (z.chunks(classes))
        .map(|z| largest(z) - z.iter().copied().filter(|z| z.is_finite()).fold(f32::INFINITY, f32::min) as f64)
        .collect();
    let loss_bound = |row: usize| UNIT * (4.0 * losses[row] + spreads[row] + n + 9.0);
    let worst = (0..rows).map(loss_bound).fold(0.0, f64::max);
    let losses_out = || Output::within("losses", losses.clone(), loss_bound);
    let mean_out = || {
        let bound = worst + mean * UNIT * (rows as f64 / 64.0 + 8.0);
        Output::within("mean", vec![mean], |_| bound).returned()
    };
    let gradient_out =
        Output::within("gradient", gradient, |i| UNIT * (2.0 * spreads[i / classes] + n + 12.0) / rows as f64);
    let of_training = targets.clone();
    vec![
        Call::new(
            "with gradient",
            vec![("logits", z.clone())],
            vec![losses_out(), mean_out(), gradient_out],
            move |inputs, outputs, _, execution| {
                let [losses, mean, gradient] = outputs else { unreachable!("three outputs") };
                let gradient = Some(&mut **gradient);
                mean[0] = loss::softmax_cross_entropy(shape, inputs[0], &of_training, losses, gradient, execution)?;
                Ok(())
            },
        ),
        Call::new(
            "without gradient",
            vec![("logits", z)],
            vec![losses_out(), mean_out()],
            move |inputs, outputs, _, execution| {
                let [losses, mean] = outputs else { unreachable!("two outputs") };
                mean[0] = loss::softmax_cross_entropy(shape, inputs[0], &targets, losses, None, execution)?;
                Ok(())
            },
        ),
    ]
}

pub(super) fn mean_square(len: usize, values: Values, seed: u64) -> Vec<Call> {
    let (prediction, target) = (values.draw(seed, 1, len), values.draw(seed, 2, len));
    let mut gradient = vec![0.0; len];
    let mean = reference::mean_squared_error(&wide(&prediction), &wide(&target), &mut gradient).expect("an element");
    let slopes = gradient.clone();
    let gradient = Output::within("gradient", gradient, |i| 4.0 * UNIT * slopes[i].abs() + TINY);
    let mean = Output::within("mean", vec![mean], |_| UNIT * (len as f64 / 64.0 + 12.0) * mean).returned();
    let inputs = vec![("prediction", prediction), ("target", target)];
    vec![Call::new("with gradient", inputs, vec![mean, gradient], move |inputs, outputs, _, execution| {
        let [mean, gradient] = outputs else { unreachable!("two outputs") };
        mean[0] = loss::mean_squared_error(inputs[0], inputs[1], Some(&mut **gradient), execution)?;
        Ok(())
    })]
}
