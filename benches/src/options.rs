//! The command line.

use std::path::PathBuf;
use std::str::FromStr;

use kernels::Isa;
use kernels::conv::{Accuracy, Algorithm, Layout};
use lexopt::{Arg, Parser, ValueExt};

use crate::failure::Failure;
use crate::machine;

/// What `--help` prints.
pub const HELP: &str = "\
kernelbench: how fast this machine runs the kernels, and how close that is to what it can do

    kernelbench                     the machine, its ceiling and a dozen layers, in less than a minute
    kernelbench conv [OPTIONS]      convolutions, checked against the definition and then timed
    kernelbench attention [OPTIONS] attentions, checked and timed; takes --threads, --isa, --format, --only, --pass, and
                                    --shapes FILE.csv with name,batch,heads,kv_heads,q_len,kv_len,head_dim,causal
    kernelbench model [OPTIONS]     whole networks, forward or a step of training; takes --threads, --format, --only,
                                    --pass forward|train, --layers, and --shapes FILE.csv with name,model,batch,train
    kernelbench gemm [OPTIONS]      matrix products beside the crates matrixmultiply and gemm; takes --threads, --isa,
                                    --format and --shapes FILE.csv with the header name,m,n,k
    kernelbench memory [OPTIONS]    activations, softmax, norms, embeddings, dropout beside the speed of a copy; takes
                                    --threads, --isa, --format and --only
    kernelbench parallel            what a parallel loop costs, in a team and with rayon::join

Options
    --shapes FILE.csv               the layers, one a line:
                                    name,n,c,h,w,k,r,s,stride_h,stride_w,pad_h,pad_w,dilation_h,dilation_w,groups
                                    (default: layers of known networks)
    --random N                      N layers made at random, the same ones each time
    --stages                        beside each row, the seconds of its stages, summed over the threads
    --layers                        below each network, the times of its layers
    --only TEXT                     only those whose name contains the text
    --pass forward|backward|train   backward is data, weights and bias in one call, train a step of a network
                                    (default: forward)
    --threads N                     (default: as many as the CPU has)
    --algorithm NAME|all            auto, direct, im2col, depthwise, grouped, gemm, winograd2, winograd2x4,
                                    winograd4, winograd6, baseline (default: auto)
    --accuracy direct|fast|fastest  how much rounding error `auto` may trade for speed (default: fast)
    --isa avx512|avx2|portable      the instruction set (default: the widest, or KERNELS_ISA)
    --layout nchw|nhwc              (default: nchw)
    --format text|json|csv          json is one object a line (default: text)
    --help, --version

GFLOP/s count the operations of a direct convolution, 2 * outputs * input channels of a group * taps, padding
included; a backward pass counts twice as many. The exit code is 0, 1 when something failed, 2 for a bad
command line.
";

/// Which study runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// The machine and a dozen layers.
    Overview,
    /// Convolutions.
    Conv,
    /// Attentions.
    Attention,
    /// Whole networks.
    Model,
    /// Matrix products.
    Gemm,
    /// Kernels that memory should hold up.
    Memory,
    /// Parallel loops.
    Parallel,
    /// Prints [`HELP`].
    Help,
    /// Prints the version.
    Version,
}

/// The direction of a pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pass {
    /// `y` from `x`.
    #[default]
    Forward,
    /// The gradients of input, weights and bias.
    Backward,
}

impl Pass {
    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Backward => "backward",
        }
    }
}

/// A step of training, as on the command line.
pub const TRAIN: &str = "train";

/// How rows are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// A table for people.
    #[default]
    Text,
    /// One object a line.
    Json,
    /// With a header.
    Csv,
}

/// The whole command line.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which study runs.
    pub command: Command,
    /// A CSV file of shapes, instead of those of this project.
    pub shapes: Option<PathBuf>,
    /// Only shapes whose name contains this.
    pub only: Option<String>,
    /// So many layers made at random, instead of named ones.
    pub random: Option<usize>,
    /// Whether the time of each stage is shown.
    pub stages: bool,
    /// Whether the time of each layer is shown.
    pub layers: bool,
    /// The direction.
    pub pass: Pass,
    /// Whether networks are trained: forward, loss, backward and the optimiser's step.
    pub train: bool,
    /// Threads that work at once.
    pub threads: usize,
    /// The algorithms to be timed, `None` for all of them.
    pub algorithm: Option<Algorithm>,
    /// What the automatic choice may trade.
    pub accuracy: Accuracy,
    /// The instruction set.
    pub isa: Isa,
    /// The layout of images.
    pub layout: Layout,
    /// How rows are written.
    pub format: Format,
}

