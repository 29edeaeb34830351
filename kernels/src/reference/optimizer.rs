//! One step of each optimiser, element by element.

use super::Float;
use crate::error::{Error, check_len};
use crate::optimizer::{Adam, Descent};

/// `g = gradient + decay * w`, `v = momentum * v + g`, `w -= rate * v`; Nesterov's `w -= rate * (g + momentum * v)`.
///
/// # Errors
/// [`Error::Length`] for slices of different lengths.
pub fn descent_step<T: Float>(
    spec: &Descent,
    value: &mut [T],
    gradient: &[T],
    velocity: &mut [T],
) -> Result<(), Error> {
    check_len("gradient", value.len(), gradient.len())?;
    check_len("velocity", value.len(), velocity.len())?;
    let [rate, momentum, decay] = [spec.rate, spec.momentum, spec.decay].map(T::from_f64);
    for i in 0..value.len() {
        let g = gradient[i] + decay * value[i];
        velocity[i] = momentum * velocity[i] + g;
        let direction = if spec.nesterov { g + momentum * velocity[i] } else { velocity[i] };
        value[i] = value[i] - rate * direction;
    }
    Ok(())
}

/// Algorithm 1 of Kingma and Ba, for step `count` (from 1), and algorithm 2 of Loshchilov and Hutter.
///
/// # Errors
/// [`Error::Length`] for slices of different lengths.
pub fn adam_step<T: Float>(
    spec: &Adam,
    count: u64,
    value: &mut [T],
    gradient: &[T],
    mean: &mut [T],
    variance: &mut [T],
) -> Result<(), Error> {
    check_len("gradient", value.len(), gradient.len())?;
    check_len("mean", value.len(), mean.len())?;
    check_len("variance", value.len(), variance.len())?;
    let [rate, epsilon, decay] = [spec.rate, spec.epsilon, spec.decay].map(T::from_f64);
    let [beta1, beta2] = spec.betas.map(T::from_f64);
    let (mut power1, mut power2) = (T::ONE, T::ONE);
    for _ in 0..count {
        power1 = power1 * beta1;
        power2 = power2 * beta2;
    }
    for i in 0..value.len() {
        let mut g = gradient[i];
        if spec.decoupled {
            value[i] = value[i] - rate * decay * value[i];
        } else {
            g += decay * value[i];
        }
        mean[i] = beta1 * mean[i] + (T::ONE - beta1) * g;
        variance[i] = beta2 * variance[i] + (T::ONE - beta2) * g * g;
        let mean_hat = mean[i] / (T::ONE - power1);
        let variance_hat = variance[i] / (T::ONE - power2);
        value[i] = value[i] - rate * mean_hat / (variance_hat.sqrt() + epsilon);
    }
    Ok(())
}
