//! Convolutions by hand, and shapes that other libraries have got wrong.

use kernels::conv::{
    Accuracy, Algorithm, Conv2d, Conv2dBackward, Conv2dSpec, ConvTranspose2d, ConvTranspose2dSpec, Layout, Options,
    Padding, Shape, conv2d, conv2d_backward, conv2d_residual, flip_filter,
};
use kernels::{Activation, Error, Parallelism};
use tests::case::ConvCase;
use tests::data::DataKind;

/// Checks a case every way, for each layout and two kinds of data.
fn holds(case: ConvCase) {
    tests::crash::report_faults();
    for layout in [Layout::Nchw, Layout::Nhwc] {
        for data in [DataKind::Integers, DataKind::Uniform, DataKind::Special] {
            let mut case = case.data(data);
            case.spec.layout = layout;
            if let Err(failure) = tests::targets::run(&case) {
                panic!("{failure}");
            }
        }
    }
}

/// One forward call by hand.
fn forward(spec: Conv2dSpec, shape: Shape, x: &[f32], weights: &[f32]) -> Result<Vec<f32>, Error> {
    let conv = Conv2d::new(spec, weights, None, shape)?;
    let mut y = vec![f32::NAN; spec.sizes(shape)?.y_len];
    let mut workspace = vec![f32::NAN; conv.workspace_len(shape, 1)?];
    conv.forward(shape, x, None, &mut y, &mut workspace, Parallelism::Serial)?;
    Ok(y)
}

const IMAGE: [f32; 9] = [12.0, 3.0, 19.0, 25.0, 10.0, 1.0, 9.0, 7.0, 17.0];

#[test]
fn the_example_of_the_lecture() {
    let y = forward(Conv2dSpec::new(1, 1, [2, 2]), Shape::new(1, 3, 3), &IMAGE, &[1.0, 2.0, 3.0, 4.0]).unwrap();
    assert_eq!(y, [133.0, 75.0, 100.0, 101.0]);
}

#[test]
fn the_flipped_filter_gives_the_convolution_of_the_formula() {
    let mut filter = [1.0, 2.0, 3.0, 4.0];
    flip_filter(&mut filter, [2, 2]).unwrap();
    let y = forward(Conv2dSpec::new(1, 1, [2, 2]), Shape::new(1, 3, 3), &IMAGE, &filter).unwrap();
    // 4 * 12 + 3 * 3 + 2 * 25 + 1 * 10
    assert_eq!(y, [117.0, 4.0 * 3.0 + 3.0 * 19.0 + 2.0 * 10.0 + 1.0, 155.0, 74.0]);
}

#[test]
fn a_padding_of_100_around_one_column() {
    holds(ConvCase::new(2, 3, [1, 3]).image(1, 1).padding(0, 0, 100, 100).with_bias());
    holds(ConvCase::new(1, 17, [3, 3]).image(1, 1).padding(100, 0, 0, 100).relu());
}

#[test]
fn strides_beyond_any_image() {
    let far = [1 << 20, 1 << 58, 1 << 60, (isize::MAX / 4) as usize];
    for kernel in [[3, 3], [3, 1], [1, 3], [3, 4]] {
        for far in far {
            for [down, along] in [[1, far], [far, 1], [far, far]] {
                holds(ConvCase::new(3, 5, kernel).image(7, 9).stride(down, along));
            }
        }
    }
}

#[test]
fn a_dilation_beyond_the_image() {
    holds(ConvCase::new(3, 5, [3, 3]).image(4, 4).padding(9, 9, 9, 9).dilation(9, 9));
    holds(ConvCase::new(3, 5, [3, 1]).image(1, 7).padding(40, 40, 0, 0).dilation(40, 1));
}

#[test]
fn only_the_middle_tap_meets_the_image() {
    holds(ConvCase::new(4, 4, [3, 3]).image(1, 1).padding(1, 1, 1, 1).batch(3));
}

#[test]
fn windows_beside_each_other_along_1603_pixels() {
    holds(ConvCase::new(1, 3, [1, 4]).image(1, 1603).stride(1, 4).with_bias());
    holds(ConvCase::new(2, 2, [4, 1]).image(1603, 1).stride(4, 1));
}

#[test]
fn groups_with_a_stride() {
    holds(ConvCase::new(6, 4, [3, 3]).image(7, 8).groups(2).stride(2, 2).padding(1, 1, 1, 1).batch(2));
    holds(ConvCase::new(17, 34, [3, 3]).image(9, 9).groups(17).stride(2, 3).padding(1, 0, 0, 1));
    holds(ConvCase::new(2048, 2048, [1, 1]).image(2, 2).groups(2048).stride(2, 2));
}

