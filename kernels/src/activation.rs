//! Activation functions: what a network does to each element between its linear layers.

/// A function applied to each element.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub enum Activation {
    /// `x`
    #[default]
    Identity,
    /// `max(x, 0)`
    Relu,
    /// `min(max(x, low), high)`; `Clamp { low: 0.0, high: 6.0 }` is ReLU6.
    Clamp {
        /// The smallest output.
        low: f32,
        /// The largest output.
        high: f32,
    },
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// `tanh(x)`
    Tanh,
}
