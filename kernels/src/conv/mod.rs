//! Convolution: a spec, a choice of algorithm, a plan, the kernels.
//!
//! ```text
//! Conv2dSpec ──► Conv2d::new(spec, weights) ──► Conv2d::forward(x, y, workspace)
//! (checked once)   (algorithm chosen,             (no allocation, only kernels)
//!                   weights packed)
//! ```
//!
//! What deep-learning libraries, and this one, call convolution is a cross-correlation: the filter is not flipped.
//! [`flip_filter`] turns it for those who want the formula `(f * h)[i] = sum of f[i - k] h[k]`.

mod algorithm;
mod backward;
mod band;
#[cfg(feature = "baseline")]
mod baseline;
mod bias_gradient;
mod blocking;
mod border;
mod channel_lanes;
mod channel_tile;
mod columns;
mod dense;
mod depthwise;
mod engine;
mod finish;
mod grouped;
mod image_band;
mod line;
mod one_shot;
mod pack;
mod panels;
mod patch_gradient;
mod pixel_lanes;
mod pixel_runs;
mod plan;
mod slide;
mod spec;
mod sums;
mod transposed;
mod transposed_line;
mod weight_gradient;
pub(crate) mod winograd;

pub use algorithm::Algorithm;
pub use backward::Conv2dBackward;
pub use blocking::Blocking;
pub use line::Conv1dSpec;
pub use one_shot::{conv2d, conv2d_backward, conv2d_residual};
pub use plan::{Conv2d, Options};
pub use spec::{Accuracy, Conv2dSpec, Layout, Padding, Shape, Sizes, flip_filter};
pub use transposed::{ConvTranspose2d, ConvTranspose2dSpec};
pub use transposed_line::ConvTranspose1dSpec;
pub(crate) use winograd::{Axis, Tiling};

/// The axes of an algorithm's tiles, if it is one of Winograd's and can do the spec: forward, or for the input's
/// gradient.
pub(crate) fn winograd_axes(spec: &Conv2dSpec, algorithm: Algorithm, gradient: bool) -> Option<[Axis; 2]> {
    use winograd::{Direction, Winograd};
    Winograd::axes(spec, if gradient { Direction::BackwardData } else { Direction::Forward }, algorithm)
}
