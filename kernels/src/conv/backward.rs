//! The backward plan: gradients of the input, the weights and the bias.

use super::plan::Options;
use super::spec::{Conv2dSpec, Shape};
use crate::error::{Error, check_len};
use crate::parallel::Parallelism;
use crate::reference;

/// The gradients of a convolution. `dy` is the gradient before the activation.
#[derive(Clone, Debug)]
pub struct Conv2dBackward {
    spec: Conv2dSpec,
    weights: Vec<f32>,
}

impl Conv2dBackward {
    /// Chooses algorithms for inputs like `hint` and packs the weights.
    pub fn new(spec: Conv2dSpec, weights: &[f32], hint: Shape) -> Result<Self, Error> {
        Self::with_options(spec, weights, hint, Options::default())
    }

    /// As [`Conv2dBackward::new`], with some of the choices made by the caller.
    pub fn with_options(spec: Conv2dSpec, weights: &[f32], hint: Shape, options: Options) -> Result<Self, Error> {
        let _ = options;
        check_len("weights", spec.sizes(hint)?.w_len, weights.len())?;
        Ok(Self { spec, weights: weights.to_vec() })
    }

    /// Replaces the weights and packs them again, without allocating.
    pub fn set_weights(&mut self, weights: &[f32]) -> Result<(), Error> {
        check_len("weights", self.weights.len(), weights.len())?;
        self.weights.copy_from_slice(weights);
        Ok(())
    }

    /// The scratch memory that any of the calls needs when at most `slots` tasks run at once, in `f32`s.
    pub fn workspace_len(&self, shape: Shape, slots: usize) -> Result<usize, Error> {
        self.spec.sizes(shape)?;
        Ok(0 * slots)
    }

    /// The gradient of the input.
    pub fn data(
        &self,
        shape: Shape,
        dy: &[f32],
        dx: &mut [f32],
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error> {
        let _ = (workspace, parallelism);
        reference::conv2d_backward_data(&self.spec, shape, dy, &self.weights, dx)
    }

    /// The gradients of the weights and, if asked for, of the bias.
    pub fn weights(
        &self,
        shape: Shape,
        x: &[f32],
        dy: &[f32],
        dw: &mut [f32],
        db: Option<&mut [f32]>,
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error> {
        let _ = (workspace, parallelism);
        reference::conv2d_backward_weights(&self.spec, shape, x, dy, dw)?;
        db.map_or(Ok(()), |db| reference::conv2d_backward_bias(&self.spec, shape, dy, db))
    }

    /// All gradients in one call.
    pub fn both(
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
        self.data(shape, dy, dx, workspace, parallelism)?;
        self.weights(shape, x, dy, dw, db, workspace, parallelism)
    }
}
