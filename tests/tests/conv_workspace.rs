//! The workspace of every algorithm is bounded: what the input and the output hold together, and 4 MiB for each slot.

use kernels::conv::{
    Algorithm, Conv2d, Conv2dBackward, ConvTranspose2d, ConvTranspose2dSpec, Layout, Options, Padding, Shape,
};
use rayon::prelude::*;
use tests::case::ConvCase;

/// Bytes of a slot.
const SLOT: usize = 4 << 20;

/// The layers of a file of the benchmarks.
fn layers(csv: &str) -> Vec<(String, ConvCase)> {
    let row = |line: &str| {
        let mut fields = line.split(',');
        let name = fields.next().unwrap().to_owned();
        let field: Vec<usize> = fields.map(|field| field.trim().parse().unwrap()).collect();
        let [n, c, h, w, k, r, s, sh, sw, ph, pw, dh, dw, groups] = field[..] else { panic!("{line}") };
        let case = ConvCase::new(c, k, [r, s]).batch(n).image(h, w).stride(sh, sw).padding(ph, ph, pw, pw);
        (name, case.dilation(dh, dw).groups(groups))
    };
    csv.lines().skip(1).filter(|line| !line.trim().is_empty()).map(row).collect()
}

/// Compares what each algorithm asks for with the bound; which algorithms can do the layer, forward and backward.
fn check(name: &str, case: &ConvCase) -> Vec<(Algorithm, &'static str)> {
    let sizes = case.spec.sizes(case.shape).unwrap();
    let weights = vec![0.0; sizes.w_len];
    let mut checked = Vec::new();
    for algorithm in algorithms() {
        let options = Options { algorithm, ..Options::default() };
        let forward = Conv2d::with_options(case.spec, &weights, None, case.shape, options.forward());
        let backward = Conv2dBackward::with_options(case.spec, &weights, case.shape, options);
        let bytes = |pass, slots| match pass {
            "forward" => Some(4 * forward.as_ref().ok()?.workspace_len(case.shape, slots).unwrap()),
            _ => Some(4 * backward.as_ref().ok()?.workspace_len(case.shape, slots).unwrap()),
        };
        for pass in ["forward", "backward"] {
            for slots in [1, 2, 7] {
                let bound = 4 * (sizes.x_len + sizes.y_len) + SLOT * slots;
                let Some(bytes) = bytes(pass, slots) else { continue };
                assert!(bytes <= bound, "{name} {pass}, {algorithm}, {slots} slots: {bytes} > {bound}, {case}");
                checked.push((algorithm, pass));
            }
        }
    }
    checked
}

/// All but the baseline, which stores its patch matrix: that is what makes it one.
fn algorithms() -> impl Iterator<Item = Algorithm> {
    Algorithm::ALL.into_iter().chain([Algorithm::Auto]).filter(|algorithm| algorithm.to_string() != "baseline")
}

#[test]
fn workspaces_hold_no_more_than_images_and_four_mebibytes_a_slot() {
    let files = [
        include_str!("../../benches/shapes/conv_networks.csv"),
        include_str!("../../benches/shapes/conv_training.csv"),
    ];
    let layers: Vec<_> = files.into_iter().flat_map(layers).collect();
    let checked: Vec<_> = layers
        .par_iter()
        .flat_map_iter(|(name, case)| [*case, case.nhwc()].map(|case| check(name, &case)).concat())
        .collect();
    // Each has layers that it is for.
    for algorithm in algorithms() {
        for pass in ["forward", "backward"] {
            assert!(checked.contains(&(algorithm, pass)), "{algorithm} {pass}");
        }
    }
}

/// Layers that make images larger: of networks that generate, that segment, and of one that decodes sound.
#[test]
fn workspaces_of_transposed_convolutions_keep_to_the_bound_of_their_images() {
    let up = |channels, out_channels, size: usize, stride| {
        let padding = Padding::all((size - stride) / 2);
        ConvTranspose2dSpec::new(channels, out_channels, [size, size]).stride([stride, stride]).padding(padding)
    };
    let layers = [
        (up(1024, 512, 4, 2), Shape::new(16, 4, 4)),
        (up(128, 3, 4, 2), Shape::new(16, 32, 32)),
        (up(1024, 512, 2, 2), Shape::new(1, 28, 28)),
        (up(21, 21, 16, 8), Shape::new(1, 70, 70)),
        (up(64, 64, 3, 1), Shape::new(2, 56, 56)),
        (ConvTranspose2dSpec::new(512, 256, [1, 16]).stride([1, 8]), Shape::line(1, 4000)),
    ];
    for (spec, shape) in layers {
        let sizes = spec.sizes(shape).unwrap();
        let weights = vec![0.0; sizes.w_len];
        for layout in [Layout::Nchw, Layout::Nhwc] {
            for algorithm in algorithms() {
                let options = Options { algorithm, ..Options::default() };
                let spec = spec.layout(layout);
                let Ok(plan) = ConvTranspose2d::with_options(spec, &weights, None, shape, options) else { continue };
                for slots in [1, 2, 7] {
                    let bound = 4 * (sizes.x_len + sizes.y_len) + SLOT * slots;
                    let bytes = 4 * plan.workspace_len(shape, slots).unwrap();
                    assert!(bytes <= bound, "{algorithm}, {slots} slots: {bytes} > {bound}, {spec:?} {shape:?}");
                }
            }
        }
    }
}

