//! A small kernel to be checked, as one line of text:
//!
//! ```text
//! max-pool batch=2 channels=3 image=8x9 kernel=3x3 stride=2x2 padding=1,1,1,1 dilation=1x1 nchw ceil data=int seed=42
//! softmax shape=3x17x1 rows log data=special seed=7 isa=avx2 threads=3
//! ```
//!
//! Without `isa` or `threads` all of them run.

use std::fmt;
use std::str::FromStr;

use kernels::activation::gated::Gated;
use kernels::conv::{Layout, Padding, Shape};
use kernels::norm::{batch, group};
use kernels::pool::Pool2dSpec;
use kernels::rotary::{self, Pairing};
use kernels::{Activation, Isa};

use super::call::{Call, Values};
use super::{elementwise, linear, pooling, rows, sequence};
use crate::case::{number, numbers, read_activation, write_activation};
use crate::norm::Norm;

/// A kernel and its sizes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kernel {
    /// `[batch, inputs, outputs]` of a layer, its activation, and whether it has a bias.
    Linear([usize; 3], Activation, bool),
    /// Max pooling of so many channels.
    MaxPool(Pool2dSpec, Shape, usize),
    /// Average pooling of so many channels.
    AveragePool(Pool2dSpec, Shape, usize),
    /// Average pooling to an output of this size.
    AdaptivePool([usize; 2], Layout, Shape, usize),
    /// An activation of so many elements.
    Activation(Activation, usize),
    /// GELU or SiLU of so many elements.
    Gated(Gated, usize),
    /// Dropout with a probability, of so many elements.
    Dropout(f32, usize),
    /// Softmax over the middle of three axes, by the functions for rows, of the logarithm.
    Softmax([usize; 3], bool, bool),
    /// Cross-entropy of so many rows and classes.
    CrossEntropy([usize; 2]),
    /// The mean square of so many errors.
    MeanSquare(usize),
    /// A norm, without scale and shift if so.
    Norm(Norm, bool),
    /// Rotary embedding: how many elements are turned, and the first position.
    Rotary(Pairing, usize, rotary::Shape, usize),
    /// `[rows, columns]` of a table, and how many are looked up.
    Embedding([usize; 2], usize),
}

/// A kernel, its data, and how it is to be run.
///
/// ```
/// use tests::small::case::SmallCase;
/// let line = "cross-entropy shape=5x10 data=uniform seed=3 isa=portable threads=2";
/// assert_eq!(line.parse::<SmallCase>()?.to_string(), line);
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SmallCase {
    /// The kernel.
    pub kernel: Kernel,
    /// What the operands hold.
    pub data: Values,
    /// The seed of the operands.
    pub seed: u64,
    /// The instruction set, or all that the CPU has.
    pub isa: Option<Isa>,
    /// The number of threads, or 1, 2 and 3.
    pub threads: Option<usize>,
}

/// Names of gated activations, in the order of `Gated::ALL`.
const GATED: [&str; 4] = ["gelu", "gelu-tanh", "gelu-quick", "silu"];

impl Kernel {
    /// What a line starts with.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Linear(..) => "linear",
            Self::MaxPool(..) => "max-pool",
            Self::AveragePool(..) => "average-pool",
            Self::AdaptivePool(..) => "adaptive-pool",
            Self::Activation(..) => "activation",
            Self::Gated(function, _) => GATED[Gated::ALL.iter().position(|of| of == function).unwrap_or(0)],
            Self::Dropout(..) => "dropout",
            Self::Softmax(..) => "softmax",
            Self::CrossEntropy(_) => "cross-entropy",
            Self::MeanSquare(_) => "mean-square",
            Self::Norm(norm, _) => norm.name(),
            Self::Rotary(..) => "rotary",
            Self::Embedding(..) => "embedding",
        }
    }
}

