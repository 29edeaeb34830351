//! Twenty thousand random matrix products, every way: all instruction sets and numbers of threads, packed or not, in
//! blocks of all sizes, against the reference.
//!
//! `KERNELS_TEST_CASES=N` checks `N` cases instead.

use tests::cases_asked_for;
use tests::check::tested_isas;
use tests::gemm::check::{Bench, check};
use tests::gemm::decode::{gemm, random_bytes};
use tests::report::Tally;

/// Cases of a full run.
const CASES: u64 = 20_000;
/// Random cases are numbered; each run starts with the first.
const FIRST: u64 = 1_000_000;

#[test]
fn twenty_thousand_products_agree_with_the_reference() {
    let cases = cases_asked_for(CASES);
    let tally = Tally::of(FIRST..FIRST + cases, Bench::default, |bench, number, tally| {
        let case = gemm(&random_bytes(number)).expect("random bytes have a known version");
        check(&case, bench, tally)
    });
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
