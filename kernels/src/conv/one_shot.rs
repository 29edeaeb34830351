//! Convolutions in one call, for whoever does not keep a plan.

use super::backward::Conv2dBackward;
use super::plan::Conv2d;
use super::spec::{Conv2dSpec, Shape};
use crate::error::Error;
use crate::parallel::Parallelism;
use crate::workspace::Workspace;

/// A convolution in one call: makes a plan, allocates a workspace, runs on the current rayon pool. Whoever convolves
/// more than once with the same weights makes a [`Conv2d`] and keeps it.
///
/// # Errors
/// Those of [`Conv2d::new`] and [`Conv2d::forward`], and [`Error::OutOfMemory`].
///
/// ```
/// use kernels::conv::{Conv2dSpec, Padding, Shape, conv2d};
/// let spec = Conv2dSpec::new(1, 1, [3, 3]).padding(Padding::all(1));
/// let mut output = [0.0; 4];
/// conv2d(spec, Shape::new(1, 2, 2), &[1.0, 2.0, 3.0, 4.0], &[1.0; 9], Some(&[0.5]), &mut output)?;
/// assert_eq!(output, [10.5; 4]);
/// # Ok::<(), kernels::Error>(())
/// ```
pub fn conv2d(
    spec: Conv2dSpec,
    shape: Shape,
    x: &[f32],
    weights: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
) -> Result<(), Error> {
    run(spec, shape, x, weights, bias, None, y)
}

/// As [`conv2d`], with a residual that is added before the activation: `y = activation(x * w + bias + residual)`.
///
/// ```
/// use kernels::Activation;
/// use kernels::conv::{Conv2dSpec, Shape, conv2d_residual};
/// let spec = Conv2dSpec::new(1, 1, [1, 1]).activation(Activation::Relu);
/// let mut output = [0.0; 2];
/// conv2d_residual(spec, Shape::new(1, 1, 2), &[1.0, 2.0], &[3.0], None, &[10.0, -10.0], &mut output)?;
/// assert_eq!(output, [13.0, 0.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// Those of [`conv2d`].
pub fn conv2d_residual(
    spec: Conv2dSpec,
    shape: Shape,
    x: &[f32],
    weights: &[f32],
    bias: Option<&[f32]>,
    residual: &[f32],
    y: &mut [f32],
) -> Result<(), Error> {
    run(spec, shape, x, weights, bias, Some(residual), y)
}

fn run(
    spec: Conv2dSpec,
    shape: Shape,
    x: &[f32],
    weights: &[f32],
    bias: Option<&[f32]>,
    residual: Option<&[f32]>,
    y: &mut [f32],
) -> Result<(), Error> {
    let plan = Conv2d::new(spec, weights, bias, shape)?;
    let parallelism = Parallelism::Current;
    let mut workspace = Workspace::with_len(plan.workspace_len(shape, parallelism.threads())?)?;
    plan.forward(shape, x, residual, y, &mut workspace, parallelism)
}

/// The gradients of a convolution in one call: of the input `[batch][in_channels][height][width]` (or as the layout
/// says), of the weights and, if asked for, of the bias, from the input, the weights and the gradient `dy` of the
/// output before the activation. Makes a plan, allocates a workspace, runs on the current rayon pool. Whoever needs
/// gradients more than once makes a [`Conv2dBackward`] and keeps it.
///
/// ```
/// use kernels::conv::{Conv2dSpec, Shape, conv2d_backward};
/// // One tap: y = 3 x + b, so dx = 3 dy, dw = sum of x dy, db = sum of dy.
/// let (spec, shape) = (Conv2dSpec::new(1, 1, [1, 1]), Shape::new(1, 1, 2));
/// let (mut dx, mut dw, mut db) = ([0.0; 2], [0.0], [0.0]);
/// conv2d_backward(spec, shape, &[5.0, 7.0], &[3.0], &[1.0, 10.0], &mut dx, &mut dw, Some(&mut db))?;
/// assert_eq!((dx, dw, db), ([3.0, 30.0], [75.0], [11.0]));
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// Those of [`Conv2dBackward::new`] and [`Conv2dBackward::both`], and [`Error::OutOfMemory`]. Outputs are untouched
/// then.
pub fn conv2d_backward(
    spec: Conv2dSpec,
    shape: Shape,
    x: &[f32],
    weights: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    dw: &mut [f32],
    db: Option<&mut [f32]>,
) -> Result<(), Error> {
    let plan = Conv2dBackward::new(spec, weights, shape)?;
    let parallelism = Parallelism::Current;
    let mut workspace = Workspace::with_len(plan.workspace_len(shape, parallelism.threads())?)?;
    plan.both(shape, x, dy, dx, dw, db, &mut workspace, parallelism)
}