#[test]
fn a_wide_image_with_a_stride_keeps_to_the_bound() {
    check("wide", &ConvCase::new(64, 256, [3, 3]).image(5, 4801).stride(2, 2));
}

#[test]
fn lines_wide_rows_and_tall_images_keep_to_the_bound() {
    let sizes = [[1, 5000], [1, 40_000], [5, 9000], [8, 37_000], [40_000, 1]];
    let kernels = [[1, 1], [3, 3], [1, 9], [3, 1]];
    let channels = [[2, 2], [3, 64], [16, 16], [64, 256], [512, 4], [4, 512]];
    let cases: Vec<_> = channels
        .into_iter()
        .flat_map(|[c, k]| {
            kernels.into_iter().flat_map(move |kernel| {
                sizes.into_iter().flat_map(move |[h, w]| {
                    let [down, along] = kernel.map(|taps| taps / 2);
                    [1, 3].map(|stride| {
                        let case = ConvCase::new(c, k, kernel).image(h, w).stride(stride.min(h), stride.min(w));
                        case.padding(down, down, along, along)
                    })
                })
            })
        })
        .collect();
    cases.par_iter().flat_map_iter(|case| [*case, case.nhwc()]).for_each(|case| {
        check("long", &case);
    });
}

#[test]
fn gradients_of_large_windows_are_made_in_smaller_blocks_and_not_one_by_one() {
    let cases = [
        ConvCase::new(82, 64, [3, 3]).image(97, 97).padding(36, 36, 36, 36).dilation(36, 36),
        ConvCase::new(768, 32, [1, 1]).image(224, 224).stride(8, 8),
        ConvCase::new(512, 32, [1, 1]).image(224, 224).stride(16, 16),
    ];
    for case in cases {
        let sizes = case.spec.sizes(case.shape).unwrap();
        let options = Options { algorithm: Algorithm::Direct, ..Options::default() };
        let plan = Conv2dBackward::with_options(case.spec, &vec![0.0; sizes.w_len], case.shape, options).unwrap();
        // Sums of 48 Ki elements are what a block begins with.
        assert!(plan.workspace_len(case.shape, 1).unwrap() > 100_000, "{case}");
        check("large windows", &case);
    }
}

#[test]
fn many_channels_tiny_images_and_far_taps_keep_to_the_bound() {
    let mut state = 11u64;
    let mut pick = |of: &[usize]| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        of[(state >> 33) as usize % of.len()]
    };
    let mut cases = vec![
        ConvCase::new(768, 64, [3, 3]).batch(7).image(7, 7).padding(1, 1, 1, 1),
        ConvCase::new(1280, 64, [3, 3]).batch(7).image(5, 5).padding(1, 1, 1, 1),
        ConvCase::new(3400, 1, [3, 3]).image(14, 8).padding(1, 1, 1, 1),
        ConvCase::new(768, 1024, [3, 3]).batch(7).image(7, 7).padding(1, 1, 1, 1),
        ConvCase::new(1, 1, [3, 3]).image(8, 1134).dilation(1, 378),
    ];
    for _ in 0..300 {
        let side = [pick(&[1, 3, 3, 5, 7]), pick(&[1, 3, 3, 4, 5])];
        let apart = [1, 1].map(|_| if side[0] * side[1] > 1 { pick(&[1, 1, 1, 2, 37, 300]) } else { 1 });
        let groups = pick(&[1, 1, 1, 2, 5]);
        let (channels, filters) = (pick(&[1, 16, 200, 768, 1280, 3400]), pick(&[1, 8, 64, 1536]));
        // More weights would take time to transform, and say no more.
        let fewer = (channels * filters * side[0] * side[1] / (1 << 15)).max(1);
        let (channels, filters) = ((channels / fewer).max(1), filters);
        let [tall, wide] = [0, 1].map(|at| (side[at] - 1) * apart[at] + pick(&[1, 4, 7, 14, 60]));
        let [down, along] = [0, 1].map(|at| (side[at] / 2 * apart[at]).min(pick(&[0, 1, 2, 500])));
        let case =
            ConvCase::new(channels * groups, filters * groups, side).groups(groups).batch(pick(&[1, 1, 2, 7, 40]));
        let strides = [0, 1].map(|at| if apart[at] == 1 { pick(&[1, 1, 2]) } else { 1 });
        let case = case.image(tall, wide).padding(down, down, along, along).dilation(apart[0], apart[1]);
        cases.push(case.stride(strides[0], strides[1]));
    }
    let checked: Vec<_> = cases.par_iter().flat_map_iter(|case| check("odd", case)).collect();
    for name in ["winograd2", "winograd2x4", "winograd4", "winograd6"] {
        let count = checked.iter().filter(|(algorithm, _)| algorithm.to_string() == name).count();
        assert!(count > 50, "{name} took {count}");
    }
}
