//! Gradients kept within bounds, so that one steep place does not throw the weights far away.
//!
//! ```text
//! clip_norm     g = g * min(1, most / (|all gradients| + 1e-6))     direction kept
//! clip_value    g = min(max(g, -most), most)                        each element on its own
//! ```
//!
//! Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks", ICML 2013, with the 1e-6 that
//! PyTorch adds.

use kernels::{Activation, activation, optimizer};

use crate::error::{Error, Result};
use crate::network::Network;

/// Scales the gradients of all parameters down so that their norm, taken together, is at most `most`. Gives the norm
/// that they had.
///
/// ```
/// use nn::{Linear, Network, clip_norm, tensor};
/// let mut network = Network::new(Linear::with_weights(ndarray::array![[0.0, 0.0]].into_dyn(), None)?);
/// network.forward(&tensor(&[1, 2], vec![3.0, 4.0])?)?;
/// network.backward(&tensor(&[1, 1], vec![1.0])?)?;
/// assert!((clip_norm(&mut network, 1.0)? - 5.0).abs() < 1e-6);
/// network.visit(|_, weight| assert!((weight.gradient_elements()[0] - 0.6).abs() < 1e-6));
/// # Ok::<(), nn::Error>(())
/// ```
///
/// # Errors
/// [`Error::Invalid`] for a `most` that is negative or NaN, and for gradients that are not all finite: these no factor
/// can repair. Gradients stay as they are then.
pub fn clip_norm(network: &mut Network, most: f32) -> Result<f64> {
    check(most)?;
    let parallelism = network.parallelism();
    let (mut squares, mut result) = (0.0, Ok(()));
    network.visit(|name, parameter| match optimizer::norm(parameter.gradient_elements(), parallelism) {
        Ok(norm) if norm.is_finite() => squares += norm * norm,
        Ok(norm) if result.is_ok() => {
            result = Err(Error::invalid("gradient", "finite numbers", format!("a norm of {norm} in {name}")));
        }
        Err(error) if result.is_ok() => result = Err(error.into()),
        _ => {}
    });
    result?;
    let norm = squares.sqrt();
    let factor = (most as f64 / (norm + 1e-6)).min(1.0) as f32;
    if factor < 1.0 {
        change(network, |gradient, parallelism| optimizer::scale(factor, gradient, parallelism))?;
    }
    Ok(norm)
}

/// Brings each element of the gradients of all parameters between `-most` and `most`. NaN stays NaN.
///
/// # Errors
/// [`Error::Invalid`] for a `most` that is negative or NaN.
pub fn clip_value(network: &mut Network, most: f32) -> Result<()> {
    check(most)?;
    let clamp = Activation::Clamp { low: -most, high: most };
    change(network, |gradient, parallelism| activation::forward_in_place(clamp, gradient, parallelism))
}

fn check(most: f32) -> Result<()> {
    if most >= 0.0 { Ok(()) } else { Err(Error::invalid("most", "at least 0", most)) }
}

/// Changes the gradient of each parameter.
fn change(
    network: &mut Network,
    change: impl Fn(&mut [f32], kernels::Parallelism<'static>) -> std::result::Result<(), kernels::Error>,
) -> Result<()> {
    let (parallelism, mut result) = (network.parallelism(), Ok(()));
    network.visit(|_, parameter| {
        if result.is_ok() {
            result = change(parameter.elements_and_gradient().1, parallelism);
        }
    });
    Ok(result?)
}