impl Kernel {
    /// Whether there is something that must come out.
    fn is_valid(&self) -> bool {
        match *self {
            Self::AdaptivePool(output, _, shape, _) => !output.contains(&0) && shape.height * shape.width > 0,
            Self::Dropout(probability, _) => (0.0..=1.0).contains(&probability),
            Self::CrossEntropy(shape) => !shape.contains(&0),
            Self::MeanSquare(len) => len > 0,
            Self::Norm(Norm::Group(s), _) => s.groups > 0 && s.channels.is_multiple_of(s.groups),
            Self::Norm(Norm::Batch(s), _) => s.batch * s.channels * s.pixels > 0,
            Self::Rotary(_, dim, shape, _) => dim.is_multiple_of(2) && dim <= shape.head_dim,
            Self::Embedding([rows, _], count) => rows > 0 || count == 0,
            _ => true,
        }
    }
}

impl SmallCase {
    /// What is called, and what must come out.
    pub(super) fn calls(&self) -> Vec<Call> {
        let Self { data, seed, .. } = *self;
        match self.kernel {
            Kernel::Linear(sizes, activation, has_bias) => linear::linear(sizes, activation, has_bias, data, seed),
            Kernel::MaxPool(spec, shape, channels) => pooling::maximum(spec, shape, channels, data, seed),
            Kernel::AveragePool(spec, shape, channels) => pooling::average(spec, shape, channels, data, seed),
            Kernel::AdaptivePool(output, layout, shape, channels) => {
                pooling::adaptive(output, layout, shape, channels, data, seed)
            }
            Kernel::Activation(function, len) => elementwise::activations(function, len, seed),
            Kernel::Gated(function, len) => elementwise::gated_activations(function, len, seed),
            Kernel::Dropout(probability, len) => elementwise::dropout(probability, len, data, seed),
            Kernel::Softmax(shape, by_rows, log) => rows::softmax(shape, by_rows, log, data, seed),
            Kernel::CrossEntropy(shape) => rows::cross_entropy(shape, data, seed),
            Kernel::MeanSquare(len) => rows::mean_square(len, data, seed),
            Kernel::Norm(norm, is_plain) => norm.calls(is_plain, data, seed),
            Kernel::Rotary(pairing, dim, shape, offset) => sequence::rotary(pairing, dim, shape, offset, data, seed),
            Kernel::Embedding(shape, count) => sequence::embedding(shape, count, data, seed),
        }
    }
}

const fn layout_name(layout: Layout) -> &'static str {
    match layout {
        Layout::Nchw => "nchw",
        Layout::Nhwc => "nhwc",
    }
}

fn write_image(f: &mut fmt::Formatter<'_>, shape: Shape, channels: usize, layout: Layout) -> fmt::Result {
    let Shape { batch, height, width } = shape;
    write!(f, " batch={batch} channels={channels} image={height}x{width} {}", layout_name(layout))
}

