//! Group norm: groups of channels of each image by their own mean and variance, each channel by its own scale and
//! shift.
//!
//! ```text
//! x[n, c, p], channels / groups neighbouring channels:  a group of an image is one run of memory
//! ```
//!
//! One group is a layer norm over whole images, as many groups as channels are an instance norm.
//!
//! Source: Y. Wu, K. He, "Group Normalization" (2018). The formulas are in [`norm`](super).

use crate::error::{Error, check_len, checked_len};
use crate::execution::Execution;
use crate::parts::Parts;
use crate::simd::output::{Output, each_result, goes_past};
use crate::simd::reduce::sum_pairs;
use crate::simd::{Job, Simd, dispatch};

use super::row::{moments, rows_per_task};
use super::run::{Both, Normalise, Outgoing};
use super::{Affine, Gradients, SECONDS_PER_ELEMENT, check_epsilon, check_workspace};

/// Images of which channels and groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Images.
    pub batch: usize,
    /// Channels of an image.
    pub channels: usize,
    /// Pixels of a channel, neighbours in memory.
    pub pixels: usize,
    /// Groups of channels, a divisor of `channels`.
    pub groups: usize,
}

impl Shape {
    /// Elements of all images.
    fn check(&self) -> Result<usize, Error> {
        let Self { batch, channels, pixels, groups } = *self;
        let len = checked_len("shape", &[batch, channels, pixels])?;
        checked_len("shape", &[batch, channels, 2])?;
        if groups == 0 || channels % groups != 0 {
            return Err(Error::invalid("groups", format!("a divisor of {channels} channels"), groups));
        }
        Ok(len)
    }

    fn group_channels(&self) -> usize {
        self.channels / self.groups
    }
}

/// `y = x^ gamma + beta` for each group of each image.
///
/// ```
/// use kernels::Parallelism;
/// use kernels::norm::{Affine, group};
/// let shape = group::Shape { batch: 1, channels: 2, pixels: 2, groups: 2 };
/// let (gamma, beta) = ([1.0, 10.0], [0.0, 5.0]);
/// let mut y = [0.0; 4];
/// group::forward(shape, &[1.0, 3.0, 0.0, 4.0], Affine::new(&gamma, &beta), 0.0, &mut y, Parallelism::Serial)?;
/// assert_eq!(y, [-1.0, 1.0, -5.0, 15.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`] for a slice that does not fit `shape`, [`Error::Invalid`] for groups that do not divide the
/// channels and for an `epsilon` that is negative or not finite, [`Error::Overflow`].
pub fn forward<'t>(
    shape: Shape,
    x: &[f32],
    affine: Affine,
    epsilon: f32,
    y: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    let len = shape.check()?;
    check_len("x", len, x.len())?;
    affine.check(shape.channels)?;
    check_epsilon(epsilon)?;
    check_len("y", len, y.len())?;
    let execution = execution.into();
    let isa = execution.isa()?;
    let parallelism = execution.parallelism.for_seconds(len as f64 * SECONDS_PER_ELEMENT);
    if len == 0 {
        return Ok(());
    }
    let row = shape.group_channels() * shape.pixels;
    let rows = rows_per_task(row);
    let past = goes_past(len, shape.pixels);
    let parts = Parts::new(y, rows * row);
    parallelism.for_each(parts.count(), parallelism.threads(), &|index, _| {
        // SAFETY: each index comes up once.
        let y = unsafe { parts.take(index) };
        let x = &x[index * rows * row..][..y.len()];
        dispatch(isa, Forward { shape, first: index * rows, x, affine, epsilon, y, past });
    });
    Ok(())
}

struct Forward<'a> {
    shape: Shape,
    /// Which group of all images comes first.
    first: usize,
    x: &'a [f32],
    affine: Affine<'a>,
    epsilon: f32,
    y: &'a mut [f32],
    /// Whether `y` goes past the caches.
    past: bool,
}

impl Job for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { shape, first, x, affine, epsilon, y, past } = self;
        let (group_channels, pixels) = (shape.group_channels(), shape.pixels);
        let row = group_channels * pixels;
        let y = Output { start: y.as_mut_ptr(), past };
        for (index, x) in x.chunks_exact(row).enumerate() {
            // SAFETY: it has `row` elements.
            let (mean, r) = unsafe { moments::<S, true>(simd, x.as_ptr(), None, row, epsilon) };
            let channel = (first + index) % shape.groups * group_channels;
            for c in 0..group_channels {
                let gamma = affine.gamma.map_or(1.0, |gamma| gamma[channel + c]);
                let beta = affine.beta.map_or(0.0, |beta| beta[channel + c]);
                let (x, y) = (x[c * pixels..][..pixels].as_ptr(), y.at(index * row + c * pixels));
                // SAFETY: both have `pixels` elements.
                unsafe { each_result(simd, y, pixels, &Normalise { x, y, mean, r, gamma, beta }) };
            }
        }
        y.finish(simd);
    }
}

