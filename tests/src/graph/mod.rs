//! Random networks, trained by `nn` in f32 and by automatic differentiation in f64 that shares nothing with it.
//!
//! ```text
//! bytes ──► Case ──┬──► nn::Graph ──► outputs, all gradients, parameters after steps, on 1, 2 and 3 threads
//!                  └──► Tape: every number in f64, with the largest error that it may have in f32
//! ```
//!
//! | module | is |
//! | --- | --- |
//! | [`number`] | a number with a bound of its error |
//! | [`tape`] | automatic differentiation, number by number |
//! | [`layers`] | the layers as loops over the tape |
//! | [`case`] | a network from bytes |
//! | [`check`](mod@check) | both, compared |

pub mod case;
pub mod check;
pub mod layers;
pub mod number;
pub mod tape;

pub use case::{Case, MAX_LEN};
pub use check::{Fault, Report, check, check_with};
