//! Matrix products beside what a Rust program would use today: the crates `matrixmultiply` and `gemm`.
//!
//! All three work on the same row-major operands in one process and take turns, so that a change of the clock meets
//! all of them. Each result is checked in `f64` before anything is timed. The peak is that of fused multiply-adds on
//! registers, measured before and after, on as many threads.
//!
//! `matrixmultiply` takes its number of threads from the environment, once: see [`MATRIXMULTIPLY_THREADS`].

use std::hint::black_box;
use std::io::Write;
use std::time::Instant;

use kernels::gemm::{Gemm, workspace_len};
use kernels::{Isa, Parallelism, Team, View, ViewMut, Workspace};

use crate::failure::Failure;
use crate::machine;
use crate::options::{Format, Options};
use crate::problem::zeros;
use crate::report::{Value, write_fields};
use crate::table;
use crate::timing::Timing;

/// The environment variable that says how many threads `matrixmultiply` uses. It is read at its first product.
pub const MATRIXMULTIPLY_THREADS: &str = "MATMUL_NUM_THREADS";

/// `m x k` times `k x n`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Rows of the output.
    pub m: usize,
    /// Columns of the output.
    pub n: usize,
    /// Length of the chains.
    pub k: usize,
}

/// The sizes that are compared by default: a square, layers of ResNet-50 as matrices, and one that is small.
pub const SIZES: [Size; 6] = [
    Size { m: 1024, n: 1024, k: 1024 },
    Size { m: 256, n: 196, k: 2304 },
    Size { m: 512, n: 49, k: 4608 },
    Size { m: 64, n: 3136, k: 576 },
    Size { m: 64, n: 12544, k: 147 },
    Size { m: 32, n: 32, k: 32 },
];

/// Who multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contender {
    /// This project.
    Ours,
    /// The crate `matrixmultiply`.
    MatrixMultiply,
    /// The crate `gemm`.
    Gemm,
}

impl Contender {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::MatrixMultiply => "matrixmultiply",
            Self::Gemm => "gemm",
        }
    }
}

/// All, in the order of their turns.
pub const CONTENDERS: [Contender; 3] = [Contender::Ours, Contender::MatrixMultiply, Contender::Gemm];

/// A size by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// For example `resnet50.3.1x1`, or what the size is where nobody said.
    pub name: String,
    /// The size.
    pub size: Size,
}

/// What was measured of a contender on one size.
#[derive(Clone, Copy, Debug)]
struct Outcome {
    contender: Contender,
    timing: Timing,
    /// FLOP a second of fused multiply-adds on registers.
    peak: f64,
}

impl Size {
    /// Operations of a product.
    pub fn operations(self) -> f64 {
        2.0 * self.m as f64 * self.n as f64 * self.k as f64
    }
}

/// Seconds that one contender takes for one size.
const BUDGET: f64 = 0.5;

/// The products that the command line asks for.
fn cases(options: &Options) -> Result<Vec<Case>, Failure> {
    let mut cases = match &options.shapes {
        Some(path) => table::read(path, parse)?,
        None => SIZES.map(|size| Case { name: format!("{}x{}x{}", size.m, size.n, size.k), size }).to_vec(),
    };
    let only = options.only.as_deref().unwrap_or_default();
    cases.retain(|case| case.name.contains(only));
    if cases.is_empty() {
        return Err(Failure::study(format!("no product's name contains {only:?}")));
    }
    Ok(cases)
}

/// Compares contenders on the sizes that the command line asks for.
///
/// # Errors
/// A bad file, or a result that is wrong, which is not timed.
pub fn run(options: &Options, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    let cases = cases(options)?;
    let Options { threads, isa, .. } = *options;
    let pool = machine::pool(threads)?;
    if options.format == Format::Text {
        let plural = if threads == 1 { "" } else { "s" };
        writeln!(
            out,
            "{}: {isa}, {threads} thread{plural}; GFLOP/s of the best call, its share of the FMA peak, and of the \
             median call\n",
            machine::cpu_name()
        )?;
        write!(out, "{:20} {:>18} {:>8}", "product", "m x n x k", "peak")?;
        for contender in &options.contenders {
            write!(out, " {:>24}", contender.name())?;
        }
        writeln!(out)?;
    }
    pool.install(|| {
        for (index, case) in cases.iter().enumerate() {
            let before = machine::fma_peak(&pool, isa)?;
            // The peak is measured without a team, whose helpers would be in the way.
            let timings =
                Team::scope(|team| compare(case.size, &options.contenders, threads, isa, Parallelism::Team(team)));
            let timings = timings.map_err(|why| Failure::study(format!("{}: {why}", case.name)))?;
            let peak = before.max(machine::fma_peak(&pool, isa)?);
            let outcomes: Vec<Outcome> =
                timings.into_iter().map(|(contender, timing)| Outcome { contender, timing, peak }).collect();
            write_rows(index == 0, case, &outcomes, options, out)?;
            out.flush()?;
        }
        Ok(())
    })
}

