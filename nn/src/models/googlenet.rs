//! GoogLeNet, the first Inception: nine modules of four branches that look at an image on several scales at once.
//!
//! ```text
//!             ┌── conv 1x1 ─────────────────────┐
//!             ├── conv 1x1 ── conv 3x3 ─────────┤
//! x ──────────┤                                 ├── concat ──► y          ReLU behind each convolution
//!             ├── conv 1x1 ── conv 5x5 (3x3) ───┤
//!             └── max 3x3 /1 ── conv 1x1 ───────┘
//! ```
//!
//! Szegedy et al., "Going deeper with convolutions", CVPR 2015, in two forms, with the names of torchvision and without
//! the two classifiers that only help in training:
//!
//! | `batch_norm` | behind each convolution | third branch | normalisation of the first layers | last pooling | parameters |
//! | --- | --- | --- | --- | --- | --- |
//! | yes: torchvision | batch normalisation | 3x3 | none | 2x2 | 6,624,904 |
//! | no: the paper | a bias | 5x5 | local response | 3x3 | 6,998,552 |

use kernels::LocalResponse;
use kernels::conv::{Conv2dSpec, Padding};
use kernels::pool::Pool2dSpec;

use super::{Line, check_width, scaled};
use crate::activation::ReLU;
use crate::adaptive_avg_pool2d::AdaptiveAvgPool2d;
use crate::batch_norm2d::BatchNorm2d;
use crate::concat::Concat;
use crate::conv2d::Conv2d;
use crate::dropout::Dropout;
use crate::error::Result;
use crate::flatten::Flatten;
use crate::graph::Graph;
use crate::linear::Linear;
use crate::local_response_norm::LocalResponseNorm;
use crate::max_pool2d::MaxPool2d;
use crate::random::Random;
use crate::sequential::Sequential;

/// GoogLeNet over images of at least 47x47.
#[derive(Clone, Debug)]
pub struct GoogLeNet {
    /// Channels of the input.
    pub channels: usize,
    /// Numbers of an output.
    pub classes: usize,
    /// By which hidden channels are multiplied.
    pub width: f32,
    /// Whether it is torchvision's, with batch normalisation, or that of the paper.
    pub batch_norm: bool,
    /// The probability with which a number before the last layer is left out in training.
    pub dropout: f32,
}

impl Default for GoogLeNet {
    fn default() -> Self {
        Self { channels: 3, classes: 1000, width: 1.0, batch_norm: true, dropout: 0.2 }
    }
}

/// Channels of a module: of the 1x1 branch; before and behind the 3x3; before and behind the 5x5; behind the pooling.
const MODULES: [(&str, [usize; 6]); 9] = [
    ("inception3a", [64, 96, 128, 16, 32, 32]),
    ("inception3b", [128, 128, 192, 32, 96, 64]),
    ("inception4a", [192, 96, 208, 16, 48, 64]),
    ("inception4b", [160, 112, 224, 24, 64, 64]),
    ("inception4c", [128, 128, 256, 24, 64, 64]),
    ("inception4d", [112, 144, 288, 32, 64, 64]),
    ("inception4e", [256, 160, 320, 32, 128, 128]),
    ("inception5a", [256, 160, 320, 32, 128, 128]),
    ("inception5b", [384, 192, 384, 48, 128, 128]),
];

impl GoogLeNet {
    /// The network.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a width that is not above 0, for no channels or no classes.
    pub fn build(&self, random: &mut Random) -> Result<Graph> {
        check_width(self.width)?;
        let [c1, c2, c3] = [64, 64, 192].map(|channels| scaled(channels, self.width));
        let pool = |size: usize| MaxPool2d::new(Pool2dSpec::new([size; 2]).stride([2, 2]).ceil_mode(true));
        let unit = Unit { batch_norm: self.batch_norm };
        let mut line = Line::new()?;
        line = line.then("conv1", unit.build(self.channels, c1, 7, 2, random)?)?.then("maxpool1", pool(3)?)?;
        line = self.norm("norm1", line)?;
        line = line.then("conv2", unit.build(c1, c2, 1, 1, random)?)?;
        line = line.then("conv3", unit.build(c2, c3, 3, 1, random)?)?;
        line = self.norm("norm2", line)?.then("maxpool2", pool(3)?)?;
        let mut channels = c3;
        for (name, branches) in MODULES {
            let branches = branches.map(|channels| scaled(channels, self.width));
            line = line.then(name, unit.module(channels, branches, random)?)?;
            channels = branches[0] + branches[2] + branches[4] + branches[5];
            line = match name {
                "inception3b" => line.then("maxpool3", pool(3)?)?,
                "inception4e" => line.then("maxpool4", pool(if self.batch_norm { 2 } else { 3 })?)?,
                _ => line,
            };
        }
        let line = line
            .then("avgpool", AdaptiveAvgPool2d::global())?
            .then("flatten", Flatten::default())?
            .then("dropout", Dropout::new(self.dropout, random)?)?
            .then("fc", Linear::new(channels, self.classes, random)?)?;
        Ok(line.graph)
    }

    /// The paper's normalisation, where it has one.
    fn norm(&self, name: &str, line: Line) -> Result<Line> {
        if self.batch_norm {
            return Ok(line);
        }
        line.then(name, LocalResponseNorm::new(LocalResponse { k: 1.0, ..LocalResponse::default() })?)
    }
}

/// A convolution that keeps the size but for the stride, normalisation or a bias, and ReLU.
#[derive(Clone, Copy)]
struct Unit {
    batch_norm: bool,
}

impl Unit {
    fn build(self, from: usize, to: usize, kernel: usize, stride: usize, random: &mut Random) -> Result<Graph> {
        let spec = Conv2dSpec::new(from, to, [kernel; 2]).stride([stride; 2]).padding(Padding::all(kernel / 2));
        let line = if self.batch_norm {
            let conv = Conv2d::without_bias(spec, random)?;
            Line::new()?.then("conv", conv)?.then("bn", BatchNorm2d::new(to)?.epsilon(1e-3))?
        } else {
            Line::new()?.then("conv", Conv2d::new(spec, random)?)?
        };
        Ok(line.then("relu", ReLU::default())?.graph)
    }

    /// Four branches side by side.
    fn module(self, from: usize, branches: [usize; 6], random: &mut Random) -> Result<Graph> {
        let [one, reduce3, three, reduce5, five, pooled] = branches;
        let mut graph = Graph::new();
        let x = graph.input("x")?;
        let pool = Pool2dSpec::new([3, 3]).stride([1, 1]).padding(Padding::all(1)).ceil_mode(true);
        let mut unit = |from, to, kernel| self.build(from, to, kernel, 1, random);
        let large = if self.batch_norm { 3 } else { 5 };
        let branch1 = unit(from, one, 1)?;
        let branch2 = Sequential::new().with(unit(from, reduce3, 1)?)?.with(unit(reduce3, three, 3)?)?;
        let branch3 = Sequential::new().with(unit(from, reduce5, 1)?)?.with(unit(reduce5, five, large)?)?;
        let branch4 = Sequential::new().with(MaxPool2d::new(pool)?)?.with(unit(from, pooled, 1)?)?;
        let branches = [
            graph.add("branch1", branch1, &[x])?,
            graph.add("branch2", branch2, &[x])?,
            graph.add("branch3", branch3, &[x])?,
            graph.add("branch4", branch4, &[x])?,
        ];
        graph.add("concat", Concat::default(), &branches)?;
        Ok(graph)
    }
}
