//! Activations, element by element.

use super::Float;
use crate::activation::Activation;
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
