//! One-dimensional convolution: an image of one row.

use super::spec::{Accuracy, Conv2dSpec, Layout, Padding, Shape};
use crate::activation::Activation;

/// A convolution along a line (audio, text, any series), as deep-learning libraries define it. Weights are
/// `[out_channels][in_channels / groups][kernel]`; inputs are `[batch][channels][length]`, or
/// `[batch][length][channels]` with [`Layout::Nhwc`].
///
/// It is a [`Conv2dSpec`] over images of one row, so every plan takes it:
///
/// ```
/// use kernels::{Parallelism, conv::{Conv1dSpec, Conv2d, Shape}};
/// let spec = Conv1dSpec::new(1, 1, 3).padding([2, 0]); // causal: no output sees what comes after it
/// let shape = Shape::line(1, 4);
/// let conv = Conv2d::new(spec.into(), &[0.0, 1.0, 1.0], None, shape)?;
/// let mut workspace = vec![0.0; conv.workspace_len(shape, 1)?];
/// let mut output = [0.0; 4];
/// conv.forward(shape, &[1.0, 2.0, 3.0, 4.0], None, &mut output, &mut workspace, Parallelism::Serial)?;
/// assert_eq!(output, [1.0, 3.0, 5.0, 7.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conv1dSpec {
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Taps.
    pub kernel: usize,
    /// Distance between neighbouring windows, at least 1.
    pub stride: usize,
    /// Implicit zeros before and after the line.
    pub padding: [usize; 2],
    /// Distance between neighbouring taps, at least 1.
    pub dilation: usize,
    /// Channels are cut into so many groups that do not see each other.
    pub groups: usize,
    /// The order of the elements of input and output.
    pub layout: Layout,
    /// What is applied to each output last.
    pub activation: Activation,
    /// Bounds the automatic choice of the algorithm.
    pub accuracy: Accuracy,
}

impl Conv1dSpec {
    /// A dense convolution of stride 1, without padding, `[batch][channels][length]`.
    pub const fn new(in_channels: usize, out_channels: usize, kernel: usize) -> Self {
        Self {
            in_channels,
            out_channels,
            kernel,
            stride: 1,
            padding: [0, 0],
            dilation: 1,
            groups: 1,
            layout: Layout::Nchw,
            activation: Activation::Identity,
            accuracy: Accuracy::Fast,
        }
    }

    /// Sets the stride.
    pub const fn stride(mut self, stride: usize) -> Self {
        self.stride = stride;
        self
    }

    /// Sets the padding before and after the line.
    pub const fn padding(mut self, padding: [usize; 2]) -> Self {
        self.padding = padding;
        self
    }

    /// Sets the dilation.
    pub const fn dilation(mut self, dilation: usize) -> Self {
        self.dilation = dilation;
        self
    }

    /// Sets the number of groups.
    pub const fn groups(mut self, groups: usize) -> Self {
        self.groups = groups;
        self
    }

    /// Sets the layout of input and output.
    pub const fn layout(mut self, layout: Layout) -> Self {
        self.layout = layout;
        self
    }

    /// Sets the activation.
    pub const fn activation(mut self, activation: Activation) -> Self {
        self.activation = activation;
        self
    }

    /// Sets the bound of the automatic choice.
    pub const fn accuracy(mut self, accuracy: Accuracy) -> Self {
        self.accuracy = accuracy;
        self
    }
}

impl From<Conv1dSpec> for Conv2dSpec {
    fn from(line: Conv1dSpec) -> Self {
        let [left, right] = line.padding;
        Self {
            in_channels: line.in_channels,
            out_channels: line.out_channels,
            kernel: [1, line.kernel],
            stride: [1, line.stride],
            padding: Padding { top: 0, bottom: 0, left, right },
            dilation: [1, line.dilation],
            groups: line.groups,
            layout: line.layout,
            activation: line.activation,
            accuracy: line.accuracy,
        }
    }
}

impl Shape {
    /// `batch` lines of `length`: images of one row.
    pub const fn line(batch: usize, length: usize) -> Self {
        Self::new(batch, 1, length)
    }
}
