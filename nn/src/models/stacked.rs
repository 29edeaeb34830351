//! Learned filters one behind the other, and a linear classifier over what they show.
//!
//! ```text
//! [1, h, w] ── conv k x k, ReLU ──► [f1, h - k + 1, ...] ── conv k x k, ReLU ──► [f2, ...] ── linear ──► classes
//! ```
//!
//! With one filter in one layer it is the classifier of a filtered image; more layers make it stacked, more filters
//! wide.

use kernels::conv::Conv2dSpec;

use crate::activation::ReLU;
use crate::conv2d::Conv2d;
use crate::error::{Error, Result};
use crate::flatten::Flatten;
use crate::linear::Linear;
use crate::random::Random;
use crate::sequential::Sequential;

/// Convolutions with ReLU, then a linear classifier.
#[derive(Clone, Debug)]
pub struct Stacked {
    /// Channels of the input.
    pub channels: usize,
    /// `[height, width]` of the input.
    pub size: [usize; 2],
    /// Filters of each convolution.
    pub filters: Vec<usize>,
    /// Height and width of every filter.
    pub kernel: usize,
    /// Numbers of an output.
    pub classes: usize,
}

impl Default for Stacked {
    fn default() -> Self {
        Self { channels: 1, size: [28, 28], filters: vec![1], kernel: 5, classes: 10 }
    }
}

impl Stacked {
    /// The network. Its convolutions are the layers `0`, `2`, `4`, ...
    ///
    /// # Errors
    /// Those of [`Conv2d::new`], and [`Error::Kernel`] for images that are smaller than the filters together.
    pub fn build(&self, random: &mut Random) -> Result<Sequential> {
        let (mut layers, mut channels, mut size) = (Sequential::new(), self.channels, self.size);
        for &filters in &self.filters {
            let spec = Conv2dSpec::new(channels, filters, [self.kernel; 2]);
            size = spec.output_size(size)?;
            layers = layers.with(Conv2d::new(spec, random)?)?.with(ReLU::default())?;
            channels = filters;
        }
        let inputs = channels.checked_mul(size[0]).and_then(|len| len.checked_mul(size[1]));
        let inputs = inputs.ok_or_else(|| Error::invalid("size", "one that fits in memory", format!("{size:?}")))?;
        layers.with(Flatten::default())?.with(Linear::new(inputs, self.classes, random)?)
    }
}
