//! Batch normalisation of images.
//!
//! ```text
//! training     y = (x - mean) / sqrt(var + epsilon) * weight + bias      mean, var: of each channel over this batch
//!              running = (1 - momentum) running + momentum of this batch
//! examination  the same with the running mean and variance, which are constants to the gradients
//! ```
//!
//! Ioffe, Szegedy, "Batch normalization", ICML 2015.

use kernels::conv::Layout;
use kernels::norm::{Affine, Gradients, batch};
use kernels::{Parallelism, Workspace};
use ndarray::{Array1, ArrayD};

use crate::error::{Error, Result};
use crate::inference::{Call, ChannelScale, Fused, Kernel, Role};
use crate::layer::{Layer, Parameter, single, single_shape};
use crate::memory::room;
use crate::tensor::{Tensor, check_gradient, elements, image_shape, row_major, tensor};

/// Each channel of `[batch, channels, height, width]` with mean 0 and variance 1, then scaled by `weight` and shifted
/// by `bias`, `[channels]` each. The means and variances that training saw are kept as `running_mean` and
/// `running_var`. In examination, they normalise, and a `backward` is one through a frozen norm: what comes before it
/// learns as ever, and so do `weight` and `bias`.
///
/// ```
/// use nn::{BatchNorm2d, Layer, Parallelism, tensor};
/// let mut norm = BatchNorm2d::new(1)?;
/// let x = tensor(&[2, 1, 1, 1], vec![2.0, 6.0])?;
/// let y = norm.forward(&[&x], Parallelism::Serial)?;
/// assert!((y[[0, 0, 0, 0]] + 1.0).abs() < 1e-5 && (y[[1, 0, 0, 0]] - 1.0).abs() < 1e-5);
/// # Ok::<(), nn::Error>(())
/// ```
pub struct BatchNorm2d {
    weight: Parameter,
    bias: Parameter,
    running_mean: ArrayD<f32>,
    running_var: ArrayD<f32>,
    epsilon: f32,
    momentum: f32,
    training: bool,
    workspace: Workspace,
    d_parameters: [Vec<f32>; 2],
    /// The last input, and what it was normalised by.
    cache: Option<(Tensor, Moments)>,
}

/// What normalised the channels of an input.
enum Moments {
    /// The input's own, in training: mean and inverse deviation.
    Own(Vec<f32>, Vec<f32>),
    /// Those that training kept.
    Running,
}

impl BatchNorm2d {
    /// A layer with an epsilon of 1e-5 and a momentum of 0.1.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no channels.
    pub fn new(channels: usize) -> Result<Self> {
        if channels == 0 {
            return Err(Error::invalid("channels", "at least 1", channels));
        }
        let vector = |value| Array1::from_elem(channels, value).into_dyn();
        Ok(Self {
            weight: Parameter::new(vector(1.0)),
            bias: Parameter::new(vector(0.0)),
            running_mean: vector(0.0),
            running_var: vector(1.0),
            epsilon: 1e-5,
            momentum: 0.1,
            training: true,
            workspace: Workspace::new(),
            d_parameters: [vec![0.0; channels], vec![0.0; channels]],
            cache: None,
        })
    }

    /// Sets what is added to variances.
    pub fn epsilon(mut self, epsilon: f32) -> Self {
        self.epsilon = epsilon;
        self
    }

    /// Sets the weight of a new batch in what is kept, from 0 to 1.
    pub fn momentum(mut self, momentum: f32) -> Self {
        self.momentum = momentum;
        self
    }

    fn shape_of(&self, images: &[usize]) -> Result<batch::Shape> {
        let channels = self.weight.value().len();
        match image_shape(images) {
            Ok((shape, given)) if given == channels => {
                let pixels = shape.height.saturating_mul(shape.width);
                Ok(batch::Shape { batch: shape.batch, channels, pixels, layout: Layout::Nchw })
            }
            _ => Err(Error::shape("x", format!("[batch, {channels}, height, width]"), images)),
        }
    }

    fn kernel_of(&self) -> Running {
        let vector = |parameter: &Parameter| parameter.elements().to_vec();
        Running {
            gamma: vector(&self.weight),
            beta: vector(&self.bias),
            mean: self.running_mean.iter().copied().collect(),
            variance: self.running_var.iter().copied().collect(),
            epsilon: self.epsilon,
        }
    }
}

