//! Gated activations: `x` times a gate that opens as `x` grows.
//!
//! ```text
//!             y                              dy/dx
//! gelu        x P(x)                         P(x) + x p(x)       P, p: distribution and density of a normal variable
//! gelu_tanh   x / (1 + exp(-2 z))            s + x s (1 - s) 2 z'   z = sqrt(2 / pi) (x + 0.044715 x^3)
//! gelu_quick  x / (1 + exp(-1.702 x))        s + 1.702 x s (1 - s)
//! silu        x / (1 + exp(-x))              s + x s (1 - s)        s = 1 / (1 + exp(-2 z)), or of -1.702 x, -x
//! ```
//!
//! `x / (1 + exp(-2 z))` is `x (1 + tanh z) / 2`. Unlike the monotone activations, these are differentiated from their
//! input: a gradient needs `x`, so a forward pass in place loses what backward needs.
//!
//! No gate is computed as `1 - something small`: from `e = exp(-|a|)` follow `s = 1 / (1 + e)` on one side and
//! `e / (1 + e)` on the other, and `s (1 - s) = e / (1 + e)^2` on both; the normal distribution comes by its tail. So
//! the relative error stays small for negative `x`, where `1 + erf` and `1 + tanh` cancel.
//!
//! At -infinity all are -0 with a slope of 0, at infinity infinite with a slope of 1: the limits. NaN stays NaN.
//!
//! Source: D. Hendrycks, K. Gimpel, "Gaussian Error Linear Units" (2016); S. Elfwing, E. Uchibe, K. Doya,
//! "Sigmoid-Weighted Linear Units" (2017); 1.702 as in the code of A. Radford et al., "Learning Transferable Visual
//! Models From Natural Language Supervision" (2021).

use crate::error::{Error, check_len};
use crate::execution::Execution;
use crate::simd::{Simd, math};

use super::elementwise::{self, Differentiable, Function, Work};

/// sqrt(2 / pi) * 2, so that the argument of the exponential is `-GELU_TANH (x + 0.044715 x^3)`.
const GELU_TANH: f32 = 1.595_769;
const GELU_CUBIC: f32 = 0.044_715;
/// The slope with which a logistic function is closest to the distribution function of a normal variable.
const GELU_QUICK: f32 = 1.702;
/// 1 / sqrt(2 pi)
const NORMAL_DENSITY: f32 = 0.398_942_3;

/// A function `x * gate(x)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Gated {
    /// `x P(x)` with the distribution function `P` of a standard normal variable, `(1 + erf(x / sqrt 2)) / 2`.
    Gelu,
    /// GELU by its approximation with tanh, as GPT-2 has it: `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`.
    GeluTanh,
    /// GELU by its approximation with a logistic function, as CLIP has it: `x / (1 + exp(-1.702 x))`.
    GeluQuick,
    /// `x / (1 + exp(-x))`, also called swish.
    Silu,
}

impl Gated {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Gelu, Self::GeluTanh, Self::GeluQuick, Self::Silu];
}

/// `y = activation(x)`, element by element.
///
/// With `u = 2^-24`, an element errs by at most `u |y|` times `x^2 / 2 + 14` (GELU), `7 |a| + 10` (GELU by tanh, `a`
/// its `2 z`), `2 |a| + 8` (quick GELU, `a` its `1.702 x`) or 8 (SiLU), and by `1.3e-38 |x|` where the gate is below
/// 1.3e-38.
///
/// ```
/// use kernels::Parallelism;
/// use kernels::activation::gated::{self, Gated};
/// let mut y = [0.0; 3];
/// gated::forward(Gated::Gelu, &[-1.0, 0.0, 2.0], &mut y, Parallelism::Serial)?;
/// assert!((y[0] + 0.158655).abs() < 1e-6 && y[1] == 0.0 && (y[2] - 1.954500).abs() < 1e-6);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`] unless `y` is as long as `x`.
pub fn forward<'t>(
    activation: Gated,
    x: &[f32],
    y: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    check_len("y", x.len(), y.len())?;
    elementwise::forward(activation, x, y, execution.into())
}

/// `x = activation(x)`, element by element: for inference, as [`backward`] needs what this overwrites.
///
/// # Errors
/// [`Error::Isa`] alone.
pub fn forward_in_place<'t>(
    activation: Gated,
    x: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    elementwise::forward_in_place(activation, x, execution.into())
}

/// `dx = dy * activation'(x)`, the derivative taken at the input `x` of the forward pass.
///
/// With `u = 2^-24`, the gate `s` and the slope `s + x s'`, an element errs by at most `u |dy| (s + |x s'|)` times
/// `x^2 / 2 + 16` (GELU), `7 |a| + 20` (GELU by tanh), `4 |a| + 20` (quick GELU) or 16 (SiLU), and by
/// `1.3e-38 |dy| (1 + |x|^3)` more where the gate or its slope is below 1.3e-38.
///
/// ```
/// use kernels::Parallelism;
/// use kernels::activation::gated::{self, Gated};
/// let mut dx = [0.0; 2];
/// gated::backward(Gated::Silu, &[0.0, 100.0], &[8.0, 8.0], &mut dx, Parallelism::Serial)?;
/// assert_eq!(dx, [4.0, 8.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`] unless `dy` and `dx` are as long as `x`.
pub fn backward<'t>(
    activation: Gated,
    x: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    check_len("dy", x.len(), dy.len())?;
    check_len("dx", x.len(), dx.len())?;
    elementwise::backward(activation, x, dy, dx, execution.into())
}

