//! Runs of results: into the caches, or past them where they are more than these hold.
//!
//! ```text
//! plain   memory reads a line, then writes it        the next kernel finds it in a cache
//! past    memory writes a line                       the next kernel reads it from memory
//! ```
//!
//! Lines go past the caches whole: what comes before the first whole vector of a run, and after the last, is written
//! plainly.

use super::Simd;
use super::each::Step;

/// Elements from which an array is written past the caches: 16 MiB. A chain of kernels, each reading what the one
/// before wrote, takes as long either way at 8 MiB an array on a Zen 4 with 32 MiB of L3, and two thirds of the time
/// past the caches at 16 MiB.
const PAST: usize = 4 << 20;

/// Elements of a run below which too many of its lines are not written whole.
const LEAST: usize = 256;

/// Whether an array of `len` elements, written in runs of `run` of them, goes past the caches.
pub(crate) fn goes_past(len: usize, run: usize) -> bool {
    len >= PAST && run >= LEAST
}

/// Where a run of results is written.
#[derive(Clone, Copy)]
pub(crate) struct Output {
    pub start: *mut f32,
    /// Past the caches: then [`Output::finish`] ends the task.
    pub past: bool,
}

impl Output {
    /// A task's part of an output, `past` the caches unless it was read from there.
    #[inline(always)]
    pub(crate) fn apart(part: &mut [f32], past: bool, from: *const f32) -> Self {
        let start = part.as_mut_ptr();
        Self { start, past: past && from != start.cast_const() }
    }

    /// The run from `offset` on.
    #[inline(always)]
    pub(crate) fn at(self, offset: usize) -> Self {
        Self { start: self.start.wrapping_add(offset), ..self }
    }

    /// Elements before the first whole vector.
    #[inline(always)]
    fn head<S: Simd>(self, len: usize) -> usize {
        let misplaced = self.start.addr() / size_of::<f32>() % S::LANES;
        if self.past && misplaced > 0 { len.min(S::LANES - misplaced) } else { 0 }
    }

    /// Ends a task.
    #[inline(always)]
    pub(crate) fn finish<S: Simd>(self, simd: S) {
        if self.past {
            simd.fence();
        }
    }

    /// Writes the elements `at .. at + count` of a run that [`each_result`] goes through.
    ///
    /// # Safety
    /// - They are writable, and `at` and `count` those of a step.
    #[inline(always)]
    pub(crate) unsafe fn put<S: Simd>(self, simd: S, at: usize, count: usize, v: S::F) {
        // SAFETY: the caller's contract; whole vectors are aligned where they go past the caches.
        unsafe {
            let to = self.start.add(at);
            if count < S::LANES {
                simd.store_first(to, count, v);
            } else if self.past {
                simd.stream(to, v);
            } else {
                simd.store(to, v);
            }
        }
    }
}

/// Steps through a run of `len` elements whose results go to `to`, such that whole vectors are aligned where they go
/// past the caches.
///
/// # Safety
/// - The step may work on `len` elements.
#[inline(always)]
pub(crate) unsafe fn each_result<S: Simd, T: Step>(simd: S, to: Output, len: usize, step: &T) {
    let mut at = to.head::<S>(len);
    if at > 0 {
        // SAFETY: so many elements come first.
        unsafe { step.step(simd, 0, at) };
    }
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
