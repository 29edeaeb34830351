//! The transposed convolutional layer: the gradient of a convolution as a layer of its own, which makes images larger.
//!
//! ```text
//! y[n, oc, ih * stride + kh * dilation - padding, ...] += weight[ic, oc, kh, kw] * x[n, ic, ih, iw],  then + bias[oc]
//! ```

use kernels::conv::{self, ConvTranspose2dSpec, Layout, Shape};
use kernels::{Activation, Parallelism, Workspace};
use ndarray::{Array1, ArrayD};

use crate::error::{Error, Result};
use crate::inference::{Call, ChannelScale, Fused, Kernel, Role};
use crate::init::kaiming_uniform;
use crate::layer::{Layer, Parameter, single, single_shape};
use crate::memory::room;
use crate::random::Random;
use crate::tensor::{Tensor, check_gradient, elements, image_shape, row_major, tensor};

/// A transposed convolution over images `[batch, in_channels, height, width]` with weights that learn:
/// `weight [in_channels, out_channels / groups, kernel height, kernel width]` and `bias [out_channels]`.
///
/// ```
/// use kernels::{Parallelism, conv::ConvTranspose2dSpec};
/// use nn::{ConvTranspose2d, Layer, Random, tensor};
/// let spec = ConvTranspose2dSpec::new(8, 4, [2, 2]).stride([2, 2]);
/// let mut up = ConvTranspose2d::new(spec, &mut Random::new(0))?;
/// let x = tensor(&[1, 8, 7, 7], vec![0.0; 8 * 49])?;
/// assert_eq!(up.forward(&[&x], Parallelism::Current)?.shape(), [1, 4, 14, 14]);
/// # Ok::<(), nn::Error>(())
/// ```
pub struct ConvTranspose2d {
    spec: ConvTranspose2dSpec,
    weight: Parameter,
    bias: Option<Parameter>,
    /// Packed weights, and the versions of weight and bias that they come from.
    plan: Option<(conv::ConvTranspose2d, [u64; 2])>,
    workspace: Workspace,
    d_weight: Vec<f32>,
    d_bias: Vec<f32>,
    /// The last input and the shape of its output.
    cache: Option<(Tensor, Vec<usize>)>,
}

impl ConvTranspose2d {
    /// A layer with Kaiming-uniform weights and a bias of zeros.
    ///
    /// # Errors
    /// Those of the spec's [`gradient_of`](ConvTranspose2dSpec::gradient_of), and [`Error::Invalid`] for another layout
    /// than NCHW or an activation, which is a layer of its own.
    pub fn new(spec: ConvTranspose2dSpec, random: &mut Random) -> Result<Self> {
        spec.gradient_of().check()?;
        let [kh, kw] = spec.kernel;
        // Taps that meet in one output.
        let taps = kh.div_ceil(spec.stride[0]) * kw.div_ceil(spec.stride[1]);
        let fan_in = spec.in_channels / spec.groups * taps;
        let weight = kaiming_uniform(&[spec.in_channels, spec.out_channels / spec.groups, kh, kw], fan_in, random);
        Self::with_weights(spec, weight, Some(Array1::zeros(spec.out_channels).into_dyn()))
    }

    /// A layer with given weights, and with a bias or without.
    ///
    /// # Errors
    /// Those of [`ConvTranspose2d::new`], and [`Error::Shape`] for weights or a bias that do not fit the spec.
    pub fn with_weights(spec: ConvTranspose2dSpec, weight: ArrayD<f32>, bias: Option<ArrayD<f32>>) -> Result<Self> {
        spec.gradient_of().check()?;
        if spec.layout != Layout::Nchw {
            return Err(Error::invalid("layout", "Nchw", format!("{:?}", spec.layout)));
        }
        if spec.activation != Activation::Identity {
            return Err(Error::invalid("activation", "Identity", format!("{:?}", spec.activation)));
        }
        let [kh, kw] = spec.kernel;
        let expected = [spec.in_channels, spec.out_channels / spec.groups, kh, kw];
        if weight.shape() != expected {
            return Err(Error::shape("weight", format!("{expected:?}"), weight.shape()));
        }
        if let Some(bias) = bias.as_ref().filter(|bias| bias.shape() != [spec.out_channels]) {
            return Err(Error::shape("bias", format!("[{}]", spec.out_channels), bias.shape()));
        }
        Ok(Self {
            spec,
            d_weight: vec![0.0; weight.len()],
            d_bias: vec![0.0; bias.as_ref().map_or(0, ArrayD::len)],
            weight: Parameter::new(weight),
            bias: bias.map(Parameter::new),
            plan: None,
            workspace: Workspace::new(),
            cache: None,
        })
    }

    /// The spec.
    pub fn spec(&self) -> &ConvTranspose2dSpec {
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
        let plan = conv::ConvTranspose2d::new(self.spec.activation(fused.activation), weight, bias, shape)?;
        Ok(Box::new(Planned { plan, residual: fused.residual }))
    }

    fn shape_of(&self, images: &[usize]) -> Result<Shape> {
        match image_shape(images) {
            Ok((shape, channels)) if channels == self.spec.in_channels => Ok(shape),
            _ => Err(Error::shape("x", format!("[batch, {}, height, width]", self.spec.in_channels), images)),
        }
    }

