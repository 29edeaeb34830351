//! Transposed convolutions, forward and backward, against loops that add each pixel times the kernel.

use std::sync::atomic::{AtomicU64, Ordering};

use kernels::conv::{
    Accuracy, Algorithm, Conv2d, ConvTranspose1dSpec, ConvTranspose2d, ConvTranspose2dSpec, Layout, Options, Padding,
    Shape,
};
use kernels::reference::{
    WINOGRAD_ROUNDINGS, conv_transpose2d_forward, conv2d_backward_weights, conv2d_forward, winograd_shadow,
    winograd_shadow_backward_data, winograd_shadow_backward_weights,
};
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
    residual: Option<Vec<f32>>,
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
            residual: (draw(23, 3) == 0).then(|| values(seed + 5, integers, sizes.y_len)),
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
        let mut shadow = vec![0.0; expected.values.len()];
        let conv = self.spec.gradient_of();
        winograd_shadow_backward_data(&conv, self.output(), algorithm, &self.x, &self.weights, &mut shadow).unwrap();
        add_shadow(&mut expected, &shadow);
        Some(expected)
    }

    /// The shape of the output.
    fn output(&self) -> Shape {
        let [height, width] = self.spec.sizes(self.shape).unwrap().output;
        Shape::new(self.shape.batch, height, width)
    }

    /// The gradients of input, weights and bias that some algorithms of input and weights must give: those of the
    /// convolution that reads `dy`.
    fn expected_gradients(&self, [data, weights]: [Algorithm; 2]) -> [Expected; 3] {
        let (conv, output) = (self.spec.gradient_of(), self.output());
        let all = |convert: fn(f32) -> f64| {
            let wide = |values: &[f32]| values.iter().map(|&value| convert(value)).collect::<Vec<f64>>();
            let (x, w, dy) = (wide(&self.x), wide(&self.weights), wide(&self.dy));
            let (mut dx, mut dw, mut db) = (vec![0.0; x.len()], vec![0.0; w.len()], vec![0.0; self.spec.out_channels]);
            conv2d_forward(&conv, output, &dy, &w, None, None, &mut dx).unwrap();
            conv2d_backward_weights(&conv, output, &dy, &x, &mut dw).unwrap();
            let pixels = output.height * output.width;
            for (at, dy) in dy.iter().enumerate() {
                let channel = if self.spec.layout == Layout::Nchw { at / pixels } else { at };
                db[channel % self.spec.out_channels] += dy;
            }
            [dx, dw, db]
        };
        let taps = self.spec.kernel[0] * self.spec.kernel[1];
        let terms = [
            self.spec.out_channels / self.spec.groups * taps,
            self.shape.batch * self.shape.height * self.shape.width,
            output.batch * output.height * output.width,
        ];
        let (values, magnitudes) = (all(f64::from), all(|value| f64::from(value.abs())));
        let mut terms = terms.into_iter();
        let mut expected = values.into_iter().zip(magnitudes).map(|(values, magnitudes)| Expected {
            values,
            magnitudes,
            terms: terms.next().unwrap(),
            activation: Activation::Identity,
        });
        let [mut dx, mut dw, db] = [0; 3].map(|_| expected.next().unwrap());
        if data.tile().is_some() {
            let mut shadow = vec![0.0; self.x.len()];
            winograd_shadow(&conv, output, data, &self.dy, &self.weights, &mut shadow).unwrap();
            add_shadow(&mut dx, &shadow);
        }
        if weights.tile().is_some() {
            let mut shadow = vec![0.0; self.weights.len()];
            winograd_shadow_backward_weights(&conv, output, weights, &self.dy, &self.x, &mut shadow).unwrap();
            add_shadow(&mut dw, &shadow);
        }
        [dx, dw, db]
    }

    /// The output in f64, and the sum of the magnitudes of its terms.
    fn expected(&self) -> Expected {
        let run = |convert: fn(f32) -> f64| {
            let all = |values: &[f32]| values.iter().map(|&value| convert(value)).collect::<Vec<f64>>();
            let mut y = vec![0.0; self.dy.len()];
            let bias = self.bias.as_deref().map(all);
            let (x, weights) = (all(&self.x), all(&self.weights));
            conv_transpose2d_forward(&self.spec, self.shape, &x, &weights, bias.as_deref(), &mut y).unwrap();
            for (y, &residual) in y.iter_mut().zip(self.residual.iter().flatten()) {
                *y += convert(residual);
            }
            y
        };
        let taps = self.spec.kernel[0] * self.spec.kernel[1];
        Expected {
            values: run(f64::from),
            magnitudes: run(|value| f64::from(value.abs())),
            terms: self.spec.in_channels / self.spec.groups * taps + 2,
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
        plan.forward(self.shape, &self.x, self.residual.as_deref(), &mut y, &mut workspace, parallelism).unwrap();
        y
    }

    /// The gradients of input, weights and bias, in one call or in two.
    fn backward(&self, plan: &ConvTranspose2d, in_one: bool, slots: usize, parallelism: Parallelism) -> [Vec<f32>; 3] {
        let [mut dx, mut dw, mut db] =
            [self.x.len(), self.weights.len(), self.spec.out_channels].map(|len| vec![f32::NAN; len]);
        let mut workspace = vec![f32::NAN; plan.workspace_len(self.shape, slots).unwrap()];
        let (shape, x, dy, room) = (self.shape, &self.x, &self.dy, &mut workspace);
        if in_one {
            plan.both(shape, x, dy, &mut dx, &mut dw, Some(&mut db), room, parallelism).unwrap();
        } else {
            plan.backward_data(shape, dy, &mut dx, room, parallelism).unwrap();
            plan.backward_weights(shape, x, dy, &mut dw, Some(&mut db), room, parallelism).unwrap();
        }
        [dx, dw, db]
    }
}

