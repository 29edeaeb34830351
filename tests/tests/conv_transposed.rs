//! Transposed convolutions, forward and backward, against loops that add each pixel times the kernel.

use std::sync::atomic::{AtomicU64, Ordering};

use kernels::conv::{Algorithm, ConvTranspose2d, ConvTranspose2dSpec, Layout, Options, Padding, Shape};
use kernels::reference::{WINOGRAD_ROUNDINGS, conv_transpose2d_forward, winograd_shadow_backward_data};
use kernels::{Activation, Error, Isa, Parallelism};
use tests::cores;
use tests::data::random;
use tests::oracle::{Expected, Rule, compare, same_bits};

const CASES: u64 = 4000;

/// A random problem.
#[derive(Debug)]
struct Problem {
    spec: ConvTranspose2dSpec,
    shape: Shape,
    bias: Option<Vec<f32>>,
    x: Vec<f32>,
    weights: Vec<f32>,
    dy: Vec<f32>,
}

/// Floats with full mantissas in [-1, 1), or small integers.
fn values(seed: u64, integers: bool, len: usize) -> Vec<f32> {
    let draw = |i: usize| random(seed, i as u64) >> 40;
    let value = |bits: u64| if integers { (bits % 9) as f32 - 4.0 } else { bits as f32 / (1 << 23) as f32 - 1.0 };
    (0..len).map(|i| value(draw(i))).collect()
}

impl Problem {
    /// Problem number `seed`, if it is a valid one.
    fn new(seed: u64) -> Option<Self> {
        let draw = |index: u64, most: u64| (random(seed, 1000 + index) % most) as usize;
        let groups = [1, 1, 1, 2, 3][draw(0, 5)];
        let pair = |index: u64, most: u64| [draw(index, most), draw(index + 1, most)];
        let one_up = |[a, b]: [usize; 2]| [a + 1, b + 1];
        let stride = one_up(pair(1, 3));
        let padding = Padding { top: draw(3, 3), bottom: draw(4, 3), left: draw(5, 3), right: draw(6, 3) };
        let [in_channels, out_channels] = one_up(pair(7, 9)).map(|channels| channels * groups);
        let depthwise = draw(18, 8) == 0;
        let channels = draw(19, 20) + 1;
        let spec = ConvTranspose2dSpec::new(
            if depthwise { channels } else { in_channels },
            if depthwise { channels } else { out_channels },
            one_up(pair(9, 4)),
        )
        .stride(stride)
        .padding(padding)
        .output_padding([draw(11, 3) % stride[0], draw(12, 3) % stride[1]])
        .dilation(one_up(pair(13, 2)))
        .groups(if depthwise { channels } else { groups })
        .layout(if draw(15, 2) == 0 { Layout::Nchw } else { Layout::Nhwc })
        .activation([Activation::Identity, Activation::Identity, Activation::Relu][draw(16, 3)]);
        let [height, width] = one_up(pair(20, 9));
        let shape = Shape::new(draw(17, 3) + 1, height, width);
        let sizes = spec.sizes(shape).ok()?;
        let integers = seed.is_multiple_of(2);
        Some(Self {
            bias: (draw(22, 2) == 0).then(|| values(seed + 1, integers, spec.out_channels)),
            x: values(seed + 2, integers, sizes.x_len),
            weights: values(seed + 3, integers, sizes.w_len),
            dy: values(seed + 4, integers, sizes.y_len),
            spec,
            shape,
        })
    }

    /// The output of an algorithm, if it is one of Winograd's, with its own bound.
    fn expected_of(&self, algorithm: Algorithm) -> Option<Expected> {
        algorithm.tile()?;
        let mut expected = self.expected();
        let [height, width] = self.spec.sizes(self.shape).unwrap().output;
        let output = Shape::new(self.shape.batch, height, width);
        let mut shadow = vec![0.0; expected.values.len()];
        let conv = self.spec.gradient_of();
        winograd_shadow_backward_data(&conv, output, algorithm, &self.x, &self.weights, &mut shadow).unwrap();
        for (magnitude, shadow) in expected.magnitudes.iter_mut().zip(shadow) {
            *magnitude += shadow;
        }
        expected.terms += WINOGRAD_ROUNDINGS;
        Some(expected)
    }

