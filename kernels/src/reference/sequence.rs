//! What sequences go through: rotary position embedding, embedding look-up, dropout.

use super::Float;
use crate::dropout::Dropout;
use crate::error::{Error, check_len, checked_len};
use crate::philox::word;
use crate::rotary::{Pairing, Shape};

/// Turns pairs of each head by `sign` times the angle of their position; `sign` is 1 forward and -1 backward.
///
/// # Errors
/// [`Error::Length`] for a slice that does not fit, [`Error::Invalid`] for an odd `dim` or one beyond `head_dim`.
#[allow(clippy::too_many_arguments)]
pub fn rotary<T: Float>(
    pairing: Pairing,
    dim: usize,
    base: f64,
    shape: Shape,
    offset: usize,
    sign: f64,
    x: &[T],
    y: &mut [T],
) -> Result<(), Error> {
    let Shape { outer, length, inner, head_dim } = shape;
    let len = checked_len("shape", &[outer, length, inner, head_dim])?;
    check_len("x", len, x.len())?;
    check_len("y", len, y.len())?;
    if !dim.is_multiple_of(2) || dim > head_dim {
        return Err(Error::invalid("dim", format!("an even number up to {head_dim}"), dim));
    }
    y.copy_from_slice(x);
    for row in 0..outer * length * inner {
        let position = (offset + row / inner % length) as f64;
        for i in 0..dim / 2 {
            let angle = sign * position / base.powf(2.0 * i as f64 / dim as f64);
            let (cos, sin) = (T::from_f64(angle.cos()), T::from_f64(angle.sin()));
            let (a, b) = match pairing {
                Pairing::Interleaved => (row * head_dim + 2 * i, row * head_dim + 2 * i + 1),
                Pairing::Half => (row * head_dim + i, row * head_dim + i + dim / 2),
            };
            y[a] = x[a] * cos - x[b] * sin;
            y[b] = x[a] * sin + x[b] * cos;
        }
    }
    Ok(())
}

/// `y[i, :] = table[indices[i], :]`
///
/// # Errors
/// [`Error::Length`] for a slice that does not fit, [`Error::Invalid`] for an index that is no row.
pub fn embedding_forward<T: Float>(
    [rows, columns]: [usize; 2],
    table: &[T],
    indices: &[usize],
    y: &mut [T],
) -> Result<(), Error> {
    check_len("table", checked_len("shape", &[rows, columns])?, table.len())?;
    check_len("y", checked_len("indices", &[indices.len(), columns])?, y.len())?;
    for (i, &index) in indices.iter().enumerate() {
        if index >= rows {
            return Err(Error::invalid("indices", format!("rows below {rows}"), index));
        }
        for c in 0..columns {
            y[i * columns + c] = table[index * columns + c];
        }
    }
    Ok(())
}

/// `dtable[indices[i], :] += dy[i, :]`
///
/// # Errors
/// [`Error::Length`] for a slice that does not fit, [`Error::Invalid`] for an index that is no row.
pub fn embedding_backward<T: Float>(
    [rows, columns]: [usize; 2],
    indices: &[usize],
    dy: &[T],
    dtable: &mut [T],
) -> Result<(), Error> {
    check_len("dtable", checked_len("shape", &[rows, columns])?, dtable.len())?;
    check_len("dy", checked_len("indices", &[indices.len(), columns])?, dy.len())?;
    for (i, &index) in indices.iter().enumerate() {
        if index >= rows {
            return Err(Error::invalid("indices", format!("rows below {rows}"), index));
        }
        for c in 0..columns {
            dtable[index * columns + c] += dy[i * columns + c];
        }
    }
    Ok(())
}

/// `y[i] = x[i] / keep` where the random word of `i` is below, +0 elsewhere. Backward is the same with `dy` as `x`.
///
/// # Errors
/// [`Error::Length`] unless `y` is as long as `x`, [`Error::Invalid`] for a probability outside of 0 to 1.
pub fn dropout<T: Float>(dropout: &Dropout, x: &[T], y: &mut [T]) -> Result<(), Error> {
    check_len("y", x.len(), y.len())?;
    let kept = dropout.kept()?;
    for i in 0..x.len() {
        let is_kept = word(i as u64, dropout.stream, dropout.key()) >> 8 < kept;
        y[i] = if is_kept { x[i] * T::from_f64(f64::from(1 << 24) / f64::from(kept)) } else { T::ZERO };
    }
    Ok(())
}
