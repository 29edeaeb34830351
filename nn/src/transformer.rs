//! The block that Transformers are made of.
//!
//! ```text
//! norm first, as ViT, GPT and CLIP have it (Xiong et al., "On layer normalization in the Transformer architecture", 2020):
//!
//! x ──┬── norm1 ── attn ──► + ──┬── norm ── cross ──► + ──┬── norm2 ── mlp ──► + ──► y
//!     └─────────────────────┘   └─────────── ▲ ───────┘   └────────────────────┘
//!                                         memory
//!
//! norm last, as in Vaswani et al., "Attention is all you need", NeurIPS 2017:
//!
//! x ──┬── attn ──► + ── norm1 ──┬── cross ──► + ── norm ──┬── mlp ──► + ── norm2 ──► y
//!     └────────────┘            └──── ▲ ──────┘           └───────────┘
//! ```
//!
//! `mlp` is a linear layer to `hidden` neurons, a gate, and a linear layer back. Only a decoder that reads another
//! sequence, the memory, has the part in the middle.

use crate::activation::ReLU;
use crate::arithmetic::Sum;
use crate::attention::MultiHeadAttention;
use crate::dropout::Dropout;
use crate::error::Result;
use crate::gated::GELU;
use crate::graph::{Graph, NodeId};
use crate::linear::Linear;
use crate::norm::LayerNorm;
use crate::random::Random;

/// What a block of a Transformer is made of. `build` makes a graph of it, whose parameters have the names that
/// [`BlockNames`] gives them.
///
/// ```
/// use nn::{Layer, Parallelism, Random, Tensor, TransformerBlock};
/// let random = &mut Random::new(0);
/// let mut block = TransformerBlock::encoder(32, 4).build(random)?;
/// let x = Tensor::zeros(vec![2, 9, 32]);
/// assert_eq!(block.forward(&[&x], Parallelism::Current)?.shape(), [2, 9, 32]);
///
/// let mut reader = TransformerBlock { is_cross: true, ..TransformerBlock::decoder(32, 4) }.build(random)?;
/// let memory = Tensor::zeros(vec![2, 5, 32]);
/// assert_eq!(reader.forward(&[&x, &memory], Parallelism::Current)?.shape(), [2, 9, 32]);
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
    /// Whether positions attend to a second input as well.
    pub is_cross: bool,
    /// Whether normalisation comes before each branch, or after each sum.
    pub norm_first: bool,
    /// The function between the two linear layers.
    pub gate: Gate,
    /// The probability with which a number at the end of a branch is left out in training.
    pub dropout: f32,
    /// For so many positions, queries and keys are turned by their place; see [`MultiHeadAttention::rotary`].
    pub rotary: Option<usize>,
    /// What is added to variances.
    pub epsilon: f32,
    /// The names of the layers.
    pub names: BlockNames,
}

/// What is between the linear layers of a [`TransformerBlock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// [`ReLU`], as in the paper.
    Relu,
    /// [`GELU`], as in BERT and ViT.
    Gelu,
    /// [`GELU::quick`], as in CLIP.
    GeluQuick,
}

