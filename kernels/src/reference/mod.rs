//! The definitions, as double for-loops: what every kernel is checked against.
//!
//! Generic over `f32` and `f64`, without SIMD, threads or blocking, and sharing nothing with the kernels but
//! the specs that describe a problem. Slow on purpose: a reader should see at a glance that they are right.

mod activation;
mod arithmetic;
mod attention;
mod conv;
mod gemm;
mod linear;
mod local_response;
mod norm;
mod normalize;
mod optimizer;
mod pool;
mod ragged;
mod sequence;
mod softmax;
mod special;
mod winograd;

pub use activation::{activation_backward, activation_forward, gated_backward, gated_forward};
pub use arithmetic::{extremum_backward, extremum_forward, product_backward, product_forward, sum_forward};
pub use attention::{attention_backward, attention_forward};
pub use conv::{
    conv_transpose2d_forward, conv2d_backward_bias, conv2d_backward_data, conv2d_backward_weights, conv2d_forward,
};
pub use gemm::gemm;
pub use linear::{linear_backward, linear_forward};
pub use local_response::{local_response_backward, local_response_forward};
pub use norm::{Sharing, norm_backward, norm_forward, norm_inference_backward, norm_inference_forward};
pub use normalize::{normalize_backward, normalize_forward};
pub use optimizer::{adam_step, descent_step};
pub use pool::{
    adaptive_average_pool2d_backward, adaptive_average_pool2d_forward, average_pool2d_backward, average_pool2d_forward,
    max_pool2d_backward, max_pool2d_forward,
};
pub use ragged::{ragged_attention_backward, ragged_attention_forward};
pub use sequence::{dropout, embedding_backward, embedding_forward, rotary};
pub use softmax::{
    log_softmax_backward, log_softmax_forward, mean_squared_error, softmax_backward, softmax_cross_entropy,
    softmax_forward,
};

pub use special::{erf, erfc, normal_cdf, normal_density};
pub use winograd::{
    WINOGRAD_ROUNDINGS, winograd_shadow, winograd_shadow_backward_data, winograd_shadow_backward_weights,
};

use std::fmt::{Debug, Display};
use std::ops::{Add, AddAssign, Div, Mul, Neg, Sub};

/// `f32` or `f64`.
pub trait Float:
    Copy
    + Debug
    + Display
    + Default
    + PartialOrd
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
{
    /// 0
    const ZERO: Self;
    /// 1
    const ONE: Self;
    /// Negative infinity.
    const NEG_INFINITY: Self;
    /// Rounds to this type.
    fn from_f64(x: f64) -> Self;
    /// As `f64`, exactly.
    fn to_f64(self) -> f64;
    /// `e` to the power of `self`.
    fn exp(self) -> Self;
    /// The natural logarithm.
    fn ln(self) -> Self;
    /// The hyperbolic tangent.
    fn tanh(self) -> Self;
    /// The square root.
    fn sqrt(self) -> Self;
    /// Whether this is NaN.
    fn is_nan(self) -> bool;
}

macro_rules! float {
    ($t:ty) => {
        impl Float for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = <$t>::NEG_INFINITY;
            fn from_f64(x: f64) -> Self {
                x as $t
            }
            fn to_f64(self) -> f64 {
                self as f64
            }
            fn exp(self) -> Self {
                self.exp()
            }
            fn ln(self) -> Self {
                self.ln()
            }
            fn tanh(self) -> Self {
                self.tanh()
            }
            fn sqrt(self) -> Self {
                self.sqrt()
            }
            fn is_nan(self) -> bool {
                self.is_nan()
            }
        }
    };
}
float!(f32);
float!(f64);
