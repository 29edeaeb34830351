//! Scaled dot-product attention, forward and backward.

mod backward;
mod call;
mod forward;
mod gradients;
mod pack;
mod plan;
mod scores;
mod spec;
mod values;

pub use gradients::Gradients;
pub(crate) use gradients::check_gradients;
pub use plan::{Attention, attention};
pub(crate) use spec::check_shape;
pub use spec::{AttentionSpec, Causal, Inputs, MAX_HEAD_DIM, Shape, Window};
