//! Gradient descent, with momentum or without.
//!
//! ```text
//! g = gradient + decay * w
//! v = momentum * v + g
//! w = w - rate * v                       Nesterov: w - rate * (g + momentum * v)
//! ```
//!
//! Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep learning", ICML 2013, in
//! the form that PyTorch uses: the rate is outside of the velocity, so that it may change from step to step.

use super::{Rule, check_positive, update};
use crate::error::Error;
use crate::execution::Execution;
use crate::simd::Simd;

/// How steps go down a gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Descent {
    /// The learning rate.
    pub rate: f64,
    /// What remains of the velocity from step to step, often 0.9.
    pub momentum: f64,
    /// Whether the step looks ahead by the velocity.
    pub nesterov: bool,
    /// Pulls values towards 0, in proportion to their size.
    pub decay: f64,
}

impl Descent {
    /// `w = w - rate * gradient`
    pub const fn new(rate: f64) -> Self {
        Self { rate, momentum: 0.0, nesterov: false, decay: 0.0 }
    }

    /// Sets the momentum.
    pub const fn momentum(mut self, momentum: f64) -> Self {
        self.momentum = momentum;
        self
    }

    /// Makes the steps Nesterov's.
    pub const fn nesterov(mut self) -> Self {
        self.nesterov = true;
        self
    }

    /// Sets the decay.
    pub const fn decay(mut self, decay: f64) -> Self {
        self.decay = decay;
        self
    }

    /// One step. `velocity`, zeros before the first step, may be left out where there is no momentum.
    ///
    /// With `u = 2^-24`, `V = |gradient| + decay |w| + momentum |v|`, and `D` the same as `V` (Nesterov:
    /// `|gradient| + decay |w| + momentum V`), the velocity errs by at most `4 u V` and the value by
    /// `u |w'| + 9 u rate D`, beside terms of the order of `u^2` and what underflows.
    ///
    /// ```
    /// use kernels::{Parallelism, optimizer::Descent};
    /// let (mut w, mut v) = ([1.0], [2.0]);
    /// Descent::new(0.25).momentum(0.5).step(&mut w, &[3.0], Some(&mut v), Parallelism::Serial)?;
    /// assert_eq!((w, v), ([0.0], [4.0]));
    /// # Ok::<(), kernels::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Length`] for slices of different lengths, [`Error::Invalid`] for a parameter that is negative or not
    /// finite, and for momentum without velocity.
    pub fn step<'t>(
        &self,
        value: &mut [f32],
        gradient: &[f32],
        velocity: Option<&mut [f32]>,
        execution: impl Into<Execution<'t>>,
    ) -> Result<(), Error> {
        check_positive("rate", self.rate)?;
        check_positive("momentum", self.momentum)?;
        check_positive("decay", self.decay)?;
        let rule = Momentum {
            rate: self.rate as f32,
            momentum: self.momentum as f32,
            nesterov: self.nesterov,
            decay: self.decay as f32,
        };
        match velocity {
            Some(velocity) => update(rule, value, gradient, ["velocity"], [velocity], execution.into()),
            None if self.momentum == 0.0 => update(Plain(rule), value, gradient, [], [], execution.into()),
            None => Err(Error::invalid("velocity", "one, where there is momentum", "none")),
        }
    }
}

#[derive(Clone, Copy)]
struct Momentum {
    rate: f32,
    momentum: f32,
    nesterov: bool,
    decay: f32,
}

impl Rule<1> for Momentum {
    #[inline(always)]
    fn step<S: Simd>(self, simd: S, w: S::F, gradient: S::F, [v]: [S::F; 1]) -> (S::F, [S::F; 1]) {
        let (rate, momentum) = (simd.splat(-self.rate), simd.splat(self.momentum));
        let g = simd.fma(simd.splat(self.decay), w, gradient);
        let v = simd.fma(momentum, v, g);
        let direction = if self.nesterov { simd.fma(momentum, v, g) } else { v };
        (simd.fma(rate, direction, w), [v])
    }
}

/// Without momentum the velocity is the gradient, and need not be kept.
#[derive(Clone, Copy)]
struct Plain(Momentum);

impl Rule<0> for Plain {
    #[inline(always)]
    fn step<S: Simd>(self, simd: S, w: S::F, gradient: S::F, _: [S::F; 0]) -> (S::F, [S::F; 0]) {
        let (w, _) = self.0.step(simd, w, gradient, [simd.zero()]);
        (w, [])
    }
}
