//! Everything that is checked of one convolution.
//!
//! For each algorithm and instruction set: forward, both gradients and all of them in one call are compared with
//! the reference on one thread; every other number of threads, one image alone, and another choice that reports
//! the same algorithm must give the same bits. Outputs and workspaces are filled with NaN before and lie against
//! guard pages, at the other side for each number of threads; workspaces are exactly as long as was asked for;
//! inputs must be as before. Slices of a wrong length must be refused, and nothing written.

use std::collections::BTreeMap;
use std::fmt;

use kernels::conv::{Algorithm, Shape, Sizes};
use kernels::{Error, Isa, Parallelism};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::case::{ConvCase, Pass};
use crate::crash;
use crate::data::{ConvData, random};
use crate::guard::{Guarded, POISON, SENTINEL, Side};
use crate::oracle::{Expected, Reference, Rule, compare, same_bits};
use crate::stats::Stats;
use crate::subject::{BackwardPlan, Choice, ForwardPlan, Subject};

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

/// Numbers of threads that every case runs on.
pub const THREADS: [usize; 3] = [1, 2, 3];

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

/// What a thread that checks needs: guarded memory and pools, made once.
#[derive(Debug, Default)]
pub struct Bench {
    memory: Memory,
    pools: BTreeMap<usize, ThreadPool>,
    kept: BTreeMap<(String, Isa), Results>,
}

/// One guarded buffer for each argument.
#[derive(Debug, Default)]
struct Memory {
    x: Guarded,
    residual: Guarded,
    dy: Guarded,
    y: Guarded,
    dx: Guarded,
    dw: Guarded,
    db: Guarded,
    workspace: Guarded,
}

/// What the one-threaded calls gave.
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

    /// Makes the pool for so many threads, unless there is one.
    fn warm_up(&mut self, threads: usize) {
        if threads > 1 {
            self.pools.entry(threads).or_insert_with(|| {
                ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool of a few threads")
            });
        }
    }
}

