//! The linear layer as in a lecture. `x` is `[batch, inputs]`, `w` is `[outputs, inputs]`, `dy` is `[batch, outputs]`.

use super::Float;
use crate::error::{Error, check_len, checked_len};

/// `y[b, o] = sum over i of x[b, i] * w[o, i] + bias[o]`, before the activation.
///
/// # Errors
/// [`Error::Length`] for a slice of another length.
pub fn linear_forward<T: Float>(
    [batch, inputs, outputs]: [usize; 3],
    x: &[T],
    w: &[T],
    bias: Option<&[T]>,
    y: &mut [T],
) -> Result<(), Error> {
    check_len("x", checked_len("x", &[batch, inputs])?, x.len())?;
    check_len("w", checked_len("w", &[outputs, inputs])?, w.len())?;
    check_len("bias", outputs, bias.map_or(outputs, <[T]>::len))?;
    check_len("y", checked_len("y", &[batch, outputs])?, y.len())?;
    for b in 0..batch {
        for o in 0..outputs {
            let mut sum = T::ZERO;
            for i in 0..inputs {
                sum += x[b * inputs + i] * w[o * inputs + i];
            }
            y[b * outputs + o] = match bias {
                Some(bias) => sum + bias[o],
                None => sum,
            };
        }
    }
    Ok(())
}

/// `dx[b, i] = sum over o of dy[b, o] * w[o, i]`, `dw[o, i] = sum over b of dy[b, o] * x[b, i]`, and
/// `db[o] = sum over b of dy[b, o]`.
///
/// # Errors
/// [`Error::Length`] for a slice of another length.
pub fn linear_backward<T: Float>(
    [batch, inputs, outputs]: [usize; 3],
    x: &[T],
    w: &[T],
    dy: &[T],
    dx: &mut [T],
    dw: &mut [T],
    db: &mut [T],
) -> Result<(), Error> {
    check_len("x", checked_len("x", &[batch, inputs])?, x.len())?;
    check_len("w", checked_len("w", &[outputs, inputs])?, w.len())?;
    check_len("dy", checked_len("dy", &[batch, outputs])?, dy.len())?;
    check_len("dx", x.len(), dx.len())?;
    check_len("dw", w.len(), dw.len())?;
    check_len("db", outputs, db.len())?;
    dx.fill(T::ZERO);
    dw.fill(T::ZERO);
    db.fill(T::ZERO);
    for b in 0..batch {
        for o in 0..outputs {
            let dy = dy[b * outputs + o];
            for i in 0..inputs {
                dx[b * inputs + i] += dy * w[o * inputs + i];
                dw[o * inputs + i] += dy * x[b * inputs + i];
            }
            db[o] += dy;
        }
    }
    Ok(())
}
