//! RMS norm: each row by its own root mean square, each column by its own scale; nothing is subtracted or added.
//!
//! Source: B. Zhang, R. Sennrich, "Root Mean Square Layer Normalization" (2019). The formulas are in [`norm`](super).

use crate::error::{Error, check_len, checked_len};
use crate::execution::Execution;

use super::{Affine, Gradients, check_epsilon, check_workspace, row};

/// `y = x gamma / sqrt(mean of x^2 + epsilon)` for each row of `shape = [rows, columns]`.
///
/// ```
/// use kernels::Parallelism;
/// use kernels::norm::rms;
/// let mut y = [0.0; 2];
/// rms::forward([1, 2], &[1.0, 7.0], Some(&[5.0, 5.0]), 0.0, &mut y, Parallelism::Serial)?;
/// assert!((y[0] - 1.0).abs() < 1e-6 && (y[1] - 7.0).abs() < 1e-6);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`] for a slice that does not fit `shape`, [`Error::Invalid`] for an `epsilon` that is negative or not
/// finite, [`Error::Overflow`].
pub fn forward<'t>(
    shape: [usize; 2],
    x: &[f32],
    gamma: Option<&[f32]>,
    epsilon: f32,
    y: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    let len = checked_len("shape", &shape)?;
    check_len("x", len, x.len())?;
    let affine = Affine { gamma, beta: None };
    affine.check(shape[1])?;
    check_epsilon(epsilon)?;
    check_len("y", len, y.len())?;
    row::forward::<false>(shape[1], x, affine, epsilon, y, execution.into())
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
/// use kernels::norm::{Gradients, rms};
/// use kernels::{Parallelism, Workspace};
/// let (mut dx, mut dgamma) = ([0.0; 2], [0.0; 2]);
/// let mut workspace = Workspace::with_len(rms::backward_workspace_len([1, 2])?)?;
/// rms::backward(
///     [1, 2], &[1.0, 7.0], None, &[1.0, 7.0], 0.0,
///     Gradients { dx: &mut dx, dgamma: Some(&mut dgamma), dbeta: None }, &mut workspace, Parallelism::Serial,
/// )?;
/// assert!(dx.iter().all(|d| d.abs() < 1e-6)); // a longer row gives the same
/// assert!((dgamma[0] - 0.2).abs() < 1e-6 && (dgamma[1] - 9.8).abs() < 1e-5);
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
    row::backward::<false>(shape, x, gamma, dy, epsilon, gradients, workspace, execution.into())
}