/// Runs a call on the calling thread alone, or inside a pool.
fn on_threads<R: Send>(
    pools: &BTreeMap<usize, ThreadPool>,
    threads: usize,
    call: impl FnOnce(Parallelism) -> R + Send,
) -> R {
    match pools.get(&threads) {
        Some(pool) if threads > 1 => pool.install(|| call(Parallelism::Current)),
        _ => call(Parallelism::Serial),
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

/// Checks a case every way that it leaves open.
///
/// # Errors
/// The first thing that is wrong. An invalid spec or shape must be refused when the plan is made.
pub fn check(subject: &dyn Subject, case: &ConvCase, bench: &mut Bench, stats: &mut Stats) -> Result<(), Failure> {
    let isas = case.isa.map_or_else(tested_isas, |isa| vec![isa]);
    let algorithms: Vec<Algorithm> = case
        .algorithm
        .map_or_else(|| Algorithm::ALL.into_iter().chain([Algorithm::Auto]).collect(), |algorithm| vec![algorithm]);
    let Ok(sizes) = case.spec.sizes(case.shape) else {
        return check_refused(subject, case, &algorithms, &isas);
    };
    let data = ConvData::new(case, &sizes);
    let reference = Reference::new(case, &sizes, &data);
    let rule = case.data.quantum().map_or(Rule::Bound, |quantum| Rule::Exact { quantum });
    stats.problems += 1;
    stats.weak += u64::from(rule != Rule::Bound && reference.is_weak());
    let problem = Problem { case: *case, sizes, data, reference, rule };
    bench.kept.clear();
    for &isa in &isas {
        for &algorithm in &algorithms {
            check_choice(subject, &problem, algorithm, isa, bench, stats)?;
        }
    }
    Ok(())
}

/// An invalid problem is refused by every algorithm, forward and backward.
fn check_refused(
    subject: &dyn Subject,
    case: &ConvCase,
    algorithms: &[Algorithm],
    isas: &[Isa],
) -> Result<(), Failure> {
    for &isa in isas {
        for &algorithm in algorithms {
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

/// All numbers of threads of one algorithm on one instruction set.
fn check_choice(
    subject: &dyn Subject,
    problem: &Problem,
    algorithm: Algorithm,
    isa: Isa,
    bench: &mut Bench,
    stats: &mut Stats,
) -> Result<(), Failure> {
    let case = problem.case.algorithm(algorithm).isa(isa);
    // One case in four goes a less common way: replaced weights, calls that must be refused.
    let rare = random(case.seed, algorithm as u64 * 8 + isa as u64);
    let choice = Choice { algorithm, isa, repacked: rare.is_multiple_of(4) };
    let data = &problem.data;
    let (wants_forward, wants_backward) =
        (case.runs(Pass::Forward), case.pass.is_none_or(|pass| pass != Pass::Forward));
    let plan_failure = |error: Error, pass| Failure {
        case: Box::new(case.pass(pass)),
        message: format!("no plan could be made for a valid problem: {error}"),
    };

    let _line = crash::running(&case);
    let mut forward = None;
    if wants_forward {
        match subject.forward(&case, choice, &data.weights, data.bias.as_deref()) {
            Ok(plan) => forward = Some(plan),
            Err(error) if algorithm == Algorithm::Auto => return Err(plan_failure(error, Pass::Forward)),
            Err(_) => stats.decline(algorithm, "forward"),
        }
    }
    let mut backward = None;
    if wants_backward {
        match subject.backward(&case, choice, &data.weights) {
            Ok(plan) => backward = Some(plan),
            Err(error) if algorithm == Algorithm::Auto => return Err(plan_failure(error, Pass::BackwardData)),
            Err(_) => stats.decline(algorithm, "backward"),
        }
    }

    let mut results = Results::default();
    let thread_counts = case.threads.map_or(THREADS.to_vec(), |threads| vec![threads]);
    let mut side = if random(case.seed, 77) & 1 == 0 { Side::Left } else { Side::Right };
    for &threads in &thread_counts {
        bench.warm_up(threads);
        let mut run = Run {
            problem,
            case: case.threads(threads),
            threads,
            side,
            memory: &mut bench.memory,
            pools: &bench.pools,
            results: &mut results,
            stats,
        };
        if let Some(plan) = &forward {
            run.forward(&**plan).map_err(|message| run.failure(Pass::Forward, message))?;
        }
        if let Some(plan) = &backward {
            run.backward(&**plan)?;
        }
        if threads == thread_counts[0] {
            if let Some(plan) = &forward {
                run.one_image_forward(&**plan).map_err(|message| run.failure(Pass::Forward, message))?;
                if rare % 4 == 1 {
                    run.refusals_forward(&**plan).map_err(|message| run.failure(Pass::Forward, message))?;
                }
            }
            if let Some(plan) = &backward {
                run.one_image_backward(&**plan).map_err(|message| run.failure(Pass::BackwardData, message))?;
                if rare % 4 == 1 {
                    run.refusals_backward(&**plan).map_err(|message| run.failure(Pass::BackwardData, message))?;
                }
            }
        }
        match (forward.is_some(), backward.is_some()) {
            (true, true) => stats.cases += 1,
            (false, false) => {}
            _ => stats.partial += 1,
        }
        side = side.other();
    }

    // Whatever reports the same algorithm has the same bits, on every instruction set with fused multiply-adds.
    let reported = forward.as_ref().map_or(algorithm, |plan| plan.algorithm());
    for ((name, other_isa), other) in &bench.kept {
        let same_arithmetic = *other_isa == isa || (*other_isa != Isa::Portable && isa != Isa::Portable);
        if *name != reported.to_string() || !same_arithmetic {
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
        let by_name = algorithm != Algorithm::Auto;
        if let (true, Some(gradients), Some(other)) = (by_name, &results.gradients, &other.gradients) {
            for (what, (mine, other)) in ["dx", "dw", "db"].into_iter().zip(gradients.iter().zip(other)) {
                same_bits(what, mine, other).map_err(|why| Failure {
                    case: Box::new(both.pass(Pass::Both)),
                    message: format!("{name} on {other_isa} differs: {why}"),
                })?;
            }
        }
    }
    if algorithm != Algorithm::Auto {
        bench.kept.insert((algorithm.to_string(), isa), results);
    }
    Ok(())
}

/// One algorithm on one instruction set and number of threads.
struct Run<'a> {
    problem: &'a Problem,
    case: ConvCase,
    threads: usize,
    side: Side,
    memory: &'a mut Memory,
    pools: &'a BTreeMap<usize, ThreadPool>,
    results: &'a mut Results,
    stats: &'a mut Stats,
}

fn refused(what: &str) -> impl Fn(Error) -> String {
    move |error| format!("{what} was refused: {error}")
}

fn unchanged(name: &str, now: &[f32], before: &[f32]) -> Result<(), String> {
    let same = now.iter().zip(before).all(|(now, before)| now.to_bits() == before.to_bits());
    if same { Ok(()) } else { Err(format!("the input {name} was written to")) }
}

impl Run<'_> {
    fn failure(&self, pass: Pass, message: String) -> Failure {
        Failure { case: Box::new(self.case.pass(pass)), message }
    }

    /// Judges a result of an algorithm. Winograd's have a bound of their own, and are exact only where all that its
    /// transforms make of integers is.
    fn judge(
        &mut self,
        pass: Pass,
        name: &str,
        got: &[f32],
        expected: &Expected,
        algorithm: Algorithm,
    ) -> Result<(), String> {
        let Problem { case, data, reference, rule, .. } = self.problem;
        // The bias has no algorithm of its own.
        if algorithm.tile().is_some() && name != "db" {
            let expected = match name {
                "y" => reference.winograd_y(case, data, algorithm),
                "dx" => reference.winograd_dx(case, data, algorithm),
                _ => reference.winograd_dw(case, data, algorithm),
            }
            .map_err(refused("the bound"))?;
            // Halves of weights, or of sums, along each axis with the points 0, 1, -1 and infinity alone.
            let halves = |axis: usize| match case.spec.kernel[axis] {
                5 => case.spec.stride[axis] == 2,
                taps => taps < 5,
            };
            let is_exact = algorithm == Algorithm::Winograd2 && halves(0) && halves(1);
            let rule = match *rule {
                Rule::Exact { quantum } if is_exact => Rule::Exact { quantum: quantum / 4.0 },
                _ => Rule::Bound,
            };
            let found = compare(name, got, &expected, rule)?;
            self.stats.judged += found.judged as u64;
            self.stats.rejected += found.rejected as u64;
            return Ok(());
        }
        let found = compare(name, got, expected, self.problem.rule)?;
        self.stats.judged += found.judged as u64;
        self.stats.rejected += found.rejected as u64;
        if self.problem.rule == Rule::Bound {
            self.stats.error(&self.case, pass, found.worst, expected.terms);
        }
        Ok(())
    }

    fn forward(&mut self, plan: &dyn ForwardPlan) -> Result<(), String> {
        let Problem { sizes, data, case, .. } = self.problem;
        let len = plan.workspace_len(case.shape, self.threads).map_err(refused("workspace_len"))?;
        let memory = &mut *self.memory;
        let x = &*memory.x.copy(&data.x, self.side);
        let residual = data.residual.as_ref().map(|residual| &*memory.residual.copy(residual, self.side));
        let y = memory.y.filled(sizes.y_len, self.side, SENTINEL);
        let workspace = memory.workspace.filled(len, self.side, POISON);
        on_threads(self.pools, self.threads, |parallelism| {
            plan.run(case.shape, x, residual, y, workspace, parallelism)
        })
        .map_err(refused("forward"))?;
        unchanged("x", x, &data.x)?;
        if let (Some(now), Some(before)) = (residual, &data.residual) {
            unchanged("residual", now, before)?;
        }
        let y = y.to_vec();
        match &self.results.y {
            Some(first) => same_bits("y", &y, first).map_err(|why| format!("other threads, other bits: {why}"))?,
            None => {
                self.judge(Pass::Forward, "y", &y, &self.problem.reference.y, plan.algorithm())?;
                self.results.y = Some(y);
            }
        }
        self.stats.call(self.case.algorithm.unwrap_or_default(), self.case.isa.unwrap_or(Isa::Portable), Pass::Forward);
        Ok(())
    }

    fn backward(&mut self, plan: &dyn BackwardPlan) -> Result<(), Failure> {
        let (algorithm, isa) = (self.case.algorithm.unwrap_or_default(), self.case.isa.unwrap_or(Isa::Portable));
        // All that are wanted of the three calls, then what they say about each other.
        let mut separate: [Option<Vec<f32>>; 3] = [None, None, None];
        for pass in [Pass::BackwardData, Pass::BackwardWeights, Pass::Both] {
            if !self.case.runs(pass) {
                continue;
            }
            let gradients = self.gradients(plan, pass).map_err(|message| self.failure(pass, message))?;
            let reference = &self.problem.reference;
            let named = ["dx", "dw", "db"].into_iter().zip([&reference.dx, &reference.dw, &reference.db]);
            for (at, ((name, expected), got)) in named.zip(gradients).enumerate() {
                let Some(got) = got else { continue };
                let first = self.results.gradients.as_ref().map(|kept| &kept[at]);
                match (first, &separate[at]) {
                    (Some(first), _) => same_bits(name, &got, first)
                        .map_err(|why| self.failure(pass, format!("other threads, other bits: {why}")))?,
                    (None, Some(separate)) => same_bits(name, &got, separate).map_err(|why| {
                        self.failure(pass, format!("the combined call differs from the separate ones: {why}"))
                    })?,
                    (None, None) => {
                        let [data, weights] = plan.algorithms();
                        let algorithm = if name == "dx" { data } else { weights };
                        self.judge(pass, name, &got, expected, algorithm)
                            .map_err(|message| self.failure(pass, message))?;
                    }
                }
                separate[at] = Some(got);
            }
            self.stats.call(algorithm, isa, pass);
        }
        if let (None, [Some(dx), Some(dw), Some(db)]) = (&self.results.gradients, separate) {
            self.results.gradients = Some([dx, dw, db]);
        }
        Ok(())
    }

    /// Calls one backward pass; gives `dx`, `dw` and `db` as far as the pass has them.
    fn gradients(&mut self, plan: &dyn BackwardPlan, pass: Pass) -> Result<[Option<Vec<f32>>; 3], String> {
        let Problem { sizes, data, case, .. } = self.problem;
        let (shape, side) = (case.shape, self.side);
        let len = plan.workspace_len(shape, self.threads).map_err(refused("workspace_len"))?;
        let memory = &mut *self.memory;
        let (x, dy) = (&*memory.x.copy(&data.x, side), &*memory.dy.copy(&data.dy, side));
        let dx = memory.dx.filled(sizes.x_len, side, SENTINEL);
        let dw = memory.dw.filled(sizes.w_len, side, SENTINEL);
        let db = memory.db.filled(case.spec.out_channels, side, SENTINEL);
        let workspace = memory.workspace.filled(len, side, POISON);
        // Without bias in the forward pass, its gradient is sometimes not asked for.
        let wants_db = case.bias || case.seed % 2 == 0;
        let asked_db = wants_db.then_some(&mut *db);
        on_threads(self.pools, self.threads, |parallelism| match pass {
            Pass::BackwardData => plan.data(shape, dy, dx, workspace, parallelism),
            Pass::BackwardWeights => plan.weights(shape, x, dy, dw, asked_db, workspace, parallelism),
            _ => plan.both(shape, x, dy, dx, dw, asked_db, workspace, parallelism),
        })
        .map_err(refused("a backward call"))?;
        unchanged("x", x, &data.x)?;
        unchanged("dy", dy, &data.dy)?;
        let (has_dx, has_dw) = (pass != Pass::BackwardWeights, pass != Pass::BackwardData);
        Ok([has_dx.then(|| dx.to_vec()), has_dw.then(|| dw.to_vec()), (has_dw && wants_db).then(|| db.to_vec())])
    }

    /// One image of a batch, and what is before and behind it in `x` and `y`.
    fn one_image(&self) -> Option<(Shape, std::ops::Range<usize>, std::ops::Range<usize>)> {
        let Problem { sizes, case, .. } = self.problem;
        let batch = case.shape.batch;
        if batch < 2 {
            return None;
        }
        let (x_len, y_len) = (sizes.x_len / batch, sizes.y_len / batch);
        let n = random(case.seed, 78) as usize % batch;
        Some((Shape { batch: 1, ..case.shape }, n * x_len..(n + 1) * x_len, n * y_len..(n + 1) * y_len))
    }

    /// An image alone has the bits that it has in its batch.
    fn one_image_forward(&mut self, plan: &dyn ForwardPlan) -> Result<(), String> {
        let (Some((shape, x_range, y_range)), Some(whole)) = (self.one_image(), &self.results.y) else { return Ok(()) };
        let data = &self.problem.data;
        let len = plan.workspace_len(shape, 1).map_err(refused("workspace_len"))?;
        let memory = &mut *self.memory;
        let x = memory.x.copy(&data.x[x_range], self.side);
        let residual = data.residual.as_ref().map(|all| &*memory.residual.copy(&all[y_range.clone()], self.side));
        let y = memory.y.filled(y_range.len(), self.side, SENTINEL);
        let workspace = memory.workspace.filled(len, self.side, POISON);
        plan.run(shape, x, residual, y, workspace, Parallelism::Serial).map_err(refused("one image of the batch"))?;
        same_bits("y", y, &whole[y_range]).map_err(|why| format!("an image alone differs from the batch: {why}"))
    }

    /// The gradient of an image alone has the bits that it has in its batch.
    fn one_image_backward(&mut self, plan: &dyn BackwardPlan) -> Result<(), String> {
        let (Some((shape, x_range, y_range)), Some([whole, ..])) = (self.one_image(), &self.results.gradients) else {
            return Ok(());
        };
        let len = plan.workspace_len(shape, 1).map_err(refused("workspace_len"))?;
        let memory = &mut *self.memory;
        let dy = memory.dy.copy(&self.problem.data.dy[y_range], self.side);
        let dx = memory.dx.filled(x_range.len(), self.side, SENTINEL);
        let workspace = memory.workspace.filled(len, self.side, POISON);
        plan.data(shape, dy, dx, workspace, Parallelism::Serial).map_err(refused("one image of the batch"))?;
        same_bits("dx", dx, &whole[x_range]).map_err(|why| format!("an image alone differs from the batch: {why}"))
    }

    /// Slices that are too short or too long are refused, and the output is not touched.
    fn refusals_forward(&mut self, plan: &dyn ForwardPlan) -> Result<(), String> {
        let Problem { sizes, data, case, .. } = self.problem;
        let needed = plan.workspace_len(case.shape, 1).map_err(refused("workspace_len"))?;
        for (what, x_len, y_len, workspace_len) in wrong_lengths(["x", "y"], sizes.x_len, sizes.y_len, needed) {
            let memory = &mut *self.memory;
            let x = memory.x.filled(x_len, self.side, 0);
            let residual = data.residual.as_ref().map(|residual| &*memory.residual.copy(residual, self.side));
            let y = memory.y.filled(y_len, self.side, SENTINEL);
            let workspace = memory.workspace.filled(workspace_len, self.side, POISON);
            let result = plan.run(case.shape, x, residual, y, workspace, Parallelism::Serial);
            must_be_refused(&what, result, &[y])?;
        }
        Ok(())
    }

    /// As [`Run::refusals_forward`], for the gradients.
    fn refusals_backward(&mut self, plan: &dyn BackwardPlan) -> Result<(), String> {
        let Problem { sizes, case, .. } = self.problem;
        let (shape, side, memory) = (case.shape, self.side, &mut *self.memory);
        let needed = plan.workspace_len(shape, 1).map_err(refused("workspace_len"))?;
        for (what, dy_len, dx_len, workspace_len) in wrong_lengths(["dy", "dx"], sizes.y_len, sizes.x_len, needed) {
            let dy = memory.dy.filled(dy_len, side, 0);
            let dx = memory.dx.filled(dx_len, side, SENTINEL);
            let workspace = memory.workspace.filled(workspace_len, side, POISON);
            let result = plan.data(shape, dy, dx, workspace, Parallelism::Serial);
            // The data call may need less than the longest of the three.
            if result.is_err() || !what.starts_with("workspace") {
                must_be_refused(&what, result, &[dx])?;
            }
        }
        let channels = case.spec.out_channels;
        for (what, x_len, dw_len, workspace_len) in wrong_lengths(["x", "dw"], sizes.x_len, sizes.w_len, needed) {
            for (what, db_len) in [(what, channels), ("db one longer".to_string(), channels + 1)] {
                let (x, dy) = (memory.x.filled(x_len, side, 0), memory.dy.filled(sizes.y_len, side, 0));
                let dx = memory.dx.filled(sizes.x_len, side, SENTINEL);
                let dw = memory.dw.filled(dw_len, side, SENTINEL);
                let db = memory.db.filled(db_len, side, SENTINEL);
                let workspace = memory.workspace.filled(workspace_len, side, POISON);
                let result = plan.both(shape, x, dy, dx, dw, Some(db), workspace, Parallelism::Serial);
                must_be_refused(&what, result, &[dx, dw, db])?;
            }
        }
        Ok(())
    }
}

/// Lengths of an input, an output and a workspace, one of which is wrong, and its name.
fn wrong_lengths(
    [input_name, output_name]: [&str; 2],
    input: usize,
    output: usize,
    workspace: usize,
) -> Vec<(String, usize, usize, usize)> {
    let mut wrong = vec![
        (format!("{input_name} one longer"), input + 1, output, workspace),
        (format!("{output_name} one longer"), input, output + 1, workspace),
    ];
    if input > 0 {
        wrong.push((format!("{input_name} one shorter"), input - 1, output, workspace));
    }
    if output > 0 {
        wrong.push((format!("{output_name} one shorter"), input, output - 1, workspace));
    }
    if workspace > 0 {
        wrong.push(("workspace one shorter".into(), input, output, workspace - 1));
    }
    wrong
}

fn must_be_refused(what: &str, result: Result<(), Error>, outputs: &[&mut [f32]]) -> Result<(), String> {
    if result.is_ok() {
        return Err(format!("{what}: not refused"));
    }
    let untouched = outputs.iter().all(|output| output.iter().all(|value| value.to_bits() == SENTINEL));
    if untouched { Ok(()) } else { Err(format!("{what}: refused, but an output was written to")) }
}
