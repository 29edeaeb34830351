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

/// The first `count` lanes, by a plain load where that is all of them.
///
/// # Safety
/// - `p .. p + count` is readable, `count <= LANES`.
#[inline(always)]
pub(crate) unsafe fn load<S: Simd>(simd: S, p: *const f32, count: usize) -> S::F {
    // SAFETY: the caller's contract.
    unsafe { if count == S::LANES { simd.load(p) } else { simd.load_first(p, count) } }
}

/// The first `count` lanes, by a plain store where that is all of them.
///
/// # Safety
/// - `p .. p + count` is writable, `count <= LANES`.
#[inline(always)]
pub(crate) unsafe fn store<S: Simd>(simd: S, p: *mut f32, count: usize, v: S::F) {
    // SAFETY: the caller's contract.
    unsafe { if count == S::LANES { simd.store(p, v) } else { simd.store_first(p, count, v) } }
}
