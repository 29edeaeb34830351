//! Where tests set block sizes of their own, so small that small cases cross every border, and share loops that are too
//! small to repay it. Not part of the API: behind a feature, and without any promise.

use crate::conv::{Algorithm, Conv2dSpec, Shape};
use crate::error::Error;
use crate::gemm::{Gemm, PackedLhs, PackedRhs};
use crate::parallel::Parallelism;
use crate::simd::Isa;
use crate::tensor::{View, ViewMut};

pub use crate::conv::winograd::weights::{cut::Limits as GradientLimits, within::gradient_within};
pub use crate::gemm::{blocking::Blocking as GemmBlocking, packed::Input as GemmInput};
pub use crate::parallel::eager::{Loops, eagerly};

/// [`Gemm::run`] and its like within blocks of the sizes given.
///
/// # Errors
/// Those of [`Gemm::run`], and [`Error::Invalid`] for blocks without depth.
pub fn gemm_within(
    blocking: &GemmBlocking,
    options: &Gemm<'_>,
    (lhs, rhs): (GemmInput<'_, PackedLhs>, GemmInput<'_, PackedRhs>),
    out: &mut ViewMut<'_, f32, 2>,
    workspace: &mut [f32],
    parallelism: Parallelism<'_>,
) -> Result<(), Error> {
    check(blocking)?;
    options.run_with(lhs, rhs, out, workspace, parallelism, blocking)
}

/// A block without depth would never reach the end of `k`.
fn check(blocking: &GemmBlocking) -> Result<(), Error> {
    let least = blocking.kc.min(blocking.thin_kc).min(blocking.deep_kc);
    if least == 0 { Err(Error::invalid("blocking", "depths of at least 1", least)) } else { Ok(()) }
}

/// [`Gemm::run_batched`] within blocks of the sizes given.
///
/// # Errors
/// Those of [`Gemm::run`], and [`Error::Invalid`] for blocks without depth.
pub fn gemm_batched_within(
    blocking: &GemmBlocking,
    options: &Gemm<'_>,
    (lhs, rhs): (View<'_, f32, 3>, View<'_, f32, 3>),
    out: &mut ViewMut<'_, f32, 3>,
    workspace: &mut [f32],
    parallelism: Parallelism<'_>,
) -> Result<(), Error> {
    check(blocking)?;
    options.run_batched_with(lhs, rhs, out, workspace, parallelism, blocking)
}

/// Whether the accuracy that a problem asks for admits an algorithm: for outputs, and for inputs' and weights'
/// gradients.
///
/// # Errors
/// Those of [`Conv2dSpec::sizes`].
pub fn admits(spec: &Conv2dSpec, shape: Shape, algorithm: Algorithm) -> Result<[bool; 3], Error> {
    let output = spec.sizes(shape)?.output;
    let weights = algorithm.is_allowed_for_weights(spec, shape.batch, output);
    Ok([algorithm.is_allowed(spec), algorithm.is_allowed_for_data(spec), weights])
}

/// `a * b + c`, a step of a chain as an instruction set computes it.
pub fn mul_add(isa: Isa, a: f32, b: f32, c: f32) -> f32 {
    isa.mul_add(a, b, c)
}