fn write_rows(
    first: bool,
    case: &Case,
    outcomes: &[Outcome],
    options: &Options,
    out: &mut (dyn Write + Send),
) -> Result<(), Failure> {
    let Size { m, n, k } = case.size;
    let speed = |seconds: f64| case.size.operations() / seconds;
    if options.format == Format::Text {
        let peak = outcomes.first().map_or(0.0, |outcome| outcome.peak);
        write!(out, "{:20} {:>18} {:>8.1}", case.name, format!("{m}x{n}x{k}"), peak / 1e9)?;
        for Outcome { timing, peak, .. } in outcomes {
            let (best, median) = (speed(timing.seconds_min), speed(timing.seconds_median));
            let cell = format!("{:.1} ({:.0} %) {:.1}", best / 1e9, 100.0 * best / peak, median / 1e9);
            write!(out, " {cell:>24}")?;
        }
        writeln!(out)?;
        return Ok(());
    }
    for (index, Outcome { contender, timing, peak }) in outcomes.iter().enumerate() {
        let best = speed(timing.seconds_min);
        let isa = options.isa.to_string();
        let fields = [
            ("name", Value::Text(&case.name)),
            ("algorithm", Value::Text(contender.name())),
            // None of them says which of its paths it takes.
            ("chosen", Value::Missing),
            ("m", Value::Count(m)),
            ("n", Value::Count(n)),
            ("k", Value::Count(k)),
            ("isa", Value::Text(&isa)),
            ("threads", Value::Count(options.threads)),
            ("seconds_min", Value::Number(timing.seconds_min)),
            ("seconds_median", Value::Number(timing.seconds_median)),
            ("calls", Value::Count(timing.calls)),
            ("gflops", Value::Number(best / 1e9)),
            ("share_of_peak", Value::Number(best / peak)),
        ];
        write_fields(out, options.format, first && index == 0, &fields)?;
    }
    Ok(())
}

/// The products of a CSV text with the columns `name,m,n,k`. `origin` names it in errors.
///
/// # Errors
/// A missing column or a field that is no number, each with its line.
pub fn parse(text: &str, origin: &str) -> Result<Vec<Case>, Failure> {
    table::parse(text, origin, &["name", "m", "n", "k"], |fields| {
        let number = |column| fields.text(column).ok()?.parse().ok().filter(|&size: &usize| size > 0);
        let size = || Some(Size { m: number(1)?, n: number(2)?, k: number(3)? });
        let size = size().ok_or_else(|| "expected a name and three numbers, each at least 1".to_owned())?;
        // What a product reads and writes has to be a slice.
        let lens = [[size.m, size.k], [size.k, size.n], [size.m, size.n]];
        if lens.iter().any(|[a, b]| a.checked_mul(*b).is_none_or(|len| len > isize::MAX as usize / size_of::<f32>())) {
            return Err("no memory can hold the matrices".into());
        }
        Ok(Case { name: fields.text(0)?.into(), size })
    })
}

/// A product with everything that its contenders need.
pub struct Problem {
    size: Size,
    threads: usize,
    isa: Isa,
    lhs: Vec<f32>,
    rhs: Vec<f32>,
    out: Vec<f32>,
    workspace: Workspace,
}

impl Problem {
    /// Makes up operands.
    ///
    /// # Errors
    /// When memory runs short.
    pub fn new(size: Size, threads: usize, isa: Isa) -> Result<Self, Failure> {
        let Size { m, n, k } = size;
        let mut state = 1u64;
        let mut random = |len: usize| -> Result<Vec<f32>, Failure> {
            let mut numbers = zeros(len)?;
            for x in &mut numbers {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                *x = (state >> 40) as f32 / (1 << 23) as f32 - 1.0;
            }
            Ok(numbers)
        };
        let (lhs, rhs) = (random(m * k)?, random(k * n)?);
        let workspace = Workspace::with_len(workspace_len(m, n, k, threads)?)?;
        Ok(Self { size, threads, isa, lhs, rhs, out: zeros(m * n)?, workspace })
    }

    /// One product, as it is timed.
    ///
    /// # Errors
    /// Those of the kernels.
    pub fn call(&mut self, contender: Contender, parallelism: Parallelism) -> Result<(), kernels::Error> {
        let Self { size, threads, isa, lhs, rhs, out, workspace } = self;
        multiply(contender, *size, *threads, *isa, parallelism, lhs, rhs, black_box(out), workspace)
    }

    /// Multiplies and compares the result with `f64`.
    ///
    /// # Errors
    /// Those of the kernels, and a result that is wrong.
    pub fn check(&mut self, contender: Contender, parallelism: Parallelism) -> Result<(), String> {
        self.out.fill(f32::NAN);
        self.call(contender, parallelism).map_err(|error| error.to_string())?;
        check(contender, self.size, &self.lhs, &self.rhs, &self.out)
    }
}

