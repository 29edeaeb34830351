//! However a weights' gradient is cut, its bits are the same, and its workspace is bounded.

use super::cut::{Cut, Limits};
use super::{Direction, Winograd, WinogradWeights};
use crate::conv::algorithm::BackwardWeightsCall;
use crate::conv::{Algorithm, Conv2dSpec, Layout, Padding, Shape};
use crate::parallel::Parallelism;
use crate::simd::Isa;

/// Small limits: every kind of part, pass and block occurs with a hundred tiles of some forty channels.
const SMALL: Limits = Limits {
    floats: [0, 60_000],
    alone: 32,
    alone_long: 64,
    shared: 32,
    long: 20,
    near: 20_000,
    far: 40_000,
    tiles: 4,
};

fn plan(spec: &Conv2dSpec, algorithm: Algorithm, isa: Isa, limits: Limits) -> WinogradWeights {
    let axes = Winograd::axes(spec, Direction::Forward, algorithm).unwrap();
    WinogradWeights { limits, ..WinogradWeights::new(spec, axes, isa) }
}

fn values(seed: usize, len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + seed) % 1009) as f32 / 504.0 - 1.0).collect()
}

#[test]
fn however_it_is_cut_the_bits_are_the_same() {
    let (mut alone, mut passes, mut parts) = (0, 0, 0);
    for isa in Isa::available() {
        for (channels, size, stride, batch, groups, layout) in [
            ([40, 70], [13, 9], [1, 1], 5, 1, Layout::Nchw),
            ([70, 40], [6, 31], [1, 1], 2, 1, Layout::Nhwc),
            ([33, 65], [4, 4], [1, 1], 1, 1, Layout::Nchw),
            ([66, 100], [9, 40], [1, 1], 1, 2, Layout::Nchw),
            ([40, 70], [27, 18], [2, 2], 5, 1, Layout::Nhwc),
        ] {
            let spec = Conv2dSpec::new(channels[0], channels[1], [3, 3])
                .stride(stride)
                .groups(groups)
                .padding(Padding { top: 1, bottom: 0, left: 2, right: 1 })
                .layout(layout);
            let shape = Shape::new(batch, size[0], size[1]);
            let sizes = spec.sizes(shape).unwrap();
            let (x, dy) = (values(1, sizes.x_len), values(2, sizes.y_len));
            for algorithm in [Algorithm::Winograd2, Algorithm::Winograd4] {
                let gradient = |limits: Limits, slots: usize| {
                    let plan = plan(&spec, algorithm, isa, limits);
                    let mut workspace = vec![f32::NAN; plan.workspace_len(shape, &sizes, slots)];
                    let mut dw = vec![f32::NAN; sizes.w_len];
                    plan.run(BackwardWeightsCall {
                        shape,
                        sizes,
                        x: &x,
                        dy: &dy,
                        dw: &mut dw,
                        workspace: &mut workspace,
                        slots,
                        parallelism: Parallelism::Serial,
                    });
                    (Cut::new(&plan, shape, &sizes, slots), dw.iter().map(|dw| dw.to_bits()).collect::<Vec<_>>())
                };
                let (_, wanted) = gradient(Limits::DEFAULT, 1);
                for per_slot in [30_000, 60_000, 200_000, 2_000_000] {
                    for slots in [1, 2, 7] {
                        let limits = Limits { floats: [0, per_slot], ..SMALL };
                        let (cut, given) = gradient(limits, slots);
                        assert!(given == wanted, "{algorithm} on {isa}, {slots} slots: {spec} {shape:?} as {cut:?}");
                        alone += usize::from(cut.alone);
                        passes += usize::from(cut.passes.iter().product::<usize>() > 1);
                        parts += usize::from(cut.parts != [1, 1]);
                    }
                }
            }
        }
    }
    assert!(alone > 0 && passes > 0 && parts > 0, "{alone} alone, {passes} in passes, {parts} in parts");
}

#[test]
fn scratch_memory_holds_what_input_and_output_hold_and_four_megabytes_a_slot() {
    for (channels, size, batch) in [
        ([64, 192], 27, 8),
        ([384, 256], 13, 8),
        ([256, 256], 56, 2),
        ([512, 512], 7, 8),
        ([64, 64], 224, 1),
        ([512, 512], 3, 1),
    ] {
        let spec = Conv2dSpec::new(channels[0], channels[1], [3, 3]).padding(Padding::all(1));
        let shape = Shape::new(batch, size, size);
        let sizes = spec.sizes(shape).unwrap();
        for algorithm in [Algorithm::Winograd2, Algorithm::Winograd2x4, Algorithm::Winograd4, Algorithm::Winograd6] {
            for isa in Isa::available() {
                for slots in [1, 2, 7] {
                    let given = plan(&spec, algorithm, isa, Limits::DEFAULT).workspace_len(shape, &sizes, slots);
                    let most = sizes.x_len + sizes.y_len + slots * (1 << 20) + 16;
                    assert!(given <= most, "{algorithm} on {isa}, {slots} slots: {given} of {most}, {spec} {shape:?}");
                }
            }
        }
    }
}
