//! The gradient within limits of a test's own.

use super::cut::{Cut, Limits};
use super::{Direction, Winograd, WinogradWeights};
use crate::conv::algorithm::BackwardWeightsCall;
use crate::conv::{Algorithm, Conv2dSpec, Shape};
use crate::error::{Error, check_len};
use crate::parallel::Parallelism;
use crate::simd::Isa;

/// The gradient, and whether each task kept its sums, whether there were several passes, and several parts.
///
/// # Errors
/// Those of [`Conv2dSpec::sizes`], [`Error::Length`] unless `x` and `dy` have the lengths of the spec,
/// [`Error::Invalid`] where the algorithm cannot do it or there is no slot, and [`Error::Isa`].
pub fn gradient_within(
    limits: Limits,
    (spec, shape): (&Conv2dSpec, Shape),
    (x, dy): (&[f32], &[f32]),
    algorithm: Algorithm,
    isa: Isa,
    slots: usize,
) -> Result<(Vec<f32>, [bool; 3]), Error> {
    let sizes = spec.sizes(shape)?;
    check_len("x", sizes.x_len, x.len())?;
    check_len("dy", sizes.y_len, dy.len())?;
    if slots == 0 {
        return Err(Error::invalid("slots", "at least 1", slots));
    }
    let axes = Winograd::axes(spec, Direction::Forward, algorithm)
        .ok_or_else(|| Error::invalid("algorithm", "one with tiles for this spec", algorithm))?;
    let plan = WinogradWeights { limits, ..WinogradWeights::new(spec, axes, isa.check("isa")?) };
    let mut workspace = vec![f32::NAN; plan.workspace_len(shape, &sizes, slots)];
    let mut dw = vec![f32::NAN; sizes.w_len];
    let workspace = &mut workspace[..];
    let parallelism = Parallelism::Serial;
    plan.run(BackwardWeightsCall { shape, sizes, x, dy, dw: &mut dw, workspace, slots, parallelism });
    let cut = Cut::new(&plan, shape, &sizes, slots);
    Ok((dw, [cut.alone, cut.passes.iter().product::<usize>() > 1, cut.parts != [1, 1]]))
}
