//! Matrix products beside what a Rust program would use today: the crates `matrixmultiply` and `gemm`.
//!
//! All three work on the same row-major operands in one process and take turns, so that a change of the clock meets
//! all of them; the fastest of many calls counts. Each result is checked in `f64` before anything is timed. The
//! peak is that of fused multiply-adds on registers, measured between the turns, on as many threads.
//!
//! `matrixmultiply` takes its number of threads from the environment, once: `MATMUL_NUM_THREADS=1` or `2` has to be
//! set to what `threads` says.

use std::hint::black_box;
use std::time::Instant;

use kernels::gemm::{Gemm, workspace_len};
use kernels::{Isa, Parallelism, View, ViewMut, Workspace};

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

/// Compares all contenders on each size. Call it inside of a rayon pool of `threads` threads.
///
/// # Errors
/// When this project refuses a call, or a contender's result is wrong.
pub fn run(sizes: &[Size], threads: usize, isa: Option<Isa>) -> Result<Vec<Row>, String> {
    sizes.iter().map(|&size| compare(size, threads, isa)).collect()
}

fn compare(size: Size, threads: usize, isa: Option<Isa>) -> Result<Row, String> {
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
        multiply(contender, size, threads, isa, &lhs, &rhs, out, &mut workspace)
    };
    for contender in CONTENDERS {
        out.fill(f32::NAN);
        call(contender, &mut out)?;
        check(contender, size, &lhs, &rhs, &out)?;
    }
    let mut seconds = [f64::INFINITY; 3];
    let mut peak = 0.0f64;
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
        if turn % 8 == 0 {
            peak = peak.max(fma_peak(threads));
        }
        turn += 1;
    }
    Ok(Row { size, seconds, peak })
}

fn multiply(
    contender: Contender,
    Size { m, n, k }: Size,
    threads: usize,
    isa: Option<Isa>,
    lhs: &[f32],
    rhs: &[f32],
    out: &mut [f32],
    workspace: &mut [f32],
) -> Result<(), String> {
    let (rows, columns) = (k as isize, n as isize);
    match contender {
        Contender::Ours => {
            let parallelism = if threads == 1 { Parallelism::Serial } else { Parallelism::Current };
            let view = |data, shape| View::new(data, shape);
            (|| {
                let mut out = ViewMut::new(out, [m, n])?;
                let options = Gemm { isa, ..Gemm::default() };
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

/// FLOP a second of all threads, on registers.
fn fma_peak(threads: usize) -> f64 {
    if threads == 1 {
        return fma_peak_of_one();
    }
    let sum = std::sync::Mutex::new(0.0);
    rayon::broadcast(|_| {
        let peak = fma_peak_of_one();
        *sum.lock().unwrap_or_else(|e| e.into_inner()) += peak;
    });
    sum.into_inner().unwrap_or_else(|e| e.into_inner())
}

fn fma_peak_of_one() -> f64 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        const STEPS: usize = 40_000;
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            let start = Instant::now();
            // SAFETY: the features have just been detected.
            black_box(unsafe { chains(STEPS, black_box(1.0)) });
            best = best.min(start.elapsed().as_secs_f64());
        }
        return (STEPS * 12 * 8 * 2) as f64 / best;
    }
    f64::NAN
}

/// Twelve independent chains of 256-bit fused multiply-adds.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn chains(steps: usize, x: f32) -> [f32; 8] {
    use std::arch::x86_64::*;
    let (a, b) = (_mm256_set1_ps(x), _mm256_set1_ps(x * 1e-3));
    let mut acc = [b; 12];
    for _ in 0..steps {
        for chain in &mut acc {
            *chain = _mm256_fmadd_ps(*chain, a, b);
        }
    }
    let mut sum = acc[0];
    for chain in &acc[1..] {
        sum = _mm256_add_ps(sum, *chain);
    }
    let mut out = [0.0; 8];
    // SAFETY: eight floats.
    unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sum) };
    out
}

/// `gemm [threads [MxNxK ...]]`: compares, and returns the table.
///
/// # Errors
/// What is wrong with the arguments, or with a result.
pub fn command(arguments: &[String]) -> Result<String, String> {
    let number = |text: &str| text.parse::<usize>().map_err(|e| format!("{text}: {e}"));
    let threads = arguments.first().map_or(Ok(1), |text| number(text))?;
    let mut sizes = Vec::new();
    for text in arguments.iter().skip(1) {
        let numbers = text.split('x').map(number).collect::<Result<Vec<_>, _>>()?;
        let [m, n, k] = numbers[..] else { return Err(format!("{text}: expected MxNxK")) };
        sizes.push(Size { m, n, k });
    }
    if sizes.is_empty() {
        sizes.extend(SIZES);
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().map_err(|e| e.to_string())?;
    let rows = pool.install(|| run(&sizes, threads, None))?;
    Ok(format!("{threads} thread(s)\n{}", table(&rows)))
}

/// The rows as a text table: GFLOP/s and share of the peak for each contender.
pub fn table(rows: &[Row]) -> String {
    let mut text =
        format!("{:>18} {:>8} {:>14} {:>20} {:>14}\n", "m x n x k", "peak", "ours", "matrixmultiply", "gemm");
    for row in rows {
        let Size { m, n, k } = row.size;
        let cell = |i| format!("{:.1} ({:.0} %)", row.gflops(i), 1e11 * row.gflops(i) / row.peak);
        let peak = row.peak / 1e9;
        text +=
            &format!("{:>18} {peak:>8.1} {:>14} {:>20} {:>14}\n", format!("{m}x{n}x{k}"), cell(0), cell(1), cell(2));
    }
    text
}
