//! Scaled dot-product attention, forward and backward, without a matrix of scores.
//!
//! ```text
//! AttentionSpec ──► Attention::new(spec) ──► forward(inputs, out, lse, workspace)    out = softmax(q k^T ...) v
//! (checked once)    (instruction set)        backward(inputs, out, dout, lse, gradients, workspace)
//! ```
//!
//! | path | for | sums are cut |
//! | --- | --- | --- |
//! | blocks of keys | any number of queries | every 512, 256, 128 or 64 keys, by the larger head dimension |
//! | few rows | up to 12 rows for each head of keys: decoding | every 64 keys, and into pieces of 1024 |
//! | backward | every shape | every gradient is one chain |
//!
//! Packed sequences of different lengths ([`RaggedInputs`]) take these paths one by one. [`KvCache`] and
//! [`PagedKvCache`] keep keys and values from call to call.
//!
//! Bits depend on the spec, on one sequence's shape and on the data: not on threads, batch, memory order or workspace,
//! nor on AVX2 against AVX-512.
//!
//! # Numerical error
//! With `u = 2^-24`, a logit errs by at most `beta = |scale| gamma(head_dim + 2) sum |q k| + u |logit|` (and a rounding
//! for each of softcap, bias and slope); a weight by `theta = 2 beta + 3 u (largest - smallest logit) + 2.5 u` and 4.5
//! u more for each block, relative to itself; and the output by `expm1(2 theta) + gamma(2 kv_len + 3 blocks + 3)` times
//! the weighted sum of `|v|`, and 2 u more with dropout. Weights below 2^-126 are 0. Equal logits give the exact mean
//! of values whose sums are exact.
//!
//! The log-sum-exp errs by `lambda = theta + gamma(kv_len + blocks + 1) + 3 u (|lse| + |largest logit|)`. Backward
//! computes weights from it, so that they err by `rho = expm1(2 theta + lambda + 4 u |lse|) + 5 u`; with `rows` the
//! queries that share a head of keys in all sequences, `D = dout . out` and `e(D)`, `e(dp)` the errors of the dot
//! products:
//!
//! ```text
//! dv              (rho + gamma(rows)) sum over rows of p |dout|
//! dlogit          p (rho (|dp| + |D|) + e(dp) + e(D) + 4 u (|dp| + |D|))
//! dq, dk          |scale| sum of (e(dlogit) + (gamma(terms) + 2 u) |dlogit|) |k|, |q|     terms = kv_len, rows
//! dbias           the sum of e(dlogit), and gamma(terms) |dlogit|, over what it is broadcast to
//! dsinks          sum over rows of p_sink ((rho + gamma(rows + 2)) |D| + e(D))
//! ```
//!
//! # Special values
//! Hidden keys contribute nothing, whatever they hold, and neither do keys whose bias or logit is -infinity. A row
//! without keys gives zeros, a log-sum-exp of -infinity and no gradients. NaN in a query reaches its row; in a key or a
//! value, the rows that see it. A logit of +infinity makes its row NaN.

mod ahead;
mod backward;
mod cache;
mod call;
mod cut;
mod dots;
mod dropout;
mod forward;
mod gradients;
mod inputs;
mod logits;
mod meet;
mod merge;
mod pack;
mod plan;
mod ragged;
mod rows;
mod scores;
mod spec;
mod values;
mod whole;

pub use cache::{KvCache, PagedKvCache};
pub use dropout::Dropout;
pub use gradients::Gradients;
pub(crate) use gradients::check_gradients;
pub use inputs::Inputs;
pub(crate) use inputs::check_shape;
pub use plan::{Attention, attention};
pub use ragged::{RaggedGradients, RaggedInputs};
pub use spec::{AttentionSpec, Causal, MAX_HEAD_DIM, Shape, Window};
