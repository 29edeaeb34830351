//! Every algorithm but Winograd's, by block sizes so small that small cases cross every border, against the loops of
//! the reference, bit for bit on integers.

use kernels::conv::{Algorithm, Blocking, Conv2d, Conv2dBackward, Conv2dSpec, Layout, Options, Padding, Shape};
use kernels::{Error, Isa, Parallelism, Workspace, reference};

/// Small integers that repeat late, so that swapped taps and channels change a sum.
fn integers(len: usize, range: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + i / 7 + 13) % range) as f32 - (range / 2) as f32).collect()
}

/// Block sizes so small that small cases cross every border.
const TOY: Blocking = Blocking {
    depth: 20,
    out_channels: 9,
    sums: 300,
    band: 200,
    band_limit: 100_000,
    strip: 700,
    pixels: 40,
    gradient_pixels: 17,
    stream_from: 1,
    tasks_per_thread: 2,
    flops_per_second: 1.0,
};

/// Compares forward and backward of one problem with the reference, bit for bit, in every way to compute it.
fn check(spec: Conv2dSpec, shape: Shape) {
    let sizes = spec.sizes(shape).unwrap();
    let (x, w, b) = (integers(sizes.x_len, 7), integers(sizes.w_len, 5), integers(spec.out_channels, 11));
    let (dy, residual) = (integers(sizes.y_len, 9), integers(sizes.y_len, 13));
    let mut y = vec![0.0; sizes.y_len];
    reference::conv2d_forward(&spec, shape, &x, &w, Some(&b), Some(&residual), &mut y).unwrap();
    let [mut dx, mut dw, mut db] = [sizes.x_len, sizes.w_len, spec.out_channels].map(|len| vec![0.0; len]);
    reference::conv2d_backward_data(&spec, shape, &dy, &w, &mut dx).unwrap();
    reference::conv2d_backward_weights(&spec, shape, &x, &dy, &mut dw).unwrap();
    reference::conv2d_backward_bias(&spec, shape, &dy, &mut db).unwrap();
    for isa in Isa::available() {
        for algorithm in
            [Algorithm::Direct, Algorithm::Im2col, Algorithm::Depthwise, Algorithm::Grouped, Algorithm::Gemm]
        {
            for (blocking, slots) in [(None, 1), (Some(TOY), 1), (Some(TOY), 3)] {
                let options = Options { isa: Some(isa), algorithm, blocking };
                // What the choice would take for a forward pass need not be exact.
                let direct = if algorithm == Algorithm::Gemm { Algorithm::Direct } else { algorithm };
                let forward = Options { algorithm: direct, ..options };
                let plan = match Conv2d::with_options(spec, &w, Some(&b), shape, forward) {
                    Ok(plan) => plan,
                    Err(Error::Invalid { argument: "algorithm", .. }) => continue,
                    Err(error) => panic!("{error}"),
                };
                let context = format!("{spec}, {shape:?}: {algorithm} on {isa}, blocking {blocking:?}, {slots} slots");
                let mut workspace = Workspace::with_len(plan.workspace_len(shape, slots).unwrap()).unwrap();
                workspace.fill(f32::NAN);
                let mut out = vec![f32::NAN; sizes.y_len];
                let parallelism = if slots == 1 { Parallelism::Serial } else { Parallelism::Current };
                plan.forward(shape, &x, Some(&residual), &mut out, &mut workspace, parallelism).unwrap();
                assert_eq!(out, y, "y of {context}");

                let plan = Conv2dBackward::with_options(spec, &w, shape, options).unwrap();
                let mut workspace = Workspace::with_len(plan.workspace_len(shape, slots).unwrap()).unwrap();
                workspace.fill(f32::NAN);
                let [mut out_dx, mut out_dw, mut out_db] = [&dx, &dw, &db].map(|v| vec![f32::NAN; v.len()]);
                let db_out = Some(&mut out_db[..]);
                plan.both(shape, &x, &dy, &mut out_dx, &mut out_dw, db_out, &mut workspace, parallelism).unwrap();
                assert_eq!(out_dx, dx, "dx of {context}");
                assert_eq!(out_dw, dw, "dw of {context}");
                assert_eq!(out_db, db, "db of {context}");
            }
        }
    }
}

