//! What can go wrong, as a value.
//!
//! Every public function checks all of its arguments before it writes anything. An error names the
//! argument, what was expected and what was given; outputs are untouched.

use std::fmt;

/// Why a call was refused. Outputs are untouched.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// The dimensions of an argument are not those that the call needs.
    Shape {
        /// The argument's name.
        argument: &'static str,
        /// The dimensions that fit.
        expected: Vec<usize>,
        /// The dimensions that were given.
        given: Vec<usize>,
    },
    /// A slice has another length than its shape says.
    Length {
        /// The argument's name.
        argument: &'static str,
        /// The length that fits, in elements; for workspaces and strided views the least that is enough.
        expected: usize,
        /// The length that was given.
        given: usize,
    },
    /// A parameter is outside of its domain.
    Invalid {
        /// The parameter's name.
        argument: &'static str,
        /// What is allowed, in words.
        expected: String,
        /// What was given.
        given: String,
    },
    /// A size does not fit in `usize` or `isize`.
    Overflow {
        /// The size that overflows.
        argument: &'static str,
    },
    /// Two indices of an output lead to the same element.
    Overlap {
        /// The argument's name.
        argument: &'static str,
    },
    /// The CPU lacks an instruction set that was asked for.
    Isa {
        /// Where the request came from: an argument or an environment variable.
        argument: &'static str,
        /// What this CPU offers.
        expected: String,
        /// What was asked for.
        given: String,
    },
    /// Memory could not be had.
    OutOfMemory {
        /// The number of bytes asked for.
        bytes: usize,
    },
}

impl Error {
    /// A parameter outside of its domain.
    pub fn invalid(argument: &'static str, expected: impl Into<String>, given: impl fmt::Display) -> Self {
        Self::Invalid { argument, expected: expected.into(), given: given.to_string() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shape { argument, expected, given } => {
                write!(f, "{argument}: expected shape {expected:?}, given {given:?}")
            }
            Self::Length { argument, expected, given } => {
                write!(f, "{argument}: expected {expected} elements, given {given}")
            }
            Self::Invalid { argument, expected, given } | Self::Isa { argument, expected, given } => {
                write!(f, "{argument}: expected {expected}, given {given}")
            }
            Self::Overflow { argument } => write!(f, "{argument}: the size overflows the address space"),
            Self::Overlap { argument } => write!(f, "{argument}: strides lead two indices to the same element"),
            Self::OutOfMemory { bytes } => write!(f, "out of memory: {bytes} bytes could not be allocated"),
        }
    }
}

impl std::error::Error for Error {}

/// Fails unless a slice has exactly the expected number of elements.
#[inline]
pub(crate) fn check_len(argument: &'static str, expected: usize, given: usize) -> Result<(), Error> {
    if expected == given { Ok(()) } else { Err(Error::Length { argument, expected, given }) }
}

/// The product of dimensions, or an error that names the argument. Keeps the byte count within `isize`.
#[inline]
pub(crate) fn checked_len(argument: &'static str, dimensions: &[usize]) -> Result<usize, Error> {
    if dimensions.contains(&0) {
        return Ok(0);
    }
    let mut product = 1usize;
    for &d in dimensions {
        product = product.checked_mul(d).ok_or(Error::Overflow { argument })?;
    }
    match product.checked_mul(size_of::<f64>()) {
        Some(bytes) if bytes <= isize::MAX as usize => Ok(product),
        _ => Err(Error::Overflow { argument }),
    }
}
