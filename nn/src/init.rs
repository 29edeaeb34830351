//! First values of weights, drawn so that signals neither fade nor grow from layer to layer.

use ndarray::{ArrayD, IxDyn};

use crate::random::Random;

/// Uniform between `±sqrt(6 / fan_in)`: keeps the variance through layers with ReLU behind them.
/// `fan_in` is the number of inputs of one output.
///
/// He, Zhang, Ren, Sun, "Delving deep into rectifiers", ICCV 2015.
pub fn kaiming_uniform(shape: &[usize], fan_in: usize, random: &mut Random) -> ArrayD<f32> {
    uniform(shape, (6.0 / fan_in.max(1) as f32).sqrt(), random)
}

/// Uniform between `±sqrt(6 / (fan_in + fan_out))`: for sigmoid and tanh, in both directions.
///
/// Glorot, Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010.
pub fn xavier_uniform(shape: &[usize], fan_in: usize, fan_out: usize, random: &mut Random) -> ArrayD<f32> {
    uniform(shape, (6.0 / fan_in.saturating_add(fan_out).max(1) as f32).sqrt(), random)
}

fn uniform(shape: &[usize], bound: f32, random: &mut Random) -> ArrayD<f32> {
    ArrayD::from_shape_simple_fn(IxDyn(shape), || random.uniform(-bound, bound))
}
