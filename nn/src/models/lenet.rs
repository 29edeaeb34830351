//! LeNet-5, which read the amounts on cheques.
//!
//! ```text
//! [1, 28, 28] ── conv 5x5, padding 2 ──► [6, 28, 28] ── ReLU, max 2x2 ──► [6, 14, 14]
//!             ── conv 5x5 ──► [16, 10, 10] ── ReLU, max 2x2 ──► [16, 5, 5]
//!             ── 400 ──► 120 ──► 84 ──► 10
//! ```
//!
//! LeCun, Bottou, Bengio, Haffner, "Gradient-based learning applied to document recognition", 1998, in the variant that
//! is taught today. The paper has
//! - a scaled hyperbolic tangent, `1.7159 tanh(2 x / 3)`, where this has ReLU;
//! - sums of 2x2 pixels with a factor and a bias that learn, then the tangent, where this has max pooling;
//! - maps of C3 that see three, four or six of the six maps before, by a table, where this has all of them;
//! - an output of radial basis functions, distances to a picture of each character, where this has a linear layer and
//!   softmax;
//! - images of 32x32, where this pads 28x28.

use kernels::conv::{Conv2dSpec, Padding};
use kernels::pool::Pool2dSpec;

use super::{check_width, scaled};
use crate::activation::ReLU;
use crate::conv2d::Conv2d;
use crate::error::Result;
use crate::flatten::Flatten;
use crate::linear::Linear;
use crate::max_pool2d::MaxPool2d;
use crate::random::Random;
use crate::sequential::Sequential;

/// LeNet-5 over grey images of 28x28.
#[derive(Clone, Debug)]
pub struct LeNet5 {
    /// Numbers of an output.
    pub classes: usize,
    /// By which hidden channels and neurons are multiplied.
    pub width: f32,
}

impl Default for LeNet5 {
    fn default() -> Self {
        Self { classes: 10, width: 1.0 }
    }
}

impl LeNet5 {
    /// The network.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a width that is not above 0 or too many classes.
    pub fn build(&self, random: &mut Random) -> Result<Sequential> {
        check_width(self.width)?;
        let [c1, c3, c5, f6] = [6, 16, 120, 84].map(|channels| scaled(channels, self.width));
        let pool = || MaxPool2d::new(Pool2dSpec::new([2, 2]));
        Sequential::new()
            .with(Conv2d::new(Conv2dSpec::new(1, c1, [5, 5]).padding(Padding::all(2)), random)?)?
            .with(ReLU::default())?
            .with(pool()?)?
            .with(Conv2d::new(Conv2dSpec::new(c1, c3, [5, 5]), random)?)?
            .with(ReLU::default())?
            .with(pool()?)?
            .with(Flatten::default())?
            .with(Linear::new(25 * c3, c5, random)?)?
            .with(ReLU::default())?
            .with(Linear::new(c5, f6, random)?)?
            .with(ReLU::default())?
            .with(Linear::new(f6, self.classes, random)?)
    }
}
