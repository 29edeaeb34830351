//! Ten thousand random cases of the small kernels, every way: all instruction sets and numbers of threads, forward and
//! backward, against the references.
//!
//! `KERNELS_TEST_CASES=N` checks `N` cases instead.

use tests::cases_asked_for;
use tests::check::tested_isas;
use tests::report::Tally;
use tests::small::check::{Bench, check};
use tests::small::decode::{random_bytes, small};

/// Cases of a full run.
const CASES: u64 = 10_000;
/// Random cases are numbered; each run starts with the first.
const FIRST: u64 = 1_000_000;

/// Every call of every kernel.
const CALLS: [(&[&str], &[&str]); 6] = [
    (&["linear", "max-pool", "average-pool", "adaptive-pool", "softmax", "embedding"], &["forward", "backward"]),
    (&["layer-norm", "rms-norm", "group-norm", "batch-norm"], &["forward", "backward"]),
    (
        &["activation", "gelu", "gelu-tanh", "gelu-quick", "silu", "rotary"],
        &["forward", "forward in place", "backward", "backward in place"],
    ),
    (&["dropout"], &["forward", "forward in place", "backward"]),
    (&["cross-entropy"], &["with gradient", "without gradient"]),
    (&["batch-norm"], &["inference"]),
];

#[test]
fn ten_thousand_cases_of_the_small_kernels_agree_with_the_references() {
    let cases = cases_asked_for(CASES);
    let tally = Tally::of(FIRST..FIRST + cases, Bench::default, |bench, number, tally| {
        let case = small(&random_bytes(number)).expect("random bytes have a known version");
        check(&case, bench, tally)
    });
    assert_eq!(tally.cases, cases);
    // What was not looked at proves nothing.
    assert!(tally.refused >= cases, "{} calls refused", tally.refused);
    for isa in tested_isas() {
        for (kernels, calls) in CALLS {
            for (kernel, call) in kernels.iter().flat_map(|kernel| calls.iter().map(move |call| (kernel, call))) {
                let name = format!("{kernel} {call}, {isa}");
                assert!(tally.calls_of(&name) > 0, "no call of {name}");
            }
        }
    }
}