#[test]
fn a_stride_longer_than_kernel_and_image() {
    holds(ConvCase::new(3, 8, [1, 1]).image(5, 5).stride(3, 7));
    holds(ConvCase::new(3, 8, [2, 2]).image(5, 5).stride(100, 100).padding(0, 3, 0, 3));
}

#[test]
fn rows_that_the_stride_leaves_over() {
    // (padded height - kernel) % stride >= 2: nobody looks at the last rows, and their gradient is zero.
    holds(ConvCase::new(2, 5, [3, 3]).image(13, 14).stride(4, 5));
    holds(ConvCase::new(16, 16, [5, 5]).image(12, 11).stride(4, 3).padding(2, 1, 0, 2));
}

#[test]
fn patches_of_a_vision_transformer() {
    holds(ConvCase::new(3, 9, [16, 16]).image(32, 48).stride(16, 16).with_bias());
}

#[test]
fn long_sums_in_rows_of_an_odd_number_of_vectors() {
    // 5 rows of 17 results: three vectors of 8, five of 4, the last of them all but empty.
    holds(ConvCase::new(3, 7, [11, 11]).image(27, 75).stride(4, 4).with_bias().with_residual());
    // 6 rows of three whole vectors of 8, whose sums are continued.
    holds(ConvCase::new(40, 13, [3, 3]).image(6, 24).padding(1, 1, 1, 1).relu());
}

#[test]
fn one_or_two_pixels_of_panels_of_every_width() {
    for channels in [1, 7, 8, 9, 16, 24, 31, 63, 64, 65, 120] {
        holds(ConvCase::new(19, channels, [1, 1]).batch(2).image(1, 1).with_bias().with_residual());
        holds(ConvCase::new(5, channels, [2, 3]).image(2, 4).relu());
    }
    // Sums that are continued.
    for channels in [65, 120] {
        holds(ConvCase::new(1200, channels, [1, 1]).image(1, 1).with_bias());
        holds(ConvCase::new(700, channels, [1, 1]).image(1, 2).with_residual());
    }
}

#[test]
fn even_kernels_and_kernels_as_large_as_the_image() {
    holds(ConvCase::new(5, 7, [2, 4]).image(6, 9).padding(1, 0, 2, 1));
    holds(ConvCase::new(64, 33, [7, 7]).image(7, 7));
    holds(ConvCase::new(3, 3, [5, 5]).image(3, 3).padding(1, 1, 1, 1));
}

#[test]
fn channels_around_the_widths_of_vectors() {
    for channels in [1, 3, 7, 8, 9, 15, 16, 17, 31, 33] {
        holds(
            ConvCase::new(channels, 34 - channels, [3, 3]).image(5, 9).padding(1, 1, 1, 1).with_bias().with_residual(),
        );
    }
}

#[test]
fn every_activation_after_bias_and_residual() {
    for activation in [
        Activation::Identity,
        Activation::Relu,
        Activation::Clamp { low: 0.0, high: 6.0 },
        Activation::Clamp { low: -3.0, high: -3.0 },
        Activation::Clamp { low: f32::NEG_INFINITY, high: 5.0 },
        Activation::Sigmoid,
        Activation::Tanh,
    ] {
        holds(ConvCase::new(3, 18, [3, 3]).image(6, 7).activation(activation).with_bias().with_residual());
    }
}

#[test]
fn no_images_have_gradients_of_zero() {
    let spec = Conv2dSpec::new(3, 5, [3, 3]);
    let shape = Shape::new(0, 8, 8);
    let plan = Conv2dBackward::new(spec, &[1.0; 135], shape).unwrap();
    let mut workspace = vec![f32::NAN; plan.workspace_len(shape, 1).unwrap()];
    let (mut dw, mut db) = ([7.0; 135], [7.0; 5]);
    plan.weights(shape, &[], &[], &mut dw, Some(&mut db), &mut workspace, Parallelism::Serial).unwrap();
    assert_eq!((dw, db), ([0.0; 135], [0.0; 5]));
    holds(ConvCase::new(3, 5, [3, 3]).image(8, 8).batch(0).with_bias());
}

#[test]
fn images_without_rows_are_padding_and_bias() {
    holds(ConvCase::new(3, 5, [3, 3]).image(0, 4).padding(2, 2, 1, 1).with_bias());
    holds(ConvCase::new(3, 5, [1, 1]).image(4, 0).padding(0, 0, 1, 1).with_bias());
}

