//! `kernelbench`: times the kernels.
mod parallel;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    match std::env::args().nth(1).as_deref() {
        Some("parallel") => parallel::run(),
        _ => Ok(()),
    }
}
