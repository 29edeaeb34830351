//! Elementary functions of slices, with stated errors.
//!
//! What other kernels compute in registers: exponentials of softmax, tanh of activations. An error in ULP is in units
//! in the last place of the exact result.

use crate::error::{Error, check_len};
use crate::execution::Execution;
use crate::simd::{Simd, math};

use super::elementwise::{self, Function, Work};

/// `y = e^x`, element by element: at most 1.1 ULP from -87.3 to 88.72283, `exp(0) = 1` exactly.
///
/// 0 below -87.3 (-infinity included), infinity above 88.72283, NaN for NaN.
///
/// ```
/// use kernels::{Parallelism, activation};
/// let mut y = [0.0; 3];
/// activation::exp(&[0.0, f32::NEG_INFINITY, 1000.0], &mut y, Parallelism::Serial)?;
/// assert_eq!(y, [1.0, 0.0, f32::INFINITY]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`] unless `y` is as long as `x`.
pub fn exp<'t>(x: &[f32], y: &mut [f32], execution: impl Into<Execution<'t>>) -> Result<(), Error> {
    check_len("y", x.len(), y.len())?;
    elementwise::forward(Elementary::Exp, x, y, execution.into())
}

/// `y = tanh(x)`, element by element: at most 1.8 ULP everywhere. Keeps the sign of zero; NaN for NaN. The same bits as
/// [`Activation::Tanh`](super::Activation::Tanh).
///
/// ```
/// use kernels::{Parallelism, activation};
/// let mut y = [9.0; 2];
/// activation::tanh(&[0.0, -100.0], &mut y, Parallelism::Serial)?;
/// assert_eq!(y, [0.0, -1.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`] unless `y` is as long as `x`.
pub fn tanh<'t>(x: &[f32], y: &mut [f32], execution: impl Into<Execution<'t>>) -> Result<(), Error> {
    check_len("y", x.len(), y.len())?;
    elementwise::forward(Elementary::Tanh, x, y, execution.into())
}

/// The error function, `y = 2 / sqrt(pi) * (integral from 0 to x of exp(-t^2))`, element by element: at most 1.3 ULP
/// everywhere. Keeps the sign of zero; NaN for NaN.
///
/// For `1 - erf`, which cancels, and for GELU, which needs it, see [`gated`](super::gated).
///
/// ```
/// use kernels::{Parallelism, activation};
/// let mut y = [9.0; 3];
/// activation::erf(&[0.0, 1.0, -10.0], &mut y, Parallelism::Serial)?;
/// assert!(y[0] == 0.0 && (y[1] - 0.842_700_8).abs() < 1e-7 && y[2] == -1.0);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`] unless `y` is as long as `x`.
pub fn erf<'t>(x: &[f32], y: &mut [f32], execution: impl Into<Execution<'t>>) -> Result<(), Error> {
    check_len("y", x.len(), y.len())?;
    elementwise::forward(Elementary::Erf, x, y, execution.into())
}

#[derive(Clone, Copy)]
enum Elementary {
    Exp,
    Tanh,
    Erf,
}

impl Function for Elementary {
    /// The polynomials, and memory traffic.
    fn seconds_per_element(self) -> f64 {
        1.2e-9
    }

    fn hides_reads(self) -> bool {
        true
    }

    #[inline(always)]
    fn choose<S: Simd>(self, simd: S, work: impl Work<Self>) {
        match self {
            Self::Exp => work.with(simd, Self::Exp),
            Self::Tanh => work.with(simd, Self::Tanh),
            Self::Erf => work.with(simd, Self::Erf),
        }
    }

    #[inline(always)]
    fn apply<S: Simd>(self, simd: S, x: S::F) -> S::F {
        match self {
            Self::Exp => math::exp(simd, x),
            Self::Tanh => math::tanh(simd, x),
            Self::Erf => math::erf(simd, x),
        }
    }
}