/// One of a list of names, or an error that says them all.
fn choose<T: Copy>(option: &str, given: &str, among: &[(&str, T)]) -> Result<T, Failure> {
    let found = among.iter().find(|(name, _)| *name == given).map(|&(_, value)| value);
    found.ok_or_else(|| {
        let names: Vec<&str> = among.iter().map(|(name, _)| *name).collect();
        Failure::Usage(format!("--{option}: expected {}, given {given}", names.join(", ")))
    })
}

fn algorithm(given: &str) -> Result<Option<Algorithm>, Failure> {
    let mut among = vec![("all".to_string(), None), (Algorithm::Auto.to_string(), Some(Algorithm::Auto))];
    among.extend(Algorithm::ALL.map(|algorithm| (algorithm.to_string(), Some(algorithm))));
    let among: Vec<_> = among.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    choose("algorithm", given, &among)
}

/// An instruction set that this CPU has.
fn isa(given: &str) -> Result<Isa, Failure> {
    let isa = Isa::from_str(given);
    let isa = isa.map_err(|_| Failure::Usage(format!("--isa: expected avx512, avx2 or portable, given {given}")))?;
    if isa.is_available() {
        return Ok(isa);
    }
    let names: Vec<String> = Isa::available().map(|isa| isa.to_string()).collect();
    Err(Failure::study(format!("--isa: this CPU has {}, but not {isa}", names.join(" and "))))
}

/// Threads beyond this are a slip of the finger.
const MOST_THREADS: usize = 4096;

/// Layers made at random beyond this would take more than a day.
const MOST_LAYERS: usize = 100_000;

fn count(option: &str, given: &str, most: usize) -> Result<usize, Failure> {
    let count = given.parse().ok().filter(|count| (1..=most).contains(count));
    count.ok_or_else(|| Failure::Usage(format!("--{option}: expected a number from 1 to {most}, given {given}")))
}

