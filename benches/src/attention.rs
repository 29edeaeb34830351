//! `kernelbench attention`: attentions, checked against the definition on a sample of rows, then timed.
//!
//! Operations count the pairs that see each other. Bytes are those of queries, keys, values and outputs, each once, and
//! their share is one of the speed at which memory is read: what bounds a row that decodes, with few queries for many
//! keys.

use std::io::Write;

use kernels::{Parallelism, Team};

use crate::failure::Failure;
use crate::head_problem::Problem;
use crate::heads::{self, Head};
use crate::machine;
use crate::options::{Format, Options, Pass};
use crate::random_heads;
use crate::report::{Report, Row};
use crate::timing::{Budget, time};

/// What the machine can do at most, operations and bytes a second.
#[derive(Clone, Copy)]
struct Ceiling {
    peak: f64,
    bandwidth: f64,
}

/// The attentions that the command line asks for and that have the pass.
fn attentions(options: &Options) -> Result<Vec<Head>, Failure> {
    let mut heads = match (&options.shapes, options.random) {
        (_, Some(count)) => random_heads::heads(count, options.seed),
        (Some(path), None) => heads::read(path)?,
        (None, None) => heads::parse(heads::NETWORKS, "attention.csv")?,
    };
    if let Some(only) = &options.only {
        heads.retain(|head| head.name.contains(only.as_str()));
        if heads.is_empty() {
            return Err(Failure::study(format!("no attention's name contains {only:?}")));
        }
    }
    if options.pass == Pass::Backward {
        heads.retain(|head| {
            if head.page_len.is_some() {
                eprintln!("{}: left out, keys and values in pages have no gradients", head.name);
            }
            head.page_len.is_none()
        });
        if heads.is_empty() {
            return Err(Failure::study("none of the attentions has a backward pass"));
        }
    }
    Ok(heads)
}

/// Checks and times everything that the command line asks for.
///
/// # Errors
/// A bad file, or a result that differs from the definition (which is not timed).
pub fn run(options: &Options, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    let heads = attentions(options)?;
    let pool = machine::pool(options.threads)?;
    let peak = machine::fma_peak(&pool, options.isa)?;
    let bandwidth = machine::read_bandwidth(&pool, options.isa, machine::beyond_caches())?;
    if options.format == Format::Text {
        let plural = if options.threads == 1 { "" } else { "s" };
        writeln!(
            out,
            "{}: {}, {} thread{plural}, FMA peak {:.1} GFLOP/s, memory is read at {:.1} GB/s; {} pass, {}, checked before \
             it is timed\n",
            machine::cpu_name(),
            options.isa,
            options.threads,
            peak / 1e9,
            bandwidth / 1e9,
            options.pass.name(),
            options.heads.name(),
        )?;
    }
    let mut report = Report::new(out, options.format);
    let ceiling = Ceiling { peak, bandwidth };
    pool.install(|| {
        Team::scope(|team| {
            for head in heads {
                report.row(&study(head, options, ceiling, Parallelism::Team(team))?)?;
            }
            Ok(())
        })
    })
}

fn study(head: Head, options: &Options, ceiling: Ceiling, parallelism: Parallelism) -> Result<Row, Failure> {
    let name = head.name.clone();
    let problem = Problem::new(head, options.heads)?;
    let mut prepared = problem.prepare(options.isa, options.pass, parallelism)?;
    let timing = time(Budget::default(), || prepared.call(parallelism))?;
    let speed = problem.operations(options.pass)? / timing.seconds_min;
    let traffic = problem.bytes() / timing.seconds_min;
    Ok(Row {
        name,
        pass: options.pass.name(),
        layout: options.heads.name(),
        algorithm: "auto".into(),
        chosen: None,
        isa: options.isa.to_string(),
        threads: options.threads,
        seconds_min: timing.seconds_min,
        seconds_median: timing.seconds_median,
        calls: timing.calls,
        stages: None,
        seconds_prepare: 0.0,
        gflops: speed / 1e9,
        share_of_peak: speed / ceiling.peak,
        gigabytes_per_second: traffic / 1e9,
        share_of_bandwidth: Some(traffic / ceiling.bandwidth),
        regret: None,
        workspace_bytes: prepared.workspace_bytes,
        checked_elements: prepared.checked.elements,
        worst_error: prepared.checked.worst,
    })
}
