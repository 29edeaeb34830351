//! Matrix products, checked as convolutions are.
//!
//! ```text
//! bytes ──► decode ──► GemmCase ──► data, in arrangements ──► check ──► the library, in guarded memory
//!                       │ one line                              └─► equal to the reference, or within the bound
//!                       ▼
//!                      repro -- "LINE"
//! ```

pub mod arrangement;
pub mod case;
pub mod check;
mod data;
pub mod decode;

use std::cell::RefCell;

use crate::report::{Failure, Tally};
use case::GemmCase;
use check::{Bench, check};

thread_local! {
    static BENCH: RefCell<Bench> = RefCell::default();
}

/// Checks a case on this thread's bench.
///
/// # Errors
/// What is wrong.
pub fn run(case: &GemmCase) -> Result<Tally, Failure> {
    let mut tally = Tally::default();
    BENCH.with_borrow_mut(|bench| check(case, bench, &mut tally))?;
    Ok(tally)
}

/// A product of any shape, strides, epilogue and data, for fuzzing and replay.
///
/// # Panics
/// When a result is wrong.
pub fn target(data: &[u8]) {
    if let Some(Err(failure)) = decode::gemm(data).map(|case| run(&case)) {
        panic!("{failure}");
    }
}
