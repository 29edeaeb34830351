//! Layer, RMS, group and batch norm against one definition, within the errors that the module's page derives.

use kernels::conv::Layout;
use kernels::norm::{Affine, Gradients, batch, group, layer, rms};
use kernels::reference::{Sharing, norm_backward, norm_forward, norm_inference_backward, norm_inference_forward};
use kernels::{Error, Execution, Isa, Parallelism};
use tests::oracle::UNIT;

const EPSILON: f32 = 1e-5;

#[derive(Clone, Copy, Debug)]
enum Problem {
    Layer { rows: usize, columns: usize },
    Rms { rows: usize, columns: usize },
    Group(group::Shape),
    Batch(batch::Shape),
}
use Problem::{Batch, Group, Layer, Rms};

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

impl Problem {
    fn len(self) -> usize {
        match self {
            Layer { rows, columns } | Rms { rows, columns } => rows * columns,
            Group(s) => s.batch * s.channels * s.pixels,
            Batch(s) => s.batch * s.channels * s.pixels,
        }
    }

    fn sets(self) -> usize {
        match self {
            Layer { rows, .. } | Rms { rows, .. } => rows,
            Group(s) => s.batch * s.groups,
            Batch(s) => s.channels,
        }
    }

    fn parameters(self) -> usize {
        match self {
            Layer { columns, .. } | Rms { columns, .. } => columns,
            Group(s) => s.channels,
            Batch(s) => s.channels,
        }
    }

    fn set(self, i: usize) -> usize {
        match self {
            Layer { columns, .. } | Rms { columns, .. } => i / columns,
            Group(s) => i / (s.channels / s.groups * s.pixels),
            Batch(_) => self.parameter(i),
        }
    }

    fn parameter(self, i: usize) -> usize {
        match self {
            Layer { columns, .. } | Rms { columns, .. } => i % columns,
            Group(s) => i / s.pixels % s.channels,
            Batch(s) if s.layout == Layout::Nhwc => i % s.channels,
            Batch(s) => i / s.pixels % s.channels,
        }
    }

    /// The depths of sums: for moments, for the sums of `g`, for the parameters' gradients.
    fn depths(self) -> [f64; 3] {
        let lanes = |len: usize| (len / 64 + 8) as f64;
        match self {
            Layer { rows, columns } | Rms { rows, columns } => [lanes(columns), lanes(columns), (rows + 32) as f64],
            Group(s) => {
                let group = s.channels / s.groups;
                let run = lanes(s.pixels);
                [lanes(group * s.pixels), run + group as f64, run + s.batch as f64]
            }
            Batch(s) if s.layout == Layout::Nhwc || s.pixels == 1 => {
                let rows = s.batch * s.pixels;
                let piece = rows.min(rows.div_ceil(64).max(16384 / s.channels)) as f64 / 4.0 + 8.0;
                [piece, piece + 64.0, piece + 64.0]
            }
            Batch(s) => {
                let run = lanes(s.pixels) + 4.0;
                [run, run + s.batch as f64, run + s.batch as f64]
            }
        }
    }

