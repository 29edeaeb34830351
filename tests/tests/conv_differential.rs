//! A hundred thousand random convolutions, every way: all algorithms, instruction sets and numbers of threads,
//! forward and backward, against the references.
//!
//! `KERNELS_TEST_CASES=N` checks at least `N` cases instead.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use kernels::conv::Algorithm;
use tests::check::{Bench, Failure, check};
use tests::data::DataKind;
use tests::decode::{Kinds, conv, random_bytes};
use tests::stats::Stats;
use tests::subject::Library;

/// Cases of a full run.
const CASES: u64 = 100_000;
/// Random problems are numbered; each run starts with the first.
const FIRST: u64 = 1_000_000;

/// Errors grow with the root of the number of roundings, not with the number: of signed data, the largest was 2.5
/// over sums of up to 16,384 terms. More means that the order of the sums got worse.
const SIGNED_ERROR: f64 = 4.0;

fn cases_asked_for() -> u64 {
    match std::env::var("KERNELS_TEST_CASES") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("KERNELS_TEST_CASES is `{text}`, which is no number")),
        Err(_) => CASES,
    }
}

/// Checks problem after problem on every core until there are enough cases, or one is wrong.
fn run(enough: u64) -> (Stats, Vec<Failure>) {
    tests::crash::report_faults();
    let (next, cases) = (AtomicU64::new(FIRST), AtomicU64::new(0));
    let failed = AtomicBool::new(false);
    let total = Mutex::new((Stats::default(), Vec::new()));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                let (mut bench, mut stats, mut failures) = (Bench::new(), Stats::default(), Vec::new());
                while cases.load(Ordering::Relaxed) < enough && !failed.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let case = conv(&random_bytes(number), Kinds::Any).expect("random bytes have a known version");
                    let before = stats.cases;
                    if let Err(failure) = check(&Library, &case, &mut bench, &mut stats) {
                        failed.store(true, Ordering::Relaxed);
                        failures.push(failure);
                    }
                    cases.fetch_add(stats.cases - before, Ordering::Relaxed);
                }
                let mut total = total.lock().expect("no thread panicked");
                total.0.add(stats);
                total.1.append(&mut failures);
            });
        }
    });
    total.into_inner().expect("no thread panicked")
}

fn run_and_report(enough: u64) {
    let start = Instant::now();
    let (stats, failures) = run(enough);
    println!("{stats}{:.1} seconds", start.elapsed().as_secs_f64());
    if let Some(failure) = failures.first() {
        panic!("{} failures, the first is\n{failure}", failures.len());
    }
    assert!(stats.cases >= enough, "{} cases instead of {enough}", stats.cases);
    // What was not looked at proves nothing.
    assert!(stats.weak * 5 <= stats.problems, "{} of {} problems are weak", stats.weak, stats.problems);
    assert!(stats.rejected * 100 <= stats.judged, "{} of {} results rejected", stats.rejected, stats.judged);
    for algorithm in Algorithm::ALL {
        assert!(stats.calls_of(algorithm) > 0, "{algorithm} took no problem");
    }
    let worst = stats.worst_of(DataKind::Uniform);
    assert!(worst.ratio <= SIGNED_ERROR, "an error of {:.2} u S in {}", worst.ratio, worst.line);
    let worst = stats.positive;
    assert!(worst.ratio <= 1.0, "positive data: {:.2} times the expected error in {}", worst.ratio, worst.line);
}

#[test]
fn a_hundred_thousand_convolutions_agree_with_the_references() {
    run_and_report(cases_asked_for());
}

#[test]
#[ignore = "takes ten times as long: the form before a release"]
fn a_million_convolutions_agree_with_the_references() {
    run_and_report(10 * CASES);
}