impl Layer for BatchNorm2d {
    fn kind(&self) -> &'static str {
        "BatchNorm2d"
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        let shape = single_shape(inputs)?;
        self.shape_of(shape).map(|_| shape.to_vec())
    }

    fn role(&self) -> Role {
        Role::Compute { activation: false, residual: false }
    }

    /// `gamma (x - mean) / sqrt(var + epsilon) + beta`
    fn channel_scale(&self) -> Option<ChannelScale> {
        let kernel = self.kernel_of();
        // Whoever is shown the buffers may have put others in their place: the kernel refuses them.
        let channels = kernel.gamma.len();
        if kernel.mean.len() != channels || kernel.variance.len() != channels {
            return None;
        }
        let (mut scale, mut shift) = (Vec::new(), Vec::new());
        for c in 0..kernel.gamma.len() {
            let [gamma, beta, mean] = [&kernel.gamma, &kernel.beta, &kernel.mean].map(|of| f64::from(of[c]));
            scale.push(gamma / (f64::from(kernel.variance[c]) + f64::from(kernel.epsilon)).sqrt());
            shift.push(beta - mean * scale[c]);
        }
        Some(ChannelScale { scale, shift })
    }

    fn kernel(&self, _: &[Vec<usize>], _: Fused) -> Result<Box<dyn Kernel>> {
        Ok(Box::new(self.kernel_of()))
    }

    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let x = row_major(single(inputs)?);
        let shape = self.shape_of(x.shape())?;
        let workspace = self.workspace.grow(batch::workspace_len(shape)?)?;
        let mut y = room(x.len());
        if !self.training {
            let (mean, variance) = (self.running_mean.as_slice(), self.running_var.as_slice());
            let affine = Affine::new(self.weight.elements(), self.bias.elements());
            let (mean, variance) = (mean.unwrap_or_default(), variance.unwrap_or_default());
            batch::inference(
                shape,
                elements(&x),
                mean,
                variance,
                affine,
                self.epsilon,
                &mut y,
                workspace,
                parallelism,
            )?;
            let y = tensor(x.shape(), y)?;
            self.cache = Some((x, Moments::Running));
            return Ok(y);
        }
        let (mut mean, mut inverse_deviation) = (vec![0.0; shape.channels], vec![0.0; shape.channels]);
        let moments = batch::Moments { mean: &mut mean, inverse_deviation: &mut inverse_deviation };
        let running = batch::Running {
            mean: self.running_mean.as_slice_mut().unwrap_or_default(),
            variance: self.running_var.as_slice_mut().unwrap_or_default(),
            momentum: self.momentum,
        };
        // The variance of a single element is not known, and would stay NaN for ever.
        let running = (shape.batch.saturating_mul(shape.pixels) > 1).then_some(running);
        let affine = Affine::new(self.weight.elements(), self.bias.elements());
        batch::forward(shape, elements(&x), affine, self.epsilon, &mut y, moments, running, workspace, parallelism)?;
        let y = tensor(x.shape(), y)?;
        self.cache = Some((x, Moments::Own(mean, inverse_deviation)));
        Ok(y)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let (x, moments) = self.cache.as_ref().ok_or(Error::NoForward)?;
        check_gradient(d_output, x.shape())?;
        let (shape, dy) = (self.shape_of(x.shape())?, row_major(d_output));
        let workspace = self.workspace.grow(batch::workspace_len(shape)?)?;
        let mut dx = room(x.len());
        let [dgamma, dbeta] = &mut self.d_parameters;
        let gradients = Gradients { dx: &mut dx, dgamma: Some(dgamma), dbeta: Some(dbeta) };
        let (images, gamma, dy) = (elements(x), Some(self.weight.elements()), elements(&dy));
        match moments {
            Moments::Own(mean, r) => {
                batch::backward(shape, images, mean, r, gamma, dy, gradients, workspace, parallelism)?;
            }
            Moments::Running => {
                let (mean, variance) = (self.running_mean.as_slice(), self.running_var.as_slice());
                let (mean, variance) = (mean.unwrap_or_default(), variance.unwrap_or_default());
                batch::inference_backward(
                    shape,
                    images,
                    mean,
                    variance,
                    gamma,
                    dy,
                    self.epsilon,
                    gradients,
                    workspace,
                    parallelism,
                )?;
            }
        }
        let dx = tensor(x.shape(), dx)?;
        self.weight.accumulate(&self.d_parameters[0], parallelism)?;
        self.bias.accumulate(&self.d_parameters[1], parallelism)?;
        self.cache = None;
        Ok(vec![dx])
    }

    fn visit(&mut self, prefix: &str, visitor: &mut dyn FnMut(&str, &mut Parameter)) {
        visitor(&format!("{prefix}weight"), &mut self.weight);
        visitor(&format!("{prefix}bias"), &mut self.bias);
    }

    fn visit_buffers(&mut self, prefix: &str, visitor: &mut dyn FnMut(&str, &mut ArrayD<f32>)) {
        visitor(&format!("{prefix}running_mean"), &mut self.running_mean);
        visitor(&format!("{prefix}running_var"), &mut self.running_var);
    }

    fn set_training(&mut self, training: bool) {
        self.training = training;
    }
}

/// The forward pass of a plan.
struct Running {
    gamma: Vec<f32>,
    beta: Vec<f32>,
    mean: Vec<f32>,
    variance: Vec<f32>,
    epsilon: f32,
}

impl Running {
    fn shape(&self, images: &[usize]) -> Result<batch::Shape> {
        let (shape, channels) = image_shape(images)?;
        let pixels = shape.height.saturating_mul(shape.width);
        Ok(batch::Shape { batch: shape.batch, channels, pixels, layout: Layout::Nchw })
    }
}

impl Kernel for Running {
    fn workspace_len(&self, inputs: &[Vec<usize>], _: usize) -> Result<usize> {
        Ok(batch::workspace_len(self.shape(&inputs[0])?)?)
    }

    fn run(&self, call: Call<'_>) -> Result<()> {
        let shape = self.shape(&call.shapes[0])?;
        let (x, affine) = (call.inputs.get(0), Affine::new(&self.gamma, &self.beta));
        batch::inference(
            shape,
            x,
            &self.mean,
            &self.variance,
            affine,
            self.epsilon,
            call.y,
            call.workspace,
            call.parallelism,
        )?;
        Ok(())
    }
}
