//! Matrix products: `out = activation(lhs * rhs + bias + residual)`.
//!
//! ```text
//!                 k                     n                      n
//!            ┌─────────┐         ┌────────────┐         ┌────────────┐
//!          m │   lhs   │    x  k │    rhs     │   ──► m │    out     │
//!            └─────────┘         │            │         └────────────┘
//!                                └────────────┘
//! ```
//!
//! Every output is one chain of fused multiply-adds in order of `k`, from +0, or from what stands in the output
//! if the call accumulates. So bits depend on the data alone: not on blocking, threads, packing, strides, batch, or
//! AVX2 against AVX-512. (The portable code rounds twice a step unless it is compiled with FMA.)
//! The error of an output is at most `gamma(k + 2) * sum |lhs| |rhs|`, where `gamma(n) = n u / (1 - n u)` and
//! `u = 2^-24`; bias and residual add a rounding each.
//!
//! - [`gemm`] is one call, without options or preparations.
//! - [`Gemm`] has the options, takes a workspace and allocates nothing.
//! - [`PackedLhs`] and [`PackedRhs`] hold an operand that is used again and again, such as weights.
//!
//! Sources: K. Goto, R. van de Geijn, "Anatomy of high-performance matrix multiplication", ACM TOMS 34 (2008);
//! F. Van Zee, R. van de Geijn, "BLIS", ACM TOMS 41 (2015).

mod ahead;
pub(crate) mod blocking;
mod driver;
mod epilogue;
mod few_rows;
pub(crate) mod lhs;
pub(crate) mod micro;
mod pack;
pub(crate) mod packed;
mod plan;
mod rectangle;
pub(crate) mod rhs;
mod small;
pub(crate) mod tile;

#[cfg(test)]
mod tests;

pub(crate) use ahead::{Ahead, Lines};
use blocking::Blocking;
use epilogue::RawEpilogue;
pub use epilogue::{Bias, Epilogue};
pub(crate) use pack::{Strips, pack_panels, pack_strip, pack_transposed};
use packed::Input;
pub use packed::{PackedLhs, PackedRhs};
use plan::Operand;
pub use plan::workspace_len;
use rectangle::Product;
use tile::Matrix;

use crate::error::Error;
use crate::parallel::Parallelism;
use crate::parts::Shared;
use crate::simd::Isa;
use crate::tensor::{View, ViewMut};
use crate::workspace::{LINE, Workspace, aligned};

/// The options of a product. The default overwrites the output with the plain product.
///
/// ```
/// use kernels::gemm::{Bias, Epilogue, Gemm, workspace_len};
/// use kernels::{Activation, Parallelism, View, ViewMut, Workspace};
/// let lhs = [1.0, 2.0, 3.0, 4.0];
/// let rhs = [1.0, 0.0, -1.0, 0.0, 1.0, -1.0];
/// let mut out = [f32::NAN; 6];
/// let mut workspace = Workspace::with_len(workspace_len(2, 3, 2, 1)?)?;
/// let epilogue = Epilogue { bias: Bias::Rows(&[10.0, 0.0]), activation: Activation::Relu, ..Epilogue::default() };
/// Gemm { epilogue, ..Gemm::default() }.run(
///     View::new(&lhs, [2, 2])?,
///     View::new(&rhs, [2, 3])?,
///     &mut ViewMut::new(&mut out, [2, 3])?,
///     &mut workspace,
///     Parallelism::Serial,
/// )?;
/// assert_eq!(out, [11.0, 12.0, 7.0, 3.0, 4.0, 0.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Gemm<'a> {
    /// Whether the chains continue from what stands in the output. If not, the output is not read.
    pub accumulate: bool,
    /// What follows the product.
    pub epilogue: Epilogue<'a>,
    /// The instruction set; the best that there is if `None`.
    pub isa: Option<Isa>,
}