#[test]
fn a_kernel_larger_than_the_padded_image_is_refused() {
    for (height, width) in [(2, 5), (5, 2), (0, 0)] {
        let spec = Conv2dSpec::new(1, 1, [3, 3]);
        let error = Conv2d::new(spec, &[0.0; 9], None, Shape::new(1, height, width)).unwrap_err();
        assert!(matches!(error, Error::Invalid { argument: "height" | "width", .. }), "{error}");
        assert!(Conv2dBackward::new(spec, &[0.0; 9], Shape::new(1, height, width)).is_err());
    }
}

#[test]
fn parameters_without_meaning_are_refused_by_name() {
    let good = Conv2dSpec::new(4, 6, [3, 3]);
    let nan = Activation::Clamp { low: f32::NAN, high: 1.0 };
    for (spec, name) in [
        (Conv2dSpec::new(4, 6, [0, 3]), "kernel"),
        (good.stride([1, 0]), "stride"),
        (good.dilation([0, 1]), "dilation"),
        (good.groups(0), "groups"),
        (good.groups(4), "out_channels"),
        (good.groups(3), "in_channels"),
        (Conv2dSpec::new(0, 6, [3, 3]), "in_channels"),
        (Conv2dSpec::new(4, 0, [3, 3]), "out_channels"),
        (good.activation(nan), "activation"),
        (good.activation(Activation::Clamp { low: 1.0, high: 0.0 }), "activation"),
        (good.padding(Padding { top: usize::MAX, bottom: 1, left: 0, right: 0 }), "padding"),
        (good.dilation([usize::MAX, 1]), "dilation"),
        (Conv2dSpec::new(usize::MAX, 2, [3, 3]), "weights"),
        (Conv2dSpec::new(1 << 32, 1 << 32, [1, 1]), "weights"),
    ] {
        let error = Conv2d::new(spec, &[0.0; 4 * 6 * 9], None, Shape::new(1, 9, 9)).unwrap_err();
        assert!(error.to_string().contains(name), "{spec:?}: {error}");
    }
}

#[test]
fn images_larger_than_the_address_space_are_refused() {
    let spec = Conv2dSpec::new(2, 2, [1, 1]);
    for shape in [
        Shape::new(usize::MAX, 1, 1),
        Shape::new(1, usize::MAX, usize::MAX),
        Shape::new(1 << 32, 1 << 32, 1),
        Shape::new(1, isize::MAX as usize, 1),
    ] {
        assert!(Conv2d::new(spec, &[0.0; 4], None, shape).is_err(), "{shape:?}");
        assert!(Conv2dBackward::new(spec, &[0.0; 4], shape).is_err(), "{shape:?}");
    }
}

#[test]
fn no_images_of_any_size_are_no_work() {
    for spec in [Conv2dSpec::new(2, 2, [1, 1]), Conv2dSpec::new(2, 2, [3, 3]).accuracy(Accuracy::Direct)] {
        let weights = vec![0.0; 4 * spec.kernel[0] * spec.kernel[1]];
        let shape = Shape::new(0, 1 << 40, 1 << 40);
        assert!(Conv2d::new(spec, &weights, None, shape).is_ok(), "{spec:?}");
        assert!(Conv2dBackward::new(spec, &weights, shape).is_ok(), "{spec:?}");
    }
}

#[test]
fn weights_and_biases_of_other_lengths_are_refused() {
    let (spec, shape) = (Conv2dSpec::new(2, 3, [1, 1]), Shape::new(1, 4, 4));
    assert!(Conv2d::new(spec, &[0.0; 5], None, shape).is_err());
    assert!(Conv2d::new(spec, &[0.0; 7], None, shape).is_err());
    assert!(Conv2d::new(spec, &[0.0; 6], Some(&[0.0; 2]), shape).is_err());
    assert!(Conv2dBackward::new(spec, &[0.0; 5], shape).is_err());
    let mut plan = Conv2d::new(spec, &[0.0; 6], Some(&[0.0; 3]), shape).unwrap();
    assert!(plan.set_weights(&[0.0; 5], Some(&[0.0; 3]), Parallelism::Serial).is_err());
    assert!(plan.set_weights(&[0.0; 6], Some(&[0.0; 4]), Parallelism::Serial).is_err());
    assert!(plan.set_weights(&[1.0; 6], Some(&[0.0; 3]), Parallelism::Serial).is_ok());
    let (mut y, mut workspace) = ([7.0; 48], vec![0.0; plan.workspace_len(shape, 1).unwrap()]);
    let short = [0.0; 47];
    let result = plan.forward(shape, &[0.0; 32], Some(&short), &mut y, &mut workspace, Parallelism::Serial);
    assert!(result.is_err() && y == [7.0; 48]);
}

