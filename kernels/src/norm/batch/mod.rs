//! Batch norm: each channel by its mean and variance over all images, or, in inference, over what training saw.
//!
//! ```text
//! training   mean, var of this batch          y = x^ gamma + beta,   running = (1 - momentum) running + momentum of this
//! inference  mean, var that training kept     y = x scale + shift,   scale = gamma r,  shift = beta - mean scale
//!            constants to the gradients       dx = dy scale,         dgamma, dbeta as in training
//! ```
//!
//! With channels apart (NCHW), a task is some channels of all images, which a cache often holds from the moments to the
//! output; with channels side by side (NHWC), it is some pixels with all of their channels, looked at once for the
//! moments and once for the output. Moments of runs, or of pieces, are merged in f64, in the order of memory.
//!
//! Source: S. Ioffe, C. Szegedy, "Batch Normalization" (2015). The formulas are in [`norm`](super).

mod nchw;
mod nhwc;

use crate::conv::Layout;
use crate::error::{Error, check_len, checked_len};
use crate::execution::Execution;
use crate::simd::Isa;

use super::{Affine, Gradients, SECONDS_PER_ELEMENT, check_epsilon, check_workspace};

/// Images and how they lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Images.
    pub batch: usize,
    /// Channels of an image.
    pub channels: usize,
    /// Pixels of a channel.
    pub pixels: usize,
    /// Whether pixels or channels are neighbours in memory.
    pub layout: Layout,
}

impl Shape {
    /// Elements of all images.
    fn check(&self) -> Result<usize, Error> {
        checked_len("shape", &[nhwc::PIECES + 2, 2, self.channels])?;
        checked_len("shape", &[self.batch, self.channels, self.pixels])
    }

    /// Elements that share a mean.
    fn count(&self) -> usize {
        // Without channels, this may be more than memory holds.
        self.batch.saturating_mul(self.pixels)
    }

    /// With one pixel, both layouts are the same.
    fn is_nhwc(&self) -> bool {
        self.layout == Layout::Nhwc || self.pixels == 1
    }
}

/// What training found of this batch: [`backward`] needs it. One element for each channel.
#[derive(Debug)]
pub struct Moments<'a> {
    /// The mean.
    pub mean: &'a mut [f32],
    /// `r = 1 / sqrt(variance + epsilon)`
    pub inverse_deviation: &'a mut [f32],
}

/// What training keeps for inference. One element for each channel.
#[derive(Debug)]
pub struct Running<'a> {
    /// The mean.
    pub mean: &'a mut [f32],
    /// The variance, that of a sample: divided by the number of elements less 1.
    pub variance: &'a mut [f32],
    /// The weight of a new batch, from 0 to 1; 0.1 is usual.
    pub momentum: f32,
}

/// Number, mean and sum of centred squares of some elements.
#[derive(Clone, Copy, Default)]
struct Sample {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Sample {
    /// Of both together, by Chan's formula.
    fn merge(self, other: Self) -> Self {
        let count = self.count + other.count;
        let share = other.count / count;
        let distance = other.mean - self.mean;
        Self {
            count,
            mean: self.mean + distance * share,
            squares: self.squares + other.squares + distance * distance * self.count * share,
        }
    }

