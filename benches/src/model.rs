//! `kernelbench model`: whole networks of the crate `nn`, one row each.
//!
//! ```text
//! forward    Network::eval, then Network::forward_into
//! train      Network::forward, softmax cross-entropy, Network::backward, a step of SGD with momentum 0.9
//! ```
//!
//! Before a row is timed, its output has to be finite and the same to the last bit on one thread and on all of them.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use kernels::Parallelism;
use nn::models::{AlexNet, Encoder, GoogLeNet, LeNet5, NiN, Perceptron, VisionTransformer};
use nn::{LayerTime, Network, Random, SCELoss, Sgd, Tensor};
use rayon::ThreadPool;

use crate::failure::Failure;
use crate::machine;
use crate::options::{Format, Options, TRAIN};
use crate::report::{Report, Row};
use crate::table;
use crate::timing::{Budget, time};

/// The networks of this project's figures.
pub const MODELS: &str = include_str!("../shapes/models.csv");

const COLUMNS: [&str; 4] = ["name", "model", "batch", "train"];

/// A network with a size of its input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// For example `alexnet.b8`.
    pub name: String,
    /// For example `alexnet`.
    pub model: String,
    /// Samples of an input.
    pub batch: usize,
    /// Whether its training is part of the study.
    pub train: bool,
}

/// The networks of a CSV text. `origin` names it in errors.
///
/// # Errors
/// A missing column or a field that is no number, each with its line.
pub fn parse(text: &str, origin: &str) -> Result<Vec<Case>, Failure> {
    table::parse(text, origin, &COLUMNS, |fields| {
        let expected = || "expected a name, a model, a batch and whether it is trained as 0 or 1".to_string();
        let field = |column: usize| fields.text(column).map_err(|_| expected());
        let number = |column: usize| field(column)?.parse::<usize>().map_err(|_| expected());
        let (name, model) = (field(0)?.to_string(), field(1)?.to_string());
        Ok(Case { name, model, batch: number(2)?, train: number(3)? > 0 })
    })
}

/// A network, the shape of a sample, and its classes. Nothing is left out in training: the same work each time.
fn build(model: &str, random: &mut Random) -> Result<(Network, Vec<usize>, usize), Failure> {
    let (digit, photo) = (vec![1, 28, 28], vec![3, 224, 224]);
    let dropout = 0.0;
    Ok(match model {
        "mlp" => (Network::new(Perceptron::default().build(random)?), digit, 10),
        "lenet5" => (Network::new(LeNet5::default().build(random)?), digit, 10),
        "alexnet" => (Network::new(AlexNet { dropout, ..AlexNet::default() }.build(random)?), photo, 1000),
        "nin" => (Network::new(NiN::default().build(random)?), photo, 1000),
        "googlenet" => (Network::new(GoogLeNet { dropout, ..GoogLeNet::default() }.build(random)?), photo, 1000),
        "vit-mnist" => (Network::new(VisionTransformer::digits().build(random)?), digit, 10),
        "vit-s16" => (Network::new(VisionTransformer::s16().build(random)?), photo, 1000),
        "vit-b16" => (Network::new(VisionTransformer::b16().build(random)?), photo, 1000),
        "clip-image-b32" => {
            let tower = VisionTransformer { classes: 512, ..VisionTransformer::b32() };
            (Network::new(tower.build(random)?), photo, 512)
        }
        "clip-text" => (Network::new(Encoder::clip_text().build(random)?), vec![77, 512], 512),
        "bert-base.128" => (Network::new(Encoder::bert_base().build(random)?), vec![128, 768], 2),
        _ => return Err(Failure::study(format!("no model is named {model:?}"))),
    })
}

/// The learning rate: so small that hundreds of steps change little.
const RATE: f32 = 1e-4;

/// A network with something to work on.
struct Problem {
    network: Network,
    x: Tensor,
    y: Vec<f32>,
    labels: Vec<usize>,
    loss: SCELoss,
    sgd: Sgd,
}

impl Problem {
    fn new(case: &Case) -> Result<Self, Failure> {
        let random = &mut Random::new(0);
        let (network, shape, classes) = build(&case.model, random)?;
        let shape = [&[case.batch], shape.as_slice()].concat();
        let x = (0..shape.iter().product()).map(|_| random.uniform(-1.0, 1.0)).collect();
        let labels = (0..case.batch).map(|n| n * 7919 % classes).collect();
        let y = vec![f32::NAN; case.batch * classes];
        Ok(Self { network, x: nn::tensor(&shape, x)?, y, labels, loss: SCELoss::default(), sgd: Sgd::new(0.9) })
    }

    fn forward(&mut self) -> Result<(), Failure> {
        Ok(self.network.forward_into(&self.x, &mut self.y)?)
    }

    fn step(&mut self, parallelism: Parallelism<'_>) -> Result<(), Failure> {
        let z = self.network.forward(&self.x)?;
        self.loss.forward(&z, &self.labels, parallelism)?;
        self.network.backward(&self.loss.backward()?)?;
        Ok(self.sgd.step(&mut self.network, RATE)?)
    }

