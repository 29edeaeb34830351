//! The command line: which study runs, and what it is told. What a study does not take is refused by name.

use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use kernels::Isa;
use kernels::conv::{Accuracy, Algorithm, Layout};
use lexopt::{Arg, Parser, ValueExt};

use crate::failure::Failure;
use crate::gemm::{CONTENDERS, Contender};
use crate::heads;
use crate::machine;

/// What `--help` prints.
pub const HELP: &str = include_str!("help.txt");

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

impl Command {
    /// Those with a name, as on the command line.
    const NAMED: [(&'static str, Self); 7] = [
        ("conv", Self::Conv),
        ("attention", Self::Attention),
        ("model", Self::Model),
        ("gemm", Self::Gemm),
        ("memory", Self::Memory),
        ("parallel", Self::Parallel),
        ("help", Self::Help),
    ];

    fn named(given: &str) -> Result<Self, Failure> {
        let found = Self::NAMED.into_iter().find(|(name, _)| *name == given).map(|(_, command)| command);
        found.ok_or_else(|| {
            let [most @ .., last] = Self::NAMED.map(|(name, _)| name);
            Failure::Usage(format!("unknown command `{given}`; expected {} or {last}", most.join(", ")))
        })
    }

    fn name(self) -> &'static str {
        Self::NAMED.into_iter().find(|(_, command)| *command == self).map_or("", |(name, _)| name)
    }
}

/// Every option, and the commands that take it.
const OPTIONS: [(&str, &[Command]); 13] = {
    use Command::{Attention, Conv, Gemm, Memory, Model};
    [
        ("shapes", &[Conv, Attention, Model, Gemm]),
        ("random", &[Conv, Attention]),
        ("seed", &[Conv, Attention]),
        ("stages", &[Conv]),
        ("layers", &[Model]),
        ("only", &[Conv, Attention, Model, Gemm, Memory]),
        ("pass", &[Conv, Attention, Model]),
        ("threads", &[Conv, Attention, Model, Gemm, Memory]),
        ("algorithm", &[Conv, Gemm]),
        ("accuracy", &[Conv]),
        ("isa", &[Conv, Attention, Gemm, Memory]),
        ("layout", &[Conv, Attention]),
        ("format", &[Conv, Attention, Model, Gemm, Memory]),
    ]
};

/// Options without a value.
const FLAGS: [&str; 2] = ["stages", "layers"];

