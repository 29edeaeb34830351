//! Runs one convolution, given as a line of text, against the references.
//!
//! ```text
//! cargo run -p tests --example repro -- "conv n1c17h5w5 o33 k3x3 s2x2 p1,1,1,1 d1x1 g1 nchw relu bias data=int seed=42"
//! ```

use std::process::ExitCode;

use tests::case::ConvCase;

fn main() -> ExitCode {
    let line = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let case: ConvCase = match line.parse() {
        Ok(case) => case,
        Err(reason) => {
            eprintln!("`{line}` is no case: {reason}");
            return ExitCode::FAILURE;
        }
    };
    tests::crash::report_faults();
    if let Err(error) = case.spec.sizes(case.shape) {
        println!("the spec or the shape is invalid, and must be refused: {error}");
    }
    match tests::targets::run(&case) {
        Ok(stats) => {
            println!("{case}\n{stats}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}
