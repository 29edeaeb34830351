//! A planned forward pass of a network allocates nothing, but a job for each helper that it calls. On its own because
//! it counts for the whole process.

use std::time::Duration;

use kernels::{Team, TeamOptions};
use nn::models::{GoogLeNet, LeNet5};
use nn::{Network, Parallelism, Random, Tensor};
use tests::allocations::{Counting, fewest_allocations};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn planned_networks_allocate_nothing() {
    let random = &mut Random::new(1);
    let googlenet = GoogLeNet { channels: 1, classes: 10, width: 0.25, ..GoogLeNet::default() };
    let networks = [
        ("LeNet-5", Network::new(LeNet5::default().build(random).unwrap()), 28),
        ("GoogLeNet", Network::new(googlenet.build(random).unwrap()), 64),
    ];
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    for (name, mut network, size) in networks {
        network.eval();
        // Two shapes in turn: each has its own layout, and both share the memory.
        let inputs = [1, 3].map(|batch| Tensor::from_elem(vec![batch, 1, size, size], 0.5));
        let mut y = [0.0; 30];
        let mut calls = |network: &mut Network| {
            fewest_allocations(|| {
                for _ in 0..5 {
                    for x in &inputs {
                        network.forward_into(x, &mut y[..10 * x.shape()[0]]).unwrap();
                    }
                }
            })
        };
        network.set_parallelism(Parallelism::Serial);
        assert_eq!(calls(&mut network), 0, "{name}, serial");
        network.set_parallelism(Parallelism::Current);
        // A helper that has left for want of work is called back by a job: these stay.
        let patient = TeamOptions::new().idle(Duration::from_secs(60));
        let in_team = pool.install(|| Team::with(patient, |_| calls(&mut network)));
        assert_eq!(in_team, 0, "{name}, in a team");
        // A job for the pool's other thread, in each of the ten passes.
        let in_pool = pool.install(|| calls(&mut network));
        assert!(in_pool <= 10, "{name}, in a pool: {in_pool}");
    }
}