    /// Mean, and `1 / sqrt(variance + epsilon)`.
    fn moments(self, epsilon: f32) -> (f32, f32) {
        (self.mean as f32, (1.0 / (self.squares / self.count + f64::from(epsilon)).sqrt()) as f32)
    }
}

/// Elements of scratch memory that [`forward`], [`backward`], [`inference`] and [`inference_backward`] need, each.
///
/// # Errors
/// [`Error::Overflow`].
pub fn workspace_len(shape: Shape) -> Result<usize, Error> {
    shape.check()?;
    // Sums, one for each piece and one for all, and two numbers for each channel.
    Ok((nhwc::pieces(shape) + 2) * 2 * shape.channels)
}

/// `y = x^ gamma + beta` with the mean and variance of each channel of this batch: a step of training.
///
/// The depth `d` of [`norm`](super) is `pixels / 64 + 12` for NCHW, and a quarter of the pixels of a piece and 8 more
/// for NHWC, where pieces have 1/64 of all pixels, or 16384 elements if that is more. `running`, if given, moves
/// towards this batch by its momentum. Without any element, nothing but NaN comes out as moments, and `running` stays.
///
/// ```
/// use kernels::conv::Layout;
/// use kernels::norm::{Affine, batch};
/// use kernels::{Parallelism, Workspace};
/// let shape = batch::Shape { batch: 2, channels: 2, pixels: 1, layout: Layout::Nchw };
/// let (mut y, mut mean, mut inverse_deviation) = ([0.0; 4], [0.0; 2], [0.0; 2]);
/// let mut workspace = Workspace::with_len(batch::workspace_len(shape)?)?;
/// batch::forward(
///     shape, &[1.0, 10.0, 5.0, 20.0], Affine::default(), 0.0, &mut y,
///     batch::Moments { mean: &mut mean, inverse_deviation: &mut inverse_deviation }, None,
///     &mut workspace, Parallelism::Serial,
/// )?;
/// assert_eq!((y, mean, inverse_deviation), ([-1.0, -1.0, 1.0, 1.0], [3.0, 15.0], [0.5, 0.2]));
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`] for a slice that does not fit `shape` and a workspace shorter than [`workspace_len`],
/// [`Error::Invalid`] for an `epsilon` that is negative or not finite and a momentum outside of 0 to 1,
/// [`Error::Overflow`].
#[allow(clippy::too_many_arguments)]
pub fn forward<'t>(
    shape: Shape,
    x: &[f32],
    affine: Affine,
    epsilon: f32,
    y: &mut [f32],
    moments: Moments,
    running: Option<Running>,
    workspace: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    let len = shape.check()?;
    let channels = shape.channels;
    check_len("x", len, x.len())?;
    affine.check(channels)?;
    check_epsilon(epsilon)?;
    check_len("y", len, y.len())?;
    check_len("mean", channels, moments.mean.len())?;
    check_len("inverse_deviation", channels, moments.inverse_deviation.len())?;
    if let Some(running) = &running {
        check_len("running mean", channels, running.mean.len())?;
        check_len("running variance", channels, running.variance.len())?;
        if !(0.0..=1.0).contains(&running.momentum) {
            return Err(Error::invalid("momentum", "0 to 1", running.momentum));
        }
    }
    check_workspace(workspace_len(shape)?, workspace.len())?;
    let execution = execution.into();
    let isa = execution.isa()?;
    let parallelism = execution.parallelism.for_seconds(len as f64 * SECONDS_PER_ELEMENT);
    if len == 0 {
        moments.mean.fill(f32::NAN);
        moments.inverse_deviation.fill(f32::NAN);
        return Ok(());
    }
    let Moments { mean, inverse_deviation } = moments;
    // The variances go to the start of the workspace.
    let variance = if shape.is_nhwc() {
        nhwc::forward(shape, isa, x, affine, epsilon, y, mean, inverse_deviation, workspace, parallelism)
    } else {
        nchw::forward(shape, isa, x, affine, epsilon, y, mean, inverse_deviation, workspace, parallelism)
    };
    if let Some(running) = running {
        let count = shape.count() as f32;
        // The variance of one element is not known.
        let sample = if count > 1.0 { count / (count - 1.0) } else { f32::NAN };
        for c in 0..channels {
            running.mean[c] += running.momentum * (mean[c] - running.mean[c]);
            running.variance[c] += running.momentum * (sample * variance[c] - running.variance[c]);
        }
    }
    Ok(())
}

/// `y = x scale + shift`, from means and variances that training kept.
///
/// An element errs by at most `4 u (|x scale| + |mean scale| + |beta|)`.
///
/// ```
/// use kernels::conv::Layout;
/// use kernels::norm::{Affine, batch};
/// use kernels::{Parallelism, Workspace};
/// let shape = batch::Shape { batch: 1, channels: 1, pixels: 2, layout: Layout::Nchw };
/// let mut y = [0.0; 2];
/// let mut workspace = Workspace::with_len(batch::workspace_len(shape)?)?;
/// batch::inference(
///     shape, &[3.0, 7.0], &[3.0], &[4.0], Affine::default(), 0.0, &mut y, &mut workspace, Parallelism::Serial,
/// )?;
/// assert_eq!(y, [0.0, 2.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// Those of [`forward`].
#[allow(clippy::too_many_arguments)]
pub fn inference<'t>(
    shape: Shape,
    x: &[f32],
    mean: &[f32],
    variance: &[f32],
    affine: Affine,
    epsilon: f32,
    y: &mut [f32],
    workspace: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    let len = shape.check()?;
    let channels = shape.channels;
    check_len("x", len, x.len())?;
    check_len("mean", channels, mean.len())?;
    check_len("variance", channels, variance.len())?;
    affine.check(channels)?;
    check_epsilon(epsilon)?;
    check_len("y", len, y.len())?;
    check_workspace(workspace_len(shape)?, workspace.len())?;
    let execution = execution.into();
    let isa = execution.isa()?;
    let parallelism = execution.parallelism.for_seconds(len as f64 * SECONDS_PER_ELEMENT);
    let (scale, rest) = workspace.split_at_mut(channels);
    let shift = &mut rest[..channels];
    for c in 0..channels {
        let gamma = f64::from(affine.gamma.map_or(1.0, |gamma| gamma[c]));
        let factor = gamma / (f64::from(variance[c]) + f64::from(epsilon)).sqrt();
        scale[c] = factor as f32;
        shift[c] = (f64::from(affine.beta.map_or(0.0, |beta| beta[c])) - f64::from(mean[c]) * factor) as f32;
    }
    if len == 0 {
        return Ok(());
    }
    if shape.is_nhwc() {
        nhwc::inference(shape, isa, x, scale, shift, y, parallelism);
    } else {
        nchw::inference(shape, isa, x, scale, shift, y, parallelism);
    }
    Ok(())
}

