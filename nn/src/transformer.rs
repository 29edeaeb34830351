//! The block that Transformers are made of.
//!
//! ```text
//! x ──┬── norm1 ── attn ──► + ──┬── norm2 ── mlp ──► + ──► y          mlp: Linear d -> hidden, GELU, Linear hidden -> d
//!     └─────────────────────┘   └────────────────────┘
//! ```
//!
//! Normalisation comes before each branch (Xiong et al., "On layer normalization in the Transformer architecture", 2020),
//! as ViT, GPT and CLIP have it.

use crate::arithmetic::Sum;
use crate::attention::MultiHeadAttention;
use crate::error::Result;
use crate::gated::GELU;
use crate::graph::Graph;
use crate::linear::Linear;
use crate::norm::LayerNorm;
use crate::random::Random;
use crate::sequential::Sequential;

/// What a block of a Transformer is made of. `build` makes a graph of it, whose parameters are named `norm1`, `attn.qkv`,
/// `attn.proj`, `norm2`, `mlp.0` and `mlp.2`.
///
/// ```
/// use nn::{Layer, Parallelism, Random, Tensor, TransformerBlock};
/// let mut block = TransformerBlock::encoder(32, 4).build(&mut Random::new(0))?;
/// let x = Tensor::zeros(vec![2, 9, 32]);
/// assert_eq!(block.forward(&[&x], Parallelism::Current)?.shape(), [2, 9, 32]);
/// # Ok::<(), nn::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct TransformerBlock {
    /// Numbers of a position.
    pub features: usize,
    /// Heads of the attention.
    pub heads: usize,
    /// Neurons between the two linear layers.
    pub hidden: usize,
    /// Whether a position is kept from seeing those behind it.
    pub causal: bool,
    /// What is added to variances.
    pub epsilon: f32,
}

impl TransformerBlock {
    /// A block in which all positions see each other, with four times as many neurons as features.
    pub const fn encoder(features: usize, heads: usize) -> Self {
        Self { features, heads, hidden: features.saturating_mul(4), causal: false, epsilon: 1e-5 }
    }

    /// A block in which no position sees those behind it.
    pub const fn decoder(features: usize, heads: usize) -> Self {
        Self { causal: true, ..Self::encoder(features, heads) }
    }

    /// The block, with fresh weights.
    ///
    /// # Errors
    /// Those of [`MultiHeadAttention::new`] and [`Linear::new`].
    pub fn build(&self, random: &mut Random) -> Result<Graph> {
        let Self { features, heads, hidden, causal, epsilon } = *self;
        let attention = MultiHeadAttention::new(features, heads, random)?.causal(causal)?;
        let mlp = Sequential::new()
            .with(Linear::new(features, hidden, random)?)?
            .with(GELU::default())?
            .with(Linear::new(hidden, features, random)?)?;
        let mut graph = Graph::new();
        let x = graph.input("x")?;
        let norm1 = graph.add("norm1", LayerNorm::new(features)?.epsilon(epsilon), &[x])?;
        let attn = graph.add("attn", attention, &[norm1])?;
        let seen = graph.add("seen", Sum::default(), &[x, attn])?;
        let norm2 = graph.add("norm2", LayerNorm::new(features)?.epsilon(epsilon), &[seen])?;
        let mlp = graph.add("mlp", mlp, &[norm2])?;
        graph.add("y", Sum::default(), &[seen, mlp])?;
        Ok(graph)
    }
}
