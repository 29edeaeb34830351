//! Sums, products, minima and maxima of tensors, element by element.

use super::Float;
use crate::error::{Error, check_len};
use crate::extremum::Extremum;

/// `y = terms[0] + terms[1] + ...`
///
/// # Errors
/// [`Error::Length`] unless each term is as long as `y`.
pub fn sum_forward<T: Float>(terms: &[&[T]], y: &mut [T]) -> Result<(), Error> {
    fold(terms, y, T::ZERO, |sum, term| sum + term)
}

/// `y = factors[0] * factors[1] * ...`
///
/// # Errors
/// [`Error::Length`] unless each factor is as long as `y`.
pub fn product_forward<T: Float>(factors: &[&[T]], y: &mut [T]) -> Result<(), Error> {
    fold(factors, y, T::ONE, |product, factor| product * factor)
}

/// The gradient of each factor: `dx = dy * (the product of the others)`.
///
/// # Errors
/// [`Error::Length`] unless all slices are of one length.
pub fn product_backward<T: Float>(factors: &[&[T]], which: usize, dy: &[T], dx: &mut [T]) -> Result<(), Error> {
    check_len("dy", dx.len(), dy.len())?;
    for factor in factors {
        check_len("factors", dx.len(), factor.len())?;
    }
    for i in 0..dx.len() {
        dx[i] = dy[i];
        for (other, factor) in factors.iter().enumerate() {
            if other != which {
                dx[i] = dx[i] * factor[i];
            }
        }
    }
    Ok(())
}

/// `y = min(inputs[0], inputs[1], ...)`, or the maximum; NaN where any input is.
///
/// # Errors
/// [`Error::Length`] unless each input is as long as `y`.
pub fn extremum_forward<T: Float>(extremum: Extremum, inputs: &[&[T]], y: &mut [T]) -> Result<(), Error> {
    match extremum {
        Extremum::Minimum => {
            fold(inputs, y, -T::NEG_INFINITY, |least, x| if x < least || x.is_nan() { x } else { least })
        }
        Extremum::Maximum => {
            fold(inputs, y, T::NEG_INFINITY, |largest, x| if x > largest || x.is_nan() { x } else { largest })
        }
    }
}

/// The gradient of an input of either: `dx = dy` where `x` equals the output `y`, else 0.
///
/// # Errors
/// [`Error::Length`] unless all slices are of one length.
pub fn extremum_backward<T: Float>(x: &[T], y: &[T], dy: &[T], dx: &mut [T]) -> Result<(), Error> {
    for (argument, operand) in [("x", x), ("y", y), ("dy", dy)] {
        check_len(argument, dx.len(), operand.len())?;
    }
    for i in 0..dx.len() {
        dx[i] = if x[i] == y[i] { dy[i] } else { T::ZERO };
    }
    Ok(())
}

/// The inputs joined from left to right; `empty` where there are none.
fn fold<T: Float>(inputs: &[&[T]], y: &mut [T], empty: T, join: impl Fn(T, T) -> T) -> Result<(), Error> {
    for input in inputs {
        check_len("inputs", y.len(), input.len())?;
    }
    for i in 0..y.len() {
        y[i] = inputs.iter().map(|input| input[i]).reduce(&join).unwrap_or(empty);
    }
    Ok(())
}
