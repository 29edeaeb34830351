//! Fast convolution, attention and GEMM kernels for CPUs, forward and backward.
#![warn(missing_docs)]

pub mod activation;
pub mod attention;
pub mod conv;
mod dropout;
pub mod embedding;
mod error;
mod execution;
pub mod extremum;
pub mod gemm;
mod huge_pages;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;
mod join;
pub mod linear;
mod local_response;
pub mod loss;
pub mod norm;
pub mod normalize;
pub mod optimizer;
mod parallel;
mod parts;
mod philox;
pub mod pool;
pub mod product;
pub mod reference;
pub mod rotary;
mod simd;
pub mod softmax;
mod stages;
pub mod study;
pub mod sum;
mod tensor;
mod workspace;

pub use activation::Activation;
pub use dropout::Dropout;
pub use error::Error;
pub use execution::Execution;
pub use huge_pages::zeros;
pub use local_response::LocalResponse;
pub use parallel::{Parallelism, Team, TeamOptions};
pub use simd::Isa;
pub use tensor::{View, ViewMut};
pub use workspace::Workspace;
