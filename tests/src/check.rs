//! Everything that is checked of one convolution.
//!
//! For each algorithm and instruction set: forward, both gradients and all of them in one call are compared with
//! the reference on the first number of threads; every other number, if there is one, one image alone, and another
//! choice that reports the same algorithm must give the same bits. Loops are given to the other threads however little there is to do.
//! Outputs and workspaces are filled with NaN before and lie, as the inputs and the weights do, against guard pages, at
//! the other side for each number of threads; workspaces are exactly as long as was asked for; inputs must be as
//! before. Slices of a wrong length must be refused, and nothing written.

mod refusals;
mod run;

use std::fmt;

use kernels::conv::{Algorithm, Sizes};
use kernels::{Error, Isa};

use crate::case::{ConvCase, Pass};
use crate::crash;
use crate::data::{ConvData, random};
use crate::guard::{Guarded, Side};
use crate::oracle::{Reference, Rule, same_bits};
use crate::pools::{Pools, THREADS};
use crate::stats::Stats;
use crate::subject::{BackwardPlan, Choice, ForwardPlan, Subject};
use run::{Run, on_threads};

/// A convolution that is wrong: the line that repeats it, and what is wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    /// The case, narrowed down to one algorithm, instruction set, number of threads and pass.
    pub case: Box<ConvCase>,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.message)?;
        writeln!(f, "  case:  {}", self.case)?;
        write!(f, "  again: cargo run -p tests --example repro -- \"{}\"", self.case)
    }
}

impl std::error::Error for Failure {}

/// Numbers of threads of which a case that is run one way draws one. Most go without a pool: there a case takes about
/// twice as long.
const DRAWN_THREADS: [usize; 8] = [1, 2, 1, 3, 1, 1, 1, 7];

/// The instruction sets to test: that of `KERNELS_ISA`, if set, else all that the CPU has.
///
/// # Panics
/// When the variable asks for what the CPU lacks.
pub fn tested_isas() -> Vec<Isa> {
    if std::env::var_os("KERNELS_ISA").is_some() {
        vec![Isa::choose().expect("KERNELS_ISA names an instruction set of this CPU")]
    } else {
        Isa::available().collect()
    }
}

/// How a case is to be run: every one of these with every other.
#[derive(Clone, Debug, PartialEq)]
pub struct Ways {
    /// The algorithms.
    pub algorithms: Vec<Algorithm>,
    /// The instruction sets.
    pub isas: Vec<Isa>,
    /// The numbers of threads, in rising order.
    pub threads: Vec<usize>,
}

impl Ways {
    /// All that a case leaves open.
    pub fn all(case: &ConvCase) -> Self {
        let every = || Algorithm::ALL.into_iter().chain([Algorithm::Auto]).collect();
        Self {
            algorithms: case.algorithm.map_or_else(every, |algorithm| vec![algorithm]),
            isas: case.isa.map_or_else(tested_isas, |isa| vec![isa]),
            threads: case.threads.map_or(THREADS.to_vec(), |threads| vec![threads]),
        }
    }

    /// These numbers of threads instead.
    #[must_use]
    pub fn on_threads(self, threads: &[usize]) -> Self {
        Self { threads: threads.to_vec(), ..self }
    }
}

/// What a thread that checks needs: guarded memory and pools, made once.
#[derive(Debug, Default)]
pub struct Bench {
    memory: Memory,
    pools: Pools,
    kept: Vec<(Algorithm, Isa, Results)>,
}

/// One guarded buffer for each argument.
#[derive(Debug, Default)]
struct Memory {
    weights: Guarded,
    bias: Guarded,
    x: Guarded,
    residual: Guarded,
    dy: Guarded,
    y: Guarded,
    dx: Guarded,
    dw: Guarded,
    db: Guarded,
    workspace: Guarded,
}

/// What the calls on the first number of threads gave.
#[derive(Clone, Debug, Default)]
struct Results {
    y: Option<Vec<f32>>,
    gradients: Option<[Vec<f32>; 3]>,
}

impl Bench {
    /// A bench without memory or pools; both come with the first case.
    pub fn new() -> Self {
        Self::default()
    }
}

/// A problem with its data and its reference.
struct Problem {
    case: ConvCase,
    sizes: Sizes,
    data: ConvData,
    reference: Reference,
    rule: Rule,
}

