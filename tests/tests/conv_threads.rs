//! Convolutions that are long enough to be spread over threads: small ones stay on the calling thread.

use kernels::conv::{Conv2d, Conv2dBackward, Layout};
use kernels::{Parallelism, Team, TeamOptions};
use tests::case::ConvCase;
use tests::check::{Bench, Ways, check_ways};
use tests::data::{ConvData, DataKind};
use tests::oracle::same_bits;
use tests::stats::Stats;
use tests::subject::Library;

/// Checks a long case every way; the bits must not depend on the number of threads.
fn holds(case: ConvCase) {
    tests::crash::report_faults();
    let case = case.data(DataKind::Uniform);
    let ways = Ways::all(&case).on_threads(&[1, 2, 3, 7]);
    if let Err(failure) = check_ways(&Library, &case, &ways, &mut Bench::new(), &mut Stats::default()) {
        panic!("{failure}");
    }
}

#[test]
fn a_batch_of_small_images() {
    holds(ConvCase::new(16, 32, [3, 3]).batch(16).image(15, 17).padding(1, 1, 1, 1).with_bias().relu());
}

#[test]
fn one_image_with_many_channels() {
    holds(ConvCase::new(96, 130, [3, 3]).image(12, 13).padding(1, 1, 1, 1).nhwc().with_residual());
}

#[test]
fn a_pointwise_convolution() {
    holds(ConvCase::new(129, 257, [1, 1]).image(21, 19).batch(2));
}

#[test]
fn a_pointwise_convolution_with_a_stride() {
    holds(ConvCase::new(120, 136, [1, 1]).image(29, 27).stride(2, 2).batch(3));
}

#[test]
fn a_first_layer() {
    holds(ConvCase::new(3, 33, [7, 7]).image(65, 67).stride(2, 2).padding(3, 3, 3, 3).batch(3).with_bias());
}

#[test]
fn a_depthwise_convolution() {
    holds(ConvCase::new(257, 257, [3, 3]).image(57, 55).padding(1, 1, 1, 1).groups(257));
}

#[test]
fn a_grouped_convolution() {
    holds(ConvCase::new(64, 64, [3, 3]).image(40, 41).padding(1, 1, 1, 1).groups(8).batch(2).nhwc());
}

#[test]
fn a_convolution_of_stride_two_with_many_channels() {
    holds(ConvCase::new(64, 72, [3, 3]).image(18, 19).stride(2, 2).padding(1, 1, 1, 1).batch(2));
}

#[test]
fn a_convolution_along_rows_alone() {
    holds(ConvCase::new(96, 96, [1, 7]).image(17, 47).padding(0, 0, 3, 3));
}

#[test]
fn a_line_of_sound() {
    holds(ConvCase::new(16, 48, [1, 9]).image(1, 4001).stride(1, 4).padding(0, 0, 4, 4).with_bias());
    holds(ConvCase::new(9, 24, [3, 9]).image(3, 2001).padding(0, 0, 4, 4));
    holds(ConvCase::new(9, 24, [3, 9]).image(3, 2001).padding(0, 0, 4, 4).nhwc());
    holds(ConvCase::new(30, 24, [1, 2]).image(1, 3001).dilation(1, 16).padding(0, 0, 16, 0).nhwc());
}

#[test]
fn a_convolution_whose_taps_are_apart() {
    holds(ConvCase::new(64, 48, [3, 3]).image(23, 25).dilation(3, 4).padding(3, 3, 4, 4).batch(2).with_bias());
}

/// A problem, its data and its plans.
struct Planned {
    case: ConvCase,
    data: ConvData,
    forward: Conv2d,
    backward: Conv2dBackward,
}

impl Planned {
    /// A problem of which threads get equal parts.
    fn new(layout: Layout) -> Self {
        let mut case = ConvCase::new(24, 40, [3, 3]).image(28, 30).padding(1, 1, 1, 1).batch(4).data(DataKind::Uniform);
        case.spec.layout = layout;
        let data = ConvData::new(&case, &case.spec.sizes(case.shape).unwrap());
        let forward = Conv2d::new(case.spec, &data.weights, None, case.shape).unwrap();
        let backward = Conv2dBackward::new(case.spec, &data.weights, case.shape).unwrap();
        Self { case, data, forward, backward }
    }

    /// `y`, `dx` and `dw`.
    fn run(&self, parallelism: Parallelism, slots: usize) -> [Vec<f32>; 3] {
        let (shape, data) = (self.case.shape, &self.data);
        let sizes = self.case.spec.sizes(shape).unwrap();
        let mut y = vec![f32::NAN; sizes.y_len];
        let (mut dx, mut dw) = (vec![f32::NAN; sizes.x_len], vec![f32::NAN; sizes.w_len]);
        let mut workspace = vec![f32::NAN; self.forward.workspace_len(shape, slots).unwrap()];
        self.forward.forward(shape, &data.x, None, &mut y, &mut workspace, parallelism).unwrap();
        let mut workspace = vec![f32::NAN; self.backward.workspace_len(shape, slots).unwrap()];
        self.backward.both(shape, &data.x, &data.dy, &mut dx, &mut dw, None, &mut workspace, parallelism).unwrap();
        [y, dx, dw]
    }
}

fn same_results(mine: &[Vec<f32>; 3], expected: &[Vec<f32>; 3]) {
    for (name, (mine, expected)) in ["y", "dx", "dw"].into_iter().zip(mine.iter().zip(expected)) {
        same_bits(name, mine, expected).unwrap();
    }
}

#[test]
fn a_plan_serves_eight_threads_at_once() {
    for layout in [Layout::Nchw, Layout::Nhwc] {
        let planned = Planned::new(layout);
        let alone = planned.run(Parallelism::Serial, 1);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (alone, planned, pool) = (&alone, &planned, &pool);
                scope.spawn(move || {
                    // From outside of any pool, and from inside of one that all share.
                    let mine = if thread % 2 == 0 {
                        planned.run(Parallelism::Current, 2)
                    } else {
                        pool.install(|| planned.run(Parallelism::Current, 2))
                    };
                    same_results(&mine, alone);
                });
            }
        });
    }
}

#[test]
fn a_team_gives_the_bits_of_one_thread() {
    for layout in [Layout::Nchw, Layout::Nhwc] {
        let planned = Planned::new(layout);
        let alone = planned.run(Parallelism::Serial, 1);
        for helpers in [1, 2, 6] {
            rayon::ThreadPoolBuilder::new().num_threads(helpers + 1).build().unwrap().install(|| {
                Team::with(TeamOptions::new().helpers(helpers), |team| {
                    same_results(&planned.run(Parallelism::Team(team), helpers + 1), &alone);
                });
            });
        }
    }
}
