//! `kernelbench`: checks and times the kernels. `kernelbench --help` says how.

use std::io::{self, Write};
use std::process::ExitCode;

use benches::failure::Failure;
use benches::options::{Command, HELP, Options};
use benches::{conv, gemm, machine, overview, parallel};

fn run() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|name| name == "gemm") {
        print!("{}", gemm::command(&arguments[1..]).map_err(Failure::Usage)?);
        return Ok(());
    }
    let options = Options::parse(lexopt::Parser::from_env())?;
    let mut out = io::stdout();
    match options.command {
        Command::Overview => overview::run(options.isa, machine::hardware_threads(), &mut out)?,
        Command::Conv => conv::run(&options, &mut out)?,
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