/// `out = lhs * rhs`, on the current rayon pool, with a workspace of its own.
///
/// Shapes: `lhs` is `[m, k]`, `rhs` is `[k, n]`, `out` is `[m, n]`, each with any strides. `out` is not read.
///
/// ```
/// use kernels::{View, ViewMut};
/// let (lhs, rhs, mut out) = ([1.0, 2.0], [3.0, 4.0], [0.0]);
/// let rhs = View::new(&rhs, [2, 1])?;
/// kernels::gemm::gemm(View::new(&lhs, [1, 2])?, rhs, &mut ViewMut::new(&mut out, [1, 1])?)?;
/// assert_eq!(out, [11.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Shape`] when the shapes do not meet, [`Error::Isa`] when `KERNELS_ISA` asks for what there is not,
/// [`Error::OutOfMemory`].
pub fn gemm(lhs: View<'_, f32, 2>, rhs: View<'_, f32, 2>, out: &mut ViewMut<'_, f32, 2>) -> Result<(), Error> {
    let options = Gemm::default();
    let blocking = Blocking::for_this_cpu();
    let isa = chosen(None)?;
    let product = options.product(Input::Matrix(lhs), Input::Matrix(rhs), out, isa)?.oriented();
    // SAFETY: `product` has been checked against the views, which are borrowed until the end of the call.
    if unsafe { run_at_once(&product, isa, blocking, Parallelism::Current) } {
        return Ok(());
    }
    let parallelism = Parallelism::Current.for_seconds(product.seconds(blocking));
    let threads = parallelism.threads();
    let plan = driver::plan(&product, isa, blocking, threads);
    let mut workspace = Workspace::with_len(plan.least_workspace() + (threads - 1) * plan.private)?;
    // SAFETY: as above.
    unsafe { driver::run(&product, &plan, isa, workspace.as_mut_ptr(), threads, parallelism) };
    Ok(())
}

fn chosen(isa: Option<Isa>) -> Result<Isa, Error> {
    match isa {
        Some(isa) => isa.check("isa"),
        None => Isa::choose(),
    }
}

