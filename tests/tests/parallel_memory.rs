//! A loop allocates nothing, neither in a team nor in a pool. On its own because it counts for the whole process.

use std::sync::atomic::{AtomicUsize, Ordering};

use kernels::{Parallelism, Team, TeamOptions};
use tests::allocations::{Counting, fewest_allocations};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations_of_loops(parallelism: Parallelism) -> usize {
    let sum = AtomicUsize::new(0);
    fewest_allocations(|| {
        for _ in 0..1000 {
            parallelism.for_each(16, 2, &|index, _| {
                sum.fetch_add(index, Ordering::Relaxed);
            });
        }
    })
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
