//! Sums of tensors, element by element: where branches meet, and where gradients do.
//!
//! ```text
//! y = x1 + x2 + x3 + ...       from the left: one rounding for each term but the first
//! ```

use crate::error::{Error, check_len};
use crate::execution::Execution;
use crate::join::{self, First, Join};
use crate::simd::Simd;

/// `y = terms[0] + terms[1] + ...`, element by element; zeros without any term.
///
/// Each element errs by at most `gamma(n - 1)` times the sum of its terms' absolute values, with `n` terms.
///
/// ```
/// use kernels::{Parallelism, sum};
/// let mut y = [f32::NAN; 2];
/// sum::forward(&[&[1.0, 2.0], &[10.0, 20.0], &[100.0, 200.0]], &mut y, Parallelism::Serial)?;
/// assert_eq!(y, [111.0, 222.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`] unless each term is as long as `y`; `y` is untouched then.
pub fn forward<'t>(terms: &[&[f32]], y: &mut [f32], execution: impl Into<Execution<'t>>) -> Result<(), Error> {
    for term in terms {
        check_len("terms", y.len(), term.len())?;
    }
    join::run(Add, First::Term, [terms, &[], &[]], y, execution.into())
}

/// `y = y + x`, element by element: one rounding each.
///
/// ```
/// use kernels::{Parallelism, sum};
/// let mut y = [1.0, 2.0];
/// sum::add(&[10.0, 20.0], &mut y, Parallelism::Serial)?;
/// assert_eq!(y, [11.0, 22.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`] unless `x` is as long as `y`.
pub fn add<'t>(x: &[f32], y: &mut [f32], execution: impl Into<Execution<'t>>) -> Result<(), Error> {
    check_len("x", y.len(), x.len())?;
    join::run(Add, First::InPlace, [&[x], &[], &[]], y, execution.into())
}

#[derive(Clone, Copy)]
struct Add;

impl Join for Add {
    fn empty(self) -> f32 {
        0.0
    }

    #[inline(always)]
    fn join<S: Simd>(self, simd: S, a: S::F, b: S::F) -> S::F {
        simd.add(a, b)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::join::PART;
    use crate::{Isa, Parallelism, Team};

    #[test]
    fn sums_are_those_of_a_loop_for_any_length_and_instruction_set() {
        for len in [0, 1, 15, 16, 17, 1000, 3 * PART + 5] {
            let numbers = |seed: usize| (0..len).map(|i| ((i * 37 + seed * 11) % 101) as f32 / 7.0).collect::<Vec<_>>();
            let all = [numbers(1), numbers(2), numbers(3)];
            for isa in Isa::available() {
                for count in 0..=3 {
                    let terms: Vec<&[f32]> = all[..count].iter().map(Vec::as_slice).collect();
                    let loops: Vec<f32> = (0..len)
                        .map(|i| terms.iter().map(|term| term[i]).reduce(|a, b| a + b).unwrap_or(0.0))
                        .collect();
                    let mut y = vec![f32::NAN; len];
                    Team::scope(|team| {
                        let execution = Execution::on(isa).parallelism(Parallelism::Team(team));
                        forward(&terms, &mut y, execution).unwrap();
                        assert_eq!(y, loops, "{count} terms of {len} on {isa}");
                        add(&all[0], &mut y, execution).unwrap();
                    });
                    assert!(y.iter().zip(&loops).zip(&all[0]).all(|((y, sum), x)| *y == sum + x), "{len} on {isa}");
                }
            }
        }
    }

    #[test]
    fn terms_of_another_length_are_refused() {
        let mut y = [7.0; 2];
        assert!(forward(&[&[1.0; 2], &[1.0; 3]], &mut y, Parallelism::Serial).is_err());
        assert!(add(&[1.0], &mut y, Parallelism::Serial).is_err());
        assert_eq!(y, [7.0; 2]);
    }
}
