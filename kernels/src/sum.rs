//! Sums of tensors, element by element: where branches meet, and where gradients do.
//!
//! ```text
//! y = x1 + x2 + x3 + ...       from the left: one rounding for each term but the first
//! ```

use crate::error::{Error, check_len};
use crate::execution::Execution;
use crate::parts::Parts;
use crate::simd::each::{Step, each_vector, load, store};
use crate::simd::{Job, Simd, dispatch};

/// Elements of a task: large beside the cost of waking a thread, small enough that a part of `y` stays in L1.
const PART: usize = 4 * 1024;

/// A rough cost per element and term on one core, in seconds: memory traffic.
const SECONDS: f64 = 0.3e-9;

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
    run(terms, false, y, execution.into())
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
    run(&[x], true, y, execution.into())
}

fn run(terms: &[&[f32]], adds: bool, y: &mut [f32], execution: Execution) -> Result<(), Error> {
    let isa = execution.isa()?;
    let seconds = y.len() as f64 * SECONDS * (1 + terms.len()) as f64;
    let parallelism = execution.parallelism.for_seconds(seconds);
    let parts = Parts::new(y, PART);
    parallelism.for_each(parts.count(), parallelism.threads(), &|index, _| {
        // SAFETY: each index comes up once.
        let y = unsafe { parts.take(index) };
        dispatch(isa, Terms { terms, adds, first: index * PART, y });
    });
    Ok(())
}

/// Some elements of a sum. Whoever makes one vouches that each term has those from `first` on.
struct Terms<'a> {
    terms: &'a [&'a [f32]],
    /// Whether `y` is the first term.
    adds: bool,
    first: usize,
    y: &'a mut [f32],
}

impl Job for Terms<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { terms, adds, first, y } = self;
        let to = y.as_mut_ptr();
        let from = |term: &[f32]| term[first..].as_ptr();
        // SAFETY: the maker's promise.
        unsafe {
            let rest = match terms {
                _ if adds => terms,
                [] => return y.fill(0.0),
                [a] => {
                    each_vector(simd, y.len(), &Copy { from: from(a), to });
                    &[]
                }
                [a, b, rest @ ..] => {
                    each_vector(simd, y.len(), &Add { a: from(a), b: from(b), to });
                    rest
                }
            };
            for term in rest {
                each_vector(simd, y.len(), &Add { a: to, b: from(term), to });
            }
        }
    }
}

struct Copy {
    from: *const f32,
    to: *mut f32,
}

impl Step for Copy {
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, simd: S, at: usize, count: usize) {
        // SAFETY: the elements are within both.
        unsafe { store(simd, self.to.add(at), count, load(simd, self.from.add(at), count)) };
    }
}

struct Add {
    a: *const f32,
    b: *const f32,
    to: *mut f32,
}

impl Step for Add {
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, simd: S, at: usize, count: usize) {
        // SAFETY: the elements are within all three.
        unsafe {
            let (a, b) = (load(simd, self.a.add(at), count), load(simd, self.b.add(at), count));
            store(simd, self.to.add(at), count, simd.add(a, b));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
