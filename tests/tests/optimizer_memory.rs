//! A step allocates nothing. On its own because it counts for the whole process.

use kernels::Parallelism;
use kernels::optimizer::{self, Adam, Descent};
use tests::allocations::{Counting, fewest_allocations};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations_of_steps(parallelism: Parallelism) -> usize {
    // Enough for tasks on several threads.
    const LEN: usize = 300_000;
    let [mut w, mut m, mut v] = [(); 3].map(|()| vec![0.5; LEN]);
    let g = vec![0.25; LEN];
    fewest_allocations(|| {
        Descent::new(0.1).step(&mut w, &g, None, parallelism).unwrap();
        Descent::new(0.1).momentum(0.9).step(&mut w, &g, Some(&mut m), parallelism).unwrap();
        Adam::new(0.1).step(1, &mut w, &g, &mut m, &mut v, parallelism).unwrap();
        optimizer::norm(&g, parallelism).unwrap();
        optimizer::scale(0.5, &mut m, parallelism).unwrap();
    })
}

#[test]
fn steps_norms_and_scaling_allocate_nothing() {
    rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap().install(|| {
        assert_eq!(allocations_of_steps(Parallelism::Serial), 0);
        assert_eq!(allocations_of_steps(Parallelism::Current), 0);
    });
}
