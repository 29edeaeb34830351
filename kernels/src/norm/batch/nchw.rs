//! Channels apart: a task is some channels of all images, run by run.

use crate::parallel::Parallelism;
use crate::parts::Parts;
use crate::simd::output::{Output, each_result, goes_past};
use crate::simd::reduce::{Elements, Sum, reduce_row, sum_pairs};
use crate::simd::{Isa, Job, Simd, dispatch};

use super::super::row::Squares;
use super::super::run::{Both, Normalise, Outgoing, Scale};
use super::super::{Affine, PART};
use super::{Inputs, Sample, Shape};

/// Channels of a task, at most.
const CHANNELS: usize = 32;

/// Elements of a task that L2 holds from the moments to the output, with as many of the output.
const CACHED: usize = 4 * PART;

/// Channels of a task, by the shape alone.
fn channels_per_task(shape: Shape) -> usize {
    (CACHED / shape.count().max(1)).clamp(1, CHANNELS)
}

#[allow(clippy::too_many_arguments)]
pub(super) fn forward<'w>(
    shape: Shape,
    isa: Isa,
    x: &[f32],
    affine: Affine,
    epsilon: f32,
    y: &mut [f32],
    mean: &mut [f32],
    r: &mut [f32],
    workspace: &'w mut [f32],
    parallelism: Parallelism,
) -> &'w [f32] {
    let block = channels_per_task(shape);
    let variance = &mut workspace[..shape.channels];
    {
        let (runs, variances) = (Parts::new(y, shape.pixels), Parts::new(variance, block));
        let (means, rs) = (Parts::new(mean, block), Parts::new(r, block));
        parallelism.for_each(means.count(), parallelism.threads(), &|index, _| {
            // SAFETY: each index comes up once, and only its task takes runs of its channels.
            let (mean, r, variance) = unsafe { (means.take(index), rs.take(index), variances.take(index)) };
            let first = index * block;
            dispatch(isa, Forward { shape, first, x, affine, epsilon, y: &runs, mean, r, variance });
        });
    }
    variance
}

struct Forward<'a> {
    shape: Shape,
    /// The first channel.
    first: usize,
    x: &'a [f32],
    affine: Affine<'a>,
    epsilon: f32,
    /// In runs of `pixels`. Those of these channels are nobody else's.
    y: &'a Parts<'a>,
    /// Of these channels.
    mean: &'a mut [f32],
    r: &'a mut [f32],
    variance: &'a mut [f32],
}

impl Job for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { shape, first, x, affine, epsilon, y, mean, r, variance } = self;
        let Shape { batch, channels, pixels, .. } = shape;
        let past = goes_past(x.len(), pixels);
        let mut samples = [Sample::default(); CHANNELS];
        for n in 0..batch {
            for c in 0..mean.len() {
                let run = x[(n * channels + first + c) * pixels..][..pixels].as_ptr();
                // SAFETY: the run has `pixels` elements.
                let sample = unsafe {
                    let mean = reduce_row::<S, Sum, _>(simd, &mut Elements(run), pixels) / pixels as f32;
                    let squares = reduce_row::<S, Sum, _>(simd, &mut Squares { x: run, mean, next: None }, pixels);
                    Sample { count: pixels as f64, mean: mean.into(), squares: squares.into() }
                };
                samples[c] = samples[c].merge(sample);
            }
        }
        for c in 0..mean.len() {
            (mean[c], r[c]) = samples[c].moments(epsilon);
            variance[c] = (samples[c].squares / samples[c].count) as f32;
        }
        // The last images are those that the cache still holds.
        for n in (0..batch).rev() {
            for c in 0..mean.len() {
                let channel = first + c;
                let run = n * channels + channel;
                // SAFETY: this task alone has these channels, and comes to each run once.
                let y = Output { start: unsafe { y.take(run) }.as_mut_ptr(), past };
                let gamma = affine.gamma.map_or(1.0, |gamma| gamma[channel]);
                let beta = affine.beta.map_or(0.0, |beta| beta[channel]);
                let x = x[run * pixels..][..pixels].as_ptr();
                // SAFETY: both have `pixels` elements.
                unsafe { each_result(simd, y, pixels, &Normalise { x, y, mean: mean[c], r: r[c], gamma, beta }) };
            }
        }
        if past {
            simd.fence();
        }
    }
}

