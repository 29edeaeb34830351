//! Layer, RMS, group and batch norm against one definition, within the errors that the module's page derives.

#[path = "norm/frozen.rs"]
mod frozen;

use kernels::conv::Layout;
use kernels::norm::{Affine, Gradients, batch, group, layer, rms};
use kernels::reference::{Sharing, norm_backward, norm_forward};
use kernels::{Error, Execution, Isa, Parallelism};
use tests::norm::Norm::{self, Batch, Group, Layer, Rms};
use tests::norm::{EPSILON, Expected};
use tests::oracle::UNIT;
use tests::small::wide;

/// What comes out.
#[derive(Clone, Debug, PartialEq)]
struct Results {
    y: Vec<f32>,
    dx: Vec<f32>,
    dgamma: Vec<f32>,
    dbeta: Vec<f32>,
}

impl Results {
    fn bits(&self) -> Vec<u32> {
        [&self.y, &self.dx, &self.dgamma, &self.dbeta].into_iter().flatten().map(|v| v.to_bits()).collect()
    }
}

/// Forward and backward.
fn run(norm: Norm, data: &Data, execution: Execution) -> Results {
    let (len, parameters) = (norm.elements(), norm.parameters());
    let nan = |len: usize| vec![f32::NAN; len];
    let mut out = Results { y: nan(len), dx: nan(len), dgamma: nan(parameters), dbeta: nan(parameters) };
    let Data { x, dy, gamma, beta } = data;
    let affine = Affine::new(gamma, beta);
    let Results { y, dx, dgamma, dbeta } = &mut out;
    match norm {
        Layer([rows, columns]) => {
            let shape = [rows, columns];
            layer::forward(shape, x, affine, EPSILON, y, execution).unwrap();
            let mut workspace = nan(layer::backward_workspace_len(shape).unwrap());
            let gradients = Gradients { dx, dgamma: Some(dgamma), dbeta: Some(dbeta) };
            layer::backward(shape, x, Some(gamma), dy, EPSILON, gradients, &mut workspace, execution).unwrap();
        }
        Rms([rows, columns]) => {
            let shape = [rows, columns];
            rms::forward(shape, x, Some(gamma), EPSILON, y, execution).unwrap();
            let mut workspace = nan(rms::backward_workspace_len(shape).unwrap());
            let gradients = Gradients { dx, dgamma: Some(dgamma), dbeta: Some(dbeta) };
            rms::backward(shape, x, Some(gamma), dy, EPSILON, gradients, &mut workspace, execution).unwrap();
        }
        Group(shape) => {
            group::forward(shape, x, affine, EPSILON, y, execution).unwrap();
            let mut workspace = nan(group::backward_workspace_len(shape).unwrap());
            let gradients = Gradients { dx, dgamma: Some(dgamma), dbeta: Some(dbeta) };
            group::backward(shape, x, Some(gamma), dy, EPSILON, gradients, &mut workspace, execution).unwrap();
        }
        Batch(shape) => {
            let (mut mean, mut r) = (nan(shape.channels), nan(shape.channels));
            let mut workspace = nan(batch::workspace_len(shape).unwrap());
            let moments = batch::Moments { mean: &mut mean, inverse_deviation: &mut r };
            batch::forward(shape, x, affine, EPSILON, y, moments, None, &mut workspace, execution).unwrap();
            workspace.fill(f32::NAN);
            let gradients = Gradients { dx, dgamma: Some(dgamma), dbeta: Some(dbeta) };
            batch::backward(shape, x, &mean, &r, Some(gamma), dy, gradients, &mut workspace, execution).unwrap();
        }
    }
    out
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
    fn below(&mut self, end: usize) -> usize {
        self.next() as usize % end
    }
    fn of(&mut self, choices: &[usize]) -> usize {
        choices[self.below(choices.len())]
    }
    fn uniform(&mut self) -> f32 {
        self.next() as f32 / (1u64 << 30) as f32 - 1.0
    }
    fn numbers(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.uniform()).collect()
    }

    fn problem(&mut self) -> Norm {
        const SIDES: [usize; 16] = [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 130, 257];
        let (rows, columns) = (self.of(&SIDES), self.of(&SIDES));
        let (batch, pixels) = (1 + self.below(4), self.of(&SIDES));
        match self.below(5) {
            0 => Layer([rows, columns]),
            1 => Rms([rows, columns]),
            2 => {
                let (groups, each) = (1 + self.below(4), 1 + self.below(5));
                Group(group::Shape { batch, channels: groups * each, pixels, groups })
            }
            3 => Batch(batch::Shape { batch, channels: 1 + self.below(40), pixels, layout: Layout::Nchw }),
            _ => Batch(batch::Shape { batch, channels: self.of(&SIDES), pixels, layout: Layout::Nhwc }),
        }
    }
}

