//! Normalisation: layer, RMS, group and batch norm, forward and backward.
//!
//! All subtract a mean (RMS norm does not), divide by a standard deviation, then scale and shift; they differ in which
//! elements share them:
//!
//! ```text
//!          shares mean and variance                     shares gamma, beta    (x is [batch, channels, pixels], or rows)
//! layer    a row                                        a column
//! rms      a row (mean 0)                               a column
//! group    channels / groups channels of an image       a channel
//! batch    a channel of all images                      a channel
//!
//! x^ = (x - mean) r,   r = 1 / sqrt(var + epsilon)      y = x^ gamma + beta
//! g = dy gamma         dx = r (g - mean of g - x^ mean of g x^)       dgamma = sum of dy x^       dbeta = sum of dy
//! ```
//!
//! The variance is the mean of squares centred with the mean computed before: what the difference of the mean square
//! and the squared mean loses to cancellation stays. A row that shares a mean sits in a cache, so the second look is
//! free; a batch norm's channel is looked at run by run, and the moments of runs are merged (T. Chan, G. Golub,
//! R. LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979).
//!
//! Backward computes the moments of a row again from `x`, which costs no memory traffic, instead of taking them from
//! forward; batch norm alone keeps them. Sums go through 64 virtual lanes, and gradients of `gamma` and `beta` through
//! pieces given by the shape alone, so that bits depend neither on threads nor on AVX2 against AVX-512.
//!
//! # Errors of the results
//!
//! `u = 2^-24`, `d = len / 64 + 8` the depth of a sum of `len` elements that share a mean, `A` the mean of `|x|` over
//! them:
//!
//! ```text
//! mean    em = (d + 2) u A                                  (0 for RMS norm)
//! r       er = r ((d / 2 + 6) u + em^2 r^2 / 2)   (batch norm: r ((d / 2 + 6) u + eq r + eq^2 r^2), see below)
//! x^      eh = r em + |x^| (er / r + 3 u)
//! y       |gamma| eh + 2 u (|gamma x^| + |beta|)
//! dx      r ((d + 12) u (|g| + G + |x^| H) + eh H + |x^| mean of |g| eh) + er |dx / r|,   G, H = mean of |g|, of |g x^|
//! dgamma  sum of |dy| eh + (k + 4) u sum of |dy x^|         k: additions one behind the other, at most the terms of the sum
//! dbeta   (k + 2) u sum of |dy|
//! ```
//!
//! Batch norm merges the moments of runs of a channel. The mean of a run errs by some `e`, and its sum of squares around
//! it is too large by `e^2` each, as elsewhere; but the square of its distance from the mean of all errs by twice `e`
//! times that distance. The root mean square of the distances is at most `1 / r`, that of the `e` is at most
//! `eq = (d + 2) u Q`, `Q` the root mean square of `x`.

pub mod batch;
pub mod group;
pub mod layer;
pub mod rms;
mod row;
mod run;

use crate::error::{Error, check_len};

/// Elements of a task, in whole rows: small enough for them to stay in L2 from pass to pass.
const PART: usize = 16 * 1024;

/// A rough cost per element on one core, in seconds, of a pass that reads and writes memory.
const SECONDS_PER_ELEMENT: f64 = 0.8e-9;

/// What is done to normalised values: `x^ gamma + beta`. None means 1 and 0.
#[derive(Clone, Copy, Debug, Default)]
pub struct Affine<'a> {
    /// The factors, one for each column or channel.
    pub gamma: Option<&'a [f32]>,
    /// The summands, one for each column or channel.
    pub beta: Option<&'a [f32]>,
}

impl<'a> Affine<'a> {
    /// Both.
    pub const fn new(gamma: &'a [f32], beta: &'a [f32]) -> Self {
        Self { gamma: Some(gamma), beta: Some(beta) }
    }

    fn check(&self, len: usize) -> Result<(), Error> {
        check_len("gamma", len, self.gamma.map_or(len, <[f32]>::len))?;
        check_len("beta", len, self.beta.map_or(len, <[f32]>::len))
    }
}

/// Where backward writes.
#[derive(Debug)]
pub struct Gradients<'a> {
    /// The gradient of the input, as long as it.
    pub dx: &'a mut [f32],
    /// The gradient of `gamma`, if wanted.
    pub dgamma: Option<&'a mut [f32]>,
    /// The gradient of `beta`, if wanted.
    pub dbeta: Option<&'a mut [f32]>,
}

impl Gradients<'_> {
    fn check(&self, len: usize, parameters: usize) -> Result<(), Error> {
        check_len("dx", len, self.dx.len())?;
        check_len("dgamma", parameters, self.dgamma.as_ref().map_or(parameters, |d| d.len()))?;
        check_len("dbeta", parameters, self.dbeta.as_ref().map_or(parameters, |d| d.len()))
    }
}

fn check_epsilon(epsilon: f32) -> Result<(), Error> {
    if epsilon >= 0.0 && epsilon.is_finite() {
        return Ok(());
    }
    Err(Error::invalid("epsilon", "a finite number, at least 0", epsilon))
}

/// A workspace may be longer than what is needed.
fn check_workspace(needed: usize, given: usize) -> Result<(), Error> {
    if given >= needed { Ok(()) } else { Err(Error::Length { argument: "workspace", expected: needed, given }) }
}

/// Adds up `[pieces][2][len]` partial sums, in the order of the pieces, into `dgamma` and `dbeta`.
fn merge(partials: &[f32], len: usize, dgamma: Option<&mut [f32]>, dbeta: Option<&mut [f32]>) {
    for (which, sums) in [dgamma, dbeta].into_iter().enumerate() {
        let Some(sums) = sums else { continue };
        sums.fill(0.0);
        if partials.is_empty() {
            continue;
        }
        for piece in partials.chunks_exact(2 * len) {
            for (sum, partial) in sums.iter_mut().zip(&piece[which * len..][..len]) {
                *sum += partial;
            }
        }
    }
}
