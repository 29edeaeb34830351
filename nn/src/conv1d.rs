//! The convolutional layer over lines: audio, text, any series.
//!
//! ```text
//! y[n, oc, o] = bias[oc] + sum over ic, k of  weight[oc, ic, k] * x[n, ic, o * stride + k * dilation - padding]
//! ```
//!
//! A line is an image of one row, so this is a [`Conv2d`] that shows its parameters in three dimensions.

use kernels::Parallelism;
use kernels::conv::{Conv1dSpec, Conv2dSpec};
use ndarray::{Array1, ArrayD};

use crate::conv2d::Conv2d;
use crate::error::{Error, Result};
use crate::inference::{Fused, Kernel, Role};
use crate::init::kaiming_uniform;
use crate::layer::{Layer, Parameter, single, single_shape};
use crate::random::Random;
use crate::tensor::{Tensor, reshape};

/// A convolution over lines `[batch, in_channels, length]` with weights that learn:
/// `weight [out_channels, in_channels / groups, kernel]` and `bias [out_channels]`.
///
/// ```
/// use kernels::{Parallelism, conv::Conv1dSpec};
/// use nn::{Conv1d, Layer, tensor};
/// let weight = ndarray::array![[[1.0, -1.0]]].into_dyn();
/// let mut difference = Conv1d::with_weights(Conv1dSpec::new(1, 1, 2), weight, None)?;
/// let x = tensor(&[1, 1, 3], vec![5.0, 2.0, 1.0])?;
/// assert_eq!(difference.forward(&[&x], Parallelism::Serial)?, tensor(&[1, 1, 2], vec![3.0, 1.0])?);
/// # Ok::<(), nn::Error>(())
/// ```
pub struct Conv1d {
    spec: Conv1dSpec,
    conv: Conv2d,
}

impl Conv1d {
    /// A layer with Kaiming-uniform weights and a bias of zeros.
    ///
    /// # Errors
    /// Those of [`Conv2d::new`].
    pub fn new(spec: Conv1dSpec, random: &mut Random) -> Result<Self> {
        Conv2dSpec::from(spec).check()?;
        let group_in = spec.in_channels / spec.groups;
        let weight = kaiming_uniform(&[spec.out_channels, group_in, spec.kernel], group_in * spec.kernel, random);
        Self::with_weights(spec, weight, Some(Array1::zeros(spec.out_channels).into_dyn()))
    }

    /// A layer with given weights, and with a bias or without.
    ///
    /// # Errors
    /// Those of [`Conv1d::new`], and [`Error::Shape`] for weights or a bias that do not fit the spec.
    pub fn with_weights(spec: Conv1dSpec, weight: ArrayD<f32>, bias: Option<ArrayD<f32>>) -> Result<Self> {
        Conv2d::check(&spec.into())?;
        let expected = [spec.out_channels, spec.in_channels / spec.groups, spec.kernel];
        if weight.shape() != expected {
            return Err(Error::shape("weight", format!("{expected:?}"), weight.shape()));
        }
        Ok(Self { spec, conv: Conv2d::with_fitting_weights(spec.into(), weight, bias)? })
    }

    /// The spec.
    pub fn spec(&self) -> &Conv1dSpec {
        &self.spec
    }

    /// Lines [batch, in_channels, length] as images of one row.
    fn images(&self, lines: &[usize]) -> Result<Vec<usize>> {
        match *lines {
            [batch, channels, length] if channels == self.spec.in_channels => Ok(vec![batch, channels, 1, length]),
            _ => Err(Error::shape("x", format!("[batch, {}, length]", self.spec.in_channels), lines)),
        }
    }
}

/// Images of one row [batch, channels, 1, length] as lines.
fn lines(images: &[usize]) -> Vec<usize> {
    images.iter().enumerate().filter(|&(axis, _)| axis != 2).map(|(_, &size)| size).collect()
}

impl Layer for Conv1d {
    fn kind(&self) -> &'static str {
        "Conv1d"
    }

    fn details(&self) -> String {
        self.conv.details()
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        let images = self.images(single_shape(inputs)?)?;
        Ok(lines(&self.conv.output_shape(&[images])?))
    }

    fn flops(&self, inputs: &[Vec<usize>]) -> Result<f64> {
        self.conv.flops(&[self.images(single_shape(inputs)?)?])
    }

    fn role(&self) -> Role {
        self.conv.role()
    }

    fn kernel(&self, hint: &[Vec<usize>], fused: Fused) -> Result<Box<dyn Kernel>> {
        self.conv.kernel(&[self.images(single_shape(hint)?)?], fused)
    }

    /// x [batch, in_channels, length] -> y [batch, out_channels, output length]
    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let x = single(inputs)?;
        let images = reshape(x.clone(), &self.images(x.shape())?)?;
        let y = self.conv.forward(&[&images], parallelism)?;
        let shape = lines(y.shape());
        reshape(y, &shape)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let images = self.output_images(d_output)?;
        let gradients = self.conv.backward(&images, parallelism)?;
        gradients
            .into_iter()
            .map(|dx| {
                let shape = lines(dx.shape());
                reshape(dx, &shape)
            })
            .collect()
    }

    fn backward_parameters(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<()> {
        let images = self.output_images(d_output)?;
        self.conv.backward_parameters(&images, parallelism)
    }

    fn visit(&mut self, prefix: &str, visitor: &mut dyn FnMut(&str, &mut Parameter)) {
        self.conv.visit(prefix, visitor);
    }
}

impl Conv1d {
    /// A gradient of lines as one of images.
    fn output_images(&self, d_output: &Tensor) -> Result<Tensor> {
        match *d_output.shape() {
            [batch, channels, length] => reshape(d_output.clone(), &[batch, channels, 1, length]),
            _ => Err(Error::shape("d_output", "[batch, out_channels, output length]", d_output.shape())),
        }
    }
}
