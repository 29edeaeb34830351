//! Where and how a call without a plan runs.

use crate::error::Error;
use crate::parallel::Parallelism;
use crate::simd::Isa;

/// Who does the work, and with which instructions. Calls take `impl Into<Execution>`, so a plain [`Parallelism`] will
/// do; studies and tests also name the instruction set.
///
/// ```
/// use kernels::{Activation, Execution, Isa, Parallelism, activation};
/// let mut y = [0.0; 2];
/// activation::forward(Activation::Relu, &[-1.0, 2.0], &mut y, Parallelism::Serial)?;
/// assert_eq!(y, [0.0, 2.0]);
/// activation::forward(Activation::Relu, &[3.0, -4.0], &mut y, Execution::on(Isa::Portable))?;
/// assert_eq!(y, [3.0, 0.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Execution<'t> {
    /// Who does the work.
    pub parallelism: Parallelism<'t>,
    /// The instruction set; `None` takes [`Isa::choose`].
    pub isa: Option<Isa>,
}

impl<'t> Execution<'t> {
    /// On the calling thread, with the instruction set named.
    pub const fn on(isa: Isa) -> Self {
        Self { parallelism: Parallelism::Serial, isa: Some(isa) }
    }

    /// Sets who does the work.
    pub const fn parallelism(mut self, parallelism: Parallelism<'t>) -> Self {
        self.parallelism = parallelism;
        self
    }

    /// The instruction set to use.
    ///
    /// # Errors
    /// [`Error::Isa`] when the CPU lacks what was asked for.
    pub(crate) fn isa(&self) -> Result<Isa, Error> {
        self.isa.map_or_else(Isa::choose, |isa| isa.check("isa"))
    }
}

impl<'t> From<Parallelism<'t>> for Execution<'t> {
    fn from(parallelism: Parallelism<'t>) -> Self {
        Self { parallelism, isa: None }
    }
}
