//! Matrix products beside what a Rust program would use today: the crates `matrixmultiply` and `gemm`.
//!
//! All three work on the same row-major operands in one process and take turns, so that a change of the clock meets
//! all of them; the fastest of many calls counts. Each result is checked in `f64` before anything is timed. The
//! peak is that of fused multiply-adds on registers, measured before and after, on as many threads.
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
use crate::table;

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
    fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::MatrixMultiply => "matrixmultiply",
            Self::Gemm => "gemm",
        }
    }
}

/// All, in the order of their turns.
pub const CONTENDERS: [Contender; 3] = [Contender::Ours, Contender::MatrixMultiply, Contender::Gemm];

/// What was measured for one size.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The size.
    pub size: Size,
    /// The shortest call of each contender, in seconds.
    pub seconds: [f64; 3],
    /// FLOP a second of fused multiply-adds on registers.
    pub peak: f64,
}

impl Row {
    /// GFLOP/s of a contender.
    pub fn gflops(&self, contender: usize) -> f64 {
        2e-9 * self.size.m as f64 * self.size.n as f64 * self.size.k as f64 / self.seconds[contender]
    }
}

/// Seconds that one size takes.
const BUDGET: f64 = 1.6;

/// Compares all contenders on the sizes that the command line asks for.
///
/// # Errors
/// A bad file, or a result that is wrong, which is not timed.
pub fn run(options: &Options, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    let sizes = match &options.shapes {
        Some(path) => table::read(path, parse)?,
        None => SIZES.to_vec(),
    };
    let Options { threads, isa, .. } = *options;
    let pool = machine::pool(threads)?;
    match options.format {
        Format::Text => {
            let plural = if threads == 1 { "" } else { "s" };
            writeln!(
                out,
                "{}: {isa}, {threads} thread{plural}; GFLOP/s and the share of the FMA peak\n",
                machine::cpu_name()
            )?;
            let names = CONTENDERS.map(Contender::name);
            writeln!(out, "{:>18} {:>8} {:>14} {:>20} {:>14}", "m x n x k", "peak", names[0], names[1], names[2])?;
        }
        Format::Csv => writeln!(out, "name,algorithm,m,n,k,isa,threads,seconds_min,gflops,share_of_peak")?,
        Format::Json => {}
    }
    for size in sizes {
        let before = machine::fma_peak(&pool, isa)?;
        let seconds = pool
            .install(|| Team::scope(|team| compare(size, threads, isa, Parallelism::Team(team))))
            .map_err(Failure::study)?;
        let peak = before.max(machine::fma_peak(&pool, isa)?);
        write_row(&Row { size, seconds, peak }, options, out)?;
        out.flush()?;
    }
    Ok(())
}

fn write_row(row: &Row, options: &Options, out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    let Size { m, n, k } = row.size;
    let name = format!("{m}x{n}x{k}");
    let share = |i: usize| 1e9 * row.gflops(i) / row.peak;
    if options.format == Format::Text {
        let cell = |i| format!("{:.1} ({:.0} %)", row.gflops(i), 100.0 * share(i));
        writeln!(out, "{name:>18} {:>8.1} {:>14} {:>20} {:>14}", row.peak / 1e9, cell(0), cell(1), cell(2))?;
        return Ok(());
    }
    for (i, contender) in CONTENDERS.into_iter().enumerate() {
        let (algorithm, isa, threads) = (contender.name(), options.isa, options.threads);
        let (seconds, gflops, share) = (row.seconds[i], row.gflops(i), share(i));
        if options.format == Format::Json {
            writeln!(
                out,
                "{{\"name\":\"{name}\",\"algorithm\":\"{algorithm}\",\"m\":{m},\"n\":{n},\"k\":{k},\"isa\":\"{isa}\",\
                 \"threads\":{threads},\"seconds_min\":{seconds},\"gflops\":{gflops},\"share_of_peak\":{share}}}"
            )?;
        } else {
            writeln!(out, "{name},{algorithm},{m},{n},{k},{isa},{threads},{seconds},{gflops},{share}")?;
        }
    }
    Ok(())
}

/// The sizes of a CSV text with the columns `name,m,n,k`. `origin` names it in errors.
fn parse(text: &str, origin: &str) -> Result<Vec<Size>, Failure> {
    table::parse(text, origin, &["name", "m", "n", "k"], |fields| {
        let number = |column| fields.text(column).ok()?.parse().ok().filter(|&size: &usize| size > 0);
        let size = || Some(Size { m: number(1)?, n: number(2)?, k: number(3)? });
        size().ok_or_else(|| "expected a name and three numbers, each at least 1".to_owned())
    })
}

/// The shortest call of each contender.
fn compare(size: Size, threads: usize, isa: Isa, parallelism: Parallelism) -> Result<[f64; 3], String> {
    let Size { m, n, k } = size;
    let mut state = 1u64;
    let mut random = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let lhs: Vec<f32> = (0..m * k).map(|_| random()).collect();
    let rhs: Vec<f32> = (0..k * n).map(|_| random()).collect();
    let mut out = vec![0.0f32; m * n];
    let needed = workspace_len(m, n, k, threads).map_err(|e| e.to_string())?;
    let mut workspace = Workspace::with_len(needed).map_err(|e| e.to_string())?;
    let mut call = |contender: Contender, out: &mut [f32]| -> Result<(), String> {
        multiply(contender, size, threads, isa, parallelism, &lhs, &rhs, out, &mut workspace)
    };
    for contender in CONTENDERS {
        out.fill(f32::NAN);
        call(contender, &mut out)?;
        check(contender, size, &lhs, &rhs, &out)?;
    }
    let mut seconds = [f64::INFINITY; 3];
    let flop = 2.0 * (m * n * k) as f64;
    // Short products are repeated, so that reading the clock does not count.
    let repeats = (2e6 / flop).ceil().max(1.0) as usize;
    let start = Instant::now();
    let mut turn = 0;
    while turn < 5 || start.elapsed().as_secs_f64() < BUDGET {
        for (best, contender) in seconds.iter_mut().zip(CONTENDERS) {
            // Twice: the first call after another contender's finds its caches and threads in their state.
            for _ in 0..2 {
                let start = Instant::now();
                for _ in 0..repeats {
                    call(contender, black_box(&mut out))?;
                }
                *best = best.min(start.elapsed().as_secs_f64() / repeats as f64);
            }
        }
        turn += 1;
    }
    Ok(seconds)
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
) -> Result<(), String> {
    let (rows, columns) = (k as isize, n as isize);
    match contender {
        Contender::Ours => {
            let view = |data, shape| View::new(data, shape);
            (|| {
                let mut out = ViewMut::new(out, [m, n])?;
                let options = Gemm { isa: Some(isa), ..Gemm::default() };
                options.run(view(lhs, [m, k])?, view(rhs, [k, n])?, &mut out, workspace, parallelism)
            })()
            .map_err(|e: kernels::Error| e.to_string())
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