/// How long the products of each contender take, checked before.
fn compare(
    size: Size,
    contenders: &[Contender],
    threads: usize,
    isa: Isa,
    parallelism: Parallelism,
) -> Result<Vec<(Contender, Timing)>, String> {
    let text = |error: kernels::Error| error.to_string();
    let mut problem = Problem::new(size, threads, isa).map_err(|failure| failure.to_string())?;
    for &contender in contenders {
        problem.check(contender, parallelism)?;
    }
    let mut seconds = vec![Vec::new(); contenders.len()];
    // Short products are repeated, so that reading the clock does not count.
    let repeats = (2e6 / size.operations()).ceil().max(1.0) as usize;
    let start = Instant::now();
    let mut turn = 0;
    while turn < 5 || start.elapsed().as_secs_f64() < BUDGET * contenders.len() as f64 {
        for (seconds, &contender) in seconds.iter_mut().zip(contenders) {
            // Twice: the first call after another contender's finds its caches and threads in their state.
            for _ in 0..2 {
                let start = Instant::now();
                for _ in 0..repeats {
                    problem.call(contender, parallelism).map_err(text)?;
                }
                seconds.push(start.elapsed().as_secs_f64() / repeats as f64);
            }
        }
        turn += 1;
    }
    Ok(contenders.iter().copied().zip(seconds.into_iter().map(Timing::of)).collect())
}

fn multiply(
    contender: Contender,
    Size { m, n, k }: Size,
    threads: usize,
    isa: Isa,
    parallelism: Parallelism,
    lhs: &[f32],
    rhs: &[f32],
    out: &mut [f32],
    workspace: &mut [f32],
) -> Result<(), kernels::Error> {
    let (rows, columns) = (k as isize, n as isize);
    match contender {
        Contender::Ours => {
            let mut out = ViewMut::new(out, [m, n])?;
            let options = Gemm { isa: Some(isa), ..Gemm::default() };
            options.run(View::new(lhs, [m, k])?, View::new(rhs, [k, n])?, &mut out, workspace, parallelism)
        }
        Contender::MatrixMultiply => {
            // SAFETY: the slices are row-major matrices of these dimensions.
            unsafe {
                let (a, b, c) = (lhs.as_ptr(), rhs.as_ptr(), out.as_mut_ptr());
                matrixmultiply::sgemm(m, k, n, 1.0, a, rows, 1, b, columns, 1, 0.0, c, columns, 1);
            }
            Ok(())
        }
        Contender::Gemm => {
            let parallelism = if threads == 1 { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(threads) };
            // SAFETY: the slices are row-major matrices of these dimensions.
            unsafe {
                let (a, b, c) = (lhs.as_ptr(), rhs.as_ptr(), out.as_mut_ptr());
                gemm::gemm(
                    m,
                    n,
                    k,
                    c,
                    1,
                    columns,
                    false,
                    a,
                    1,
                    rows,
                    b,
                    1,
                    columns,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    parallelism,
                );
            }
            Ok(())
        }
    }
}

/// Compares a sample of the outputs with `f64`, within `gamma(k + 2) * sum |lhs| |rhs|`.
fn check(contender: Contender, Size { m, n, k }: Size, lhs: &[f32], rhs: &[f32], out: &[f32]) -> Result<(), String> {
    // A stride that is prime meets every row and column in turn.
    let step = (m * n / 2000).max(1) | 1;
    for at in (0..m * n).step_by(step) {
        let (i, j) = (at / n, at % n);
        let (mut exact, mut size) = (0.0f64, 0.0f64);
        for l in 0..k {
            let product = lhs[i * k + l] as f64 * rhs[l * n + j] as f64;
            exact += product;
            size += product.abs();
        }
        let unit = (k + 2) as f64 * f64::from(f32::EPSILON) / 2.0;
        let bound = unit / (1.0 - unit) * size;
        let error = (f64::from(out[at]) - exact).abs();
        if error.is_nan() || error > bound {
            return Err(format!("{contender:?} {m}x{n}x{k}: out[{i}, {j}] is {} instead of {exact}", out[at]));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kept_and_what_is_wrong_is_named_with_its_line() {
        let size = Size { m: 2, n: 3, k: 4 };
        assert_eq!(parse("k,n,m,name\n4,3,2,mine\n", "").unwrap(), [Case { name: "mine".into(), size }]);
        let message = |text: &str| parse(text, "x.csv").unwrap_err().to_string();
        assert!(message("name,m,n\n").starts_with("x.csv, line 1: no column `k`"));
        assert!(message("name,m,n,k\na,1,0,1\n").starts_with("x.csv, line 2: expected a name"));
        assert!(
            message(&format!("name,m,n,k\na,{0},{0},1\n", usize::MAX)).ends_with("no memory can hold the matrices")
        );
    }

    #[test]
    fn every_contender_multiplies_and_a_wrong_product_is_found() {
        let size = Size { m: 5, n: 7, k: 9 };
        let mut problem = Problem::new(size, 1, Isa::Portable).unwrap();
        for contender in CONTENDERS {
            problem.check(contender, Parallelism::Serial).unwrap();
        }
        problem.out[34] += 1.0;
        assert!(check(Contender::Ours, size, &problem.lhs, &problem.rhs, &problem.out).unwrap_err().contains("[4, 6]"));
    }
}
