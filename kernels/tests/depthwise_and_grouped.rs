//! The kernels for few channels a group, of every kernel size, stride and dilation, against the loops of the reference.

use kernels::conv::{Algorithm, Conv2d, Conv2dBackward, Conv2dSpec, Layout, Options, Padding, Shape};
use kernels::{Activation, Error, Execution, Isa, Parallelism, reference};
use random::Random;

mod random;

/// The algorithms.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Family {
    Depthwise,
    Grouped,
}
use Family::*;

fn options(family: Family, isa: Isa) -> Options {
    let algorithm = match family {
        Depthwise => Algorithm::Depthwise,
        Grouped => Algorithm::Grouped,
    };
    Options { isa: Some(isa), algorithm, ..Options::default() }
}

fn forward(
    family: Family,
    isa: Isa,
    spec: &Conv2dSpec,
    shape: Shape,
    (x, w): (&[f32], &[f32]),
    bias: Option<&[f32]>,
    residual: Option<&[f32]>,
    slots: usize,
) -> Vec<f32> {
    let plan = Conv2d::with_options(*spec, w, bias, shape, options(family, isa)).unwrap();
    assert_eq!(plan.algorithm(), options(family, isa).algorithm);
    let mut y = vec![f32::NAN; spec.sizes(shape).unwrap().y_len];
    let mut workspace = vec![f32::NAN; plan.workspace_len(shape, slots).unwrap()];
    plan.forward(shape, x, residual, &mut y, &mut workspace, on(slots)).unwrap();
    y
}

/// As many threads as slots, on pools of so many.
fn on(slots: usize) -> Parallelism<'static> {
    if slots == 1 { Parallelism::Serial } else { Parallelism::Current }
}

fn backward(family: Family, isa: Isa, spec: &Conv2dSpec, shape: Shape, w: &[f32]) -> Conv2dBackward {
    let plan = Conv2dBackward::with_options(*spec, w, shape, options(family, isa)).unwrap();
    assert_eq!(plan.algorithms(), [options(family, isa).algorithm; 2]);
    plan
}

/// Runs one gradient with as little workspace as it says that it needs; for several slots, with the plan's.
fn run_within(plan: &Conv2dBackward, shape: Shape, slots: usize, mut run: impl FnMut(&mut [f32]) -> Result<(), Error>) {
    let least = match run(&mut []) {
        Ok(()) if slots == 1 => return,
        Err(Error::Length { argument: "workspace", expected, .. }) if slots == 1 => expected,
        _ => plan.workspace_len(shape, slots).unwrap(),
    };
    run(&mut vec![f32::NAN; least]).unwrap();
}

fn backward_data(
    family: Family,
    isa: Isa,
    spec: &Conv2dSpec,
    shape: Shape,
    dy: &[f32],
    w: &[f32],
    slots: usize,
) -> Vec<f32> {
    let plan = backward(family, isa, spec, shape, w);
    let mut dx = vec![f32::NAN; spec.sizes(shape).unwrap().x_len];
    run_within(&plan, shape, slots, |workspace| plan.data(shape, dy, &mut dx, workspace, on(slots)));
    dx
}

fn backward_weights(
    family: Family,
    isa: Isa,
    spec: &Conv2dSpec,
    shape: Shape,
    x: &[f32],
    dy: &[f32],
    slots: usize,
) -> Vec<f32> {
    let w_len = spec.sizes(shape).unwrap().w_len;
    let plan = backward(family, isa, spec, shape, &vec![0.0; w_len]);
    let mut dw = vec![f32::NAN; w_len];
    run_within(&plan, shape, slots, |workspace| plan.weights(shape, x, dy, &mut dw, None, workspace, on(slots)));
    dw
}

