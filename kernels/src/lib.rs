//! Fast convolution, attention and GEMM kernels for CPUs, forward and backward.
#![warn(missing_docs)]

pub mod activation;
pub mod attention;
pub mod conv;
mod error;
mod execution;
pub mod gemm;
pub mod linear;
pub mod loss;
mod parallel;
mod parts;
// Dropout draws its masks here.
#[allow(dead_code)]
mod philox;
pub mod pool;
pub mod reference;
mod simd;
pub mod softmax;
pub mod study;
mod tensor;
mod workspace;

pub use activation::Activation;
pub use error::Error;
pub use execution::Execution;
pub use parallel::{Parallelism, Team, TeamOptions};
pub use simd::Isa;
pub use tensor::{View, ViewMut};
pub use workspace::Workspace;
