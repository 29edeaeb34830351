//! Transposed convolution: the convolution's backward-data as a forward pass, with bias and activation.
//!
//! ```text
//! input           each pixel, times the kernel, is added to the output at `stride` times its position
//! ┌─┬─┐           ┌───┬─┬───┐
//! │a│b│     ──►   │ a │+│ b │     output = (input - 1) * stride - padding + window + output_padding
//! └─┴─┘           └───┴─┴───┘
//! ```
//!
//! Every transposed convolution is the gradient of an ordinary one ([`ConvTranspose2dSpec::gradient_of`]), whose output
//! is its input. So it has the same kernels, its own gradient of the input is that convolution's forward pass, and its
//! gradient of the weights is that convolution's with `x` and `dy` exchanged.
//!
//! Source: V. Dumoulin, F. Visin, "A guide to convolution arithmetic for deep learning", arXiv 1603.07285 (2016).

use super::algorithm::Algorithm;
use super::backward::Conv2dBackward;
use super::bias_gradient::bias_gradient;
use super::engine::Post;
use super::plan::{Conv2d, Options};
use super::spec::{Accuracy, Conv2dSpec, Layout, Padding, Shape, Sizes};
use crate::activation::Activation;
use crate::error::{Error, check_len, checked_len};
use crate::parallel::Parallelism;

/// A two-dimensional transposed convolution, as deep-learning libraries define it:
///
/// ```text
/// y[n, oc, ih * stride + kh * dilation - padding.top, ...] += w[ic, oc, kh, kw] * x[n, ic, ih, iw]
/// ```
///
/// then bias, residual and activation. Weights are `[in_channels][out_channels / groups][kernel height][kernel width]`
/// in either layout.
///
/// ```
/// use kernels::conv::{ConvTranspose2dSpec, Padding};
/// let spec = ConvTranspose2dSpec::new(64, 32, [3, 3]).stride([2, 2]).padding(Padding::all(1)).output_padding([1, 1]);
/// assert_eq!(spec.output_size([14, 14])?, [28, 28]);
/// # Ok::<(), kernels::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConvTranspose2dSpec {
    /// Channels of the input.
    pub in_channels: usize,
    /// Channels of the output.
    pub out_channels: usize,
    /// Taps: `[height, width]`.
    pub kernel: [usize; 2],
    /// Distance in the output between neighbours of the input: `[height, width]`, at least 1.
    pub stride: [usize; 2],
    /// Rows and columns that are cut off the output.
    pub padding: Padding,
    /// Rows below and columns to the right that the output has more, each less than the stride.
    pub output_padding: [usize; 2],
    /// Distance between neighbouring taps: `[height, width]`, at least 1.
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

