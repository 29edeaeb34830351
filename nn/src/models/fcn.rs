//! The fully convolutional network: no layer knows the size of the image, so neither does the network.
//!
//! ```text
//! [1, h, w] ── conv 5x5 /2, ReLU ──► [16, h / 2, ...] ── conv 5x5 /2, ReLU ──► [32, h / 4, ...] ── conv 7x7 ──► classes
//!
//! an image of 28x28 becomes one number for each class; a page becomes a map of them, one for each 28x28 window,
//! 4 pixels apart
//! ```
//!
//! Long, Shelhamer, Darrell, "Fully convolutional networks for semantic segmentation", CVPR 2015.

use kernels::conv::{Conv2dSpec, Padding};

use super::{check_width, scaled};
use crate::activation::ReLU;
use crate::conv2d::Conv2d;
use crate::error::Result;
use crate::random::Random;
use crate::sequential::Sequential;

/// Three convolutions over images of at least 28x28 (25x25 are enough).
#[derive(Clone, Debug)]
pub struct Fcn {
    /// Channels of the input.
    pub channels: usize,
    /// Maps of the output.
    pub classes: usize,
    /// By which hidden channels are multiplied.
    pub width: f32,
}

impl Default for Fcn {
    fn default() -> Self {
        Self { channels: 1, classes: 10, width: 1.0 }
    }
}

impl Fcn {
    /// Height and width of the window that an output sees.
    pub const WINDOW: usize = 28;
    /// Pixels between the windows of neighbouring outputs.
    pub const STRIDE: usize = 4;

    /// The network: `[batch, channels, h, w]` becomes `[batch, classes, h / 4 - 6, w / 4 - 6]`, for multiples of 4.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a width that is not above 0, for no channels or no classes.
    pub fn build(&self, random: &mut Random) -> Result<Sequential> {
        check_width(self.width)?;
        let [c1, c2] = [16, 32].map(|channels| scaled(channels, self.width));
        let halving = |from, to| Conv2dSpec::new(from, to, [5, 5]).stride([2, 2]).padding(Padding::all(2));
        Sequential::new()
            .with(Conv2d::new(halving(self.channels, c1), random)?)?
            .with(ReLU::default())?
            .with(Conv2d::new(halving(c1, c2), random)?)?
            .with(ReLU::default())?
            .with(Conv2d::new(Conv2dSpec::new(c2, self.classes, [7, 7]), random)?)
    }
}
