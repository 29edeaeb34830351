//! What is checked: the library, or something that pretends to be it.
//!
//! The checks see a convolution through this trait, so that they can be run on faulty ones as well: a
//! harness that has never found a mistake proves nothing.

use kernels::conv::{Algorithm, Conv2d, Conv2dBackward, Options, Shape};
use kernels::{Error, Isa, Parallelism};

use crate::case::ConvCase;

/// How a plan is to be made.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// The algorithm, by name or `Auto`.
    pub algorithm: Algorithm,
    /// The instruction set.
    pub isa: Isa,
    /// Made for other weights and another batch first; the weights are then replaced.
    pub repacked: bool,
}

/// A maker of plans.
pub trait Subject: Sync {
    /// Makes a forward plan, or says why it cannot.
    fn forward(
        &self,
        case: &ConvCase,
        choice: Choice,
        weights: &[f32],
        bias: Option<&[f32]>,
    ) -> Result<Box<dyn ForwardPlan>, Error>;

    /// Makes a backward plan, or says why it cannot.
    fn backward(&self, case: &ConvCase, choice: Choice, weights: &[f32]) -> Result<Box<dyn BackwardPlan>, Error>;
}

/// A forward plan; the methods are those of [`Conv2d`].
pub trait ForwardPlan: Send + Sync {
    /// The algorithm that runs.
    fn algorithm(&self) -> Algorithm;
    /// The workspace that a call needs.
    fn workspace_len(&self, shape: Shape, slots: usize) -> Result<usize, Error>;
    /// The output.
    fn run(
        &self,
        shape: Shape,
        x: &[f32],
        residual: Option<&[f32]>,
        y: &mut [f32],
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error>;
}

/// A backward plan; the methods are those of [`Conv2dBackward`].
pub trait BackwardPlan: Send + Sync {
    /// The algorithms of the input's gradient and of the weights'.
    fn algorithms(&self) -> [Algorithm; 2];
    /// The workspace that any call needs.
    fn workspace_len(&self, shape: Shape, slots: usize) -> Result<usize, Error>;
    /// The gradient of the input.
    fn data(
        &self,
        shape: Shape,
        dy: &[f32],
        dx: &mut [f32],
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error>;
    /// The gradients of weights and bias.
    fn weights(
        &self,
        shape: Shape,
        x: &[f32],
        dy: &[f32],
        dw: &mut [f32],
        db: Option<&mut [f32]>,
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error>;
    /// All gradients.
    fn both(
        &self,
        shape: Shape,
        x: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        dw: &mut [f32],
        db: Option<&mut [f32]>,
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error>;
}

/// The library.
#[derive(Clone, Copy, Debug, Default)]
pub struct Library;

impl Library {
    // More options are to come; these tests leave them alone.
    #[allow(clippy::needless_update)]
    fn options(choice: Choice) -> Options {
        Options { isa: Some(choice.isa), algorithm: choice.algorithm, ..Options::default() }
    }
}

/// What a plan holds before its weights are replaced: not finite, so that a remembered flag is seen.
fn other_weights(len: usize) -> Vec<f32> {
    vec![f32::NAN; len]
}

impl Subject for Library {
    fn forward(
        &self,
        case: &ConvCase,
        choice: Choice,
        weights: &[f32],
        bias: Option<&[f32]>,
    ) -> Result<Box<dyn ForwardPlan>, Error> {
        let options = Self::options(choice);
        if !choice.repacked {
            return Ok(Box::new(Conv2d::with_options(case.spec, weights, bias, case.shape, options)?));
        }
        let (other, other_bias) = (other_weights(weights.len()), bias.map(|bias| other_weights(bias.len())));
        let hint = Shape { batch: 1, ..case.shape };
        let mut plan = Conv2d::with_options(case.spec, &other, other_bias.as_deref(), hint, options)?;
        plan.set_weights(weights, bias, Parallelism::Current)?;
        Ok(Box::new(plan))
    }

    fn backward(&self, case: &ConvCase, choice: Choice, weights: &[f32]) -> Result<Box<dyn BackwardPlan>, Error> {
        let options = Self::options(choice);
        if !choice.repacked {
            return Ok(Box::new(Conv2dBackward::with_options(case.spec, weights, case.shape, options)?));
        }
        let hint = Shape { batch: 1, ..case.shape };
        let mut plan = Conv2dBackward::with_options(case.spec, &other_weights(weights.len()), hint, options)?;
        plan.set_weights(weights, Parallelism::Current)?;
        Ok(Box::new(plan))
    }
}

impl ForwardPlan for Conv2d {
    fn algorithm(&self) -> Algorithm {
        Conv2d::algorithm(self)
    }

    fn workspace_len(&self, shape: Shape, slots: usize) -> Result<usize, Error> {
        Conv2d::workspace_len(self, shape, slots)
    }

    fn run(
        &self,
        shape: Shape,
        x: &[f32],
        residual: Option<&[f32]>,
        y: &mut [f32],
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error> {
        Conv2d::forward(self, shape, x, residual, y, workspace, parallelism)
    }
}

impl BackwardPlan for Conv2dBackward {
    fn algorithms(&self) -> [Algorithm; 2] {
        Conv2dBackward::algorithms(self)
    }

    fn workspace_len(&self, shape: Shape, slots: usize) -> Result<usize, Error> {
        Conv2dBackward::workspace_len(self, shape, slots)
    }

    fn data(
        &self,
        shape: Shape,
        dy: &[f32],
        dx: &mut [f32],
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error> {
        Conv2dBackward::data(self, shape, dy, dx, workspace, parallelism)
    }

    fn weights(
        &self,
        shape: Shape,
        x: &[f32],
        dy: &[f32],
        dw: &mut [f32],
        db: Option<&mut [f32]>,
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error> {
        Conv2dBackward::weights(self, shape, x, dy, dw, db, workspace, parallelism)
    }

    fn both(
        &self,
        shape: Shape,
        x: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        dw: &mut [f32],
        db: Option<&mut [f32]>,
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error> {
        Conv2dBackward::both(self, shape, x, dy, dx, dw, db, workspace, parallelism)
    }
}
