//! The small kernels, checked as convolutions are: linear layers, pooling, activations, softmax, losses, norms, rotary
//! and table embeddings, dropout, forward and backward.
//!
//! ```text
//! bytes ──► decode ──► SmallCase ──► its calls: inputs, and outputs with their bounds ──► check, in guarded memory
//!                       │ one line
//!                       ▼
//!                      repro -- "LINE"
//! ```
//!
//! A kernel says what goes into each of its calls, what must come out, and how far from it a result may be; everything
//! else that is checked is the same for all.

mod call;
pub mod case;
pub mod check;
pub mod decode;
mod elementwise;
mod linear;
mod norm;
mod pooling;
mod rows;
mod sequence;

use std::cell::RefCell;

pub use call::{Output, wide};

use crate::report::{Failure, Tally};
use case::SmallCase;
use check::{Bench, check};

thread_local! {
    static BENCH: RefCell<Bench> = RefCell::default();
}

/// Checks a case on this thread's bench.
///
/// # Errors
/// What is wrong.
pub fn run(case: &SmallCase) -> Result<Tally, Failure> {
    let mut tally = Tally::default();
    BENCH.with_borrow_mut(|bench| check(case, bench, &mut tally))?;
    Ok(tally)
}

/// A small kernel of any shape and data, for fuzzing and replay.
///
/// # Panics
/// When a result is wrong.
pub fn target(data: &[u8]) {
    if let Some(Err(failure)) = decode::small(data).map(|case| run(&case)) {
        panic!("{failure}");
    }
}