impl ConvTranspose2dSpec {
    /// Stride 1, no padding, NCHW.
    pub const fn new(in_channels: usize, out_channels: usize, kernel: [usize; 2]) -> Self {
        Self {
            in_channels,
            out_channels,
            kernel,
            stride: [1, 1],
            padding: Padding::all(0),
            output_padding: [0, 0],
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

    /// Sets the output padding, `[height, width]`.
    pub const fn output_padding(mut self, output_padding: [usize; 2]) -> Self {
        self.output_padding = output_padding;
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

    /// The convolution whose gradient of the input this is: channels exchanged, without bias and activation. Weights
    /// and accuracy are the same.
    pub const fn gradient_of(&self) -> Conv2dSpec {
        Conv2dSpec::new(self.out_channels, self.in_channels, self.kernel)
            .stride(self.stride)
            .padding(self.padding)
            .dilation(self.dilation)
            .groups(self.groups)
            .layout(self.layout)
            .accuracy(self.accuracy)
    }

    /// Height and width of the output for an input of `[height, width]`.
    ///
    /// # Errors
    /// Those of [`Conv2dSpec::check`]; [`Error::Invalid`] for an output padding that is not below the stride, for an
    /// empty input, and for a padding that cuts off all of the output; [`Error::Overflow`].
    pub fn output_size(&self, input: [usize; 2]) -> Result<[usize; 2], Error> {
        let conv = self.gradient_of();
        conv.check()?;
        self.activation.check()?;
        let Padding { top, bottom, left, right } = self.padding;
        let mut output = [0; 2];
        for axis in 0..2 {
            let extra = self.output_padding[axis];
            if extra >= self.stride[axis] {
                let expected = format!("less than the stride, {}", self.stride[axis]);
                return Err(Error::invalid("output_padding", expected, extra));
            }
            let argument = ["height", "width"][axis];
            let Some(steps) = input[axis].checked_sub(1) else {
                return Err(Error::invalid(argument, "at least 1", 0));
            };
            let cut = [[top, bottom], [left, right]][axis];
            let overflow = Error::Overflow { argument };
            let full = steps
                .checked_mul(self.stride[axis])
                .and_then(|reach| reach.checked_add(conv.window(axis).ok()?))
                .and_then(|full| full.checked_add(extra))
                .filter(|&full| full <= isize::MAX as usize)
                .ok_or(overflow)?;
            output[axis] = match full.checked_sub(cut[0] + cut[1]) {
                Some(size) if size > 0 => size,
                _ => {
                    let expected = format!("below {full}, the output's extent before it is cut");
                    return Err(Error::invalid("padding", expected, cut[0] + cut[1]));
                }
            };
        }
        Ok(output)
    }

    /// The shape of the output, which is the input of [`ConvTranspose2dSpec::gradient_of`], and that convolution's
    /// sizes.
    fn gradient_sizes(&self, shape: Shape) -> Result<(Shape, Sizes), Error> {
        let [height, width] = self.output_size([shape.height, shape.width])?;
        let output = Shape::new(shape.batch, height, width);
        let sizes = self.gradient_of().sizes(output)?;
        debug_assert_eq!(sizes.output, [shape.height, shape.width]);
        Ok((output, sizes))
    }

    /// All sizes of a call, checked.
    ///
    /// # Errors
    /// Those of [`ConvTranspose2dSpec::output_size`], and [`Error::Overflow`].
    pub fn sizes(&self, shape: Shape) -> Result<Sizes, Error> {
        let (output, sizes) = self.gradient_sizes(shape)?;
        checked_len("x", &[shape.batch, self.in_channels, shape.height, shape.width])?;
        Ok(Sizes {
            input: [shape.height, shape.width],
            output: [output.height, output.width],
            x_len: sizes.y_len,
            y_len: sizes.x_len,
            w_len: sizes.w_len,
        })
    }
}

/// A transposed convolution with its weights: made once, run often, from any thread, forward and backward.
///
/// ```
/// use kernels::{Parallelism, conv::{ConvTranspose2d, ConvTranspose2dSpec, Shape}};
/// let spec = ConvTranspose2dSpec::new(1, 1, [2, 2]).stride([2, 2]);
/// let shape = Shape::new(1, 1, 2);
/// let conv = ConvTranspose2d::new(spec, &[1.0, 2.0, 3.0, 4.0], Some(&[0.5]), shape)?;
/// let mut workspace = vec![0.0; conv.workspace_len(shape, 1)?];
/// let mut output = [0.0; 8];
/// conv.forward(shape, &[1.0, 10.0], None, &mut output, &mut workspace, Parallelism::Serial)?;
/// assert_eq!(output, [1.5, 2.5, 10.5, 20.5, 3.5, 4.5, 30.5, 40.5]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Numerical error
/// As for [`Conv2d`], with sums of `in_channels / groups * taps` products, the shadow of a Winograd algorithm being
/// [`winograd_shadow_backward_data`](crate::reference::winograd_shadow_backward_data) of
/// [`ConvTranspose2dSpec::gradient_of`]. The gradients are those of that convolution: see [`Conv2d`] for the input's,
/// and [`Conv2dBackward`] for the weights'.
#[derive(Clone, Debug)]
pub struct ConvTranspose2d {
    spec: ConvTranspose2dSpec,
    bias: Option<Vec<f32>>,
    /// Its gradient of the input is this forward pass, its gradient of the weights this one's with operands exchanged.
    gradient: Conv2dBackward,
    /// Its forward pass is this gradient of the input.
    conv: Conv2d,
}

impl ConvTranspose2d {
    /// Chooses algorithms for inputs like `hint` and packs the weights. Calls may have other sizes.
    ///
    /// # Errors
    /// Those of [`ConvTranspose2dSpec::sizes`], and [`Error::Length`] for weights or a bias of another length.
    pub fn new(spec: ConvTranspose2dSpec, weights: &[f32], bias: Option<&[f32]>, hint: Shape) -> Result<Self, Error> {
        Self::with_options(spec, weights, bias, hint, Options::default())
    }

    /// As [`ConvTranspose2d::new`], with some of the choices made by the caller. An algorithm that only gradients have
    /// is one for this forward pass and the gradient of the weights; the gradient of the input then chooses its
    /// own.
    ///
    /// # Errors
    /// Also those of [`Conv2d::with_options`].
    pub fn with_options(
        spec: ConvTranspose2dSpec,
        weights: &[f32],
        bias: Option<&[f32]>,
        hint: Shape,
        options: Options,
    ) -> Result<Self, Error> {
        let (output, _) = spec.gradient_sizes(hint)?;
        check_len("bias", spec.out_channels, bias.map_or(spec.out_channels, <[f32]>::len))?;
        let conv = spec.gradient_of();
        Ok(Self {
            spec,
            bias: bias.map(<[f32]>::to_vec),
            gradient: Conv2dBackward::with_options(conv, weights, output, options)?,
            conv: Conv2d::with_options(conv, weights, None, output, options.forward())?,
        })
    }

    /// Replaces weights and bias and packs them again, without allocating. A plan keeps having a bias, or none.
    ///
    /// # Errors
    /// [`Error::Length`] for weights or a bias of another length than before.
    pub fn set_weights(
        &mut self,
        weights: &[f32],
        bias: Option<&[f32]>,
        parallelism: Parallelism<'_>,
    ) -> Result<(), Error> {
        check_len("bias", self.bias.as_ref().map_or(0, Vec::len), bias.map_or(0, <[f32]>::len))?;
        self.gradient.set_weights(weights, parallelism)?;
        self.conv.set_weights(weights, None, parallelism)?;
        if let (Some(to), Some(from)) = (&mut self.bias, bias) {
            to.copy_from_slice(from);
        }
        Ok(())
    }

    /// The spec.
    pub fn spec(&self) -> &ConvTranspose2dSpec {
        &self.spec
    }

    /// The algorithm of the forward pass.
    pub fn algorithm(&self) -> Algorithm {
        self.gradient.algorithms()[0]
    }

    /// The algorithms of the gradients: of the input, and of the weights.
    pub fn gradient_algorithms(&self) -> [Algorithm; 2] {
        [self.conv.algorithm(), self.gradient.algorithms()[1]]
    }

    /// What runs, on which instruction set, and why not other algorithms.
    pub fn describe(&self) -> String {
        format!(
            "transposed, so forward is the {}\ngradient of the input is the convolution {}",
            self.gradient.describe(),
            self.conv.describe()
        )
    }

    /// The scratch memory that any of the calls needs when at most `slots` tasks run at once, in `f32`s.
    ///
    /// # Errors
    /// Those of [`ConvTranspose2dSpec::sizes`], and [`Error::Invalid`] for no slots.
    pub fn workspace_len(&self, shape: Shape, slots: usize) -> Result<usize, Error> {
        let (output, _) = self.spec.gradient_sizes(shape)?;
        Ok(self.gradient.workspace_len(output, slots)?.max(self.conv.workspace_len(output, slots)?))
    }

    /// `y = activation(x transposed * w + bias + residual)` for `batch` inputs of `shape`. Allocates nothing.
    ///
    /// # Errors
    /// Those of [`ConvTranspose2dSpec::sizes`], and [`Error::Length`] for a slice of another length or a workspace that
    /// is too short for one slot. `y` is untouched then.
    pub fn forward(
        &self,
        shape: Shape,
        x: &[f32],
        residual: Option<&[f32]>,
        y: &mut [f32],
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error> {
        let (output, sizes) = self.spec.gradient_sizes(shape)?;
        check_len("x", sizes.y_len, x.len())?;
        check_len("residual", sizes.x_len, residual.map_or(sizes.x_len, <[f32]>::len))?;
        check_len("y", sizes.x_len, y.len())?;
        let post = Post { bias: self.bias.as_deref(), residual, activation: self.spec.activation };
        self.gradient.data_then(output, x, y, post, workspace, parallelism)
    }

    /// The gradient of the input; `dy` is the gradient before the activation. Allocates nothing.
    ///
    /// # Errors
    /// Those of [`ConvTranspose2d::forward`].
    pub fn backward_data(
        &self,
        shape: Shape,
        dy: &[f32],
        dx: &mut [f32],
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error> {
        let (output, sizes) = self.spec.gradient_sizes(shape)?;
        check_len("dy", sizes.x_len, dy.len())?;
        check_len("dx", sizes.y_len, dx.len())?;
        self.conv.forward(output, dy, None, dx, workspace, parallelism)
    }

    /// The gradients of the weights and, if asked for, of the bias. Allocates nothing.
    ///
    /// # Errors
    /// Those of [`ConvTranspose2d::forward`].
    pub fn backward_weights(
        &self,
        shape: Shape,
        x: &[f32],
        dy: &[f32],
        dw: &mut [f32],
        db: Option<&mut [f32]>,
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error> {
        let output = self.check_backward(shape, x, dy, db.as_deref())?;
        // The convolution's input is this one's output.
        self.gradient.weights(output, dy, x, dw, None, workspace, parallelism)?;
        self.backward_bias(output, dy, db, parallelism);
        Ok(())
    }

    /// All gradients in one call, the same bits as from [`ConvTranspose2d::backward_data`] and
    /// [`ConvTranspose2d::backward_weights`]. Allocates nothing.
    ///
    /// # Errors
    /// Those of [`ConvTranspose2d::forward`].
    pub fn both(
        &self,
        shape: Shape,
        x: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        dw: &mut [f32],
        db: Option<&mut [f32]>,
        workspace: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<(), Error> {
        let output = self.check_backward(shape, x, dy, db.as_deref())?;
        // What the second call refuses would find the first one's output written.
        check_len("dx", x.len(), dx.len())?;
        self.conv.check_workspace(output, workspace, parallelism)?;
        self.gradient.weights(output, dy, x, dw, None, workspace, parallelism)?;
        self.conv.forward(output, dy, None, dx, workspace, parallelism)?;
        self.backward_bias(output, dy, db, parallelism);
        Ok(())
    }

    /// The shape of the output, for operands of a gradient that fit.
    fn check_backward(&self, shape: Shape, x: &[f32], dy: &[f32], db: Option<&[f32]>) -> Result<Shape, Error> {
        let (output, sizes) = self.spec.gradient_sizes(shape)?;
        check_len("x", sizes.y_len, x.len())?;
        check_len("dy", sizes.x_len, dy.len())?;
        check_len("db", self.spec.out_channels, db.map_or(self.spec.out_channels, <[f32]>::len))?;
        Ok(output)
    }

    fn backward_bias(&self, output: Shape, dy: &[f32], db: Option<&mut [f32]>, parallelism: Parallelism) {
        if let Some(db) = db {
            let pixels = output.height * output.width;
            bias_gradient(self.gradient.isa(), self.spec.layout, output.batch, pixels, dy, db, parallelism);
        }
    }
}
