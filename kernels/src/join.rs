//! Tensors joined element by element, from the left: `y = ((x1 . x2) . x3) . ...`

use crate::error::Error;
use crate::execution::Execution;
use crate::parts::Parts;
use crate::simd::each::{Step, each_vector, load, store};
use crate::simd::{Job, Simd, dispatch};

/// Elements of a task: large beside the cost of waking a thread, small enough that a part of `y` stays in L1.
pub(crate) const PART: usize = 4 * 1024;

/// A rough cost per element and term on one core, in seconds: memory traffic.
const SECONDS: f64 = 0.3e-9;

/// How two elements become one.
///
/// A trait, not a closure: a closure that is not inlined would lose the instruction set.
pub(crate) trait Join: Copy + Sync {
    /// The result where nothing is joined.
    fn empty(self) -> f32;

    /// The result of two vectors.
    fn join<S: Simd>(self, simd: S, a: S::F, b: S::F) -> S::F;
}

/// Where the first term comes from.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum First {
    /// It is what `y` holds.
    InPlace,
    /// It is the first of the terms.
    Term,
}

/// Joins the terms of all lists, one list behind the other, in parts for threads. Each term is as long as `y`.
pub(crate) fn run(
    join: impl Join,
    first: First,
    terms: [&[&[f32]]; 3],
    y: &mut [f32],
    execution: Execution,
) -> Result<(), Error> {
    debug_assert!(terms.iter().copied().flatten().all(|term| term.len() == y.len()));
    let count: usize = terms.iter().map(|list| list.len()).sum();
    for_each_part(y, 1 + count, execution, &|at, y| Terms { join, first, terms, at, y })
}

/// Runs `job(start, part)` for each part of an output that takes so many passes over memory.
pub(crate) fn for_each_part<'a, J: Job<Output = ()>>(
    y: &'a mut [f32],
    passes: usize,
    execution: Execution,
    job: &(impl Fn(usize, &'a mut [f32]) -> J + Sync),
) -> Result<(), Error> {
    let isa = execution.isa()?;
    let parallelism = execution.parallelism.for_seconds(y.len() as f64 * SECONDS * passes as f64);
    let parts = Parts::new(y, PART);
    parallelism.for_each(parts.count(), parallelism.threads(), &|index, _| {
        // SAFETY: each index comes up once.
        let y = unsafe { parts.take(index) };
        dispatch(isa, job(index * PART, y));
    });
    Ok(())
}

/// Some elements of a result. Whoever makes one vouches that each term has those from `at` on.
struct Terms<'a, J> {
    join: J,
    first: First,
    terms: [&'a [&'a [f32]]; 3],
    at: usize,
    y: &'a mut [f32],
}

impl<J: Join> Job for Terms<'_, J> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { join, first, terms, at, y } = self;
        let (len, to) = (y.len(), y.as_mut_ptr());
        let mut terms = terms.iter().copied().flatten().map(|term| term[at..].as_ptr());
        let mut a = to.cast_const();
        if first == First::Term {
            let Some(term) = terms.next() else { return y.fill(join.empty()) };
            a = term;
        }
        // SAFETY: the maker's promise.
        unsafe {
            match terms.next() {
                Some(b) => each_vector(simd, len, &Pair { join, a, b, to }),
                None if first == First::Term => each_vector(simd, len, &CopyAll { from: a, to }),
                None => {}
            }
            for b in terms {
                each_vector(simd, len, &Pair { join, a: to, b, to });
            }
        }
    }
}

struct CopyAll {
    from: *const f32,
    to: *mut f32,
}

impl Step for CopyAll {
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, simd: S, at: usize, count: usize) {
        // SAFETY: the elements are within both.
        unsafe { store(simd, self.to.add(at), count, load(simd, self.from.add(at), count)) };
    }
}

struct Pair<J> {
    join: J,
    a: *const f32,
    b: *const f32,
    to: *mut f32,
}

impl<J: Join> Step for Pair<J> {
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, simd: S, at: usize, count: usize) {
        // SAFETY: the elements are within all three.
        unsafe {
            let (a, b) = (load(simd, self.a.add(at), count), load(simd, self.b.add(at), count));
            store(simd, self.to.add(at), count, self.join.join(simd, a, b));
        }
    }
}
