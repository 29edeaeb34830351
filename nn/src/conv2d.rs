//! The convolutional layer.
//!
//! ```text
//! y[n, oc, oh, ow] = bias[oc] + sum over ic, kh, kw of  weight[oc, ic, kh, kw] * x[n, ic, oh * stride + kh, ...]
//! ```

use kernels::conv::{self, Conv2dBackward, Conv2dSpec, Layout, Shape};
use kernels::{Activation, Parallelism, Workspace};
use ndarray::{Array1, ArrayD};

use crate::error::{Error, Result};
use crate::inference::{Call, ChannelScale, Fused, Kernel, Role};
use crate::init::kaiming_uniform;
use crate::layer::{Layer, Parameter, single, single_shape};
use crate::memory::room;
use crate::random::Random;
use crate::tensor::{Tensor, check_gradient, elements, image_shape, row_major, tensor};

/// A convolution over images `[batch, in_channels, height, width]` with weights that learn:
/// `weight [out_channels, in_channels / groups, kernel height, kernel width]` and `bias [out_channels]`.
///
/// ```
/// use kernels::{Parallelism, conv::Conv2dSpec};
/// use nn::{Conv2d, Layer, Random};
/// let mut conv = Conv2d::new(Conv2dSpec::new(1, 6, [5, 5]), &mut Random::new(0))?;
/// let images = nn::tensor(&[2, 1, 28, 28], vec![0.0; 2 * 28 * 28])?;
/// assert_eq!(conv.forward(&[&images], Parallelism::Current)?.shape(), [2, 6, 24, 24]);
/// # Ok::<(), nn::Error>(())
/// ```
pub struct Conv2d {
    spec: Conv2dSpec,
    weight: Parameter,
    bias: Option<Parameter>,
    forward: Option<Plan<conv::Conv2d>>,
    backward: Option<Plan<Conv2dBackward>>,
    workspace: Workspace,
    /// Room for gradients that are to be added to others.
    d_weight: Vec<f32>,
    d_bias: Vec<f32>,
    /// The last input, [batch, in_channels, height, width], and the shape of its output.
    cache: Option<(Tensor, [usize; 4])>,
}

/// Packed weights, and the versions of weight and bias that they come from.
struct Plan<P> {
    kernel: P,
    version: [u64; 2],
}

impl Conv2d {
    /// A layer with Kaiming-uniform weights and a bias of zeros.
    ///
    /// # Errors
    /// Those of [`Conv2dSpec::check`], and [`Error::Invalid`] for a spec in another layout than NCHW or with an
    /// activation, which is a layer of its own.
    pub fn new(spec: Conv2dSpec, random: &mut Random) -> Result<Self> {
        spec.check()?;
        let [kh, kw] = spec.kernel;
        let group_in = spec.in_channels / spec.groups;
        let weight = kaiming_uniform(&[spec.out_channels, group_in, kh, kw], group_in * kh * kw, random);
        Self::with_weights(spec, weight, Some(Array1::zeros(spec.out_channels).into_dyn()))
    }

    /// A layer with Kaiming-uniform weights alone: batch normalisation behind it has a bias of its own.
    ///
    /// # Errors
    /// Those of [`Conv2d::new`].
    pub fn without_bias(spec: Conv2dSpec, random: &mut Random) -> Result<Self> {
        let mut layer = Self::new(spec, random)?;
        layer.bias = None;
        Ok(layer)
    }

    /// A layer with given weights, and with a bias or without.
    ///
    /// # Errors
    /// Those of [`Conv2d::new`], and [`Error::Shape`] for weights or a bias that do not fit the spec.
    pub fn with_weights(spec: Conv2dSpec, weight: ArrayD<f32>, bias: Option<ArrayD<f32>>) -> Result<Self> {
        Self::check(&spec)?;
        let [kh, kw] = spec.kernel;
        let expected = [spec.out_channels, spec.in_channels / spec.groups, kh, kw];
        if weight.shape() != expected {
            return Err(Error::shape("weight", format!("{expected:?}"), weight.shape()));
        }
        Self::with_fitting_weights(spec, weight, bias)
    }

    /// Whether the layer can be what the spec says.
    pub(crate) fn check(spec: &Conv2dSpec) -> Result<()> {
        spec.check()?;
        if spec.layout != Layout::Nchw {
            return Err(Error::invalid("layout", "Nchw", format!("{:?}", spec.layout)));
        }
        if spec.activation != Activation::Identity {
            return Err(Error::invalid("activation", "Identity", format!("{:?}", spec.activation)));
        }
        Ok(())
    }