    /// Brings the packed weights up to date; makes the plan for the first shape that comes.
    fn prepare(&mut self, shape: Shape, parallelism: Parallelism<'_>) -> Result<()> {
        let version = [self.weight.version(), self.bias.as_ref().map_or(0, Parameter::version)];
        let (weight, bias) = (self.weight.elements(), self.bias.as_ref().map(Parameter::elements));
        match &mut self.plan {
            Some((_, packed)) if *packed == version => {}
            Some((kernel, packed)) => {
                kernel.set_weights(weight, bias, parallelism)?;
                *packed = version;
            }
            None => self.plan = Some((conv::ConvTranspose2d::new(self.spec, weight, bias, shape)?, version)),
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
        let (x, y_shape) = self.cache.clone().ok_or(Error::NoForward)?;
        check_gradient(d_output, &y_shape)?;
        let (dy, shape) = (row_major(d_output), self.shape_of(x.shape())?);
        self.prepare(shape, parallelism)?;
        let Some((kernel, _)) = &self.plan else { return Err(Error::NoForward) };
        let workspace = self.workspace.grow(kernel.workspace_len(shape, parallelism.threads())?)?;
        let (images, dy) = (elements(&x), elements(&dy));
        let (dw, db) = (&mut self.d_weight, self.bias.is_some().then_some(self.d_bias.as_mut_slice()));
        match dx {
            Some(dx) => {
                *dx = room(images.len());
                kernel.both(shape, images, dy, dx, dw, db, workspace, parallelism)?;
            }
            None => kernel.backward_weights(shape, images, dy, dw, db, workspace, parallelism)?,
        }
        self.weight.accumulate(&self.d_weight, parallelism)?;
        if let Some(bias) = &mut self.bias {
            bias.accumulate(&self.d_bias, parallelism)?;
        }
        self.cache = None;
        Ok(x.shape().to_vec())
    }
}

impl Layer for ConvTranspose2d {
    fn kind(&self) -> &'static str {
        "ConvTranspose2d"
    }

    fn details(&self) -> String {
        let ConvTranspose2dSpec { in_channels, out_channels, kernel: [kh, kw], stride: [sh, sw], .. } = self.spec;
        format!("{in_channels}->{out_channels} {kh}x{kw} stride {sh}x{sw}")
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        let shape = self.shape_of(single_shape(inputs)?)?;
        let [height, width] = self.spec.sizes(shape)?.output;
        Ok(vec![shape.batch, self.spec.out_channels, height, width])
    }

    fn flops(&self, inputs: &[Vec<usize>]) -> Result<f64> {
        let [height, width] = [2, 3].map(|axis| self.output_shape(inputs).map_or(0, |shape| shape[axis]));
        let shape = self.shape_of(single_shape(inputs)?)?;
        Ok(self.spec.gradient_of().flops(Shape::new(shape.batch, height, width))?)
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
        let [group_in, group_out] = [self.spec.in_channels, out_channels].map(|channels| channels / self.spec.groups);
        let taps = self.spec.kernel.iter().product::<usize>();
        let mut weight = self.weight.elements().to_vec();
        // The filters of an input channel are those of its group's outputs.
        for (at, filter) in weight.chunks_exact_mut(taps).enumerate() {
            let oc = at / group_out / group_in * group_out + at % group_out;
            scale.scale(oc, filter);
        }
        self.planned(hint, fused, &weight, Some(&scale.bias(self.bias.as_ref().map(Parameter::elements))))
    }

    /// x [batch, in_channels, height, width] -> y [batch, out_channels, output height, output width]
    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let x = row_major(single(inputs)?);
        let shape = self.shape_of(x.shape())?;
        let sizes = self.spec.sizes(shape)?;
        self.prepare(shape, parallelism)?;
        let Some((kernel, _)) = &self.plan else { return Err(Error::NoForward) };
        let workspace = self.workspace.grow(kernel.workspace_len(shape, parallelism.threads())?)?;
        let mut y = room(sizes.y_len);
        kernel.forward(shape, elements(&x), None, &mut y, workspace, parallelism)?;
        let y_shape = vec![shape.batch, self.spec.out_channels, sizes.output[0], sizes.output[1]];
        let y = tensor(&y_shape, y)?;
        self.cache = Some((x, y_shape));
        Ok(y)
    }

    /// dx = dy convolved with weight;  dweight += x * dy;  dbias += sum of dy over batch and pixels
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
    plan: conv::ConvTranspose2d,
    residual: bool,
}

impl Kernel for Planned {
    fn workspace_len(&self, inputs: &[Vec<usize>], slots: usize) -> Result<usize> {
        Ok(self.plan.workspace_len(image_shape(&inputs[0])?.0, slots)?)
    }

    fn run(&self, call: Call<'_>) -> Result<()> {
        let (shape, _) = image_shape(&call.shapes[0])?;
        let residual = self.residual.then(|| call.inputs.get(1));
        self.plan.forward(shape, call.inputs.get(0), residual, call.y, call.workspace, call.parallelism)?;
        Ok(())
    }
}