/// Makes what is expected of a direct algorithm what is expected of a Winograd algorithm.
fn add_shadow(expected: &mut Expected, shadow: &[f64]) {
    for (magnitude, shadow) in expected.magnitudes.iter_mut().zip(shadow) {
        *magnitude += shadow;
    }
    expected.terms += WINOGRAD_ROUNDINGS;
}

#[test]
fn forward_agrees_with_the_definition() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let judged = AtomicU64::new(0);
    cores::for_each(0..CASES, |seed| {
        // Integers and floats in turn.
        let Some(problem) = Problem::new(seed * 10 + seed % 2) else { return };
        let expected = problem.expected();
        let rule = if seed.is_multiple_of(2) { Rule::Exact { quantum: 1.0 } } else { Rule::Bound };
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

#[test]
fn gradients_of_all_algorithms_agree_with_the_definition_in_one_call_and_in_two() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    let judged = AtomicU64::new(0);
    cores::for_each(0..CASES / 8, |seed| {
        let Some(problem) = Problem::new(seed * 70 + 7 * (seed % 2)) else { return };
        let integers = seed.is_multiple_of(2);
        for isa in Isa::available() {
            for algorithm in Algorithm::ALL.into_iter().chain([Algorithm::Auto]) {
                let Ok(plan) = problem.plan(algorithm, isa) else { continue };
                let repeat = format!("{algorithm} on {isa}, problem {seed}: {:?} {:?}", problem.spec, problem.shape);
                let gradients = problem.backward(&plan, true, 1, Parallelism::Serial);
                let chosen = plan.gradient_algorithms();
                let expected = problem.expected_gradients(chosen);
                for (which, name) in ["dx", "dw", "db"].into_iter().enumerate() {
                    let is_winograd = which < 2 && chosen[which].tile().is_some();
                    let rule = if integers && !is_winograd { Rule::Exact { quantum: 1.0 } } else { Rule::Bound };
                    if let Err(why) = compare(name, &gradients[which], &expected[which], rule) {
                        panic!("{repeat}: {why}");
                    }
                }
                let separate = problem.backward(&plan, false, 1, Parallelism::Serial);
                let threads = pool.install(|| problem.backward(&plan, true, 3, Parallelism::Current));
                for (which, name) in ["dx", "dw", "db"].into_iter().enumerate() {
                    for (how, other) in [("in two calls", &separate), ("on 3 threads", &threads)] {
                        if let Err(why) = same_bits(name, &other[which], &gradients[which]) {
                            panic!("{repeat}, {how}: {why}");
                        }
                    }
                }
                judged.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let judged = judged.into_inner();
    assert!(judged > CASES / 8, "only {judged} plans were judged");
}

#[test]
fn a_combined_call_without_room_writes_nothing() {
    // The gradient of the input, a convolution of its own, needs the most.
    let spec = ConvTranspose2dSpec::new(8, 8, [3, 3]).stride([2, 2]).padding(Padding::all(1));
    let shape = Shape::new(1, 9, 9);
    let sizes = spec.sizes(shape).unwrap();
    let weights = vec![1.0; sizes.w_len];
    for algorithm in Algorithm::ALL {
        let options = Options { algorithm, ..Options::default() };
        let Ok(plan) = ConvTranspose2d::with_options(spec, &weights, None, shape, options) else { continue };
        let mut workspace = vec![0.0; plan.workspace_len(shape, 1).unwrap()];
        let Some(short) = workspace.len().checked_sub(1) else { continue };
        let (x, dy) = (vec![1.0; sizes.x_len], vec![1.0; sizes.y_len]);
        let (mut dx, mut dw) = (vec![7.0; sizes.x_len], vec![7.0; sizes.w_len]);
        let mut db = [7.0; 8];
        let (serial, db_room) = (Parallelism::Serial, Some(db.as_mut_slice()));
        let refused = plan.both(shape, &x, &dy, &mut dx, &mut dw, db_room, &mut workspace[..short], serial);
        // The forward pass may be what needs the most.
        if refused.is_err() {
            let untouched = dx.iter().chain(&dw).chain(&db).all(|&element| element == 7.0);
            assert!(untouched, "{algorithm}");
        }
        let short_dx = &mut dx[1..];
        assert!(plan.both(shape, &x, &dy, short_dx, &mut dw, None, &mut workspace, serial).is_err(), "{algorithm}");
    }
}

#[test]
fn accuracy_bounds_the_choice_as_it_does_for_the_convolution() {
    // Large enough for Winograd's algorithms to be the fastest where they are allowed.
    let shape = Shape::new(4, 56, 56);
    let weights = vec![0.0; 128 * 128 * 9];
    let mut amplifications = Vec::new();
    for accuracy in [Accuracy::Direct, Accuracy::Fast, Accuracy::Fastest] {
        let spec = ConvTranspose2dSpec::new(128, 128, [3, 3]).padding(Padding::all(1)).accuracy(accuracy);
        assert_eq!(spec.gradient_of().accuracy, accuracy);
        let plan = ConvTranspose2d::new(spec, &weights, None, shape).unwrap();
        let conv = Conv2d::new(spec.gradient_of(), &weights, None, shape).unwrap();
        assert_eq!(plan.gradient_algorithms()[0], conv.algorithm(), "{accuracy:?}");
        amplifications.push(plan.algorithm().amplification(&spec.gradient_of()));
    }
    assert!(amplifications[0] < amplifications[1] && amplifications[1] <= amplifications[2], "{amplifications:?}");
    assert_eq!(ConvTranspose2dSpec::new(1, 1, [1, 1]).accuracy, Accuracy::Fast);
}

#[test]
fn a_line_is_an_image_of_one_row() {
    let line = ConvTranspose1dSpec::new(3, 2, 4).stride(3).padding([1, 2]).output_padding(1).dilation(2);
    let spec = ConvTranspose2dSpec::from(line.layout(Layout::Nhwc).activation(Activation::Relu));
    let padding = Padding { top: 0, bottom: 0, left: 1, right: 2 };
    let expected = ConvTranspose2dSpec::new(3, 2, [1, 4]).stride([1, 3]).padding(padding).output_padding([0, 1]);
    let expected = expected.dilation([1, 2]).layout(Layout::Nhwc).activation(Activation::Relu);
    assert_eq!(spec, expected);
    // (5 - 1) * 3 - 3 + 7 + 1
    assert_eq!(spec.output_size([1, 5]), Ok([1, 17]));
}

/// `<dy, T x> = <dx, x> = <dw, w>`: the gradients belong to the linear map, exactly on small integers.
#[test]
fn gradients_are_those_of_the_linear_map() {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    for seed in 0..CASES / 4 {
        let Some(mut problem) = Problem::new(seed * 20) else { continue };
        problem.spec.activation = Activation::Identity;
        problem.bias = None;
        problem.residual = None;
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
    plan.forward(shape, &[1.0, -7.0], None, &mut y, &mut workspace, Parallelism::Serial).unwrap();
    assert_eq!(y, [1.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.0, 0.5, 0.5, 0.5, 0.5, 0.5]);
}

#[test]
fn weights_that_are_not_finite_reach_the_outputs_of_their_pixels_alone() {
    let spec = ConvTranspose2dSpec::new(1, 1, [1, 3]).padding(Padding { left: 1, right: 1, top: 0, bottom: 0 });
    let shape = Shape::new(1, 1, 3);
    let plan = ConvTranspose2d::new(spec, &[f32::NAN, 1.0, 1.0], Some(&[1.0]), shape).unwrap();
    let mut workspace = vec![0.0; plan.workspace_len(shape, 1).unwrap()];
    let mut y = [0.0; 3];
    plan.forward(shape, &[1.0, 2.0, 3.0], None, &mut y, &mut workspace, Parallelism::Serial).unwrap();
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
    let serial = Parallelism::Serial;
    assert!(plan.forward(shape, &[0.0; 4 * 15], None, &mut y, &mut workspace, serial).is_err());
    let error = plan.forward(shape, &[0.0; 4 * 16], Some(&[0.0; 71]), &mut y, &mut workspace, serial).unwrap_err();
    assert_eq!(error, Error::Length { argument: "residual", expected: 72, given: 71 });
    assert_eq!(y, [7.0; 2 * 36]);
}