    /// A layer whose weights have as many elements as they should, under whatever shape their owner shows.
    pub(crate) fn with_fitting_weights(
        spec: Conv2dSpec,
        weight: ArrayD<f32>,
        bias: Option<ArrayD<f32>>,
    ) -> Result<Self> {
        if let Some(bias) = bias.as_ref().filter(|bias| bias.shape() != [spec.out_channels]) {
            return Err(Error::shape("bias", format!("[{}]", spec.out_channels), bias.shape()));
        }
        Ok(Self {
            spec,
            d_weight: Vec::new(),
            d_bias: Vec::new(),
            weight: Parameter::new(weight),
            bias: bias.map(Parameter::new),
            forward: None,
            backward: None,
            workspace: Workspace::new(),
            cache: None,
        })
    }

    /// The spec.
    pub fn spec(&self) -> &Conv2dSpec {
        &self.spec
    }

    /// A plan with what follows in it, for these weights.
    fn planned(
        &self,
        hint: &[Vec<usize>],
        fused: Fused,
        weight: &[f32],
        bias: Option<&[f32]>,
    ) -> Result<Box<dyn Kernel>> {
        let shape = self.shape_of(single_shape(hint)?)?;
        let plan = conv::Conv2d::new(self.spec.activation(fused.activation), weight, bias, shape)?;
        Ok(Box::new(Planned { plan, residual: fused.residual }))
    }

    /// The shape of images [batch, in_channels, height, width], as the kernels know it.
    fn shape_of(&self, images: &[usize]) -> Result<Shape> {
        match *images {
            [batch, channels, height, width] if channels == self.spec.in_channels => {
                Ok(Shape::new(batch, height, width))
            }
            _ => Err(Error::shape("x", format!("[batch, {}, height, width]", self.spec.in_channels), images)),
        }
    }

    fn version(&self) -> [u64; 2] {
        [self.weight.version(), self.bias.as_ref().map_or(0, Parameter::version)]
    }

    /// Brings the packed weights of the forward plan up to date; makes the plan for the first shape that comes.
    fn prepare_forward(&mut self, shape: Shape, parallelism: Parallelism<'_>) -> Result<()> {
        let version = self.version();
        let (weight, bias) = (self.weight.elements(), self.bias.as_ref().map(Parameter::elements));
        match &mut self.forward {
            Some(plan) if plan.version == version => {}
            Some(plan) => {
                plan.kernel.set_weights(weight, bias, parallelism)?;
                plan.version = version;
            }
            None => {
                let kernel = conv::Conv2d::new(self.spec, weight, bias, shape)?;
                self.forward = Some(Plan { kernel, version });
            }
        }
        Ok(())
    }

    /// The same for the backward plan.
    fn prepare_backward(&mut self, shape: Shape, parallelism: Parallelism<'_>) -> Result<()> {
        let version = self.version();
        match &mut self.backward {
            Some(plan) if plan.version == version => {}
            Some(plan) => {
                plan.kernel.set_weights(self.weight.elements(), parallelism)?;
                plan.version = version;
            }
            None => {
                let kernel = Conv2dBackward::new(self.spec, self.weight.elements(), shape)?;
                self.backward = Some(Plan { kernel, version });
            }
        }
        Ok(())
    }

    /// Adds to the parameters' gradients; the gradient of the input only if there is room given for it.
    fn run_backward(
        &mut self,
        d_output: &Tensor,
        dx: Option<&mut Vec<f32>>,
        parallelism: Parallelism<'_>,
    ) -> Result<Vec<usize>> {
        let (x, y_shape) = self.cache.as_ref().ok_or(Error::NoForward)?;
        check_gradient(d_output, y_shape)?;
        let x = x.clone();
        let (dy, shape) = (row_major(d_output), self.shape_of(x.shape())?);
        self.prepare_backward(shape, parallelism)?;
        let Some(Plan { kernel, .. }) = &self.backward else { return Err(Error::NoForward) };
        let workspace = self.workspace.grow(kernel.workspace_len(shape, parallelism.threads())?)?;
        let (x_elements, dy) = (elements(&x), elements(&dy));
        // Where there is nothing to add to, the kernel writes to the parameters' gradients themselves.
        let is_cleared = self.weight.is_cleared() && self.bias.as_ref().is_none_or(Parameter::is_cleared);
        let (dw, db) = if is_cleared {
            let db = self.bias.as_mut().map(|bias| bias.elements_and_room().1);
            (self.weight.elements_and_room().1, db)
        } else {
            self.d_weight.resize(self.weight.value().len(), 0.0);
            self.d_bias.resize(self.spec.out_channels, 0.0);
            (self.d_weight.as_mut_slice(), self.bias.is_some().then_some(self.d_bias.as_mut_slice()))
        };
        let result = match dx {
            Some(dx) => {
                *dx = room(x_elements.len());
                kernel.both(shape, x_elements, dy, dx, dw, db, workspace, parallelism)
            }
            None => kernel.weights(shape, x_elements, dy, dw, db, workspace, parallelism),
        };
        if is_cleared {
            if result.is_err() {
                self.weight.zero_gradient();
                if let Some(bias) = &mut self.bias {
                    bias.zero_gradient();
                }
            }
            result?;
        } else {
            result?;
            self.weight.accumulate(&self.d_weight, parallelism)?;
            if let Some(bias) = &mut self.bias {
                bias.accumulate(&self.d_bias, parallelism)?;
            }
        }
        self.cache = None;
        Ok(x.shape().to_vec())
    }
}

