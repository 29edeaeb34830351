//! What a pooling is, and the sizes that follow.

use std::ops::Range;

use crate::conv::{Layout, Padding, Shape};
use crate::error::{Error, checked_len};

/// A two-dimensional max or average pooling. The names and rules are those of PyTorch.
///
/// ```
/// use kernels::conv::Padding;
/// use kernels::pool::Pool2dSpec;
/// let spec = Pool2dSpec::new([3, 3]).stride([2, 2]).padding(Padding::all(1));
/// assert_eq!(spec.output_size([112, 112])?, [56, 56]);
/// # Ok::<(), kernels::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pool2dSpec {
    /// The window: `[height, width]`.
    pub kernel: [usize; 2],
    /// Distance between neighbouring windows: `[height, width]`, at least 1.
    pub stride: [usize; 2],
    /// Room around the image where windows may start and end; at most half of the (dilated) window on each side.
    pub padding: Padding,
    /// Distance between neighbouring taps: `[height, width]`, at least 1. An average takes `[1, 1]` only.
    pub dilation: [usize; 2],
    /// The order of the elements of input and output.
    pub layout: Layout,
    /// Whether a last window that leaves the padded image counts, if only it starts in the image or before.
    pub ceil_mode: bool,
    /// Whether an average divides by the taps in the padding too, or only by those in the image.
    pub count_include_pad: bool,
}

impl Pool2dSpec {
    /// Windows side by side (the stride is the kernel), no padding, NCHW; averages count the padding.
    pub const fn new(kernel: [usize; 2]) -> Self {
        Self {
            kernel,
            stride: kernel,
            padding: Padding::all(0),
            dilation: [1, 1],
            layout: Layout::Nchw,
            ceil_mode: false,
            count_include_pad: true,
        }
    }

    /// One window that covers an image of `[height, width]`.
    pub const fn global(image: [usize; 2]) -> Self {
        Self::new(image)
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

    /// Sets the layout of input and output.
    pub const fn layout(mut self, layout: Layout) -> Self {
        self.layout = layout;
        self
    }

    /// Sets whether the output size is rounded up.
    pub const fn ceil_mode(mut self, ceil_mode: bool) -> Self {
        self.ceil_mode = ceil_mode;
        self
    }

    /// Sets whether an average divides by the taps in the padding too.
    pub const fn count_include_pad(mut self, count_include_pad: bool) -> Self {
        self.count_include_pad = count_include_pad;
        self
    }

    /// Whether the parameters fit each other.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a zero where at least one is needed and for padding of more than half of the window on a
    /// side, [`Error::Overflow`] for sizes beyond the address space.
    pub fn check(&self) -> Result<(), Error> {
        for (argument, pair) in [("kernel", self.kernel), ("stride", self.stride), ("dilation", self.dilation)] {
            if pair.contains(&0) {
                return Err(Error::invalid(argument, "at least 1", format!("{pair:?}")));
            }
        }
        for axis in 0..2 {
            let window = self.window(axis)?;
            for padding in self.around(axis) {
                if padding > window / 2 {
                    let expected = format!("at most {}, half of the window", window / 2);
                    return Err(Error::invalid("padding", expected, padding));
                }
            }
        }
        Ok(())
    }

    /// The extent of the dilated window along an axis (0 is height, 1 is width).
    fn window(&self, axis: usize) -> Result<usize, Error> {
        (self.kernel[axis] - 1)
            .checked_mul(self.dilation[axis])
            .and_then(|reach| reach.checked_add(1))
            .filter(|&window| window <= isize::MAX as usize)
            .ok_or(Error::Overflow { argument: "dilation" })
    }

    /// The padding before and after, along an axis.
    fn around(&self, axis: usize) -> [usize; 2] {
        let Padding { top, bottom, left, right } = self.padding;
        [[top, bottom], [left, right]][axis]
    }

    /// One axis of a call, checked.
    fn axis(&self, axis: usize, size: usize) -> Result<Axis, Error> {
        let argument = ["height", "width"][axis];
        let [before, after] = self.around(axis);
        let padded = size
            .checked_add(before + after)
            .filter(|&sum| sum <= isize::MAX as usize)
            .ok_or(Error::Overflow { argument: "padding" })?;
        let (window, stride) = (self.window(axis)?, self.stride[axis]);
        if size == 0 || padded < window {
            let expected = format!("at least {window} with padding, the extent of the window, and at least 1 without");
            return Err(Error::invalid(argument, expected, padded));
        }
        let span = padded - window;
        let mut output = span / stride + 1;
        if self.ceil_mode {
            let last = span.div_ceil(stride);
            // The last window has to start in the image or before it.
            output = if last.saturating_mul(stride) >= size + before { last } else { last + 1 };
        }
        let kernel = self.kernel[axis];
        Ok(Axis { size, output, kernel, stride, dilation: self.dilation[axis], window, before, padded })
    }

    /// Height and width of the output for an input of `[height, width]`.
    ///
    /// # Errors
    /// Those of [`Pool2dSpec::check`], and [`Error::Invalid`] for an empty image and when the padded image is smaller
    /// than the window.
    pub fn output_size(&self, input: [usize; 2]) -> Result<[usize; 2], Error> {
        self.check()?;
        Ok([self.axis(0, input[0])?.output, self.axis(1, input[1])?.output])
    }

    /// All sizes of a call, checked.
    ///
    /// # Errors
    /// Those of [`Pool2dSpec::output_size`], and [`Error::Overflow`].
    pub fn sizes(&self, shape: Shape, channels: usize) -> Result<PoolSizes, Error> {
        let Shape { batch, height, width } = shape;
        let output = self.output_size([height, width])?;
        let x_len = checked_len("x", &[batch, channels, height, width])?;
        let y_len = checked_len("y", &[batch, channels, output[0], output[1]])?;
        Ok(PoolSizes { output, x_len, y_len })
    }

    /// Everything that the kernels need to know.
    pub(super) fn geometry(&self, shape: Shape, channels: usize) -> Result<(Geometry, PoolSizes), Error> {
        let sizes = self.sizes(shape, channels)?;
        let (rows, columns) = (self.axis(0, shape.height)?, self.axis(1, shape.width)?);
        let (planes, channels) = match self.layout {
            Layout::Nchw => (shape.batch * channels, 1),
            Layout::Nhwc => (shape.batch, channels),
        };
        Ok((Geometry { rows, columns, planes, channels, count_include_pad: self.count_include_pad }, sizes))
    }
}

/// The sizes that follow from a spec, a shape and a number of channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSizes {
    /// `[height, width]` of the output.
    pub output: [usize; 2],
    /// Elements of the input.
    pub x_len: usize,
    /// Elements of the output.
    pub y_len: usize,
}

