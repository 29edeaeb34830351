//! The perceptron with one hidden layer: `[batch, ...] ── 784 ──► 512, sigmoid ──► 10`.

use super::{check_width, scaled};
use crate::activation::Sigmoid;
use crate::error::Result;
use crate::flatten::Flatten;
use crate::linear::Linear;
use crate::random::Random;
use crate::sequential::Sequential;

/// Two linear layers with a sigmoid between them.
#[derive(Clone, Debug)]
pub struct Perceptron {
    /// Numbers of an input: the pixels of an image.
    pub inputs: usize,
    /// Neurons of the hidden layer, before the width.
    pub hidden: usize,
    /// Numbers of an output.
    pub classes: usize,
    /// By which the hidden layer is multiplied.
    pub width: f32,
}

impl Default for Perceptron {
    fn default() -> Self {
        Self { inputs: 784, hidden: 512, classes: 10, width: 1.0 }
    }
}

impl Perceptron {
    /// The network, with weights that suit sigmoids. Images are flattened first.
    ///
    /// # Errors
    /// Those of [`Linear::new`], and [`Error::Invalid`](crate::Error::Invalid) for a width that is not above 0.
    pub fn build(&self, random: &mut Random) -> Result<Sequential> {
        check_width(self.width)?;
        let hidden = scaled(self.hidden, self.width);
        Sequential::new()
            .with(Flatten::default())?
            .with(Linear::xavier(self.inputs, hidden, random)?)?
            .with(Sigmoid::default())?
            .with(Linear::xavier(hidden, self.classes, random)?)
    }
}