impl Options {
    /// Reads the command line.
    ///
    /// # Errors
    /// [`Failure::Usage`] for what is not understood.
    pub fn parse(mut parser: Parser) -> Result<Self, Failure> {
        let mut command = None;
        let (mut shapes, mut only, mut chosen_isa) = (None, None, None);
        let (mut random, mut stages, mut layers, mut train) = (None, false, false, false);
        let (mut pass, mut format, mut layout) = (Pass::default(), Format::default(), Layout::default());
        let (mut accuracy, mut chosen_algorithm) = (Accuracy::default(), Some(Algorithm::Auto));
        let mut chosen_threads = machine::hardware_threads();
        let mut options = false;
        while let Some(arg) = parser.next()? {
            match arg {
                Arg::Short('h') | Arg::Long("help") => command = Some(Command::Help),
                Arg::Short('V') | Arg::Long("version") => command = Some(Command::Version),
                Arg::Value(name) if command.is_none() => {
                    let name = name.string()?;
                    let among = [
                        ("conv", Command::Conv),
                        ("attention", Command::Attention),
                        ("model", Command::Model),
                        ("gemm", Command::Gemm),
                        ("memory", Command::Memory),
                        ("parallel", Command::Parallel),
                        ("help", Command::Help),
                    ];
                    let found = among.into_iter().find(|(known, _)| *known == name).map(|(_, command)| command);
                    let unknown = || {
                        Failure::Usage(format!(
                            "unknown command `{name}`; expected conv, attention, model, gemm, memory, parallel or help"
                        ))
                    };
                    command = Some(found.ok_or_else(unknown)?);
                }
                Arg::Long(name) => {
                    options = true;
                    match name.to_string().as_str() {
                        "shapes" => shapes = Some(PathBuf::from(parser.value()?)),
                        "only" => only = Some(parser.value()?.string()?),
                        "random" => random = Some(count("random", &parser.value()?.string()?, MOST_LAYERS)?),
                        "stages" => stages = true,
                        "layers" => layers = true,
                        "isa" => chosen_isa = Some(isa(&parser.value()?.string()?)?),
                        "threads" => chosen_threads = count("threads", &parser.value()?.string()?, MOST_THREADS)?,
                        "algorithm" => chosen_algorithm = algorithm(&parser.value()?.string()?)?,
                        "pass" => {
                            let [forward, backward] =
                                [Pass::Forward, Pass::Backward].map(|pass| (pass.name(), (pass, false)));
                            let among = [forward, backward, (TRAIN, (Pass::default(), true))];
                            (pass, train) = choose("pass", &parser.value()?.string()?, &among)?;
                        }
                        "format" => {
                            let among = [("text", Format::Text), ("json", Format::Json), ("csv", Format::Csv)];
                            format = choose("format", &parser.value()?.string()?, &among)?;
                        }
                        "layout" => {
                            let among = [("nchw", Layout::Nchw), ("nhwc", Layout::Nhwc)];
                            layout = choose("layout", &parser.value()?.string()?, &among)?;
                        }
                        "accuracy" => {
                            let among = [
                                ("direct", Accuracy::Direct),
                                ("fast", Accuracy::Fast),
                                ("fastest", Accuracy::Fastest),
                            ];
                            accuracy = choose("accuracy", &parser.value()?.string()?, &among)?;
                        }
                        _ => return Err(Failure::Usage(format!("unknown option `--{name}`"))),
                    }
                }
                other => return Err(other.unexpected().into()),
            }
        }
        let command = command.unwrap_or(Command::Overview);
        if command == Command::Overview && options {
            return Err(Failure::Usage("options need a command, for example `kernelbench conv --threads 1`".into()));
        }
        let given = if train { TRAIN } else { pass.name() };
        let other = if command == Command::Model { TRAIN } else { Pass::Backward.name() };
        if ![Pass::Forward.name(), other].contains(&given) {
            return Err(Failure::Usage(format!("--pass: expected forward or {other} here, given {given}")));
        }
        let isa = match chosen_isa {
            Some(isa) => isa,
            None => Isa::choose()?,
        };
        Ok(Self {
            command,
            shapes,
            only,
            random,
            stages,
            layers,
            pass,
            train,
            threads: chosen_threads,
            algorithm: chosen_algorithm,
            accuracy,
            isa,
            layout,
            format,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, Failure> {
        Options::parse(Parser::from_args(line.split_whitespace()))
    }

    #[test]
    fn options_are_read_in_any_order() {
        let options =
            parse("conv --format json --threads 3 --pass=backward --shapes a.csv --algorithm all --layout nhwc")
                .unwrap();
        assert_eq!((options.command, options.format, options.threads), (Command::Conv, Format::Json, 3));
        assert_eq!((options.pass, options.algorithm, options.layout), (Pass::Backward, None, Layout::Nhwc));
        assert_eq!(options.shapes, Some(PathBuf::from("a.csv")));
        assert_eq!(parse("").unwrap().command, Command::Overview);
        assert_eq!(parse("--isa portable conv").unwrap().isa, Isa::Portable);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let message = |line: &str| parse(line).unwrap_err().to_string();
        assert_eq!(
            message("convolve"),
            "unknown command `convolve`; expected conv, attention, model, gemm, memory, parallel or help"
        );
        assert_eq!(message("conv --thread 2"), "unknown option `--thread`");
        assert_eq!(message("conv --threads 0"), "--threads: expected a number from 1 to 4096, given 0");
        assert_eq!(message("conv --pass sideways"), "--pass: expected forward, backward, train, given sideways");
        assert_eq!(message("model --pass backward"), "--pass: expected forward or train here, given backward");
        assert_eq!(message("conv --isa sse9"), "--isa: expected avx512, avx2 or portable, given sse9");
        assert!(message("conv --algorithm magic").contains("im2col"));
        assert!(message("--threads 2").contains("need a command"));
        assert!(message("conv --shapes").contains("--shapes"));
    }
}