    /// The output in f64, and the sum of the magnitudes of its terms.
    fn expected(&self) -> Expected {
        let run = |convert: fn(f32) -> f64| {
            let all = |values: &[f32]| values.iter().map(|&value| convert(value)).collect::<Vec<f64>>();
            let mut y = vec![0.0; self.dy.len()];
            let bias = self.bias.as_deref().map(all);
            let (x, weights) = (all(&self.x), all(&self.weights));
            conv_transpose2d_forward(&self.spec, self.shape, &x, &weights, bias.as_deref(), &mut y).unwrap();
            y
        };
        let taps = self.spec.kernel[0] * self.spec.kernel[1];
        Expected {
            values: run(f64::from),
            magnitudes: run(|value| f64::from(value.abs())),
            terms: self.spec.in_channels / self.spec.groups * taps + 1,
            activation: self.spec.activation,
        }
    }

    fn plan(&self, algorithm: Algorithm, isa: Isa) -> Result<ConvTranspose2d, Error> {
        let options = Options { isa: Some(isa), algorithm, ..Options::default() };
        ConvTranspose2d::with_options(self.spec, &self.weights, self.bias.as_deref(), self.shape, options)
    }

    fn forward(&self, plan: &ConvTranspose2d, slots: usize, parallelism: Parallelism) -> Vec<f32> {
        let mut y = vec![f32::NAN; self.dy.len()];
        let mut workspace = vec![f32::NAN; plan.workspace_len(self.shape, slots).unwrap()];
        plan.forward(self.shape, &self.x, &mut y, &mut workspace, parallelism).unwrap();
        y
    }
}

