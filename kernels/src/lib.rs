//! Fast convolution, attention and GEMM kernels for CPUs, forward and backward.
#![warn(missing_docs)]

mod activation;
pub mod conv;
mod error;
mod gemm;
mod parallel;
pub mod reference;
mod simd;
mod tensor;
mod workspace;

pub use activation::Activation;
pub use error::Error;
pub use parallel::{Parallelism, Team};
pub use simd::Isa;
pub use tensor::{View, ViewMut};
pub use workspace::Workspace;
