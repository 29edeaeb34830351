//! `kernelbench conv`: convolutions, checked and timed, one row for each layer and algorithm.

use std::io::Write;

use kernels::conv::{Algorithm, Layout};
use kernels::{Isa, Parallelism, Team};

use crate::failure::Failure;
use crate::machine;
use crate::options::{Format, Options, Pass};
use crate::problem::{Outcome, Problem, Refusal};
use crate::random_layers;
use crate::regret::{self, Timed};
use crate::report::{Report, Row};
use crate::shapes::{self, Layer};
use crate::timing::Budget;

/// The circumstances of a row.
#[derive(Clone, Copy, Debug)]
pub struct Setting {
    /// The direction.
    pub pass: Pass,
    /// The instruction set.
    pub isa: Isa,
    /// Threads that work at once.
    pub threads: usize,
    /// Operations a second that these threads can reach.
    pub peak: f64,
}

/// The row that an outcome makes.
pub fn row(layer: &Layer, problem: &Problem, setting: Setting, algorithm: Algorithm, outcome: &Outcome) -> Row {
    let seconds = outcome.timing.seconds_min;
    let speed = problem.operations() / seconds;
    Row {
        name: layer.name.clone(),
        pass: setting.pass.name(),
        layout: match layer.spec.layout {
            Layout::Nchw => "nchw",
            Layout::Nhwc => "nhwc",
        },
        algorithm: algorithm.to_string(),
        chosen: outcome.chosen.clone(),
        isa: setting.isa.to_string(),
        threads: setting.threads,
        seconds_min: seconds,
        seconds_median: outcome.timing.seconds_median,
        calls: outcome.timing.calls,
        stages: outcome.stages,
        seconds_prepare: outcome.seconds_prepare,
        gflops: speed / 1e9,
        share_of_peak: speed / setting.peak,
        gigabytes_per_second: problem.bytes() / seconds / 1e9,
        share_of_bandwidth: None,
        regret: None,
        workspace_bytes: outcome.workspace_bytes,
        checked_elements: outcome.checked.elements,
        worst_error: outcome.checked.worst,
    }
}

/// The layers that the command line asks for.
fn layers(options: &Options) -> Result<Vec<Layer>, Failure> {
    let mut layers = match (&options.shapes, options.pass) {
        _ if options.random.is_some() => random_layers::layers(options.random.unwrap_or(0), options.seed),
        (Some(path), _) => shapes::read(path)?,
        (None, Pass::Forward) => shapes::parse(shapes::NETWORKS, "conv_networks.csv")?,
        (None, Pass::Backward) => shapes::parse(shapes::TRAINING, "conv_training.csv")?,
    };
    if let Some(only) = &options.only {
        layers.retain(|layer| layer.name.contains(only.as_str()));
        if layers.is_empty() {
            return Err(Failure::study(format!("no layer's name contains {only:?}")));
        }
    }
    for layer in &mut layers {
        layer.spec.layout = options.layout;
        layer.spec.accuracy = options.accuracy;
    }
    Ok(layers)
}

/// Checks and times everything that the command line asks for.
///
/// # Errors
/// A bad file, a result that differs from the definition (which is not timed), or an algorithm that can do none
/// of the layers.
pub fn run(options: &Options, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    let layers = layers(options)?;
    let pool = machine::pool(options.threads)?;
    let peak = machine::fma_peak(&pool, options.isa)?;
    let Options { isa, threads, pass, .. } = *options;
    if options.format == Format::Text {
        writeln!(
            out,
            "{}: {isa}, {threads} thread{}, FMA peak {:.1} GFLOP/s; {} pass, every algorithm checked before it is timed\n",
            machine::cpu_name(),
            if threads == 1 { "" } else { "s" },
            peak / 1e9,
            pass.name(),
        )?;
    }
    let mut report = Report::new(out, options.format);
    let setting = Setting { pass, isa, threads, peak };
    pool.install(|| Team::scope(|team| rows(options, &layers, setting, Parallelism::Team(team), &mut report)))
}

fn rows(
    options: &Options,
    layers: &[Layer],
    setting: Setting,
    parallelism: Parallelism,
    report: &mut Report<'_>,
) -> Result<(), Failure> {
    let algorithms = match options.algorithm {
        Some(algorithm) => vec![algorithm],
        None => std::iter::once(Algorithm::Auto).chain(Algorithm::ALL).collect(),
    };
    let (mut done, mut failures, mut last_refusal) = (0, 0, None);
    let all = options.algorithm.is_none();
    let mut regrets = Vec::new();
    for layer in layers {
        let problem = Problem::new(layer.clone(), setting.pass)?;
        let (mut times, mut held) = (Vec::new(), Vec::new());
        for &algorithm in &algorithms {
            match problem.study(setting.isa, algorithm, parallelism, Budget::default(), options.stages, all) {
                Ok(outcome) => {
                    let row = row(layer, &problem, setting, algorithm, &outcome);
                    // For a program the choice's row says what it costs, which is known after the others'.
                    if all && options.format != Format::Text {
                        held.push(row);
                    } else {
                        report.row(&row)?;
                    }
                    times.push(Timed::new(algorithm, &outcome));
                    done += 1;
                }
                Err(Refusal::Unsuitable(error)) => {
                    if !all {
                        eprintln!("{}: left out, {algorithm} cannot do it ({error})", layer.name);
                    }
                    last_refusal = Some(error);
                }
                Err(Refusal::Failed(failure)) => {
                    eprintln!("{}, {algorithm}: {failure}", layer.name);
                    failures += 1;
                }
            }
        }
        let choice = if all { regret::regret(layer, &times)? } else { None };
        for mut row in held {
            if row.algorithm == Algorithm::Auto.to_string() {
                row.regret = choice.as_ref().map(|choice| choice.regret);
            }
            report.row(&row)?;
        }
        regrets.extend(choice);
    }
    if options.format == Format::Text && !regrets.is_empty() {
        report.note(&regret::summary(&mut regrets))?;
    }
    match (failures, done, last_refusal) {
        (0, 0, Some(error)) => Err(error.into()),
        (0, ..) => Ok(()),
        _ => Err(Failure::study(format!("{failures} of {} rows failed", failures + done))),
    }
}