/// The names that a project gives to the layers of a [`TransformerBlock`]: a file of weights is read under them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockNames {
    /// The attention to the sequence itself, and its normalisation.
    pub own: [&'static str; 2],
    /// The attention to the memory, and its normalisation.
    pub cross: [&'static str; 2],
    /// The normalisation of the linear layers.
    pub norm: &'static str,
    /// The linear layers.
    pub mlp: [&'static str; 2],
    /// Whether attention names its parameters `in_proj_weight` and `out_proj.weight`, and not `qkv` and `proj`.
    pub pytorch_attention: bool,
}

impl BlockNames {
    /// Those of timm: `norm1`, `attn.qkv`, `attn.proj`, `norm2`, `mlp.0`, `mlp.2`.
    pub const TIMM: Self = Self {
        own: ["attn", "norm1"],
        cross: ["cross", "norm_cross"],
        norm: "norm2",
        mlp: ["mlp.0", "mlp.2"],
        pytorch_attention: false,
    };
    /// Those of torchvision's ViT: `ln_1`, `self_attention.in_proj_weight`, `ln_2`, `mlp.0`, `mlp.3`.
    pub const TORCHVISION: Self = Self {
        own: ["self_attention", "ln_1"],
        cross: ["cross_attention", "ln_cross"],
        norm: "ln_2",
        mlp: ["mlp.0", "mlp.3"],
        pytorch_attention: true,
    };
    /// Those of OpenAI's CLIP: `ln_1`, `attn.in_proj_weight`, `ln_2`, `mlp.c_fc`, `mlp.c_proj`.
    pub const OPENAI: Self = Self {
        own: ["attn", "ln_1"],
        cross: ["cross", "ln_cross"],
        norm: "ln_2",
        mlp: ["mlp.c_fc", "mlp.c_proj"],
        pytorch_attention: true,
    };
    /// Those of `torch.nn.TransformerEncoderLayer`: `self_attn`, `norm1`, `linear1`, `linear2`, `norm2`.
    pub const PYTORCH_ENCODER: Self = Self {
        own: ["self_attn", "norm1"],
        cross: ["multihead_attn", "norm_cross"],
        norm: "norm2",
        mlp: ["linear1", "linear2"],
        pytorch_attention: true,
    };
    /// Those of `torch.nn.TransformerDecoderLayer`: `self_attn`, `norm1`, `multihead_attn`, `norm2`, `linear1`,
    /// `linear2`, `norm3`.
    pub const PYTORCH_DECODER: Self =
        Self { cross: ["multihead_attn", "norm2"], norm: "norm3", ..Self::PYTORCH_ENCODER };
}

impl TransformerBlock {
    /// A block in which all positions see each other, with four times as many neurons as features.
    pub const fn encoder(features: usize, heads: usize) -> Self {
        Self {
            features,
            heads,
            hidden: features.saturating_mul(4),
            causal: false,
            is_cross: false,
            norm_first: true,
            gate: Gate::Gelu,
            dropout: 0.0,
            rotary: None,
            epsilon: 1e-5,
            names: BlockNames::TIMM,
        }
    }

    /// A block in which no position sees those behind it.
    pub const fn decoder(features: usize, heads: usize) -> Self {
        Self { causal: true, ..Self::encoder(features, heads) }
    }

    /// The block, with fresh weights. Its inputs are `x` and, if it is a cross block, `memory`.
    ///
    /// # Errors
    /// Those of [`MultiHeadAttention::new`] and [`Linear::new`].
    pub fn build(&self, random: &mut Random) -> Result<Graph> {
        let names = &self.names;
        let mut graph = Graph::new();
        let mut x = graph.input("x")?;
        let memory = if self.is_cross { Some(graph.input("memory")?) } else { None };
        let attention = |random: &mut Random| -> Result<MultiHeadAttention> {
            let attention = MultiHeadAttention::new(self.features, self.heads, random)?;
            Ok(if names.pytorch_attention { attention.pytorch_names() } else { attention })
        };

        let mut own = attention(random)?.causal(self.causal)?;
        if let Some(positions) = self.rotary {
            own = own.rotary(positions)?;
        }
        let [name, norm] = names.own;
        x = self.branch(&mut graph, x, norm, random, |graph, x, _| graph.add(name, own, &[x]))?;
        if let Some(memory) = memory {
            let ([name, norm], cross) = (names.cross, attention(random)?);
            x = self.branch(&mut graph, x, norm, random, |graph, x, _| graph.add(name, cross, &[x, memory]))?;
        }
        self.branch(&mut graph, x, names.norm, random, |graph, x, random| {
            let [first, second] = names.mlp;
            let inner = graph.add(first, Linear::xavier(self.features, self.hidden, random)?, &[x])?;
            let gated = match self.gate {
                Gate::Relu => graph.add("gate", ReLU::default(), &[inner]),
                Gate::Gelu => graph.add("gate", GELU::default(), &[inner]),
                Gate::GeluQuick => graph.add("gate", GELU::quick(), &[inner]),
            };
            graph.add(second, Linear::xavier(self.hidden, self.features, random)?, &[gated?])
        })?;
        Ok(graph)
    }

    /// Adds a branch beside x, the sum of both, and the normalisation, before or behind.
    fn branch(
        &self,
        graph: &mut Graph,
        x: NodeId,
        norm: &str,
        random: &mut Random,
        add: impl FnOnce(&mut Graph, NodeId, &mut Random) -> Result<NodeId>,
    ) -> Result<NodeId> {
        let layer = LayerNorm::new(self.features)?.epsilon(self.epsilon);
        let (before, behind) = if self.norm_first { (Some(layer), None) } else { (None, Some(layer)) };
        let normed = before.map_or(Ok(x), |layer| graph.add(norm, layer, &[x]))?;
        let mut y = add(graph, normed, random)?;
        if self.dropout > 0.0 {
            y = graph.add(&format!("dropout of {norm}"), Dropout::new(self.dropout, random)?, &[y])?;
        }
        let sum = graph.add(&format!("sum of {norm}"), Sum::default(), &[x, y])?;
        behind.map_or(Ok(sum), |layer| graph.add(norm, layer, &[sum]))
    }
}
