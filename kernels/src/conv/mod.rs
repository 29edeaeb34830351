//! Convolution: a spec, a choice of algorithm, a plan, the kernels.
//!
//! ```text
//! Conv2dSpec ──► Conv2d::new(spec, weights) ──► Conv2d::forward(x, y, workspace)
//! (checked once)   (algorithm chosen,             (no allocation, only kernels)
//!                   weights packed)
//! ```

mod algorithm;
mod backward;
#[allow(dead_code)]
mod depthwise;
#[allow(dead_code)]
mod grouped;
mod plan;
mod spec;

pub use backward::Conv2dBackward;
pub use plan::{Algorithm, Conv2d, Options};
pub use spec::{Accuracy, Conv2dSpec, Layout, Padding, Shape, Sizes, flip_filter};
