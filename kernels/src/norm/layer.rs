//! Layer norm: each row by its own mean and variance, each column by its own scale and shift.
//!
//! Source: J. Ba, J. Kiros, G. Hinton, "Layer Normalization" (2016). The formulas are in [`norm`](super).

use crate::error::{Error, check_len, checked_len};
use crate::execution::Execution;

use super::{Affine, Gradients, check_epsilon, check_workspace, row};

/// `y = x^ gamma + beta` for each row of `shape = [rows, columns]`.
///
/// ```
/// use kernels::Parallelism;
/// use kernels::norm::{Affine, layer};
/// let mut y = [0.0; 4];
/// layer::forward([2, 2], &[1.0, 3.0, 5.0, 5.0], Affine::default(), 0.0001, &mut y, Parallelism::Serial)?;
/// assert!((y[0] + 1.0).abs() < 1e-4 && (y[1] - 1.0).abs() < 1e-4);
/// assert_eq!(y[2..], [0.0, 0.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`] for a slice that does not fit `shape`, [`Error::Invalid`] for an `epsilon` that is negative or not
/// finite, [`Error::Overflow`].
pub fn forward<'t>(
    shape: [usize; 2],
    x: &[f32],
    affine: Affine,
    epsilon: f32,
    y: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    let len = checked_len("shape", &shape)?;
    check_len("x", len, x.len())?;
    affine.check(shape[1])?;
    check_epsilon(epsilon)?;
    check_len("y", len, y.len())?;
    row::forward::<true>(shape[1], x, affine, epsilon, y, execution.into())
}

/// Elements of scratch memory that [`backward`] needs.
///
/// # Errors
/// [`Error::Overflow`].
pub fn backward_workspace_len(shape: [usize; 2]) -> Result<usize, Error> {
    checked_len("shape", &shape)?;
    Ok(row::workspace_len(shape))
}

/// The gradients of [`forward`] from its input `x` and the gradient `dy` of its output.
///
/// Sums over rows run through at most 32 pieces, one row after the other.
///
/// ```
/// use kernels::norm::{Gradients, layer};
/// use kernels::{Parallelism, Workspace};
/// let (mut dx, mut dbeta) = ([0.0; 4], [0.0; 2]);
/// let mut workspace = Workspace::with_len(layer::backward_workspace_len([2, 2])?)?;
/// layer::backward(
///     [2, 2], &[1.0, 3.0, 0.0, 4.0], None, &[1.0, 1.0, 2.0, 2.0], 1e-5,
///     Gradients { dx: &mut dx, dgamma: None, dbeta: Some(&mut dbeta) }, &mut workspace, Parallelism::Serial,
/// )?;
/// assert_eq!(dbeta, [3.0, 3.0]);
/// assert_eq!(dx, [0.0; 4]); // a constant added to a row changes nothing
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// Those of [`forward`], and [`Error::Length`] for a workspace shorter than [`backward_workspace_len`].
#[allow(clippy::too_many_arguments)]
pub fn backward<'t>(
    shape: [usize; 2],
    x: &[f32],
    gamma: Option<&[f32]>,
    dy: &[f32],
    epsilon: f32,
    gradients: Gradients,
    workspace: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    let len = checked_len("shape", &shape)?;
    check_len("x", len, x.len())?;
    Affine { gamma, beta: None }.check(shape[1])?;
    check_len("dy", len, dy.len())?;
    check_epsilon(epsilon)?;
    gradients.check(len, shape[1])?;
    check_workspace(row::workspace_len(shape), workspace.len())?;
    row::backward::<true>(shape, x, gamma, dy, epsilon, gradients, workspace, execution.into())
}