/// Elements of scratch memory that [`backward`] needs.
///
/// # Errors
/// [`Error::Overflow`], [`Error::Invalid`] for groups that do not divide the channels.
pub fn backward_workspace_len(shape: Shape) -> Result<usize, Error> {
    shape.check()?;
    Ok(shape.batch * shape.channels * 2)
}

/// The gradients of [`forward`] from its input `x` and the gradient `dy` of its output.
///
/// Sums of `g` and `g x^` go through the lanes for each channel, then over the group's channels one after the other;
/// parameters' gradients over the images.
///
/// # Errors
/// Those of [`forward`], and [`Error::Length`] for a workspace shorter than [`backward_workspace_len`].
#[allow(clippy::too_many_arguments)]
pub fn backward<'t>(
    shape: Shape,
    x: &[f32],
    gamma: Option<&[f32]>,
    dy: &[f32],
    epsilon: f32,
    gradients: Gradients,
    workspace: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    let len = shape.check()?;
    check_len("x", len, x.len())?;
    Affine { gamma, beta: None }.check(shape.channels)?;
    check_len("dy", len, dy.len())?;
    check_epsilon(epsilon)?;
    gradients.check(len, shape.channels)?;
    let needed = backward_workspace_len(shape)?;
    check_workspace(needed, workspace.len())?;
    let execution = execution.into();
    let isa = execution.isa()?;

    let Gradients { dx, dgamma, dbeta } = gradients;
    if len == 0 {
        for gradient in [dgamma, dbeta].into_iter().flatten() {
            gradient.fill(0.0);
        }
        return Ok(());
    }
    let group_channels = shape.group_channels();
    let row = group_channels * shape.pixels;
    let rows = rows_per_task(row);
    let parallelism = execution.parallelism.for_seconds(2.0 * len as f64 * SECONDS_PER_ELEMENT);
    let past = goes_past(len, shape.pixels);
    let sums = &mut workspace[..needed];
    {
        let parts = Parts::new(dx, rows * row);
        let sums = Parts::new(sums, rows * group_channels * 2);
        parallelism.for_each(parts.count(), parallelism.threads(), &|index, _| {
            // SAFETY: each index comes up once.
            let (dx, sums) = unsafe { (parts.take(index), sums.take(index)) };
            let (x, dy) = (&x[index * rows * row..][..dx.len()], &dy[index * rows * row..][..dx.len()]);
            dispatch(isa, Backward { shape, first: index * rows, x, gamma, dy, epsilon, dx, past, sums });
        });
    }
    for (which, gradient) in [dgamma, dbeta].into_iter().enumerate() {
        for (channel, gradient) in gradient.into_iter().flatten().enumerate() {
            *gradient = (0..shape.batch).fold(0.0, |sum, n| sum + sums[2 * (n * shape.channels + channel) + which]);
        }
    }
    Ok(())
}

struct Backward<'a> {
    shape: Shape,
    /// Which group of all images comes first.
    first: usize,
    x: &'a [f32],
    gamma: Option<&'a [f32]>,
    dy: &'a [f32],
    epsilon: f32,
    dx: &'a mut [f32],
    /// Whether `dx` goes past the caches.
    past: bool,
    /// `[channel][dgamma, dbeta]` of these groups.
    sums: &'a mut [f32],
}

impl Job for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { shape, first, x, gamma, dy, epsilon, dx, past, sums } = self;
        let (group_channels, pixels) = (shape.group_channels(), shape.pixels);
        let row = group_channels * pixels;
        let rows = dx.len() / row;
        let dx = Output { start: dx.as_mut_ptr(), past };
        for index in 0..rows {
            let channel = (first + index) % shape.groups * group_channels;
            let gamma = |c: usize| gamma.map_or(1.0, |gamma| gamma[channel + c]);
            let (x, dy) = (&x[index * row..][..row], &dy[index * row..][..row]);
            let sums = &mut sums[2 * index * group_channels..][..2 * group_channels];
            // SAFETY: the row has so many elements.
            let (mean, r) = unsafe { moments::<S, true>(simd, x.as_ptr(), None, row, epsilon) };
            let (mut plain, mut weighted) = (0.0, 0.0);
            for c in 0..group_channels {
                let (x, dy) = (x[c * pixels..][..pixels].as_ptr(), dy[c * pixels..][..pixels].as_ptr());
                // SAFETY: both have `pixels` elements.
                unsafe {
                    [sums[2 * c], sums[2 * c + 1]] = sum_pairs(simd, &mut Both { x, dy, mean, r }, pixels);
                }
                weighted += gamma(c) * sums[2 * c];
                plain += gamma(c) * sums[2 * c + 1];
            }
            let scale = 1.0 / row as f32;
            let (plain, weighted) = (plain * scale, -weighted * scale);
            for c in 0..group_channels {
                let (x, dy) = (x[c * pixels..][..pixels].as_ptr(), dy[c * pixels..][..pixels].as_ptr());
                let dx = dx.at(index * row + c * pixels);
                let step = Outgoing { x, dy, dx, mean, r, gamma: gamma(c), plain, weighted, factor: r };
                // SAFETY: all three have `pixels` elements.
                unsafe { each_result(simd, dx, pixels, &step) };
            }
        }
        dx.finish(simd);
    }
}
