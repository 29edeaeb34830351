//! Optimisers: what turns gradients into better parameters, each in one pass over memory.
//!
//! ```text
//!  gradient ──┐
//!  value ─────┼──► rule, element by element ──┬──► value
//!  state ─────┘    (descent, momentum, Adam)  └──► state (velocity; mean and variance)
//! ```
//!
//! A rule sees one element of everything at a time, so it reads each array once, writes what it changes once, and its
//! bits depend on nothing but the numbers: not on threads, alignment or the number of elements. Gradients are clipped
//! before a step: by [`norm`] and [`scale`], or each on its own by
//! [`activation::forward_in_place`](crate::activation::forward_in_place) with
//! [`Activation::Clamp`](crate::Activation::Clamp).

mod adam;
mod descent;
mod norm;

pub use adam::Adam;
pub use descent::Descent;
pub use norm::{norm, scale};

use crate::error::{Error, check_len};
use crate::execution::Execution;
use crate::parts::Parts;
use crate::simd::each::{load, store};
use crate::simd::{Job, Simd, dispatch};

/// Elements of a task: large beside the cost of taking its number.
const PART: usize = 16 * 1024;

/// Seconds that an array costs an element on one core: 0.2e-9 where all arrays fit in the cache, 0.3e-9 beyond
/// (momentum and Adam over 100,000 and 16,000,000 elements, AVX2).
const SECONDS_PER_ARRAY: f64 = 0.25e-9;

/// What a step does to an element that has `N` numbers of state.
trait Rule<const N: usize>: Copy + Send + Sync {
    /// The new value and state of a vector of elements.
    fn step<S: Simd>(self, simd: S, value: S::F, gradient: S::F, state: [S::F; N]) -> (S::F, [S::F; N]);
}

/// Runs a rule over all elements. `names` are those of the states, for errors.
fn update<R: Rule<N>, const N: usize>(
    rule: R,
    value: &mut [f32],
    gradient: &[f32],
    names: [&'static str; N],
    states: [&mut [f32]; N],
    execution: Execution,
) -> Result<(), Error> {
    let len = value.len();
    check_len("gradient", len, gradient.len())?;
    for (name, state) in names.iter().zip(&states) {
        check_len(name, len, state.len())?;
    }
    let isa = execution.isa()?;
    let seconds = len as f64 * (2 + N) as f64 * SECONDS_PER_ARRAY;
    let parallelism = execution.parallelism.for_seconds(seconds);
    let values = Parts::new(value, PART);
    let states = states.map(|state| Parts::new(state, PART));
    parallelism.for_each(values.count(), parallelism.threads(), &|index, _| {
        // SAFETY: each index comes up once.
        let (value, states) = unsafe { (values.take(index), std::array::from_fn(|n| states[n].take(index))) };
        let gradient = &gradient[index * PART..][..value.len()];
        dispatch(isa, Update { rule, value, gradient, states });
    });
    Ok(())
}

/// A part of the elements; all slices are of one length.
struct Update<'a, R, const N: usize> {
    rule: R,
    value: &'a mut [f32],
    gradient: &'a [f32],
    states: [&'a mut [f32]; N],
}

impl<R: Rule<N>, const N: usize> Job for Update<'_, R, N> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { rule, value, gradient, states } = self;
        let (len, value, gradient) = (value.len(), value.as_mut_ptr(), gradient.as_ptr());
        debug_assert!(states.iter().all(|state| state.len() == len));
        let states = states.map(<[f32]>::as_mut_ptr);
        let mut at = 0;
        while at < len {
            let count = S::LANES.min(len - at);
            // SAFETY: whole vectors, and the first lanes of the last one, lie within all slices.
            unsafe {
                let mut state = [simd.zero(); N];
                for n in 0..N {
                    state[n] = load(simd, states[n].add(at), count);
                }
                let (w, g) = (load(simd, value.add(at), count), load(simd, gradient.add(at), count));
                let (w, state) = rule.step(simd, w, g, state);
                store(simd, value.add(at), count, w);
                for n in 0..N {
                    store(simd, states[n].add(at), count, state[n]);
                }
            }
            at += S::LANES;
        }
    }
}

/// Fails unless a parameter is a finite number from 0 on.
fn check_positive(argument: &'static str, x: f64) -> Result<(), Error> {
    if x >= 0.0 && x.is_finite() { Ok(()) } else { Err(Error::invalid(argument, "a finite number, at least 0", x)) }
}
