//! Element-wise work on runs of memory: whole vectors, then the lanes that are left.
//!
//! The count of lanes is a constant in the loop, so that what is generic over it has no branch there.

use super::Simd;

/// What is done to some neighbouring elements.
///
/// A trait, not a closure: a closure that is not inlined would lose the instruction set.
pub(crate) trait Step {
    /// Works on the elements `at .. at + count`.
    ///
    /// # Safety
    /// - `count <= S::LANES`, and `at + count` is within the run.
    unsafe fn step<S: Simd>(&self, simd: S, at: usize, count: usize);
}

/// Steps through a run of `len` elements.
///
/// # Safety
/// - The step may work on `len` elements.
#[inline(always)]
pub(crate) unsafe fn each_vector<S: Simd, T: Step>(simd: S, len: usize, step: &T) {
    let mut at = 0;
    while at + S::LANES <= len {
        // SAFETY: the whole vector is within the run.
        unsafe { step.step(simd, at, S::LANES) };
        at += S::LANES;
    }
    if at < len {
        // SAFETY: so many elements are left.
        unsafe { step.step(simd, at, len - at) };
    }
}