/// A spec and a shape that fit each other.
fn case(random: &mut Random, family: Family) -> (Conv2dSpec, Shape) {
    loop {
        let groups = 1 + random.below(20);
        let (ic, oc) = match family {
            Depthwise => (1, 1 + random.below(2) * random.below(4)),
            Grouped => (1 + random.below(5), 1 + random.below(9)),
        };
        let common = random.below(2) == 0;
        let kernel = if common { [3, 3] } else { [1 + random.below(7), 1 + random.below(7)] };
        let mut pair = |most: usize| if common { [1, 1] } else { [1 + random.below(most), 1 + random.below(most)] };
        let (mut stride, dilation) = (pair(3), pair(3));
        if common && random.below(2) == 0 {
            stride = [2, 2];
        }
        let padding =
            Padding { top: random.below(4), bottom: random.below(4), left: random.below(4), right: random.below(4) };
        let padding = if random.below(2) == 0 { Padding::all(1) } else { padding };
        let layout = if random.below(3) == 0 { Layout::Nhwc } else { Layout::Nchw };
        let spec = Conv2dSpec::new(groups * ic, groups * oc, kernel)
            .stride(stride)
            .dilation(dilation)
            .padding(padding)
            .groups(groups)
            .layout(layout);
        let height = 1 + if random.below(8) == 0 { random.below(90) } else { random.below(20) };
        let shape = Shape::new(1 + random.below(3), height, 1 + random.below(44));
        if spec.sizes(shape).is_ok() {
            return (spec, shape);
        }
    }
}

const CASES: usize = 300;

#[test]
fn integers_come_out_exact() {
    let mut random = Random(1);
    for index in 0..CASES {
        for family in [Depthwise, Grouped] {
            let (spec, shape) = case(&mut random, family);
            let sizes = spec.sizes(shape).unwrap();
            let (x, w) = (random.integers(sizes.x_len), random.integers(sizes.w_len));
            let (dy, bias) = (random.integers(sizes.y_len), random.integers(spec.out_channels));
            let bias = (index % 2 == 0).then_some(&bias[..]);
            let residual = (index % 3 == 0).then_some(&dy[..]);
            let mut y = vec![0.0; sizes.y_len];
            reference::conv2d_forward(&spec, shape, &x, &w, bias, residual, &mut y).unwrap();
            let mut dx = vec![0.0; sizes.x_len];
            reference::conv2d_backward_data(&spec, shape, &dy, &w, &mut dx).unwrap();
            let mut dw = vec![0.0; sizes.w_len];
            reference::conv2d_backward_weights(&spec, shape, &x, &dy, &mut dw).unwrap();
            for isa in Isa::available() {
                let line = format!("{family:?} {isa} {spec} {shape:?}");
                assert_eq!(forward(family, isa, &spec, shape, (&x, &w), bias, residual, 1), y, "forward {line}");
                assert_eq!(backward_data(family, isa, &spec, shape, &dy, &w, 1), dx, "backward-data {line}");
                assert_eq!(backward_weights(family, isa, &spec, shape, &x, &dy, 1), dw, "backward-weights {line}");
            }
        }
    }
}

#[test]
fn stacks_end_where_rows_of_any_width_end() {
    let mut random = Random(7);
    for width in 1..=70 {
        for taps in [3, 4, 5, 7, 9] {
            let mut side = || random.below(taps + 1);
            let padding = Padding { top: side(), bottom: side(), left: side(), right: side() };
            let spec = Conv2dSpec::new(2, 2, [1 + width % 8, taps]).padding(padding).groups(2);
            let shape = Shape::new(1, 3 + width % 11, width);
            let Ok(sizes) = spec.sizes(shape) else { continue };
            let (x, w) = (random.integers(sizes.x_len), random.integers(sizes.w_len));
            let dy = random.integers(sizes.y_len);
            let mut y = vec![0.0; sizes.y_len];
            reference::conv2d_forward(&spec, shape, &x, &w, None, None, &mut y).unwrap();
            let mut dx = vec![0.0; sizes.x_len];
            reference::conv2d_backward_data(&spec, shape, &dy, &w, &mut dx).unwrap();
            for isa in Isa::available() {
                let line = format!("{isa} {spec} {shape:?}");
                let given = forward(Depthwise, isa, &spec, shape, (&x, &w), None, None, 1);
                assert!(given == y, "forward {line}");
                assert!(backward_data(Depthwise, isa, &spec, shape, &dy, &w, 1) == dx, "backward-data {line}");
            }
        }
    }
}

