//! The smallest or the largest of tensors, element by element.
//!
//! ```text
//! y = min(x1, x2, ...)    or    y = max(x1, x2, ...)        exact
//! dxi = dy where xi = y, else 0
//! ```
//!
//! Where several inputs equal the result, each of them gets the whole gradient. A NaN in any input is passed on to the
//! result, which no input equals then: all their gradients are 0 there. Both zeros are equal; the first of them comes
//! out, and both get the gradient.

use crate::error::{Error, check_len};
use crate::execution::Execution;
use crate::join::{self, First, Join};
use crate::simd::each::{Step, each_vector, load, store};
use crate::simd::{Job, Simd};

/// Which one is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Extremum {
    /// The smallest.
    Minimum,
    /// The largest.
    Maximum,
}

impl Extremum {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Minimum, Self::Maximum];
}

/// `y = min(inputs[0], inputs[1], ...)`, or the maximum, element by element; infinity without any input, or -infinity.
///
/// ```
/// use kernels::Parallelism;
/// use kernels::extremum::{self, Extremum};
/// let mut y = [f32::NAN; 2];
/// extremum::forward(Extremum::Maximum, &[&[1.0, 20.0], &[10.0, 2.0]], &mut y, Parallelism::Serial)?;
/// assert_eq!(y, [10.0, 20.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`] unless each input is as long as `y`; `y` is untouched then.
pub fn forward<'t>(
    extremum: Extremum,
    inputs: &[&[f32]],
    y: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    for input in inputs {
        check_len("inputs", y.len(), input.len())?;
    }
    let (lists, execution) = ([inputs, &[], &[]], execution.into());
    match extremum {
        Extremum::Minimum => join::run(Minimum, First::Term, lists, y, execution),
        Extremum::Maximum => join::run(Maximum, First::Term, lists, y, execution),
    }
}

/// The gradient of an input `x` of either: `dx = dy` where `x` equals the output `y`, else 0.
///
/// ```
/// use kernels::{Parallelism, extremum};
/// let mut dx = [f32::NAN; 2];
/// extremum::backward(&[1.0, 20.0], &[10.0, 20.0], &[3.0, 4.0], &mut dx, Parallelism::Serial)?;
/// assert_eq!(dx, [0.0, 4.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`] unless `x`, `y` and `dy` are as long as `dx`; `dx` is untouched then.
pub fn backward<'t>(
    x: &[f32],
    y: &[f32],
    dy: &[f32],
    dx: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    for (argument, operand) in [("x", x), ("y", y), ("dy", dy)] {
        check_len(argument, dx.len(), operand.len())?;
    }
    join::for_each_part(dx, 4, execution.into(), &|at, dx| Backward {
        x: x[at..].as_ptr(),
        y: y[at..].as_ptr(),
        dy: dy[at..].as_ptr(),
        dx,
    })
}

#[derive(Clone, Copy)]
struct Minimum;

impl Join for Minimum {
    fn empty(self) -> f32 {
        f32::INFINITY
    }

    #[inline(always)]
    fn join<S: Simd>(self, simd: S, a: S::F, b: S::F) -> S::F {
        // No comparison is true of NaN: an `a` that is one stays.
        simd.select(simd.or(simd.lt(b, a), simd.is_nan(b)), b, a)
    }
}

#[derive(Clone, Copy)]
struct Maximum;

impl Join for Maximum {
    fn empty(self) -> f32 {
        f32::NEG_INFINITY
    }

    #[inline(always)]
    fn join<S: Simd>(self, simd: S, a: S::F, b: S::F) -> S::F {
        // As above.
        simd.select(simd.or(simd.lt(a, b), simd.is_nan(b)), b, a)
    }
}

/// Whoever makes one vouches that `x`, `y` and `dy` have as many elements as `dx`.
struct Backward<'a> {
    x: *const f32,
    y: *const f32,
    dy: *const f32,
    dx: &'a mut [f32],
}

impl Job for Backward<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { x, y, dy, dx } = self;
        // SAFETY: the maker's promise.
        unsafe { each_vector(simd, dx.len(), &Route { x, y, dy, dx: dx.as_mut_ptr() }) };
    }
}

struct Route {
    x: *const f32,
    y: *const f32,
    dy: *const f32,
    dx: *mut f32,
}

impl Step for Route {
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, simd: S, at: usize, count: usize) {
        // SAFETY: the elements are within all four.
        unsafe {
            let equal = simd.eq(load(simd, self.x.add(at), count), load(simd, self.y.add(at), count));
            let dy = load(simd, self.dy.add(at), count);
            store(simd, self.dx.add(at), count, simd.select(equal, dy, simd.zero()));
        }
    }
}
