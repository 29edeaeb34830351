//! `kernelbench`: checks and times the kernels. `kernelbench --help` says how.

use std::io::{self, Write};
use std::process::ExitCode;

use benches::failure::Failure;
use benches::options::{Command, HELP, Options};
use benches::{attention, conv, gemm, machine, memory, model, overview, parallel};

fn run() -> Result<(), Failure> {
    let options = Options::parse(lexopt::Parser::from_env())?;
    let mut out = io::stdout();
    match options.command {
        Command::Overview => overview::run(options.isa, machine::hardware_threads(), &mut out)?,
        Command::Conv => conv::run(&options, &mut out)?,
        Command::Attention => attention::run(&options, &mut out)?,
        Command::Model => model::run(&options, &mut out)?,
        Command::Gemm => {
            // SAFETY: no other thread has been started yet.
            unsafe { std::env::set_var(gemm::MATRIXMULTIPLY_THREADS, options.threads.to_string()) };
            gemm::run(&options, &mut out)?;
        }
        Command::Memory => memory::run(&options, &mut out)?,
        Command::Parallel => parallel::run(&mut out)?,
        Command::Help => write!(out, "{HELP}")?,
        Command::Version => writeln!(out, "kernelbench {}", env!("CARGO_PKG_VERSION"))?,
    }
    out.flush()?;
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if !matches!(failure, Failure::OutputClosed) {
                eprintln!("kernelbench: {failure}");
            }
            if matches!(failure, Failure::Usage(_)) {
                eprintln!("`kernelbench --help` says what is there");
            }
            ExitCode::from(failure.code())
        }
    }
}
