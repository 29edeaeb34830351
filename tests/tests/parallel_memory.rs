//! A loop allocates nothing, neither in a team nor in a pool. On its own because it counts for the whole process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use kernels::{Parallelism, Team, TeamOptions};

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

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

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations_of_loops(parallelism: Parallelism) -> usize {
    let sum = AtomicUsize::new(0);
    let run = |loops: usize| {
        for _ in 0..loops {
            parallelism.for_each(16, 2, &|index, _| {
                sum.fetch_add(index, Ordering::Relaxed);
            });
        }
    };
    run(100); // rayon's queues get their size
    // What a loop allocates, every window of loops would show; what rayon's queues take now and then, hardly one.
    let window = |_| {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        run(1000);
        ALLOCATIONS.load(Ordering::Relaxed) - before
    };
    (0..5).map(window).min().unwrap_or(0)
}

#[test]
fn loops_allocate_nothing() {
    rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap().install(|| {
        assert_eq!(allocations_of_loops(Parallelism::Serial), 0);
        assert_eq!(allocations_of_loops(Parallelism::Current), 0);
        // Helpers that stay: to call one back is a job in rayon's queue.
        let options = TeamOptions::new().helpers(1).idle(std::time::Duration::MAX);
        Team::with(options, |team| assert_eq!(allocations_of_loops(Parallelism::Team(team)), 0));
    });
}
