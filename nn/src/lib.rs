//! A thin neural-network library: layers, graphs, losses, optimisers. The arithmetic is that of the `kernels` crate.
//!
//! ```text
//!                  Layer: forward keeps a cache, backward turns gradients around
//!     ┌───────────────────┬──────────────┴───┬──────────────────┬─────────────────────┐
//!   Linear, Conv1d,     MaxPool2d,         ReLU, Sigmoid,     LayerNorm, RmsNorm,   Sum, Product,
//!   Conv2d,             AvgPool2d,         Tanh, GELU, SiLU,  GroupNorm,            Minimum, Maximum,
//!   ConvTranspose2d,    AdaptiveAvgPool2d  Dropout            BatchNorm2d,          Concat, Flatten
//!   MultiHeadAttention                                        LocalResponseNorm     Pick, MeanPositions
//!     └───────────────────┴──────────────┬───┴──────────────────┴─────────────────────┘
//!                          Graph, Sequential (layers too), models
//!                                        │
//!     Network ──► SCELoss, MSELoss, ClipLoss ──► Network::backward ──► Sgd, Adam, AdamW
//!        │                                                                    │
//!        ├──► StateDict, StateFile: by name ◄─────────────────────────────────┘
//!        └──► Network::eval: planned forward passes, fused, without allocation
//! ```
//!
//! A network that learns to tell two points apart:
//!
//! ```
//! use nn::{Linear, Network, Parallelism, Random, ReLU, SCELoss, Sequential, Sgd, tensor};
//! let random = &mut Random::new(1);
//! let layers = Sequential::new().with(Linear::new(2, 8, random)?)?.with(ReLU::default())?.with(Linear::new(8, 2, random)?)?;
//! let (mut network, mut loss, mut sgd) = (Network::new(layers), SCELoss::default(), Sgd::new(0.9));
//! let (x, labels) = (tensor(&[2, 2], vec![0.0, 1.0, 1.0, 0.0])?, [0, 1]);
//! let mut last = f32::INFINITY;
//! for _ in 0..100 {
//!     let z = network.forward(&x)?;
//!     last = loss.forward(&z, &labels, Parallelism::Current)?;
//!     network.backward(&loss.backward()?)?;
//!     sgd.step(&mut network, 0.1)?;
//! }
//! assert!(last < 0.01);
//! # Ok::<(), nn::Error>(())
//! ```
#![warn(missing_docs)]

mod activation;
mod adaptive_avg_pool2d;
mod arithmetic;
mod attention;
mod avg_pool2d;
mod batch_norm2d;
mod clip_loss;
mod concat;
mod conv1d;
mod conv2d;
mod conv_transpose2d;
mod cosine;
pub mod data;
mod dot;
mod dropout;
mod embedding;
mod error;
mod flatten;
mod from_sequence;
mod gated;
mod graph;
mod inference;
pub mod init;
mod layer;
mod leaves;
mod linear;
mod load;
mod local_response_norm;
mod loss;
mod max_pool2d;
mod memory;
pub mod models;
mod network;
mod norm;
pub mod optim;
mod projection;
mod random;
mod sequential;
mod state_dict;
mod state_file;
mod summary;
mod tensor;
mod time;
mod to_sequence;
mod transformer;

pub use activation::{ReLU, Sigmoid, Tanh};
pub use adaptive_avg_pool2d::AdaptiveAvgPool2d;
pub use arithmetic::{Maximum, Minimum, Product, Sum};
pub use attention::MultiHeadAttention;
pub use avg_pool2d::AvgPool2d;
pub use batch_norm2d::BatchNorm2d;
pub use clip_loss::ClipLoss;
pub use concat::Concat;
pub use conv_transpose2d::ConvTranspose2d;
pub use conv1d::Conv1d;
pub use conv2d::Conv2d;
pub use cosine::CosineLogits;
pub use dropout::Dropout;
pub use embedding::{Embedding, LearnedPositions, SinusoidalPositions};
pub use error::{Error, Result};
pub use flatten::Flatten;
pub use from_sequence::{MeanPositions, Pick};
pub use gated::{GELU, SiLU};
pub use graph::{Graph, NodeId};
pub use inference::{Call, ChannelScale, Fused, Inputs, Kernel, Role};
pub use kernels::Parallelism;
pub use layer::{Layer, Parameter};
pub use linear::Linear;
pub use local_response_norm::LocalResponseNorm;
pub use loss::{MSELoss, SCELoss, classify};
pub use max_pool2d::MaxPool2d;
pub use network::Network;
pub use norm::{GroupNorm, LayerNorm, Norm, OverGroup, OverRow, OverSquares, RmsNorm, Sharing};
pub use optim::{Adam, AdamW, GradientDescent, OneCycle, Schedule, Sgd, clip_norm, clip_value};
pub use projection::Projection;
pub use random::Random;
pub use sequential::Sequential;
pub use state_dict::StateDict;
pub use state_file::StateFile;
pub use summary::{Summary, SummaryRow};
pub use tensor::{Tensor, tensor};
pub use time::LayerTime;
pub use to_sequence::{ClassToken, ToSequence};
pub use transformer::{BlockNames, Gate, TransformerBlock};
