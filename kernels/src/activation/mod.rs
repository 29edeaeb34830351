//! Activation functions: what a network does to each element between its linear layers.
//!
//! All of them can be differentiated from their output alone, so a forward pass may run in place and `x` be forgotten:
//!
//! ```text
//!            y = f(x)                dx = dy * f'(x), with f'(x) from y
//! identity   x                       1
//! relu       max(x, 0)               1 where y > 0, else 0            (so f'(0) = 0)
//! clamp      min(max(x, low), high)  1 where low < y < high, else 0   (so 0 on both bounds)
//! sigmoid    1 / (1 + exp(-x))       y (1 - y)
//! tanh       tanh(x)                 1 - y^2
//! ```
//!
//! Those that need their input to be differentiated, GELU and SiLU, are in [`gated`]. [`exp`], [`tanh`] and [`erf`] are
//! the functions themselves, for whoever builds something else of them.
//!
//! NaN stays NaN, and where the output is NaN the derivative of relu and clamp is 1: both as in PyTorch.

mod elementary;
mod elementwise;
pub mod gated;

use crate::error::{Error, check_len};
use crate::execution::Execution;
use crate::simd::{Job, Simd, dispatch, math};
use elementwise::{Differentiable, Function, Work};

pub use elementary::{erf, exp, tanh};

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

impl Activation {
    /// # Errors
    /// [`Error::Invalid`] for a clamp whose bounds are not in order.
    pub(crate) fn check(self) -> Result<(), Error> {
        match self {
            Self::Clamp { low, high } if low > high || low.is_nan() || high.is_nan() => {
                Err(Error::invalid("activation", "low <= high", format!("{low} and {high}")))
            }
            _ => Ok(()),
        }
    }
}

/// `y = activation(x)`, element by element.
///
/// Relu and clamp are exact (relu gives +0 for -0), tanh errs by at most 1.8 ULP, sigmoid by 2.5 ULP (by 2^-126 below
/// -87.3).
///
/// ```
/// use kernels::{Activation, Parallelism, activation};
/// let mut y = [0.0; 3];
/// activation::forward(Activation::Relu, &[-1.0, 0.0, 2.0], &mut y, Parallelism::Serial)?;
/// assert_eq!(y, [0.0, 0.0, 2.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`] unless `y` is as long as `x`, [`Error::Invalid`] for a clamp whose bounds are not in order.
pub fn forward<'t>(
    activation: Activation,
    x: &[f32],
    y: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    check_len("y", x.len(), y.len())?;
    activation.check()?;
    elementwise::forward(activation, x, y, execution.into())
}

/// `x = activation(x)`, element by element. See [`forward`].
///
/// # Errors
/// [`Error::Invalid`] for a clamp whose bounds are not in order.
pub fn forward_in_place<'t>(
    activation: Activation,
    x: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    activation.check()?;
    elementwise::forward_in_place(activation, x, execution.into())
}

/// `dx = dy * activation'`, the derivative taken from the output `y` of the forward pass.
///
/// Each element of `dx` is at most three roundings away from the derivative's value at `y` as given.
///
/// ```
/// use kernels::{Activation, Parallelism, activation};
/// let y = [0.0, 0.0, 2.0]; // of x = [-1, 0, 2]
/// let mut dx = [0.0; 3];
/// activation::backward(Activation::Relu, &y, &[10.0, 20.0, 30.0], &mut dx, Parallelism::Serial)?;
/// assert_eq!(dx, [0.0, 0.0, 30.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`] unless `dy` and `dx` are as long as `y`, [`Error::Invalid`] for a clamp whose bounds are not in
/// order.
pub fn backward<'t>(
    activation: Activation,
    y: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    check_len("dy", y.len(), dy.len())?;
    check_len("dx", y.len(), dx.len())?;
    activation.check()?;
    elementwise::backward(activation, y, dy, dx, execution.into())
}

/// As [`backward`], `gradient` being `dy` before and `dx` after the call.
///
/// # Errors
/// Those of [`backward`].
pub fn backward_in_place<'t>(
    activation: Activation,
    y: &[f32],
    gradient: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    check_len("gradient", y.len(), gradient.len())?;
    activation.check()?;
    elementwise::backward_in_place(activation, y, gradient, execution.into())
}

/// One activation of one vector: for kernels that end with it.
#[inline(always)]
pub(crate) fn apply<S: Simd>(simd: S, activation: Activation, v: S::F) -> S::F {
    match activation {
        Activation::Identity => v,
        // Comparisons that are false for NaN keep it.
        Activation::Relu => simd.select(simd.le(v, simd.zero()), simd.zero(), v),
        Activation::Clamp { low, high } => {
            let (low, high) = (simd.splat(low), simd.splat(high));
            let v = simd.select(simd.lt(v, low), low, v);
            simd.select(simd.lt(high, v), high, v)
        }
        Activation::Sigmoid => math::sigmoid(simd, v),
        Activation::Tanh => math::tanh(simd, v),
    }
}

/// One activation of one element, with the same bits as in a vector.
pub(crate) fn apply_one(isa: crate::simd::Isa, activation: Activation, x: f32) -> f32 {
    struct One(Activation, f32);
    impl Job for One {
        type Output = f32;
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> f32 {
            let mut y = [0.0];
            // SAFETY: one lane is written.
            unsafe { simd.store_first(y.as_mut_ptr(), 1, apply(simd, self.0, simd.splat(self.1))) };
            y[0]
        }
    }
    dispatch(isa, One(activation, x))
}

impl Function for Activation {
    /// Memory traffic, and the exponential where there is one.
    fn seconds_per_element(self) -> f64 {
        match self {
            Self::Identity | Self::Relu | Self::Clamp { .. } => 0.5e-9,
            Self::Sigmoid | Self::Tanh => 1.2e-9,
        }
    }

    fn hides_reads(self) -> bool {
        matches!(self, Self::Sigmoid | Self::Tanh)
    }

    #[inline(always)]
    fn choose<S: Simd>(self, simd: S, work: impl Work<Self>) {
        match self {
            Self::Relu => work.with(simd, Self::Relu),
            Self::Sigmoid => work.with(simd, Self::Sigmoid),
            Self::Tanh => work.with(simd, Self::Tanh),
            Self::Clamp { low, high } => work.with(simd, Self::Clamp { low, high }),
            Self::Identity => work.with(simd, Self::Identity),
        }
    }

    #[inline(always)]
    fn apply<S: Simd>(self, simd: S, x: S::F) -> S::F {
        apply(simd, self, x)
    }
}

impl Differentiable for Activation {
    fn gradient_hides_reads(self) -> bool {
        false
    }

    /// From the output `y`.
    #[inline(always)]
    fn apply_backward<S: Simd>(self, simd: S, y: S::F, dy: S::F) -> S::F {
        match self {
            Self::Identity => dy,
            Self::Relu => simd.select(simd.le(y, simd.zero()), simd.zero(), dy),
            Self::Clamp { low, high } => {
                let outside = simd.or(simd.le(y, simd.splat(low)), simd.le(simd.splat(high), y));
                simd.select(outside, simd.zero(), dy)
            }
            Self::Sigmoid => simd.mul(dy, simd.mul(y, simd.sub(simd.splat(1.0), y))),
            Self::Tanh => simd.mul(dy, simd.fma(simd.sub(simd.zero(), y), y, simd.splat(1.0))),
        }
    }
}
