//! The Transformer: an encoder that reads one sequence, and a decoder that writes another, word by word.
//!
//! ```text
//! source [n] ── words, positions ── encoder blocks ──► memory [n, d] ──┐
//!                                                                      ▼
//! target [m] ── words, positions ── decoder blocks, causal, which attend to the memory ──► [m, d] ── linear ──► [m, words]
//! ```
//!
//! Vaswani et al., "Attention is all you need", NeurIPS 2017, with the names of `torch.nn.Transformer`. That class ends
//! each stack with one more normalisation, as all do whose blocks normalise first.

use super::Line;
use crate::dropout::Dropout;
use crate::embedding::{Embedding, SinusoidalPositions};
use crate::error::Result;
use crate::graph::Graph;
use crate::layer::Layer;
use crate::linear::Linear;
use crate::norm::LayerNorm;
use crate::random::Random;
use crate::transformer::{BlockNames, Gate, TransformerBlock};

/// Encoder and decoder. The default is the paper's base model.
#[derive(Clone, Debug)]
pub struct Transformer {
    /// Numbers of a position.
    pub features: usize,
    /// Heads of each block.
    pub heads: usize,
    /// Neurons of each block.
    pub hidden: usize,
    /// Blocks of the encoder.
    pub encoder: usize,
    /// Blocks of the decoder.
    pub decoder: usize,
    /// Whether normalisation comes before each branch, or after each sum, as in the paper.
    pub norm_first: bool,
    /// Whether each stack ends with a normalisation: PyTorch's does, the paper's does not.
    pub final_norm: bool,
    /// The probability with which a number is left out in training: of the words' vectors and at the end of each
    /// branch.
    pub dropout: f32,
}

impl Default for Transformer {
    fn default() -> Self {
        Self::base()
    }
}

impl Transformer {
    /// The base model, as PyTorch has it, 44,140,544 parameters, without dropout.
    pub const fn base() -> Self {
        Self {
            features: 512,
            heads: 8,
            hidden: 2048,
            encoder: 6,
            decoder: 6,
            norm_first: false,
            final_norm: true,
            dropout: 0.0,
        }
    }

    fn block(&self) -> TransformerBlock {
        TransformerBlock {
            hidden: self.hidden,
            norm_first: self.norm_first,
            gate: Gate::Relu,
            dropout: self.dropout,
            names: BlockNames::PYTORCH_ENCODER,
            ..TransformerBlock::encoder(self.features, self.heads)
        }
    }

    /// The encoder over vectors: `[batch, n, features]` becomes another such sequence.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for heads that do not divide the features; those of the layers.
    pub fn build_encoder(&self, random: &mut Random) -> Result<Graph> {
        let mut line = Line::new()?;
        for at in 0..self.encoder {
            line = line.then(&format!("layers.{at}"), self.block().build(random)?)?;
        }
        if self.final_norm {
            line = line.then("norm", LayerNorm::new(self.features)?)?;
        }
        Ok(line.graph)
    }

    /// The decoder over vectors: the target `[batch, m, features]` so far, and the memory `[batch, n, features]`.
    ///
    /// # Errors
    /// Those of [`Transformer::build_encoder`].
    pub fn build_decoder(&self, random: &mut Random) -> Result<Graph> {
        let block =
            TransformerBlock { causal: true, is_cross: true, names: BlockNames::PYTORCH_DECODER, ..self.block() };
        let mut graph = Graph::new();
        let (mut x, memory) = (graph.input("x")?, graph.input("memory")?);
        for at in 0..self.decoder {
            x = graph.add(&format!("layers.{at}"), block.build(random)?, &[x, memory])?;
        }
        if self.final_norm {
            graph.add("norm", LayerNorm::new(self.features)?, &[x])?;
        }
        Ok(graph)
    }

    /// Encoder and decoder over vectors, as `torch.nn.Transformer`: two inputs, source `[batch, n, features]` and
    /// target `[batch, m, features]`.
    ///
    /// # Errors
    /// Those of [`Transformer::build_encoder`].
    pub fn build(&self, random: &mut Random) -> Result<Graph> {
        let mut graph = Graph::new();
        let (source, target) = (graph.input("source")?, graph.input("target")?);
        let memory = graph.add("encoder", self.build_encoder(random)?, &[source])?;
        graph.add("decoder", self.build_decoder(random)?, &[target, memory])?;
        Ok(graph)
    }

    /// The whole with words: two inputs, source `[batch, n]` and target `[batch, m]`, of at most `positions` words of a
    /// vocabulary that both share; the logits of the word that follows each of the target's, `[batch, m, words]`.
    ///
    /// # Errors
    /// Those of [`Transformer::build_encoder`] and of [`Embedding::new`].
    pub fn build_with_words(&self, words: usize, positions: usize, random: &mut Random) -> Result<Graph> {
        let mut graph = Graph::new();
        let (source, target) = (graph.input("source")?, graph.input("target")?);
        let mut vectors = |name: &str, from, random: &mut Random| {
            let embedded =
                graph.add(&format!("{name}_embedding"), word_vectors(words, self.features, random)?, &[from])?;
            let waves = SinusoidalPositions::new(positions, self.features)?;
            let placed = graph.add(&format!("{name}_positions"), waves, &[embedded])?;
            if self.dropout == 0.0 {
                return Ok(placed);
            }
            graph.add(&format!("{name}_dropout"), Dropout::new(self.dropout, random)?, &[placed])
        };
        let (source, target) = (vectors("source", source, random)?, vectors("target", target, random)?);
        let memory = graph.add("encoder", self.build_encoder(random)?, &[source])?;
        let decoded = graph.add("decoder", self.build_decoder(random)?, &[target, memory])?;
        graph.add("generator", Linear::xavier(self.features, words, random)?, &[decoded])?;
        Ok(graph)
    }
}

/// Vectors whose numbers have a variance of 1, as large as those of the positions: where the paper multiplies smaller
/// ones by the root of the features.
fn word_vectors(words: usize, features: usize, random: &mut Random) -> Result<Embedding> {
    let mut embedding = Embedding::new(words, features, random)?;
    let factor = (3.0 * features as f32).sqrt();
    embedding.visit("", &mut |_, parameter| parameter.update().0.iter_mut().for_each(|value| *value *= factor));
    Ok(embedding)
}
