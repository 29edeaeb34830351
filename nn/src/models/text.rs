//! Two small models of text: one that judges it, one that writes it.
//!
//! ```text
//! judge    [n] ── words, positions ── blocks ── norm ── mean over the positions ── linear ──► classes
//! write    [n] ── words, rotary positions in causal blocks ── norm ── linear ──► [n, words]: what comes next
//! ```

use super::Line;
use crate::dropout::Dropout;
use crate::embedding::{Embedding, LearnedPositions};
use crate::error::Result;
use crate::from_sequence::MeanPositions;
use crate::graph::Graph;
use crate::linear::Linear;
use crate::norm::LayerNorm;
use crate::random::Random;
use crate::transformer::TransformerBlock;

/// A classifier of texts `[batch, length]`, say of what somebody thinks of a film.
#[derive(Clone, Debug)]
pub struct Sentiment {
    /// Words of the vocabulary.
    pub words: usize,
    /// Words of a text, at most.
    pub positions: usize,
    /// Numbers of a position.
    pub features: usize,
    /// Blocks.
    pub depth: usize,
    /// Heads of each block.
    pub heads: usize,
    /// Numbers of an output.
    pub classes: usize,
    /// The probability with which a number is left out in training.
    pub dropout: f32,
}

impl Default for Sentiment {
    fn default() -> Self {
        Self { words: 10_000, positions: 64, features: 64, depth: 1, heads: 4, classes: 2, dropout: 0.3 }
    }
}

impl Sentiment {
    /// The network: `[batch, length]` becomes `[batch, classes]`.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for heads that do not divide the features; those of the layers.
    pub fn build(&self, random: &mut Random) -> Result<Graph> {
        let Self { features, dropout, .. } = *self;
        let block = TransformerBlock { dropout, ..TransformerBlock::encoder(features, self.heads) };
        let mut line = Line::new()?
            .then("embedding", Embedding::new(self.words, features, random)?)?
            .then("positions", LearnedPositions::new(self.positions, features, random)?)?
            .then("dropout", Dropout::new(dropout, random)?)?;
        for at in 0..self.depth {
            line = line.then(&format!("blocks.{at}"), block.build(random)?)?;
        }
        let line = line
            .then("norm", LayerNorm::new(features)?)?
            .then("mean", MeanPositions::default())?
            .then("drop", Dropout::new(dropout, random)?)?
            .then("head", Linear::xavier(features, self.classes, random)?)?;
        Ok(line.graph)
    }
}

/// A model of what comes next in a text: of its words, or of its characters.
#[derive(Clone, Debug)]
pub struct LanguageModel {
    /// Words, or characters, of the vocabulary.
    pub words: usize,
    /// Positions of a text, at most.
    pub positions: usize,
    /// Numbers of a position.
    pub features: usize,
    /// Blocks.
    pub depth: usize,
    /// Heads of each block.
    pub heads: usize,
    /// The probability with which a number is left out in training.
    pub dropout: f32,
}

impl Default for LanguageModel {
    fn default() -> Self {
        Self { words: 100, positions: 128, features: 128, depth: 4, heads: 4, dropout: 0.0 }
    }
}

impl LanguageModel {
    /// The network: `[batch, length]` becomes `[batch, length, words]`, logits of the word behind each.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for heads that do not divide the features; those of the layers.
    pub fn build(&self, random: &mut Random) -> Result<Graph> {
        let Self { features, dropout, .. } = *self;
        let rotary = Some(self.positions);
        let block = TransformerBlock { dropout, rotary, ..TransformerBlock::decoder(features, self.heads) };
        let mut line = Line::new()?.then("embedding", Embedding::new(self.words, features, random)?)?;
        for at in 0..self.depth {
            line = line.then(&format!("blocks.{at}"), block.build(random)?)?;
        }
        let line = line
            .then("norm", LayerNorm::new(features)?)?
            .then("head", Linear::xavier(features, self.words, random)?)?;
        Ok(line.graph)
    }
}
