//! Images become sequences, and sequences get a first position of their own.
//!
//! ```text
//! ToSequence    [batch, channels, h, w] ──► [batch, h w, channels]             a position for each pixel, row by row
//! ClassToken    [batch, n, features]    ──► [batch, 1 + n, features]           y[b] = weight ++ x[b]
//! ```
//!
//! Behind a convolution whose stride is its kernel, a pixel is what the network knows of a patch. Dosovitskiy et al.,
//! "An image is worth 16x16 words", ICLR 2021.

use kernels::{Parallelism, sum};
use ndarray::{ArrayD, IxDyn};

use crate::error::{Error, Result};
use crate::inference::{Call, Fused, Kernel, Role};
use crate::layer::{Layer, Parameter, bare_name, single, single_shape};
use crate::linear::Linear;
use crate::random::Random;
use crate::tensor::{Tensor, check_gradient, elements, image_shape, row_major, tensor};

/// A position for each pixel of images, with its channels as features.
///
/// ```
/// use nn::{Layer, Parallelism, ToSequence, tensor};
/// let x = tensor(&[1, 2, 1, 3], vec![1.0, 2.0, 3.0, 10.0, 20.0, 30.0])?;
/// let y = ToSequence::default().forward(&[&x], Parallelism::Serial)?;
/// assert_eq!(y, tensor(&[1, 3, 2], vec![1.0, 10.0, 2.0, 20.0, 3.0, 30.0])?);
/// # Ok::<(), nn::Error>(())
/// ```
#[derive(Default)]
pub struct ToSequence {
    /// The shapes of the last input and output.
    cache: Option<[Vec<usize>; 2]>,
}

/// Writes `[rows, columns]` matrices behind one another as `[columns, rows]`.
fn transpose(x: &[f32], [rows, columns]: [usize; 2], y: &mut [f32]) {
    let len = (rows * columns).max(1);
    for (x, y) in x.chunks_exact(len).zip(y.chunks_exact_mut(len)) {
        for (column, y) in y.chunks_exact_mut(rows).enumerate() {
            for (row, y) in y.iter_mut().enumerate() {
                *y = x[row * columns + column];
            }
        }
    }
}

/// Channels and pixels.
fn size(images: &[usize]) -> Result<[usize; 2]> {
    let (shape, channels) = image_shape(images)?;
    let pixels = shape.height.checked_mul(shape.width);
    Ok([channels, pixels.ok_or_else(|| Error::shape("x", "pixels that fit in memory", images))?])
}

impl Layer for ToSequence {
    fn kind(&self) -> &'static str {
        "ToSequence"
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        let images = single_shape(inputs)?;
        size(images).map(|[channels, pixels]| vec![images[0], pixels, channels])
    }

    fn role(&self) -> Role {
        Role::Compute { activation: false, residual: false }
    }

    fn kernel(&self, _: &[Vec<usize>], _: Fused) -> Result<Box<dyn Kernel>> {
        Ok(Box::new(Transposing))
    }

    fn forward(&mut self, inputs: &[&Tensor], _: Parallelism<'_>) -> Result<Tensor> {
        let x = row_major(single(inputs)?);
        let y_shape = self.output_shape(&[x.shape().to_vec()])?;
        let mut y = vec![0.0; x.len()];
        transpose(elements(&x), size(x.shape())?, &mut y);
        self.cache = Some([x.shape().to_vec(), y_shape.clone()]);
        tensor(&y_shape, y)
    }

    fn backward(&mut self, d_output: &Tensor, _: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let [x_shape, y_shape] = self.cache.as_ref().ok_or(Error::NoForward)?;
        check_gradient(d_output, y_shape)?;
        let mut dx = vec![0.0; d_output.len()];
        transpose(elements(&row_major(d_output)), [y_shape[1], y_shape[2]], &mut dx);
        let dx = tensor(x_shape, dx)?;
        self.cache = None;
        Ok(vec![dx])
    }
}

/// The forward pass of a plan.
struct Transposing;

