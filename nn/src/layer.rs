//! What every node of a network offers: `forward`, `backward`, and its parameters by name.
//!
//! ```text
//!               inputs ──► forward ──► output
//!                             │
//!                           cache                          kept by the layer
//!                             ▼
//!    gradients of inputs ◄── backward ◄── gradient of the output
//!                             │
//!                             ▼  added to
//!               gradients of the parameters
//! ```

use std::sync::OnceLock;

use kernels::Parallelism;
use ndarray::ArrayD;

use crate::attention::MultiHeadAttention;
use crate::error::{Error, Result};
use crate::graph::Graph;
use crate::inference::{ChannelScale, Fused, Kernel, Role};
use crate::tensor::Tensor;

/// A function with parameters, and its derivative.
pub trait Layer: Send {
    /// What kind of layer this is, as users know it.
    fn kind(&self) -> &'static str;

    /// What a user would want to know beside the kind: channels, kernel, stride.
    fn details(&self) -> String {
        String::new()
    }

    /// The shape of the output for inputs of these shapes. Computes nothing.
    ///
    /// # Errors
    /// When the number or the shapes of the inputs do not fit the layer.
    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>>;

    /// Multiplications and additions of the products with weights in a `forward` call, padding counted: what papers
    /// publish (some of them half of it, as multiply-adds). Bias, activations and pooling count nothing.
    ///
    /// # Errors
    /// Those of [`Layer::output_shape`].
    fn flops(&self, inputs: &[Vec<usize>]) -> Result<f64> {
        self.output_shape(inputs).map(|_| 0.0)
    }

    /// The output for some inputs. Keeps what `backward` needs.
    ///
    /// # Errors
    /// When the number or the shapes of the inputs do not fit the layer.
    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor>;

    /// The gradients of the inputs of the last `forward`, given the gradient of its output; what the parameters
    /// contributed is added to their gradients. Uses the cache up: one `backward` for a `forward`.
    ///
    /// # Errors
    /// [`Error::NoForward`] without a cache, [`Error::Shape`] when `d_output` has not the output's shape.
    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>>;

    /// As [`Layer::backward`], where nobody needs the gradients of the inputs: the first layer of a network.
    ///
    /// # Errors
    /// Those of [`Layer::backward`].
    fn backward_parameters(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<()> {
        self.backward(d_output, parallelism).map(drop)
    }

    /// As [`Layer::forward`], for one input that nobody else needs: the output may take its memory. Called for layers
    /// whose role is [`Role::Activation`].
    ///
    /// # Errors
    /// Those of [`Layer::forward`].
    fn forward_own(&mut self, x: Tensor, parallelism: Parallelism<'_>) -> Result<Tensor> {
        self.forward(&[&x], parallelism)
    }

    /// As [`Layer::backward`], for a gradient that nobody else needs: that of the input may take its memory. Called for
    /// layers whose role is [`Role::Activation`].
    ///
    /// # Errors
    /// Those of [`Layer::backward`].
    fn backward_own(&mut self, d_output: Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        self.backward(&d_output, parallelism)
    }

    /// Shows each parameter under its name, as PyTorch has it (`weight`, `bias`), behind `prefix`.
    fn visit(&mut self, prefix: &str, visitor: &mut dyn FnMut(&str, &mut Parameter)) {
        let _ = (prefix, visitor);
    }

    /// Shows each tensor that is part of the state but does not learn, as batch normalisation's `running_mean`.
    fn visit_buffers(&mut self, prefix: &str, visitor: &mut dyn FnMut(&str, &mut ArrayD<f32>)) {
        let _ = (prefix, visitor);
    }

    /// Shows each whole number that what is random in training follows from, as dropout's `seed` and `stream`.
    fn visit_counters(&mut self, prefix: &str, visitor: &mut dyn FnMut(&str, &mut u64)) {
        let _ = (prefix, visitor);
    }

    /// Shows each attention under its name, for those who want to see what it looks at.
    fn visit_attention(&self, prefix: &str, visitor: &mut dyn FnMut(&str, &MultiHeadAttention)) {
        let _ = (prefix, visitor);
    }

    /// Says whether the network learns from now on, or is examined. Most layers do the same in both modes.
    fn set_training(&mut self, training: bool) {
        let _ = training;
    }

    /// The graph that this layer consists of, if it is one.
    fn as_graph(&self) -> Option<&Graph> {
        None
    }

    /// What the layer is to a planned forward pass. A layer that does not say runs by its `forward`, and so does the
    /// whole network with it.
    fn role(&self) -> Role {
        Role::Opaque
    }

    /// For a layer whose role is [`Role::Compute`]: its forward pass with weights packed for inputs like `hint`.
    ///
    /// # Errors
    /// When the shapes of the inputs do not fit the layer.
    fn kernel(&self, hint: &[Vec<usize>], fused: Fused) -> Result<Box<dyn Kernel>> {
        let _ = (hint, fused);
        Err(Error::invalid("layer", "one with a kernel for planned forward passes", self.kind()))
    }

    /// For a layer that, in examination, does no more than to scale and shift each channel: by how much.
    fn channel_scale(&self) -> Option<ChannelScale> {
        None
    }

    /// Whether a scale and shift of so many channels can be taken into the layer's weights: [`Layer::scaled_kernel`].
    fn takes_scale(&self, channels: usize) -> bool {
        let _ = channels;
        false
    }

    /// As [`Layer::kernel`], the output's channels scaled and shifted before all that is fused, for a layer that
    /// [`Layer::takes_scale`].
    ///
    /// # Errors
    /// Those of [`Layer::kernel`].
    fn scaled_kernel(&self, hint: &[Vec<usize>], fused: Fused, scale: &ChannelScale) -> Result<Box<dyn Kernel>> {
        let _ = (hint, fused, scale);
        Err(Error::invalid("layer", "one that takes a scale into its weights", self.kind()))
    }
}

/// A tensor that learns, and the gradient of the loss with respect to it.
#[derive(Clone, Debug)]
pub struct Parameter {
    value: ArrayD<f32>,
    /// Anything while `is_cleared`: the first layer that has something to add writes it instead, which spares memory
    /// the zeros.
    gradient: ArrayD<f32>,
    is_cleared: bool,
    /// What is shown for a gradient that is cleared.
    zeros: OnceLock<ArrayD<f32>>,
    version: u64,
}

impl Parameter {
    /// A parameter with a gradient of zeros. Elements are brought into row-major order.
    pub fn new(value: ArrayD<f32>) -> Self {
        let value = if value.is_standard_layout() { value } else { value.as_standard_layout().into_owned() };
        let zeros = kernels::zeros(value.len());
        let gradient = ArrayD::from_shape_vec(value.raw_dim(), zeros).expect("as many elements");
        Self { value, gradient, is_cleared: true, zeros: OnceLock::new(), version: 0 }
    }

