//! Rows scaled to unit length.

use super::Float;
use crate::error::{Error, check_len, checked_len};

/// `y = x / sqrt(sum of x^2)` for each of `shape = [rows, columns]`; a row of zeros stays one.
///
/// # Errors
/// [`Error::Length`] for a slice of another length.
pub fn normalize_forward<T: Float>(shape: [usize; 2], x: &[T], y: &mut [T]) -> Result<(), Error> {
    let len = checked_len("shape", &shape)?;
    check_len("x", len, x.len())?;
    check_len("y", len, y.len())?;
    let [rows, columns] = shape;
    for row in 0..rows {
        let mut squares = T::ZERO;
        for i in row * columns..(row + 1) * columns {
            squares += x[i] * x[i];
        }
        for i in row * columns..(row + 1) * columns {
            y[i] = if squares == T::ZERO { T::ZERO } else { x[i] / squares.sqrt() };
        }
    }
    Ok(())
}

/// `dx = (dy - y (sum of dy y)) / length` for each row, from the output `y`.
///
/// # Errors
/// [`Error::Length`] for a slice of another length.
pub fn normalize_backward<T: Float>(
    shape: [usize; 2],
    y: &[T],
    lengths: &[T],
    dy: &[T],
    dx: &mut [T],
) -> Result<(), Error> {
    let len = checked_len("shape", &shape)?;
    let [rows, columns] = shape;
    check_len("y", len, y.len())?;
    check_len("lengths", rows, lengths.len())?;
    check_len("dy", len, dy.len())?;
    check_len("dx", len, dx.len())?;
    for row in 0..rows {
        let mut sum = T::ZERO;
        for i in row * columns..(row + 1) * columns {
            sum += dy[i] * y[i];
        }
        for i in row * columns..(row + 1) * columns {
            dx[i] = (dy[i] - y[i] * sum) / lengths[row];
        }
    }
    Ok(())
}
