//! Dropout: in training each element is left out now and then, so that no other comes to rely on it.
//!
//! ```text
//! training     y = x / (1 - p) with probability 1 - p, else 0       dx: the same of dy
//! examination  y = x
//! ```
//!
//! Srivastava et al., "Dropout", JMLR 2014. Which elements are left out follows from the seed, the number of the
//! `forward` call and the element's position alone; the first two are part of a network's state, so that training that
//! is taken up again leaves out what it would have left out.

use kernels::{Dropout as Mask, Parallelism};

use crate::error::{Error, Result};
use crate::inference::Role;
use crate::layer::{Layer, single, single_shape};
use crate::memory::room;
use crate::random::Random;
use crate::tensor::{Tensor, check_gradient, elements, row_major, tensor};

/// Leaves elements out in training; what is left grows to keep the mean.
pub struct Dropout {
    mask: Mask,
    training: bool,
    /// The mask of the last call, none in examination, and the shape.
    cache: Option<(Option<Mask>, Vec<usize>)>,
}

impl Dropout {
    /// Leaves each element out with a probability from 0 to 1. The random stream gives the layer's seed.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another probability.
    pub fn new(probability: f32, random: &mut Random) -> Result<Self> {
        if !(0.0..=1.0).contains(&probability) {
            return Err(Error::invalid("probability", "0 to 1", probability));
        }
        Ok(Self { mask: Mask { probability, seed: random.bits(), stream: 0 }, training: true, cache: None })
    }
}

impl Layer for Dropout {
    fn kind(&self) -> &'static str {
        "Dropout"
    }

    fn details(&self) -> String {
        self.mask.probability.to_string()
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        single_shape(inputs).map(<[usize]>::to_vec)
    }

    /// Nothing is left out by a plan, which is for examination.
    fn role(&self) -> Role {
        Role::View
    }

    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let x = row_major(single(inputs)?);
        if !self.training {
            self.cache = Some((None, x.shape().to_vec()));
            return Ok(x);
        }
        let mut y = room(x.len());
        self.mask.forward(elements(&x), &mut y, parallelism)?;
        self.cache = Some((Some(self.mask), x.shape().to_vec()));
        self.mask.stream = self.mask.stream.wrapping_add(1);
        tensor(x.shape(), y)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let (mask, shape) = self.cache.as_ref().ok_or(Error::NoForward)?;
        check_gradient(d_output, shape)?;
        let dy = row_major(d_output);
        let dx = match mask {
            None => dy,
            Some(mask) => {
                let mut dx = room(dy.len());
                mask.backward(elements(&dy), &mut dx, parallelism)?;
                tensor(shape, dx)?
            }
        };
        self.cache = None;
        Ok(vec![dx])
    }

    fn visit_counters(&mut self, prefix: &str, visitor: &mut dyn FnMut(&str, &mut u64)) {
        visitor(&format!("{prefix}seed"), &mut self.mask.seed);
        visitor(&format!("{prefix}stream"), &mut self.mask.stream);
    }

    fn set_training(&mut self, training: bool) {
        self.training = training;
    }
}
