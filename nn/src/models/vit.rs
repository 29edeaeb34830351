//! The Vision Transformer: an image is a sentence whose words are patches.
//!
//! ```text
//! [3, 224, 224] ── conv 16x16 /16 ──► [768, 14, 14] ──► [196, 768] ── class token ──► [197, 768] ── + positions
//!               ── 12 blocks ──► the class token's vector ── norm ── linear ──► classes
//! ```
//!
//! Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021, with the names of torchvision. The last
//! normalisation is of each position alone, and only the class token's is asked for: the others are left out before.

use kernels::conv::Conv2dSpec;

use super::Line;
use crate::conv2d::Conv2d;
use crate::dropout::Dropout;
use crate::embedding::LearnedPositions;
use crate::error::{Error, Result};
use crate::from_sequence::Pick;
use crate::graph::Graph;
use crate::linear::Linear;
use crate::norm::LayerNorm;
use crate::random::Random;
use crate::to_sequence::{ClassToken, ToSequence};
use crate::transformer::{BlockNames, TransformerBlock};

/// A Transformer over the patches of images.
///
/// | | input | patch | features | blocks | heads | parameters |
/// | --- | --- | --- | --- | --- | --- | --- |
/// | [`b16`](Self::b16), the default | 3x224x224 | 16 | 768 | 12 | 12 | 86,567,656 |
/// | [`b32`](Self::b32) | 3x224x224 | 32 | 768 | 12 | 12 | 88,224,232 |
/// | [`s16`](Self::s16) | 3x224x224 | 16 | 384 | 12 | 6 | 22,050,664 |
/// | [`digits`](Self::digits) | 1x28x28 | 4 | 64 | 4 | 4 | 205,066 |
#[derive(Clone, Debug)]
pub struct VisionTransformer {
    /// Channels of the input.
    pub channels: usize,
    /// `[height, width]` of the input.
    pub size: [usize; 2],
    /// Height and width of a patch, divisors of the size.
    pub patch: usize,
    /// Numbers of a position.
    pub features: usize,
    /// Blocks.
    pub depth: usize,
    /// Heads of each block.
    pub heads: usize,
    /// Neurons of each block.
    pub hidden: usize,
    /// Numbers of an output.
    pub classes: usize,
    /// The probability with which a number is left out in training: at the start and at the end of each branch.
    pub dropout: f32,
}

impl Default for VisionTransformer {
    fn default() -> Self {
        Self::b16()
    }
}

impl VisionTransformer {
    /// ViT-B/16.
    pub const fn b16() -> Self {
        Self {
            channels: 3,
            size: [224, 224],
            patch: 16,
            features: 768,
            depth: 12,
            heads: 12,
            hidden: 3072,
            classes: 1000,
            dropout: 0.0,
        }
    }

    /// ViT-B/32.
    pub const fn b32() -> Self {
        Self { patch: 32, ..Self::b16() }
    }

    /// ViT-S/16.
    pub const fn s16() -> Self {
        Self { features: 384, heads: 6, hidden: 1536, ..Self::b16() }
    }

    /// One that reads the digits of MNIST, of 49 patches.
    pub const fn digits() -> Self {
        Self {
            channels: 1,
            size: [28, 28],
            patch: 4,
            features: 64,
            depth: 4,
            heads: 4,
            hidden: 256,
            classes: 10,
            dropout: 0.0,
        }
    }

    /// How many patches an image has.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a patch that does not divide the size.
    pub fn patches(&self) -> Result<usize> {
        let ([height, width], patch) = (self.size, self.patch);
        if patch == 0 || !height.is_multiple_of(patch) || !width.is_multiple_of(patch) {
            return Err(Error::invalid("patch", format!("a divisor of {height} and {width}"), patch));
        }
        let patches = (height / patch).checked_mul(width / patch).filter(|&patches| patches < usize::MAX);
        patches.ok_or_else(|| Error::invalid("size", "one that fits in memory", format!("{:?}", self.size)))
    }

    /// The network: `[batch, channels, height, width]` becomes `[batch, classes]`.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a patch that does not divide the size, or heads that do not divide the features; those of
    /// the layers.
    pub fn build(&self, random: &mut Random) -> Result<Graph> {
        let Self { features, heads, hidden, dropout, .. } = *self;
        let (patches, epsilon) = (self.patches()?, 1e-6);
        let patch = Conv2dSpec::new(self.channels, features, [self.patch; 2]).stride([self.patch; 2]);
        let mut line = Line::new()?
            .then("conv_proj", Conv2d::new(patch, random)?)?
            .then("to_sequence", ToSequence::default())?
            .then("class_token", ClassToken::new(features, 3, random)?)?
            .then("encoder.pos_embedding", LearnedPositions::new(1 + patches, features, random)?.as_parameter(3))?;
        if dropout > 0.0 {
            line = line.then("encoder.dropout", Dropout::new(dropout, random)?)?;
        }
        let block = TransformerBlock {
            hidden,
            dropout,
            epsilon,
            names: BlockNames::TORCHVISION,
            ..TransformerBlock::encoder(features, heads)
        };
        for at in 0..self.depth {
            line = line.then(&format!("encoder.layers.encoder_layer_{at}"), block.build(random)?)?;
        }
        let line = line
            .then("pick", Pick::first())?
            .then("encoder.ln", LayerNorm::new(features)?.epsilon(epsilon))?
            .then("heads.head", Linear::xavier(features, self.classes, random)?)?;
        Ok(line.graph)
    }
}