impl Layer for Conv2d {
    fn kind(&self) -> &'static str {
        "Conv2d"
    }

    fn details(&self) -> String {
        format!("{}{}", self.spec, if self.bias.is_some() { "" } else { " without bias" })
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        let shape = self.shape_of(single_shape(inputs)?)?;
        let [height, width] = self.spec.sizes(shape)?.output;
        Ok(vec![shape.batch, self.spec.out_channels, height, width])
    }

    fn flops(&self, inputs: &[Vec<usize>]) -> Result<f64> {
        Ok(self.spec.flops(self.shape_of(single_shape(inputs)?)?)?)
    }

    fn role(&self) -> Role {
        Role::Compute { activation: true, residual: true }
    }

    fn kernel(&self, hint: &[Vec<usize>], fused: Fused) -> Result<Box<dyn Kernel>> {
        self.planned(hint, fused, self.weight.elements(), self.bias.as_ref().map(Parameter::elements))
    }

    fn takes_scale(&self, channels: usize) -> bool {
        channels == self.spec.out_channels
    }

    fn scaled_kernel(&self, hint: &[Vec<usize>], fused: Fused, scale: &ChannelScale) -> Result<Box<dyn Kernel>> {
        let out_channels = self.spec.out_channels;
        scale.check(out_channels)?;
        let mut weight = self.weight.elements().to_vec();
        let filter = weight.len() / out_channels;
        for (oc, filter) in weight.chunks_exact_mut(filter.max(1)).enumerate() {
            scale.scale(oc, filter);
        }
        self.planned(hint, fused, &weight, Some(&scale.bias(self.bias.as_ref().map(Parameter::elements))))
    }

    /// x [batch, in_channels, height, width] -> y [batch, out_channels, output height, output width]
    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let x = row_major(single(inputs)?);
        let shape = self.shape_of(x.shape())?;
        let sizes = self.spec.sizes(shape)?;
        self.prepare_forward(shape, parallelism)?;
        let Some(Plan { kernel, .. }) = &self.forward else { return Err(Error::NoForward) };
        let workspace = self.workspace.grow(kernel.workspace_len(shape, parallelism.threads())?)?;
        let mut y = room(sizes.y_len);
        kernel.forward(shape, elements(&x), None, &mut y, workspace, parallelism)?;
        let y_shape = [shape.batch, self.spec.out_channels, sizes.output[0], sizes.output[1]];
        self.cache = Some((x, y_shape));
        tensor(&y_shape, y)
    }

    /// dx = dy * weight turned around;  dweight += dy * x;  dbias += sum of dy over batch and pixels
    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let mut dx = Vec::new();
        let x_shape = self.run_backward(d_output, Some(&mut dx), parallelism)?;
        Ok(vec![tensor(&x_shape, dx)?])
    }

    fn backward_parameters(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<()> {
        self.run_backward(d_output, None, parallelism).map(drop)
    }

    fn visit(&mut self, prefix: &str, visitor: &mut dyn FnMut(&str, &mut Parameter)) {
        visitor(&format!("{prefix}weight"), &mut self.weight);
        if let Some(bias) = &mut self.bias {
            visitor(&format!("{prefix}bias"), bias);
        }
    }
}

/// The forward pass with packed weights.
struct Planned {
    plan: conv::Conv2d,
    residual: bool,
}

impl Planned {
    /// Of images, or of lines.
    fn shape(inputs: &[usize]) -> Result<Shape> {
        match *inputs {
            [batch, _, length] => Ok(Shape::line(batch, length)),
            _ => image_shape(inputs).map(|(shape, _)| shape),
        }
    }
}

impl Kernel for Planned {
    fn workspace_len(&self, inputs: &[Vec<usize>], slots: usize) -> Result<usize> {
        Ok(self.plan.workspace_len(Self::shape(&inputs[0])?, slots)?)
    }

    fn run(&self, call: Call<'_>) -> Result<()> {
        let residual = self.residual.then(|| call.inputs.get(1));
        let (shape, x) = (Self::shape(&call.shapes[0])?, call.inputs.get(0));
        self.plan.forward(shape, x, residual, call.y, call.workspace, call.parallelism)?;
        Ok(())
    }
}