/// The gradients of [`forward`] from its input `x`, the moments that it found and the gradient `dy` of its output.
///
/// Beside the errors of [`norm`](super), those of the moments given count. Sums run through as many additions as the
/// depth of [`forward`], then one for each image or piece.
///
/// # Errors
/// Those of [`forward`].
#[allow(clippy::too_many_arguments)]
pub fn backward<'t>(
    shape: Shape,
    x: &[f32],
    mean: &[f32],
    inverse_deviation: &[f32],
    gamma: Option<&[f32]>,
    dy: &[f32],
    gradients: Gradients,
    workspace: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    let len = shape.check()?;
    let channels = shape.channels;
    check_len("x", len, x.len())?;
    check_len("mean", channels, mean.len())?;
    check_len("inverse_deviation", channels, inverse_deviation.len())?;
    Affine { gamma, beta: None }.check(channels)?;
    check_len("dy", len, dy.len())?;
    gradients.check(len, channels)?;
    check_workspace(workspace_len(shape)?, workspace.len())?;
    let execution = execution.into();
    let isa = execution.isa()?;
    let parallelism = execution.parallelism.for_seconds(2.0 * len as f64 * SECONDS_PER_ELEMENT);
    let Gradients { dx, dgamma, dbeta } = gradients;
    let (sums, partials) = workspace.split_at_mut(2 * channels);
    sums.fill(0.0);
    if len > 0 {
        let inputs = Inputs { shape, isa, x, dy, mean, r: inverse_deviation, gamma };
        if shape.is_nhwc() {
            nhwc::backward(inputs, dx, sums, partials, parallelism);
        } else {
            nchw::backward(inputs, dx, sums, parallelism);
        }
    }
    hand_out(sums, dgamma, dbeta);
    Ok(())
}