#[test]
fn squares_end_where_rows_of_any_width_end() {
    let mut random = Random(11);
    for width in (1..=40).chain((41..=150).step_by(7)) {
        for (taps, stride) in [(3, 1), (3, 2), (5, 2)] {
            let mut side = || random.below(taps + 1);
            let padding = Padding { top: side(), bottom: side(), left: side(), right: side() };
            let spec = Conv2dSpec::new(2, 2, [taps, taps]).stride([stride, stride]).padding(padding).groups(2);
            let shape = Shape::new(1, 1 + width % 12, width);
            let Ok(sizes) = spec.sizes(shape) else { continue };
            let (x, w) = (random.integers(sizes.x_len), random.integers(sizes.w_len));
            let dy = random.integers(sizes.y_len);
            let (mut y, mut dx) = (vec![0.0; sizes.y_len], vec![0.0; sizes.x_len]);
            reference::conv2d_forward(&spec, shape, &x, &w, None, None, &mut y).unwrap();
            reference::conv2d_backward_data(&spec, shape, &dy, &w, &mut dx).unwrap();
            for isa in Isa::available() {
                let given = forward(Depthwise, isa, &spec, shape, (&x, &w), None, None, 1);
                assert!(given == y, "{isa} {spec} {shape:?}");
                let given = backward_data(Depthwise, isa, &spec, shape, &dy, &w, 1);
                assert!(given == dx, "backward-data {isa} {spec} {shape:?}");
            }
        }
    }
}

/// The rows of a pair see the same source rows, and a band of a thread may begin with its second row.
#[cfg(feature = "rayon")]
#[test]
fn gradients_at_a_stride_of_2_have_the_same_bits_in_bands_of_any_rows() {
    use kernels::{Team, TeamOptions};
    let mut random = Random(12);
    for helpers in [1, 2, 6] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(helpers + 1).build().unwrap();
        for (taps, top, height, groups) in [3, 5]
            .into_iter()
            .flat_map(|taps| [0, 1].map(|top| (taps, top)))
            .flat_map(|(taps, top)| [33, 34, 65, 67].map(|height| (taps, top, height)))
            .flat_map(|(taps, top, height)| [1, 2].map(|groups| (taps, top, height, groups)))
        {
            let padding = Padding { top, bottom: 1, left: 1, right: 1 };
            let spec = Conv2dSpec::new(groups, groups, [taps; 2]).stride([2, 2]).padding(padding).groups(groups);
            let shape = Shape::new(1, height, 100);
            let sizes = spec.sizes(shape).unwrap();
            let (dy, w) = (random.integers(sizes.y_len), random.integers(sizes.w_len));
            let mut wanted = vec![0.0; sizes.x_len];
            reference::conv2d_backward_data(&spec, shape, &dy, &w, &mut wanted).unwrap();
            let (real_dy, real_w) = (random.reals(sizes.y_len), random.reals(sizes.w_len));
            for isa in Isa::available() {
                let in_team = |dy: &[f32], w: &[f32]| {
                    let plan = backward(Depthwise, isa, &spec, shape, w);
                    let mut workspace = vec![f32::NAN; plan.workspace_len(shape, helpers + 1).unwrap()];
                    let mut dx = vec![f32::NAN; sizes.x_len];
                    pool.install(|| {
                        Team::with(TeamOptions::new().helpers(helpers), |team| {
                            plan.data(shape, dy, &mut dx, &mut workspace, Parallelism::Team(team)).unwrap();
                        });
                    });
                    dx
                };
                let line = format!("{isa} {spec} {shape:?}, {helpers} helpers");
                assert!(in_team(&dy, &w) == wanted, "{line}");
                let alone = backward_data(Depthwise, isa, &spec, shape, &real_dy, &real_w, 1);
                assert!(bits(&in_team(&real_dy, &real_w)) == bits(&alone), "{line}");
            }
        }
    }
}

/// Every pass of a case, one after the other.
fn all_passes(
    family: Family,
    isa: Isa,
    (spec, shape): (Conv2dSpec, Shape),
    (x, w, dy): (&[f32], &[f32], &[f32]),
    slots: usize,
) -> Vec<f32> {
    let mut all = forward(family, isa, &spec, shape, (x, w), None, Some(dy), slots);
    all.extend(backward_data(family, isa, &spec, shape, dy, w, slots));
    all.extend(backward_weights(family, isa, &spec, shape, x, dy, slots));
    all
}

fn bits(values: &[f32]) -> Vec<u32> {
    // One NaN is as good as another.
    values.iter().map(|v| if v.is_nan() { f32::NAN.to_bits() } else { v.to_bits() }).collect()
}

