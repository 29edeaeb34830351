//! Sequences become vectors: one position of each, or the mean of all.
//!
//! ```text
//! Pick             y[b] = x[b, i]                    i: 0, or where the words that are a second input are largest
//! MeanPositions    y[b] = mean over i of x[b, i]
//! ```

use kernels::conv::{Layout, Shape};
use kernels::{Parallelism, pool};

use crate::error::{Error, Result};
use crate::inference::{Call, Fused, Kernel, Role};
use crate::layer::{Layer, single, single_shape};
use crate::tensor::{Tensor, check_gradient, elements, row_major, tensor};

/// The vector at one position of sequences `[batch, length, features]`: `[batch, features]`.
///
/// ```
/// use nn::{Layer, Parallelism, Pick, tensor};
/// let x = tensor(&[1, 3, 2], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0])?;
/// assert_eq!(Pick::first().forward(&[&x], Parallelism::Serial)?, tensor(&[1, 2], vec![1.0, 2.0])?);
/// let words = tensor(&[1, 3], vec![7.0, 9.0, 0.0])?;
/// assert_eq!(Pick::largest().forward(&[&x, &words], Parallelism::Serial)?, tensor(&[1, 2], vec![3.0, 4.0])?);
/// # Ok::<(), nn::Error>(())
/// ```
pub struct Pick {
    by_word: bool,
    /// The shape of the last input, and the position in each sequence.
    cache: Option<([usize; 3], Vec<usize>)>,
}

impl Pick {
    /// The first position: that of a class token.
    pub const fn first() -> Self {
        Self { by_word: false, cache: None }
    }

    /// Where a second input `[batch, length]` is largest, at the first such place. CLIP's vocabulary ends with the word
    /// that ends a sentence, so that this is where a sentence has been read to its end.
    pub const fn largest() -> Self {
        Self { by_word: true, cache: None }
    }

    /// [batch, length, features]
    fn sizes(&self, inputs: &[&[usize]]) -> Result<[usize; 3]> {
        let expected = 1 + usize::from(self.by_word);
        if inputs.len() != expected {
            return Err(Error::invalid("inputs", format!("{expected} tensors"), inputs.len()));
        }
        let size = match *inputs[0] {
            [batch, length, features] if length > 0 => [batch, length, features],
            _ => return Err(Error::shape("x", "[batch, at least 1, features]", inputs[0])),
        };
        match inputs.get(1) {
            Some(&words) if words != &size[..2] => {
                Err(Error::shape("words", format!("{:?}, as x has", &size[..2]), words))
            }
            _ => Ok(size),
        }
    }
}

/// The position of the largest of some words.
fn largest(words: &[f32]) -> usize {
    let mut winner = 0;
    for at in 1..words.len() {
        if words[at] > words[winner] {
            winner = at;
        }
    }
    winner
}

impl Layer for Pick {
    fn kind(&self) -> &'static str {
        "Pick"
    }

    fn details(&self) -> String {
        if self.by_word { "the largest word" } else { "the first" }.to_string()
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        let inputs: Vec<&[usize]> = inputs.iter().map(Vec::as_slice).collect();
        self.sizes(&inputs).map(|[batch, _, features]| vec![batch, features])
    }

    fn role(&self) -> Role {
        Role::Compute { activation: false, residual: false }
    }

    fn kernel(&self, _: &[Vec<usize>], _: Fused) -> Result<Box<dyn Kernel>> {
        Ok(Box::new(Picking { by_word: self.by_word }))
    }

    fn forward(&mut self, inputs: &[&Tensor], _: Parallelism<'_>) -> Result<Tensor> {
        let shapes: Vec<&[usize]> = inputs.iter().map(|x| x.shape()).collect();
        let size = self.sizes(&shapes)?;
        let [batch, length, features] = size;
        let inputs: Vec<Tensor> = inputs.iter().map(|x| row_major(x)).collect();
        let places = match inputs.get(1) {
            Some(words) => elements(words).chunks_exact(length).map(largest).collect(),
            None => vec![0; batch],
        };
        let mut y = Vec::with_capacity(batch * features);
        for (b, place) in places.iter().enumerate() {
            y.extend_from_slice(&elements(&inputs[0])[(b * length + place) * features..][..features]);
        }
        self.cache = Some((size, places));
        tensor(&[batch, features], y)
    }

    /// The gradient of the words is 0.
    fn backward(&mut self, d_output: &Tensor, _: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let ([batch, length, features], places) = self.cache.as_ref().ok_or(Error::NoForward)?;
        check_gradient(d_output, &[*batch, *features])?;
        let dy = row_major(d_output);
        let mut dx = vec![0.0; batch * length * features];
        for (b, place) in places.iter().enumerate() {
            dx[(b * length + place) * features..][..*features]
                .copy_from_slice(&elements(&dy)[b * features..][..*features]);
        }
        let mut gradients = vec![tensor(&[*batch, *length, *features], dx)?];
        if self.by_word {
            gradients.push(tensor(&[*batch, *length], vec![0.0; batch * length])?);
        }
        self.cache = None;
        Ok(gradients)
    }
}