#[test]
fn weights_that_are_not_finite_do_not_reach_the_padding() {
    for value in [f32::INFINITY, f32::NAN] {
        let mut weights = [1.0f32; 9];
        weights[0] = value;
        let spec = Conv2dSpec::new(1, 1, [3, 3]).padding(Padding::all(1));
        let y = forward(spec, Shape::new(1, 3, 3), &[1.0; 9], &weights).unwrap();
        // The first tap of the first row and column of windows lies in the padding.
        assert_eq!([y[0], y[1], y[2], y[3], y[6]], [4.0, 6.0, 4.0, 6.0, 4.0]);
        for at in [4, 5, 7, 8] {
            assert!(!y[at].is_finite(), "{y:?}");
        }
    }
}

#[test]
fn a_stride_far_beyond_the_image_leaves_one_output_and_gradients_of_zero() {
    holds(ConvCase::new(2, 3, [1, 1]).image(3, 2).stride(1 << 40, 1 << 40));
    let spec = Conv2dSpec::new(2, 3, [1, 1]).stride([usize::MAX, 1]);
    assert_eq!(spec.check(), Err(Error::Overflow { argument: "stride" }));
}

#[test]
fn a_sum_that_underflows_to_minus_zero_is_that_on_every_instruction_set() {
    tests::crash::report_faults();
    let line = "conv n1c48h2w9 o2 k1x1 p1,0,5,0 nchw data=wide seed=3020679718 algorithm=direct pass=both";
    let case: ConvCase = line.parse().expect("a case");
    if let Err(failure) = tests::targets::run(&case) {
        panic!("{failure}");
    }
}

/// Numbers that are no integers.
fn fractions(len: usize) -> Vec<f32> {
    (0..len).map(|i| (i * 37 % 101) as f32 / 101.0 - 0.5).collect()
}

#[test]
fn calls_without_a_plan_give_the_bits_of_those_with_one() {
    let spec = Conv2dSpec::new(6, 10, [3, 3]).stride([2, 1]).padding(Padding::all(1)).activation(Activation::Relu);
    for (spec, height) in [(spec, 11), (spec.layout(Layout::Nhwc).groups(2), 9)] {
        let shape = Shape::new(2, height, 14);
        let sizes = spec.sizes(shape).unwrap();
        let (x, w, b) = (fractions(sizes.x_len), fractions(sizes.w_len), fractions(spec.out_channels));
        let (dy, residual) = (fractions(sizes.y_len), fractions(sizes.y_len));
        let (parallelism, nan) = (Parallelism::Current, |len: usize| vec![f32::NAN; len]);
        let plan = Conv2d::new(spec, &w, Some(&b), shape).unwrap();
        let mut workspace = nan(plan.workspace_len(shape, parallelism.threads()).unwrap());
        for residual in [None, Some(residual.as_slice())] {
            let (mut y, mut expected) = (nan(sizes.y_len), nan(sizes.y_len));
            plan.forward(shape, &x, residual, &mut expected, &mut workspace, parallelism).unwrap();
            match residual {
                None => conv2d(spec, shape, &x, &w, Some(&b), &mut y).unwrap(),
                Some(residual) => conv2d_residual(spec, shape, &x, &w, Some(&b), residual, &mut y).unwrap(),
            }
            assert_eq!(y, expected, "{spec}");
        }
        let plan = Conv2dBackward::new(spec, &w, shape).unwrap();
        let mut workspace = nan(plan.workspace_len(shape, parallelism.threads()).unwrap());
        let [mut dx, mut dw, mut db] = [sizes.x_len, sizes.w_len, spec.out_channels].map(nan);
        let [mut dx_one, mut dw_one, mut db_one] = [sizes.x_len, sizes.w_len, spec.out_channels].map(nan);
        plan.both(shape, &x, &dy, &mut dx, &mut dw, Some(&mut db), &mut workspace, parallelism).unwrap();
        conv2d_backward(spec, shape, &x, &w, &dy, &mut dx_one, &mut dw_one, Some(&mut db_one)).unwrap();
        assert_eq!((&dx_one, &dw_one, &db_one), (&dx, &dw, &db), "{spec}");
        dx_one.fill(f32::NAN);
        conv2d_backward(spec, shape, &x, &w, &dy, &mut dx_one, &mut dw_one, None).unwrap();
        assert_eq!(dx_one, dx, "{spec} without a bias");
    }
}

