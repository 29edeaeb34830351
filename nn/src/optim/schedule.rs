//! How the learning rate changes from step to step.
//!
//! ```text
//! constant  ────────    steps  ──┐         linear  \          cosine    /──\        one cycle   /\
//!                                └──┐               \                  /    \                  /  \_
//!                                   └──              \_               /      \__              /     \___
//! ```

use std::f64::consts::PI;

/// The rate as a function of the step, counted from 0.
///
/// ```
/// use nn::{OneCycle, Schedule};
/// let schedule = Schedule::cosine(0.1, 10, 110);
/// assert!(schedule.rate(0) < schedule.rate(5) && schedule.rate(5) < 0.1);
/// assert_eq!([schedule.rate(10), schedule.rate(110)], [0.1, 0.0]);
/// assert!((schedule.rate(60) - 0.05).abs() < 1e-6);
/// let either = [schedule, OneCycle::new(0.1, 110).into()];
/// assert!(either.iter().all(|schedule| schedule.rate(109) < 0.001));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Schedule {
    /// Always the same.
    Constant {
        /// The rate.
        rate: f32,
    },
    /// Multiplied by a factor, again and again.
    Steps {
        /// The first rate.
        rate: f32,
        /// After so many steps, at least 1.
        every: usize,
        /// Most often 0.1.
        factor: f32,
    },
    /// Along a straight line, then constant.
    Linear {
        /// The first rate.
        from: f32,
        /// The last rate.
        to: f32,
        /// The length of the line, in steps.
        steps: usize,
    },
    /// Up along a straight line, down along half a cosine, then constant.
    Cosine {
        /// The largest rate.
        peak: f32,
        /// The last rate.
        last: f32,
        /// The steps of the way up; the first has a rate of `peak / warm_up`.
        warm_up: usize,
        /// All steps.
        steps: usize,
    },
    /// See [`OneCycle`].
    OneCycle(OneCycle),
}

impl Schedule {
    /// Always the same rate.
    pub const fn constant(rate: f32) -> Self {
        Self::Constant { rate }
    }

    /// Multiplies the rate by `factor` after `every` so many steps.
    pub const fn steps(rate: f32, every: usize, factor: f32) -> Self {
        Self::Steps { rate, every, factor }
    }

    /// From one rate to another within so many steps.
    pub const fn linear(from: f32, to: f32, steps: usize) -> Self {
        Self::Linear { from, to, steps }
    }

    /// Up to `peak` within the first `warm_up` steps, and down to 0 until `steps`.
    ///
    /// Loshchilov, Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017, without restarts; Goyal
    /// et al., "Accurate, large minibatch SGD", 2017, for the way up.
    pub const fn cosine(peak: f32, warm_up: usize, steps: usize) -> Self {
        Self::Cosine { peak, last: 0.0, warm_up, steps }
    }

    /// The rate of a step, counted from 0.
    pub fn rate(&self, step: usize) -> f32 {
        match *self {
            Self::Constant { rate } => rate,
            Self::Steps { rate, every, factor } => {
                let times = (step / every.max(1)).min(i32::MAX as usize) as i32;
                (rate as f64 * (factor as f64).powi(times)) as f32
            }
            Self::Linear { from, to, steps } => between(from, to, share(step, steps)),
            Self::Cosine { peak, warm_up, .. } if step < warm_up => {
                (peak as f64 * (step + 1) as f64 / warm_up as f64) as f32
            }
            Self::Cosine { peak, last, warm_up, steps } => {
                let at = share(step - warm_up, steps.saturating_sub(warm_up));
                between(peak, last, 0.5 - 0.5 * (PI * at).cos())
            }
            Self::OneCycle(cycle) => cycle.rate(step),
        }
    }
}

impl From<OneCycle> for Schedule {
    fn from(cycle: OneCycle) -> Self {
        Self::OneCycle(cycle)
    }
}

/// How much of the way has been gone, from 0 to 1.
fn share(step: usize, steps: usize) -> f64 {
    if step < steps { step as f64 / steps as f64 } else { 1.0 }
}

fn between(from: f32, to: f32, at: f64) -> f32 {
    (from as f64 + (to as f64 - from as f64) * at) as f32
}

/// A rate that rises from a 25th of its peak, then falls to nearly nothing, both along a cosine.
///
/// Smith, Topin, "Super-convergence", 2017.
///
/// ```
/// let cycle = nn::OneCycle::new(0.1, 100);
/// assert!(cycle.rate(0) < 0.005 && cycle.rate(25) > 0.099 && cycle.rate(100) < 1e-5);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_follow_their_formulas() {
        assert_eq!(Schedule::constant(0.3).rate(usize::MAX), 0.3);
        let steps = Schedule::steps(1.0, 10, 0.5);
        assert_eq!([0, 9, 10, 19, 20, 30].map(|step| steps.rate(step)), [1.0, 1.0, 0.5, 0.5, 0.25, 0.125]);
        let linear = Schedule::linear(1.0, 0.5, 4);
        assert_eq!([0, 1, 2, 3, 4, 5].map(|step| linear.rate(step)), [1.0, 0.875, 0.75, 0.625, 0.5, 0.5]);
        let cosine = Schedule::Cosine { peak: 1.0, last: 0.5, warm_up: 4, steps: 12 };
        assert_eq!([0, 1, 3, 4, 8, 12, 99].map(|step| cosine.rate(step)), [0.25, 0.5, 1.0, 1.0, 0.75, 0.5, 0.5]);
        let sixth = 0.5 + 0.25 * (1.0 + (PI / 4.0).cos());
        assert!((cosine.rate(6) as f64 - sixth).abs() < 1e-7);
    }

    #[test]
    fn no_numbers_make_a_rate_panic() {
        for step in [0, 1, usize::MAX] {
            for count in [0, 1, usize::MAX] {
                Schedule::steps(1.0, count, 0.1).rate(step);
                Schedule::linear(1.0, 0.0, count).rate(step);
                Schedule::cosine(1.0, 1, count).rate(step);
                Schedule::cosine(1.0, count, 1).rate(step);
                OneCycle::new(1.0, count).rate(step);
            }
        }
    }
}