/// The forward pass of a plan.
struct Picking {
    by_word: bool,
}

impl Kernel for Picking {
    fn run(&self, call: Call<'_>) -> Result<()> {
        let (length, features) = (call.shapes[0][1], call.shapes[0][2]);
        let (x, words) = (call.inputs.get(0), call.inputs.get(1));
        for (b, y) in call.y.chunks_exact_mut(features.max(1)).enumerate() {
            let place = if self.by_word { largest(&words[b * length..][..length]) } else { 0 };
            y.copy_from_slice(&x[(b * length + place) * features..][..features]);
        }
        Ok(())
    }
}

/// The mean over the positions of sequences `[batch, length, features]`: `[batch, features]`.
///
/// ```
/// use nn::{Layer, MeanPositions, Parallelism, tensor};
/// let x = tensor(&[1, 2, 2], vec![1.0, 2.0, 3.0, 6.0])?;
/// assert_eq!(MeanPositions::default().forward(&[&x], Parallelism::Serial)?, tensor(&[1, 2], vec![2.0, 4.0])?);
/// # Ok::<(), nn::Error>(())
/// ```
#[derive(Default)]
pub struct MeanPositions {
    /// The shape of the last input.
    cache: Option<[usize; 3]>,
}

fn sequence_size(shape: &[usize]) -> Result<[usize; 3]> {
    match *shape {
        [batch, length, features] if length > 0 => Ok([batch, length, features]),
        _ => Err(Error::shape("x", "[batch, at least 1, features]", shape)),
    }
}

/// A sequence is an image of one column whose channels stand last.
fn mean([batch, length, features]: [usize; 3], x: &[f32], y: &mut [f32], parallelism: Parallelism<'_>) -> Result<()> {
    let shape = Shape::new(batch, length, 1);
    Ok(pool::adaptive_average_forward([1, 1], Layout::Nhwc, shape, features, x, y, parallelism)?)
}

impl Layer for MeanPositions {
    fn kind(&self) -> &'static str {
        "MeanPositions"
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        sequence_size(single_shape(inputs)?).map(|[batch, _, features]| vec![batch, features])
    }

    fn role(&self) -> Role {
        Role::Compute { activation: false, residual: false }
    }

    fn kernel(&self, _: &[Vec<usize>], _: Fused) -> Result<Box<dyn Kernel>> {
        Ok(Box::new(Averaging))
    }

    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let x = row_major(single(inputs)?);
        let size = sequence_size(x.shape())?;
        let mut y = vec![0.0; size[0] * size[2]];
        mean(size, elements(&x), &mut y, parallelism)?;
        self.cache = Some(size);
        tensor(&[size[0], size[2]], y)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let [batch, length, features] = self.cache.ok_or(Error::NoForward)?;
        check_gradient(d_output, &[batch, features])?;
        let mut dx = vec![0.0; batch * length * features];
        let (shape, dy) = (Shape::new(batch, length, 1), row_major(d_output));
        pool::adaptive_average_backward([1, 1], Layout::Nhwc, shape, features, elements(&dy), &mut dx, parallelism)?;
        self.cache = None;
        Ok(vec![tensor(&[batch, length, features], dx)?])
    }
}

/// The forward pass of a plan.
struct Averaging;

impl Kernel for Averaging {
    fn run(&self, call: Call<'_>) -> Result<()> {
        mean(sequence_size(&call.shapes[0])?, call.inputs.get(0), call.y, call.parallelism)
    }
}
