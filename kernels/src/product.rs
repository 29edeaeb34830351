//! Products of tensors, element by element.
//!
//! ```text
//! y = x1 * x2 * x3 * ...           from the left: one rounding for each factor but the first
//! dxi = dy * (the other factors)   not dy * y / xi, which fails for zeros
//! ```

use crate::error::{Error, check_len};
use crate::execution::Execution;
use crate::join::{self, First, Join};
use crate::simd::Simd;

/// `y = factors[0] * factors[1] * ...`, element by element; ones without any factor.
///
/// Each element errs by at most `gamma(n - 1)` times its absolute value, with `n` factors, where no product on the way
/// underflows. NaN comes out wherever it goes in, and for zero times infinity.
///
/// ```
/// use kernels::{Parallelism, product};
/// let mut y = [f32::NAN; 2];
/// product::forward(&[&[1.0, 2.0], &[10.0, 20.0], &[0.5, 0.5]], &mut y, Parallelism::Serial)?;
/// assert_eq!(y, [5.0, 20.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`] unless each factor is as long as `y`; `y` is untouched then.
pub fn forward<'t>(factors: &[&[f32]], y: &mut [f32], execution: impl Into<Execution<'t>>) -> Result<(), Error> {
    for factor in factors {
        check_len("factors", y.len(), factor.len())?;
    }
    join::run(Multiply, First::Term, [factors, &[], &[]], y, execution.into())
}

/// The gradient of `factors[which]`: `dx = dy * (the product of the others)`, from the left, with one rounding for each
/// of the others.
///
/// ```
/// use kernels::{Parallelism, product};
/// let mut dx = [f32::NAN; 2];
/// let factors: [&[f32]; 3] = [&[0.0, 2.0], &[10.0, 20.0], &[0.5, 0.5]];
/// product::backward(&factors, 0, &[1.0, -1.0], &mut dx, Parallelism::Serial)?;
/// assert_eq!(dx, [5.0, -10.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Invalid`] unless there is a factor `which`, [`Error::Length`] unless each factor and `dy` are as long as
/// `dx`; `dx` is untouched then.
pub fn backward<'t>(
    factors: &[&[f32]],
    which: usize,
    dy: &[f32],
    dx: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    if which >= factors.len() {
        return Err(Error::invalid("which", format!("less than the {} factors", factors.len()), which));
    }
    for factor in factors {
        check_len("factors", dx.len(), factor.len())?;
    }
    check_len("dy", dx.len(), dy.len())?;
    join::run(Multiply, First::Term, [&[dy], &factors[..which], &factors[which + 1..]], dx, execution.into())
}

#[derive(Clone, Copy)]
struct Multiply;

impl Join for Multiply {
    fn empty(self) -> f32 {
        1.0
    }

    #[inline(always)]
    fn join<S: Simd>(self, simd: S, a: S::F, b: S::F) -> S::F {
        simd.mul(a, b)
    }
}
