//! Outputs cut into parts that tasks on several threads own.

use std::marker::PhantomData;

/// A mutable slice in parts of equal length (the last may be shorter), each for one task.
pub(crate) struct Parts<'a> {
    start: *mut f32,
    len: usize,
    part: usize,
    slice: PhantomData<&'a mut [f32]>,
}

// SAFETY: the parts do not overlap, and `take`'s contract gives each to one task.
unsafe impl Sync for Parts<'_> {}

impl<'a> Parts<'a> {
    /// Cuts a slice into parts of `part` elements, at least 1.
    pub(crate) fn new(slice: &'a mut [f32], part: usize) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), part: part.max(1), slice: PhantomData }
    }

    /// The number of parts.
    pub(crate) fn count(&self) -> usize {
        self.len.div_ceil(self.part)
    }

    /// The part `index`; empty beyond the last.
    ///
    /// # Safety
    /// - No part is taken twice.
    pub(crate) unsafe fn take(&self, index: usize) -> &'a mut [f32] {
        // SAFETY: passed on.
        unsafe { self.take_run(index, 1) }
    }

    /// `count` neighbouring parts from `first` on, as far as there are any.
    ///
    /// # Safety
    /// - No part is taken twice.
    pub(crate) unsafe fn take_run(&self, first: usize, count: usize) -> &'a mut [f32] {
        let start = first.saturating_mul(self.part).min(self.len);
        let len = count.saturating_mul(self.part).min(self.len - start);
        // SAFETY: the range is within the slice that was borrowed for 'a, and by contract nobody else gets it.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}
