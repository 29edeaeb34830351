//! Layer, RMS, group and batch norm: which elements belong together, and the errors that the page of `norm` derives.

use kernels::conv::Layout;
use kernels::norm::{batch, group};
use kernels::reference::{Sharing, norm_backward, norm_forward};

use crate::oracle::UNIT;
use crate::small::{Output, wide};

/// What is added to each variance.
pub const EPSILON: f32 = 1e-5;

/// Which norm, and of what.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Norm {
    /// Each row by its mean and variance.
    Layer([usize; 2]),
    /// Each row by its root mean square.
    Rms([usize; 2]),
    /// Groups of channels of an image.
    Group(group::Shape),
    /// Channels of all images.
    Batch(batch::Shape),
}
use Norm::{Batch, Group, Layer, Rms};

/// Every result of a norm.
pub struct Expected {
    /// The outputs.
    pub y: Output,
    /// The gradient of the input.
    pub dx: Output,
    /// The gradient of gamma.
    pub dgamma: Output,
    /// The gradient of beta.
    pub dbeta: Output,
    /// The mean of each set.
    pub mean: Output,
    /// The reciprocal deviation of each set.
    pub r: Output,
}

impl Norm {
    /// Elements.
    pub fn elements(self) -> usize {
        match self {
            Layer([rows, columns]) | Rms([rows, columns]) => rows * columns,
            Group(s) => s.batch * s.channels * s.pixels,
            Batch(s) => s.batch * s.channels * s.pixels,
        }
    }

    /// Sets of elements that share their moments.
    pub fn sets(self) -> usize {
        match self {
            Layer([rows, _]) | Rms([rows, _]) => rows,
            Group(s) => s.batch * s.groups,
            Batch(s) => s.channels,
        }
    }

    /// Elements of gamma, and of beta.
    pub fn parameters(self) -> usize {
        match self {
            Layer([_, columns]) | Rms([_, columns]) => columns,
            Group(s) => s.channels,
            Batch(s) => s.channels,
        }
    }

    /// The set of an element.
    pub fn set(self, i: usize) -> usize {
        match self {
            Layer([_, columns]) | Rms([_, columns]) => i / columns,
            Group(s) => i / (s.channels / s.groups * s.pixels),
            Batch(_) => self.parameter(i),
        }
    }

    /// The parameter of an element.
    pub fn parameter(self, i: usize) -> usize {
        match self {
            Layer([_, columns]) | Rms([_, columns]) => i % columns,
            Group(s) => i / s.pixels % s.channels,
            Batch(s) if s.layout == Layout::Nhwc => i % s.channels,
            Batch(s) => i / s.pixels % s.channels,
        }
    }

    /// The depths of sums: for moments, for the sums of `g`, for the parameters' gradients.
    pub fn depths(self) -> [f64; 3] {
        let lanes = |len: usize| (len / 64 + 8) as f64;
        match self {
            Layer([rows, columns]) | Rms([rows, columns]) => [lanes(columns), lanes(columns), (rows + 32) as f64],
            Group(s) => {
                let (channels, run) = (s.channels / s.groups, lanes(s.pixels));
                [lanes(channels * s.pixels), run + channels as f64, run + s.batch as f64]
            }
            Batch(s) if s.layout == Layout::Nhwc || s.pixels == 1 => {
                let rows = s.batch * s.pixels;
                let piece = rows.min(rows.div_ceil(64).max(16384 / s.channels)) as f64 / 4.0 + 8.0;
                [piece, piece + 64.0, piece + 64.0]
            }
            Batch(s) => {
                let run = lanes(s.pixels) + 4.0;
                [run, run + s.batch as f64, run + s.batch as f64]
            }
        }
    }

