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
//! Those that need their input to be differentiated, GELU and SiLU, are in [`gated`].
//!
//! NaN stays NaN, and where the output is NaN the derivative of relu and clamp is 1: both as in PyTorch.

pub mod gated;

use crate::error::{Error, check_len};
use crate::execution::Execution;
use crate::parts::Parts;
use crate::simd::{Job, Simd, dispatch, math};

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

    /// A rough cost per element on one core, in seconds: memory traffic, and the exponential where there is one.
    fn seconds_per_element(self) -> f64 {
        match self {
            Self::Identity | Self::Relu | Self::Clamp { .. } => 0.5e-9,
            Self::Sigmoid | Self::Tanh => 1.2e-9,
        }
    }
}

/// Elements of a task: large beside the cost of waking a thread, small enough to stay in L2 until reused.
const PART: usize = 16 * 1024;

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
    for_each_part(activation, y, execution.into(), &|at, y| Forward { activation, x: x[at..].as_ptr(), y })
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
    for_each_part(activation, x, execution.into(), &|_, y| Forward { activation, x: y.as_ptr(), y })
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
    for_each_part(activation, dx, execution.into(), &|at, dx| Backward {
        activation,
        y: y[at..].as_ptr(),
        dy: dy[at..].as_ptr(),
        dx,
    })
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
    for_each_part(activation, gradient, execution.into(), &|at, dx| Backward {
        activation,
        y: y[at..].as_ptr(),
        dy: dx.as_ptr(),
        dx,
    })
}

/// Runs `job(start, part)` for each part of an output.
fn for_each_part<'a, J: Job<Output = ()>>(
    activation: Activation,
    output: &'a mut [f32],
    execution: Execution,
    job: &(impl Fn(usize, &'a mut [f32]) -> J + Sync),
) -> Result<(), Error> {
    activation.check()?;
    let isa = execution.isa()?;
    let seconds = output.len() as f64 * activation.seconds_per_element();
    let parallelism = execution.parallelism.for_seconds(seconds);
    let parts = Parts::new(output, PART);
    let slots = parallelism.threads();
    let parts = &parts;
    parallelism.for_each(parts.count(), slots, &|index, _| {
        // SAFETY: each index comes up once.
        let part = unsafe { parts.take(index) };
        dispatch(isa, job(index * PART, part));
    });
    Ok(())
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

/// `dy * activation'` of one vector, from the output `y`.
#[inline(always)]
fn apply_backward<S: Simd>(simd: S, activation: Activation, y: S::F, dy: S::F) -> S::F {
    match activation {
        Activation::Identity => dy,
        Activation::Relu => simd.select(simd.le(y, simd.zero()), simd.zero(), dy),
        Activation::Clamp { low, high } => {
            let outside = simd.or(simd.le(y, simd.splat(low)), simd.le(simd.splat(high), y));
            simd.select(outside, simd.zero(), dy)
        }
        Activation::Sigmoid => simd.mul(dy, simd.mul(y, simd.sub(simd.splat(1.0), y))),
        Activation::Tanh => simd.mul(dy, simd.fma(simd.sub(simd.zero(), y), y, simd.splat(1.0))),
    }
}

struct Forward<'a> {
    activation: Activation,
    /// As many elements as `y`, possibly the same ones.
    x: *const f32,
    y: &'a mut [f32],
}

impl Job for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { activation, x, y } = self;
        // SAFETY: `x` has as many elements as `y`. Naming the variants moves the choice out of the loop.
        unsafe {
            match activation {
                Activation::Relu => map(simd, Activation::Relu, x, y),
                Activation::Sigmoid => map(simd, Activation::Sigmoid, x, y),
                Activation::Tanh => map(simd, Activation::Tanh, x, y),
                Activation::Clamp { low, high } => map(simd, Activation::Clamp { low, high }, x, y),
                Activation::Identity => map(simd, Activation::Identity, x, y),
            }
        }
    }
}

/// # Safety
/// - `y.len()` elements are readable at `x`.
#[inline(always)]
unsafe fn map<S: Simd>(simd: S, activation: Activation, x: *const f32, y: &mut [f32]) {
    let (len, y) = (y.len(), y.as_mut_ptr());
    let whole = len - len % S::LANES;
    // SAFETY: whole vectors and the first lanes of the last one lie within both.
    unsafe {
        let mut at = 0;
        while at < whole {
            simd.store(y.add(at), apply(simd, activation, simd.load(x.add(at))));
            at += S::LANES;
        }
        if at < len {
            let v = simd.load_first(x.add(at), len - at);
            simd.store_first(y.add(at), len - at, apply(simd, activation, v));
        }
    }
}

struct Backward<'a> {
    activation: Activation,
    /// As many elements as `dx`.
    y: *const f32,
    /// As many elements as `dx`, possibly the same ones.
    dy: *const f32,
    dx: &'a mut [f32],
}

impl Job for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { activation, y, dy, dx } = self;
        // SAFETY: `y` and `dy` have as many elements as `dx`.
        unsafe {
            match activation {
                Activation::Relu => map_backward(simd, Activation::Relu, y, dy, dx),
                Activation::Sigmoid => map_backward(simd, Activation::Sigmoid, y, dy, dx),
                Activation::Tanh => map_backward(simd, Activation::Tanh, y, dy, dx),
                Activation::Clamp { low, high } => map_backward(simd, Activation::Clamp { low, high }, y, dy, dx),
                Activation::Identity => map_backward(simd, Activation::Identity, y, dy, dx),
            }
        }
    }
}

/// # Safety
/// - `dx.len()` elements are readable at `y` and at `dy`.
#[inline(always)]
unsafe fn map_backward<S: Simd>(simd: S, activation: Activation, y: *const f32, dy: *const f32, dx: &mut [f32]) {
    let (len, dx) = (dx.len(), dx.as_mut_ptr());
    let whole = len - len % S::LANES;
    // SAFETY: whole vectors and the first lanes of the last one lie within all three.
    unsafe {
        let mut at = 0;
        while at < whole {
            let (vy, vdy) = (simd.load(y.add(at)), simd.load(dy.add(at)));
            simd.store(dx.add(at), apply_backward(simd, activation, vy, vdy));
            at += S::LANES;
        }
        if at < len {
            let (vy, vdy) = (simd.load_first(y.add(at), len - at), simd.load_first(dy.add(at), len - at));
            simd.store_first(dx.add(at), len - at, apply_backward(simd, activation, vy, vdy));
        }
    }
}
