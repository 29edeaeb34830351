//! CLIP: images and texts as directions in one space, in which what belongs together is close.
//!
//! ```text
//! image [3, 224, 224] ── patches, class token, positions, norm ── 12 blocks ── the class token's ── norm, matrix ──► [512] ──┐
//!                                                                                                             cosines ├──► z
//! text [77] ── words, positions ── 12 causal blocks ── norm ── at the word that ends it ── matrix ──────────► [512] ──┘
//! ```
//!
//! Radford et al., "Learning transferable visual models from natural language supervision", ICML 2021, ViT-B/32 in the
//! layout and with the names of OpenAI's code.

use kernels::conv::Conv2dSpec;

use super::{Line, VisionTransformer};
use crate::conv2d::Conv2d;
use crate::cosine::CosineLogits;
use crate::embedding::{Embedding, LearnedPositions};
use crate::error::Result;
use crate::from_sequence::Pick;
use crate::graph::{Graph, NodeId};
use crate::norm::LayerNorm;
use crate::projection::Projection;
use crate::random::Random;
use crate::to_sequence::{ClassToken, ToSequence};
use crate::transformer::{BlockNames, Gate, TransformerBlock};

/// Two towers and the cosines between what they make of images and texts.
///
/// A text is a row of words' numbers, of which the largest, the last of the vocabulary, ends it; what follows is not
/// read.
#[derive(Clone, Debug)]
pub struct Clip {
    /// Channels of the images.
    pub channels: usize,
    /// `[height, width]` of the images.
    pub size: [usize; 2],
    /// Height and width of a patch, divisors of the size.
    pub patch: usize,
    /// The blocks that read images.
    pub image: Tower,
    /// Words of a text, at most.
    pub context: usize,
    /// Words of the vocabulary.
    pub words: usize,
    /// The blocks that read texts.
    pub text: Tower,
    /// Numbers of an image or a text in the end.
    pub features: usize,
}

/// The blocks of one side.
#[derive(Clone, Copy, Debug)]
pub struct Tower {
    /// Numbers of a position.
    pub features: usize,
    /// Blocks.
    pub depth: usize,
    /// Heads of each block.
    pub heads: usize,
}

impl Tower {
    fn block(&self, causal: bool) -> TransformerBlock {
        let (gate, names) = (Gate::GeluQuick, BlockNames::OPENAI);
        TransformerBlock { causal, gate, names, ..TransformerBlock::encoder(self.features, self.heads) }
    }
}

impl Default for Clip {
    fn default() -> Self {
        Self::b32()
    }
}

impl Clip {
    /// CLIP with ViT-B/32: 151,277,313 parameters.
    pub const fn b32() -> Self {
        Self {
            channels: 3,
            size: [224, 224],
            patch: 32,
            image: Tower { features: 768, depth: 12, heads: 12 },
            context: 77,
            words: 49_408,
            text: Tower { features: 512, depth: 12, heads: 8 },
            features: 512,
        }
    }

    /// The network over two inputs, images `[n, channels, height, width]` and texts `[m, length]`: the cosine of each
    /// image with each text, times a scale that learns, `[n, m]`.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a patch that does not divide the size, or heads that do not divide
    /// the features; those of the layers.
    pub fn build(&self, random: &mut Random) -> Result<Graph> {
        let mut graph = Graph::new();
        let (images, texts) = (graph.input("images")?, graph.input("texts")?);
        let visual = graph.add("visual", self.build_image(random)?, &[images])?;
        let text = self.add_text(&mut graph, texts, random)?;
        graph.add("logit_scale", CosineLogits::new(), &[visual, text])?;
        Ok(graph)
    }

    /// What reads images alone: `[batch, features]`. Its names lack the `visual.` that they have in the whole.
    ///
    /// # Errors
    /// Those of [`Clip::build`].
    pub fn build_image(&self, random: &mut Random) -> Result<Graph> {
        let Tower { features, depth, .. } = self.image;
        let (size, patch) = (self.size, self.patch);
        let patches = VisionTransformer { size, patch, ..VisionTransformer::b32() }.patches()?;
        let spec = Conv2dSpec::new(self.channels, features, [patch; 2]).stride([patch; 2]);
        let mut line = Line::new()?
            .then("conv1", Conv2d::without_bias(spec, random)?)?
            .then("to_sequence", ToSequence::default())?
            .then("class_embedding", ClassToken::new(features, 1, random)?)?
            .then("positional_embedding", LearnedPositions::new(1 + patches, features, random)?.as_parameter(2))?
            .then("ln_pre", LayerNorm::new(features)?)?;
        for at in 0..depth {
            line = line.then(&format!("transformer.resblocks.{at}"), self.image.block(false).build(random)?)?;
        }
        let line = line
            .then("pick", Pick::first())?
            .then("ln_post", LayerNorm::new(features)?)?
            .then("proj", Projection::new(features, self.features, random)?)?;
        Ok(line.graph)
    }

    /// What reads texts alone: `[batch, features]`. Its names are those that it has in the whole.
    ///
    /// # Errors
    /// Those of [`Clip::build`].
    pub fn build_text(&self, random: &mut Random) -> Result<Graph> {
        let mut graph = Graph::new();
        let texts = graph.input("texts")?;
        self.add_text(&mut graph, texts, random)?;
        Ok(graph)
    }

    fn add_text(&self, graph: &mut Graph, texts: NodeId, random: &mut Random) -> Result<NodeId> {
        let Tower { features, depth, .. } = self.text;
        let mut x = graph.add("token_embedding", Embedding::new(self.words, features, random)?, &[texts])?;
        let positions = LearnedPositions::new(self.context, features, random)?.as_parameter(2);
        x = graph.add("positional_embedding", positions, &[x])?;
        for at in 0..depth {
            let block = self.text.block(true).build(random)?;
            x = graph.add(&format!("transformer.resblocks.{at}"), block, &[x])?;
        }
        // Rows are normalised one by one: only those that are picked.
        x = graph.add("pick", Pick::largest(), &[x, texts])?;
        x = graph.add("ln_final", LayerNorm::new(features)?, &[x])?;
        graph.add("text_projection", Projection::new(features, self.features, random)?, &[x])
    }
}
