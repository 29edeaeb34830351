//! Block sizes are free: whatever they are, a convolution has the same bits. Toy sizes put many block borders into
//! small problems.

use kernels::conv::{Algorithm, Blocking, Conv2d, Conv2dBackward, Options};
use kernels::{Isa, Parallelism};
use tests::case::ConvCase;
use tests::data::{ConvData, random};
use tests::decode::{Kinds, conv, random_bytes};
use tests::oracle::same_bits;

const CASES: u64 = 2000;

/// Sizes from 1 to about 20 times what a single tile takes.
fn toy_blocking(seed: u64) -> Blocking {
    let size = |index: u64, most: u64| 1 + (random(seed, index) % most) as usize;
    Blocking {
        depth: size(1, 40),
        out_channels: size(2, 40),
        sums: size(3, 2000),
        band: size(4, 2000),
        band_limit: size(5, 2000),
        strip: size(6, 500),
        pixels: size(7, 100),
        gradient_pixels: size(8, 60),
        stream_from: size(10, 200),
        tasks_per_thread: size(9, 8),
        flops_per_second: 1e3,
    }
}

/// `y`, `dx`, `dw`, or nothing where the algorithm does not take the problem.
fn run(case: &ConvCase, data: &ConvData, options: Options, parallelism: Parallelism) -> Option<[Vec<f32>; 3]> {
    let (spec, shape) = (case.spec, case.shape);
    let sizes = spec.sizes(shape).unwrap();
    let forward = Conv2d::with_options(spec, &data.weights, data.bias.as_deref(), shape, options.forward()).ok()?;
    let backward = Conv2dBackward::with_options(spec, &data.weights, shape, options).ok()?;
    let (mut y, mut dx, mut dw) =
        (vec![f32::NAN; sizes.y_len], vec![f32::NAN; sizes.x_len], vec![f32::NAN; sizes.w_len]);
    let mut workspace = vec![f32::NAN; forward.workspace_len(shape, 2).unwrap()];
    forward.forward(shape, &data.x, data.residual.as_deref(), &mut y, &mut workspace, parallelism).unwrap();
    let mut workspace = vec![f32::NAN; backward.workspace_len(shape, 2).unwrap()];
    backward.both(shape, &data.x, &data.dy, &mut dx, &mut dw, None, &mut workspace, parallelism).unwrap();
    Some([y, dx, dw])
}

#[test]
fn toy_blocks_do_not_change_bits() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let isa = Isa::choose().unwrap();
    let mut compared = 0;
    for number in 0..CASES {
        let case = conv(&random_bytes(number), Kinds::Any).expect("random bytes have a known version");
        let Ok(sizes) = case.spec.sizes(case.shape) else { continue };
        let data = ConvData::new(&case, &sizes);
        for algorithm in [Algorithm::Direct, Algorithm::Im2col, Algorithm::Gemm] {
            let options = Options { isa: Some(isa), algorithm, ..Options::default() };
            let toy = Options { blocking: Some(toy_blocking(number)), ..options };
            let Some(expected) = run(&case, &data, options, Parallelism::Serial) else { continue };
            let threads = if number % 4 == 0 {
                pool.install(|| run(&case, &data, toy, Parallelism::Current))
            } else {
                run(&case, &data, toy, Parallelism::Serial)
            };
            let got = threads.expect("block sizes do not decide whether an algorithm takes a problem");
            for (name, (got, expected)) in ["y", "dx", "dw"].into_iter().zip(got.iter().zip(&expected)) {
                if let Err(why) = same_bits(name, got, expected) {
                    panic!("{algorithm} with {:?}: {why}\n  case: {case}", toy.blocking);
                }
            }
            compared += 1;
        }
    }
    assert!(compared > CASES / 2, "only {compared} convolutions were compared");
}
