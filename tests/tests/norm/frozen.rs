//! Gradients through a batch norm whose moments are given.

use kernels::conv::Layout;
use kernels::norm::{Gradients, batch};
use kernels::reference::{Sharing, norm_inference_backward, norm_inference_forward};
use kernels::{Error, Execution, Isa, Parallelism};
use tests::norm::EPSILON;
use tests::norm::Norm::{self, Batch};
use tests::oracle::UNIT;
use tests::small::{Output, wide};

use super::{Data, LARGE, Random, Results};

/// A batch norm whose moments are given: what its gradients are computed from.
struct Frozen {
    problem: Norm,
    data: Data,
    mean: Vec<f32>,
    variance: Vec<f32>,
}

impl Frozen {
    fn new(shape: batch::Shape, seed: u64) -> Self {
        let mut random = Random(seed);
        let mean = random.numbers(shape.channels);
        let variance = random.numbers(shape.channels).into_iter().map(|v| v * v + 0.1).collect();
        let problem = Batch(shape);
        Self { data: Data::new(problem, seed + 1, 0.5), problem, mean, variance }
    }

    /// `y` is left empty.
    fn run(&self, execution: Execution) -> Results {
        let Batch(shape) = self.problem else { unreachable!() };
        let nan = |len: usize| vec![f32::NAN; len];
        let [len, channels] = [self.problem.elements(), shape.channels];
        let mut out = Results { y: Vec::new(), dx: nan(len), dgamma: nan(channels), dbeta: nan(channels) };
        let Results { dx, dgamma, dbeta, .. } = &mut out;
        let gradients = Gradients { dx, dgamma: Some(dgamma), dbeta: Some(dbeta) };
        let mut workspace = nan(batch::workspace_len(shape).unwrap());
        let Self { data: Data { x, dy, gamma, .. }, mean, variance, .. } = self;
        let gamma = Some(gamma.as_slice());
        batch::inference_backward(shape, x, mean, variance, gamma, dy, EPSILON, gradients, &mut workspace, execution)
            .unwrap();
        out
    }

    /// The gradients in f64 and how far from them those of the kernel may be, as its page says.
    fn expected(&self) -> [Output; 3] {
        let Self { problem, data, mean, variance } = self;
        let (len, parameters) = (problem.elements(), problem.parameters());
        let parameter = |i| problem.parameter(i);
        let sharing =
            Sharing { len, sets: parameters, parameters, set: &parameter, parameter: &parameter, is_centred: true };
        let (x, dy, gamma) = (wide(&data.x), wide(&data.dy), wide(&data.gamma));
        let [mean, variance] = [wide(mean), wide(variance)];
        let moments = [mean.as_slice(), &variance];
        let gradients = |dy: &[f64]| {
            let (mut dx, mut dgamma, mut dbeta) = (vec![0.0; len], vec![0.0; parameters], vec![0.0; parameters]);
            let epsilon = f64::from(EPSILON);
            norm_inference_backward(&sharing, &x, moments, &gamma, dy, epsilon, &mut dx, &mut dgamma, &mut dbeta)
                .unwrap();
            [dx, dgamma, dbeta]
        };
        let [dx, dgamma, dbeta] = gradients(&dy);
        // The sums of magnitudes: `dy` of the sign of what it is multiplied by.
        let signed: Vec<f64> = (0..len).map(|i| dy[i].abs() * (x[i] - mean[parameter(i)]).signum()).collect();
        let [_, magnitudes, _] = gradients(&signed);
        let [_, _, plain] = gradients(&dy.iter().map(|dy| dy.abs()).collect::<Vec<_>>());
        let k = problem.depths()[2];
        // Products of errors, and what underflows.
        let bound = |magnitude: f64, units: f64| units * UNIT * magnitude.abs() * 1.01 + 2f64.powi(-140);
        let e_dx = dx.clone();
        [
            Output::within("dx", dx, |i| bound(e_dx[i], 2.0)),
            Output::within("dgamma", dgamma, |c| bound(magnitudes[c], k + 4.0)),
            Output::within("dbeta", dbeta, |c| bound(plain[c], k)),
        ]
    }
}

