//! A convolution to be checked, as one line of text:
//!
//! ```text
//! conv n1c17h5w5 o33 k3x3 s2x2 p1,1,1,1 d1x1 g1 nchw relu bias data=int seed=42 algorithm=im2col isa=avx2 threads=3 pass=forward
//!      └ image ┘                  │top,bottom,left,right
//! ```
//!
//! Whatever is left out has a default; without `algorithm`, `isa`, `threads` or `pass` all of them run.
//! `cargo run -p tests --example repro -- "LINE"` runs a line.

use std::fmt;
use std::str::FromStr;

use kernels::conv::{Algorithm, Conv2dSpec, Layout, Padding, Shape};
use kernels::{Activation, Isa};

use crate::data::DataKind;

/// Which of the calls of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Pass {
    /// The output.
    Forward,
    /// The gradient of the input.
    BackwardData,
    /// The gradients of weights and bias.
    BackwardWeights,
    /// All gradients in one call.
    Both,
}

impl Pass {
    /// Every pass.
    pub const ALL: [Self; 4] = [Self::Forward, Self::BackwardData, Self::BackwardWeights, Self::Both];

    const fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::BackwardData => "backward_data",
            Self::BackwardWeights => "backward_weights",
            Self::Both => "both",
        }
    }
}

impl fmt::Display for Pass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A convolution, its data, and how it is to be run.
///
/// ```
/// use tests::case::ConvCase;
/// let case = ConvCase::new(17, 33, [3, 3]).image(5, 5).stride(2, 2).padding(1, 1, 1, 1).relu().with_bias();
/// assert_eq!(case, case.to_string().parse()?);
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConvCase {
    /// The convolution.
    pub spec: Conv2dSpec,
    /// Images and their size.
    pub shape: Shape,
    /// Whether a bias is added.
    pub bias: bool,
    /// Whether a residual is added.
    pub residual: bool,
    /// What the operands hold.
    pub data: DataKind,
    /// The seed of the operands.
    pub seed: u64,
    /// The algorithm, or all.
    pub algorithm: Option<Algorithm>,
    /// The instruction set, or all that the CPU has.
    pub isa: Option<Isa>,
    /// The number of threads, or 1, 2 and 3.
    pub threads: Option<usize>,
    /// The pass, or all.
    pub pass: Option<Pass>,
}

impl ConvCase {
    /// One image as large as the kernel, integers, and everything run every way.
    pub const fn new(in_channels: usize, out_channels: usize, kernel: [usize; 2]) -> Self {
        Self {
            spec: Conv2dSpec::new(in_channels, out_channels, kernel),
            shape: Shape::new(1, kernel[0], kernel[1]),
            bias: false,
            residual: false,
            data: DataKind::Integers,
            seed: 1,
            algorithm: None,
            isa: None,
            threads: None,
            pass: None,
        }
    }

    /// Sets the size of the images.
    pub const fn image(mut self, height: usize, width: usize) -> Self {
        self.shape.height = height;
        self.shape.width = width;
        self
    }

    /// Sets the number of images.
    pub const fn batch(mut self, batch: usize) -> Self {
        self.shape.batch = batch;
        self
    }

    /// Sets the stride.
    pub const fn stride(mut self, height: usize, width: usize) -> Self {
        self.spec.stride = [height, width];
        self
    }

    /// Sets the padding.
    pub const fn padding(mut self, top: usize, bottom: usize, left: usize, right: usize) -> Self {
        self.spec.padding = Padding { top, bottom, left, right };
        self
    }

    /// Sets the dilation.
    pub const fn dilation(mut self, height: usize, width: usize) -> Self {
        self.spec.dilation = [height, width];
        self
    }

    /// Sets the number of groups.
    pub const fn groups(mut self, groups: usize) -> Self {
        self.spec.groups = groups;
        self
    }

    /// Channels last.
    pub const fn nhwc(mut self) -> Self {
        self.spec.layout = Layout::Nhwc;
        self
    }

    /// Sets the activation.
    pub const fn activation(mut self, activation: Activation) -> Self {
        self.spec.activation = activation;
        self
    }

    /// A ReLU at the end.
    pub const fn relu(self) -> Self {
        self.activation(Activation::Relu)
    }

    /// Adds a bias.
    pub const fn with_bias(mut self) -> Self {
        self.bias = true;
        self
    }

    /// Adds a residual.
    pub const fn with_residual(mut self) -> Self {
        self.residual = true;
        self
    }

    /// Sets what the operands hold.
    pub const fn data(mut self, data: DataKind) -> Self {
        self.data = data;
        self
    }

