//! One-dimensional transposed convolution: an image of one row.

use super::spec::{Accuracy, Layout, Padding};
use super::transposed::ConvTranspose2dSpec;
use crate::activation::Activation;

/// A transposed convolution along a line (audio, text, any series), as deep-learning libraries define it. Weights are
/// `[in_channels][out_channels / groups][kernel]`; inputs are `[batch][channels][length]`, or
/// `[batch][length][channels]` with [`Layout::Nhwc`].
///
/// It is a [`ConvTranspose2dSpec`] over images of one row:
///
/// ```
/// use kernels::{Parallelism, conv::{ConvTranspose1dSpec, ConvTranspose2d, Shape}};
/// let spec = ConvTranspose1dSpec::new(1, 1, 3).stride(2);
/// let shape = Shape::line(1, 2);
/// let conv = ConvTranspose2d::new(spec.into(), &[1.0, 2.0, 3.0], None, shape)?;
/// let mut workspace = vec![0.0; conv.workspace_len(shape, 1)?];
/// let mut output = [0.0; 5];
/// conv.forward(shape, &[1.0, 10.0], None, &mut output, &mut workspace, Parallelism::Serial)?;
/// assert_eq!(output, [1.0, 2.0, 13.0, 20.0, 30.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConvTranspose1dSpec {
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Taps.
    pub kernel: usize,
    /// Distance in the output between neighbours of the input, at least 1.
    pub stride: usize,
    /// Elements that are cut off the output, before and after.
    pub padding: [usize; 2],
    /// Elements at the end that the output has more, less than the stride.
    pub output_padding: usize,
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

impl ConvTranspose1dSpec {
    /// Stride 1, no padding, `[batch][channels][length]`.
    pub const fn new(in_channels: usize, out_channels: usize, kernel: usize) -> Self {
        Self {
            in_channels,
            out_channels,
            kernel,
            stride: 1,
            padding: [0, 0],
            output_padding: 0,
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

    /// Sets what is cut off before and after.
    pub const fn padding(mut self, padding: [usize; 2]) -> Self {
        self.padding = padding;
        self
    }

    /// Sets the output padding.
    pub const fn output_padding(mut self, output_padding: usize) -> Self {
        self.output_padding = output_padding;
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

impl From<ConvTranspose1dSpec> for ConvTranspose2dSpec {
    fn from(line: ConvTranspose1dSpec) -> Self {
        let [left, right] = line.padding;
        Self {
            in_channels: line.in_channels,
            out_channels: line.out_channels,
            kernel: [1, line.kernel],
            stride: [1, line.stride],
            padding: Padding { top: 0, bottom: 0, left, right },
            output_padding: [0, line.output_padding],
            dilation: [1, line.dilation],
            groups: line.groups,
            layout: line.layout,
            activation: line.activation,
            accuracy: line.accuracy,
        }
    }
}