#[cfg(feature = "rayon")]
#[test]
fn the_bits_do_not_depend_on_threads_or_width() {
    let pools: Vec<_> =
        (1..=3).map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()).collect();
    let mut random = Random(2);
    for index in 0..60 {
        for family in [Depthwise, Grouped] {
            let (mut spec, shape) = case(&mut random, family);
            if index % 4 == 0 {
                // Large enough that threads take part.
                let factor = 240 / spec.groups;
                spec.in_channels *= factor;
                spec.out_channels *= factor;
                spec.groups *= factor;
            }
            spec.activation = [Activation::Identity, Activation::Relu, Activation::Tanh][index % 3];
            let sizes = spec.sizes(shape).unwrap();
            let (x, w) = (random.reals(sizes.x_len), random.reals(sizes.w_len));
            let dy = random.reals(sizes.y_len);
            let mut fused = None;
            for isa in Isa::available() {
                let mut first = None;
                for (threads, pool) in (1..).zip(&pools) {
                    let run = || all_passes(family, isa, (spec, shape), (&x, &w, &dy), threads);
                    let all = bits(&pool.install(run));
                    assert!(*first.get_or_insert(all.clone()) == all, "{family:?} {isa} {spec} {shape:?} {threads}");
                    if isa != Isa::Portable {
                        assert!(*fused.get_or_insert(all.clone()) == all, "{family:?} {isa} {spec} {shape:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn sums_stay_within_the_bound_of_a_chain() {
    let mut random = Random(3);
    for _ in 0..100 {
        for family in [Depthwise, Grouped] {
            let (spec, shape) = case(&mut random, family);
            let sizes = spec.sizes(shape).unwrap();
            let (x, w) = (random.reals(sizes.x_len), random.reals(sizes.w_len));
            let dy = random.reals(sizes.y_len);
            let wide = |values: &[f32]| values.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
            let size = |values: &[f64]| values.iter().map(|v| v.abs()).collect::<Vec<_>>();
            let passes = |x: &[f64], w: &[f64], dy: &[f64]| {
                let (mut y, mut dx) = (vec![0.0; sizes.y_len], vec![0.0; sizes.x_len]);
                let mut dw = vec![0.0; sizes.w_len];
                reference::conv2d_forward(&spec, shape, x, w, None, Some(dy), &mut y).unwrap();
                reference::conv2d_backward_data(&spec, shape, dy, w, &mut dx).unwrap();
                reference::conv2d_backward_weights(&spec, shape, x, dy, &mut dw).unwrap();
                [y, dx, dw].concat()
            };
            let (x64, w64, dy64) = (wide(&x), wide(&w), wide(&dy));
            let expected = passes(&x64, &w64, &dy64);
            let sums = passes(&size(&x64), &size(&w64), &size(&dy64));
            let window = spec.kernel[0] * spec.kernel[1];
            let channels = spec.in_channels.max(spec.out_channels) / spec.groups;
            let pixels = shape.batch * sizes.output[0] * sizes.output[1];
            for isa in Isa::available() {
                let all = all_passes(family, isa, (spec, shape), (&x, &w, &dy), 1);
                for (at, value) in all.iter().enumerate() {
                    // Products without FMA round once more; the residual is one addition.
                    let chain = if at < sizes.y_len + sizes.x_len { channels * window } else { pixels };
                    let depth = (chain + 2) as f64 * f64::from(f32::EPSILON) / 2.0;
                    let bound = depth / (1.0 - depth) * sums[at] * (1.0 + 1e-9);
                    let error = (f64::from(*value) - expected[at]).abs();
                    assert!(error <= bound, "{family:?} {isa} {spec} {shape:?} {at}: {error} > {bound}");
                }
            }
        }
    }
}

#[test]
fn a_special_value_reaches_exactly_the_windows_that_hold_it() {
    let mut random = Random(4);
    for index in 0..200 {
        for family in [Depthwise, Grouped] {
            let (spec, shape) = case(&mut random, family);
            let sizes = spec.sizes(shape).unwrap();
            let (mut x, w) = (random.integers(sizes.x_len), random.integers(sizes.w_len));
            let mut dy = random.integers(sizes.y_len);
            let special = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][index % 3];
            let (at_x, at_dy) = (random.below(sizes.x_len), random.below(sizes.y_len));
            if index % 2 == 0 {
                x[at_x] = special;
            } else {
                dy[at_dy] = special;
            }
            let mut y = vec![0.0; sizes.y_len];
            reference::conv2d_forward(&spec, shape, &x, &w, None, Some(&dy), &mut y).unwrap();
            let mut dx = vec![0.0; sizes.x_len];
            reference::conv2d_backward_data(&spec, shape, &dy, &w, &mut dx).unwrap();
            let mut dw = vec![0.0; sizes.w_len];
            reference::conv2d_backward_weights(&spec, shape, &x, &dy, &mut dw).unwrap();
            let expected = bits(&[y, dx, dw].concat());
            for isa in Isa::available() {
                let all = all_passes(family, isa, (spec, shape), (&x, &w, &dy), 1);
                let plus_zero: Vec<f32> = all.iter().map(|v| v + 0.0).collect();
                for (at, (value, expected)) in bits(&plus_zero).into_iter().zip(&expected).enumerate() {
                    assert_eq!(value, *expected, "{family:?} {isa} {spec} {shape:?} {at}");
                }
            }
        }
    }
}

#[test]
fn activations_come_last_and_keep_nan() {
    let mut random = Random(5);
    for index in 0..60 {
        for family in [Depthwise, Grouped] {
            let (spec, shape) = case(&mut random, family);
            let sizes = spec.sizes(shape).unwrap();
            let (mut x, w) = (random.integers(sizes.x_len), random.integers(sizes.w_len));
            x[0] = f32::NAN;
            let bias = random.integers(spec.out_channels);
            for isa in Isa::available() {
                let plain = forward(family, isa, &spec, shape, (&x, &w), Some(&bias), None, 1);
                let activation = [
                    Activation::Relu,
                    Activation::Clamp { low: -3.0, high: 9.0 },
                    Activation::Sigmoid,
                    Activation::Tanh,
                ][index % 4];
                let mut expected = plain;
                let execution = Execution::on(isa);
                kernels::activation::forward_in_place(activation, &mut expected, execution).unwrap();
                let active = Conv2dSpec { activation, ..spec };
                let y = forward(family, isa, &active, shape, (&x, &w), Some(&bias), None, 1);
                assert!(bits(&y) == bits(&expected), "{family:?} {isa} {spec} {shape:?} {activation:?}");
            }
        }
    }
}

#[test]
fn all_gradients_in_one_call_have_the_bits_of_separate_calls() {
    let mut random = Random(6);
    for index in 0..120 {
        let (mut spec, shape) = case(&mut random, Depthwise);
        if index % 2 == 0 {
            // Enough groups for sums over the whole batch.
            let factor = 40 / spec.groups;
            spec.in_channels *= factor;
            spec.out_channels *= factor;
            spec.groups *= factor;
        }
        let sizes = spec.sizes(shape).unwrap();
        let (x, w, dy) = (random.reals(sizes.x_len), random.reals(sizes.w_len), random.reals(sizes.y_len));
        for isa in Isa::available() {
            let options = Options { isa: Some(isa), algorithm: Algorithm::Depthwise, ..Options::default() };
            let plan = Conv2dBackward::with_options(spec, &w, shape, options).unwrap();
            let mut workspace = vec![f32::NAN; plan.workspace_len(shape, 1).unwrap()];
            let nothing = || [sizes.x_len, sizes.w_len, spec.out_channels].map(|len| vec![f32::NAN; len]);
            let ([mut dx, mut dw, mut db], [mut dx_apart, mut dw_apart, mut db_apart]) = (nothing(), nothing());
            let serial = Parallelism::Serial;
            plan.both(shape, &x, &dy, &mut dx, &mut dw, Some(&mut db), &mut workspace, serial).unwrap();
            plan.data(shape, &dy, &mut dx_apart, &mut workspace, serial).unwrap();
            plan.weights(shape, &x, &dy, &mut dw_apart, Some(&mut db_apart), &mut workspace, serial).unwrap();
            let line = format!("{isa} {spec} {shape:?}");
            assert!(bits(&dx) == bits(&dx_apart), "dx {line}");
            assert!(bits(&dw) == bits(&dw_apart), "dw {line}");
            assert!(bits(&db) == bits(&db_apart), "db {line}");
        }
    }
}