pub(super) fn inference(
    shape: Shape,
    isa: Isa,
    x: &[f32],
    scale: &[f32],
    shift: &[f32],
    y: &mut [f32],
    parallelism: Parallelism,
) {
    let pixels = shape.pixels;
    let runs = (PART / pixels).max(1);
    let past = goes_past(x.len(), pixels);
    let parts = Parts::new(y, runs * pixels);
    parallelism.for_each(parts.count(), parallelism.threads(), &|index, _| {
        // SAFETY: each index comes up once.
        let y = unsafe { parts.take(index) };
        let x = &x[index * runs * pixels..][..y.len()];
        dispatch(isa, Inference { pixels, first: index * runs, x, scale, shift, y, past });
    });
}

struct Inference<'a> {
    pixels: usize,
    /// Which run of all images comes first.
    first: usize,
    x: &'a [f32],
    scale: &'a [f32],
    shift: &'a [f32],
    y: &'a mut [f32],
    /// Whether `y` goes past the caches.
    past: bool,
}

impl Job for Inference<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { pixels, first, x, scale, shift, y, past } = self;
        let y = Output { start: y.as_mut_ptr(), past };
        for (run, x) in x.chunks_exact(pixels).enumerate() {
            let channel = (first + run) % scale.len();
            let (x, y, scale, shift) = (x.as_ptr(), y.at(run * pixels), scale[channel], shift[channel]);
            // SAFETY: both have `pixels` elements.
            unsafe { each_result(simd, y, pixels, &Scale { x, y, scale, shift }) };
        }
        y.finish(simd);
    }
}

/// Adds a run's terms to the gradients of gamma and beta.
///
/// # Safety
/// - The run, of `pixels` elements, has its `x` and its `dy`.
#[inline(always)]
unsafe fn add_sums<S: Simd>(simd: S, mut run: Both, pixels: usize, dgamma: &mut f32, dbeta: &mut f32) {
    // SAFETY: the caller's contract.
    let [weighted, plain] = unsafe { sum_pairs(simd, &mut run, pixels) };
    *dgamma += weighted;
    *dbeta += plain;
}

/// `sums` receives the gradients of gamma, then those of beta.
pub(super) fn backward(inputs: Inputs, dx: &mut [f32], sums: &mut [f32], parallelism: Parallelism) {
    let Inputs { shape, isa, .. } = inputs;
    let block = channels_per_task(shape);
    let runs = Parts::new(dx, shape.pixels);
    let (dgamma, dbeta) = sums.split_at_mut(shape.channels);
    let (dgammas, dbetas) = (Parts::new(dgamma, block), Parts::new(dbeta, block));
    parallelism.for_each(dgammas.count(), parallelism.threads(), &|index, _| {
        // SAFETY: each index comes up once, and only its task takes runs of its channels.
        let (dgamma, dbeta) = unsafe { (dgammas.take(index), dbetas.take(index)) };
        dispatch(isa, Backward { inputs, first: index * block, dx: &runs, dgamma, dbeta });
    });
}

struct Backward<'a> {
    inputs: Inputs<'a>,
    /// The first channel.
    first: usize,
    /// In runs of `pixels`. Those of these channels are nobody else's.
    dx: &'a Parts<'a>,
    /// Of these channels, +0.
    dgamma: &'a mut [f32],
    dbeta: &'a mut [f32],
}

