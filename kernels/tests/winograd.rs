//! Winograd against the loops of the reference, with special values, and written past the caches.

use kernels::conv::{Algorithm, Conv2d, Conv2dBackward, Conv2dSpec, Layout, Options, Padding, Shape};
use kernels::reference::{conv2d_backward_data, conv2d_backward_weights, conv2d_forward};
use kernels::{Isa, Parallelism};

fn values(seed: u32, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

#[test]
fn every_tile_agrees_with_the_reference() {
    let (mut tried, mut backward) = (0, 0);
    let kernels: [[[usize; 2]; 3]; 22] = [
        [[3, 3], [1, 1], [1, 1]],
        [[1, 3], [1, 1], [1, 1]],
        [[3, 1], [1, 1], [1, 1]],
        [[5, 5], [1, 1], [1, 1]],
        [[1, 5], [1, 1], [1, 1]],
        [[3, 5], [1, 1], [1, 1]],
        [[3, 3], [2, 2], [1, 1]],
        [[3, 5], [2, 2], [1, 1]],
        [[4, 4], [2, 2], [1, 1]],
        [[7, 3], [2, 1], [1, 1]],
        [[1, 3], [3, 2], [1, 1]],
        [[7, 7], [2, 2], [1, 1]],
        [[5, 5], [2, 2], [1, 1]],
        [[1, 7], [1, 1], [1, 1]],
        [[7, 1], [1, 1], [1, 1]],
        [[3, 3], [1, 1], [2, 2]],
        [[3, 3], [1, 1], [6, 3]],
        [[5, 3], [1, 1], [1, 4]],
        [[1, 3], [1, 1], [9, 8]],
        [[3, 1], [1, 1], [5, 1]],
        [[5, 3], [2, 1], [1, 2]],
        [[3, 3], [1, 2], [12, 1]],
    ];
    let sizes = [[7, 7], [1, 1], [14, 19], [33, 5], [9, 70]];
    for (seed, ([kernel, stride, dilation], [height, width])) in
        kernels.into_iter().flat_map(|k| sizes.map(|size| (k, size))).enumerate()
    {
        for layout in [Layout::Nchw, Layout::Nhwc] {
            // Both parities of what is before the image.
            let less = usize::from(stride == [2, 2] && seed % 2 == 1 && kernel != [4, 4]);
            let before = [0, 1].map(|axis| ((kernel[axis] - 1) / 2 * dilation[axis]).saturating_sub(less));
            let after = [0, 1].map(|axis| kernel[axis] / 2 * dilation[axis]);
            let spec = Conv2dSpec::new(6, 14, kernel)
                .stride(stride)
                .dilation(dilation)
                .groups(1 + seed % 2)
                .padding(Padding { top: before[0], bottom: after[0], left: before[1], right: after[1] })
                .layout(layout);
            if spec.sizes(Shape::new(2, height, width)).is_err() {
                continue;
            }
            let shape = Shape::new(2, height, width);
            let sizes = spec.sizes(shape).unwrap();
            let (x, w) = (values(seed as u32, sizes.x_len), values(99, sizes.w_len));
            let (bias, residual) = (values(5, 14), values(7, sizes.y_len));
            let dy = values(8, sizes.y_len);
            let wide = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect::<Vec<_>>();
            let (mut y_wanted, mut dx_wanted) = (vec![0.0; sizes.y_len], vec![0.0; sizes.x_len]);
            let mut dw_wanted = vec![0.0; sizes.w_len];
            let (x64, w64, dy64) = (wide(&x), wide(&w), wide(&dy));
            let (b64, r64) = (wide(&bias), wide(&residual));
            conv2d_forward(&spec, shape, &x64, &w64, Some(&b64), Some(&r64), &mut y_wanted).unwrap();
            conv2d_backward_data(&spec, shape, &dy64, &w64, &mut dx_wanted).unwrap();
            conv2d_backward_weights(&spec, shape, &x64, &dy64, &mut dw_wanted).unwrap();
            for algorithm in Algorithm::ALL.into_iter().filter(|a| a.tile().is_some()) {
                let options = Options { algorithm, ..Options::default() };
                let Ok(plan) = Conv2d::with_options(spec, &w, Some(&bias), shape, options) else { continue };
                let mut y = vec![f32::NAN; sizes.y_len];
                let mut workspace = vec![f32::NAN; plan.workspace_len(shape, 1).unwrap()];
                plan.forward(shape, &x, Some(&residual), &mut y, &mut workspace, Parallelism::Serial).unwrap();
                let close = |name: &str, got: &[f32], wanted: &[f64], most: f64| {
                    for (i, (&got, &wanted)) in got.iter().zip(wanted).enumerate() {
                        let off = (f64::from(got) - wanted).abs();
                        assert!(off < most, "{algorithm} {spec} {shape:?}: {name}[{i}] is {got} instead of {wanted}");
                    }
                };
                close("y", &y, &y_wanted, 2e-4);
                tried += 1;
                let Ok(plan) = Conv2dBackward::with_options(spec, &w, shape, options) else { continue };
                backward += 1;
                let mut dx = vec![f32::NAN; sizes.x_len];
                let mut workspace = vec![f32::NAN; plan.workspace_len(shape, 1).unwrap()];
                plan.data(shape, &dy, &mut dx, &mut workspace, Parallelism::Serial).unwrap();
                close("dx", &dx, &dx_wanted, 2e-4);
                assert_eq!(plan.algorithms(), [algorithm; 2]);
                let mut dw = vec![f32::NAN; sizes.w_len];
                workspace.fill(f32::NAN);
                plan.weights(shape, &x, &dy, &mut dw, None, &mut workspace, Parallelism::Serial).unwrap();
                // Sums of up to 1260 products.
                close("dw", &dw, &dw_wanted, 1e-3);
            }
        }
    }
    assert!(tried > 300 && backward > 240, "{tried} plans, {backward} of them with gradients");
}

#[test]
fn what_is_not_finite_reaches_the_windows_that_hold_it_though_their_taps_are_apart() {
    for (dilation, [height, width]) in [([2, 3], [13, 17]), ([6, 1], [9, 20]), ([5, 7], [4, 6])] {
        let [down, along] = dilation;
        let padding = Padding { top: down, bottom: down, left: along, right: along };
        let spec = Conv2dSpec::new(5, 6, [3, 3]).dilation(dilation).padding(padding);
        let shape = Shape::new(1, height, width);
        let sizes = spec.sizes(shape).unwrap();
        let (mut x, w, mut dy) = (values(1, sizes.x_len), values(2, sizes.w_len), values(3, sizes.y_len));
        (x[sizes.x_len / 2], dy[sizes.y_len / 3]) = (f32::INFINITY, f32::NAN);
        let (mut y_wanted, mut dx_wanted) = (vec![0.0; sizes.y_len], vec![0.0; sizes.x_len]);
        conv2d_forward(&spec, shape, &x, &w, None, None, &mut y_wanted).unwrap();
        conv2d_backward_data(&spec, shape, &dy, &w, &mut dx_wanted).unwrap();
        for algorithm in [Algorithm::Winograd2, Algorithm::Winograd4] {
            let options = Options { algorithm, ..Options::default() };
            let same = |name: &str, got: &[f32], wanted: &[f32]| {
                for (i, (got, wanted)) in got.iter().zip(wanted).enumerate() {
                    let near = (got - wanted).abs() < 2e-4 || got == wanted || got.is_nan() && wanted.is_nan();
                    assert!(near, "{algorithm} {spec} {shape:?}: {name}[{i}] is {got} instead of {wanted}");
                }
            };
            let plan = Conv2d::with_options(spec, &w, None, shape, options).unwrap();
            let mut y = vec![0.0; sizes.y_len];
            let mut workspace = vec![0.0; plan.workspace_len(shape, 1).unwrap()];
            plan.forward(shape, &x, None, &mut y, &mut workspace, Parallelism::Serial).unwrap();
            same("y", &y, &y_wanted);
            let plan = Conv2dBackward::with_options(spec, &w, shape, options).unwrap();
            let mut dx = vec![0.0; sizes.x_len];
            let mut workspace = vec![0.0; plan.workspace_len(shape, 1).unwrap()];
            plan.data(shape, &dy, &mut dx, &mut workspace, Parallelism::Serial).unwrap();
            same("dx", &dx, &dx_wanted);
        }
    }
}

#[test]
fn weights_that_are_written_past_the_caches_are_the_same() {
    let spec = Conv2dSpec::new(272, 256, [3, 3]).padding(Padding::all(1));
    let shape = Shape::new(1, 2, 2);
    let sizes = spec.sizes(shape).unwrap();
    let integers = |seed, len| values(seed, len).into_iter().map(|v| (v * 3.0).round()).collect::<Vec<_>>();
    let (x, w) = (integers(1, sizes.x_len), integers(2, sizes.w_len));
    let dy = integers(3, sizes.y_len);
    for isa in Isa::available() {
        let run = |algorithm| {
            let options = Options { algorithm, isa: Some(isa), ..Options::default() };
            let plan = Conv2d::with_options(spec, &w, None, shape, options).unwrap();
            let mut workspace = vec![f32::NAN; plan.workspace_len(shape, 1).unwrap()];
            let mut y = vec![f32::NAN; sizes.y_len];
            plan.forward(shape, &x, None, &mut y, &mut workspace, Parallelism::Serial).unwrap();
            let plan = Conv2dBackward::with_options(spec, &w, shape, options).unwrap();
            let mut workspace = vec![f32::NAN; plan.workspace_len(shape, 1).unwrap()];
            let mut dx = vec![f32::NAN; sizes.x_len];
            plan.data(shape, &dy, &mut dx, &mut workspace, Parallelism::Serial).unwrap();
            (y, dx)
        };
        // Both are exact on integers.
        assert!(run(Algorithm::Winograd2) == run(Algorithm::Direct), "{isa}");
    }
}
