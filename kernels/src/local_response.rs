//! Local response normalisation: each value is damped by its neighbours in the channels beside it.
//!
//! ```text
//! s[c] = k + alpha / size * sum of x[c']^2 over the channels c' from c - size / 2 to c + (size - 1) / 2
//! y[c] = x[c] / s[c]^beta
//! dx[c] = dy[c] / s[c]^beta - 2 alpha beta / size * x[c] * sum of dy[c'] y[c'] / s[c'] over the c' whose window holds c
//! ```
//!
//! Channels beyond the first and the last count as 0. Each pixel is on its own, so pixels stand in the lanes, and a
//! window is summed anew for each channel, from rows that the first-level cache still holds.
//!
//! Krizhevsky, Sutskever, Hinton, "ImageNet classification with deep convolutional neural networks", 2012; `alpha` is
//! divided by the size of the window as in PyTorch and Caffe.

use crate::error::{Error, check_len, checked_len};
use crate::execution::Execution;
use crate::parts::Parts;
use crate::simd::each::{load, store};
use crate::simd::{Isa, Job, Simd, dispatch, math};

/// Elements of a task, in whole rows of one channel.
const PART: usize = 16 * 1024;
/// A rough cost per element on one core, in seconds: a logarithm and an exponential, and the window's multiply-adds.
const SECONDS_PER_ELEMENT: f64 = 2e-9;

/// The constants of a normalisation. The default is AlexNet's: 5 channels, alpha 1e-4, beta 0.75, k 2.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LocalResponse {
    /// Channels of a window, at least 1.
    pub size: usize,
    /// How much neighbours matter, not negative.
    pub alpha: f32,
    /// The exponent.
    pub beta: f32,
    /// What is there without neighbours, above 0.
    pub k: f32,
}

impl Default for LocalResponse {
    fn default() -> Self {
        Self { size: 5, alpha: 1e-4, beta: 0.75, k: 2.0 }
    }
}

impl LocalResponse {
    /// Whether the constants make sense.
    ///
    /// # Errors
    /// [`Error::Invalid`] for one outside of its domain.
    pub fn check(&self) -> Result<(), Error> {
        let Self { size, alpha, beta, k } = *self;
        if size == 0 {
            return Err(Error::invalid("size", "at least 1", size));
        }
        for (argument, value, fits) in [("alpha", alpha, alpha >= 0.0), ("beta", beta, true), ("k", k, k > 0.0)] {
            if !(fits && value.is_finite()) {
                let expected = match argument {
                    "alpha" => "a finite number, at least 0",
                    "k" => "a finite number above 0",
                    _ => "a finite number",
                };
                return Err(Error::invalid(argument, expected, value));
            }
        }
        Ok(())
    }

    /// `y = x / s^beta` for images `[batch, channels, pixels]`.
    ///
    /// With `u = 2^-24`, an element errs by at most `u |y| (beta (size + 3 + 4 |ln s|) + 6)`, if nothing overflows.
    ///
    /// ```
    /// use kernels::{LocalResponse, Parallelism};
    /// let norm = LocalResponse { size: 3, alpha: 3.0, beta: 1.0, k: 1.0 };
    /// let mut y = [0.0; 2];
    /// norm.forward([1, 2, 1], &[1.0, 2.0], &mut y, Parallelism::Serial)?;
    /// assert!((y[0] - 1.0 / 6.0).abs() < 1e-6 && (y[1] - 2.0 / 6.0).abs() < 1e-6);
    /// # Ok::<(), kernels::Error>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`LocalResponse::check`], [`Error::Length`] for a slice that does not fit `shape`, [`Error::Overflow`].
    pub fn forward<'t>(
        &self,
        shape: [usize; 3],
        x: &[f32],
        y: &mut [f32],
        execution: impl Into<Execution<'t>>,
    ) -> Result<(), Error> {
        self.check_call(shape, [("x", x.len()), ("y", y.len())])?;
        self.for_each_rows(shape, y, execution.into(), &|isa, first, y| {
            dispatch(isa, Forward { norm: self, shape, first, x, y });
        })
    }

    /// The gradient of [`LocalResponse::forward`]'s input `x`, from its output `y` and the gradient `dy` of that.
    ///
    /// With `p = s^-beta`, and `t` the sum of `|dy y / s|` over the windows, an element errs by at most
    /// `u (beta (size + 3 + 4 |ln s|) + 8) |dy p| + u (2 size + 12) 2 alpha beta / size |x| t` for the `y` given.
    ///
    /// # Errors
    /// Those of [`LocalResponse::forward`].
    pub fn backward<'t>(
        &self,
        shape: [usize; 3],
        x: &[f32],
        y: &[f32],
        dy: &[f32],
        dx: &mut [f32],
        execution: impl Into<Execution<'t>>,
    ) -> Result<(), Error> {
        self.check_call(shape, [("x", x.len()), ("y", y.len()), ("dy", dy.len()), ("dx", dx.len())])?;
        self.for_each_rows(shape, dx, execution.into(), &|isa, first, dx| {
            dispatch(isa, Backward { norm: self, shape, first, x, y, dy, dx });
        })
    }

    fn check_call<const N: usize>(&self, shape: [usize; 3], lengths: [(&'static str, usize); N]) -> Result<(), Error> {
        self.check()?;
        let len = checked_len("shape", &shape)?;
        lengths.into_iter().try_for_each(|(argument, given)| check_len(argument, len, given))
    }

    /// Runs `task(isa, first row, rows)` for runs of rows, one for each channel of each image.
    fn for_each_rows(
        &self,
        [_, _, pixels]: [usize; 3],
        output: &mut [f32],
        execution: Execution,
        task: &(dyn Fn(Isa, usize, &mut [f32]) + Sync),
    ) -> Result<(), Error> {
        let isa = execution.isa()?;
        if output.is_empty() {
            return Ok(());
        }
        let parallelism = execution.parallelism.for_seconds(output.len() as f64 * SECONDS_PER_ELEMENT);
        let rows = (PART / pixels).max(1);
        let parts = Parts::new(output, rows * pixels);
        parallelism.for_each(parts.count(), parallelism.threads(), &|index, _| {
            // SAFETY: each index comes up once.
            task(isa, index * rows, unsafe { parts.take(index) });
        });
        Ok(())
    }

    /// The channels of the window around `c`, `before` below it and `after` above.
    fn window(channels: usize, c: usize, before: usize, after: usize) -> [usize; 2] {
        [c.saturating_sub(before), c.saturating_add(after).min(channels - 1) + 1]
    }

    /// `s` of channel `c`, for some pixels.
    ///
    /// # Safety
    /// - `x` points to the pixels in channel 0 of an image; `count` of them are readable in each of `channels`.
    #[inline(always)]
    unsafe fn scale<S: Simd>(
        &self,
        simd: S,
        x: *const f32,
        [channels, pixels]: [usize; 2],
        c: usize,
        count: usize,
    ) -> S::F {
        let [first, last] = Self::window(channels, c, self.size / 2, (self.size - 1) / 2);
        let mut sum = simd.zero();
        for other in first..last {
            // SAFETY: the caller's contract.
            let value = unsafe { load(simd, x.add(other * pixels), count) };
            sum = simd.fma(value, value, sum);
        }
        simd.fma(simd.splat(self.alpha / self.size as f32), sum, simd.splat(self.k))
    }

    /// `s^-beta`
    #[inline(always)]
    fn damping<S: Simd>(&self, simd: S, scale: S::F) -> S::F {
        math::exp(simd, simd.mul(simd.splat(-self.beta), math::ln(simd, scale)))
    }
}

struct Forward<'a> {
    norm: &'a LocalResponse,
    /// [batch, channels, pixels]
    shape: [usize; 3],
    /// The row, counted through all images, that `y` starts with.
    first: usize,
    x: &'a [f32],
    y: &'a mut [f32],
}

