//! Work cut into parts: how large they are, and memory whose parts tasks on several threads own.

use std::marker::PhantomData;
use std::ops::Range;

/// The size of the largest part when `items` are cut into as few parts of at most `most`, at least 1, as it takes.
pub(crate) fn balanced(items: usize, most: usize) -> usize {
    items.div_ceil(items.div_ceil(most.max(1)).max(1)).max(1)
}

/// Share `index` of `0..items` when `shares` of them are about as large.
pub(crate) fn share(items: usize, shares: usize, index: usize) -> Range<usize> {
    items * index / shares..items * (index + 1) / shares
}

/// Deals tasks out like cards: number `index` of a loop is the task `dealt(...)`, so that every participant starts with
/// some of the first tasks and ends with some of the last. For tasks that come longest first.
pub(crate) fn dealt(index: usize, participants: usize, tasks: usize) -> usize {
    let (each, longer) = (tasks / participants, tasks % participants);
    let (participant, turn) = match index.checked_sub(longer * (each + 1)) {
        None => (index / (each + 1), index % (each + 1)),
        Some(rest) => (longer + rest / each, rest % each),
    };
    turn * participants + participant
}

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

/// Memory that tasks cut among themselves: scratch, or what is packed for all.
#[derive(Clone, Copy)]
pub(crate) struct Shared(pub *mut f32);

// SAFETY: each task writes only its own part, and reads what was written in an earlier loop.
unsafe impl Sync for Shared {}

impl Shared {
    /// So many elements from the start.
    #[inline(always)]
    pub(crate) fn at(&self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}