    /// Compares the output with that of one thread. Returns the number of elements.
    fn check(&mut self, name: &str) -> Result<usize, Failure> {
        self.forward()?;
        let all = self.y.clone();
        self.network.set_parallelism(Parallelism::Serial);
        self.forward()?;
        self.network.set_parallelism(Parallelism::Current);
        for (at, (one, all)) in self.y.iter().zip(&all).enumerate() {
            if !one.is_finite() || one.to_bits() != all.to_bits() {
                return Err(Failure::study(format!("{name}: output {at} is {one} on one thread, {all} on all")));
            }
        }
        Ok(all.len())
    }
}

/// Passes of which the fastest counts for each layer.
const LISTED: usize = 7;

/// What each layer takes at best.
fn layer_times(problem: &mut Problem) -> Result<Vec<LayerTime>, Failure> {
    let mut best = problem.network.time_layers(&problem.x)?;
    for _ in 1..LISTED {
        for (best, now) in best.iter_mut().zip(problem.network.time_layers(&problem.x)?) {
            best.forward = best.forward.min(now.forward);
            best.backward = best.backward.min(now.backward);
        }
    }
    Ok(best)
}

fn study(case: &Case, options: &Options, peak: f64) -> Result<(Row, Vec<LayerTime>), Failure> {
    let mut problem = Problem::new(case)?;
    let flops = problem.network.summary(problem.x.shape())?.flops();
    let mut bytes = 4 * problem.network.parameter_count();
    problem.network.set_parallelism(Parallelism::Current);
    let start = Instant::now();
    let mut operations = flops;
    if options.train {
        // Twice as many backward; gradients and momentum beside the parameters.
        (operations, bytes) = (3.0 * flops, 3 * bytes);
    } else {
        problem.network.eval();
    }
    let checked_elements = problem.check(&case.name)?;
    let timing = match options.train {
        true => time(Budget::default(), || problem.step(Parallelism::Current))?,
        false => time(Budget::default(), || problem.forward())?,
    };
    let times = if options.layers { layer_times(&mut problem)? } else { Vec::new() };
    let seconds_prepare = start.elapsed().as_secs_f64() - timing.seconds_median * timing.calls as f64;
    let speed = operations / timing.seconds_min;
    let row = Row {
        name: case.name.clone(),
        pass: if options.train { TRAIN } else { options.pass.name() },
        layout: "nchw",
        algorithm: "auto".into(),
        chosen: None,
        isa: options.isa.to_string(),
        threads: options.threads,
        seconds_min: timing.seconds_min,
        seconds_median: timing.seconds_median,
        calls: timing.calls,
        stages: None,
        seconds_prepare: seconds_prepare.max(0.0),
        gflops: speed / 1e9,
        share_of_peak: speed / peak,
        gigabytes_per_second: bytes as f64 / timing.seconds_min / 1e9,
        share_of_bandwidth: None,
        regret: None,
        workspace_bytes: 0,
        checked_elements,
        worst_error: 0.0,
    };
    Ok((row, times))
}

fn cases(options: &Options) -> Result<Vec<Case>, Failure> {
    let mut cases = match &options.shapes {
        Some(path) => read(path)?,
        None => parse(MODELS, "models.csv")?,
    };
    let only = options.only.as_deref().unwrap_or_default();
    cases.retain(|case| case.name.contains(only) && (case.train || !options.train));
    if cases.is_empty() {
        return Err(Failure::study(format!("no network for this pass has a name that contains {only:?}")));
    }
    Ok(cases)
}

fn read(path: &Path) -> Result<Vec<Case>, Failure> {
    table::read(path, parse)
}

/// Checks and times everything that the command line asks for.
///
/// # Errors
/// A bad file, a model that there is not, or a result that is wrong.
pub fn run(options: &Options, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    let cases = cases(options)?;
    let pool: ThreadPool = machine::pool(options.threads)?;
    let peak = machine::fma_peak(&pool, options.isa)?;
    let mut report = Report::new(out, options.format);
    pool.install(|| {
        for case in &cases {
            let (row, times) = study(case, options, peak)?;
            report.row(&row)?;
            if options.format == Format::Text && !times.is_empty() {
                report.note("    forward    backward  layer (microseconds)")?;
                for time in &times {
                    report.note(&time.to_string())?;
                }
            }
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_networks_of_this_project_are_read_and_learn() {
        let cases = parse(MODELS, "").unwrap();
        assert_eq!(cases.len(), 15);
        for case in cases.iter().filter(|case| ["mlp", "lenet5"].contains(&case.model.as_str())) {
            let mut problem = Problem::new(case).unwrap();
            problem.step(Parallelism::Serial).unwrap();
            problem.network.eval();
            assert_eq!(problem.check(&case.name).unwrap(), 10 * case.batch);
            assert!(!layer_times(&mut problem).unwrap().is_empty());
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let message = |text: &str| parse(text, "x.csv").unwrap_err().to_string();
        assert_eq!(message(""), "x.csv: the file is empty");
        assert!(message("name,model\n").starts_with("x.csv, line 1: no column `batch`"));
        assert!(message("name,model,batch,train\na,b,c,1\n").starts_with("x.csv, line 2: expected a name"));
        assert!(build("none", &mut Random::new(0)).is_err());
    }
}