struct Data {
    x: Vec<f32>,
    dy: Vec<f32>,
    gamma: Vec<f32>,
    beta: Vec<f32>,
}

impl Data {
    /// `offset` times as far from 0 as wide: what cancels.
    fn new(problem: Norm, seed: u64, offset: f32) -> Self {
        let mut random = Random(seed);
        let (len, parameters) = (problem.elements(), problem.parameters());
        Self {
            x: random.numbers(len).into_iter().map(|x| x + offset).collect(),
            dy: random.numbers(len),
            gamma: random.numbers(parameters),
            beta: random.numbers(parameters),
        }
    }
}

fn check(problem: Norm, offset: f32, seed: u64) {
    let data = Data::new(problem, seed, offset);
    let Data { x, dy, gamma, beta } = &data;
    let expected = problem.expected([x, dy, gamma, beta]);
    for isa in Isa::available() {
        let Results { y, dx, dgamma, dbeta } = run(problem, &data, Execution::on(isa));
        let Expected { y: exact_y, dx: exact_dx, dgamma: exact_dgamma, dbeta: exact_dbeta, .. } = &expected;
        for (exact, got) in [(exact_y, y), (exact_dx, dx), (exact_dgamma, dgamma), (exact_dbeta, dbeta)] {
            if let Err(wrong) = exact.judge(&got) {
                panic!("{problem:?}, offset {offset}, seed {seed}, on {isa}: {wrong}");
            }
        }
    }
}

#[test]
fn random_shapes_err_by_no_more_than_the_bound() {
    let mut random = Random(1);
    for seed in 0..400 {
        let problem = random.problem();
        check(problem, [0.0, 1.0, 30.0][seed as usize % 3], seed);
    }
}

#[test]
fn shapes_of_networks_err_by_no_more_than_the_bound() {
    for (index, problem) in LARGE.into_iter().enumerate() {
        check(problem, 0.25, index as u64);
    }
}

/// Beyond a task, and enough for several threads.
const LARGE: [Norm; 7] = [
    Layer([501, 768]),
    Layer([2, 100_003]),
    Rms([130, 4096]),
    Group(group::Shape { batch: 3, channels: 96, pixels: 28 * 28, groups: 32 }),
    Batch(batch::Shape { batch: 4, channels: 70, pixels: 33 * 33, layout: Layout::Nchw }),
    Batch(batch::Shape { batch: 5, channels: 67, pixels: 1000, layout: Layout::Nhwc }),
    Batch(batch::Shape { batch: 4000, channels: 75, pixels: 1, layout: Layout::Nchw }),
];

#[test]
fn threads_and_fused_instruction_sets_do_not_change_a_bit() {
    for problem in LARGE {
        let data = Data::new(problem, 3, 0.5);
        let serial = run(problem, &data, Parallelism::Serial.into()).bits();
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let shared = pool.install(|| run(problem, &data, Parallelism::Current.into()).bits());
            assert!(shared == serial, "{problem:?} on {threads} threads");
        }
        let fused: Vec<_> = Isa::available().filter(|&isa| isa != Isa::Portable).collect();
        for pair in fused.windows(2) {
            let [a, b] = [pair[0], pair[1]].map(|isa| run(problem, &data, Execution::on(isa)).bits());
            assert!(a == b, "{problem:?} on {} and {}", pair[0], pair[1]);
        }
    }
}

#[test]
fn the_definition_of_the_gradient_is_the_slope_of_the_definition() {
    let mut random = Random(9);
    for problem in [
        Layer([2, 5]),
        Rms([2, 5]),
        Group(group::Shape { batch: 2, channels: 4, pixels: 3, groups: 2 }),
        Batch(batch::Shape { batch: 2, channels: 3, pixels: 2, layout: Layout::Nhwc }),
    ] {
        let (set, parameter) = (|i| problem.set(i), |i| problem.parameter(i));
        let sharing = Sharing {
            len: problem.elements(),
            sets: problem.sets(),
            parameters: problem.parameters(),
            set: &set,
            parameter: &parameter,
            is_centred: !matches!(problem, Rms(_)),
        };
        let data = Data::new(problem, random.next(), 0.0);
        let [x, dy, gamma, beta] = [&data.x, &data.dy, &data.gamma, &data.beta].map(|v| wide(v));
        let loss = |x: &[f64], gamma: &[f64], beta: &[f64]| {
            let mut y = vec![0.0; x.len()];
            norm_forward(&sharing, x, gamma, beta, 1e-5, &mut y).unwrap();
            y.iter().zip(&dy).map(|(y, dy)| y * dy).sum::<f64>()
        };
        let (mut dx, mut dgamma, mut dbeta) = (x.clone(), gamma.clone(), beta.clone());
        norm_backward(&sharing, &x, &gamma, &dy, 1e-5, &mut dx, &mut dgamma, &mut dbeta).unwrap();
        let slope = |operand: &[f64], i: usize, loss: &dyn Fn(&[f64]) -> f64| {
            let at = |step: f64| {
                let mut moved = operand.to_vec();
                moved[i] += step;
                loss(&moved)
            };
            (at(1e-6) - at(-1e-6)) / 2e-6
        };
        for i in 0..x.len() {
            let slope = slope(&x, i, &|x| loss(x, &gamma, &beta));
            assert!((dx[i] - slope).abs() < 1e-6 * (1.0 + slope.abs()), "{problem:?}: dx[{i}] {} {slope}", dx[i]);
        }
        for i in 0..gamma.len() {
            assert!((dgamma[i] - slope(&gamma, i, &|gamma| loss(&x, gamma, &beta))).abs() < 1e-6);
            assert!((dbeta[i] - slope(&beta, i, &|beta| loss(&x, &gamma, beta))).abs() < 1e-6);
        }
    }
}