impl Gemm<'_> {
    /// `out = activation(lhs * rhs + bias + residual)`.
    ///
    /// Shapes: `lhs` is `[m, k]`, `rhs` is `[k, n]`, `out` is `[m, n]`, each with any strides. The workspace holds at
    /// least [`workspace_len`]`(m, n, k, 1)` floats, and `slots` instead of 1 for as many threads at once.
    /// Does not allocate.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::Length`] when shapes do not meet or the workspace is too small, [`Error::Isa`]
    /// when the CPU lacks the instruction set. The output is untouched then.
    pub fn run(
        &self,
        lhs: View<'_, f32, 2>,
        rhs: View<'_, f32, 2>,
        out: &mut ViewMut<'_, f32, 2>,
        workspace: &mut [f32],
        parallelism: Parallelism<'_>,
    ) -> Result<(), Error> {
        let blocking = Blocking::for_this_cpu();
        self.run_with(Input::Matrix(lhs), Input::Matrix(rhs), out, workspace, parallelism, blocking)
    }

    /// [`Gemm::run`] with `lhs` packed ahead of time.
    ///
    /// # Errors
    /// Those of [`Gemm::run`], and [`Error::Invalid`] when the call asks for another instruction set than `lhs` is
    /// packed for.
    pub fn run_packed_lhs(
        &self,
        lhs: &PackedLhs,
        rhs: View<'_, f32, 2>,
        out: &mut ViewMut<'_, f32, 2>,
        workspace: &mut [f32],
        parallelism: Parallelism<'_>,
    ) -> Result<(), Error> {
        let blocking = Blocking::for_this_cpu();
        self.run_with(Input::Packed(lhs), Input::Matrix(rhs), out, workspace, parallelism, blocking)
    }

    /// [`Gemm::run`] with `rhs` packed ahead of time.
    ///
    /// # Errors
    /// Those of [`Gemm::run`], and [`Error::Invalid`] when the call asks for another instruction set than `rhs` is
    /// packed for.
    pub fn run_packed_rhs(
        &self,
        lhs: View<'_, f32, 2>,
        rhs: &PackedRhs,
        out: &mut ViewMut<'_, f32, 2>,
        workspace: &mut [f32],
        parallelism: Parallelism<'_>,
    ) -> Result<(), Error> {
        let blocking = Blocking::for_this_cpu();
        self.run_with(Input::Matrix(lhs), Input::Packed(rhs), out, workspace, parallelism, blocking)
    }

    /// `out[b] = activation(lhs[b] * rhs[b] + bias + residual[b])` for each `b`.
    ///
    /// Shapes: `lhs` is `[batch, m, k]`, `rhs` is `[batch, k, n]`, `out` is `[batch, m, n]`; an operand that all
    /// products share has a batch stride of 0. The bias is the same for each; the residual has `batch * m` rows, one
    /// product's under the other's. The workspace is that of one product; with [`workspace_len`]`(m, n, k, 1)` floats
    /// for each thread, small products run side by side.
    ///
    /// # Errors
    /// Those of [`Gemm::run`].
    pub fn run_batched(
        &self,
        lhs: View<'_, f32, 3>,
        rhs: View<'_, f32, 3>,
        out: &mut ViewMut<'_, f32, 3>,
        workspace: &mut [f32],
        parallelism: Parallelism<'_>,
    ) -> Result<(), Error> {
        self.run_batched_with(lhs, rhs, out, workspace, parallelism, Blocking::for_this_cpu())
    }

    pub(crate) fn run_batched_with(
        &self,
        lhs: View<'_, f32, 3>,
        rhs: View<'_, f32, 3>,
        out: &mut ViewMut<'_, f32, 3>,
        workspace: &mut [f32],
        parallelism: Parallelism<'_>,
        blocking: &Blocking,
    ) -> Result<(), Error> {
        let isa = chosen(self.isa)?;
        let [batch, m, k] = lhs.shape();
        let n = rhs.shape()[2];
        expect("rhs", [batch, k, n], rhs.shape())?;
        expect("out", [batch, m, n], out.shape())?;
        self.epilogue.check(batch, [m, n])?;
        let needed = workspace_len(m, n, k, 1)?;
        if workspace.len() < needed {
            return Err(Error::Length { argument: "workspace", expected: needed, given: workspace.len() });
        }
        if batch == 0 || m == 0 || n == 0 {
            return Ok(());
        }
        let matrix = |at: *const f32, strides: [isize; 3]| {
            Operand::Matrix(Matrix { start: at, row_stride: strides[1], column_stride: strides[2] })
        };
        let [out_step, row_stride, column_stride] = out.strides();
        let (lhs_step, rhs_step) = (lhs.strides()[0], rhs.strides()[0]);
        let first = Product {
            m,
            n,
            k,
            lhs: matrix(lhs.as_ptr(), lhs.strides()),
            rhs: matrix(rhs.as_ptr(), rhs.strides()),
            out: out.as_mut_ptr(),
            row_stride,
            column_stride,
            accumulate: self.accumulate,
            epilogue: RawEpilogue::new(&self.epilogue),
        };
        let nth = |first: &Product, b: usize| {
            let mut product = *first;
            product.lhs = product.lhs.offset(b as isize * lhs_step);
            product.rhs = product.rhs.offset(b as isize * rhs_step);
            product.out = product.out.wrapping_offset(b as isize * out_step);
            product.epilogue = product.epilogue.starting_at_row(b * m);
            product.oriented()
        };
        let workspace = aligned(workspace);
        let parallelism = parallelism.for_seconds(batch as f64 * first.seconds(blocking));
        let threads = parallelism.threads();
        let serial = driver::plan(&first.oriented(), isa, blocking, 1);
        let side_by_side = workspace.len().checked_div(serial.least_workspace()).unwrap_or(threads).min(threads);
        if side_by_side > 1 && batch >= 2 * threads {
            let each = serial.least_workspace();
            let memory = Shared(workspace.as_mut_ptr());
            parallelism.for_each(batch, side_by_side, &|b, slot| {
                // SAFETY: as below; each slot has a workspace of its own.
                unsafe { driver::run(&nth(&first, b), &serial, isa, memory.at(slot * each), 1, Parallelism::Serial) };
            });
            return Ok(());
        }
        let plan = driver::plan(&first.oriented(), isa, blocking, threads);
        let slots = slots_in(workspace.len(), &plan, threads)?;
        for b in 0..batch {
            // SAFETY: the shapes agree, so every product is inside of the views; the workspace is as long as it says.
            unsafe { driver::run(&nth(&first, b), &plan, isa, workspace.as_mut_ptr(), slots, parallelism) };
        }
        Ok(())
    }

    /// The checks, then the product as pointers.
    fn product(
        &self,
        lhs: Input<'_, PackedLhs>,
        rhs: Input<'_, PackedRhs>,
        out: &mut ViewMut<'_, f32, 2>,
        isa: Isa,
    ) -> Result<Product, Error> {
        let [m, k] = match lhs {
            Input::Matrix(lhs) => lhs.shape(),
            Input::Packed(lhs) => lhs.shape(),
        };
        let rhs_shape = match rhs {
            Input::Matrix(rhs) => rhs.shape(),
            Input::Packed(rhs) => rhs.shape(),
        };
        let n = rhs_shape[1];
        expect("rhs", [k, n], rhs_shape)?;
        expect("out", [m, n], out.shape())?;
        self.epilogue.check(1, [m, n])?;
        let lhs = match lhs {
            Input::Matrix(lhs) => Operand::Matrix(Matrix::new(&lhs)),
            Input::Packed(lhs) => Operand::Packed(lhs.start(isa)?),
        };
        let rhs = match rhs {
            Input::Matrix(rhs) => Operand::Matrix(Matrix::new(&rhs)),
            Input::Packed(rhs) => Operand::Packed(rhs.start(isa)?),
        };
        let [row_stride, column_stride] = out.strides();
        let epilogue = RawEpilogue::new(&self.epilogue);
        let accumulate = self.accumulate;
        Ok(Product { m, n, k, lhs, rhs, out: out.as_mut_ptr(), row_stride, column_stride, accumulate, epilogue })
    }

    pub(crate) fn run_with(
        &self,
        lhs: Input<'_, PackedLhs>,
        rhs: Input<'_, PackedRhs>,
        out: &mut ViewMut<'_, f32, 2>,
        workspace: &mut [f32],
        parallelism: Parallelism<'_>,
        blocking: &Blocking,
    ) -> Result<(), Error> {
        let isa = match (self.isa, &lhs, &rhs) {
            (None, Input::Packed(lhs), _) => lhs.isa(),
            (None, _, Input::Packed(rhs)) => rhs.isa(),
            _ => chosen(self.isa)?,
        };
        let product = self.product(lhs, rhs, out, isa)?;
        let needed = workspace_len(product.m, product.n, product.k, 1)?;
        if workspace.len() < needed {
            return Err(Error::Length { argument: "workspace", expected: needed, given: workspace.len() });
        }
        let product = product.oriented();
        // SAFETY: the product has been checked against views that are borrowed until the end of the call.
        if unsafe { run_at_once(&product, isa, blocking, parallelism) } {
            return Ok(());
        }
        let parallelism = parallelism.for_seconds(product.seconds(blocking));
        let threads = parallelism.threads();
        let plan = driver::plan(&product, isa, blocking, threads);
        let workspace = aligned(workspace);
        let slots = slots_in(workspace.len(), &plan, threads)?;
        // SAFETY: as above, and the workspace is as long as `slots_in` was told.
        unsafe { driver::run(&product, &plan, isa, workspace.as_mut_ptr(), slots, parallelism) };
        Ok(())
    }
}

