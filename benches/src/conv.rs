//! `kernelbench conv`: convolutions, checked and timed, one row for each layer and algorithm.

use std::io::Write;

use kernels::conv::{Algorithm, Layout};
use kernels::{Isa, Parallelism, Team};

use crate::failure::Failure;
use crate::machine;
use crate::options::{Format, Options, Pass};
use crate::problem::{Outcome, Problem, Refusal};
use crate::random_layers;
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
        workspace_bytes: outcome.workspace_bytes,
        checked_elements: outcome.checked.elements,
        worst_error: outcome.checked.worst,
    }
}

/// The seed of `--random`.
const RANDOM_SEED: u64 = 1;

/// The layers that the command line asks for.
fn layers(options: &Options) -> Result<Vec<Layer>, Failure> {
    let mut layers = match (&options.shapes, options.pass) {
        _ if options.random.is_some() => random_layers::layers(options.random.unwrap_or(0), RANDOM_SEED),
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
    let mut regrets = Vec::new();
    for layer in layers {
        let problem = Problem::new(layer.clone(), setting.pass)?;
        let mut times = Vec::new();
        for &algorithm in &algorithms {
            match problem.study(setting.isa, algorithm, parallelism, Budget::default(), options.stages) {
                Ok(outcome) => {
                    report.row(&row(layer, &problem, setting, algorithm, &outcome))?;
                    times.push((algorithm, outcome.chosen.clone(), outcome.timing.seconds_min));
                    done += 1;
                }
                Err(Refusal::Unsuitable(error)) => {
                    if options.algorithm.is_some() {
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
        // Gradients have errors, and so choices, of their own.
        if setting.pass == Pass::Forward {
            regrets.extend(regret(layer, &times));
        }
    }
    if options.algorithm.is_none() && options.format == Format::Text && !regrets.is_empty() {
        report.note(&summary(&mut regrets))?;
    }
    match (failures, done, last_refusal) {
        (0, 0, Some(error)) => Err(error.into()),
        (0, ..) => Ok(()),
        _ => Err(Failure::study(format!("{failures} of {} rows failed", failures + done))),
    }
}

/// How much longer than the fastest algorithm that a layer's accuracy allows the chosen one takes: both timed under
/// their own names, in the same minute.
fn regret(layer: &Layer, times: &[(Algorithm, Option<String>, f64)]) -> Option<(f64, String)> {
    let chosen = times.iter().find(|time| time.0 == Algorithm::Auto)?.1.clone()?;
    let named = |time: &&(Algorithm, Option<String>, f64)| time.0 != Algorithm::Auto;
    let own = times.iter().filter(named).find(|time| time.0.to_string() == chosen)?.2;
    let allowed = times.iter().filter(named).filter(|time| time.0.is_allowed(&layer.spec));
    let best = allowed.min_by(|a, b| a.2.total_cmp(&b.2))?;
    Some((own / best.2 - 1.0, format!("{}: {chosen} instead of {}", layer.name, best.0)))
}

/// What the choice costs.
fn summary(regrets: &mut [(f64, String)]) -> String {
    regrets.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mean = regrets.iter().map(|regret| regret.0).sum::<f64>() / regrets.len() as f64;
    let mut text = format!("\nThe choice costs {:.1} % over the best on average; the worst:\n", 100.0 * mean);
    for (regret, what) in regrets.iter().take(12) {
        text += &format!("  {:5.1} %  {what}\n", 100.0 * regret);
    }
    text
}