impl Job for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { inputs, first, dx, dgamma, dbeta } = self;
        let Inputs { shape, x, dy, mean, r, gamma, .. } = inputs;
        let Shape { batch, channels, pixels, .. } = shape;
        for n in 0..batch {
            for c in 0..dgamma.len() {
                let from = (n * channels + first + c) * pixels;
                let (x, dy) = (x[from..][..pixels].as_ptr(), dy[from..][..pixels].as_ptr());
                let (mean, r) = (mean[first + c], r[first + c]);
                // SAFETY: both runs have `pixels` elements.
                unsafe { add_sums(simd, Both { x, dy, mean, r }, pixels, &mut dgamma[c], &mut dbeta[c]) };
            }
        }
        let past = goes_past(x.len(), pixels);
        let scale = 1.0 / shape.count() as f32;
        // The last images are those that the cache still holds.
        for n in (0..batch).rev() {
            for c in 0..dgamma.len() {
                let channel = first + c;
                let run = n * channels + channel;
                let (x, dy) = (x[run * pixels..][..pixels].as_ptr(), dy[run * pixels..][..pixels].as_ptr());
                // SAFETY: this task alone has these channels, and comes to each run once.
                let dx = Output { start: unsafe { dx.take(run) }.as_mut_ptr(), past };
                let step = Outgoing {
                    x,
                    dy,
                    dx,
                    mean: mean[channel],
                    r: r[channel],
                    gamma: 1.0,
                    plain: dbeta[c] * scale,
                    weighted: -dgamma[c] * scale,
                    factor: r[channel] * gamma.map_or(1.0, |gamma| gamma[channel]),
                };
                // SAFETY: all three runs have `pixels` elements.
                unsafe { each_result(simd, dx, pixels, &step) };
            }
        }
        if past {
            simd.fence();
        }
    }
}

/// `sums` receives the gradients of gamma, then those of beta; `scale` is `gamma r`.
pub(super) fn inference_backward(
    inputs: Inputs,
    scale: &[f32],
    dx: &mut [f32],
    sums: &mut [f32],
    parallelism: Parallelism,
) {
    let Inputs { shape, isa, .. } = inputs;
    let block = channels_per_task(shape);
    let runs = Parts::new(dx, shape.pixels);
    let (dgamma, dbeta) = sums.split_at_mut(shape.channels);
    let (dgammas, dbetas) = (Parts::new(dgamma, block), Parts::new(dbeta, block));
    parallelism.for_each(dgammas.count(), parallelism.threads(), &|index, _| {
        // SAFETY: each index comes up once, and only its task takes runs of its channels.
        let (dgamma, dbeta) = unsafe { (dgammas.take(index), dbetas.take(index)) };
        dispatch(isa, InferenceBackward { inputs, scale, first: index * block, dx: &runs, dgamma, dbeta });
    });
}

struct InferenceBackward<'a> {
    inputs: Inputs<'a>,
    scale: &'a [f32],
    /// The first channel.
    first: usize,
    /// In runs of `pixels`. Those of these channels are nobody else's.
    dx: &'a Parts<'a>,
    /// Of these channels, +0.
    dgamma: &'a mut [f32],
    dbeta: &'a mut [f32],
}

impl Job for InferenceBackward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { inputs, scale, first, dx, dgamma, dbeta } = self;
        let Inputs { shape, x, dy, mean, r, .. } = inputs;
        let Shape { batch, channels, pixels, .. } = shape;
        let past = goes_past(x.len(), pixels);
        for n in 0..batch {
            for c in 0..dgamma.len() {
                let channel = first + c;
                let run = n * channels + channel;
                let (x, dy) = (x[run * pixels..][..pixels].as_ptr(), dy[run * pixels..][..pixels].as_ptr());
                let terms = Both { x, dy, mean: mean[channel], r: r[channel] };
                // SAFETY: this task alone has these channels, and comes to each run once.
                let dx = Output { start: unsafe { dx.take(run) }.as_mut_ptr(), past };
                // Adding -0 changes nothing, the sign of a zero included.
                let step = Scale { x: dy, y: dx, scale: scale[channel], shift: -0.0 };
                // SAFETY: all three runs have `pixels` elements.
                unsafe {
                    add_sums(simd, terms, pixels, &mut dgamma[c], &mut dbeta[c]);
                    each_result(simd, dx, pixels, &step);
                }
            }
        }
        if past {
            simd.fence();
        }
    }
}
