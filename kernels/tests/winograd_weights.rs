//! However a gradient of weights by Winograd's algorithm is cut, its bits are the same.

use kernels::Isa;
use kernels::conv::{Algorithm, Conv2dSpec, Layout, Padding, Shape};
use kernels::internals::{GradientLimits, gradient_within};

/// Small limits: every kind of part, pass and block occurs with a hundred tiles of some forty channels.
const SMALL: GradientLimits = GradientLimits {
    floats: [0, 60_000],
    alone: 32,
    alone_long: 64,
    shared: 32,
    long: 20,
    near: 20_000,
    far: 40_000,
    tiles: 4,
};

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
                let gradient = |limits, slots| {
                    let (dw, cut) = gradient_within(limits, (&spec, shape), (&x, &dy), algorithm, isa, slots).unwrap();
                    (cut, dw.iter().map(|dw| dw.to_bits()).collect::<Vec<_>>())
                };
                let (_, wanted) = gradient(GradientLimits::DEFAULT, 1);
                for per_slot in [30_000, 60_000, 200_000, 2_000_000] {
                    for slots in [1, 2, 7] {
                        let limits = GradientLimits { floats: [0, per_slot], ..SMALL };
                        let (cut, given) = gradient(limits, slots);
                        assert!(given == wanted, "{algorithm} on {isa}, {slots} slots: {spec} {shape:?} as {cut:?}");
                        alone += usize::from(cut[0]);
                        passes += usize::from(cut[1]);
                        parts += usize::from(cut[2]);
                    }
                }
            }
        }
    }
    assert!(alone > 0 && passes > 0 && parts > 0, "{alone} alone, {passes} in passes, {parts} in parts");
}
