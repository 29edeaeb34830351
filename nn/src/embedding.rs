//! Vectors for words, and for positions.
//!
//! ```text
//! Embedding                y[..., :] = weight[index, :]         dweight[index, :] += dy[..., :]
//! LearnedPositions         y[n, i, :] = x[n, i, :] + weight[i, :]
//! SinusoidalPositions      y[n, i, 2 k] = x + sin(i / 10000^(2 k / d)),   y[n, i, 2 k + 1] = x + cos of the same
//! ```

use kernels::{Parallelism, embedding, sum};
use ndarray::{Array2, ArrayD, Axis, IxDyn};

use crate::error::{Error, Result};
use crate::inference::{Call, Fused, Kernel, Role};
use crate::layer::{Layer, Parameter, bare_name, single, single_shape};
use crate::memory::room;
use crate::random::Random;
use crate::tensor::{Tensor, check_gradient, elements, row_major, tensor};

/// A vector for each of some words: `weight [words, features]`. Its input holds the words' numbers, as floats (exact up
/// to 2^24), in any shape `[...]`; its output is `[..., features]`.
///
/// ```
/// use nn::{Embedding, Layer, Parallelism, tensor};
/// let mut words = Embedding::with_weights(ndarray::array![[0.0, 1.0], [2.0, 3.0]].into_dyn())?;
/// let y = words.forward(&[&tensor(&[1, 2], vec![1.0, 0.0])?], Parallelism::Serial)?;
/// assert_eq!(y, tensor(&[1, 2, 2], vec![2.0, 3.0, 0.0, 1.0])?);
/// # Ok::<(), nn::Error>(())
/// ```
pub struct Embedding {
    weight: Parameter,
    /// The last words, and the shape of their output.
    cache: Option<(Vec<usize>, Vec<usize>)>,
}

impl Embedding {
    /// Vectors drawn evenly from `±1/sqrt(features)`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no words, more than a float can count, no features, or more than memory holds.
    pub fn new(words: usize, features: usize, random: &mut Random) -> Result<Self> {
        crate::linear::Linear::check(words, features)?;
        let bound = 1.0 / (features as f32).sqrt();
        Self::with_weights(ArrayD::from_shape_simple_fn(IxDyn(&[words, features]), || random.uniform(-bound, bound)))
    }

    /// Given vectors.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `weight` is `[words, features]` with at most 2^24 words and at least 1 feature.
    pub fn with_weights(weight: ArrayD<f32>) -> Result<Self> {
        match *weight.shape() {
            [words, features] if words <= 1 << 24 && features > 0 => {
                Ok(Self { weight: Parameter::new(weight), cache: None })
            }
            _ => Err(Error::shape(
                "weight",
                "[words, features], at most 2^24 words and at least 1 feature",
                weight.shape(),
            )),
        }
    }

    fn size(&self) -> [usize; 2] {
        [self.weight.value().shape()[0], self.weight.value().shape()[1]]
    }
}

impl Layer for Embedding {
    fn kind(&self) -> &'static str {
        "Embedding"
    }

    fn details(&self) -> String {
        let [words, features] = self.size();
        format!("{words}->{features}")
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        Ok([single_shape(inputs)?, &[self.size()[1]]].concat())
    }

    fn role(&self) -> Role {
        Role::Compute { activation: false, residual: false }
    }

    fn kernel(&self, _: &[Vec<usize>], _: Fused) -> Result<Box<dyn Kernel>> {
        Ok(Box::new(LookUp { table: self.weight.elements().to_vec(), size: self.size() }))
    }

    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let x = row_major(single(inputs)?);
        let [words, features] = self.size();
        check_words(elements(&x), words)?;
        let indices: Vec<usize> = x.iter().map(|&word| word as usize).collect();
        let shape = [x.shape(), &[features]].concat();
        let mut y = vec![0.0; shape.iter().product()];
        embedding::forward([words, features], self.weight.elements(), &indices, &mut y, parallelism)?;
        self.cache = Some((indices, shape.clone()));
        tensor(&shape, y)
    }

    /// The gradient of the words' numbers is 0.
    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        self.backward_parameters(d_output, parallelism)?;
        let shape = &d_output.shape()[..d_output.ndim() - 1];
        Ok(vec![Tensor::zeros(IxDyn(shape))])
    }

    fn backward_parameters(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<()> {
        let (indices, shape) = self.cache.as_ref().ok_or(Error::NoForward)?;
        check_gradient(d_output, shape)?;
        let size = self.size();
        let (_, gradient) = self.weight.elements_and_gradient();
        embedding::backward(size, indices, elements(&row_major(d_output)), gradient, parallelism)?;
        self.cache = None;
        Ok(())
    }

    fn visit(&mut self, prefix: &str, visitor: &mut dyn FnMut(&str, &mut Parameter)) {
        visitor(&format!("{prefix}weight"), &mut self.weight);
    }
}