#[test]
fn forward_agrees_with_the_definition() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let judged = AtomicU64::new(0);
    cores::for_each(0..CASES, |seed| {
        let Some(problem) = Problem::new(seed * 10) else { return };
        let expected = problem.expected();
        let rule = if (seed * 10).is_multiple_of(2) { Rule::Exact { quantum: 1.0 } } else { Rule::Bound };
        for isa in Isa::available() {
            for algorithm in Algorithm::ALL.into_iter().chain([Algorithm::Auto]) {
                let Ok(plan) = problem.plan(algorithm, isa) else { continue };
                let y = problem.forward(&plan, 1, Parallelism::Serial);
                let verdict = match problem.expected_of(plan.algorithm()) {
                    Some(expected) => compare("y", &y, &expected, Rule::Bound),
                    None => compare("y", &y, &expected, rule),
                };
                if let Err(why) = verdict {
                    panic!("{algorithm} on {isa}: {why}\n  problem {seed}: {:?} {:?}", problem.spec, problem.shape);
                }
                let threads = pool.install(|| problem.forward(&plan, 3, Parallelism::Current));
                same_bits("y", &threads, &y).unwrap();
                judged.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let judged = judged.into_inner();
    assert!(judged > CASES, "only {judged} results were judged");
}

/// `<dy, T x> = <dx, x> = <dw, w>`: the gradients belong to the linear map, exactly on small integers.
#[test]
fn gradients_are_those_of_the_linear_map() {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    for seed in 0..CASES / 4 {
        let Some(mut problem) = Problem::new(seed * 20) else { continue };
        problem.spec.activation = Activation::Identity;
        problem.bias = None;
        let (shape, channels) = (problem.shape, problem.spec.out_channels);
        let plan = problem.plan(Algorithm::Direct, Isa::choose().unwrap()).unwrap();
        let y = problem.forward(&plan, 1, Parallelism::Serial);
        let mut workspace = vec![f32::NAN; plan.workspace_len(shape, 1).unwrap()];
        let (mut dx, mut dw) = (vec![f32::NAN; problem.x.len()], vec![f32::NAN; problem.weights.len()]);
        let mut db = vec![f32::NAN; channels];
        plan.backward_data(shape, &problem.dy, &mut dx, &mut workspace, Parallelism::Serial).unwrap();
        let (x, dy) = (&problem.x, &problem.dy);
        plan.backward_weights(shape, x, dy, &mut dw, Some(&mut db), &mut workspace, Parallelism::Serial).unwrap();
        let wanted = dot(dy, &y);
        assert_eq!(dot(&dx, x), wanted, "dx, problem {seed}: {:?} {shape:?}", problem.spec);
        assert_eq!(dot(&dw, &problem.weights), wanted, "dw, problem {seed}: {:?} {shape:?}", problem.spec);
        let sum = |values: &[f32]| values.iter().map(|&value| f64::from(value)).sum::<f64>();
        assert_eq!(sum(&db), sum(dy), "db, problem {seed}: {:?} {shape:?}", problem.spec);
    }
}

#[test]
fn a_stride_beyond_the_kernel_leaves_the_bias_in_the_gaps() {
    let spec =
        ConvTranspose2dSpec::new(1, 1, [1, 1]).stride([2, 3]).output_padding([1, 2]).activation(Activation::Relu);
    let shape = Shape::new(1, 2, 1);
    let plan = ConvTranspose2d::new(spec, &[1.0], Some(&[0.5]), shape).unwrap();
    let mut workspace = vec![0.0; plan.workspace_len(shape, 1).unwrap()];
    let mut y = [f32::NAN; 12];
    plan.forward(shape, &[1.0, -7.0], &mut y, &mut workspace, Parallelism::Serial).unwrap();
    assert_eq!(y, [1.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5]);
}

#[test]
fn weights_that_are_not_finite_reach_the_outputs_of_their_pixels_alone() {
    let spec = ConvTranspose2dSpec::new(1, 1, [1, 3]).padding(Padding { left: 1, right: 1, top: 0, bottom: 0 });
    let shape = Shape::new(1, 1, 3);
    let plan = ConvTranspose2d::new(spec, &[f32::NAN, 1.0, 1.0], Some(&[1.0]), shape).unwrap();
    let mut workspace = vec![0.0; plan.workspace_len(shape, 1).unwrap()];
    let mut y = [0.0; 3];
    plan.forward(shape, &[1.0, 2.0, 3.0], &mut y, &mut workspace, Parallelism::Serial).unwrap();
    // The last output gets nothing from a pixel to its right.
    assert!(y[0].is_nan() && y[1].is_nan());
    assert_eq!(y[2], 6.0);
}

#[test]
fn what_does_not_fit_is_refused() {
    let spec = ConvTranspose2dSpec::new(4, 2, [3, 3]);
    let size = |spec: ConvTranspose2dSpec, input| spec.output_size(input);
    assert!(matches!(
        size(spec.output_padding([1, 0]), [2, 2]),
        Err(Error::Invalid { argument: "output_padding", .. })
    ));
    assert!(matches!(size(spec, [0, 2]), Err(Error::Invalid { argument: "height", .. })));
    assert!(matches!(size(spec.padding(Padding::all(2)), [2, 1]), Err(Error::Invalid { argument: "padding", .. })));
    assert!(matches!(size(spec.stride([usize::MAX / 8, 1]), [100, 1]), Err(Error::Overflow { .. })));
    let shape = Shape::new(1, 4, 4);
    let weights = [0.0; 4 * 2 * 9];
    assert!(ConvTranspose2d::new(spec, &weights[1..], None, shape).is_err());
    assert!(ConvTranspose2d::new(spec, &weights, Some(&[0.0; 4]), shape).is_err());
    let plan = ConvTranspose2d::new(spec, &weights, None, shape).unwrap();
    let mut workspace = vec![0.0; plan.workspace_len(shape, 1).unwrap()];
    let mut y = [7.0; 2 * 36];
    assert!(plan.forward(shape, &[0.0; 4 * 15], &mut y, &mut workspace, Parallelism::Serial).is_err());
    assert_eq!(y, [7.0; 2 * 36]);
}