#[test]
fn gradients_through_a_frozen_batch_norm_err_by_no_more_than_the_bound() {
    let mut random = Random(11);
    let shapes = (0..80).filter_map(|_| match random.problem() {
        Batch(shape) => Some(shape),
        _ => None,
    });
    let large = LARGE.into_iter().filter_map(|problem| if let Batch(shape) = problem { Some(shape) } else { None });
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    for (seed, shape) in shapes.chain(large).enumerate() {
        let frozen = Frozen::new(shape, seed as u64);
        let expected = frozen.expected();
        for isa in Isa::available() {
            let out = frozen.run(Execution::on(isa));
            for (exact, got) in expected.iter().zip([&out.dx, &out.dgamma, &out.dbeta]) {
                if let Err(wrong) = exact.judge(got) {
                    panic!("{shape:?}, seed {seed}, on {isa}: {wrong}");
                }
            }
            let threads = pool.install(|| frozen.run(Execution::on(isa).parallelism(Parallelism::Current)));
            assert!(threads.bits() == out.bits(), "{shape:?}, seed {seed}, on {isa}: 3 threads");
        }
        let fused: Vec<_> = Isa::available().filter(|&isa| isa != Isa::Portable).collect();
        for pair in fused.windows(2) {
            let [a, b] = [pair[0], pair[1]].map(|isa| frozen.run(Execution::on(isa)).bits());
            assert!(a == b, "{shape:?}, seed {seed}, on {} and {}", pair[0], pair[1]);
        }
    }
}

#[test]
fn the_definition_of_the_frozen_gradient_is_the_slope_of_the_definition() {
    for layout in [Layout::Nchw, Layout::Nhwc] {
        let shape = batch::Shape { batch: 2, channels: 3, pixels: 2, layout };
        let Frozen { problem, data, mean, variance } = Frozen::new(shape, 13);
        let parameter = |i| problem.parameter(i);
        let sharing =
            Sharing { len: 12, sets: 3, parameters: 3, set: &parameter, parameter: &parameter, is_centred: true };
        let [x, dy, gamma, beta] = [&data.x, &data.dy, &data.gamma, &data.beta].map(|v| wide(v));
        let (mean, variance) = (wide(&mean), wide(&variance));
        let moments = [mean.as_slice(), &variance];
        let loss = |x: &[f64], gamma: &[f64], beta: &[f64]| {
            let mut y = vec![0.0; 12];
            norm_inference_forward(&sharing, x, moments, [gamma, beta], 1e-5, &mut y).unwrap();
            y.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>()
        };
        let (mut dx, mut dgamma, mut dbeta) = (x.clone(), gamma.clone(), beta.clone());
        norm_inference_backward(&sharing, &x, moments, &gamma, &dy, 1e-5, &mut dx, &mut dgamma, &mut dbeta).unwrap();
        // The loss is linear in each of them: differences err by roundings alone.
        let slope = |operand: &[f64], i: usize, loss: &dyn Fn(&[f64]) -> f64| {
            let at = |step: f64| {
                let mut moved = operand.to_vec();
                moved[i] += step;
                loss(&moved)
            };
            at(0.5) - at(-0.5)
        };
        let close = |name: &str, given: f64, slope: f64| {
            assert!((given - slope).abs() < 1e-12, "{layout:?}: {name} is {given} instead of {slope}");
        };
        for i in 0..12 {
            close("dx", dx[i], slope(&x, i, &|x| loss(x, &gamma, &beta)));
        }
        for i in 0..3 {
            close("dgamma", dgamma[i], slope(&gamma, i, &|gamma| loss(&x, gamma, &beta)));
            close("dbeta", dbeta[i], slope(&beta, i, &|beta| loss(&x, &gamma, beta)));
        }
    }
}

#[test]
fn a_frozen_gradient_refuses_what_does_not_fit_and_that_of_nothing_is_zero() {
    let run = Parallelism::Serial;
    let shape = batch::Shape { batch: 1, channels: 3, pixels: 2, layout: Layout::Nchw };
    let (six, three) = ([1.0; 6], [1.0; 3]);
    let mut dx = [9.0; 6];
    let mut fails = |x: &[f32], variance: &[f32], epsilon: f32, workspace: &mut [f32]| {
        let gradients = Gradients { dx: &mut dx, dgamma: None, dbeta: None };
        let error =
            batch::inference_backward(shape, x, &three, variance, None, &six, epsilon, gradients, workspace, run);
        assert_eq!(dx, [9.0; 6]);
        error.unwrap_err()
    };
    let length = |argument, expected, given| Error::Length { argument, expected, given };
    assert_eq!(fails(&six[..5], &three, 0.1, &mut [0.0; 12]), length("x", 6, 5));
    assert_eq!(fails(&six, &three[..2], 0.1, &mut [0.0; 12]), length("variance", 3, 2));
    assert!(matches!(fails(&six, &three, -0.1, &mut [0.0; 12]), Error::Invalid { argument: "epsilon", .. }));
    assert_eq!(fails(&six, &three, 0.1, &mut [0.0; 11]), length("workspace", 12, 11));

    let (mut dgamma, mut dbeta) = ([9.0; 3], [9.0; 3]);
    let gradients = Gradients { dx: &mut [], dgamma: Some(&mut dgamma), dbeta: Some(&mut dbeta) };
    let empty = batch::Shape { batch: 0, ..shape };
    batch::inference_backward(empty, &[], &three, &three, None, &[], 0.1, gradients, &mut [0.0; 12], run).unwrap();
    assert_eq!((dgamma, dbeta), ([0.0; 3], [0.0; 3]));
}
