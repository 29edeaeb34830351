//! Normalisation of rows and of groups of channels.
//!
//! ```text
//!            mean and variance shared by             weight, bias for
//! LayerNorm  a row, the last axis                    each column
//! RmsNorm    a row, with a mean of 0                 each column, no bias
//! GroupNorm  some channels of one image              each channel
//!
//! y = (x - mean) / sqrt(var + epsilon) * weight + bias
//! ```

use std::marker::PhantomData;

use kernels::norm::{Affine, Gradients, group, layer, rms};
use kernels::{Error as KernelError, Parallelism, Workspace};
use ndarray::Array1;

use crate::error::{Error, Result};
use crate::inference::{Call, Fused, Kernel, Role};
use crate::layer::{Layer, Parameter, single, single_shape};
use crate::memory::room;
use crate::tensor::{Tensor, check_gradient, count, elements, row_major, tensor};

/// Rows `[..., features]` with mean 0 and variance 1, then scaled and shifted. Ba, Kiros, Hinton, "Layer
/// normalization", 2016.
///
/// ```
/// use nn::{Layer, LayerNorm, Parallelism, tensor};
/// let y = LayerNorm::new(2)?.forward(&[&tensor(&[1, 2], vec![2.0, 6.0])?], Parallelism::Serial)?;
/// assert!((y[[0, 0]] + 1.0).abs() < 1e-5 && (y[[0, 1]] - 1.0).abs() < 1e-5);
/// # Ok::<(), nn::Error>(())
/// ```
pub type LayerNorm = Norm<OverRow>;

/// Rows `[..., features]` with a mean square of 1, then scaled. Zhang, Sennrich, "Root mean square layer
/// normalization", NeurIPS 2019.
pub type RmsNorm = Norm<OverSquares>;

/// Groups of channels of images `[batch, channels, ...]` with mean 0 and variance 1, then each channel scaled and
/// shifted. Wu, He, "Group normalization", ECCV 2018.
pub type GroupNorm = Norm<OverGroup>;

/// A normalisation with parameters, whatever shares the mean. See [`LayerNorm`], [`RmsNorm`], [`GroupNorm`].
pub struct Norm<S> {
    weight: Parameter,
    bias: Option<Parameter>,
    groups: usize,
    epsilon: f32,
    workspace: Workspace,
    d_weight: Vec<f32>,
    d_bias: Vec<f32>,
    cache: Option<Tensor>,
    sharing: PhantomData<S>,
}

/// The elements that share a mean are a row.
pub struct OverRow;

/// The elements that share a mean square are a row.
pub struct OverSquares;

/// The elements that share a mean are a group of channels.
pub struct OverGroup;

/// Who shares a mean: which kernel runs.
pub trait Sharing: Send + Sync + 'static {
    /// The layer's name.
    #[doc(hidden)]
    const KIND: &'static str;
    /// Whether channels are the second axis, and not the last.
    #[doc(hidden)]
    const CHANNELS: bool;
    #[doc(hidden)]
    fn forward(call: Operands<'_>, y: &mut [f32], parallelism: Parallelism<'_>)
    -> std::result::Result<(), KernelError>;
    #[doc(hidden)]
    fn workspace_len(sizes: [usize; 4]) -> std::result::Result<usize, KernelError>;
    #[doc(hidden)]
    fn backward(
        call: Operands<'_>,
        dy: &[f32],
        gradients: Gradients<'_>,
        workspace: &mut [f32],
        parallelism: Parallelism<'_>,
    ) -> std::result::Result<(), KernelError>;
}

/// What the kernels read.
#[doc(hidden)]
pub struct Operands<'a> {
    /// Rows or images, features or channels, pixels, groups.
    sizes: [usize; 4],
    x: &'a [f32],
    affine: Affine<'a>,
    epsilon: f32,
}

impl Sharing for OverRow {
    const KIND: &'static str = "LayerNorm";
    const CHANNELS: bool = false;
    fn forward(
        call: Operands<'_>,
        y: &mut [f32],
        parallelism: Parallelism<'_>,
    ) -> std::result::Result<(), KernelError> {
        let [rows, columns, ..] = call.sizes;
        layer::forward([rows, columns], call.x, call.affine, call.epsilon, y, parallelism)
    }
    fn workspace_len([rows, columns, ..]: [usize; 4]) -> std::result::Result<usize, KernelError> {
        layer::backward_workspace_len([rows, columns])
    }
    fn backward(
        call: Operands<'_>,
        dy: &[f32],
        gradients: Gradients<'_>,
        workspace: &mut [f32],
        parallelism: Parallelism<'_>,
    ) -> std::result::Result<(), KernelError> {
        let ([rows, columns, ..], gamma) = (call.sizes, call.affine.gamma);
        layer::backward([rows, columns], call.x, gamma, dy, call.epsilon, gradients, workspace, parallelism)
    }
}

