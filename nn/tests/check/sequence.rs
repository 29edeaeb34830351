//! Comparing layers over sequences with functions in f64, and those functions.
#![allow(dead_code)] // Each test takes what it needs.

use kernels::attention::{AttentionSpec, Causal, Inputs};
use kernels::{View, ViewMut, reference};
use nn::{Error, Layer, Parallelism, Random, Tensor};

use crate::check::{Function, differences, eighths, wide};

/// A few hundred roundings: sums of some dozen numbers, normalised by deviations above a tenth of the largest.
pub const SHARE: f64 = 3e-5;

/// Compares a layer with a function of its input and its parameters: values and gradients may err by so much of the
/// largest that there is.
pub fn compare(layer: &mut dyn Layer, x: &Tensor, share: f64, function: Function<'_>) {
    let close = |what: &str, given: &[f64], expected: &[f64], share: f64| {
        assert_eq!(given.len(), expected.len(), "{what}");
        let most = expected.iter().fold(1.0, |most: f64, value| most.max(value.abs()));
        for i in 0..given.len() {
            assert!((given[i] - expected[i]).abs() <= share * most, "{what}[{i}]: {} for {}", given[i], expected[i]);
        }
    };
    let mut lists = vec![wide(x.as_slice().unwrap())];
    layer.visit("", &mut |_, parameter| {
        parameter.zero_gradient();
        lists.push(wide(parameter.elements()));
    });
    let y = layer.forward(&[x], Parallelism::Current).unwrap();
    assert_eq!(y.shape(), layer.output_shape(&[x.shape().to_vec()]).unwrap());
    close("y", &wide(y.as_slice().unwrap()), &function(&lists[0], &lists[1..]), share);

    let dy = eighths(y.shape(), &mut Random::new(99));
    let weights = wide(dy.as_slice().unwrap());
    let dot = |lists: &[Vec<f64>]| function(&lists[0], &lists[1..]).iter().zip(&weights).map(|(y, w)| y * w).sum();
    let slopes = differences(&lists, &dot);
    let mut gradients = vec![wide(layer.backward(&dy, Parallelism::Current).unwrap()[0].as_slice().unwrap())];
    layer.visit("", &mut |_, parameter| gradients.push(wide(parameter.gradient_elements())));
    for (at, (gradient, slopes)) in gradients.iter().zip(&slopes).enumerate() {
        // Differences of normalised values have third derivatives of some hundreds: STEP^2 / 6 of that.
        close(if at == 0 { "dx" } else { "a parameter's gradient" }, gradient, slopes, share.max(1e-5));
    }
    let again = layer.backward(&dy, Parallelism::Serial).unwrap_err();
    assert!(again == Error::NoForward || matches!(&again, Error::In { source, .. } if **source == Error::NoForward));
}

/// Gives a layer's parameters other values than those that it starts with.
pub fn stir(layer: &mut dyn Layer, random: &mut Random) {
    layer.visit("", &mut |_, parameter| {
        parameter.update().0.iter_mut().for_each(|value| *value += random.uniform(-0.5, 0.5));
    });
}

/// `x weightᵀ + bias` of rows.
pub fn project(x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let features = weight.len() / bias.len();
    let dot = |row: &[f64], o: usize| -> f64 { (0..features).map(|i| row[i] * weight[o * features + i]).sum() };
    x.chunks(features).flat_map(|row| (0..bias.len()).map(|o| bias[o] + dot(row, o)).collect::<Vec<_>>()).collect()
}

/// Attention with several heads in f64; parameters in the order of the layer.
pub fn attention(
    x: &[f64],
    parameters: &[Vec<f64>],
    [batch, length, heads, dim]: [usize; 4],
    causal: bool,
) -> Vec<f64> {
    let features = heads * dim;
    let qkv = project(x, &parameters[0], &parameters[1]);
    let spec = AttentionSpec::new(heads, dim).causal(if causal { Causal::TopLeft } else { Causal::None });
    let (shape, row) = ([batch, heads, length, dim], 3 * features as isize);
    let strides = [row * length as isize, dim as isize, row, 1];
    let part = |at: usize| View::strided(&qkv, at * features, shape, strides).unwrap();
    let mut out = vec![0.0; batch * length * features];
    let row = features as isize;
    let to = [row * length as isize, dim as isize, row, 1];
    let mut view = ViewMut::strided(&mut out, 0, shape, to).unwrap();
    let inputs = Inputs::new(part(0), part(1), part(2));
    reference::attention_forward(&spec, &inputs, &mut view, &mut vec![0.0; batch * heads * length]).unwrap();
    project(&out, &parameters[2], &parameters[3])
}
