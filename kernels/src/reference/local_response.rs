//! Local response normalisation, pixel by pixel.

use super::Float;
use crate::error::{Error, check_len, checked_len};
use crate::local_response::LocalResponse;

/// `s`, by which element `[n, c, pixel]` is divided.
fn scale<T: Float>(norm: &LocalResponse, channels: usize, c: usize, x: impl Fn(usize) -> T) -> T {
    let mut sum = T::ZERO;
    for other in 0..channels {
        if other + norm.size / 2 >= c && other <= c + (norm.size - 1) / 2 {
            sum += x(other) * x(other);
        }
    }
    T::from_f64(norm.k.into()) + T::from_f64(norm.alpha.into()) / T::from_f64(norm.size as f64) * sum
}

fn power<T: Float>(base: T, exponent: T) -> T {
    (exponent * base.ln()).exp()
}

/// `y = x / s^beta` over `[batch, channels, pixels]`.
///
/// # Errors
/// Those of [`LocalResponse::check`], and [`Error::Length`] for a slice of another length.
pub fn local_response_forward<T: Float>(
    norm: &LocalResponse,
    shape: [usize; 3],
    x: &[T],
    y: &mut [T],
) -> Result<(), Error> {
    norm.check()?;
    let len = checked_len("shape", &shape)?;
    check_len("x", len, x.len())?;
    check_len("y", len, y.len())?;
    let [batch, channels, pixels] = shape;
    for n in 0..batch {
        for c in 0..channels {
            for pixel in 0..pixels {
                let at = |c: usize| (n * channels + c) * pixels + pixel;
                let s = scale(norm, channels, c, |c| x[at(c)]);
                y[at(c)] = x[at(c)] * power(s, T::from_f64(-f64::from(norm.beta)));
            }
        }
    }
    Ok(())
}

/// The gradient of the input: `dx[c] = sum over c' of dy[c'] * d y[c'] / d x[c]`.
///
/// # Errors
/// Those of [`local_response_forward`].
pub fn local_response_backward<T: Float>(
    norm: &LocalResponse,
    shape: [usize; 3],
    x: &[T],
    dy: &[T],
    dx: &mut [T],
) -> Result<(), Error> {
    norm.check()?;
    let len = checked_len("shape", &shape)?;
    check_len("x", len, x.len())?;
    check_len("dy", len, dy.len())?;
    check_len("dx", len, dx.len())?;
    let [batch, channels, pixels] = shape;
    let beta = T::from_f64(norm.beta.into());
    let slope = T::from_f64(2.0 * f64::from(norm.alpha) / norm.size as f64);
    for n in 0..batch {
        for c in 0..channels {
            for pixel in 0..pixels {
                let at = |c: usize| (n * channels + c) * pixels + pixel;
                let mut sum = T::ZERO;
                for other in 0..channels {
                    let s = scale(norm, channels, other, |c| x[at(c)]);
                    if other == c {
                        sum += dy[at(c)] * power(s, -beta);
                    }
                    if c + norm.size / 2 >= other && c <= other + (norm.size - 1) / 2 {
                        let through = -beta * slope * x[at(c)] * x[at(other)] * power(s, -beta - T::ONE);
                        sum += dy[at(other)] * through;
                    }
                }
                dx[at(c)] = sum;
            }
        }
    }
    Ok(())
}