    fn run(self, data: &Data, execution: Execution) -> Results {
        let (len, parameters) = (self.len(), self.parameters());
        let nan = |len: usize| vec![f32::NAN; len];
        let mut out = Results { y: nan(len), dx: nan(len), dgamma: nan(parameters), dbeta: nan(parameters) };
        let Data { x, dy, gamma, beta } = data;
        let affine = Affine::new(gamma, beta);
        let Results { y, dx, dgamma, dbeta } = &mut out;
        match self {
            Layer { rows, columns } => {
                let shape = [rows, columns];
                layer::forward(shape, x, affine, EPSILON, y, execution).unwrap();
                let mut workspace = nan(layer::backward_workspace_len(shape).unwrap());
                let gradients = Gradients { dx, dgamma: Some(dgamma), dbeta: Some(dbeta) };
                layer::backward(shape, x, Some(gamma), dy, EPSILON, gradients, &mut workspace, execution).unwrap();
            }
            Rms { rows, columns } => {
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

    fn problem(&mut self) -> Problem {
        const SIDES: [usize; 16] = [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 130, 257];
        let (rows, columns) = (self.of(&SIDES), self.of(&SIDES));
        let (batch, pixels) = (1 + self.below(4), self.of(&SIDES));
        match self.below(5) {
            0 => Layer { rows, columns },
            1 => Rms { rows, columns },
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
    fn new(problem: Problem, seed: u64, offset: f32) -> Self {
        let mut random = Random(seed);
        let (len, parameters) = (problem.len(), problem.parameters());
        Self {
            x: random.numbers(len).into_iter().map(|x| x + offset).collect(),
            dy: random.numbers(len),
            gamma: random.numbers(parameters),
            beta: random.numbers(parameters),
        }
    }
}

fn wide(v: &[f32]) -> Vec<f64> {
    v.iter().map(|&v| v.into()).collect()
}

/// The exact results and how far others may be from them, as the page of `norm` says.
fn expected(problem: Problem, data: &Data) -> ([Vec<f64>; 4], [Vec<f64>; 4]) {
    let (len, parameters, sets) = (problem.len(), problem.parameters(), problem.sets());
    let (set, parameter) = (|i| problem.set(i), |i| problem.parameter(i));
    let is_centred = !matches!(problem, Rms { .. });
    let sharing = Sharing { len, sets, parameters, set: &set, parameter: &parameter, is_centred };
    let (x, dy, gamma) = (wide(&data.x), wide(&data.dy), wide(&data.gamma));
    let beta = if is_centred { wide(&data.beta) } else { vec![0.0; parameters] };
    let epsilon = f64::from(EPSILON);
    let (mut y, mut dx) = (vec![0.0; len], vec![0.0; len]);
    let (mut dgamma, mut dbeta) = (vec![0.0; parameters], vec![0.0; parameters]);
    norm_forward(&sharing, &x, &gamma, &beta, epsilon, &mut y).unwrap();
    norm_backward(&sharing, &x, &gamma, &dy, epsilon, &mut dx, &mut dgamma, &mut dbeta).unwrap();

    let (means, rs) = sharing.moments(&x, epsilon);
    let [d, d_sums, k] = problem.depths();
    let (mut count, mut size, mut square) = (vec![0.0; sets], vec![0.0; sets], vec![0.0; sets]);
    for i in 0..len {
        count[set(i)] += 1.0;
        size[set(i)] += x[i].abs();
        square[set(i)] += x[i] * x[i];
    }
    let em = |s: usize| if is_centred { (d + 2.0) * UNIT * size[s] / count[s] } else { 0.0 };
    // Relative to r. Batch norm merges the moments of runs, whose means err each for itself.
    let er = |s: usize| match problem {
        Batch(_) => {
            let merged = (d + 2.0) * UNIT * (square[s] / count[s]).sqrt() * rs[s];
            (d / 2.0 + 6.0) * UNIT + merged + merged.powi(2)
        }
        _ => (d / 2.0 + 6.0) * UNIT + em(s).powi(2) * rs[s].powi(2) / 2.0,
    };
    let hat = |i: usize| (x[i] - means[set(i)]) * rs[set(i)];
    let eh = |i: usize| rs[set(i)] * em(set(i)) + hat(i).abs() * (er(set(i)) + 3.0 * UNIT);
    let g = |i: usize| (dy[i] * gamma[parameter(i)]).abs();
    let (mut mean_g, mut mean_gh, mut mean_ge) = (vec![0.0; sets], vec![0.0; sets], vec![0.0; sets]);
    let (mut e_gamma, mut e_beta) = (vec![0.0; parameters], vec![0.0; parameters]);
    for i in 0..len {
        let s = set(i);
        mean_g[s] += if is_centred { g(i) / count[s] } else { 0.0 };
        mean_gh[s] += g(i) * hat(i).abs() / count[s];
        mean_ge[s] += g(i) * eh(i) / count[s];
        e_gamma[parameter(i)] += dy[i].abs() * (eh(i) + (k + 4.0) * UNIT * hat(i).abs());
        e_beta[parameter(i)] += (k + 2.0) * UNIT * dy[i].abs();
    }
    let e_y = (0..len)
        .map(|i| {
            let (gamma, beta) = (gamma[parameter(i)].abs(), beta[parameter(i)].abs());
            gamma * eh(i) + 2.0 * UNIT * (gamma * hat(i).abs() + beta)
        })
        .collect();
    let e_dx = (0..len)
        .map(|i| {
            let s = set(i);
            let terms = g(i) + mean_g[s] + hat(i).abs() * mean_gh[s];
            let sums = (d_sums + 12.0) * UNIT * terms + eh(i) * mean_gh[s] + hat(i).abs() * mean_ge[s];
            rs[s] * (sums + er(s) * (terms.min((dx[i] / rs[s]).abs() + sums)))
        })
        .collect();
    ([y, dx, dgamma, dbeta], [e_y, e_dx, e_gamma, e_beta])
}

fn check(problem: Problem, offset: f32, seed: u64) {
    let data = Data::new(problem, seed, offset);
    let (exact, bounds) = expected(problem, &data);
    for isa in Isa::available() {
        let out = problem.run(&data, Execution::on(isa));
        for (which, name) in ["y", "dx", "dgamma", "dbeta"].into_iter().enumerate() {
            let got = [&out.y, &out.dx, &out.dgamma, &out.dbeta][which];
            for i in 0..got.len() {
                let error = (f64::from(got[i]) - exact[which][i]).abs();
                let bound = bounds[which][i] * 1.01 + 2f64.powi(-140);
                assert!(
                    error <= bound,
                    "{problem:?}, offset {offset}, seed {seed}, on {isa}: {name}[{i}] is {} instead of {}: \
                     {:.2} times the bound",
                    got[i],
                    exact[which][i],
                    error / bound
                );
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
const LARGE: [Problem; 7] = [
    Layer { rows: 501, columns: 768 },
    Layer { rows: 2, columns: 100_003 },
    Rms { rows: 130, columns: 4096 },
    Group(group::Shape { batch: 3, channels: 96, pixels: 28 * 28, groups: 32 }),
    Batch(batch::Shape { batch: 4, channels: 70, pixels: 33 * 33, layout: Layout::Nchw }),
    Batch(batch::Shape { batch: 5, channels: 67, pixels: 1000, layout: Layout::Nhwc }),
    Batch(batch::Shape { batch: 4000, channels: 75, pixels: 1, layout: Layout::Nchw }),
];

#[test]
fn threads_and_fused_instruction_sets_do_not_change_a_bit() {
    for problem in LARGE {
        let data = Data::new(problem, 3, 0.5);
        let serial = problem.run(&data, Parallelism::Serial.into()).bits();
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let shared = pool.install(|| problem.run(&data, Parallelism::Current.into()).bits());
            assert!(shared == serial, "{problem:?} on {threads} threads");
        }
        let fused: Vec<_> = Isa::available().filter(|&isa| isa != Isa::Portable).collect();
        for pair in fused.windows(2) {
            let [a, b] = [pair[0], pair[1]].map(|isa| problem.run(&data, Execution::on(isa)).bits());
            assert!(a == b, "{problem:?} on {} and {}", pair[0], pair[1]);
        }
    }
}

#[test]
fn the_definition_of_the_gradient_is_the_slope_of_the_definition() {
    let mut random = Random(9);
    for problem in [
        Layer { rows: 2, columns: 5 },
        Rms { rows: 2, columns: 5 },
        Group(group::Shape { batch: 2, channels: 4, pixels: 3, groups: 2 }),
        Batch(batch::Shape { batch: 2, channels: 3, pixels: 2, layout: Layout::Nhwc }),
    ] {
        let (set, parameter) = (|i| problem.set(i), |i| problem.parameter(i));
        let sharing = Sharing {
            len: problem.len(),
            sets: problem.sets(),
            parameters: problem.parameters(),
            set: &set,
            parameter: &parameter,
            is_centred: !matches!(problem, Rms { .. }),
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
            let mut y = vec![0.0; problem.len()];
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
                let x: Vec<f64> = (0..problem.len()).filter(of_channel).map(|i| f64::from(data.x[i])).collect();
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

/// A batch norm whose moments are given: what its gradients are computed from.
struct Frozen {
    problem: Problem,
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
        let [len, channels] = [self.problem.len(), shape.channels];
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
    fn expected(&self) -> [(Vec<f64>, Vec<f64>); 3] {
        let Self { problem, data, mean, variance } = self;
        let (len, parameters) = (problem.len(), problem.parameters());
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
        let scaled = |v: &[f64], units: f64| v.iter().map(|v| units * UNIT * v.abs()).collect::<Vec<_>>();
        let (e_dx, e_dgamma, e_dbeta) = (scaled(&dx, 2.0), scaled(&magnitudes, k + 4.0), scaled(&plain, k));
        [(dx, e_dx), (dgamma, e_dgamma), (dbeta, e_dbeta)]
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
            for (which, name) in ["dx", "dgamma", "dbeta"].into_iter().enumerate() {
                let got = [&out.dx, &out.dgamma, &out.dbeta][which];
                let (exact, bounds) = &expected[which];
                for i in 0..got.len() {
                    let (error, bound) = ((f64::from(got[i]) - exact[i]).abs(), bounds[i] * 1.01 + 2f64.powi(-140));
                    assert!(
                        error <= bound,
                        "{shape:?}, seed {seed}, on {isa}: {name}[{i}] is {} instead of {}: {:.2} times the bound",
                        got[i],
                        exact[i],
                        error / bound
                    );
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
            Layer { rows: 5, columns: 70 },
            Rms { rows: 5, columns: 70 },
            Group(group::Shape { batch: 2, channels: 6, pixels: 35, groups: 3 }),
            Batch(batch::Shape { batch: 2, channels: 6, pixels: 35, layout: Layout::Nchw }),
            Batch(batch::Shape { batch: 2, channels: 6, pixels: 35, layout: Layout::Nhwc }),
        ] {
            let mut data = Data::new(problem, 8, 0.0);
            data.x[77] = f32::NAN;
            let out = problem.run(&data, Execution::on(isa));
            for i in 0..problem.len() {
                let is_touched = problem.set(i) == problem.set(77);
                assert_eq!([out.y[i].is_nan(), out.dx[i].is_nan()], [is_touched; 2], "{problem:?}, {i} on {isa}");
            }
        }
    }
}
