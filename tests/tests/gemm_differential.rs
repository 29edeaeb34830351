//! Twenty thousand random matrix products, every way: all instruction sets and numbers of threads, packed or not, in
//! blocks of all sizes, against the reference.
//!
//! `KERNELS_TEST_CASES=N` checks `N` cases instead.

use std::sync::Mutex;
use std::time::Instant;

use tests::check::tested_isas;
use tests::gemm::check::{Bench, check};
use tests::gemm::decode::{gemm, random_bytes};
use tests::report::Tally;
use tests::{cases_asked_for, cores, crash};

/// Cases of a full run.
const CASES: u64 = 20_000;
/// Random cases are numbered; each run starts with the first.
const FIRST: u64 = 1_000_000;

#[test]
fn twenty_thousand_products_agree_with_the_reference() {
    crash::report_faults();
    let (start, cases) = (Instant::now(), cases_asked_for(CASES));
    let total = Mutex::new(Tally::default());
    cores::for_each_with(FIRST..FIRST + cases, Bench::default, |bench, number| {
        let case = gemm(&random_bytes(number)).expect("random bytes have a known version");
        let mut tally = Tally::default();
        if let Err(failure) = check(&case, bench, &mut tally) {
            panic!("{failure}");
        }
        total.lock().expect("no thread panicked").add(tally);
    });
    let tally = total.into_inner().expect("no thread panicked");
    println!("{tally}{:.1} seconds", start.elapsed().as_secs_f64());
    assert_eq!(tally.cases, cases);
    // What was not looked at proves nothing.
    assert!(tally.rejected * 100 <= tally.judged, "{} of {} results rejected", tally.rejected, tally.judged);
    assert!(tally.refused * 5 >= cases, "{} calls refused", tally.refused);
    for isa in tested_isas() {
        for kind in ["batch", "packed lhs", "packed rhs", "plain"] {
            for blocks in ["cpu", "toy", "in-place", "whole"] {
                let name = format!("{kind}, {blocks}, {isa}");
                assert!(tally.calls_of(&name) > 0, "no call of {name}");
            }
        }
    }
}
