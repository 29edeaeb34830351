//! A planned convolution that is given a workspace allocates nothing. On its own because it counts for the whole
//! process.

use kernels::conv::{Algorithm, Conv2d, Conv2dBackward, ConvTranspose2d, ConvTranspose2dSpec, Options, Padding, Shape};
use kernels::{Parallelism, Team, TeamOptions};
use tests::allocations::{Counting, fewest_allocations};
use tests::case::ConvCase;
use tests::data::{ConvData, DataKind, numbers};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The allocations of all calls of the plans of a case on at most two threads, or `None` where the algorithm cannot do
/// it; weights are replaced, too.
fn allocations_of_calls(case: &ConvCase, data: &ConvData, options: Options, parallelism: Parallelism) -> Option<usize> {
    let (spec, shape) = (case.spec, case.shape);
    let sizes = spec.sizes(shape).unwrap();
    let (weights, bias) = (&data.weights, data.bias.as_deref());
    let mut forward = Conv2d::with_options(spec, weights, bias, shape, options.forward()).ok()?;
    let mut backward = Conv2dBackward::with_options(spec, weights, shape, options).ok()?;
    let len = forward.workspace_len(shape, 2).unwrap().max(backward.workspace_len(shape, 2).unwrap());
    let mut workspace = vec![0.0; len];
    let (mut y, mut dx) = (vec![0.0; sizes.y_len], vec![0.0; sizes.x_len]);
    let (mut dw, mut db) = (vec![0.0; sizes.w_len], vec![0.0; spec.out_channels]);
    Some(fewest_allocations(|| {
        for _ in 0..3 {
            forward.set_weights(weights, bias, parallelism).unwrap();
            forward.forward(shape, &data.x, data.residual.as_deref(), &mut y, &mut workspace, parallelism).unwrap();
            backward.set_weights(weights, parallelism).unwrap();
            backward.data(shape, &data.dy, &mut dx, &mut workspace, parallelism).unwrap();
            backward.weights(shape, &data.x, &data.dy, &mut dw, None, &mut workspace, parallelism).unwrap();
            let db = Some(&mut db[..]);
            backward.both(shape, &data.x, &data.dy, &mut dx, &mut dw, db, &mut workspace, parallelism).unwrap();
        }
    }))
}

/// The same for a transposed convolution.
fn allocations_of_transposed(options: Options, parallelism: Parallelism) -> Option<usize> {
    let spec = ConvTranspose2dSpec::new(24, 16, [4, 4]).stride([2, 2]).padding(Padding::all(1));
    let shape = Shape::new(2, 13, 14);
    let sizes = spec.sizes(shape).unwrap();
    let (weights, bias) = (numbers(sizes.w_len, 1), numbers(16, 2));
    let (x, dy) = (numbers(sizes.x_len, 3), numbers(sizes.y_len, 4));
    let mut plan = ConvTranspose2d::with_options(spec, &weights, Some(&bias), shape, options).ok()?;
    let mut workspace = vec![0.0; plan.workspace_len(shape, 2).unwrap()];
    let (mut y, mut dx) = (vec![0.0; sizes.y_len], vec![0.0; sizes.x_len]);
    let (mut dw, mut db) = (vec![0.0; sizes.w_len], vec![0.0; 16]);
    Some(fewest_allocations(|| {
        for _ in 0..3 {
            plan.set_weights(&weights, Some(&bias), parallelism).unwrap();
            plan.forward(shape, &x, None, &mut y, &mut workspace, parallelism).unwrap();
            plan.backward_data(shape, &dy, &mut dx, &mut workspace, parallelism).unwrap();
            let db = Some(&mut db[..]);
            plan.backward_weights(shape, &x, &dy, &mut dw, db, &mut workspace, parallelism).unwrap();
        }
    }))
}

#[test]
fn planned_convolutions_allocate_nothing() {
    let same = ConvCase::new(16, 32, [3, 3]).image(30, 30).padding(1, 1, 1, 1);
    let cases = [
        same.batch(2).with_bias().relu(),
        ConvCase::new(40, 24, [3, 3]).image(31, 29).stride(2, 2).padding(1, 0, 1, 0).nhwc(),
        ConvCase::new(64, 64, [1, 1]).batch(2).image(24, 24).with_residual(),
        ConvCase::new(48, 48, [5, 3]).image(40, 40).padding(2, 2, 1, 1).groups(48),
        ConvCase::new(32, 32, [3, 3]).image(30, 30).padding(1, 1, 1, 1).groups(8),
        same.dilation(2, 2).padding(2, 2, 2, 2),
        ConvCase::new(24, 24, [5, 5]).image(19, 21).padding(2, 2, 2, 2).with_bias(),
        ConvCase::new(24, 40, [1, 3]).image(1, 301).padding(0, 0, 1, 1).batch(2).nhwc(),
        // A NaN and its like, for which tiles are made again.
        same.data(DataKind::Special).seed(2),
    ];
    let algorithms = || Algorithm::ALL.into_iter().chain([Algorithm::Auto]).filter(|&a| a != Algorithm::Baseline);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    // What makes nothing up: counts of an algorithm, as far as it can do the problem.
    let check = |name: &str, count: &(dyn Fn(Parallelism) -> Option<usize> + Sync)| -> bool {
        let Some(serial) = count(Parallelism::Serial) else { return false };
        assert_eq!(serial, 0, "serial: {name}");
        pool.install(|| {
            assert_eq!(count(Parallelism::Current), Some(0), "pool: {name}");
            // Helpers that stay: to call one back is a job in rayon's queue.
            let team = TeamOptions::new().helpers(1).idle(std::time::Duration::MAX);
            Team::with(team, |team| assert_eq!(count(Parallelism::Team(team)), Some(0), "team: {name}"));
        });
        true
    };
    for algorithm in algorithms() {
        let options = Options { algorithm, ..Options::default() };
        let ran = cases.iter().filter(|case| {
            let case = if case.data == DataKind::Special { **case } else { case.data(DataKind::Uniform) };
            let data = ConvData::new(&case, &case.spec.sizes(case.shape).unwrap());
            let special = data.x.iter().any(|x| !x.is_finite());
            assert_eq!(special, case.data == DataKind::Special, "{case}");
            check(&format!("{algorithm}, {case}"), &|parallelism| {
                allocations_of_calls(&case, &data, options, parallelism)
            })
        });
        assert!(ran.count() > 0, "{algorithm} ran in no case");
        let name = format!("{algorithm}, transposed");
        let ran = check(&name, &|parallelism| allocations_of_transposed(options, parallelism));
        let has_tiles = [Algorithm::Auto, Algorithm::Gemm, Algorithm::Winograd2, Algorithm::Winograd4];
        assert!(ran || !has_tiles.contains(&algorithm), "{name} did not run");
    }
}
