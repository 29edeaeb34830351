//! Softmax, its logarithm and the cross-entropy, row by row.

use super::Float;
use crate::error::{Error, check_len, checked_len};

fn check<const N: usize>(shape: [usize; 2], lengths: [(&'static str, usize); N]) -> Result<(), Error> {
    let len = checked_len("shape", &shape)?;
    for (argument, given) in lengths {
        check_len(argument, len, given)?;
    }
    Ok(())
}

/// The maximum (NaN if there is one) and the sum of `exp(x - maximum)`.
fn maximum_and_sum<T: Float>(x: &[T]) -> (T, T) {
    let mut maximum = T::NEG_INFINITY;
    for &x in x {
        if x > maximum || x.is_nan() {
            maximum = x;
        }
    }
    let mut sum = T::ZERO;
    for &x in x {
        sum += (x - maximum).exp();
    }
    (maximum, sum)
}

/// `y = exp(x - m) / sum of exp(x - m)`, `m` the maximum, for each of `shape = [rows, columns]`.
///
/// # Errors
/// [`Error::Length`] for a slice of another length.
pub fn softmax_forward<T: Float>(shape: [usize; 2], x: &[T], y: &mut [T]) -> Result<(), Error> {
    check(shape, [("x", x.len()), ("y", y.len())])?;
    let [rows, columns] = shape;
    for row in 0..rows {
        let (maximum, sum) = maximum_and_sum(&x[row * columns..][..columns]);
        for i in row * columns..(row + 1) * columns {
            y[i] = (x[i] - maximum).exp() / sum;
        }
    }
    Ok(())
}

/// `y = (x - m) - ln(sum of exp(x - m))`, `m` the maximum, for each of `shape = [rows, columns]`.
///
/// # Errors
/// [`Error::Length`] for a slice of another length.
pub fn log_softmax_forward<T: Float>(shape: [usize; 2], x: &[T], y: &mut [T]) -> Result<(), Error> {
    check(shape, [("x", x.len()), ("y", y.len())])?;
    let [rows, columns] = shape;
    for row in 0..rows {
        let (maximum, sum) = maximum_and_sum(&x[row * columns..][..columns]);
        for i in row * columns..(row + 1) * columns {
            y[i] = (x[i] - maximum) - sum.ln();
        }
    }
    Ok(())
}

/// `dx[i] = sum over j of dy[j] * dy_j/dx_i = y[i] (dy[i] - sum of dy y)`
///
/// # Errors
/// [`Error::Length`] for a slice of another length.
pub fn softmax_backward<T: Float>(shape: [usize; 2], y: &[T], dy: &[T], dx: &mut [T]) -> Result<(), Error> {
    check(shape, [("y", y.len()), ("dy", dy.len()), ("dx", dx.len())])?;
    let [rows, columns] = shape;
    for row in 0..rows {
        let mut sum = T::ZERO;
        for i in row * columns..(row + 1) * columns {
            sum += dy[i] * y[i];
        }
        for i in row * columns..(row + 1) * columns {
            dx[i] = y[i] * (dy[i] - sum);
        }
    }
    Ok(())
}

/// `dx[i] = dy[i] - exp(y[i]) sum of dy`
///
/// # Errors
/// [`Error::Length`] for a slice of another length.
pub fn log_softmax_backward<T: Float>(shape: [usize; 2], y: &[T], dy: &[T], dx: &mut [T]) -> Result<(), Error> {
    check(shape, [("y", y.len()), ("dy", dy.len()), ("dx", dx.len())])?;
    let [rows, columns] = shape;
    for row in 0..rows {
        let mut sum = T::ZERO;
        for i in row * columns..(row + 1) * columns {
            sum += dy[i];
        }
        for i in row * columns..(row + 1) * columns {
            dx[i] = dy[i] - y[i].exp() * sum;
        }
    }
    Ok(())
}

/// Cross-entropy of `softmax(logits)` and integer targets: the losses of the rows, the gradient of their mean, the
/// mean.
///
/// # Errors
/// [`Error::Length`] for a slice of another length, [`Error::Invalid`] for no rows and for a target that is no class.
pub fn softmax_cross_entropy<T: Float>(
    shape: [usize; 2],
    logits: &[T],
    targets: &[usize],
    losses: &mut [T],
    gradient: &mut [T],
) -> Result<T, Error> {
    let [rows, classes] = shape;
    check(shape, [("logits", logits.len()), ("gradient", gradient.len())])?;
    check_len("targets", rows, targets.len())?;
    check_len("losses", rows, losses.len())?;
    if rows == 0 {
        return Err(Error::invalid("rows", "at least 1, for a mean", rows));
    }
    if let Some(target) = targets.iter().find(|&&target| target >= classes) {
        return Err(Error::invalid("targets", format!("classes below {classes}"), target));
    }
    let count = T::from_f64(rows as f64);
    let mut total = T::ZERO;
    for row in 0..rows {
        let z = &logits[row * classes..][..classes];
        let (maximum, sum) = maximum_and_sum(z);
        losses[row] = sum.ln() + (maximum - z[targets[row]]);
        total += losses[row];
        for class in 0..classes {
            let probability = (z[class] - maximum).exp() / sum;
            let expected = if class == targets[row] { T::ONE } else { T::ZERO };
            gradient[row * classes + class] = (probability - expected) / count;
        }
    }
    Ok(total / count)
}

/// The mean of `(prediction - target)^2`, and its gradient with respect to the prediction.
///
/// # Errors
/// [`Error::Length`] for slices of different lengths, [`Error::Invalid`] for no elements at all.
pub fn mean_squared_error<T: Float>(prediction: &[T], target: &[T], gradient: &mut [T]) -> Result<T, Error> {
    check_len("target", prediction.len(), target.len())?;
    check_len("gradient", prediction.len(), gradient.len())?;
    if prediction.is_empty() {
        return Err(Error::invalid("prediction", "at least 1 element, for a mean", 0));
    }
    let count = T::from_f64(prediction.len() as f64);
    let mut sum = T::ZERO;
    for i in 0..prediction.len() {
        let difference = prediction[i] - target[i];
        sum += difference * difference;
        gradient[i] = T::from_f64(2.0) * difference / count;
    }
    Ok(sum / count)
}
