//! What can go wrong, as a value that says where and why.

use std::fmt;
use std::path::{Path, PathBuf};

/// Why a call was refused.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Error {
    /// A kernel refused its arguments.
    Kernel(kernels::Error),
    /// A tensor has another shape than is needed.
    Shape {
        /// The tensor's name.
        argument: &'static str,
        /// What fits, in words or as a shape.
        expected: String,
        /// The shape that was given.
        given: Vec<usize>,
    },
    /// A parameter is outside of its domain.
    Invalid {
        /// The parameter's name.
        argument: &'static str,
        /// What is allowed.
        expected: String,
        /// What was given.
        given: String,
    },
    /// A `backward` without a `forward` before it: there is no cache to take the gradients from.
    NoForward,
    /// An error inside of a named layer of a network.
    In {
        /// The layer: its path in the network, and its kind.
        layer: String,
        /// What went wrong there.
        source: Box<Error>,
    },
    /// A tensor of a state dict does not fit where it should go.
    Tensor {
        /// The tensor's name.
        name: String,
        /// What fits.
        expected: String,
        /// What was given.
        given: String,
    },
    /// A file cannot be read, or does not hold what it should.
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A tensor of another shape than is needed.
    pub fn shape(argument: &'static str, expected: impl fmt::Display, given: &[usize]) -> Self {
        Self::Shape { argument, expected: expected.to_string(), given: given.to_vec() }
    }

    /// A parameter outside of its domain.
    pub fn invalid(argument: &'static str, expected: impl fmt::Display, given: impl fmt::Display) -> Self {
        Self::Invalid { argument, expected: expected.to_string(), given: given.to_string() }
    }

    /// A file that cannot be read, or does not hold what it should.
    pub fn file(path: &Path, problem: impl fmt::Display) -> Self {
        Self::File { path: path.to_path_buf(), problem: problem.to_string() }
    }

    /// A tensor that does not fit where it should go.
    pub fn tensor(name: &str, expected: impl fmt::Display, given: impl fmt::Display) -> Self {
        Self::Tensor { name: name.to_string(), expected: expected.to_string(), given: given.to_string() }
    }

    /// This error, said to have happened in a layer.
    pub(crate) fn within(self, path: &str, kind: &str) -> Self {
        match self {
            // A network in a network: the inner path is longer and tells more.
            Self::In { layer, source } => Self::In { layer: format!("{path}.{layer}"), source },
            source => Self::In { layer: format!("{path} ({kind})"), source: Box::new(source) },
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kernel(source) => source.fmt(f),
            Self::Shape { argument, expected, given } => {
                write!(f, "{argument}: expected shape {expected}, given {given:?}")
            }
            Self::Invalid { argument, expected, given } => write!(f, "{argument}: expected {expected}, given {given}"),
            Self::NoForward => f.write_str("backward needs the cache of a forward call before it"),
            Self::In { layer, source } => write!(f, "layer {layer}: {source}"),
            Self::Tensor { name, expected, given } => write!(f, "tensor {name}: expected {expected}, given {given}"),
            Self::File { path, problem } => write!(f, "{}: {problem}", path.display()),
        }
    }
}

impl std::error::Error for Error {}

impl From<kernels::Error> for Error {
    fn from(source: kernels::Error) -> Self {
        Self::Kernel(source)
    }
}