/// Runs a product that needs neither a plan nor a workspace, if it is one.
///
/// # Safety
/// - The product's pointers are valid for its dimensions and strides, and its output overlaps no operand.
unsafe fn run_at_once(product: &Product, isa: Isa, blocking: &Blocking, parallelism: Parallelism<'_>) -> bool {
    if let Some(small) = small::suiting(product, blocking) {
        // SAFETY: the caller's contract.
        unsafe { small::run(small, isa) };
    } else if let Some(few) = few_rows::suiting(product) {
        // SAFETY: the caller's contract.
        unsafe { few_rows::run(&few, isa, parallelism.for_seconds(product.seconds(blocking))) };
    } else {
        return false;
    }
    true
}

/// How many tasks may run at once in a workspace of `len` floats from a cache line on.
fn slots_in(len: usize, plan: &plan::Plan, threads: usize) -> Result<usize, Error> {
    let least = plan.least_workspace();
    if len < least {
        return Err(Error::Length { argument: "workspace", expected: least + LINE, given: len });
    }
    Ok((len - plan.shared_lhs - plan.shared_rhs).checked_div(plan.private).unwrap_or(threads).clamp(1, threads))
}

fn expect<const N: usize>(argument: &'static str, expected: [usize; N], given: [usize; N]) -> Result<(), Error> {
    // One after the other: compared as a vector, dimensions that were just stored one by one are waited for.
    if (0..N).all(|axis| expected[axis] == given[axis]) {
        return Ok(());
    }
    Err(unexpected(argument, &expected, &given))
}

#[cold]
fn unexpected(argument: &'static str, expected: &[usize], given: &[usize]) -> Error {
    Error::Shape { argument, expected: expected.to_vec(), given: given.to_vec() }
}