impl Job for Forward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { norm, shape: [_, channels, pixels], first, x, y } = self;
        for (row, y) in y.chunks_exact_mut(pixels).enumerate() {
            let (n, c) = ((first + row) / channels, (first + row) % channels);
            let image = &x[n * channels * pixels..][..channels * pixels];
            let mut at = 0;
            while at < pixels {
                let count = S::LANES.min(pixels - at);
                // SAFETY: the pixels `at .. at + count` lie in each row of the image and of the output.
                unsafe {
                    let start = image.as_ptr().add(at);
                    let scale = norm.scale(simd, start, [channels, pixels], c, count);
                    let value = load(simd, start.add(c * pixels), count);
                    store(simd, y.as_mut_ptr().add(at), count, simd.mul(value, norm.damping(simd, scale)));
                }
                at += S::LANES;
            }
        }
    }
}

struct Backward<'a> {
    norm: &'a LocalResponse,
    /// [batch, channels, pixels]
    shape: [usize; 3],
    /// The row, counted through all images, that `dx` starts with.
    first: usize,
    x: &'a [f32],
    y: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [f32],
}

impl Job for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { norm, shape: [_, channels, pixels], first, x, y, dy, dx } = self;
        let (size, image) = (norm.size, [channels, pixels]);
        let factor = simd.splat(-2.0 * norm.alpha * norm.beta / size as f32);
        for (row, dx) in dx.chunks_exact_mut(pixels).enumerate() {
            let (n, c) = ((first + row) / channels, (first + row) % channels);
            let range = n * channels * pixels..(n + 1) * channels * pixels;
            let (x, y, dy) = (&x[range.clone()], &y[range.clone()], &dy[range]);
            let [from, to] = LocalResponse::window(channels, c, (size - 1) / 2, size / 2);
            let mut at = 0;
            while at < pixels {
                let count = S::LANES.min(pixels - at);
                // SAFETY: the pixels `at .. at + count` lie in each row of the image and of the output.
                unsafe {
                    let start = x.as_ptr().add(at);
                    let mut sum = simd.zero();
                    for other in from..to {
                        let place = other * pixels + at;
                        let product = simd
                            .mul(load(simd, dy.as_ptr().add(place), count), load(simd, y.as_ptr().add(place), count));
                        sum = simd.add(sum, simd.div(product, norm.scale(simd, start, image, other, count)));
                    }
                    let place = c * pixels;
                    let damping = norm.damping(simd, norm.scale(simd, start, image, c, count));
                    let own = simd.mul(load(simd, dy.as_ptr().add(place + at), count), damping);
                    let through = simd.mul(factor, load(simd, start.add(place), count));
                    store(simd, dx.as_mut_ptr().add(at), count, simd.fma(through, sum, own));
                }
                at += S::LANES;
            }
        }
    }
}