#[test]
fn inference_uses_what_training_kept() {
    for layout in [Layout::Nchw, Layout::Nhwc] {
        for isa in Isa::available() {
            let shape = batch::Shape { batch: 3, channels: 19, pixels: 35, layout };
            let problem = Batch(shape);
            let data = Data::new(problem, 5, 2.0);
            let run = Execution::on(isa);
            let (mut mean, mut r) = (vec![0.0; 19], vec![0.0; 19]);
            let (mut running_mean, mut variance) = (vec![1.0f32; 19], vec![2.0f32; 19]);
            let mut workspace = vec![f32::NAN; batch::workspace_len(shape).unwrap()];
            let mut y = vec![0.0; problem.elements()];
            batch::forward(
                shape,
                &data.x,
                Affine::new(&data.gamma, &data.beta),
                EPSILON,
                &mut y,
                batch::Moments { mean: &mut mean, inverse_deviation: &mut r },
                Some(batch::Running { mean: &mut running_mean, variance: &mut variance, momentum: 0.25 }),
                &mut workspace,
                run,
            )
            .unwrap();
            for c in 0..19 {
                let of_channel = |i: &usize| problem.parameter(*i) == c;
                let x: Vec<f64> = (0..problem.elements()).filter(of_channel).map(|i| f64::from(data.x[i])).collect();
                let m = x.iter().sum::<f64>() / x.len() as f64;
                let v = x.iter().map(|x| (x - m).powi(2)).sum::<f64>() / (x.len() - 1) as f64;
                assert!((f64::from(running_mean[c]) - (0.75 + 0.25 * m)).abs() < 1e-5);
                assert!((f64::from(variance[c]) - (1.5 + 0.25 * v)).abs() < 1e-5);
                assert!((f64::from(mean[c]) - m).abs() < 1e-5);
            }
            let affine = Affine::new(&data.gamma, &data.beta);
            batch::inference(shape, &data.x, &running_mean, &variance, affine, EPSILON, &mut y, &mut workspace, run)
                .unwrap();
            for i in 0..y.len() {
                let c = problem.parameter(i);
                let [x, m, v] = [data.x[i], running_mean[c], variance[c]].map(f64::from);
                let [gamma, beta] = [data.gamma[c], data.beta[c]].map(f64::from);
                let scale = gamma / (v + f64::from(EPSILON)).sqrt();
                let exact = (x - m) * scale + beta;
                let bound = 4.0 * UNIT * ((x * scale).abs() + (m * scale).abs() + beta.abs());
                assert!((f64::from(y[i]) - exact).abs() <= bound, "y[{i}] is {} instead of {exact}", y[i]);
            }
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_and_outputs_stay_untouched() {
    let run = Parallelism::Serial;
    let (x, mut y) = ([1.0; 6], [9.0; 6]);
    let none = Affine::default();
    let length = |argument, expected, given| Error::Length { argument, expected, given };
    assert_eq!(layer::forward([2, 4], &x, none, 0.1, &mut y, run).unwrap_err(), length("x", 8, 6));
    let short = Affine { gamma: Some(&x[..2]), beta: None };
    assert_eq!(layer::forward([2, 3], &x, short, 0.1, &mut y, run).unwrap_err(), length("gamma", 3, 2));
    for epsilon in [-1.0, f32::NAN, f32::INFINITY] {
        let error = layer::forward([2, 3], &x, none, epsilon, &mut y, run).unwrap_err();
        assert_eq!(error.to_string(), format!("epsilon: expected a finite number, at least 0, given {epsilon}"));
    }
    let gradients = Gradients { dx: &mut y, dgamma: None, dbeta: None };
    let error = rms::backward([2, 3], &x, None, &x, 0.1, gradients, &mut [], run).unwrap_err();
    assert_eq!(error, length("workspace", 6, 0));
    let uneven = group::Shape { batch: 1, channels: 3, pixels: 2, groups: 2 };
    let error = group::forward(uneven, &x, none, 0.1, &mut y, run).unwrap_err();
    assert_eq!(error.to_string(), "groups: expected a divisor of 3 channels, given 2");
    let shape = batch::Shape { batch: 1, channels: 3, pixels: 2, layout: Layout::Nchw };
    let (mut a, mut b, mut c, mut d) = ([9.0; 3], [9.0; 3], [9.0; 3], [9.0; 3]);
    let moments = batch::Moments { mean: &mut a, inverse_deviation: &mut b };
    let running = Some(batch::Running { mean: &mut c, variance: &mut d, momentum: 1.5 });
    let error = batch::forward(shape, &x, none, 0.1, &mut y, moments, running, &mut [0.0; 6], run).unwrap_err();
    assert_eq!(error.to_string(), "momentum: expected 0 to 1, given 1.5");
    assert_eq!((y, a, b, c, d), ([9.0; 6], [9.0; 3], [9.0; 3], [9.0; 3], [9.0; 3]));
}

#[test]
fn nothing_at_all_is_no_error_and_its_gradients_are_zero() {
    let run = Parallelism::Serial;
    let huge = usize::MAX;
    for shape in [[0, huge], [huge, 0]] {
        layer::forward(shape, &[], Affine::default(), 0.1, &mut [], run).unwrap();
        let gradients = Gradients { dx: &mut [], dgamma: None, dbeta: None };
        layer::backward(shape, &[], None, &[], 0.1, gradients, &mut [], run).unwrap();
    }
    let (mut dgamma, mut dbeta) = ([9.0; 3], [9.0; 3]);
    let gradients = Gradients { dx: &mut [], dgamma: Some(&mut dgamma), dbeta: Some(&mut dbeta) };
    layer::backward([0, 3], &[], None, &[], 0.1, gradients, &mut [], run).unwrap();
    assert_eq!((dgamma, dbeta), ([0.0; 3], [0.0; 3]));
    (dgamma, dbeta) = ([9.0; 3], [9.0; 3]);
    let shape = group::Shape { batch: 2, channels: 3, pixels: 0, groups: 1 };
    let gradients = Gradients { dx: &mut [], dgamma: Some(&mut dgamma), dbeta: Some(&mut dbeta) };
    group::backward(shape, &[], None, &[], 0.1, gradients, &mut [0.0; 12], run).unwrap();
    assert_eq!((dgamma, dbeta), ([0.0; 3], [0.0; 3]));
    let empty = group::Shape { batch: 0, channels: huge, pixels: huge, groups: 1 };
    group::forward(empty, &[], Affine::default(), 0.1, &mut [], run).unwrap();
    (dgamma, dbeta) = ([9.0; 3], [9.0; 3]);
    for layout in [Layout::Nchw, Layout::Nhwc] {
        let shape = batch::Shape { batch: 0, channels: 3, pixels: huge, layout };
        let gradients = Gradients { dx: &mut [], dgamma: Some(&mut dgamma), dbeta: Some(&mut dbeta) };
        let mut workspace = vec![f32::NAN; batch::workspace_len(shape).unwrap()];
        batch::backward(shape, &[], &[0.0; 3], &[0.0; 3], None, &[], gradients, &mut workspace, run).unwrap();
        assert_eq!((dgamma, dbeta), ([0.0; 3], [0.0; 3]));
        let shape = batch::Shape { batch: huge, channels: 0, pixels: huge, layout };
        assert_eq!(batch::workspace_len(shape), Ok(0));
    }
}

#[test]
fn a_special_value_stays_in_its_set() {
    for isa in Isa::available() {
        for problem in [
            Layer([5, 70]),
            Rms([5, 70]),
            Group(group::Shape { batch: 2, channels: 6, pixels: 35, groups: 3 }),
            Batch(batch::Shape { batch: 2, channels: 6, pixels: 35, layout: Layout::Nchw }),
            Batch(batch::Shape { batch: 2, channels: 6, pixels: 35, layout: Layout::Nhwc }),
        ] {
            let mut data = Data::new(problem, 8, 0.0);
            data.x[77] = f32::NAN;
            let out = run(problem, &data, Execution::on(isa));
            for i in 0..problem.elements() {
                let is_touched = problem.set(i) == problem.set(77);
                assert_eq!([out.y[i].is_nan(), out.dx[i].is_nan()], [is_touched; 2], "{problem:?}, {i} on {isa}");
            }
        }
    }
}
