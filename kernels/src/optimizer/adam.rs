//! Adam: descent along a running mean of the gradient, measured by a running mean of its square.
//!
//! ```text
//! g = gradient + decay * w                       decoupled (AdamW):  g = gradient,  w = w - rate * decay * w
//! m = beta1 * m + (1 - beta1) * g                    m^ = m / (1 - beta1^count)
//! v = beta2 * v + (1 - beta2) * g^2                  v^ = v / (1 - beta2^count)
//! w = w - rate * m^ / (sqrt(v^) + epsilon)
//! ```
//!
//! Kingma, Ba, "Adam: a method for stochastic optimization", ICLR 2015; Loshchilov, Hutter, "Decoupled weight decay
//! regularization", ICLR 2019. What is the same for all elements is computed once, in `f64`:
//!
//! ```text
//! w = shrink * w - pace * m / (sqrt(v) * root + epsilon)
//! shrink = 1 - rate * decay or 1,   pace = rate / (1 - beta1^count),   root = 1 / sqrt(1 - beta2^count)
//! ```

use super::{Rule, check_positive, update};
use crate::error::Error;
use crate::execution::Execution;
use crate::simd::Simd;

/// How Adam steps. The defaults are those of the paper, and PyTorch's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    /// The learning rate.
    pub rate: f64,
    /// What remains of the running means of gradient and square from step to step.
    pub betas: [f64; 2],
    /// Keeps the quotient finite where gradients vanish.
    pub epsilon: f64,
    /// Pulls values towards 0, in proportion to their size.
    pub decay: f64,
    /// Whether the decay acts on the value itself (AdamW), not through the gradient.
    pub decoupled: bool,
}

impl Adam {
    /// Betas of 0.9 and 0.999, an epsilon of 1e-8, no decay.
    pub const fn new(rate: f64) -> Self {
        Self { rate, betas: [0.9, 0.999], epsilon: 1e-8, decay: 0.0, decoupled: false }
    }

    /// Sets the betas.
    pub const fn betas(mut self, betas: [f64; 2]) -> Self {
        self.betas = betas;
        self
    }

    /// Sets epsilon.
    pub const fn epsilon(mut self, epsilon: f64) -> Self {
        self.epsilon = epsilon;
        self
    }

    /// Sets a decay that is part of the gradient.
    pub const fn decay(mut self, decay: f64) -> Self {
        self.decay = decay;
        self.decoupled = false;
        self
    }

    /// Sets a decay that acts on the value itself: AdamW.
    pub const fn decoupled_decay(mut self, decay: f64) -> Self {
        self.decay = decay;
        self.decoupled = true;
        self
    }

    /// Step `count`, counted from 1. `mean` and `variance` are zeros before the first.
    ///
    /// With `u = 2^-24` and `g` free of decay, the mean errs by at most `3 u M`, `M = beta1 |m| + (1 - beta1) |g|`, the
    /// variance by `4 u` of itself, and the value by `u |w'| + 2 u |w|` and `14 u rate M / (1 - beta1^count)` over the
    /// denominator, beside terms of the order of `u^2`; a decay in the gradient adds its rounding, as in
    /// [`Descent`](super::Descent). Squares that underflow are lost: they are nothing beside an epsilon above 1e-15.
    ///
    /// ```
    /// use kernels::{Parallelism, optimizer::Adam};
    /// let (mut w, mut m, mut v) = ([1.0], [0.0], [0.0]);
    /// Adam::new(0.125).step(1, &mut w, &[3.0], &mut m, &mut v, Parallelism::Serial)?;
    /// assert!((w[0] - 0.875).abs() < 1e-6); // the first step is one of the rate, whatever the gradient's size
    /// # Ok::<(), kernels::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Length`] for slices of different lengths, [`Error::Invalid`] for a parameter outside of its domain and
    /// for a `count` of 0.
    pub fn step<'t>(
        &self,
        count: u64,
        value: &mut [f32],
        gradient: &[f32],
        mean: &mut [f32],
        variance: &mut [f32],
        execution: impl Into<Execution<'t>>,
    ) -> Result<(), Error> {
        let rule = self.rule(count)?;
        update(rule, value, gradient, ["mean", "variance"], [mean, variance], execution.into())
    }

    fn rule(&self, count: u64) -> Result<Moments, Error> {
        check_positive("rate", self.rate)?;
        check_positive("decay", self.decay)?;
        let [beta1, beta2] = self.betas;
        if let Some(beta) = self.betas.iter().find(|beta| !(0.0..1.0).contains(*beta)) {
            return Err(Error::invalid("betas", "from 0 to below 1", beta));
        }
        if !(self.epsilon as f32 > 0.0 && self.epsilon.is_finite()) {
            return Err(Error::invalid("epsilon", "a finite number above 0", self.epsilon));
        }
        if count == 0 {
            return Err(Error::invalid("count", "at least 1", count));
        }
        // Beyond this many steps no beta below 1 has a power that 1 could be told from in f32 (2^30 times 2^-26 is 16).
        let count = count.min(1 << 30) as i32;
        let (coupled, decoupled) = if self.decoupled { (0.0, self.decay) } else { (self.decay, 0.0) };
        Ok(Moments {
            betas: [beta1 as f32, beta2 as f32],
            parts: [(1.0 - beta1) as f32, (1.0 - beta2) as f32],
            epsilon: self.epsilon as f32,
            decay: coupled as f32,
            shrink: (1.0 - self.rate * decoupled) as f32,
            pace: (self.rate / (1.0 - beta1.powi(count))) as f32,
            root: (1.0 / (1.0 - beta2.powi(count)).sqrt()) as f32,
        })
    }
}

#[derive(Clone, Copy)]
struct Moments {
    betas: [f32; 2],
    /// `1 - beta`, before rounding: PyTorch's too.
    parts: [f32; 2],
    epsilon: f32,
    decay: f32,
    shrink: f32,
    pace: f32,
    root: f32,
}

impl Rule<2> for Moments {
    #[inline(always)]
    fn step<S: Simd>(self, simd: S, w: S::F, gradient: S::F, [m, v]: [S::F; 2]) -> (S::F, [S::F; 2]) {
        let g = simd.fma(simd.splat(self.decay), w, gradient);
        let m = simd.fma(simd.splat(self.betas[0]), m, simd.mul(simd.splat(self.parts[0]), g));
        let v = simd.fma(simd.splat(self.betas[1]), v, simd.mul(simd.splat(self.parts[1]), simd.mul(g, g)));
        let denominator = simd.fma(simd.sqrt(v), simd.splat(self.root), simd.splat(self.epsilon));
        let quotient = simd.div(m, denominator);
        let w = simd.mul(simd.splat(self.shrink), w);
        (simd.fma(simd.splat(-self.pace), quotient, w), [m, v])
    }
}
