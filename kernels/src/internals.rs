//! Where tests set block sizes of their own, so small that small cases cross every border. Not part of the API: behind
//! a feature, and without any promise.

use crate::conv::{Algorithm, Conv2dSpec, Shape};
use crate::error::Error;
use crate::gemm::{Gemm, PackedLhs, PackedRhs};
use crate::parallel::Parallelism;
use crate::tensor::{View, ViewMut};

pub use crate::conv::winograd::weights::{cut::Limits as GradientLimits, toy::gradient_within};
pub use crate::gemm::{blocking::Blocking as GemmBlocking, packed::Input as GemmInput};

/// [`Gemm::run`] and its like within blocks of the sizes given.
///
/// # Errors
/// Those of [`Gemm::run`].
pub fn gemm_within(
    blocking: &GemmBlocking,
    options: &Gemm<'_>,
    (lhs, rhs): (GemmInput<'_, PackedLhs>, GemmInput<'_, PackedRhs>),
    out: &mut ViewMut<'_, f32, 2>,
    workspace: &mut [f32],
    parallelism: Parallelism<'_>,
) -> Result<(), Error> {
    options.run_with(lhs, rhs, out, workspace, parallelism, blocking)
}

/// [`Gemm::run_batched`] within blocks of the sizes given.
///
/// # Errors
/// Those of [`Gemm::run`].
pub fn gemm_batched_within(
    blocking: &GemmBlocking,
    options: &Gemm<'_>,
    (lhs, rhs): (View<'_, f32, 3>, View<'_, f32, 3>),
    out: &mut ViewMut<'_, f32, 3>,
    workspace: &mut [f32],
    parallelism: Parallelism<'_>,
) -> Result<(), Error> {
    options.run_batched_with(lhs, rhs, out, workspace, parallelism, blocking)
}

/// Whether the accuracy that a problem asks for admits an algorithm: for outputs, and for inputs' and weights' gradients.
///
/// # Errors
/// Those of [`Conv2dSpec::sizes`].
pub fn admits(spec: &Conv2dSpec, shape: Shape, algorithm: Algorithm) -> Result<[bool; 3], Error> {
    let output = spec.sizes(shape)?.output;
    let weights = algorithm.is_allowed_for_weights(spec, shape.batch, output);
    Ok([algorithm.is_allowed(spec), algorithm.is_allowed_for_data(spec), weights])
}