impl Kernel for Transposing {
    fn run(&self, call: Call<'_>) -> Result<()> {
        transpose(call.inputs.get(0), size(&call.shapes[0])?, call.y);
        Ok(())
    }
}

/// A vector that learns, in front of each sequence `[batch, length, features]`: where a classifier gathers what it
/// looks for. Its parameter has the name of the layer.
pub struct ClassToken {
    /// [1, ..., features]
    weight: Parameter,
    /// The shape of the last output.
    cache: Option<Vec<usize>>,
}

impl ClassToken {
    /// A vector drawn evenly, with a deviation of 0.02, as a parameter of so many axes, at least one, all but the last
    /// of length 1.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no features or more than memory holds.
    pub fn new(features: usize, axes: usize, random: &mut Random) -> Result<Self> {
        Linear::check(features, 1)?;
        let bound = 0.02 * 3f32.sqrt();
        let shape = [vec![1; axes.max(1) - 1], vec![features]].concat();
        let weight = ArrayD::from_shape_simple_fn(IxDyn(&shape), || random.uniform(-bound, bound));
        Ok(Self { weight: Parameter::new(weight), cache: None })
    }

    fn output_size(&self, shape: &[usize]) -> Result<[usize; 3]> {
        let features = self.weight.value().len();
        match *shape {
            [batch, length, given] if given == features && length < usize::MAX => Ok([batch, length + 1, features]),
            _ => Err(Error::shape("x", format!("[batch, length, {features}]"), shape)),
        }
    }
}

/// `y[b] = token ++ x[b]`, each `y[b]` of so many elements.
fn prepend(token: &[f32], x: &[f32], len: usize, y: &mut [f32]) {
    let mut rest = x;
    for y in y.chunks_exact_mut(len) {
        let (first, others) = y.split_at_mut(token.len());
        let (x, behind) = rest.split_at(others.len());
        first.copy_from_slice(token);
        others.copy_from_slice(x);
        rest = behind;
    }
}

impl Layer for ClassToken {
    fn kind(&self) -> &'static str {
        "ClassToken"
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        self.output_size(single_shape(inputs)?).map(|size| size.to_vec())
    }

    fn role(&self) -> Role {
        Role::Compute { activation: false, residual: false }
    }

    fn kernel(&self, _: &[Vec<usize>], _: Fused) -> Result<Box<dyn Kernel>> {
        Ok(Box::new(Prepending(self.weight.elements().to_vec())))
    }

    fn forward(&mut self, inputs: &[&Tensor], _: Parallelism<'_>) -> Result<Tensor> {
        let x = row_major(single(inputs)?);
        let shape = self.output_size(x.shape())?;
        let mut y = vec![0.0; shape.iter().product()];
        prepend(self.weight.elements(), elements(&x), shape[1] * shape[2], &mut y);
        self.cache = Some(shape.to_vec());
        tensor(&shape, y)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let shape = self.cache.as_ref().ok_or(Error::NoForward)?;
        check_gradient(d_output, shape)?;
        let (dy, features) = (row_major(d_output), shape[2]);
        let (_, gradient) = self.weight.elements_and_gradient();
        let mut dx = Vec::with_capacity(dy.len());
        for sequence in elements(&dy).chunks_exact(shape[1] * features) {
            let (first, others) = sequence.split_at(features);
            sum::add(first, gradient, parallelism)?;
            dx.extend_from_slice(others);
        }
        let dx = tensor(&[shape[0], shape[1] - 1, features], dx)?;
        self.cache = None;
        Ok(vec![dx])
    }

    fn visit(&mut self, prefix: &str, visitor: &mut dyn FnMut(&str, &mut Parameter)) {
        visitor(bare_name(prefix), &mut self.weight);
    }
}

/// The forward pass of a plan.
struct Prepending(Vec<f32>);

impl Kernel for Prepending {
    fn run(&self, call: Call<'_>) -> Result<()> {
        let len = (call.shapes[0][1] + 1) * self.0.len();
        prepend(&self.0, call.inputs.get(0), len, call.y);
        Ok(())
    }
}