/// The gradients of [`inference`] from its input `x`, the means and variances that it used and the gradient `dy` of its
/// output: those of a norm that is frozen while what comes before it learns, or while its gamma and beta do.
///
/// An element of `dx` errs by at most `2 u |dx|`, one of `dgamma` by `(k + 4) u` times the sum of `|dy x^|`, one of
/// `dbeta` by `k u` times the sum of `|dy|`, where `k` counts additions one behind the other, as for [`backward`].
///
/// ```
/// use kernels::conv::Layout;
/// use kernels::norm::{Gradients, batch};
/// use kernels::{Parallelism, Workspace};
/// let shape = batch::Shape { batch: 1, channels: 1, pixels: 2, layout: Layout::Nchw };
/// let (mut dx, mut dgamma, mut dbeta) = ([0.0; 2], [0.0], [0.0]);
/// let mut workspace = Workspace::with_len(batch::workspace_len(shape)?)?;
/// // y = 6 (x - 3) / sqrt(4): dx = 3 dy, and x^ is 0 and 2.
/// batch::inference_backward(
///     shape, &[3.0, 7.0], &[3.0], &[4.0], Some(&[6.0]), &[1.0, 10.0], 0.0,
///     Gradients { dx: &mut dx, dgamma: Some(&mut dgamma), dbeta: Some(&mut dbeta) },
///     &mut workspace, Parallelism::Serial,
/// )?;
/// assert_eq!((dx, dgamma, dbeta), ([3.0, 30.0], [20.0], [11.0]));
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// Those of [`forward`].
#[allow(clippy::too_many_arguments)]
pub fn inference_backward<'t>(
    shape: Shape,
    x: &[f32],
    mean: &[f32],
    variance: &[f32],
    gamma: Option<&[f32]>,
    dy: &[f32],
    epsilon: f32,
    gradients: Gradients,
    workspace: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    let len = shape.check()?;
    let channels = shape.channels;
    check_len("x", len, x.len())?;
    check_len("mean", channels, mean.len())?;
    check_len("variance", channels, variance.len())?;
    Affine { gamma, beta: None }.check(channels)?;
    check_len("dy", len, dy.len())?;
    check_epsilon(epsilon)?;
    gradients.check(len, channels)?;
    check_workspace(workspace_len(shape)?, workspace.len())?;
    let execution = execution.into();
    let isa = execution.isa()?;
    let parallelism = execution.parallelism.for_seconds(1.5 * len as f64 * SECONDS_PER_ELEMENT);
    let Gradients { dx, dgamma, dbeta } = gradients;
    let (constants, rest) = workspace.split_at_mut(2 * channels);
    let (sums, partials) = rest.split_at_mut(2 * channels);
    let (r, scale) = constants.split_at_mut(channels);
    for c in 0..channels {
        let inverse_deviation = 1.0 / (f64::from(variance[c]) + f64::from(epsilon)).sqrt();
        r[c] = inverse_deviation as f32;
        scale[c] = (f64::from(gamma.map_or(1.0, |gamma| gamma[c])) * inverse_deviation) as f32;
    }
    sums.fill(0.0);
    if len > 0 {
        let inputs = Inputs { shape, isa, x, dy, mean, r, gamma };
        if shape.is_nhwc() {
            nhwc::inference_backward(inputs, scale, dx, sums, partials, parallelism);
        } else {
            nchw::inference_backward(inputs, scale, dx, sums, parallelism);
        }
    }
    hand_out(sums, dgamma, dbeta);
    Ok(())
}

/// Copies the gradients of gamma and then beta to where they are wanted.
fn hand_out(sums: &[f32], dgamma: Option<&mut [f32]>, dbeta: Option<&mut [f32]>) {
    let (of_gamma, of_beta) = sums.split_at(sums.len() / 2);
    for (gradient, sums) in [(dgamma, of_gamma), (dbeta, of_beta)] {
        if let Some(gradient) = gradient {
            gradient.copy_from_slice(sums);
        }
    }
}

/// What backward reads.
#[derive(Clone, Copy)]
struct Inputs<'a> {
    shape: Shape,
    isa: Isa,
    x: &'a [f32],
    dy: &'a [f32],
    mean: &'a [f32],
    r: &'a [f32],
    gamma: Option<&'a [f32]>,
}