/// Fails unless all are numbers of words.
fn check_words(x: &[f32], words: usize) -> Result<()> {
    // Also false for NaN.
    let fits = |word: f32| word >= 0.0 && word < words as f32 && word.fract() == 0.0;
    match x.iter().find(|&&word| !fits(word)) {
        None => Ok(()),
        Some(word) => Err(Error::invalid("x", format!("numbers of words below {words}"), word)),
    }
}

/// The forward pass of a plan.
struct LookUp {
    table: Vec<f32>,
    size: [usize; 2],
}

impl Kernel for LookUp {
    fn run(&self, call: Call<'_>) -> Result<()> {
        let ([words, features], x) = (self.size, call.inputs.get(0));
        check_words(x, words)?;
        for (&word, y) in x.iter().zip(call.y.chunks_exact_mut(features)) {
            y.copy_from_slice(&self.table[word as usize * features..][..features]);
        }
        Ok(())
    }
}

/// Adds a vector that learns to each position of sequences `[batch, length, features]`: `weight [positions, features]`,
/// of which the first `length` are used.
pub struct LearnedPositions {
    weight: Parameter,
    /// Whether the parameter has the layer's own name.
    is_bare: bool,
    /// The shape of the last input.
    cache: Option<Vec<usize>>,
}

/// Adds sines and cosines of each position to sequences `[batch, length, features]`. Vaswani et al., "Attention is all
/// you need", NeurIPS 2017.
pub struct SinusoidalPositions {
    /// [positions, features]
    waves: Vec<f32>,
    size: [usize; 2],
    cache: Option<Vec<usize>>,
}

/// Fails unless sequences have features for which there are positions enough.
fn check_sequence(shape: &[usize], [positions, features]: [usize; 2]) -> Result<()> {
    match *shape {
        [_, length, given] if given == features && length <= positions => Ok(()),
        _ => Err(Error::shape("x", format!("[batch, at most {positions}, {features}]"), shape)),
    }
}

/// `y = x + positions`, for each sequence.
fn add_positions(
    x: &[f32],
    positions: &[f32],
    [length, features]: [usize; 2],
    y: &mut [f32],
    parallelism: Parallelism<'_>,
) -> Result<()> {
    let len = length * features;
    for (x, y) in x.chunks_exact(len.max(1)).zip(y.chunks_exact_mut(len.max(1))) {
        sum::forward(&[x, &positions[..len]], y, parallelism)?;
    }
    Ok(())
}

/// The forward pass of a plan.
struct Adding(Vec<f32>);

impl Kernel for Adding {
    fn run(&self, call: Call<'_>) -> Result<()> {
        let size = [call.shapes[0][1], call.shapes[0][2]];
        add_positions(call.inputs.get(0), &self.0, size, call.y, call.parallelism)
    }
}

impl LearnedPositions {
    /// Vectors drawn evenly, with a deviation of 0.02.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no positions or features, or more than memory holds.
    pub fn new(positions: usize, features: usize, random: &mut Random) -> Result<Self> {
        crate::linear::Linear::check(positions, features)?;
        let bound = 0.02 * 3f32.sqrt();
        let weight = Array2::from_shape_simple_fn([positions, features], || random.uniform(-bound, bound));
        Ok(Self { weight: Parameter::new(weight.into_dyn()), is_bare: false, cache: None })
    }

