//! Network in Network: behind each convolution a small perceptron that slides along, which is a convolution of 1x1.
//!
//! ```text
//! block    conv k x k, ReLU,  conv 1x1, ReLU,  conv 1x1, ReLU
//!
//! 11x11 /4 ► 96,  max 3x3 /2,  5x5 ► 256,  max 3x3 /2,  3x3 ► 384,  max 3x3 /2,  3x3 ► 1024, 1024, classes,  mean
//! ```
//!
//! Lin, Chen, Yan, "Network in network", ICLR 2014. The last block gives a map for each class, whose mean is the
//! class's number: no linear layer, so images may have any size.

use kernels::conv::{Conv2dSpec, Padding};
use kernels::pool::Pool2dSpec;
use ndarray::Array1;

use super::{check_width, scaled};
use crate::activation::ReLU;
use crate::adaptive_avg_pool2d::AdaptiveAvgPool2d;
use crate::conv2d::Conv2d;
use crate::error::Result;
use crate::flatten::Flatten;
use crate::init::kaiming_uniform;
use crate::max_pool2d::MaxPool2d;
use crate::random::Random;
use crate::sequential::Sequential;

/// Network in Network over images of at least 51x51.
#[derive(Clone, Debug)]
pub struct NiN {
    /// Channels of the input.
    pub channels: usize,
    /// Numbers of an output.
    pub classes: usize,
    /// By which hidden channels are multiplied.
    pub width: f32,
}

impl Default for NiN {
    fn default() -> Self {
        Self { channels: 3, classes: 1000, width: 1.0 }
    }
}

impl NiN {
    /// The network.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a width that is not above 0, for no channels or no classes.
    pub fn build(&self, random: &mut Random) -> Result<Sequential> {
        check_width(self.width)?;
        let [c1, c2, c3, c4] = [96, 256, 384, 1024].map(|channels| scaled(channels, self.width));
        let mut block =
            |layers: Sequential, from: usize, to: [usize; 3], kernel: usize, stride: usize, is_last: bool| {
                let padding = if stride == 1 { kernel / 2 } else { 0 };
                let first =
                    Conv2dSpec::new(from, to[0], [kernel; 2]).stride([stride; 2]).padding(Padding::all(padding));
                layers
                    .with(Conv2d::new(first, random)?)?
                    .with(ReLU::default())?
                    .with(conv(to[0], to[1], random)?)?
                    .with(ReLU::default())?
                    .with(if is_last { maps(to[1], to[2], random)? } else { conv(to[1], to[2], random)? })?
                    .with(ReLU::default())
            };
        let pool = || MaxPool2d::new(Pool2dSpec::new([3, 3]).stride([2, 2]).ceil_mode(true));
        let layers = block(Sequential::new(), self.channels, [c1; 3], 11, 4, false)?.with(pool()?)?;
        let layers = block(layers, c1, [c2; 3], 5, 1, false)?.with(pool()?)?;
        let layers = block(layers, c2, [c3; 3], 3, 1, false)?.with(pool()?)?;
        let layers = block(layers, c3, [c4, c4, self.classes], 3, 1, true)?;
        layers.with(AdaptiveAvgPool2d::global())?.with(Flatten::default())
    }
}

/// A convolution of 1x1.
fn conv(from: usize, to: usize, random: &mut Random) -> Result<Conv2d> {
    Conv2d::new(Conv2dSpec::new(from, to, [1, 1]), random)
}

/// The convolution that makes the classes' maps. ReLU stands behind it too, and a map that is shut for every image
/// never opens again. So all start open, by a bias of 1, and near each other, by weights of a tenth.
fn maps(from: usize, to: usize, random: &mut Random) -> Result<Conv2d> {
    Conv2dSpec::new(from, to, [1, 1]).check()?;
    let weight = kaiming_uniform(&[to, from, 1, 1], from.saturating_mul(100), random);
    Conv2d::with_weights(Conv2dSpec::new(from, to, [1, 1]), weight, Some(Array1::ones(to).into_dyn()))
}
