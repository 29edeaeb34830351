//! The bits of a few convolutions and products, as they have been since they were written down: what promise 1 says of
//! one machine and another, of one version and the next.
//!
//! A change of an algorithm's order of sums changes them, and is a change that users must hear of. The instruction
//! sets with fused multiply-adds agree; the portable one rounds twice and has bits of its own.

use kernels::conv::{Algorithm, Conv2d, Conv2dBackward, Options};
use kernels::gemm::{Gemm, workspace_len};
use kernels::{Isa, Parallelism, View, ViewMut};
use tests::case::ConvCase;
use tests::data::{ConvData, DataKind, random};

/// FNV-1a over the bits.
fn hash<'a>(values: impl IntoIterator<Item = &'a f32>) -> u64 {
    let bytes = values.into_iter().flat_map(|value| value.to_bits().to_le_bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// Instruction sets whose bits are written down here.
fn fused() -> impl Iterator<Item = Isa> {
    Isa::available().filter(|&isa| isa != Isa::Portable)
}

/// The hashes of `y`, `dx` and `dw`. (`y` is a direct convolution's where only gradients have the algorithm.)
fn hashes(case: ConvCase, algorithm: Algorithm, isa: Isa) -> [u64; 3] {
    let case = case.data(DataKind::Uniform);
    let (spec, shape) = (case.spec, case.shape);
    let sizes = spec.sizes(shape).unwrap();
    let data = ConvData::new(&case, &sizes);
    let options = Options { isa: Some(isa), algorithm, ..Options::default() };
    let forward = Conv2d::with_options(spec, &data.weights, data.bias.as_deref(), shape, options.forward()).unwrap();
    let backward = Conv2dBackward::with_options(spec, &data.weights, shape, options).unwrap();
    let (mut y, mut dx, mut dw) = (vec![0.0; sizes.y_len], vec![0.0; sizes.x_len], vec![0.0; sizes.w_len]);
    let len = forward.workspace_len(shape, 1).unwrap().max(backward.workspace_len(shape, 1).unwrap());
    let mut workspace = vec![0.0; len];
    forward.forward(shape, &data.x, data.residual.as_deref(), &mut y, &mut workspace, Parallelism::Serial).unwrap();
    backward.both(shape, &data.x, &data.dy, &mut dx, &mut dw, None, &mut workspace, Parallelism::Serial).unwrap();
    [hash(&y), hash(&dx), hash(&dw)]
}

fn has_bits(case: ConvCase, algorithms: &[Algorithm], expected: [u64; 3]) {
    for isa in fused() {
        for &algorithm in algorithms {
            let given = hashes(case, algorithm, isa);
            assert_eq!(given, expected, "{algorithm} on {isa}: {given:#018x?}\n  case: {case}");
        }
    }
}

const DENSE: [Algorithm; 2] = [Algorithm::Direct, Algorithm::Im2col];

#[test]
fn a_dense_convolution_keeps_its_bits() {
    let case = ConvCase::new(19, 23, [3, 3]).batch(2).image(17, 15).padding(1, 1, 1, 1).with_bias().relu();
    has_bits(case, &DENSE, [0xacfb779955a07c21, 0x34046d7b60d8134e, 0x6185f9472b17e583]);
    has_bits(case.nhwc(), &DENSE, [0x011066036629e527, 0xfb54294f709736c4, 0x5fd50e837c8720fd]);
}

#[test]
fn a_strided_convolution_keeps_its_bits() {
    has_bits(
        ConvCase::new(3, 17, [7, 7]).image(33, 31).stride(2, 2).padding(3, 3, 3, 3),
        &DENSE,
        [0x765bb2fe10d84605, 0xa25cbf77f2b6f067, 0x5432a4ee82072dc4],
    );
}

#[test]
fn gradients_as_products_keep_their_bits() {
    let case = ConvCase::new(5, 17, [5, 3]).batch(3).image(47, 45).stride(2, 1).padding(2, 1, 1, 0);
    has_bits(case, &[Algorithm::Gemm], [0x07292019a21c5c44, 0x22bd02f294762f7b, 0x4ba93a1819cec4bc]);
}

#[test]
fn a_depthwise_convolution_keeps_its_bits() {
    let case = ConvCase::new(21, 21, [3, 3]).batch(2).image(14, 19).padding(1, 1, 1, 1).groups(21);
    has_bits(case, &[Algorithm::Depthwise], [0x971c148822507a17, 0x5346425b5f4fb275, 0xf983bacb59bc4ee7]);
}

#[test]
fn a_grouped_convolution_keeps_its_bits() {
    let case = ConvCase::new(24, 24, [3, 3]).image(12, 13).padding(1, 1, 1, 1).groups(6);
    has_bits(case, &[Algorithm::Grouped], [0x02a2a08b89655e4d, 0x93622b7c3c397335, 0x74254fa36bc13ed7]);
}

#[test]
fn winograd_convolutions_keep_their_bits() {
    let case = ConvCase::new(19, 23, [3, 3]).batch(2).image(17, 15).padding(1, 1, 1, 1).with_bias().relu();
    has_bits(case, &[Algorithm::Winograd2], [0x918249c2f43c68c5, 0x9f7726d55d322b3e, 0x1bdcd7abd6f747a3]);
    has_bits(case, &[Algorithm::Winograd2x4], [0x7e475971ba642f47, 0x3c5c6b4e03d20b27, 0x0c3c3025bb87ed6a]);
    has_bits(case.nhwc(), &[Algorithm::Winograd4], [0x5e0e40da3a412fdf, 0xe85aeb7311cf3305, 0xbb8add733d6a05fe]);
    has_bits(case, &[Algorithm::Winograd6], [0x5560841122e68b3a, 0x526448e3a676c92a, 0xbcc5170cda2f4a91]);
}

#[test]
fn winograd_convolutions_of_strides_keep_their_bits() {
    let case = ConvCase::new(19, 23, [3, 3]).batch(2).image(17, 15).stride(2, 2).padding(1, 1, 1, 1).with_bias();
    has_bits(case, &[Algorithm::Winograd2], [0xb4766cd85f130852, 0x8394fbcd9d3499ca, 0x6eb3e115e7a89fe6]);
    has_bits(case.nhwc(), &[Algorithm::Winograd4], [0x7ae452cc6e3e7ce3, 0xb9ddb2ad95e05404, 0x67ee73d662b2a86b]);
    let case = ConvCase::new(19, 23, [5, 5]).batch(2).image(17, 15).stride(2, 2).padding(2, 2, 2, 2);
    has_bits(case, &[Algorithm::Winograd4], [0xa79ebadbf155e534, 0x44acda1c4444af8b, 0x3078c300eaaa67bc]);
}

#[test]
fn winograd_convolutions_of_one_axis_keep_their_bits() {
    let case = ConvCase::new(19, 23, [1, 7]).batch(2).image(9, 31).padding(0, 0, 3, 3).with_bias();
    has_bits(case, &[Algorithm::Winograd2], [0x6d1d72d3ba38ba32, 0x2e923854ec59116c, 0xa137f7bb7829132e]);
}

#[test]
fn winograd_convolutions_whose_taps_are_apart_keep_their_bits() {
    let case = ConvCase::new(19, 23, [3, 3]).batch(2).image(11, 17).dilation(2, 3).padding(2, 2, 3, 3).with_bias();
    has_bits(case, &[Algorithm::Winograd4], [0x811981546013e540, 0x55a61a5ed0826f83, 0xf328dc6e36014c2c]);
}

#[test]
fn a_product_keeps_its_bits() {
    let [m, n, k] = [37, 41, 700];
    let values = |seed: u64, len: usize| -> Vec<f32> {
        (0..len as u64).map(|i| (random(seed, i) >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
    };
    let (lhs, rhs) = (values(1, m * k), values(2, k * n));
    for isa in fused() {
        let gemm = Gemm { isa: Some(isa), ..Gemm::default() };
        let mut out = vec![0.0; m * n];
        let mut workspace = vec![0.0; workspace_len(m, n, k, 1).unwrap()];
        let (lhs, rhs) = (View::new(&lhs, [m, k]).unwrap(), View::new(&rhs, [k, n]).unwrap());
        let mut view = ViewMut::new(&mut out, [m, n]).unwrap();
        gemm.run(lhs, rhs, &mut view, &mut workspace, Parallelism::Serial).unwrap();
        let given = hash(&out);
        assert_eq!(given, 0x25e13eb013d53d24, "{isa}: {given:#018x}");
    }
}