    /// As models have it that hold the vectors without a layer around them: the parameter is named as the layer and has
    /// shape `[1, ..., positions, features]`, of so many axes, at least two.
    pub fn as_parameter(mut self, axes: usize) -> Self {
        let mut vectors = self.weight.value().clone();
        for _ in 2..axes {
            vectors.insert_axis_inplace(Axis(0));
        }
        (self.weight, self.is_bare) = (Parameter::new(vectors), true);
        self
    }

    fn size(&self) -> [usize; 2] {
        let shape = self.weight.value().shape();
        [shape[shape.len() - 2], shape[shape.len() - 1]]
    }
}

impl Layer for LearnedPositions {
    fn kind(&self) -> &'static str {
        "LearnedPositions"
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        let shape = single_shape(inputs)?;
        check_sequence(shape, self.size()).map(|()| shape.to_vec())
    }

    fn role(&self) -> Role {
        Role::Compute { activation: false, residual: false }
    }

    fn kernel(&self, _: &[Vec<usize>], _: Fused) -> Result<Box<dyn Kernel>> {
        Ok(Box::new(Adding(self.weight.elements().to_vec())))
    }

    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let x = row_major(single(inputs)?);
        check_sequence(x.shape(), self.size())?;
        let mut y = room(x.len());
        add_positions(elements(&x), self.weight.elements(), [x.shape()[1], x.shape()[2]], &mut y, parallelism)?;
        self.cache = Some(x.shape().to_vec());
        tensor(x.shape(), y)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let shape = self.cache.as_ref().ok_or(Error::NoForward)?;
        check_gradient(d_output, shape)?;
        let dy = row_major(d_output);
        let (_, gradient) = self.weight.elements_and_gradient();
        for sequence in elements(&dy).chunks_exact((shape[1] * shape[2]).max(1)) {
            // A sequence may have fewer positions than there are.
            sum::add(sequence, &mut gradient[..sequence.len()], parallelism)?;
        }
        self.cache = None;
        Ok(vec![dy])
    }

    fn visit(&mut self, prefix: &str, visitor: &mut dyn FnMut(&str, &mut Parameter)) {
        match self.is_bare {
            true => visitor(bare_name(prefix), &mut self.weight),
            false => visitor(&format!("{prefix}weight"), &mut self.weight),
        }
    }
}

impl SinusoidalPositions {
    /// Waves for so many positions.
    ///
    /// # Errors
    /// [`Error::Invalid`] for no positions or features, or more than memory holds.
    pub fn new(positions: usize, features: usize) -> Result<Self> {
        crate::linear::Linear::check(positions, features)?;
        let mut waves = Vec::with_capacity(positions * features);
        for position in 0..positions {
            for feature in 0..features {
                let wave = 10_000f64.powf((feature / 2 * 2) as f64 / features as f64);
                let angle = position as f64 / wave;
                waves.push(if feature % 2 == 0 { angle.sin() } else { angle.cos() } as f32);
            }
        }
        Ok(Self { waves, size: [positions, features], cache: None })
    }
}

impl Layer for SinusoidalPositions {
    fn kind(&self) -> &'static str {
        "SinusoidalPositions"
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        let shape = single_shape(inputs)?;
        check_sequence(shape, self.size).map(|()| shape.to_vec())
    }

    fn role(&self) -> Role {
        Role::Compute { activation: false, residual: false }
    }

    fn kernel(&self, _: &[Vec<usize>], _: Fused) -> Result<Box<dyn Kernel>> {
        Ok(Box::new(Adding(self.waves.clone())))
    }

    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let x = row_major(single(inputs)?);
        check_sequence(x.shape(), self.size)?;
        let mut y = room(x.len());
        add_positions(elements(&x), &self.waves, [x.shape()[1], x.shape()[2]], &mut y, parallelism)?;
        self.cache = Some(x.shape().to_vec());
        tensor(x.shape(), y)
    }

    fn backward(&mut self, d_output: &Tensor, _: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let shape = self.cache.take().ok_or(Error::NoForward)?;
        check_gradient(d_output, &shape)?;
        Ok(vec![d_output.clone()])
    }
}