    /// Sets the seed of the operands.
    pub const fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Only this algorithm.
    pub const fn algorithm(mut self, algorithm: Algorithm) -> Self {
        self.algorithm = Some(algorithm);
        self
    }

    /// Only this instruction set.
    pub const fn isa(mut self, isa: Isa) -> Self {
        self.isa = Some(isa);
        self
    }

    /// Only this number of threads.
    pub const fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Only this pass.
    pub const fn pass(mut self, pass: Pass) -> Self {
        self.pass = Some(pass);
        self
    }

    /// Whether a pass is asked for.
    pub fn runs(&self, pass: Pass) -> bool {
        self.pass.is_none_or(|only| only == pass)
    }

    /// Multiplications of the forward pass, padding counted, or `None` for an invalid or overflowing problem.
    pub fn macs(&self) -> Option<u64> {
        let flops = self.spec.flops(self.shape).ok()?;
        (flops < 1e18).then_some((flops / 2.0) as u64)
    }
}

impl fmt::Display for ConvCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Conv2dSpec {
            in_channels, out_channels, kernel, stride, padding, dilation, groups, layout, activation, ..
        } = self.spec;
        let Shape { batch, height, width } = self.shape;
        let Padding { top, bottom, left, right } = padding;
        write!(f, "conv n{batch}c{in_channels}h{height}w{width} o{out_channels} k{}x{}", kernel[0], kernel[1])?;
        write!(f, " s{}x{} p{top},{bottom},{left},{right}", stride[0], stride[1])?;
        write!(f, " d{}x{} g{groups}", dilation[0], dilation[1])?;
        f.write_str(match layout {
            Layout::Nchw => " nchw",
            Layout::Nhwc => " nhwc",
        })?;
        write_activation(f, activation)?;
        f.write_str(if self.bias { " bias" } else { "" })?;
        f.write_str(if self.residual { " residual" } else { "" })?;
        write!(f, " data={} seed={}", self.data, self.seed)?;
        if let Some(algorithm) = self.algorithm {
            write!(f, " algorithm={algorithm}")?;
        }
        if let Some(isa) = self.isa {
            write!(f, " isa={isa}")?;
        }
        if let Some(threads) = self.threads {
            write!(f, " threads={threads}")?;
        }
        if let Some(pass) = self.pass {
            write!(f, " pass={pass}")?;
        }
        Ok(())
    }
}

impl FromStr for ConvCase {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        if words.next() != Some("conv") {
            return Err("a line starts with `conv`".into());
        }
        let image = words.next().ok_or("the image is missing, like n1c3h8w8")?;
        let [batch, in_channels, height, width] = dimensions(image, ["n", "c", "h", "w"])?;
        let mut case = Self::new(in_channels, in_channels, [1, 1]).batch(batch).image(height, width);
        for word in words {
            case.read(word).map_err(|reason| format!("`{word}`: {reason}"))?;
        }
        Ok(case)
    }
}

impl ConvCase {
    /// Takes one word of a line.
    fn read(&mut self, word: &str) -> Result<(), String> {
        if let Some(activation) = read_activation(word) {
            self.spec.activation = activation?;
            return Ok(());
        }
        if let Some((key, value)) = word.split_once('=') {
            match key {
                "data" => self.data = value.parse()?,
                "seed" => self.seed = number(value)?,
                "algorithm" => self.algorithm = Some(algorithm(value)?),
                "isa" => self.isa = Some(value.parse().map_err(|error: kernels::Error| error.to_string())?),
                "threads" => self.threads = Some(number(value)?),
                "pass" => {
                    let pass = Pass::ALL.into_iter().find(|pass| pass.name() == value);
                    self.pass = Some(pass.ok_or("no such pass")?);
                }
                _ => return Err("unknown key".into()),
            }
            return Ok(());
        }
        match word {
            "nchw" => self.spec.layout = Layout::Nchw,
            "nhwc" => self.spec.layout = Layout::Nhwc,
            "bias" => self.bias = true,
            "residual" => self.residual = true,
            _ => {
                let (key, value) = word.split_at_checked(1).ok_or("unknown word")?;
                match key {
                    "o" => self.spec.out_channels = number(value)?,
                    "k" => self.spec.kernel = numbers(value, 'x')?,
                    "s" => self.spec.stride = numbers(value, 'x')?,
                    "d" => self.spec.dilation = numbers(value, 'x')?,
                    "g" => self.spec.groups = number(value)?,
                    "p" => {
                        let [top, bottom, left, right] = numbers(value, ',')?;
                        self.spec.padding = Padding { top, bottom, left, right };
                    }
                    _ => return Err("unknown word".into()),
                }
            }
        }
        Ok(())
    }
}

