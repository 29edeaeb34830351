//! What must hold across the crates, and the tools to check it.
//!
//! ```text
//! bytes ──► decode ──► ConvCase ──► data ──► check ──► the library, in guarded memory
//!                       │ one line            └─► oracle: equal to the reference, or within the bound
//!                       ▼
//!                      repro -- "LINE"
//! ```
//!
//! | module | is |
//! | --- | --- |
//! | [`allocations`] | how many there were |
//! | [`attention`] | random attentions with every feature, and the bounds of their errors |
//! | [`case`] | a convolution and how to run it, as one line of text |
//! | [`decode`] | a case from bytes |
//! | [`data`] | the operands of a case |
//! | [`graph`] | random networks, and automatic differentiation in f64 |
//! | [`guard`] | memory between inaccessible pages |
//! | [`onnx`] | the ONNX project's cases, read from a fixture |
//! | [`norm`] | which elements a norm takes together, and the bounds of its results |
//! | [`oracle`] | references in f64, and what may differ from them |
//! | [`subject`], [`faults`] | the library; convolutions with a mistake each, to check the checks |
//! | [`check`] | everything that is checked of a case |
//! | [`gemm`] | the same of matrix products |
//! | [`small`] | the same of the small kernels |
//! | [`cores`], [`pools`] | independent problems side by side; who does the work of a call |
//! | [`crash`] | which case it was that crashed |
//! | [`stats`], [`report`] | what was checked, and what was not |
//! | [`targets`] | functions of bytes, for fuzzing and replay |
#![warn(missing_docs)]

/// The examples of the README, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

pub mod allocations;
pub mod attention;
pub mod case;
pub mod check;
pub mod cores;
pub mod crash;
pub mod data;
pub mod decode;
pub mod faults;
pub mod gemm;
pub mod graph;
pub mod guard;
pub mod norm;
pub mod onnx;
pub mod oracle;
pub mod pools;
pub mod report;
pub mod small;
pub mod stats;
pub mod subject;
pub mod targets;

/// As many cases as `KERNELS_TEST_CASES` asks for.
///
/// # Panics
/// When that is no number.
pub fn cases_asked_for(unless_asked: u64) -> u64 {
    match std::env::var("KERNELS_TEST_CASES") {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("KERNELS_TEST_CASES is `{text}`, which is no number")),
        Err(_) => unless_asked,
    }
}
