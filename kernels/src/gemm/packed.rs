//! Operands packed ahead of time: weights.

use super::driver::{PackPanels, PackStrips};
use super::pack::Strips;
use super::tile::{Matrix, NV, max_height};
use super::{chosen, expect};
use crate::error::{Error, checked_len};
use crate::simd::{Isa, dispatch};
use crate::tensor::View;
use crate::workspace::Workspace;

/// An operand of a call.
#[derive(Clone, Copy)]
pub enum Input<'a, P> {
    /// As it lies in memory.
    Matrix(View<'a, f32, 2>),
    /// Packed ahead of time.
    Packed(&'a P),
}

/// A left-hand matrix in strips, for one instruction set.
///
/// Products with it have the bits of products with the matrix itself.
///
/// ```
/// use kernels::gemm::{Gemm, PackedLhs, workspace_len};
/// use kernels::{Parallelism, View, ViewMut, Workspace};
/// let weights = PackedLhs::new(View::new(&[1.0, 2.0, 3.0, 4.0], [2, 2])?, None)?;
/// let mut workspace = Workspace::with_len(workspace_len(2, 1, 2, 1)?)?;
/// let mut out = [0.0; 2];
/// let rhs = View::new(&[1.0, 10.0], [2, 1])?;
/// let mut y = ViewMut::new(&mut out, [2, 1])?;
/// Gemm::default().run_packed_lhs(&weights, rhs, &mut y, &mut workspace, Parallelism::Serial)?;
/// assert_eq!(out, [21.0, 43.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
#[derive(Clone)]
pub struct PackedLhs {
    isa: Isa,
    shape: [usize; 2],
    data: Workspace,
}

/// A right-hand matrix in panels, for one instruction set.
///
/// Products with it have the bits of products with the matrix itself.
#[derive(Clone)]
pub struct PackedRhs {
    isa: Isa,
    shape: [usize; 2],
    data: Workspace,
}

impl PackedLhs {
    /// Packs a matrix of `[m, k]`, for the best instruction set if `isa` is `None`.
    ///
    /// # Errors
    /// [`Error::Isa`] when the CPU lacks the instruction set, [`Error::Overflow`], [`Error::OutOfMemory`].
    pub fn new(lhs: View<'_, f32, 2>, isa: Option<Isa>) -> Result<Self, Error> {
        let isa = chosen(isa)?;
        let shape = lhs.shape();
        let data = Workspace::with_len(checked_len("lhs", &shape)?)?;
        let mut packed = Self { isa, shape, data };
        packed.repack(lhs)?;
        Ok(packed)
    }

    /// Packs another matrix of the same shape in place. Does not allocate.
    ///
    /// # Errors
    /// [`Error::Shape`] when the shape is another; nothing has changed then.
    pub fn repack(&mut self, lhs: View<'_, f32, 2>) -> Result<(), Error> {
        expect("lhs", self.shape, lhs.shape())?;
        let [rows, k] = self.shape;
        let all = Strips::new(rows, max_height(self.isa.registers(), NV));
        let strips = 0..all.count;
        let to = self.data.as_mut_ptr();
        dispatch(self.isa, PackStrips { lhs: Matrix::new(&lhs), rows, all, strips, first_row: 0, ks: 0..k, to });
        Ok(())
    }

    /// `[m, k]`
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// The instruction set that this is packed for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    pub(super) fn start(&self, isa: Isa) -> Result<*const f32, Error> {
        same(self.isa, isa)?;
        Ok(self.data.as_ptr())
    }
}

impl PackedRhs {
    /// Packs a matrix of `[k, n]`, for the best instruction set if `isa` is `None`.
    ///
    /// # Errors
    /// [`Error::Isa`] when the CPU lacks the instruction set, [`Error::Overflow`], [`Error::OutOfMemory`].
    pub fn new(rhs: View<'_, f32, 2>, isa: Option<Isa>) -> Result<Self, Error> {
        let isa = chosen(isa)?;
        let shape @ [k, n] = rhs.shape();
        let columns = n.checked_next_multiple_of(isa.lanes()).ok_or(Error::Overflow { argument: "rhs" })?;
        let data = Workspace::with_len(checked_len("rhs", &[k, columns])?)?;
        let mut packed = Self { isa, shape, data };
        packed.repack(rhs)?;
        Ok(packed)
    }

    /// Packs another matrix of the same shape in place. Does not allocate.
    ///
    /// # Errors
    /// [`Error::Shape`] when the shape is another; nothing has changed then.
    pub fn repack(&mut self, rhs: View<'_, f32, 2>) -> Result<(), Error> {
        expect("rhs", self.shape, rhs.shape())?;
        let [k, n] = self.shape;
        let panels = 0..n.div_ceil(NV * self.isa.lanes());
        let to = self.data.as_mut_ptr();
        if n > 0 {
            dispatch(self.isa, PackPanels { rhs: Matrix::new(&rhs), n, panels, k, to });
        }
        Ok(())
    }

    /// `[k, n]`
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// The instruction set that this is packed for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    pub(super) fn start(&self, isa: Isa) -> Result<*const f32, Error> {
        same(self.isa, isa)?;
        Ok(self.data.as_ptr())
    }
}

/// Fails unless an operand is packed for the instruction set of the call.
fn same(packed: Isa, isa: Isa) -> Result<(), Error> {
    if packed == isa { Ok(()) } else { Err(Error::invalid("isa", format!("{packed}, as the operand is packed"), isa)) }
}
