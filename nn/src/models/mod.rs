//! The networks of a course on deep learning, each in the layout of its paper or of torchvision.
//!
//! | model | input | parameters | after |
//! | --- | --- | --- | --- |
//! | [`Perceptron`] | 28x28 | 407,050 | the perceptron with one hidden layer |
//! | [`Stacked`] | any | few | convolutions one behind the other, and a linear classifier |
//! | [`LeNet5`] | 28x28 | 61,706 | LeCun et al. 1998 |
//! | [`AlexNet`] | 3x224x224 | 61,100,840 | Krizhevsky 2014, as torchvision has it |
//! | [`NiN`] | 3x224x224 | 7,595,176 | Lin, Chen, Yan 2014 |
//! | [`GoogLeNet`] | 3x224x224 | 6,624,904 | Szegedy et al. 2015, as torchvision has it; 6,998,552 as the paper has it |
//! | [`VisionTransformer`] | 3x224x224 | 86,567,656 | Dosovitskiy et al. 2021: ViT-B/16 as torchvision has it |
//! | [`Encoder`] | 128x768 | 85,057,538 | Devlin et al. 2019: the blocks of BERT-base |
//! | [`Clip`] | 3x224x224 and 77 words | 151,277,313 | Radford et al. 2021: ViT-B/32 as OpenAI has it |
//! | [`Transformer`] | two sequences of 512 numbers | 44,140,544 | Vaswani et al. 2017: the base model as PyTorch has it |
//! | [`Sentiment`] | a text | few | self-attention over a text, averaged, and a linear classifier |
//! | [`LanguageModel`] | a text | few | causal blocks that say what comes next |
//! | [`Fcn`] | from 28x28 on | few | Long, Shelhamer, Darrell 2015: convolutions alone, for images of any size |
//!
//! The classifiers of images from LeNet-5 to GoogLeNet, the perceptron and the FCN are made narrower by `width`, by
//! which every number of hidden channels is multiplied; the others say each of their sizes. Classifiers take the number
//! of classes that there are. Weights are first drawn from a [`Random`](crate::Random).

mod alexnet;
mod clip;
mod encoder;
mod fcn;
mod googlenet;
mod lenet;
mod nin;
mod perceptron;
mod stacked;
mod text;
mod transformer;
mod vit;

pub use alexnet::AlexNet;
pub use clip::{Clip, Tower};
pub use encoder::Encoder;
pub use fcn::Fcn;
pub use googlenet::GoogLeNet;
pub use lenet::LeNet5;
pub use nin::NiN;
pub use perceptron::Perceptron;
pub use stacked::Stacked;
pub use text::{LanguageModel, Sentiment};
pub use transformer::Transformer;
pub use vit::VisionTransformer;

use crate::error::{Error, Result};
use crate::graph::{Graph, NodeId};
use crate::layer::Layer;

/// So many channels times the width, at least 1.
fn scaled(channels: usize, width: f32) -> usize {
    ((channels as f32 * width).round() as usize).max(1)
}

/// Fails unless a width multiplier is one.
fn check_width(width: f32) -> Result<()> {
    if width.is_finite() && width > 0.0 { Ok(()) } else { Err(Error::invalid("width", "above 0", width)) }
}

/// A graph that is mostly a line, with names of its own for the layers.
struct Line {
    graph: Graph,
    last: NodeId,
}

impl Line {
    /// Starts with the input `x`.
    fn new() -> Result<Self> {
        let mut graph = Graph::new();
        let last = graph.input("x")?;
        Ok(Self { graph, last })
    }

    /// Appends a layer.
    fn then(mut self, name: &str, layer: impl Layer + 'static) -> Result<Self> {
        self.last = self.graph.add(name, layer, &[self.last])?;
        Ok(self)
    }
}
