//! What a convolution is: everything that does not change from call to call, and the shape that may.

use std::fmt;

use crate::activation::Activation;
use crate::error::{Error, checked_len};

/// The order of an image's elements in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `[batch][channels][height][width]`: the pixels of a channel are neighbours.
    #[default]
    Nchw,
    /// `[batch][height][width][channels]`: the channels of a pixel are neighbours.
    Nhwc,
}

/// Rows and columns of implicit zeros around an image. Taps that fall into them contribute nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns to the left.
    pub left: usize,
    /// Columns to the right.
    pub right: usize,
}

impl Padding {
    /// The same on all four sides.
    pub const fn all(size: usize) -> Self {
        Self { top: size, bottom: size, left: size, right: size }
    }

    /// `height` above and below, `width` left and right.
    pub const fn symmetric([height, width]: [usize; 2]) -> Self {
        Self { top: height, bottom: height, left: width, right: width }
    }
}

/// How much rounding error the automatic choice of the algorithm may trade for speed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Accuracy {
    /// No more error than 1.25 times a direct convolution's.
    Direct,
    /// No more error than 2.75 times, of weights' gradients 4.5 times: also Winograd's F(4,3) and F(2,5), along one
    /// axis F(4,5) and F(2,7) as well.
    #[default]
    Fast,
    /// No more error than 12 times, of weights' gradients 14 times: also Winograd's F(6,3) and F(4,5).
    Fastest,
}

/// A two-dimensional convolution, as deep-learning libraries define it (a cross-correlation):
///
/// ```text
/// y[n, oc, oh, ow] = activation( bias[oc] + residual[n, oc, oh, ow]
///     + sum over ic, kh, kw of  w[oc, ic, kh, kw] * x[n, ic, oh * stride + kh * dilation - padding.top, ...] )
/// ```
///
/// Weights are `[out_channels][in_channels / groups][kernel height][kernel width]` in either layout.
///
/// ```
/// use kernels::conv::{Conv2dSpec, Padding};
/// let spec = Conv2dSpec::new(3, 64, [7, 7]).stride([2, 2]).padding(Padding::all(3));
/// assert_eq!(spec.output_size([224, 224])?, [112, 112]);
/// # Ok::<(), kernels::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Conv2dSpec {
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Taps: `[height, width]`.
    pub kernel: [usize; 2],
    /// Distance between neighbouring windows: `[height, width]`, at least 1.
    pub stride: [usize; 2],
    /// Implicit zeros around the image.
    pub padding: Padding,
    /// Distance between neighbouring taps: `[height, width]`, at least 1 (1 is a dense kernel).
    pub dilation: [usize; 2],
    /// Channels are cut into so many groups that do not see each other.
    pub groups: usize,
    /// The order of the elements of input and output.
    pub layout: Layout,
    /// What is applied to each output last.
    pub activation: Activation,
    /// Bounds the automatic choice of the algorithm.
    pub accuracy: Accuracy,
}

impl Conv2dSpec {
    /// A dense convolution of stride 1, without padding, in NCHW.
    pub const fn new(in_channels: usize, out_channels: usize, kernel: [usize; 2]) -> Self {
        Self {
            in_channels,
            out_channels,
            kernel,
            stride: [1, 1],
            padding: Padding::all(0),
            dilation: [1, 1],
            groups: 1,
            layout: Layout::Nchw,
            activation: Activation::Identity,
            accuracy: Accuracy::Fast,
        }
    }

    /// Sets the stride, `[height, width]`.
    pub const fn stride(mut self, stride: [usize; 2]) -> Self {
        self.stride = stride;
        self
    }

    /// Sets the padding.
    pub const fn padding(mut self, padding: Padding) -> Self {
        self.padding = padding;
        self
    }

