//! The machine: its name, its threads, and what it can do at most.

use std::hint::black_box;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use kernels::{Isa, study};
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::failure::Failure;

/// The CPU's name, as the operating system tells it.
pub fn cpu_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_string())
    });
    name.unwrap_or_else(|| format!("a CPU of the family {}", std::env::consts::ARCH))
}

/// Hardware threads that this process may use.
pub fn hardware_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A pool for a study. Kernels never make one: they use their caller's.
///
/// # Errors
/// When the operating system refuses the threads.
pub fn pool(threads: usize) -> Result<ThreadPool, Failure> {
    let pool = ThreadPoolBuilder::new().num_threads(threads).build();
    pool.map_err(|error| Failure::study(format!("a pool of {threads} threads: {error}")))
}

/// Runs `work` on every thread of the pool at once and returns the seconds from the common start to the last end.
fn together(pool: &ThreadPool, work: impl Fn(usize) + Sync) -> f64 {
    let barrier = Barrier::new(pool.current_num_threads());
    let spans = pool.broadcast(|context| {
        barrier.wait();
        let start = Instant::now();
        work(context.index());
        (start, Instant::now())
    });
    let start = spans.iter().map(|span| span.0).min();
    let end = spans.iter().map(|span| span.1).max();
    match (start, end) {
        (Some(start), Some(end)) => (end - start).as_secs_f64().max(1e-9),
        _ => f64::INFINITY,
    }
}

/// A measurement lasts so long: the few microseconds by which threads start apart do not count.
const SLICE: Duration = Duration::from_millis(5);

/// The best of so many measurements counts.
const SLICES: usize = 16;

/// Floating-point operations a second that chains of fused multiply-adds reach on all threads of the pool.
///
/// # Errors
/// When the CPU lacks the instruction set.
pub fn fma_peak(pool: &ThreadPool, isa: Isa) -> Result<f64, Failure> {
    // Ever longer calls, until one lasts long enough; they also wake the clocks up.
    let mut rounds = 1000;
    loop {
        let start = Instant::now();
        study::fma_loop(isa, rounds)?;
        if start.elapsed() >= SLICE {
            break;
        }
        rounds *= 2;
    }
    let operations = study::fma_loop(isa, rounds)? * pool.current_num_threads() as f64;
    let mut best = 0.0f64;
    for _ in 0..SLICES {
        let seconds = together(pool, |_| {
            black_box(study::fma_loop(isa, rounds).is_ok());
        });
        best = best.max(operations / seconds);
    }
    Ok(best)
}

/// Bytes a second that all threads of the pool read together, each its own share of `bytes` in all.
///
/// # Errors
/// When the CPU lacks the instruction set, or memory runs short.
pub fn read_bandwidth(pool: &ThreadPool, isa: Isa, bytes: usize) -> Result<f64, Failure> {
    let share = bytes / size_of::<f32>() / pool.current_num_threads();
    let buffers = pool.broadcast(|_| {
        // Each thread writes its own share, so that it lies near to it.
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(share).map(|()| {
            buffer.resize(share, 1.0f32);
            buffer
        })
    });
    let buffers: Vec<Vec<f32>> = buffers
        .into_iter()
        .collect::<Result<_, _>>()
        .map_err(|_| Failure::study(format!("{bytes} bytes for the read bandwidth could not be had")))?;
    // Small buffers are read again and again, so that a slice is long enough.
    const LEAST_BYTES: usize = 64 << 20;
    let passes = LEAST_BYTES.div_ceil(bytes.max(1)).max(1);
    study::read_loop(isa, &[])?;
    let mut best = 0.0f64;
    for _ in 0..SLICES {
        let seconds = together(pool, |thread| {
            for _ in 0..passes {
                black_box(study::read_loop(isa, black_box(&buffers[thread])).is_ok());
            }
        });
        let read = buffers.len() * share * size_of::<f32>() * passes;
        best = best.max(read as f64 / seconds);
    }
    Ok(best)
}

/// Bytes that no cache holds: four times the largest that the operating system knows of.
pub fn beyond_caches() -> usize {
    const LEAST: usize = 128 << 20;
    const MOST: usize = 1 << 30;
    let size = |index: usize| {
        let path = format!("/sys/devices/system/cpu/cpu0/cache/index{index}/size");
        let text = std::fs::read_to_string(path).ok()?;
        text.trim().strip_suffix('K')?.parse::<usize>().ok()
    };
    let largest = (0..8).filter_map(size).max().unwrap_or(0) << 10;
    (4 * largest).clamp(LEAST, MOST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_and_bandwidths_are_positive_and_finite() {
        let pool = pool(2).unwrap();
        for isa in Isa::available() {
            let peak = fma_peak(&pool, isa).unwrap();
            assert!(peak.is_finite() && peak > 1e6, "{isa}: {peak}");
        }
        let bandwidth = read_bandwidth(&pool, Isa::Portable, 1 << 20).unwrap();
        assert!(bandwidth.is_finite() && bandwidth > 1e6, "{bandwidth}");
        assert!(!cpu_name().is_empty() && hardware_threads() > 0 && beyond_caches() >= 128 << 20);
    }
}