impl Problem {
    fn new(case: &ConvCase, sizes: Sizes, stats: &mut Stats) -> Self {
        let data = ConvData::new(case, &sizes);
        let reference = Reference::new(case, &sizes, &data);
        let rule = case.data.quantum().map_or(Rule::Bound, |quantum| Rule::Exact { quantum });
        stats.problems += 1;
        stats.weak += u64::from(rule != Rule::Bound && reference.is_weak());
        Self { case: *case, sizes, data, reference, rule }
    }
}

/// Checks a case every way that it leaves open.
///
/// # Errors
/// The first thing that is wrong. An invalid spec or shape must be refused when the plan is made.
pub fn check(subject: &dyn Subject, case: &ConvCase, bench: &mut Bench, stats: &mut Stats) -> Result<(), Failure> {
    check_ways(subject, case, &Ways::all(case), bench, stats)
}

/// Checks a case these ways.
///
/// # Errors
/// As [`check`].
pub fn check_ways(
    subject: &dyn Subject,
    case: &ConvCase,
    ways: &Ways,
    bench: &mut Bench,
    stats: &mut Stats,
) -> Result<(), Failure> {
    let Ok(sizes) = case.spec.sizes(case.shape) else {
        return check_refused(subject, case, ways);
    };
    let problem = Problem::new(case, sizes, stats);
    bench.kept.clear();
    for &isa in &ways.isas {
        for &algorithm in &ways.algorithms {
            check_choice(subject, &problem, algorithm, isa, &ways.threads, bench, stats)?;
        }
    }
    Ok(())
}

/// Checks a case one way, drawn by its seed: one of the instruction sets, a number of threads, one of the algorithms
/// that take the problem, and what is chosen automatically.
///
/// # Errors
/// As [`check`].
pub fn check_drawn(
    subject: &dyn Subject,
    case: &ConvCase,
    isas: &[Isa],
    bench: &mut Bench,
    stats: &mut Stats,
) -> Result<(), Failure> {
    let draw = |counter: u64, below: usize| (random(case.seed, counter) >> 32) as usize % below;
    let (isa, threads) = (isas[draw(80, isas.len())], DRAWN_THREADS[draw(81, DRAWN_THREADS.len())]);
    let mut algorithms = Algorithm::ALL;
    for last in (1..algorithms.len()).rev() {
        algorithms.swap(last, draw(82 + last as u64, last + 1));
    }
    let Ok(sizes) = case.spec.sizes(case.shape) else {
        let ways = Ways { algorithms: vec![algorithms[0], Algorithm::Auto], isas: vec![isa], threads: vec![threads] };
        return check_refused(subject, case, &ways);
    };
    let problem = Problem::new(case, sizes, stats);
    bench.kept.clear();
    for algorithm in algorithms {
        if check_choice(subject, &problem, algorithm, isa, &[threads], bench, stats)? {
            break;
        }
    }
    check_choice(subject, &problem, Algorithm::Auto, isa, &[threads], bench, stats)?;
    Ok(())
}

/// An invalid problem is refused by every algorithm, forward and backward.
fn check_refused(subject: &dyn Subject, case: &ConvCase, ways: &Ways) -> Result<(), Failure> {
    for &isa in &ways.isas {
        for &algorithm in &ways.algorithms {
            let choice = Choice { algorithm, isa, repacked: false };
            let accepted =
                subject.forward(case, choice, &[], None).is_ok() || subject.backward(case, choice, &[]).is_ok();
            if accepted {
                let message = "a plan was made for a spec and shape that are invalid".into();
                return Err(Failure { case: Box::new(case.algorithm(algorithm).isa(isa)), message });
            }
        }
    }
    Ok(())
}

/// The plans of a choice, as far as the algorithm takes the problem.
type Plans = (Option<Box<dyn ForwardPlan>>, Option<Box<dyn BackwardPlan>>);

