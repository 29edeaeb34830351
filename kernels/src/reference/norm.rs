//! Normalisation: elements that share a mean and a variance, and elements that share a scale and a shift.

use super::Float;
use crate::error::{Error, check_len};

/// Who shares what: for each element, the number of its set and the number of its parameter.
///
/// Layer, RMS, group and batch norm, in any layout, differ in these two functions alone.
#[derive(Clone, Copy)]
pub struct Sharing<'a> {
    /// Elements.
    pub len: usize,
    /// Sets of elements that share a mean and a variance.
    pub sets: usize,
    /// Scales, and shifts.
    pub parameters: usize,
    /// Element to set.
    pub set: &'a dyn Fn(usize) -> usize,
    /// Element to parameter.
    pub parameter: &'a dyn Fn(usize) -> usize,
    /// Whether the mean is subtracted: not so in RMS norm.
    pub is_centred: bool,
}

impl Sharing<'_> {
    /// The mean of each set (0 where it is not subtracted) and `1 / sqrt(variance + epsilon)`.
    pub fn moments<T: Float>(&self, x: &[T], epsilon: T) -> (Vec<T>, Vec<T>) {
        let mut counts = vec![T::ZERO; self.sets];
        for i in 0..self.len {
            counts[(self.set)(i)] += T::ONE;
        }
        let (mut means, mut deviations) = (vec![T::ZERO; self.sets], vec![T::ZERO; self.sets]);
        if self.is_centred {
            for i in 0..self.len {
                means[(self.set)(i)] += x[i] / counts[(self.set)(i)];
            }
        }
        for i in 0..self.len {
            let centred = x[i] - means[(self.set)(i)];
            deviations[(self.set)(i)] += centred * centred / counts[(self.set)(i)];
        }
        for deviation in &mut deviations {
            *deviation = T::ONE / (*deviation + epsilon).sqrt();
        }
        (means, deviations)
    }
}

/// `y = (x - mean) / sqrt(variance + epsilon) * gamma + beta`
///
/// # Errors
/// [`Error::Length`] for a slice that does not fit.
pub fn norm_forward<T: Float>(
    sharing: &Sharing,
    x: &[T],
    gamma: &[T],
    beta: &[T],
    epsilon: T,
    y: &mut [T],
) -> Result<(), Error> {
    check_len("x", sharing.len, x.len())?;
    check_len("gamma", sharing.parameters, gamma.len())?;
    check_len("beta", sharing.parameters, beta.len())?;
    check_len("y", sharing.len, y.len())?;
    let (means, deviations) = sharing.moments(x, epsilon);
    for i in 0..sharing.len {
        let (set, parameter) = ((sharing.set)(i), (sharing.parameter)(i));
        y[i] = (x[i] - means[set]) * deviations[set] * gamma[parameter] + beta[parameter];
    }
    Ok(())
}

/// The gradients of [`norm_forward`]: `dx`, `dgamma` and `dbeta`.
///
/// # Errors
/// [`Error::Length`] for a slice that does not fit.
#[allow(clippy::too_many_arguments)]
pub fn norm_backward<T: Float>(
    sharing: &Sharing,
    x: &[T],
    gamma: &[T],
    dy: &[T],
    epsilon: T,
    dx: &mut [T],
    dgamma: &mut [T],
    dbeta: &mut [T],
) -> Result<(), Error> {
    check_len("x", sharing.len, x.len())?;
    check_len("gamma", sharing.parameters, gamma.len())?;
    check_len("dy", sharing.len, dy.len())?;
    check_len("dx", sharing.len, dx.len())?;
    check_len("dgamma", sharing.parameters, dgamma.len())?;
    check_len("dbeta", sharing.parameters, dbeta.len())?;
    let (means, deviations) = sharing.moments(x, epsilon);
    dgamma.fill(T::ZERO);
    dbeta.fill(T::ZERO);
    let (mut plain, mut weighted) = (vec![T::ZERO; sharing.sets], vec![T::ZERO; sharing.sets]);
    let mut counts = vec![T::ZERO; sharing.sets];
    for i in 0..sharing.len {
        let (set, parameter) = ((sharing.set)(i), (sharing.parameter)(i));
        let hat = (x[i] - means[set]) * deviations[set];
        dgamma[parameter] += dy[i] * hat;
        dbeta[parameter] += dy[i];
        plain[set] += dy[i] * gamma[parameter];
        weighted[set] += dy[i] * gamma[parameter] * hat;
        counts[set] += T::ONE;
    }
    for i in 0..sharing.len {
        let (set, parameter) = ((sharing.set)(i), (sharing.parameter)(i));
        let hat = (x[i] - means[set]) * deviations[set];
        let mean = if sharing.is_centred { plain[set] / counts[set] } else { T::ZERO };
        dx[i] = deviations[set] * (dy[i] * gamma[parameter] - mean - hat * (weighted[set] / counts[set]));
    }
    Ok(())
}

/// [`norm_forward`] with means and variances that are given, one of each for a set, instead of found in `x`.
///
/// # Errors
/// [`Error::Length`] for a slice that does not fit.
pub fn norm_inference_forward<T: Float>(
    sharing: &Sharing,
    x: &[T],
    [means, variances]: [&[T]; 2],
    [gamma, beta]: [&[T]; 2],
    epsilon: T,
    y: &mut [T],
) -> Result<(), Error> {
    check_len("x", sharing.len, x.len())?;
    check_len("means", sharing.sets, means.len())?;
    check_len("variances", sharing.sets, variances.len())?;
    check_len("gamma", sharing.parameters, gamma.len())?;
    check_len("beta", sharing.parameters, beta.len())?;
    check_len("y", sharing.len, y.len())?;
    for i in 0..sharing.len {
        let (set, parameter) = ((sharing.set)(i), (sharing.parameter)(i));
        y[i] = (x[i] - means[set]) / (variances[set] + epsilon).sqrt() * gamma[parameter] + beta[parameter];
    }
    Ok(())
}

/// The gradients of [`norm_inference_forward`]: `dx`, `dgamma` and `dbeta`.
///
/// # Errors
/// [`Error::Length`] for a slice that does not fit.
#[allow(clippy::too_many_arguments)]
pub fn norm_inference_backward<T: Float>(
    sharing: &Sharing,
    x: &[T],
    [means, variances]: [&[T]; 2],
    gamma: &[T],
    dy: &[T],
    epsilon: T,
    dx: &mut [T],
    dgamma: &mut [T],
    dbeta: &mut [T],
) -> Result<(), Error> {
    check_len("x", sharing.len, x.len())?;
    check_len("means", sharing.sets, means.len())?;
    check_len("variances", sharing.sets, variances.len())?;
    check_len("gamma", sharing.parameters, gamma.len())?;
    check_len("dy", sharing.len, dy.len())?;
    check_len("dx", sharing.len, dx.len())?;
    check_len("dgamma", sharing.parameters, dgamma.len())?;
    check_len("dbeta", sharing.parameters, dbeta.len())?;
    dgamma.fill(T::ZERO);
    dbeta.fill(T::ZERO);
    for i in 0..sharing.len {
        let (set, parameter) = ((sharing.set)(i), (sharing.parameter)(i));
        let deviation = (variances[set] + epsilon).sqrt();
        dx[i] = dy[i] * gamma[parameter] / deviation;
        dgamma[parameter] += dy[i] * ((x[i] - means[set]) / deviation);
        dbeta[parameter] += dy[i];
    }
    Ok(())
}
