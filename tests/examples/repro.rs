//! Runs one convolution, matrix product or small kernel, given as a line of text, against the references.
//!
//! ```text
//! cargo run -p tests --example repro -- "gemm m17 n33 k5 lhs=rows,gap3 rhs=columns out=rows bias=rows data=int seed=42"
//! cargo run -p tests --example repro -- "softmax shape=3x17x1 rows log data=special seed=7"
//! cargo run -p tests --example repro -- "conv n1c17h5w5 o33 k3x3 s2x2 p1,1,1,1 d1x1 g1 nchw relu bias data=int seed=42"
//! cargo run -p tests --example repro -- --save fuzz/regressions/conv_exact/NAME.bin "conv ..."
//! ```
//!
//! The last form also writes a convolution as an input of the fuzz targets, to be replayed from then on.

use std::process::ExitCode;

use tests::case::ConvCase;
use tests::decode::{Kinds, conv, encode};
use tests::{gemm, small};

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(report) => {
            println!("{report}");
            ExitCode::SUCCESS
        }
        Err(reason) => {
            eprintln!("{reason}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut words: Vec<String>) -> Result<String, String> {
    let mut file = None;
    if words.first().is_some_and(|word| word == "--save") {
        words.remove(0);
        file = Some(if words.is_empty() { return Err("--save needs a file".into()) } else { words.remove(0) });
    }
    let line = words.join(" ");
    let no_case = |reason: String| format!("`{line}` is no case: {reason}");
    let name = line.split_whitespace().next();
    if name != Some("conv") && file.is_some() {
        return Err("--save writes convolutions alone".into());
    }
    match name {
        Some("conv") => {}
        Some("gemm") => {
            tests::crash::report_faults();
            let case: gemm::case::GemmCase = line.parse().map_err(no_case)?;
            let tally = gemm::run(&case).map_err(|failure| failure.to_string())?;
            return Ok(format!("{case}\n{tally}"));
        }
        _ => {
            tests::crash::report_faults();
            let case: small::case::SmallCase = line.parse().map_err(no_case)?;
            let tally = small::run(&case).map_err(|failure| failure.to_string())?;
            return Ok(format!("{case}\n{tally}"));
        }
    }
    let case: ConvCase = line.parse().map_err(no_case)?;
    if let Some(file) = file {
        save(&case, &file)?;
    }
    tests::crash::report_faults();
    if let Err(error) = case.spec.sizes(case.shape) {
        println!("the spec or the shape is invalid, and must be refused: {error}");
    }
    let stats = tests::targets::run(&case).map_err(|failure| failure.to_string())?;
    Ok(format!("{case}\n{stats}"))
}

/// Writes the bytes of a case, if they can say all of it: inputs are small, and always run every way.
fn save(case: &ConvCase, file: &str) -> Result<(), String> {
    let every_way = ConvCase { algorithm: None, isa: None, threads: None, pass: None, ..*case };
    let bytes = encode(&every_way);
    match conv(&bytes, Kinds::Any) {
        Some(decoded) if decoded == every_way => {
            std::fs::write(file, bytes).map_err(|error| format!("{file}: {error}"))
        }
        _ => Err(format!("{file}: an input cannot hold this case (too large, or an activation of its own)")),
    }
}