/// As [`backward`], `gradient` being `dy` before and `dx` after the call.
///
/// # Errors
/// [`Error::Length`] unless `gradient` is as long as `x`.
pub fn backward_in_place<'t>(
    activation: Gated,
    x: &[f32],
    gradient: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    check_len("gradient", x.len(), gradient.len())?;
    elementwise::backward_in_place(activation, x, gradient, execution.into())
}

/// `s = 1 / (1 + exp(-a))` and `s (1 - s)`.
#[inline(always)]
fn logistic<S: Simd>(simd: S, a: S::F) -> (S::F, S::F) {
    let one = simd.splat(1.0);
    let minus = simd.int_to_bits(simd.or_int(simd.bits_to_int(a), simd.splat_int(i32::MIN)));
    let e = math::exp_nonpositive(simd, minus);
    let r = simd.div(one, simd.add(one, e));
    let tail = simd.mul(e, r);
    (simd.select(simd.lt(a, simd.zero()), tail, r), simd.mul(tail, r))
}

/// `x^2 * 0.044715` and the argument `2 z` of GELU by tanh.
#[inline(always)]
fn gelu_argument<S: Simd>(simd: S, x: S::F) -> (S::F, S::F) {
    let cubic = simd.mul(simd.mul(x, x), simd.splat(GELU_CUBIC));
    (cubic, simd.mul(simd.splat(GELU_TANH), simd.fma(cubic, x, x)))
}

/// The distribution function of a normal variable, and `exp(-x^2 / 2)`.
#[inline(always)]
fn normal<S: Simd>(simd: S, x: S::F) -> (S::F, S::F) {
    let (tail, e) = math::normal_tail(simd, x);
    (simd.select(simd.lt(x, simd.zero()), tail, simd.sub(simd.splat(1.0), tail)), e)
}

/// `activation(x)` of one vector.
#[inline(always)]
pub(crate) fn apply<S: Simd>(simd: S, activation: Gated, x: S::F) -> S::F {
    let gate = match activation {
        Gated::Gelu => normal(simd, x).0,
        Gated::GeluTanh => math::sigmoid(simd, gelu_argument(simd, x).1),
        Gated::GeluQuick => math::sigmoid(simd, simd.mul(simd.splat(GELU_QUICK), x)),
        Gated::Silu => math::sigmoid(simd, x),
    };
    // 0 times -infinity is no limit.
    let bounded = simd.select(simd.eq(x, simd.splat(f32::NEG_INFINITY)), simd.splat(-1.0), x);
    simd.mul(bounded, gate)
}

impl Function for Gated {
    /// An exponential, a division, a polynomial.
    fn seconds_per_element(self) -> f64 {
        1.2e-9
    }

    fn hides_reads(self) -> bool {
        true
    }

    #[inline(always)]
    fn choose<S: Simd>(self, simd: S, work: impl Work<Self>) {
        match self {
            Self::Gelu => work.with(simd, Self::Gelu),
            Self::GeluTanh => work.with(simd, Self::GeluTanh),
            Self::GeluQuick => work.with(simd, Self::GeluQuick),
            Self::Silu => work.with(simd, Self::Silu),
        }
    }

    #[inline(always)]
    fn apply<S: Simd>(self, simd: S, x: S::F) -> S::F {
        apply(simd, self, x)
    }
}

impl Differentiable for Gated {
    fn gradient_hides_reads(self) -> bool {
        matches!(self, Self::Gelu | Self::GeluTanh)
    }

    /// From the input `x`.
    #[inline(always)]
    fn apply_backward<S: Simd>(self, simd: S, x: S::F, dy: S::F) -> S::F {
        let (gate, slope) = match self {
            Self::Gelu => {
                let (gate, e) = normal(simd, x);
                (gate, simd.mul(e, simd.splat(NORMAL_DENSITY)))
            }
            Self::GeluTanh => {
                let (cubic, a) = gelu_argument(simd, x);
                let (gate, slope) = logistic(simd, a);
                let inner = simd.mul(simd.splat(GELU_TANH), simd.fma(cubic, simd.splat(3.0), simd.splat(1.0)));
                (gate, simd.select(simd.eq(slope, simd.zero()), slope, simd.mul(slope, inner)))
            }
            Self::GeluQuick => {
                let (gate, slope) = logistic(simd, simd.mul(simd.splat(GELU_QUICK), x));
                (gate, simd.mul(slope, simd.splat(GELU_QUICK)))
            }
            Self::Silu => logistic(simd, x),
        };
        // 0 times infinity is no limit.
        let bounded = simd.select(simd.eq(slope, simd.zero()), slope, simd.mul(x, slope));
        simd.mul(dy, simd.add(gate, bounded))
    }
}
