//! An activation over memory: parts for threads, then vector by vector.

use crate::error::Error;
use crate::execution::Execution;
use crate::parts::Parts;
use crate::simd::each::{Step, load};
use crate::simd::output::{Output, each_result, goes_past};
use crate::simd::{Job, Simd, dispatch};

/// Elements of a task: large beside the cost of waking a thread, small enough to stay in L2 until reused.
const PART: usize = 16 * 1024;

/// A function of one element.
pub(super) trait Function: Copy + Sync {
    /// A rough cost per element on one core, in seconds.
    fn seconds_per_element(self) -> f64;

    /// Whether the arithmetic takes so long that it hides that memory reads an output's lines before it writes them:
    /// what it takes to write past the caches it does not hide.
    fn hides_reads(self) -> bool;

    /// Runs `work` with this very function, named variant by variant: so the choice moves out of the loop.
    fn choose<S: Simd>(self, simd: S, work: impl Work<Self>);

    /// The function of one vector.
    fn apply<S: Simd>(self, simd: S, x: S::F) -> S::F;
}

/// A function with a gradient from what the forward pass keeps: its output or its input.
pub(super) trait Differentiable: Function {
    /// [`Function::hides_reads`] of the gradient.
    fn gradient_hides_reads(self) -> bool;

    /// The gradient of one vector.
    fn apply_backward<S: Simd>(self, simd: S, kept: S::F, dy: S::F) -> S::F;
}

/// What is done with a function once it is known.
///
/// A trait, not a closure: a closure that is not inlined would lose the instruction set.
pub(super) trait Work<F> {
    /// Does it.
    fn with<S: Simd>(self, simd: S, function: F);
}

/// `y = function(x)`; both are of one length.
pub(super) fn forward(function: impl Function, x: &[f32], y: &mut [f32], execution: Execution) -> Result<(), Error> {
    debug_assert_eq!(x.len(), y.len());
    for_each_part(function, y, execution, &|at, y, past| Forward { function, x: x[at..].as_ptr(), y, past })
}

/// `x = function(x)`
pub(super) fn forward_in_place(function: impl Function, x: &mut [f32], execution: Execution) -> Result<(), Error> {
    for_each_part(function, x, execution, &|_, y, past| Forward { function, x: y.as_ptr(), y, past })
}

/// `dx = dy function'(kept)`; all are of one length.
pub(super) fn backward(
    function: impl Differentiable,
    kept: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    execution: Execution,
) -> Result<(), Error> {
    debug_assert!(kept.len() == dx.len() && dy.len() == dx.len());
    for_each_part(function, dx, execution, &|at, dx, past| Backward {
        function,
        kept: kept[at..].as_ptr(),
        dy: dy[at..].as_ptr(),
        dx,
        past,
    })
}

/// `gradient = gradient function'(kept)`; both are of one length.
pub(super) fn backward_in_place(
    function: impl Differentiable,
    kept: &[f32],
    gradient: &mut [f32],
    execution: Execution,
) -> Result<(), Error> {
    debug_assert_eq!(kept.len(), gradient.len());
    for_each_part(function, gradient, execution, &|at, dx, past| Backward {
        function,
        kept: kept[at..].as_ptr(),
        dy: dx.as_ptr(),
        dx,
        past,
    })
}

/// Runs `job(start, part, past)` for each part of an output, which goes past the caches or not.
fn for_each_part<'a, J: Job<Output = ()>>(
    function: impl Function,
    output: &'a mut [f32],
    execution: Execution,
    job: &(impl Fn(usize, &'a mut [f32], bool) -> J + Sync),
) -> Result<(), Error> {
    let isa = execution.isa()?;
    let seconds = output.len() as f64 * function.seconds_per_element();
    let parallelism = execution.parallelism.for_seconds(seconds);
    let past = goes_past(output.len(), PART);
    let parts = Parts::new(output, PART);
    parallelism.for_each(parts.count(), parallelism.threads(), &|index, _| {
        // SAFETY: each index comes up once.
        let part = unsafe { parts.take(index) };
        dispatch(isa, job(index * PART, part, past));
    });
    Ok(())
}

/// `y = function(x)`. Whoever makes one vouches that `x` has as many elements as `y`, possibly the same ones.
struct Forward<'a, F> {
    function: F,
    x: *const f32,
    y: &'a mut [f32],
    /// Whether `y` goes past the caches, unless that is `x`.
    past: bool,
}

impl<F: Function> Job for Forward<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.function.choose(simd, self);
    }
}

impl<F: Function> Work<F> for Forward<'_, F> {
    #[inline(always)]
    fn with<S: Simd>(self, simd: S, function: F) {
        let past = self.past && !function.hides_reads();
        let y = Output::apart(self.y, past, self.x);
        // SAFETY: the maker's promise.
        unsafe { each_result(simd, y, self.y.len(), &Map { function, x: self.x, y }) };
        y.finish(simd);
    }
}

struct Map<F> {
    function: F,
    x: *const f32,
    y: Output,
}

impl<F: Function> Step for Map<F> {
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, simd: S, at: usize, count: usize) {
        // SAFETY: the elements are within both.
        unsafe {
            let x = load(simd, self.x.add(at), count);
            self.y.put(simd, at, count, self.function.apply(simd, x));
        }
    }
}

/// `dx = dy * function'`. Whoever makes one vouches that what is kept and `dy` have as many elements as `dx`; `dy` may
/// be the same ones.
struct Backward<'a, F> {
    function: F,
    kept: *const f32,
    dy: *const f32,
    dx: &'a mut [f32],
    /// Whether `dx` goes past the caches, unless that is `dy`.
    past: bool,
}

impl<F: Differentiable> Job for Backward<'_, F> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        self.function.choose(simd, self);
    }
}

impl<F: Differentiable> Work<F> for Backward<'_, F> {
    #[inline(always)]
    fn with<S: Simd>(self, simd: S, function: F) {
        let past = self.past && !function.gradient_hides_reads();
        let dx = Output::apart(self.dx, past, self.dy);
        let step = MapBackward { function, kept: self.kept, dy: self.dy, dx };
        // SAFETY: the maker's promise.
        unsafe { each_result(simd, dx, self.dx.len(), &step) };
        dx.finish(simd);
    }
}

struct MapBackward<F> {
    function: F,
    kept: *const f32,
    dy: *const f32,
    dx: Output,
}

impl<F: Differentiable> Step for MapBackward<F> {
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, simd: S, at: usize, count: usize) {
        // SAFETY: the elements are within all three.
        unsafe {
            let (kept, dy) = (load(simd, self.kept.add(at), count), load(simd, self.dy.add(at), count));
            self.dx.put(simd, at, count, self.function.apply_backward(simd, kept, dy));
        }
    }
}
