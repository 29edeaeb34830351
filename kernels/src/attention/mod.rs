//! Scaled dot-product attention, forward and backward.

mod gradients;
mod spec;

pub use gradients::Gradients;
pub(crate) use gradients::check_gradients;
pub(crate) use spec::check_shape;
pub use spec::{AttentionSpec, Causal, Inputs, MAX_HEAD_DIM, Shape, Window};