impl fmt::Display for SmallCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kernel.name())?;
        match self.kernel {
            Kernel::Linear([batch, i, o], activation, has_bias) => {
                write!(f, " shape={batch}x{i}x{o}")?;
                write_activation(f, activation)?;
                f.write_str(if has_bias { " bias" } else { "" })?;
            }
            Kernel::MaxPool(spec, shape, channels) | Kernel::AveragePool(spec, shape, channels) => {
                write_image(f, shape, channels, spec.layout)?;
                let ([kh, kw], [sh, sw], [dh, dw]) = (spec.kernel, spec.stride, spec.dilation);
                let Padding { top, bottom, left, right } = spec.padding;
                write!(f, " kernel={kh}x{kw} stride={sh}x{sw} padding={top},{bottom},{left},{right}")?;
                write!(f, " dilation={dh}x{dw}")?;
                f.write_str(if spec.ceil_mode { " ceil" } else { "" })?;
                f.write_str(if spec.count_include_pad { " count-padding" } else { "" })?;
            }
            Kernel::AdaptivePool([height, width], layout, shape, channels) => {
                write_image(f, shape, channels, layout)?;
                write!(f, " output={height}x{width}")?;
            }
            Kernel::Activation(function, len) => {
                write!(f, " len={len}")?;
                write_activation(f, function)?;
            }
            Kernel::Gated(_, len) | Kernel::MeanSquare(len) => write!(f, " len={len}")?,
            Kernel::Dropout(probability, len) => write!(f, " len={len} probability={probability}")?,
            Kernel::Softmax([outer, len, inner], by_rows, log) => {
                write!(f, " shape={outer}x{len}x{inner}")?;
                f.write_str(if by_rows { " rows" } else { "" })?;
                f.write_str(if log { " log" } else { "" })?;
            }
            Kernel::CrossEntropy([rows, columns]) => write!(f, " shape={rows}x{columns}")?,
            Kernel::Norm(norm, is_plain) => {
                match norm {
                    Norm::Layer([rows, columns]) | Norm::Rms([rows, columns]) => write!(f, " shape={rows}x{columns}")?,
                    Norm::Group(group::Shape { batch, channels, pixels, groups }) => {
                        write!(f, " batch={batch} channels={channels} pixels={pixels} groups={groups}")?;
                    }
                    Norm::Batch(batch::Shape { batch, channels, pixels, layout }) => {
                        write!(f, " batch={batch} channels={channels} pixels={pixels} {}", layout_name(layout))?;
                    }
                }
                f.write_str(if is_plain { " plain" } else { "" })?;
            }
            Kernel::Rotary(pairing, dim, rotary::Shape { outer, length, inner, head_dim }, offset) => {
                write!(f, " batch={outer} len={length} heads={inner} channels={head_dim} dim={dim} offset={offset}")?;
                f.write_str(if pairing == Pairing::Half { " half" } else { "" })?;
            }
            Kernel::Embedding([rows, columns], count) => write!(f, " shape={rows}x{columns} count={count}")?,
        }
        write!(f, " data={} seed={}", self.data, self.seed)?;
        if let Some(isa) = self.isa {
            write!(f, " isa={isa}")?;
        }
        if let Some(threads) = self.threads {
            write!(f, " threads={threads}")?;
        }
        Ok(())
    }
}

/// The words of a line, each taken by whom it concerns.
struct Words<'l>(Vec<&'l str>);

impl<'l> Words<'l> {
    /// Whether a word is there.
    fn has(&mut self, word: &str) -> bool {
        let at = self.0.iter().position(|of| *of == word);
        at.map(|at| self.0.remove(at)).is_some()
    }