    /// The value.
    pub fn value(&self) -> &ArrayD<f32> {
        &self.value
    }

    /// The value's elements in row-major order.
    pub fn elements(&self) -> &[f32] {
        self.value.as_slice().expect("row-major by construction")
    }

    /// The gradient of the loss, summed over every `backward` since [`Parameter::zero_gradient`].
    pub fn gradient(&self) -> &ArrayD<f32> {
        if self.is_cleared { self.zeros.get_or_init(|| ArrayD::zeros(self.value.raw_dim())) } else { &self.gradient }
    }

    /// The gradient's elements in row-major order.
    pub fn gradient_elements(&self) -> &[f32] {
        self.gradient().as_slice().expect("row-major by construction")
    }

    /// Elements of value and gradient, for an optimiser's step. The layer packs its weights again before it
    /// computes with them.
    pub fn update(&mut self) -> (&mut [f32], &[f32]) {
        self.version += 1;
        self.write_zeros();
        let value = self.value.as_slice_mut().expect("row-major by construction");
        (value, self.gradient.as_slice().expect("row-major by construction"))
    }

    /// Elements of value and gradient, for a layer that adds to the gradient.
    pub fn elements_and_gradient(&mut self) -> (&[f32], &mut [f32]) {
        self.write_zeros();
        self.elements_and_room()
    }

    /// Whether the gradient is zero since [`Parameter::zero_gradient`]: a layer may write its own with
    /// [`Parameter::elements_and_room`] instead of adding to it.
    pub(crate) fn is_cleared(&self) -> bool {
        self.is_cleared
    }

    /// Elements of value and gradient, for a layer that writes all of the gradient, which may hold anything before. One
    /// that fails has to call [`Parameter::zero_gradient`].
    pub(crate) fn elements_and_room(&mut self) -> (&[f32], &mut [f32]) {
        self.is_cleared = false;
        self.zeros.take();
        let value = self.value.as_slice().expect("row-major by construction");
        (value, self.gradient.as_slice_mut().expect("row-major by construction"))
    }

    /// Adds to the gradient, element by element.
    ///
    /// # Errors
    /// [`Error::Shape`] unless there are as many elements as the parameter has.
    pub fn accumulate(&mut self, gradient: &[f32], parallelism: Parallelism<'_>) -> Result<()> {
        if gradient.len() != self.gradient.len() {
            return Err(Error::shape("gradient", format!("{:?}", self.value.shape()), &[gradient.len()]));
        }
        if self.is_cleared {
            self.elements_and_room().1.copy_from_slice(gradient);
            return Ok(());
        }
        Ok(kernels::sum::add(gradient, self.elements_and_gradient().1, parallelism)?)
    }

    /// Sets the gradient to zero.
    pub fn zero_gradient(&mut self) {
        self.is_cleared = true;
    }

    /// Makes the gradient what it is said to be.
    fn write_zeros(&mut self) {
        if self.is_cleared {
            self.gradient.fill(0.0);
            self.is_cleared = false;
            self.zeros.take();
        }
    }

    /// Counts the updates of the value: packed weights of an older version are stale.
    pub fn version(&self) -> u64 {
        self.version
    }
}

/// The name of a parameter that models hold without a layer around it: that of the layer, as `class_token`.
pub(crate) fn bare_name(prefix: &str) -> &str {
    prefix.strip_suffix('.').unwrap_or("weight")
}

/// The shape of the input of a layer that takes one.
pub(crate) fn single_shape(inputs: &[Vec<usize>]) -> Result<&[usize]> {
    match inputs {
        [x] => Ok(x),
        _ => Err(Error::invalid("inputs", "1 tensor", inputs.len())),
    }
}

/// The input of a layer that takes one.
pub(crate) fn single<'a>(inputs: &[&'a Tensor]) -> Result<&'a Tensor> {
    match inputs {
        [x] => Ok(x),
        _ => Err(Error::invalid("inputs", "1 tensor", inputs.len())),
    }
}
