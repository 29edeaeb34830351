//! What each accuracy admits errs by no more than it says: rms errors over a direct convolution's, which no bound for
//! any data tells.

use kernels::Parallelism;
use kernels::conv::{Accuracy, Algorithm, Conv2d, Conv2dBackward, Conv2dSpec, Options, Padding, Shape};
use kernels::internals::admits;
use kernels::reference::{conv2d_backward_data, conv2d_backward_weights, conv2d_forward};
use rayon::prelude::*;

/// The most rms error over a direct convolution's of outputs and of inputs' gradients, and of weights' gradients.
const LIMITS: [(Accuracy, f64, f64); 3] =
    [(Accuracy::Direct, 1.25, 1.25), (Accuracy::Fast, 2.75, 4.5), (Accuracy::Fastest, 12.0, 14.0)];

/// Numbers of channels: errors over a direct convolution's grow as they get fewer, so the fewest of each class.
const CHANNELS: [usize; 3] = [4, 16, 64];

/// Normal deviates, or their positive parts, as behind a ReLU.
fn normal(seed: u32, len: usize, positive: bool) -> Vec<f32> {
    let mut state = u64::from(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) as f64 + 0.5) / (1u64 << 31) as f64
    };
    (0..len)
        .map(|_| {
            let (radius, angle) = ((-2.0 * uniform().ln()).sqrt(), std::f64::consts::TAU * uniform());
            let value = (radius * angle.cos()) as f32;
            if positive { value.max(0.0) } else { value }
        })
        .collect()
}

fn rms(got: &[f32], exact: &[f64]) -> f64 {
    let squares: f64 = got.iter().zip(exact).map(|(&got, exact)| (f64::from(got) - exact).powi(2)).sum();
    (squares / got.len() as f64).sqrt()
}

struct Problem {
    spec: Conv2dSpec,
    shape: Shape,
    x: Vec<f32>,
    w: Vec<f32>,
    dy: Vec<f32>,
    /// Outputs, inputs' gradients and weights' gradients in f64.
    exact: [Vec<f64>; 3],
}

impl Problem {
    fn new(kernel: [usize; 2], stride: [usize; 2], channels: usize, positive: bool) -> Self {
        let [down, along] = kernel.map(|taps| (taps - 1) / 2);
        let spec = Conv2dSpec::new(channels, 32, kernel).stride(stride).padding(Padding {
            top: down,
            bottom: down,
            left: along,
            right: along,
        });
        // Tiles enough for the weights' gradients of short kernels.
        let outputs = if kernel[0] * kernel[1] > 16 { 16 } else { 32 };
        let size = [0, 1].map(|axis| if kernel[axis] == 1 { 8 } else { outputs * stride[axis] });
        let shape = Shape::new(1, size[0], size[1]);
        let sizes = spec.sizes(shape).unwrap();
        let (x, dy) = (normal(1, sizes.x_len, positive), normal(2, sizes.y_len, false));
        let w = normal(3, sizes.w_len, false);
        let wide = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect::<Vec<_>>();
        let mut exact = [vec![0.0; sizes.y_len], vec![0.0; sizes.x_len], vec![0.0; sizes.w_len]];
        let (x64, w64, dy64) = (wide(&x), wide(&w), wide(&dy));
        conv2d_forward(&spec, shape, &x64, &w64, None, None, &mut exact[0]).unwrap();
        conv2d_backward_data(&spec, shape, &dy64, &w64, &mut exact[1]).unwrap();
        conv2d_backward_weights(&spec, shape, &x64, &dy64, &mut exact[2]).unwrap();
        Self { spec, shape, x, w, dy, exact }
    }

    /// The rms errors of an algorithm, where it can do the spec.
    fn errors(&self, algorithm: Algorithm) -> [Option<f64>; 3] {
        let options = Options { algorithm, ..Options::default() };
        let (spec, shape) = (self.spec, self.shape);
        let Ok(plan) = Conv2d::with_options(spec, &self.w, None, shape, options) else { return [None; 3] };
        let mut y = vec![f32::NAN; self.exact[0].len()];
        let mut workspace = vec![0.0; plan.workspace_len(shape, 1).unwrap()];
        plan.forward(shape, &self.x, None, &mut y, &mut workspace, Parallelism::Serial).unwrap();
        let y = Some(rms(&y, &self.exact[0]));
        let Ok(plan) = Conv2dBackward::with_options(spec, &self.w, shape, options) else { return [y, None, None] };
        let mut workspace = vec![0.0; plan.workspace_len(shape, 1).unwrap()];
        let (mut dx, mut dw) = (vec![f32::NAN; self.exact[1].len()], vec![f32::NAN; self.exact[2].len()]);
        plan.data(shape, &self.dy, &mut dx, &mut workspace, Parallelism::Serial).unwrap();
        plan.weights(shape, &self.x, &self.dy, &mut dw, None, &mut workspace, Parallelism::Serial).unwrap();
        [y, Some(rms(&dx, &self.exact[1])), Some(rms(&dw, &self.exact[2]))]
    }
}

/// What an algorithm does wrong for a problem.
fn failures(problem: &Problem, algorithm: Algorithm, direct: [f64; 3]) -> Vec<String> {
    let errors = problem.errors(algorithm);
    let mut failures = Vec::new();
    for (accuracy, limit, weights_limit) in LIMITS {
        let spec = problem.spec.accuracy(accuracy);
        let allowed = admits(&spec, problem.shape, algorithm).unwrap();
        for (at, (name, limit)) in [("y", limit), ("dx", limit), ("dw", weights_limit)].into_iter().enumerate() {
            let ratio = errors[at].map_or(0.0, |error| error / direct[at]);
            if allowed[at] && ratio > limit {
                failures
                    .push(format!("{accuracy:?} admits {algorithm} for {spec}, whose {name} errs {ratio:.2} times"));
            }
            // The table of errors in `docs/convolution.md` is from `cargo test -p kernels --features internals --test
            // winograd_quality -- --nocapture`.
            if accuracy == Accuracy::Direct && ratio > 0.0 {
                println!("{spec} {algorithm}: {name} {ratio:.2}");
            }
        }
    }
    failures
}

#[test]
fn what_an_accuracy_admits_errs_by_no_more_than_it_says() {
    let (one, two) = ([1, 1], [2, 2]);
    let specs = [
        ([3, 3], one),
        ([5, 5], one),
        ([3, 5], one),
        ([1, 3], one),
        ([5, 1], one),
        ([1, 7], one),
        ([3, 3], two),
        ([4, 4], two),
        ([5, 5], two),
        ([7, 7], two),
        ([3, 3], [1, 2]),
        ([1, 3], [1, 2]),
        ([4, 1], [2, 1]),
        // One axis stays direct.
        ([2, 3], one),
        ([3, 9], one),
        ([3, 3], [3, 1]),
    ];
    let failures: Vec<String> = specs
        .into_par_iter()
        .flat_map_iter(|(kernel, stride)| CHANNELS.map(|channels| (kernel, stride, channels)))
        .flat_map_iter(|(kernel, stride, channels)| [false, true].map(|positive| (kernel, stride, channels, positive)))
        .flat_map_iter(|(kernel, stride, channels, positive)| {
            let problem = Problem::new(kernel, stride, channels, positive);
            let direct = problem.errors(Algorithm::Direct).map(Option::unwrap);
            let tiles = Algorithm::ALL.into_iter().filter(|algorithm| algorithm.tile().is_some());
            tiles.flat_map(|algorithm| failures(&problem, algorithm, direct)).collect::<Vec<_>>()
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
