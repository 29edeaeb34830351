//! Stochastic gradient descent with momentum, and the one-cycle schedule of its rate.
//!
//! ```text
//! v = momentum * v + (gradient + decay * w)
//! w = w - rate * v
//! ```

use crate::error::{Error, Result};
use crate::network::Network;

/// Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep learning", ICML 2013,
/// in the form that PyTorch uses.
#[derive(Clone, Debug)]
pub struct Sgd {
    momentum: f32,
    decay: f32,
    /// One velocity for each parameter, in the order in which the network shows them.
    velocity: Vec<Vec<f32>>,
}

impl Sgd {
    /// Plain descent for a momentum of 0; often 0.9.
    pub fn new(momentum: f32) -> Self {
        Self { momentum, decay: 0.0, velocity: Vec::new() }
    }

    /// Pulls weights towards 0, in proportion to their size.
    pub fn decay(mut self, decay: f32) -> Self {
        self.decay = decay;
        self
    }

    /// One step down the gradients that the network has gathered; sets them to zero.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the network is another one than in the steps before.
    pub fn step(&mut self, network: &mut Network, rate: f32) -> Result<()> {
        let mut sizes = Vec::new();
        network.visit(|_, parameter| sizes.push(parameter.value().len()));
        if self.velocity.is_empty() {
            self.velocity = sizes.iter().map(|&size| vec![0.0; size]).collect();
        }
        if !self.velocity.iter().map(Vec::len).eq(sizes.iter().copied()) {
            return Err(Error::invalid("network", "that of the first step", "one with other parameters"));
        }
        let mut velocities = self.velocity.iter_mut();
        network.visit(|_, parameter| {
            let (value, gradient) = parameter.update();
            if let Some(velocity) = velocities.next() {
                for i in 0..value.len() {
                    velocity[i] = self.momentum * velocity[i] + (gradient[i] + self.decay * value[i]);
                    value[i] -= rate * velocity[i];
                }
            }
            parameter.zero_gradient();
        });
        Ok(())
    }
}

/// A rate that rises from a 25th of its peak, then falls to nearly nothing, both along a cosine.
///
/// Smith, Topin, "Super-convergence", 2017.
///
/// ```
/// let cycle = nn::OneCycle::new(0.1, 100);
/// assert!(cycle.rate(0) < 0.005 && cycle.rate(25) > 0.099 && cycle.rate(100) < 1e-5);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct OneCycle {
    peak: f32,
    steps: usize,
}

impl OneCycle {
    /// The share of the steps in which the rate rises.
    const RISE: f32 = 0.25;
    /// The first and the last rate, as shares of the peak.
    const FIRST: f32 = 1.0 / 25.0;
    const LAST: f32 = 1e-5;

    /// A cycle over so many steps.
    pub const fn new(peak: f32, steps: usize) -> Self {
        Self { peak, steps }
    }

    /// The rate of a step, counted from 0.
    pub fn rate(&self, step: usize) -> f32 {
        let at = step as f32 / self.steps.max(1) as f32;
        let (from, to, part) = if at < Self::RISE {
            (Self::FIRST, 1.0, at / Self::RISE)
        } else {
            (1.0, Self::LAST, ((at - Self::RISE) / (1.0 - Self::RISE)).min(1.0))
        };
        let weight = 0.5 + 0.5 * (std::f32::consts::PI * part).cos();
        self.peak * (to + (from - to) * weight)
    }
}