    /// What follows `key=`, if it is there.
    fn value(&mut self, key: &str) -> Option<&'l str> {
        let at = self.0.iter().position(|word| word.split_once('=').is_some_and(|(of, _)| of == key))?;
        self.0.remove(at).split_once('=').map(|(_, value)| value)
    }

    fn required(&mut self, key: &str) -> Result<&'l str, String> {
        self.value(key).ok_or_else(|| format!("`{key}=` is missing"))
    }

    fn number(&mut self, key: &str) -> Result<usize, String> {
        number(self.required(key)?)
    }

    fn shape<const N: usize>(&mut self, key: &str) -> Result<[usize; N], String> {
        numbers(self.required(key)?, 'x')
    }

    fn activation(&mut self) -> Result<Activation, String> {
        let Some(at) = self.0.iter().position(|word| read_activation(word).is_some()) else {
            return Ok(Activation::Identity);
        };
        read_activation(self.0.remove(at)).unwrap_or(Ok(Activation::Identity))
    }

    fn layout(&mut self) -> Layout {
        self.has("nchw");
        if self.has("nhwc") { Layout::Nhwc } else { Layout::Nchw }
    }

    fn image(&mut self) -> Result<(Shape, usize), String> {
        let [height, width] = self.shape("image")?;
        Ok((Shape::new(self.number("batch")?, height, width), self.number("channels")?))
    }

    fn pool(&mut self) -> Result<(Pool2dSpec, Shape, usize), String> {
        let (shape, channels) = self.image()?;
        let [top, bottom, left, right] = numbers(self.required("padding")?, ',')?;
        let spec = Pool2dSpec::new(self.shape("kernel")?)
            .stride(self.shape("stride")?)
            .padding(Padding { top, bottom, left, right })
            .dilation(self.shape("dilation")?)
            .layout(self.layout())
            .ceil_mode(self.has("ceil"))
            .count_include_pad(self.has("count-padding"));
        spec.sizes(shape, channels).map_err(|error| error.to_string())?;
        Ok((spec, shape, channels))
    }

    fn kernel(&mut self, name: &str) -> Result<Kernel, String> {
        Ok(match name {
            "linear" => Kernel::Linear(self.shape("shape")?, self.activation()?, self.has("bias")),
            "max-pool" => {
                let (spec, shape, channels) = self.pool()?;
                Kernel::MaxPool(spec, shape, channels)
            }
            "average-pool" => {
                let (spec, shape, channels) = self.pool()?;
                Kernel::AveragePool(spec, shape, channels)
            }
            "adaptive-pool" => {
                let (shape, channels) = self.image()?;
                Kernel::AdaptivePool(self.shape("output")?, self.layout(), shape, channels)
            }
            "activation" => Kernel::Activation(self.activation()?, self.number("len")?),
            "dropout" => Kernel::Dropout(number(self.required("probability")?)?, self.number("len")?),
            "softmax" => Kernel::Softmax(self.shape("shape")?, self.has("rows"), self.has("log")),
            "cross-entropy" => Kernel::CrossEntropy(self.shape("shape")?),
            "mean-square" => Kernel::MeanSquare(self.number("len")?),
            "layer-norm" => Kernel::Norm(Norm::Layer(self.shape("shape")?), self.has("plain")),
            "rms-norm" => Kernel::Norm(Norm::Rms(self.shape("shape")?), self.has("plain")),
            "group-norm" | "batch-norm" => {
                let (batch, channels) = (self.number("batch")?, self.number("channels")?);
                let pixels = self.number("pixels")?;
                let norm = if name == "group-norm" {
                    Norm::Group(group::Shape { batch, channels, pixels, groups: self.number("groups")? })
                } else {
                    Norm::Batch(batch::Shape { batch, channels, pixels, layout: self.layout() })
                };
                Kernel::Norm(norm, self.has("plain"))
            }
            "rotary" => {
                let shape = rotary::Shape {
                    outer: self.number("batch")?,
                    length: self.number("len")?,
                    inner: self.number("heads")?,
                    head_dim: self.number("channels")?,
                };
                let pairing = if self.has("half") { Pairing::Half } else { Pairing::Interleaved };
                Kernel::Rotary(pairing, self.number("dim")?, shape, self.number("offset")?)
            }
            "embedding" => Kernel::Embedding(self.shape("shape")?, self.number("count")?),
            _ => match GATED.iter().position(|gated| *gated == name) {
                Some(at) => Kernel::Gated(Gated::ALL[at], self.number("len")?),
                None => return Err(format!("no kernel is called `{name}`")),
            },
        })
    }
}

impl FromStr for SmallCase {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        let name = words.next().ok_or("the name of a kernel is missing")?;
        let mut words = Words(words.collect());
        let case = Self {
            kernel: words.kernel(name)?,
            data: words.value("data").map_or(Ok(Values::default()), str::parse)?,
            seed: words.value("seed").map_or(Ok(1), number)?,
            isa: words
                .value("isa")
                .map(|isa| isa.parse().map_err(|error: kernels::Error| error.to_string()))
                .transpose()?,
            threads: words.value("threads").map(number).transpose()?,
        };
        if !case.kernel.is_valid() {
            return Err(format!("sizes that {name} has to refuse"));
        }
        match words.0.first() {
            None => Ok(case),
            Some(word) => Err(format!("`{word}` says nothing to {name}")),
        }
    }
}
