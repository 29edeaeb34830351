//! Adam, and AdamW.
//!
//! ```text
//! Adam     g = gradient + decay * w
//! AdamW    g = gradient,   w = w - rate * decay * w
//!
//! m = beta1 * m + (1 - beta1) * g         v = beta2 * v + (1 - beta2) * g^2
//! w = w - rate * m^ / (sqrt(v^) + epsilon)           m^ = m / (1 - beta1^t),  v^ = v / (1 - beta2^t)
//! ```

use kernels::optimizer;

use super::{Optimizer, Rule, Step};

/// Descent along a running mean of the gradient, measured by a running mean of its square.
///
/// Kingma, Ba, "Adam: a method for stochastic optimization", ICLR 2015.
///
/// ```
/// use nn::{Adam, Linear, Network, tensor};
/// let mut network = Network::new(Linear::with_weights(ndarray::array![[2.0]].into_dyn(), None)?);
/// let mut adam = Adam::new().betas([0.9, 0.99]);
/// network.forward(&tensor(&[1, 1], vec![4.0])?)?;
/// network.backward(&tensor(&[1, 1], vec![1.0])?)?;
/// adam.step(&mut network, 0.25)?; // the first step is one of the rate, whatever the gradient's size
/// network.visit(|_, weight| assert!((weight.elements()[0] - 1.75).abs() < 1e-6));
/// # Ok::<(), nn::Error>(())
/// ```
pub type Adam = Optimizer<Adaptive<false>>;

/// Adam with a decay that acts on the weights themselves: 0.01 unless told otherwise, as in PyTorch.
///
/// Loshchilov, Hutter, "Decoupled weight decay regularization", ICLR 2019.
pub type AdamW = Optimizer<Adaptive<true>>;

/// The rule of [`Adam`] and, with decoupled decay, of [`AdamW`].
#[derive(Clone, Copy, Debug)]
pub struct Adaptive<const DECOUPLED: bool>(optimizer::Adam);

impl<const DECOUPLED: bool> Optimizer<Adaptive<DECOUPLED>> {
    /// Betas of 0.9 and 0.999, an epsilon of 1e-8; a decay of 0.01 for AdamW, none for Adam.
    pub fn new() -> Self {
        let adam = optimizer::Adam::new(0.0);
        Self::with_rule(Adaptive(if DECOUPLED { adam.decoupled_decay(0.01) } else { adam }))
    }

    /// What remains of the running means of gradient and square from step to step.
    pub fn betas(mut self, betas: [f64; 2]) -> Self {
        self.rule.0.betas = betas;
        self
    }

    /// Keeps the quotient finite where gradients vanish.
    pub fn epsilon(mut self, epsilon: f64) -> Self {
        self.rule.0.epsilon = epsilon;
        self
    }

    /// Pulls weights towards 0, in proportion to their size.
    pub fn decay(mut self, decay: f64) -> Self {
        self.rule.0.decay = decay;
        self
    }
}

impl<const DECOUPLED: bool> Default for Optimizer<Adaptive<DECOUPLED>> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const DECOUPLED: bool> Rule for Adaptive<DECOUPLED> {
    const STATES: &'static [&'static str] = &["exp_avg", "exp_avg_sq"];

    fn update(&self, step: Step<'_>, w: &mut [f32], g: &[f32], states: &mut [Vec<f32>]) -> Result<(), kernels::Error> {
        let adam = optimizer::Adam { rate: step.rate.into(), ..self.0 };
        let [mean, variance] = states else {
            return Err(kernels::Error::invalid("states", "mean and variance", states.len()));
        };
        adam.step(step.count, w, g, mean, variance, step.parallelism)
    }
}
