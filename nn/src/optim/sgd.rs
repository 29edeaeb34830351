//! Gradient descent, plain and with momentum.
//!
//! ```text
//! GradientDescent    w = w - rate * gradient
//!
//! Sgd                v = momentum * v + (gradient + decay * w)
//!                    w = w - rate * v          Nesterov: w - rate * ((gradient + decay * w) + momentum * v)
//! ```

use kernels::optimizer::Descent;

use super::{Optimizer, Rule, Step};

/// Descent as every lecture begins it: against the gradient, by the learning rate.
///
/// ```
/// use nn::{GradientDescent, Linear, Network, tensor};
/// let mut network = Network::new(Linear::with_weights(ndarray::array![[2.0]].into_dyn(), None)?);
/// network.forward(&tensor(&[1, 1], vec![4.0])?)?;
/// network.backward(&tensor(&[1, 1], vec![1.0])?)?; // the gradient of the weight is 4
/// GradientDescent::new().step(&mut network, 0.25)?;
/// network.visit(|_, weight| assert_eq!(weight.elements(), [2.0 - 0.25 * 4.0]));
/// # Ok::<(), nn::Error>(())
/// ```
pub type GradientDescent = Optimizer<Plain>;

/// Stochastic gradient descent with momentum.
///
/// Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep learning", ICML 2013,
/// in the form that PyTorch uses.
pub type Sgd = Optimizer<Momentum>;

/// The rule of [`GradientDescent`].
#[derive(Clone, Copy, Debug)]
pub struct Plain;

/// The rule of [`Sgd`].
#[derive(Clone, Copy, Debug)]
pub struct Momentum(Descent);

impl GradientDescent {
    /// Nothing to choose.
    pub fn new() -> Self {
        Self::with_rule(Plain)
    }
}

impl Default for GradientDescent {
    fn default() -> Self {
        Self::new()
    }
}

impl Sgd {
    /// Plain descent for a momentum of 0; often 0.9.
    pub fn new(momentum: f32) -> Self {
        Self::with_rule(Momentum(Descent::new(0.0).momentum(momentum.into())))
    }

    /// Pulls weights towards 0, in proportion to their size.
    pub fn decay(mut self, decay: f32) -> Self {
        self.rule.0.decay = decay.into();
        self
    }

    /// Takes the gradient where the momentum is about to lead.
    pub fn nesterov(mut self) -> Self {
        self.rule.0.nesterov = true;
        self
    }
}

impl Rule for Plain {
    const STATES: &'static [&'static str] = &[];

    fn update(&self, step: Step<'_>, w: &mut [f32], g: &[f32], _: &mut [Vec<f32>]) -> Result<(), kernels::Error> {
        Descent::new(step.rate.into()).step(w, g, None, step.parallelism)
    }
}

impl Rule for Momentum {
    const STATES: &'static [&'static str] = &["momentum_buffer"];

    fn update(&self, step: Step<'_>, w: &mut [f32], g: &[f32], states: &mut [Vec<f32>]) -> Result<(), kernels::Error> {
        let descent = Descent { rate: step.rate.into(), ..self.0 };
        descent.step(w, g, states.first_mut().map(Vec::as_mut_slice), step.parallelism)
    }
}
