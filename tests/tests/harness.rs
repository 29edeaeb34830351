//! The checks are checked: each mistake must be found, and what is right must pass.

use std::process::Command;

use tests::case::ConvCase;
use tests::check::{Bench, Failure, check};
use tests::decode::{Kinds, conv, random_bytes};
use tests::faults::{Fault, Faulty};
use tests::guard::{Guarded, Side};
use tests::stats::Stats;

/// So many random problems find every mistake.
const PROBLEMS: u64 = 1_000;

fn random_case(number: u64) -> ConvCase {
    conv(&random_bytes(number), Kinds::Any).expect("random bytes have a known version")
}

/// The number of problems until a mistake was found, and what was said about it.
fn found(fault: Fault) -> Option<(u64, Failure)> {
    let (mut bench, mut stats) = (Bench::new(), Stats::default());
    (0..PROBLEMS).find_map(|number| {
        let result = check(&Faulty(fault), &random_case(number), &mut bench, &mut stats);
        result.err().map(|failure| (number + 1, failure))
    })
}

#[test]
fn a_convolution_without_mistakes_passes() {
    if let Some((_, failure)) = found(Fault::None) {
        panic!("{failure}");
    }
}

#[test]
fn every_mistake_is_found() {
    let mut missed = Vec::new();
    let mut needed = Vec::new();
    for &fault in Fault::ALL {
        match found(fault) {
            Some((problems, failure)) => {
                println!("{fault:?} after {problems}: {}", failure.message);
                needed.push(problems);
            }
            None => missed.push(fault),
        }
    }
    needed.sort_unstable();
    println!("{} mistakes, found after {needed:?} problems", needed.len());
    assert_eq!(missed, [], "not found in {PROBLEMS} problems");
}

#[test]
fn the_line_of_a_failure_repeats_it() {
    for &fault in Fault::ALL {
        let Some((_, failure)) = found(fault) else { continue };
        let line = failure.case.to_string();
        let mut case = line.parse::<ConvCase>().expect("a printed line is understood");
        // Calls that differ from each other are compared only where both are made.
        if failure.message.contains("differ") || failure.message.contains("other") {
            (case.algorithm, case.threads, case.pass) = (None, None, None);
        }
        let again = check(&Faulty(fault), &case, &mut Bench::new(), &mut Stats::default());
        assert!(again.is_err(), "{fault:?}: {line} passes");
    }
}

/// The variable that makes the test below do what ends its process.
const OUT_OF_BOUNDS: &str = "TESTS_READ_OUT_OF_BOUNDS";

#[test]
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn a_read_next_to_guarded_memory_ends_the_process_and_names_the_case() {
    if let Ok(side) = std::env::var(OUT_OF_BOUNDS) {
        tests::crash::report_faults();
        let _line = tests::crash::running(&ConvCase::new(17, 33, [3, 3]));
        let mut memory = Guarded::default();
        let (data, offset) = if side == "left" {
            let data = memory.floats(5, Side::Left);
            (data.as_ptr(), -1)
        } else {
            (memory.floats(5, Side::Right).as_ptr(), 5)
        };
        // SAFETY: there is none; the process must end here.
        let value = unsafe { data.wrapping_offset(offset).read_volatile() };
        println!("read {value}");
        return;
    }
    for side in ["left", "right"] {
        let output = Command::new(std::env::current_exe().expect("a test knows its path"))
            .args(["--exact", "a_read_next_to_guarded_memory_ends_the_process_and_names_the_case", "--nocapture"])
            .env(OUT_OF_BOUNDS, side)
            .output()
            .expect("a test can run itself");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{side}: {output:?}");
        assert!(said.contains("conv n1c17h3w3 o33 k3x3"), "{side}: {said}");
    }
}
