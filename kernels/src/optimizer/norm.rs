//! The Euclidean norm, which neither overflows nor underflows, and what clipping by it needs.
//!
//! ```text
//! block of 4,096:   s = the power of two at its largest element,   sum = sum of (x / s)^2 in f32
//! piece (a 64th):   sum of  sum * s^2 over its blocks, in f64
//! norm:             the root of the pieces' sum, in order
//! ```
//!
//! Blocks and pieces follow from the length alone, so the bits do not depend on threads.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{PART, SECONDS_PER_ARRAY};
use crate::error::Error;
use crate::execution::Execution;
use crate::parts::Parts;
use crate::simd::each::{load, store};
use crate::simd::reduce::{Max, Sum, Terms, reduce_row};
use crate::simd::{Job, Simd, dispatch};

/// Elements whose squares share a scale; they stay in L1 between the search for it and the sum.
const BLOCK: usize = 4096;
/// The most pieces: enough for as many threads to share the work evenly.
const PIECES: usize = 64;

/// The square root of the sum of squares; 0 of nothing. As `f64`, because it may exceed every `f32`.
///
/// It errs by at most 36 times 2^-24 of itself: half of what the squares of a block, their chains of 64 and the tree
/// may.
///
/// ```
/// use kernels::{Parallelism, optimizer};
/// let huge = [3e30, -4e30];
/// assert!((optimizer::norm(&huge, Parallelism::Serial)? / 5e30 - 1.0).abs() < 1e-6);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// NaN makes it NaN, otherwise an infinity infinite.
///
/// # Errors
/// [`Error::Isa`] for an instruction set that the CPU lacks.
pub fn norm<'t>(x: &[f32], execution: impl Into<Execution<'t>>) -> Result<f64, Error> {
    let execution = execution.into();
    let isa = execution.isa()?;
    let piece = x.len().div_ceil(PIECES).next_multiple_of(BLOCK);
    let sums = [const { AtomicU64::new(0) }; PIECES];
    let parallelism = execution.parallelism.for_seconds(x.len() as f64 * SECONDS_PER_ARRAY);
    let pieces = x.len().div_ceil(piece.max(1));
    parallelism.for_each(pieces, parallelism.threads(), &|index, _| {
        let x = &x[index * piece..x.len().min((index + 1) * piece)];
        let sum: f64 = dispatch(isa, SumOfSquares(x));
        sums[index].store(sum.to_bits(), Ordering::Relaxed);
    });
    let mut sum = 0.0;
    for piece in &sums[..pieces] {
        sum += f64::from_bits(piece.load(Ordering::Relaxed));
    }
    Ok(sum.sqrt())
}

/// `x = factor * x`, element by element, correctly rounded.
///
/// ```
/// use kernels::{Parallelism, optimizer};
/// let mut x = [3.0, -4.0];
/// optimizer::scale(0.5, &mut x, Parallelism::Serial)?;
/// assert_eq!(x, [1.5, -2.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Isa`] for an instruction set that the CPU lacks.
pub fn scale<'t>(factor: f32, x: &mut [f32], execution: impl Into<Execution<'t>>) -> Result<(), Error> {
    let execution = execution.into();
    let isa = execution.isa()?;
    let parallelism = execution.parallelism.for_seconds(x.len() as f64 * SECONDS_PER_ARRAY);
    let parts = Parts::new(x, PART);
    parallelism.for_each(parts.count(), parallelism.threads(), &|index, _| {
        // SAFETY: each index comes up once.
        dispatch(isa, Scale(factor, unsafe { parts.take(index) }));
    });
    Ok(())
}

struct Scale<'a>(f32, &'a mut [f32]);

impl Job for Scale<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (factor, len, x) = (simd.splat(self.0), self.1.len(), self.1.as_mut_ptr());
        let mut at = 0;
        while at < len {
            let count = S::LANES.min(len - at);
            // SAFETY: whole vectors, and the first lanes of the last one, lie within the slice.
            unsafe { store(simd, x.add(at), count, simd.mul(factor, load(simd, x.add(at), count))) };
            at += S::LANES;
        }
    }
}

struct SumOfSquares<'a>(&'a [f32]);

impl Job for SumOfSquares<'_> {
    type Output = f64;
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> f64 {
        let mut sum = 0.0;
        for block in self.0.chunks(BLOCK) {
            let (x, len) = (block.as_ptr(), block.len());
            // SAFETY: the block has `len` elements.
            let (scale, squares) = unsafe {
                let largest = reduce_row::<S, Max, _>(simd, &mut Magnitudes(x), len);
                let scale = power_of_two(largest);
                // Dividing by a power of two is exact, and so is multiplying by its inverse.
                (scale, reduce_row::<S, Sum, _>(simd, &mut Squares { x, inverse: 1.0 / scale }, len))
            };
            sum += squares as f64 * (scale as f64 * scale as f64);
        }
        sum
    }
}

/// The power of two that is at most `x`, kept within what has a normal inverse; 1 for what is not finite.
#[inline(always)]
fn power_of_two(x: f32) -> f32 {
    let exponent = (x.to_bits() >> 23) & 0xff;
    if exponent == 0xff { 1.0 } else { f32::from_bits(exponent.clamp(1, 253) << 23) }
}

/// `|x|`
struct Magnitudes(*const f32);

impl Terms for Magnitudes {
    #[inline(always)]
    unsafe fn term<S: Simd>(&mut self, simd: S, at: usize, count: usize) -> S::F {
        // SAFETY: passed on.
        let x = unsafe { load(simd, self.0.add(at), count) };
        simd.int_to_bits(simd.and_int(simd.bits_to_int(x), simd.splat_int(i32::MAX)))
    }
}

/// `(x * inverse)^2`
struct Squares {
    x: *const f32,
    inverse: f32,
}

impl Terms for Squares {
    #[inline(always)]
    unsafe fn term<S: Simd>(&mut self, simd: S, at: usize, count: usize) -> S::F {
        // SAFETY: passed on.
        let x = unsafe { simd.mul(load(simd, self.x.add(at), count), simd.splat(self.inverse)) };
        simd.mul(x, x)
    }
}
