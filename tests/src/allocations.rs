//! Counts allocations, for tests of code that must not make any.
//!
//! A test binary that counts has one test, because the counter belongs to the whole process:
//!
//! ```
//! use tests::allocations::{Counting, allocations};
//! #[global_allocator]
//! static ALLOCATOR: Counting = Counting;
//! let (before, boxed) = (allocations(), Box::new([1.0; 100]));
//! assert_eq!(allocations() - before, 1);
//! # drop(boxed);
//! ```

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

/// The allocator of the system, counted.
#[derive(Debug)]
pub struct Counting;

// SAFETY: `System` does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// How many there have been since the process started.
pub fn allocations() -> usize {
    ALLOCATIONS.load(Ordering::Relaxed)
}

/// The fewest that `calls` made in any of five rounds, after a round that does not count.
///
/// What a call allocates, every round would show; what rayon's queues take now and then, hardly one.
pub fn fewest_allocations(mut calls: impl FnMut()) -> usize {
    calls();
    let mut round = || {
        let before = allocations();
        calls();
        allocations() - before
    };
    (0..5).map(|_| round()).min().unwrap_or(0)
}
