//! `kernelbench` without arguments: the machine, its ceiling, and a dozen layers of known networks.

use std::io::Write;
use std::time::Duration;

use kernels::conv::Algorithm;
use kernels::{Isa, Parallelism, Team};
use rayon::ThreadPool;

use crate::conv::Setting;
use crate::failure::Failure;
use crate::machine;
use crate::options::Pass;
use crate::problem::{Problem, Refusal};
use crate::report;
use crate::shapes;
use crate::timing::Budget;

/// A dozen layers that ask for different things, each with a word on what is hard about it.
const LAYERS: [(&str, &str); 12] = [
    ("lenet5.c1", "tiny, 8 microseconds of work"),
    ("alexnet.conv1", "11x11 taps, stride 4, 3 channels in"),
    ("alexnet.conv2", "5x5 taps"),
    ("alexnet.conv5", "3x3 taps, 13x13 pixels"),
    ("nin.cccp1", "1x1, nothing but a matrix product"),
    ("googlenet.3a.5x5", "5x5 taps, 16 channels in"),
    ("vgg16.conv3_2", "3x3 taps, 3.7 GFLOP"),
    ("resnet50.conv1", "7x7 taps, stride 2, 3 channels in"),
    ("resnet50.3.3x3s2", "3x3 taps, stride 2"),
    ("resnet50.5.3x3", "3x3 taps, 7x7 pixels, 512 channels"),
    ("mobilenet.dw112", "depthwise, bound by memory"),
    ("vit.patch16", "16x16 taps, stride 16"),
];

/// Bytes a thread that its own cache surely holds.
const NEAR_BYTES: usize = 128 << 10;

/// Writes the overview.
///
/// # Errors
/// When a layer's result differs from the definition, or the output fails.
pub fn run(isa: Isa, threads: usize, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    let plural = if threads == 1 { "" } else { "s" };
    writeln!(out, "{}, {threads} hardware thread{plural}", machine::cpu_name())?;
    let others = |available: bool| {
        let names: Vec<String> = Isa::ALL
            .into_iter()
            .filter(|&other| other != isa && other.is_available() == available)
            .map(|isa| isa.to_string())
            .collect();
        if names.is_empty() { "nothing else".to_string() } else { names.join(", ") }
    };
    writeln!(out, "Kernels use {isa}; this CPU also has {}, and lacks {}.", others(true), others(false))?;

    let (alone, all) = (machine::pool(1)?, machine::pool(threads)?);
    writeln!(out, "\nWhat it can do at most, measured now{:15} 1 thread   {threads:3} thread{plural}", "")?;
    for isa in Isa::available() {
        let speed = |pool: &ThreadPool| machine::fma_peak(pool, isa).map(|peak| peak / 1e9);
        let label = format!("multiply-adds on registers, {isa}");
        writeln!(out, "  {label:38} {:8.1}     {:8.1}   GFLOP/s", speed(&alone)?, speed(&all)?)?;
    }
    let speed = |pool: &ThreadPool, bytes| machine::read_bandwidth(pool, isa, bytes).map(|bandwidth| bandwidth / 1e9);
    let (near, near_all) = (speed(&alone, NEAR_BYTES)?, speed(&all, NEAR_BYTES * threads)?);
    writeln!(out, "  {:38} {near:8.1}     {near_all:8.1}   GB/s", "reads from a core's own cache")?;
    let far = machine::beyond_caches();
    writeln!(out, "  {:38} {:8.1}     {:8.1}   GB/s", "reads from memory", speed(&alone, far)?, speed(&all, far)?)?;

    let setting = Setting { pass: Pass::Forward, isa, threads, peak: machine::fma_peak(&all, isa)? };
    all.install(|| Team::scope(|team| layers(setting, Parallelism::Team(team), out)))
}

fn layers(setting: Setting, parallelism: Parallelism, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    let plural = if setting.threads == 1 { "" } else { "s" };
    writeln!(
        out,
        "\nConvolutions of known networks: one image, forward, {}, {} thread{plural}. Each result is first compared\n\
         with the definition in double precision; `of peak` is the speed over that of multiply-adds on registers.\n",
        setting.isa, setting.threads
    )?;
    writeln!(
        out,
        "{:18} {:37} {:>9} {:>9} {:>11} {:>9} {:>8}",
        "layer", "what is hard about it", "checked", "runs as", "time", "GFLOP/s", "of peak"
    )?;
    let budget = Budget { time: Duration::from_millis(500), ..Budget::default() };
    let mut failures = 0;
    for (name, remark) in LAYERS {
        let problem = Problem::new(shapes::named(name)?, setting.pass)?;
        match problem.study(setting.isa, Algorithm::Auto, parallelism, budget, false, false) {
            Ok(outcome) => {
                let speed = problem.operations() / outcome.timing.seconds_min;
                writeln!(
                    out,
                    "{name:18} {remark:37} {:>9} {:>9} {:>11} {:>9.1} {:>7.0}%",
                    outcome.checked.elements,
                    outcome.chosen.unwrap_or_default(),
                    report::duration(outcome.timing.seconds_min),
                    speed / 1e9,
                    100.0 * speed / setting.peak,
                )?;
            }
            Err(Refusal::Unsuitable(error)) => return Err(error.into()),
            Err(Refusal::Failed(failure)) => {
                writeln!(out, "{name:18} WRONG: {failure}")?;
                failures += 1;
            }
        }
        out.flush()?;
    }
    if failures > 0 {
        return Err(Failure::study(format!("{failures} of {} layers failed", LAYERS.len())));
    }
    writeln!(
        out,
        "\nAll results agree with the definition. More: `cargo run --release -- conv`, and `-- --help` for the options."
    )?;
    Ok(())
}