fn takes(command: Command, option: &str) -> bool {
    OPTIONS.iter().any(|(name, commands)| *name == option && commands.contains(&command))
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
    /// So many made up at random, instead of named ones.
    pub random: Option<usize>,
    /// Which ones.
    pub seed: u64,
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
    /// The algorithms of convolutions to be timed, `None` for all of them.
    pub algorithm: Option<Algorithm>,
    /// Whose matrix products are timed.
    pub contenders: Vec<Contender>,
    /// What the automatic choice may trade.
    pub accuracy: Accuracy,
    /// The instruction set.
    pub isa: Isa,
    /// The layout of images.
    pub layout: Layout,
    /// The layout of heads.
    pub heads: heads::Layout,
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

fn contenders(given: &str) -> Result<Vec<Contender>, Failure> {
    let mut among = vec![("all", None), ("auto", Some(Contender::Ours))];
    among.extend(CONTENDERS.map(|contender| (contender.name(), Some(contender))));
    let one = choose("algorithm", given, &among)?;
    Ok(one.map_or(CONTENDERS.to_vec(), |one| vec![one]))
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

/// What was given, before it is known what it means: that depends on the command, which may stand anywhere.
#[derive(Default)]
struct Given {
    command: Option<Command>,
    options: Vec<(&'static str, OsString)>,
}

impl Given {
    fn read(mut parser: Parser) -> Result<Self, Failure> {
        let mut given = Self::default();
        while let Some(arg) = parser.next()? {
            match arg {
                Arg::Short('h') | Arg::Long("help") => given.command = Some(Command::Help),
                Arg::Short('V') | Arg::Long("version") => given.command = Some(Command::Version),
                Arg::Value(name) if given.command.is_none() => given.command = Some(Command::named(&name.string()?)?),
                Arg::Long(name) => {
                    let known = OPTIONS.iter().map(|(known, _)| *known).find(|known| *known == name);
                    let known = known.ok_or_else(|| Failure::Usage(format!("unknown option `--{name}`")))?;
                    let value = if FLAGS.contains(&known) { OsString::new() } else { parser.value()? };
                    given.options.push((known, value));
                }
                other => return Err(other.unexpected().into()),
            }
        }
        Ok(given)
    }

    /// The command, which takes all of the options.
    fn command(&self) -> Result<Command, Failure> {
        let command = self.command.unwrap_or(Command::Overview);
        if [Command::Help, Command::Version].contains(&command) {
            return Ok(command);
        }
        if command == Command::Overview && !self.options.is_empty() {
            return Err(Failure::Usage("options need a command, for example `kernelbench conv --threads 1`".into()));
        }
        if let Some((option, _)) = self.options.iter().find(|(option, _)| !takes(command, option)) {
            let taken: Vec<String> =
                OPTIONS.iter().filter(|(name, _)| takes(command, name)).map(|(name, _)| format!("--{name}")).collect();
            let taken = if taken.is_empty() { "no options".into() } else { taken.join(", ") };
            return Err(Failure::Usage(format!(
                "--{option} means nothing to `kernelbench {}`, which takes {taken}",
                command.name()
            )));
        }
        let has = |option: &str| self.options.iter().any(|(name, _)| *name == option);
        match (has("random"), has("shapes"), has("seed")) {
            (true, true, _) => {
                Err(Failure::Usage("--random makes up what --shapes would read: give one of them".into()))
            }
            (false, _, true) => Err(Failure::Usage("--seed is that of --random, which is not given".into())),
            _ => Ok(command),
        }
    }
}

impl Options {
    /// Reads the command line.
    ///
    /// # Errors
    /// [`Failure::Usage`] for what is not understood, and for options that the command does not take.
    pub fn parse(parser: Parser) -> Result<Self, Failure> {
        let given = Given::read(parser)?;
        let command = given.command()?;
        let mut options = Self {
            command,
            shapes: None,
            only: None,
            random: None,
            seed: 1,
            stages: false,
            layers: false,
            pass: Pass::default(),
            train: false,
            threads: machine::hardware_threads(),
            algorithm: Some(Algorithm::Auto),
            contenders: CONTENDERS.to_vec(),
            accuracy: Accuracy::default(),
            isa: Isa::Portable,
            layout: Layout::default(),
            heads: heads::Layout::default(),
            format: Format::default(),
        };
        if [Command::Help, Command::Version].contains(&command) {
            return Ok(options);
        }
        let mut chosen_isa = None;
        for (option, value) in given.options {
            if option == "shapes" {
                options.shapes = Some(PathBuf::from(value));
                continue;
            }
            let value = value.string()?;
            if option == "isa" {
                chosen_isa = Some(isa(&value)?);
            } else {
                options.set(option, &value)?;
            }
        }
        if options.layers && options.format != Format::Text {
            return Err(Failure::Usage("--layers writes text, which --format text alone can hold".into()));
        }
        options.isa = match chosen_isa {
            Some(isa) => isa,
            None => Isa::choose()?,
        };
        Ok(options)
    }

    /// Sets what the value of an option says to the command.
    fn set(&mut self, option: &'static str, value: &str) -> Result<(), Failure> {
        match option {
            "only" => self.only = Some(value.into()),
            "random" => self.random = Some(count(option, value, MOST_LAYERS)?),
            "seed" => {
                let seed = value.parse();
                self.seed =
                    seed.map_err(|_| Failure::Usage(format!("--seed: expected a number from 0 on, given {value}")))?;
            }
            "stages" => self.stages = true,
            "layers" => self.layers = true,
            "threads" => self.threads = count(option, value, MOST_THREADS)?,
            "algorithm" if self.command == Command::Gemm => self.contenders = contenders(value)?,
            "algorithm" => self.algorithm = algorithm(value)?,
            "pass" => {
                let other = match self.command {
                    Command::Model => (TRAIN, (Pass::default(), true)),
                    _ => (Pass::Backward.name(), (Pass::Backward, false)),
                };
                let among = [(Pass::Forward.name(), (Pass::Forward, false)), other];
                (self.pass, self.train) = choose(option, value, &among)?;
            }
            "format" => {
                let among = [("text", Format::Text), ("json", Format::Json), ("csv", Format::Csv)];
                self.format = choose(option, value, &among)?;
            }
            "layout" if self.command == Command::Attention => {
                let among = heads::Layout::ALL.map(|layout| (layout.name(), layout));
                self.heads = choose(option, value, &among)?;
            }
            "layout" => self.layout = choose(option, value, &[("nchw", Layout::Nchw), ("nhwc", Layout::Nhwc)])?,
            "accuracy" => {
                let among = [("direct", Accuracy::Direct), ("fast", Accuracy::Fast), ("fastest", Accuracy::Fastest)];
                self.accuracy = choose(option, value, &among)?;
            }
            _ => unreachable!("`--{option}` is one of `OPTIONS`"),
        }
        Ok(())
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
        assert_eq!(message("conv --pass sideways"), "--pass: expected forward, backward, given sideways");
        assert_eq!(message("model --pass backward"), "--pass: expected forward, train, given backward");
        assert_eq!(message("conv --isa sse9"), "--isa: expected avx512, avx2 or portable, given sse9");
        assert!(message("conv --algorithm magic").contains("im2col"));
        assert!(message("--threads 2").contains("need a command"));
        assert!(message("conv --shapes").contains("--shapes"));
        assert!(message("conv --random 3 --shapes a.csv").contains("give one of them"));
        assert!(message("conv --seed 3").contains("--random"));
        assert!(message("model --layers --format json").contains("--format text"));
    }

    #[test]
    fn what_means_nothing_to_a_command_is_refused_with_what_it_takes() {
        let message = |line: &str| parse(line).unwrap_err().to_string();
        let commands = Command::NAMED.into_iter().filter(|(_, command)| *command != Command::Help);
        for (name, command) in commands {
            for (option, takers) in OPTIONS {
                let value = if FLAGS.contains(&option) { "" } else { "1" };
                let line = format!("{name} --{option} {value}");
                let refusal = parse(&line).err().filter(|failure| failure.to_string().contains("means nothing"));
                assert_eq!(refusal.is_none(), takers.contains(&command), "{line}");
                assert!(refusal.is_none_or(|failure| failure.code() == 2), "{line}");
            }
        }
        assert_eq!(
            message("memory --stages"),
            "--stages means nothing to `kernelbench memory`, which takes --only, --threads, --isa, --format"
        );
        assert!(message("parallel --only a").ends_with("takes no options"));
        assert_eq!(parse("parallel --only a --help").unwrap().command, Command::Help);
    }

    #[test]
    fn the_same_option_means_what_its_command_makes_of_it() {
        assert_eq!(parse("gemm --algorithm auto").unwrap().contenders, [Contender::Ours]);
        assert_eq!(parse("gemm").unwrap().contenders, CONTENDERS);
        assert_eq!(parse("attention --layout bshd").unwrap().heads, heads::Layout::Bshd);
        assert!(parse("--pass train model").unwrap().train);
        assert!(parse("gemm --algorithm im2col").unwrap_err().to_string().ends_with("given im2col"));
        assert!(parse("attention --layout nhwc").unwrap_err().to_string().contains("bhsd, bshd"));
    }
}
