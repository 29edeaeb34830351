//! A stack of Transformer blocks over vectors, averaged, and a linear classifier: BERT's size, or that of CLIP's text.
//!
//! ```text
//! [n, features] ── blocks ──► [n, features] ── norm ── mean over the positions ── linear ──► classes
//! ```
//!
//! Devlin, Chang, Lee, Toutanova, "BERT", NAACL 2019, in its base size, for sequences whose words are vectors already.

use super::Line;
use crate::error::Result;
use crate::from_sequence::MeanPositions;
use crate::graph::Graph;
use crate::linear::Linear;
use crate::norm::LayerNorm;
use crate::random::Random;
use crate::transformer::TransformerBlock;

/// Blocks over sequences `[batch, length, features]`, and a classifier.
#[derive(Clone, Debug)]
pub struct Encoder {
    /// Numbers of a position.
    pub features: usize,
    /// Blocks.
    pub depth: usize,
    /// Heads of each block.
    pub heads: usize,
    /// Numbers of an output.
    pub classes: usize,
    /// Whether a position is kept from seeing those behind it.
    pub causal: bool,
}

impl Default for Encoder {
    fn default() -> Self {
        Self::bert_base()
    }
}

impl Encoder {
    /// 12 blocks of 768 features and 12 heads, two classes.
    pub const fn bert_base() -> Self {
        Self { features: 768, depth: 12, heads: 12, classes: 2, causal: false }
    }

    /// 12 causal blocks of 512 features and 8 heads, 512 outputs: CLIP's text tower behind its words.
    pub const fn clip_text() -> Self {
        Self { features: 512, depth: 12, heads: 8, classes: 512, causal: true }
    }

    /// The network: `[batch, length, features]` becomes `[batch, classes]`. Its layers are named `blocks.0`, ...,
    /// `norm` and `head`.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for heads that do not divide the features; those of the layers.
    pub fn build(&self, random: &mut Random) -> Result<Graph> {
        let block = TransformerBlock { causal: self.causal, ..TransformerBlock::encoder(self.features, self.heads) };
        let mut line = Line::new()?;
        for at in 0..self.depth {
            line = line.then(&format!("blocks.{at}"), block.build(random)?)?;
        }
        let line = line
            .then("norm", LayerNorm::new(self.features)?)?
            .then("mean", MeanPositions::default())?
            .then("head", Linear::xavier(self.features, self.classes, random)?)?;
        Ok(line.graph)
    }
}