/// Makes the plans that a case asks for, from weights and a bias that lie against guard pages.
fn plans(
    subject: &dyn Subject,
    problem: &Problem,
    case: &ConvCase,
    choice: Choice,
    memory: &mut Memory,
    stats: &mut Stats,
) -> Result<Plans, Failure> {
    let data = &problem.data;
    let algorithm = choice.algorithm;
    let side = if random(case.seed, 79 + algorithm as u64) & 1 == 0 { Side::Left } else { Side::Right };
    let mut declined = |error: Error, pass, direction| {
        stats.decline(algorithm, direction);
        let message = format!("no plan could be made for a valid problem: {error}");
        // What is chosen automatically takes every problem.
        if algorithm == Algorithm::Auto { Err(Failure { case: Box::new(case.pass(pass)), message }) } else { Ok(()) }
    };
    let (mut forward, mut backward) = (None, None);
    if case.runs(Pass::Forward) {
        let bias = data.bias.as_ref().map(|bias| &*memory.bias.copy(bias, side));
        match subject.forward(case, choice, memory.weights.copy(&data.weights, side), bias) {
            Ok(plan) => forward = Some(plan),
            Err(error) => declined(error, Pass::Forward, "forward")?,
        }
    }
    if case.pass.is_none_or(|pass| pass != Pass::Forward) {
        match subject.backward(case, choice, memory.weights.copy(&data.weights, side.other())) {
            Ok(plan) => backward = Some(plan),
            Err(error) => declined(error, Pass::BackwardData, "backward")?,
        }
    }
    Ok((forward, backward))
}

/// One algorithm on one instruction set, on each of these numbers of threads. Whether it takes the problem.
fn check_choice(
    subject: &dyn Subject,
    problem: &Problem,
    algorithm: Algorithm,
    isa: Isa,
    thread_counts: &[usize],
    bench: &mut Bench,
    stats: &mut Stats,
) -> Result<bool, Failure> {
    let case = problem.case.algorithm(algorithm).isa(isa);
    // Some cases go a less common way: replaced weights, calls that must be refused.
    let rare = random(case.seed, algorithm as u64 * 8 + isa as u64);
    let choice = Choice { algorithm, isa, repacked: rare.is_multiple_of(4) };
    let Bench { memory, pools, kept } = bench;

    let _line = crash::running(&case);
    // Weights are replaced on as many threads as there are, and packed on one.
    let most = if choice.repacked { thread_counts.last().copied().unwrap_or(1) } else { 1 };
    let (forward, backward) =
        pools.inside(most, || on_threads(most, |_| plans(subject, problem, &case, choice, memory, stats)).0)?;
    if forward.is_none() && backward.is_none() {
        return Ok(false);
    }

    let mut results = Results::default();
    let mut side = if random(case.seed, 77) & 1 == 0 { Side::Left } else { Side::Right };
    for &threads in thread_counts {
        let is_first = threads == thread_counts[0];
        let case = case.threads(threads);
        let mut run = Run { problem, case, threads, side, memory, results: &mut results, stats };
        pools.inside(threads, || run.all(&forward, &backward, is_first, is_first && rare % 8 == 1))?;
        match (forward.is_some(), backward.is_some()) {
            (true, true) => stats.cases += 1,
            _ => stats.partial += 1,
        }
        side = side.other();
    }
    let reported = forward.as_ref().map_or(algorithm, |plan| plan.algorithm());
    same_as_kept(&case, reported, &results, kept)?;
    if algorithm != Algorithm::Auto {
        kept.push((algorithm, isa, results));
    }
    Ok(true)
}

/// Whatever reports the same algorithm has the same bits, on every instruction set with fused multiply-adds.
fn same_as_kept(
    case: &ConvCase,
    reported: Algorithm,
    results: &Results,
    kept: &[(Algorithm, Isa, Results)],
) -> Result<(), Failure> {
    for (name, other_isa, other) in kept {
        let (other_isa, isa) = (*other_isa, case.isa.unwrap_or(Isa::Portable));
        let same_arithmetic = other_isa == isa || (other_isa != Isa::Portable && isa != Isa::Portable);
        if *name != reported || !same_arithmetic {
            continue;
        }
        // Both sides of the comparison have to run again.
        let both = ConvCase { isa: None, ..case.threads(1) };
        if let (Some(y), Some(other)) = (&results.y, &other.y) {
            same_bits("y", y, other).map_err(|why| Failure {
                case: Box::new(ConvCase { algorithm: None, ..both.pass(Pass::Forward) }),
                message: format!("the plan reports the algorithm {name}, which by name on {other_isa} differs: {why}"),
            })?;
        }
        let by_name = case.algorithm != Some(Algorithm::Auto);
        if let (true, Some(gradients), Some(other)) = (by_name, &results.gradients, &other.gradients) {
            for (what, (mine, other)) in ["dx", "dw", "db"].into_iter().zip(gradients.iter().zip(other)) {
                same_bits(what, mine, other).map_err(|why| Failure {
                    case: Box::new(both.pass(Pass::Both)),
                    message: format!("{name} on {other_isa} differs: {why}"),
                })?;
            }
        }
    }
    Ok(())
}