impl Sharing for OverSquares {
    const KIND: &'static str = "RmsNorm";
    const CHANNELS: bool = false;
    fn forward(
        call: Operands<'_>,
        y: &mut [f32],
        parallelism: Parallelism<'_>,
    ) -> std::result::Result<(), KernelError> {
        let [rows, columns, ..] = call.sizes;
        rms::forward([rows, columns], call.x, call.affine.gamma, call.epsilon, y, parallelism)
    }
    fn workspace_len([rows, columns, ..]: [usize; 4]) -> std::result::Result<usize, KernelError> {
        rms::backward_workspace_len([rows, columns])
    }
    fn backward(
        call: Operands<'_>,
        dy: &[f32],
        gradients: Gradients<'_>,
        workspace: &mut [f32],
        parallelism: Parallelism<'_>,
    ) -> std::result::Result<(), KernelError> {
        let ([rows, columns, ..], gamma) = (call.sizes, call.affine.gamma);
        rms::backward([rows, columns], call.x, gamma, dy, call.epsilon, gradients, workspace, parallelism)
    }
}

impl OverGroup {
    fn shape([batch, channels, pixels, groups]: [usize; 4]) -> group::Shape {
        group::Shape { batch, channels, pixels, groups }
    }
}

impl Sharing for OverGroup {
    const KIND: &'static str = "GroupNorm";
    const CHANNELS: bool = true;
    fn forward(
        call: Operands<'_>,
        y: &mut [f32],
        parallelism: Parallelism<'_>,
    ) -> std::result::Result<(), KernelError> {
        group::forward(Self::shape(call.sizes), call.x, call.affine, call.epsilon, y, parallelism)
    }
    fn workspace_len(sizes: [usize; 4]) -> std::result::Result<usize, KernelError> {
        group::backward_workspace_len(Self::shape(sizes))
    }
    fn backward(
        call: Operands<'_>,
        dy: &[f32],
        gradients: Gradients<'_>,
        workspace: &mut [f32],
        parallelism: Parallelism<'_>,
    ) -> std::result::Result<(), KernelError> {
        let (shape, gamma) = (Self::shape(call.sizes), call.affine.gamma);
        group::backward(shape, call.x, gamma, dy, call.epsilon, gradients, workspace, parallelism)
    }
}

impl LayerNorm {
    /// A layer over rows of so many features, with an epsilon of 1e-5.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no features.
    pub fn new(features: usize) -> Result<Self> {
        Self::make(features, true, 1)
    }
}

impl RmsNorm {
    /// A layer over rows of so many features, with an epsilon of 1e-5.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no features.
    pub fn new(features: usize) -> Result<Self> {
        Self::make(features, false, 1)
    }
}

impl GroupNorm {
    /// A layer over so many channels in so many groups, with an epsilon of 1e-5.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no channels, and for groups that do not divide them.
    pub fn new(groups: usize, channels: usize) -> Result<Self> {
        if groups == 0 || !channels.is_multiple_of(groups) {
            return Err(Error::invalid("groups", format!("a divisor of the {channels} channels"), groups));
        }
        Self::make(channels, true, groups)
    }
}

impl<S: Sharing> Norm<S> {
    fn make(features: usize, with_bias: bool, groups: usize) -> Result<Self> {
        if features == 0 {
            return Err(Error::invalid("features", "at least 1", features));
        }
        let vector = |value| Parameter::new(Array1::from_elem(features, value).into_dyn());
        Ok(Self {
            weight: vector(1.0),
            bias: with_bias.then(|| vector(0.0)),
            groups,
            epsilon: 1e-5,
            workspace: Workspace::new(),
            d_weight: vec![0.0; features],
            d_bias: vec![0.0; if with_bias { features } else { 0 }],
            cache: None,
            sharing: PhantomData,
        })
    }

    /// Sets what is added to variances.
    pub fn epsilon(mut self, epsilon: f32) -> Self {
        self.epsilon = epsilon;
        self
    }

