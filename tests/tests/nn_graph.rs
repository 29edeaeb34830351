//! Random networks, trained, against automatic differentiation in f64: see `tests::graph`.

use std::sync::Mutex;

use tests::cores;
use tests::decode::{VERSION, random_bytes};
use tests::graph::{Case, Fault, MAX_LEN, Report, check_with};
use tests::targets::train;

/// Networks of one run of `cargo test`, unless `KERNELS_TEST_CASES` says otherwise.
const CASES: u64 = 1500;

fn bytes(number: u64) -> Vec<u8> {
    let mut bytes = vec![VERSION];
    bytes.extend((0..3).flat_map(|part| random_bytes(3 * number + part)[2..].to_vec()));
    bytes.truncate(MAX_LEN);
    bytes
}

#[test]
fn a_network_learns_what_automatic_differentiation_says() {
    if let Ok(hex) = std::env::var("NN_GRAPH") {
        let byte = |at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("NN_GRAPH is in hexadecimal");
        let report = train(&(0..hex.len() / 2).map(byte).collect::<Vec<u8>>());
        println!("{report:?}");
        return;
    }
    let cases = tests::cases_asked_for(CASES);
    let all = Mutex::new(Report::default());
    cores::for_each(0..cases, |number| {
        let report = train(&bytes(number));
        let mut all = all.lock().expect("no panic while it is held");
        all.compared += report.compared;
        all.vague += report.vague;
    });
    let Report { compared, vague } = all.into_inner().expect("no panic while it was held");
    println!("{cases} networks, {compared} numbers, {vague} of them with a vague bound");
    // A bound that says little is no check.
    assert!(vague * 20 <= compared, "{vague} of {compared} numbers have a vague bound");
}

#[test]
fn random_bytes_reach_every_operation() {
    let mut seen = std::collections::BTreeSet::new();
    let mut used_twice = false;
    for number in 0..CASES {
        let case = Case::decode(&bytes(number)).expect("a known version");
        for node in &case.nodes {
            seen.extend(node.op.map(|op| format!("{op:?}").split('(').next().unwrap_or_default().to_string()));
        }
        let takes = |at: usize| case.nodes.iter().flat_map(|node| &node.from).filter(|&&from| from == at).count();
        used_twice |= (0..case.nodes.len()).any(|at| takes(at) > 1);
    }
    assert_eq!(seen.len(), 19, "{seen:?}");
    assert!(used_twice);
}

#[test]
fn every_mistake_shows_within_some_hundred_networks() {
    for fault in Fault::ALL {
        let shows = |number| check_with(&Case::decode(&bytes(number)).expect("a known version"), Some(fault)).is_err();
        assert!((0..300).any(shows), "{fault:?} is not found");
    }
}