#[test]
fn calls_without_a_plan_refuse_what_does_not_fit_and_write_nothing() {
    let (spec, shape) = (Conv2dSpec::new(1, 1, [1, 1]), Shape::new(1, 1, 2));
    let (mut dx, mut dw, mut db, mut y) = ([7.0; 2], [7.0], [7.0], [7.0; 2]);
    let length = |argument, expected, given| Error::Length { argument, expected, given };
    let two = [1.0; 2];
    let mut backward = |x: &[f32], w: &[f32], dy: &[f32], db_len: usize| {
        let error = conv2d_backward(spec, shape, x, w, dy, &mut dx, &mut dw, Some(&mut db[..db_len])).unwrap_err();
        assert_eq!((dx, dw, db), ([7.0; 2], [7.0], [7.0]));
        error
    };
    assert_eq!(backward(&two[1..], &[1.0], &two, 1), length("x", 2, 1));
    assert_eq!(backward(&two, &two, &two, 1), length("weights", 1, 2));
    assert_eq!(backward(&two, &[1.0], &two[1..], 1), length("dy", 2, 1));
    assert_eq!(backward(&two, &[1.0], &two, 0), length("db", 1, 0));
    let refused = conv2d_residual(spec, shape, &two, &[1.0], None, &two[1..], &mut y);
    assert_eq!((refused, y), (Err(length("residual", 2, 1)), [7.0; 2]));
}

/// What stands behind the colon of a line of a description: algorithms, their milliseconds, and reasons.
fn algorithms_of(line: &str) -> (String, Vec<(String, f64, Option<String>)>) {
    let (head, list) = line.split_once("; expected on one thread: ").unwrap();
    let (chosen, _) = head.rsplit_once(": ").unwrap().1.split_once(',').unwrap();
    let mut all = Vec::new();
    // A reason may have a comma in it.
    for entry in list.replace(", never chosen", " never chosen").split(", ") {
        let (time, reason) = match entry.split_once(" (") {
            Some((time, reason)) => (time, Some(reason.trim_end_matches(')').to_string())),
            None => (entry, None),
        };
        if let Some((name, time)) = time.strip_suffix(" ms").and_then(|time| time.rsplit_once(' ')) {
            all.push((name.to_string(), time.parse().unwrap(), reason));
        }
    }
    (chosen.to_string(), all)
}

#[test]
fn a_description_says_why_what_is_faster_does_not_run() {
    let mut reasons = Vec::new();
    for (accuracy, algorithm) in [
        (Accuracy::Direct, Algorithm::Auto),
        (Accuracy::Fast, Algorithm::Auto),
        (Accuracy::Fast, Algorithm::Im2col),
        (Accuracy::Fastest, Algorithm::Auto),
    ] {
        for shape in [Shape::new(1, 3, 3), Shape::new(8, 56, 56)] {
            let options = Options { algorithm, ..Options::default() };
            let spec = Conv2dSpec::new(96, 96, [3, 3]).padding(Padding::all(1)).accuracy(accuracy);
            let up = ConvTranspose2dSpec::new(96, 96, [3, 3]).padding(Padding::all(1)).accuracy(accuracy);
            let weights = vec![0.0; spec.sizes(shape).unwrap().w_len];
            let text = [
                Conv2d::with_options(spec, &weights, None, shape, options).unwrap().describe(),
                Conv2dBackward::with_options(spec, &weights, shape, options).unwrap().describe(),
                ConvTranspose2d::with_options(up, &weights, None, shape, options).unwrap().describe(),
            ];
            // A line for the forward pass, two for gradients, three for all of a transposed convolution.
            assert_eq!(text.each_ref().map(|text| text.lines().count()), [1, 2, 3]);
            for line in text.iter().flat_map(|text| text.lines()) {
                let (chosen, all) = algorithms_of(line);
                let least = all.iter().find(|(name, ..)| *name == chosen).unwrap().1;
                for (name, time, reason) in &all {
                    // Times are shown to a microsecond.
                    assert!(*time >= least || reason.is_some(), "no reason for {name}: {line}");
                    assert!(*time <= least || reason.is_none(), "{name} is slower: {line}");
                }
                reasons.extend(all.into_iter().filter_map(|(.., reason)| reason));
            }
        }
    }
    for reason in ["less accurate than Direct allows", "less accurate than Fast allows", "another was asked for"] {
        assert!(reasons.iter().any(|given| given == reason), "never {reason}");
    }
}