    fn sizes(&self, shape: &[usize]) -> Result<[usize; 4]> {
        sizes::<S>(shape, self.weight.value().len(), self.groups)
    }
}

/// Rows or images, features or channels, pixels, groups.
fn sizes<S: Sharing>(shape: &[usize], features: usize, groups: usize) -> Result<[usize; 4]> {
    match shape {
        [batch, channels, pixels @ ..] if S::CHANNELS && *channels == features => {
            Ok([*batch, features, count("x", pixels)?, groups])
        }
        [rows @ .., columns] if !S::CHANNELS && *columns == features => Ok([count("x", rows)?, features, 1, 1]),
        _ if S::CHANNELS => Err(Error::shape("x", format!("[batch, {features}, ...]"), shape)),
        _ => Err(Error::shape("x", format!("[..., {features}]"), shape)),
    }
}

impl<S: Sharing> Layer for Norm<S> {
    fn kind(&self) -> &'static str {
        S::KIND
    }

    fn details(&self) -> String {
        let features = self.weight.value().len();
        if S::CHANNELS { format!("{features} in {} groups", self.groups) } else { features.to_string() }
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        let shape = single_shape(inputs)?;
        self.sizes(shape).map(|_| shape.to_vec())
    }

    fn role(&self) -> Role {
        Role::Compute { activation: false, residual: false }
    }

    fn kernel(&self, _: &[Vec<usize>], _: Fused) -> Result<Box<dyn Kernel>> {
        Ok(Box::new(Planned::<S> {
            gamma: self.weight.elements().to_vec(),
            beta: self.bias.as_ref().map(|bias| bias.elements().to_vec()),
            groups: self.groups,
            epsilon: self.epsilon,
            sharing: PhantomData,
        }))
    }

    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let x = row_major(single(inputs)?);
        let affine = Affine { gamma: Some(self.weight.elements()), beta: self.bias.as_ref().map(Parameter::elements) };
        let call = Operands { sizes: self.sizes(x.shape())?, x: elements(&x), affine, epsilon: self.epsilon };
        let mut y = room(x.len());
        S::forward(call, &mut y, parallelism)?;
        let y = tensor(x.shape(), y)?;
        self.cache = Some(x);
        Ok(y)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let x = self.cache.clone().ok_or(Error::NoForward)?;
        check_gradient(d_output, x.shape())?;
        let (sizes, dy) = (self.sizes(x.shape())?, row_major(d_output));
        let workspace = self.workspace.grow(S::workspace_len(sizes)?)?;
        let mut dx = room(x.len());
        let affine = Affine { gamma: Some(self.weight.elements()), beta: None };
        let call = Operands { sizes, x: elements(&x), affine, epsilon: self.epsilon };
        let dbeta = self.bias.is_some().then_some(self.d_bias.as_mut_slice());
        let gradients = Gradients { dx: &mut dx, dgamma: Some(&mut self.d_weight), dbeta };
        S::backward(call, elements(&dy), gradients, workspace, parallelism)?;
        self.weight.accumulate(&self.d_weight, parallelism)?;
        if let Some(bias) = &mut self.bias {
            bias.accumulate(&self.d_bias, parallelism)?;
        }
        self.cache = None;
        Ok(vec![tensor(x.shape(), dx)?])
    }

    fn visit(&mut self, prefix: &str, visitor: &mut dyn FnMut(&str, &mut Parameter)) {
        visitor(&format!("{prefix}weight"), &mut self.weight);
        if let Some(bias) = &mut self.bias {
            visitor(&format!("{prefix}bias"), bias);
        }
    }
}

/// The forward pass of a plan.
struct Planned<S> {
    gamma: Vec<f32>,
    beta: Option<Vec<f32>>,
    groups: usize,
    epsilon: f32,
    sharing: PhantomData<S>,
}

impl<S: Sharing> Kernel for Planned<S> {
    fn run(&self, call: Call<'_>) -> Result<()> {
        let sizes = sizes::<S>(&call.shapes[0], self.gamma.len(), self.groups)?;
        let affine = Affine { gamma: Some(&self.gamma), beta: self.beta.as_deref() };
        let operands = Operands { sizes, x: call.inputs.get(0), affine, epsilon: self.epsilon };
        S::forward(operands, call.y, call.parallelism)?;
        Ok(())
    }
}
