//! Runs what fuzzing has found worth keeping, and fresh random inputs, through the fuzz targets.

use std::path::{Path, PathBuf};

use tests::cores;
use tests::decode::{Kinds, VERSION, conv, random_bytes};
use tests::{gemm, small, targets};

/// Random inputs of each target of convolutions, beside the files.
const RANDOM: u64 = 150;

/// Prints which input it was, if its target panics.
struct Input(String);

impl Drop for Input {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("  input: {}", self.0);
        }
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> = entries.map(|entry| entry.expect("a readable folder").path()).collect();
    files.sort();
    files
}

/// The line of the convolution that bytes say.
fn conv_line(kinds: Kinds) -> impl Fn(&[u8]) -> Option<String> {
    move |data| conv(data, kinds).map(|case| case.to_string())
}

/// Replays `fuzz/corpus/TARGET` and `fuzz/regressions/TARGET`.
fn replay(target: &str, run: fn(&[u8]), line: impl Fn(&[u8]) -> Option<String>) {
    tests::crash::report_faults();
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let mut count = 0;
    for folder in ["corpus", "regressions"] {
        for file in files(&fuzz.join(folder).join(target)) {
            let data = std::fs::read(&file).expect("a readable file");
            let _input = Input(format!("{} {}", file.display(), line(&data).unwrap_or_default()));
            run(&data);
            count += 1;
        }
    }
    println!("{target}: {count} files");
    assert!(count > 0, "the corpus of {target} is missing");
}

fn random_inputs(run: fn(&[u8]), numbers: std::ops::Range<u64>) {
    cores::for_each(numbers, |number| {
        let _input = Input(format!("random {number}"));
        run(&random_bytes(number));
    });
}

#[test]
fn conv_exact() {
    replay("conv_exact", targets::conv_exact, conv_line(Kinds::Exact));
    random_inputs(targets::conv_exact, 77_000..77_000 + RANDOM);
}

#[test]
fn conv_bound() {
    replay("conv_bound", targets::conv_bound, conv_line(Kinds::Bound));
    random_inputs(targets::conv_bound, 77_000..77_000 + RANDOM);
}

#[test]
fn conv_api() {
    replay("conv_api", targets::conv_api, |_| None);
    // Cheap enough for many more.
    random_inputs(targets::conv_api, 0..20_000);
}

#[test]
fn attention() {
    replay("attention", targets::attention, |_| None);
}

#[test]
fn matrix_products() {
    replay("gemm", gemm::target, |data| gemm::decode::gemm(data).map(|case| case.to_string()));
}

#[test]
fn small_kernels() {
    replay("small", small::target, |data| small::decode::small(data).map(|case| case.to_string()));
}

#[test]
fn nn_graph() {
    replay("nn_graph", targets::nn_graph, |_| None);
}

#[test]
fn inputs_of_a_version_to_come_are_left_alone() {
    let of_convolutions = [targets::conv_exact, targets::conv_bound, targets::conv_api];
    for run in of_convolutions.into_iter().chain([targets::attention, targets::nn_graph, gemm::target, small::target]) {
        run(&[VERSION + 1, 2, 3]);
    }
}