/// One dimension of a call: windows that slide along `size` pixels.
///
/// ```text
///   before        size        after
/// ├ ─ ─ ─ ┼───────────────────┼ ─ ─ ┤ padded
/// └─window 0─┘
///    stride   └─window 1─┘
/// ```
#[derive(Clone, Copy)]
pub(super) struct Axis {
    pub size: usize,
    pub output: usize,
    pub kernel: usize,
    pub stride: usize,
    pub dilation: usize,
    pub window: usize,
    pub before: usize,
    pub padded: usize,
}

impl Axis {
    /// The taps of window `o` that lie in the image.
    #[inline(always)]
    pub fn taps(&self, o: usize) -> Range<usize> {
        let start = o * self.stride;
        let end = self.before + self.size;
        let last = if start < end { (end - start).div_ceil(self.dilation).min(self.kernel) } else { 0 };
        let first = self.before.saturating_sub(start).div_ceil(self.dilation).min(last);
        first..last
    }

    /// The pixel under tap `k` of window `o`, which lies in the image.
    #[inline(always)]
    pub fn pixel(&self, o: usize, k: usize) -> usize {
        o * self.stride + k * self.dilation - self.before
    }

    /// The windows that lie in the image as a whole.
    #[inline(always)]
    pub fn interior(&self) -> Range<usize> {
        let end = self.before + self.size;
        let last = if end < self.window { 0 } else { ((end - self.window) / self.stride + 1).min(self.output) };
        self.before.div_ceil(self.stride).min(last)..last
    }

    /// How many taps of window `o` an average divides by.
    #[inline(always)]
    pub fn counted(&self, o: usize, include_padding: bool) -> usize {
        if include_padding { self.kernel.min(self.padded - o * self.stride) } else { self.taps(o).len() }
    }
}

/// A call as the kernels see it: `planes` images whose pixels are `channels` neighbouring floats.
#[derive(Clone, Copy)]
pub(super) struct Geometry {
    pub rows: Axis,
    pub columns: Axis,
    /// Images times channels in NCHW, images in NHWC.
    pub planes: usize,
    /// 1 in NCHW.
    pub channels: usize,
    pub count_include_pad: bool,
}

impl Geometry {
    /// Floats of a row of the input.
    pub fn x_row(&self) -> usize {
        self.columns.size * self.channels
    }

    /// Floats of a row of the output.
    pub fn y_row(&self) -> usize {
        self.columns.output * self.channels
    }

    /// What the average of window `[oh, ow]` divides by.
    #[inline(always)]
    pub fn divisor(&self, oh: usize, ow: usize) -> f32 {
        let counted = |axis: &Axis, o| axis.counted(o, self.count_include_pad) as f32;
        counted(&self.rows, oh) * counted(&self.columns, ow)
    }

    /// A rough time on one core, in seconds: a window costs by its taps, everything else by memory traffic.
    pub fn seconds(&self) -> f64 {
        let windows = self.planes as f64 * self.rows.output as f64 * self.y_row() as f64;
        let pixels = self.planes as f64 * self.rows.size as f64 * self.x_row() as f64;
        let taps = (self.rows.kernel as f64).mul_add(self.columns.kernel as f64, 4.0);
        windows * taps * 0.1e-9 + pixels * 0.4e-9
    }
}
