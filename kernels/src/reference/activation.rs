//! Activations, element by element.

use super::Float;
use super::special::{normal_cdf, normal_density};
use crate::activation::Activation;
use crate::activation::gated::Gated;
use crate::error::{Error, check_len};

fn function<T: Float>(activation: Activation, x: T) -> T {
    match activation {
        Activation::Identity => x,
        Activation::Relu if x <= T::ZERO => T::ZERO,
        Activation::Relu => x,
        Activation::Clamp { low, .. } if x < T::from_f64(low.into()) => T::from_f64(low.into()),
        Activation::Clamp { high, .. } if x > T::from_f64(high.into()) => T::from_f64(high.into()),
        Activation::Clamp { .. } => x,
        Activation::Sigmoid => T::ONE / (T::ONE + (-x).exp()),
        Activation::Tanh => x.tanh(),
    }
}

fn derivative<T: Float>(activation: Activation, y: T) -> T {
    match activation {
        Activation::Identity => T::ONE,
        Activation::Relu if y <= T::ZERO => T::ZERO,
        Activation::Clamp { low, high } if y <= T::from_f64(low.into()) || y >= T::from_f64(high.into()) => T::ZERO,
        Activation::Relu | Activation::Clamp { .. } => T::ONE,
        Activation::Sigmoid => y * (T::ONE - y),
        Activation::Tanh => T::ONE - y * y,
    }
}

/// `y = activation(x)`
///
/// # Errors
/// [`Error::Length`] for slices of different lengths.
pub fn activation_forward<T: Float>(activation: Activation, x: &[T], y: &mut [T]) -> Result<(), Error> {
    check_len("y", x.len(), y.len())?;
    for i in 0..x.len() {
        y[i] = function(activation, x[i]);
    }
    Ok(())
}

/// `dx = dy * activation'`, from the output `y`. Where the derivative is 0 so is `dx`, whatever `dy` is.
///
/// # Errors
/// [`Error::Length`] for slices of different lengths.
pub fn activation_backward<T: Float>(activation: Activation, y: &[T], dy: &[T], dx: &mut [T]) -> Result<(), Error> {
    check_len("dy", y.len(), dy.len())?;
    check_len("dx", y.len(), dx.len())?;
    for i in 0..y.len() {
        let slope = derivative(activation, y[i]);
        dx[i] = if slope == T::ZERO { T::ZERO } else { dy[i] * slope };
    }
    Ok(())
}

/// The gate by which `x` is multiplied, and its derivative.
fn gate(activation: Gated, x: f64) -> (f64, f64) {
    // Of a logistic function of `a`; either form is finite.
    let logistic = |a: f64, da: f64| {
        let e = (-a.abs()).exp();
        let s = if a < 0.0 { e / (1.0 + e) } else { 1.0 / (1.0 + e) };
        (s, e / (1.0 + e) / (1.0 + e) * da)
    };
    match activation {
        Gated::Gelu => (normal_cdf(x), normal_density(x)),
        Gated::GeluTanh => {
            let scale = 2.0 * (2.0 / std::f64::consts::PI).sqrt();
            logistic(scale * (x + 0.044715 * x * x * x), scale * (1.0 + 3.0 * 0.044715 * x * x))
        }
        Gated::GeluQuick => logistic(1.702 * x, 1.702),
        Gated::Silu => logistic(x, 1.0),
    }
}

/// `y = x * gate(x)`; -0 at -infinity. The gate is computed in f64.
///
/// # Errors
/// [`Error::Length`] for slices of different lengths.
pub fn gated_forward<T: Float>(activation: Gated, x: &[T], y: &mut [T]) -> Result<(), Error> {
    check_len("y", x.len(), y.len())?;
    for i in 0..x.len() {
        let x = x[i].to_f64();
        y[i] = T::from_f64(if x == f64::NEG_INFINITY { -0.0 } else { x * gate(activation, x).0 });
    }
    Ok(())
}

/// `dx = dy * (gate(x) + x * gate'(x))`, the second term 0 where `gate'` is.
///
/// # Errors
/// [`Error::Length`] for slices of different lengths.
pub fn gated_backward<T: Float>(activation: Gated, x: &[T], dy: &[T], dx: &mut [T]) -> Result<(), Error> {
    check_len("dy", x.len(), dy.len())?;
    check_len("dx", x.len(), dx.len())?;
    for i in 0..x.len() {
        let x = x[i].to_f64();
        let (gate, slope) = gate(activation, x);
        // At infinity a slope of 0 was multiplied by infinity.
        let term = if slope == 0.0 || x.is_infinite() { 0.0 } else { x * slope };
        dx[i] = T::from_f64(dy[i].to_f64() * (gate + term));
    }
    Ok(())
}
