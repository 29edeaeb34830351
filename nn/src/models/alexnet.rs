//! AlexNet, with which deep learning began to win.
//!
//! ```text
//! features    conv 11x11 /4 ► 64, max 3x3 /2,  conv 5x5 ► 192, max 3x3 /2,
//!             conv 3x3 ► 384,  conv 3x3 ► 256,  conv 3x3 ► 256, max 3x3 /2          ReLU behind each convolution
//! avgpool     to 6x6
//! classifier  9216 ──► 4096 ──► 4096 ──► classes                     ReLU between them, dropout before the first two
//! ```
//!
//! Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014, in the layout and with the
//! names of torchvision.

use kernels::conv::{Conv2dSpec, Padding};
use kernels::pool::Pool2dSpec;

use super::{Line, check_width, scaled};
use crate::activation::ReLU;
use crate::adaptive_avg_pool2d::AdaptiveAvgPool2d;
use crate::conv2d::Conv2d;
use crate::dropout::Dropout;
use crate::error::Result;
use crate::flatten::Flatten;
use crate::graph::Graph;
use crate::linear::Linear;
use crate::max_pool2d::MaxPool2d;
use crate::random::Random;
use crate::sequential::Sequential;

/// AlexNet over images of at least 63x63.
#[derive(Clone, Debug)]
pub struct AlexNet {
    /// Channels of the input.
    pub channels: usize,
    /// Numbers of an output.
    pub classes: usize,
    /// By which hidden channels and neurons are multiplied.
    pub width: f32,
    /// The probability with which a neuron of the classifier is left out in training.
    pub dropout: f32,
}

impl Default for AlexNet {
    fn default() -> Self {
        Self { channels: 3, classes: 1000, width: 1.0, dropout: 0.5 }
    }
}

impl AlexNet {
    /// The network.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a width that is not above 0, for no channels or too many classes.
    pub fn build(&self, random: &mut Random) -> Result<Graph> {
        check_width(self.width)?;
        let [c1, c2, c3, c4, neurons] = [64, 192, 384, 256, 4096].map(|channels| scaled(channels, self.width));
        let pool = || MaxPool2d::new(Pool2dSpec::new([3, 3]).stride([2, 2]));
        let mut conv = |from: usize, to: usize, kernel: usize, padding: usize| {
            let stride = if kernel == 11 { [4, 4] } else { [1, 1] };
            let spec = Conv2dSpec::new(from, to, [kernel, kernel]).stride(stride).padding(Padding::all(padding));
            Conv2d::new(spec, random)
        };
        let features = Sequential::new()
            .with(conv(self.channels, c1, 11, 2)?)?
            .with(ReLU::default())?
            .with(pool()?)?
            .with(conv(c1, c2, 5, 2)?)?
            .with(ReLU::default())?
            .with(pool()?)?
            .with(conv(c2, c3, 3, 1)?)?
            .with(ReLU::default())?
            .with(conv(c3, c4, 3, 1)?)?
            .with(ReLU::default())?
            .with(conv(c4, c4, 3, 1)?)?
            .with(ReLU::default())?
            .with(pool()?)?;
        let classifier = Sequential::new()
            .with(Dropout::new(self.dropout, random)?)?
            .with(Linear::new(36 * c4, neurons, random)?)?
            .with(ReLU::default())?
            .with(Dropout::new(self.dropout, random)?)?
            .with(Linear::new(neurons, neurons, random)?)?
            .with(ReLU::default())?
            .with(Linear::new(neurons, self.classes, random)?)?;
        let line = Line::new()?
            .then("features", features)?
            .then("avgpool", AdaptiveAvgPool2d::new([6, 6])?)?
            .then("flatten", Flatten::default())?
            .then("classifier", classifier)?;
        Ok(line.graph)
    }
}