    /// The results of `x`, `dy`, `gamma` and `beta` in f64, and how far from them those of a kernel may be.
    pub fn expected(self, [x, dy, gamma, beta]: [&[f32]; 4]) -> Expected {
        let (len, parameters, sets) = (self.elements(), self.parameters(), self.sets());
        let (set, parameter) = (|i| self.set(i), |i| self.parameter(i));
        let is_centred = !matches!(self, Rms(_));
        let sharing = Sharing { len, sets, parameters, set: &set, parameter: &parameter, is_centred };
        let [x, dy, gamma, beta] = [x, dy, gamma, beta].map(wide);
        let beta = if is_centred { beta } else { vec![0.0; parameters] };
        let (epsilon, fits) = (f64::from(EPSILON), "lengths that fit");
        let (mut y, mut dx) = (vec![0.0; len], vec![0.0; len]);
        let (mut dgamma, mut dbeta) = (vec![0.0; parameters], vec![0.0; parameters]);
        norm_forward(&sharing, &x, &gamma, &beta, epsilon, &mut y).expect(fits);
        norm_backward(&sharing, &x, &gamma, &dy, epsilon, &mut dx, &mut dgamma, &mut dbeta).expect(fits);

        let (means, rs) = sharing.moments(&x, epsilon);
        let [d, d_sums, k] = self.depths();
        let (mut count, mut size, mut square) = (vec![0.0; sets], vec![0.0; sets], vec![0.0; sets]);
        for i in 0..len {
            count[set(i)] += 1.0;
            size[set(i)] += x[i].abs();
            square[set(i)] += x[i] * x[i];
        }
        let em = |s: usize| if is_centred { (d + 2.0) * UNIT * size[s] / count[s] } else { 0.0 };
        // Relative to r. Batch norm merges the moments of runs, whose means err each for itself.
        let er = |s: usize| match self {
            Batch(_) => {
                let merged = (d + 2.0) * UNIT * (square[s] / count[s]).sqrt() * rs[s];
                (d / 2.0 + 6.0) * UNIT + merged + merged.powi(2)
            }
            _ => (d / 2.0 + 6.0) * UNIT + em(s).powi(2) * rs[s].powi(2) / 2.0,
        };
        let hat = |i: usize| (x[i] - means[set(i)]) * rs[set(i)];
        let eh = |i: usize| rs[set(i)] * em(set(i)) + hat(i).abs() * (er(set(i)) + 3.0 * UNIT);
        let g = |i: usize| (dy[i] * gamma[parameter(i)]).abs();
        let (mut mean_g, mut mean_gh, mut mean_ge) = (vec![0.0; sets], vec![0.0; sets], vec![0.0; sets]);
        let (mut e_gamma, mut e_beta) = (vec![0.0; parameters], vec![0.0; parameters]);
        for i in 0..len {
            let s = set(i);
            mean_g[s] += if is_centred { g(i) / count[s] } else { 0.0 };
            mean_gh[s] += g(i) * hat(i).abs() / count[s];
            mean_ge[s] += g(i) * eh(i) / count[s];
            e_gamma[parameter(i)] += dy[i].abs() * (eh(i) + (k + 4.0) * UNIT * hat(i).abs());
            e_beta[parameter(i)] += (k + 2.0) * UNIT * dy[i].abs();
        }
        let e_y = |i: usize| {
            let (gamma, beta) = (gamma[parameter(i)].abs(), beta[parameter(i)].abs());
            gamma * eh(i) + 2.0 * UNIT * (gamma * hat(i).abs() + beta)
        };
        let slopes = dx.clone();
        let e_dx = |i: usize| {
            let s = set(i);
            let terms = g(i) + mean_g[s] + hat(i).abs() * mean_gh[s];
            let sums = (d_sums + 12.0) * UNIT * terms + eh(i) * mean_gh[s] + hat(i).abs() * mean_ge[s];
            rs[s] * (sums + er(s) * (terms.min((slopes[i] / rs[s]).abs() + sums)))
        };
        // Products of errors, and what underflows.
        let more = |bound: f64| bound * 1.01 + 2f64.powi(-140);
        Expected {
            y: Output::within("y", y, |i| more(e_y(i))),
            dx: Output::within("dx", dx, |i| more(e_dx(i))),
            dgamma: Output::within("dgamma", dgamma, |i| more(e_gamma[i])),
            dbeta: Output::within("dbeta", dbeta, |i| more(e_beta[i])),
            // Merged, an infinite mean is the difference of infinities.
            mean: Output::within("mean", means.clone(), |s| more(em(s))).except(|s| means[s].is_infinite()),
            r: Output::within("r", rs.clone(), |s| more(er(s) * rs[s])),
        }
    }
}