    /// Sets the dilation, `[height, width]`.
    pub const fn dilation(mut self, dilation: [usize; 2]) -> Self {
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

    /// Whether the parameters fit each other.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a zero where at least one is needed and for channels that groups do not divide,
    /// [`Error::Overflow`] for sizes beyond the address space.
    pub fn check(&self) -> Result<(), Error> {
        let positive = |argument, pair: [usize; 2]| {
            if pair.contains(&0) { Err(Error::invalid(argument, "at least 1", format!("{pair:?}"))) } else { Ok(()) }
        };
        positive("kernel", self.kernel)?;
        positive("stride", self.stride)?;
        positive("dilation", self.dilation)?;
        positive("in_channels, out_channels", [self.in_channels, self.out_channels])?;
        if self.groups == 0 {
            return Err(Error::invalid("groups", "at least 1", 0));
        }
        for (argument, channels) in [("in_channels", self.in_channels), ("out_channels", self.out_channels)] {
            if !channels.is_multiple_of(self.groups) {
                let expected = format!("a multiple of the {} groups", self.groups);
                return Err(Error::invalid(argument, expected, channels));
            }
        }
        self.activation.check()?;
        let [h, w] = self.kernel;
        checked_len("weights", &[self.out_channels, self.in_channels / self.groups, h, w])?;
        for axis in 0..2 {
            self.window(axis)?;
            self.padded(axis, 0)?;
            // So that positions of windows beside the image can be computed.
            if self.stride[axis] > isize::MAX as usize / 4 {
                return Err(Error::Overflow { argument: "stride" });
            }
        }
        Ok(())
    }

    /// The extent of the dilated kernel along an axis (0 is height, 1 is width).
    pub(crate) fn window(&self, axis: usize) -> Result<usize, Error> {
        (self.kernel[axis] - 1)
            .checked_mul(self.dilation[axis])
            .and_then(|reach| reach.checked_add(1))
            .filter(|&window| window <= isize::MAX as usize)
            .ok_or(Error::Overflow { argument: "dilation" })
    }

    fn padded(&self, axis: usize, size: usize) -> Result<usize, Error> {
        let Padding { top, bottom, left, right } = self.padding;
        let [before, after] = [[top, bottom], [left, right]][axis];
        size.checked_add(before)
            .and_then(|sum| sum.checked_add(after))
            .filter(|&sum| sum <= isize::MAX as usize)
            .ok_or(Error::Overflow { argument: "padding" })
    }

    /// Height and width of the output for an input of `[height, width]`.
    ///
    /// # Errors
    /// Those of [`Conv2dSpec::check`], and [`Error::Invalid`] when the padded image is smaller than the kernel.
    pub fn output_size(&self, input: [usize; 2]) -> Result<[usize; 2], Error> {
        self.check()?;
        let mut output = [0; 2];
        for axis in 0..2 {
            let (padded, window) = (self.padded(axis, input[axis])?, self.window(axis)?);
            if padded < window {
                let argument = ["height", "width"][axis];
                let expected = format!("at least {window} with padding, the extent of the kernel");
                return Err(Error::invalid(argument, expected, padded));
            }
            output[axis] = (padded - window) / self.stride[axis] + 1;
        }
        Ok(output)
    }

    /// All sizes of a call, checked.
    ///
    /// # Errors
    /// Those of [`Conv2dSpec::output_size`], and [`Error::Overflow`].
    pub fn sizes(&self, shape: Shape) -> Result<Sizes, Error> {
        let Shape { batch, height, width } = shape;
        let output = self.output_size([height, width])?;
        let x_len = checked_len("x", &[batch, self.in_channels, height, width])?;
        let y_len = checked_len("y", &[batch, self.out_channels, output[0], output[1]])?;
        let [kh, kw] = self.kernel;
        let w_len = self.out_channels * (self.in_channels / self.groups) * kh * kw;
        Ok(Sizes { input: [height, width], output, x_len, y_len, w_len })
    }

    /// Multiplications and additions of a direct convolution, padding counted: `2 * batch * out_channels *
    /// output pixels * in_channels / groups * taps`. Every algorithm's speed is reported in these.
    pub fn flops(&self, shape: Shape) -> Result<f64, Error> {
        let sizes = self.sizes(shape)?;
        let taps = self.kernel[0] as f64 * self.kernel[1] as f64 * (self.in_channels / self.groups) as f64;
        Ok(2.0 * sizes.y_len as f64 * taps)
    }
}

/// What may change from call to call: `batch` images of `height` x `width`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Images.
    pub batch: usize,
    /// Rows of an input image.
    pub height: usize,
    /// Columns of an input image.
    pub width: usize,
}

impl Shape {
    /// `batch` images of `height` x `width`.
    pub const fn new(batch: usize, height: usize, width: usize) -> Self {
        Self { batch, height, width }
    }
}

/// The sizes that follow from a spec and a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// `[height, width]` of the input.
    pub input: [usize; 2],
    /// `[height, width]` of the output.
    pub output: [usize; 2],
    /// Elements of the input.
    pub x_len: usize,
    /// Elements of the output.
    pub y_len: usize,
    /// Elements of the weights.
    pub w_len: usize,
}

impl fmt::Display for Conv2dSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [kh, kw] = self.kernel;
        write!(f, "{}->{} {kh}x{kw}", self.in_channels, self.out_channels)?;
        if self.stride != [1, 1] {
            write!(f, " stride {}x{}", self.stride[0], self.stride[1])?;
        }
        if self.padding != Padding::default() {
            let Padding { top, bottom, left, right } = self.padding;
            write!(f, " padding {top},{bottom},{left},{right}")?;
        }
        if self.dilation != [1, 1] {
            write!(f, " dilation {}x{}", self.dilation[0], self.dilation[1])?;
        }
        if self.groups != 1 {
            write!(f, " groups {}", self.groups)?;
        }
        if self.layout == Layout::Nhwc {
            f.write_str(" NHWC")?;
        }
        Ok(())
    }
}

/// Turns every filter by 180 degrees: `w[oc, ic, kh, kw]` becomes `w[oc, ic, height - 1 - kh, width - 1 - kw]`.
///
/// What deep learning calls convolution is a cross-correlation. Whoever wants the convolution of the formula,
/// `(f * h)[i] = sum of f[i - k] h[k]`, flips the filter first.
///
/// ```
/// let mut filter = [1.0, 2.0, 3.0, 4.0];
/// kernels::conv::flip_filter(&mut filter, [2, 2])?;
/// assert_eq!(filter, [4.0, 3.0, 2.0, 1.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`] unless the slice holds a whole number of filters.
pub fn flip_filter(weights: &mut [f32], kernel: [usize; 2]) -> Result<(), Error> {
    let taps = checked_len("kernel", &kernel)?;
    if taps == 0 || !weights.len().is_multiple_of(taps) {
        let expected = weights.len().next_multiple_of(taps.max(1));
        return Err(Error::Length { argument: "weights", expected, given: weights.len() });
    }
    for filter in weights.chunks_exact_mut(taps) {
        filter.reverse();
    }
    Ok(())
}