/// The algorithm of a name.
pub fn algorithm(name: &str) -> Result<Algorithm, String> {
    std::iter::once(Algorithm::Auto)
        .chain(Algorithm::ALL)
        .find(|algorithm| algorithm.to_string() == name)
        .ok_or_else(|| format!("unknown algorithm `{name}`"))
}

/// The word of an activation, after a blank; nothing for the identity.
pub(crate) fn write_activation(f: &mut fmt::Formatter<'_>, activation: Activation) -> fmt::Result {
    match activation {
        Activation::Identity => Ok(()),
        Activation::Relu => f.write_str(" relu"),
        Activation::Clamp { low, high } => write!(f, " clamp={low},{high}"),
        Activation::Sigmoid => f.write_str(" sigmoid"),
        Activation::Tanh => f.write_str(" tanh"),
        other => write!(f, " {other:?}"),
    }
}

/// The activation of a word, if it is one's.
pub(crate) fn read_activation(word: &str) -> Option<Result<Activation, String>> {
    Some(Ok(match word {
        "identity" => Activation::Identity,
        "relu" => Activation::Relu,
        "sigmoid" => Activation::Sigmoid,
        "tanh" => Activation::Tanh,
        _ => {
            let clamp = numbers(word.strip_prefix("clamp=")?, ',');
            return Some(clamp.map(|[low, high]| Activation::Clamp { low, high }));
        }
    }))
}

pub(crate) fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("`{text}` is no number"))
}

/// `N` numbers with a separator between them.
pub(crate) fn numbers<T: FromStr + Copy + Default, const N: usize>(
    text: &str,
    separator: char,
) -> Result<[T; N], String> {
    let mut values = [T::default(); N];
    let mut parts = text.split(separator);
    for value in &mut values {
        *value = number(parts.next().ok_or_else(|| format!("expected {N} numbers"))?)?;
    }
    if parts.next().is_some() { Err(format!("expected {N} numbers")) } else { Ok(values) }
}

/// The numbers behind each of these letters, in order.
fn dimensions<const N: usize>(text: &str, letters: [&str; N]) -> Result<[usize; N], String> {
    let mut values = [0; N];
    let mut rest = text;
    for (value, letter) in values.iter_mut().zip(letters) {
        rest = rest.strip_prefix(letter).ok_or_else(|| format!("`{text}`: expected {}", letters.join("_")))?;
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        *value = number(&rest[..end])?;
        rest = &rest[end..];
    }
    if rest.is_empty() { Ok(values) } else { Err(format!("`{text}`: `{rest}` is too much")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_what_it_was_made_from() {
        let full = ConvCase::new(17, 33, [3, 5])
            .batch(2)
            .image(50, usize::MAX)
            .stride(2, 3)
            .padding(0, 1, 2, 3)
            .dilation(4, 5)
            .groups(7)
            .nhwc()
            .activation(Activation::Clamp { low: -0.1, high: f32::INFINITY })
            .with_bias()
            .with_residual()
            .data(DataKind::Wide)
            .seed(u64::MAX)
            .algorithm(Algorithm::Im2col)
            .isa(Isa::Portable)
            .threads(3)
            .pass(Pass::BackwardWeights);
        for case in [full, ConvCase::new(1, 1, [1, 1]), full.relu(), full.activation(Activation::Tanh)] {
            assert_eq!(case.to_string().parse(), Ok(case), "{case}");
        }
    }

    #[test]
    fn the_line_of_the_documentation_is_understood() {
        let line = "conv n1c17h5w5 o33 k3x3 s2x2 p1,1,1,1 d1x1 g1 nchw relu bias data=int seed=42 \
                    algorithm=im2col isa=avx2 threads=3 pass=forward";
        assert_eq!(line.parse::<ConvCase>().unwrap().to_string(), line);
    }

    #[test]
    fn a_line_with_a_mistake_says_which_word_it_is() {
        for (line, word) in [
            ("conv n1c1h1w1 q7", "q7"),
            ("conv n1c1h1 o1", "n1c1h1"),
            ("conv n1c1h1w1 k3", "k3"),
            ("conv n1c1h1w1 p1,2,3", "p1,2,3"),
            ("conv n1c1h1w1 data=none", "data=none"),
            ("conv n1c1h1w1 isa=sse9", "isa=sse9"),
        ] {
            let error = line.parse::<ConvCase>().unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }
}
