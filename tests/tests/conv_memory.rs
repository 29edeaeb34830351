//! A planned convolution that is given a workspace allocates nothing. On its own because it counts for the whole
//! process.

use kernels::conv::{Algorithm, Conv2d, Conv2dBackward, Options};
use kernels::{Parallelism, Team, TeamOptions};
use tests::allocations::{Counting, fewest_allocations};
use tests::case::ConvCase;
use tests::data::{ConvData, DataKind};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The allocations of forward and backward calls on at most two threads.
fn allocations_of_calls(case: &ConvCase, options: Options, parallelism: Parallelism) -> usize {
    let (spec, shape) = (case.spec, case.shape);
    let sizes = spec.sizes(shape).unwrap();
    let data = ConvData::new(case, &sizes);
    let forward = Conv2d::with_options(spec, &data.weights, data.bias.as_deref(), shape, options.forward()).unwrap();
    let backward = Conv2dBackward::with_options(spec, &data.weights, shape, options).unwrap();
    let len = forward.workspace_len(shape, 2).unwrap().max(backward.workspace_len(shape, 2).unwrap());
    let mut workspace = vec![0.0; len];
    let (mut y, mut dx) = (vec![0.0; sizes.y_len], vec![0.0; sizes.x_len]);
    let (mut dw, mut db) = (vec![0.0; sizes.w_len], vec![0.0; spec.out_channels]);
    fewest_allocations(|| {
        for _ in 0..20 {
            forward.forward(shape, &data.x, data.residual.as_deref(), &mut y, &mut workspace, parallelism).unwrap();
            backward.data(shape, &data.dy, &mut dx, &mut workspace, parallelism).unwrap();
            let db = Some(&mut db[..]);
            backward.both(shape, &data.x, &data.dy, &mut dx, &mut dw, db, &mut workspace, parallelism).unwrap();
        }
    })
}

#[test]
fn planned_convolutions_allocate_nothing() {
    let cases = [
        ConvCase::new(16, 32, [3, 3]).batch(2).image(30, 30).padding(1, 1, 1, 1).with_bias().relu(),
        ConvCase::new(40, 24, [3, 3]).image(31, 29).stride(2, 2).padding(1, 0, 1, 0).nhwc(),
        ConvCase::new(64, 64, [1, 1]).batch(2).image(24, 24).with_residual(),
        ConvCase::new(48, 48, [5, 3]).image(40, 40).padding(2, 2, 1, 1).groups(48),
        ConvCase::new(32, 32, [3, 3]).image(30, 30).padding(1, 1, 1, 1).groups(8),
    ];
    let algorithms = Algorithm::ALL.into_iter().chain([Algorithm::Auto]).filter(|a| a.to_string() != "baseline");
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    for algorithm in algorithms {
        for case in &cases {
            let case = case.data(DataKind::Uniform);
            let options = Options { algorithm, ..Options::default() };
            let spec = case.spec;
            let weights = vec![0.0; spec.sizes(case.shape).unwrap().w_len];
            if Conv2d::with_options(spec, &weights, None, case.shape, options.forward()).is_err()
                || Conv2dBackward::with_options(spec, &weights, case.shape, options).is_err()
            {
                continue; // not an algorithm for this spec
            }
            let check = |name: &str, parallelism: Parallelism| {
                assert_eq!(allocations_of_calls(&case, options, parallelism), 0, "{name}: {algorithm}, {case}");
            };
            check("serial", Parallelism::Serial);
            pool.install(|| {
                check("pool", Parallelism::Current);
                // Helpers that stay: to call one back is a job in rayon's queue.
                let team = TeamOptions::new().helpers(1).idle(std::time::Duration::MAX);
                Team::with(team, |team| check("team", Parallelism::Team(team)));
            });
        }
    }
}
