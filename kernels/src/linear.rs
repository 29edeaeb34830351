//! The linear layer: `y = activation(x * w^T + bias)`, and its gradients.
//!
//! ```text
//! forward    y[batch, out]  = activation(x[batch, in] * w[out, in]^T + bias[out])
//! backward   dx[batch, in]  = dy[batch, out] * w[out, in]
//!            dw[out, in]    = dy[batch, out]^T * x[batch, in]
//!            db[out]        = sum of dy[batch, out] over the batch
//! ```
//!
//! All matrices are row-major and dense; `dy` is the gradient before the activation. Everything is a [`crate::gemm`],
//! with its bits and its error bounds: `db` is the product of a row of ones and `dy`.

use crate::activation::Activation;
use crate::error::{Error, check_len, checked_len};
use crate::gemm::{Bias, Epilogue, Gemm, workspace_len};
use crate::parallel::Parallelism;
use crate::simd::Isa;
use crate::tensor::{View, ViewMut};

/// What a linear layer is.
///
/// ```
/// use kernels::linear::Linear;
/// use kernels::{Parallelism, Workspace};
/// let layer = Linear::new(2, 1);
/// let mut workspace = Workspace::with_len(layer.workspace_len(2, 1)?)?;
/// let (x, w, bias) = ([1.0, 2.0, 3.0, 4.0], [10.0, 1.0], [0.5]);
/// let mut y = [0.0; 2];
/// layer.forward(2, &x, &w, Some(&bias), &mut y, &mut workspace, Parallelism::Serial)?;
/// assert_eq!(y, [12.5, 34.5]);
/// # Ok::<(), kernels::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Linear {
    /// Features of an input.
    pub in_features: usize,
    /// Features of an output.
    pub out_features: usize,
    /// What the forward pass does to each output.
    pub activation: Activation,
    /// The instruction set; the best that there is if `None`.
    pub isa: Option<Isa>,
}

/// Where the gradients go; `None` is not computed.
#[derive(Debug, Default)]
pub struct Gradients<'a> {
    /// The gradient of the input, `[batch, in]`.
    pub dx: Option<&'a mut [f32]>,
    /// The gradient of the weights, `[out, in]`.
    pub dw: Option<&'a mut [f32]>,
    /// The gradient of the bias, `[out]`.
    pub db: Option<&'a mut [f32]>,
    /// Whether `dx` is added to.
    pub accumulate_dx: bool,
    /// Whether `dw` and `db` are added to.
    pub accumulate_parameters: bool,
}

impl Linear {
    /// A layer without activation.
    pub const fn new(in_features: usize, out_features: usize) -> Self {
        Self { in_features, out_features, activation: Activation::Identity, isa: None }
    }

    /// Floats of workspace for a batch, forward or backward, on at most `slots` threads at once.
    ///
    /// # Errors
    /// [`Error::Overflow`] when that cannot be addressed.
    pub fn workspace_len(&self, batch: usize, slots: usize) -> Result<usize, Error> {
        let (i, o) = (self.in_features, self.out_features);
        let forward = workspace_len(batch, o, i, slots)?;
        let data = workspace_len(batch, i, o, slots)?;
        let weights = workspace_len(o, i, batch, slots)?;
        let bias = workspace_len(1, o, batch, slots)?;
        Ok(forward.max(data).max(weights).max(bias))
    }

    /// `y = activation(x * w^T + bias)`. Shapes: `x` is `[batch, in]`, `w` is `[out, in]`, `bias` is `[out]`, `y` is
    /// `[batch, out]`.
    ///
    /// # Errors
    /// [`Error::Length`] for a slice of another length or a workspace that is too small, [`Error::Isa`].
    pub fn forward(
        &self,
        batch: usize,
        x: &[f32],
        w: &[f32],
        bias: Option<&[f32]>,
        y: &mut [f32],
        workspace: &mut [f32],
        parallelism: Parallelism<'_>,
    ) -> Result<(), Error> {
        let (i, o) = (self.in_features, self.out_features);
        check_len("x", checked_len("x", &[batch, i])?, x.len())?;
        check_len("w", checked_len("w", &[o, i])?, w.len())?;
        check_len("bias", o, bias.map_or(o, <[f32]>::len))?;
        check_len("y", checked_len("y", &[batch, o])?, y.len())?;
        self.check_workspace(batch, workspace)?;
        let bias = bias.map_or(Bias::None, Bias::Columns);
        let epilogue = Epilogue { bias, residual: None, activation: self.activation };
        Gemm { accumulate: false, epilogue, isa: self.isa }.run(
            View::new(x, [batch, i])?,
            View::new(w, [o, i])?.transposed(),
            &mut ViewMut::new(y, [batch, o])?,
            workspace,
            parallelism,
        )
    }

    /// The gradients that `gradients` has room for. Shapes: `x` is `[batch, in]`, `w` is `[out, in]`, `dy` is
    /// `[batch, out]` and is the gradient before the activation.
    ///
    /// # Errors
    /// [`Error::Length`] for a slice of another length or a workspace that is too small, [`Error::Isa`].
    pub fn backward(
        &self,
        batch: usize,
        x: &[f32],
        w: &[f32],
        dy: &[f32],
        gradients: Gradients<'_>,
        workspace: &mut [f32],
        parallelism: Parallelism<'_>,
    ) -> Result<(), Error> {
        let (i, o) = (self.in_features, self.out_features);
        let Gradients { dx, dw, db, accumulate_dx, accumulate_parameters } = gradients;
        let x_len = checked_len("x", &[batch, i])?;
        let w_len = checked_len("w", &[o, i])?;
        check_len("x", x_len, x.len())?;
        check_len("w", w_len, w.len())?;
        check_len("dy", checked_len("dy", &[batch, o])?, dy.len())?;
        check_len("dx", x_len, dx.as_deref().map_or(x_len, <[f32]>::len))?;
        check_len("dw", w_len, dw.as_deref().map_or(w_len, <[f32]>::len))?;
        check_len("db", o, db.as_deref().map_or(o, <[f32]>::len))?;
        self.check_workspace(batch, workspace)?;
        if let Some(isa) = self.isa {
            isa.check("isa")?;
        }
        let gemm = |accumulate| Gemm { accumulate, epilogue: Epilogue::default(), isa: self.isa };
        let dy = View::new(dy, [batch, o])?;
        if let Some(dx) = dx {
            let mut dx = ViewMut::new(dx, [batch, i])?;
            gemm(accumulate_dx).run(dy, View::new(w, [o, i])?, &mut dx, workspace, parallelism)?;
        }
        if let Some(dw) = dw {
            let mut dw = ViewMut::new(dw, [o, i])?;
            let x = View::new(x, [batch, i])?;
            gemm(accumulate_parameters).run(dy.transposed(), x, &mut dw, workspace, parallelism)?;
        }
        if let Some(db) = db {
            let mut db = ViewMut::new(db, [1, o])?;
            let ones = View::strided(&[1.0], 0, [1, batch], [0, 0])?;
            gemm(accumulate_parameters).run(ones, dy, &mut db, workspace, parallelism)?;
        }
        Ok(())
    }

    fn check_workspace(&self, batch: usize, workspace: &[f32]) -> Result<(), Error> {
        let expected = self.workspace_len(batch, 1)?;
        if workspace.len() < expected {
            return Err(Error::Length { argument: "workspace", expected, given: workspace.len() });
        }
        Ok(())
    }
}
