//! Why a study stopped, and the exit code that says so.

use std::fmt;
use std::io;

/// Why a study stopped.
#[derive(Debug)]
pub enum Failure {
    /// The command line makes no sense: exit code 2.
    Usage(String),
    /// Anything else: exit code 1.
    Study(String),
    /// Whoever read the output has gone: nobody is left to tell, and nothing went wrong.
    OutputClosed,
}

impl Failure {
    /// Something other than the command line is wrong.
    pub fn study(why: impl fmt::Display) -> Self {
        Self::Study(why.to_string())
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Study(_) => 1,
            Self::OutputClosed => 0,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(why) | Self::Study(why) => f.write_str(why),
            Self::OutputClosed => f.write_str("the output was closed"),
        }
    }
}

impl From<kernels::Error> for Failure {
    fn from(error: kernels::Error) -> Self {
        Self::study(error)
    }
}

impl From<nn::Error> for Failure {
    fn from(error: nn::Error) -> Self {
        Self::study(error)
    }
}

impl From<lexopt::Error> for Failure {
    fn from(error: lexopt::Error) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::study(error),
        }
    }
}