#[test]
fn every_algorithm_agrees_with_the_reference_on_integers() {
    for layout in [Layout::Nchw, Layout::Nhwc] {
        for [height, width] in [[1, 1], [3, 3], [5, 7], [14, 14], [9, 33]] {
            for [in_channels, out_channels] in [[1, 1], [3, 5], [8, 16], [5, 33]] {
                for kernel in [[1, 1], [3, 3], [2, 5]] {
                    for (stride, padding, dilation) in [(1, 0, 1), (1, 1, 1), (2, 1, 1), (3, 2, 2), (4, 0, 1)] {
                        let padding = Padding { top: padding, bottom: 1, left: padding, right: padding / 2 };
                        let spec = Conv2dSpec::new(in_channels, out_channels, kernel)
                            .stride([stride, stride.div_ceil(2)])
                            .padding(padding)
                            .dilation([dilation, 1])
                            .layout(layout);
                        let shape = Shape::new(2, height, width);
                        if spec.sizes(shape).is_ok() {
                            check(spec, shape);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn groups_do_not_see_each_other() {
    for layout in [Layout::Nchw, Layout::Nhwc] {
        for (groups, group_in, group_out) in [(2, 3, 4), (5, 1, 1), (3, 1, 2), (4, 2, 2), (2, 9, 7)] {
            for stride in [1, 2] {
                let spec = Conv2dSpec::new(groups * group_in, groups * group_out, [3, 3])
                    .groups(groups)
                    .stride([stride, stride])
                    .padding(Padding::all(1))
                    .layout(layout);
                check(spec, Shape::new(2, 8, 11));
            }
        }
    }
}

#[test]
fn windows_that_are_sparse_or_larger_than_the_image_are_gathered() {
    for layout in [Layout::Nchw, Layout::Nhwc] {
        let spec = |padding: usize, dilation: usize| {
            Conv2dSpec::new(2, 3, [3, 3]).padding(Padding::all(padding)).dilation([dilation, dilation]).layout(layout)
        };
        check(spec(100, 100), Shape::new(1, 2, 3));
        check(spec(1000, 1000), Shape::new(1, 1, 1));
        check(spec(2, 1), Shape::new(1, 1, 1));
    }
}

/// What input and output hold together, and 4 MiB for each slot.
#[test]
fn gradients_as_products_take_bounded_scratch() {
    let layer = |in_channels, out_channels, kernel, stride, padding| {
        Conv2dSpec::new(in_channels, out_channels, [kernel; 2]).stride([stride; 2]).padding(Padding::all(padding))
    };
    let options = Options { algorithm: Algorithm::Gemm, ..Options::default() };
    for (spec, shape) in [
        (layer(3, 64, 11, 4, 2), Shape::new(8, 224, 224)),
        (layer(3, 768, 16, 16, 0), Shape::new(1, 224, 224)),
        (layer(64, 64, 3, 1, 1), Shape::new(2, 224, 224)),
        (layer(512, 512, 3, 1, 1), Shape::new(1, 7, 7)),
        (layer(2048, 512, 1, 1, 0), Shape::new(1, 7, 7)),
        (layer(256, 512, 1, 2, 0), Shape::new(4, 56, 56)),
        (layer(1, 1, 3, 1, 1), Shape::new(1, 2160, 3840)),
        (layer(2, 2, 1, 1, 700), Shape::new(1, 3, 3)),
        (layer(64, 64, 3, 1, 1).groups(64), Shape::new(1, 56, 56)),
    ] {
        let sizes = spec.sizes(shape).unwrap();
        let plan = Conv2dBackward::with_options(spec, &vec![0.0; sizes.w_len], shape, options).unwrap();
        for slots in [1, 2, 16] {
            let (len, most) = (plan.workspace_len(shape, slots).unwrap(), sizes.x_len + sizes.y_len + (slots << 20));
            assert!(len <= most, "{spec}, {shape:?}, {slots} slots: {len} elements instead of {most}");
        }
    }
}
