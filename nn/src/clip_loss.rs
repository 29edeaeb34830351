//! The loss that CLIP learns from: each image is to find its own text among all of the batch, and each text its image.
//!
//! ```text
//! i = image / |image|,  t = text / |text|                  [batch, features], rows of unit length
//! z = e^s i tᵀ                                             [batch, batch], s learns
//! L = (cross-entropy of z's rows + that of its columns) / 2,   the right class of row n is n
//!
//! dz = (d rows + (d columns)ᵀ) / 2
//! di = e^s dz t,   dt = e^s dzᵀ i,   ds = sum of dz z,   then through the normalisation
//! ```
//!
//! Radford et al., "Learning transferable visual models from natural language supervision", ICML 2021.

use kernels::gemm::{Gemm, workspace_len};
use kernels::{Parallelism, View, ViewMut, Workspace, loss, normalize};
use ndarray::{Array0, ArrayD};

use crate::error::{Error, Result};
use crate::layer::Parameter;
use crate::tensor::{Tensor, elements, row_major, tensor};

/// The symmetric contrastive loss between two batches of features, with a scale that learns.
///
/// ```
/// use nn::{ClipLoss, Parallelism, tensor};
/// let mut loss = ClipLoss::new();
/// let images = tensor(&[2, 2], vec![1.0, 0.0, 0.0, 3.0])?;
/// let matching = loss.forward(&images, &tensor(&[2, 2], vec![2.0, 0.0, 0.0, 2.0])?, Parallelism::Serial)?;
/// let crossed = loss.forward(&images, &tensor(&[2, 2], vec![0.0, 2.0, 2.0, 0.0])?, Parallelism::Serial)?;
/// assert!(matching < 1e-5 && crossed > 14.0);
/// # Ok::<(), nn::Error>(())
/// ```
pub struct ClipLoss {
    /// s; e^s is at most 100, as in the paper.
    scale: Parameter,
    workspace: Workspace,
    cache: Option<Cache>,
}

struct Cache {
    /// [batch, features]
    shape: [usize; 2],
    sides: [Side; 2],
    /// e^s, and whether it is at its bound, where s has no gradient.
    factor: f32,
    bounded: bool,
    /// The gradient of z, [batch, batch].
    dz: Vec<f32>,
    /// z, [batch, batch]
    z: Vec<f32>,
}

/// The rows of images or texts with unit length, and the length that they had.
struct Side {
    unit: Vec<f32>,
    lengths: Vec<f32>,
}

/// The largest e^s.
const MOST: f32 = 100.0;

impl Default for ClipLoss {
    fn default() -> Self {
        Self::new()
    }
}

impl ClipLoss {
    /// A loss whose scale starts at 1 / 0.07.
    pub fn new() -> Self {
        let scale = Parameter::new(Array0::from_elem((), -(0.07f32.ln())).into_dyn());
        Self { scale, workspace: Workspace::new(), cache: None }
    }

    /// The logarithm of the scale, `logit_scale`, for an optimiser.
    pub fn scale(&mut self) -> &mut Parameter {
        &mut self.scale
    }

    /// The value of the logarithm of the scale.
    pub fn scale_value(&self) -> &ArrayD<f32> {
        self.scale.value()
    }

    /// The loss of features `[batch, features]` of which row n of the images belongs to row n of the texts.
    ///
    /// # Errors
    /// [`Error::Shape`] unless both have the same two dimensions, [`Error::Kernel`] for no rows at all.
    pub fn forward(&mut self, images: &Tensor, texts: &Tensor, parallelism: Parallelism<'_>) -> Result<f32> {
        let shape = match *images.shape() {
            [batch, features] => [batch, features],
            _ => return Err(Error::shape("images", "[batch, features]", images.shape())),
        };
        if texts.shape() != shape {
            return Err(Error::shape("texts", format!("{shape:?}, that of the images"), texts.shape()));
        }
        let [batch, features] = shape;
        let side = |x: &Tensor| -> Result<Side> {
            let mut side = Side { unit: vec![0.0; x.len()], lengths: vec![0.0; batch] };
            normalize::forward(shape, elements(&row_major(x)), &mut side.unit, &mut side.lengths, parallelism)?;
            Ok(side)
        };
        let sides = [side(images)?, side(texts)?];
        let factor = self.scale.elements()[0].exp();
        let (factor, bounded) = (factor.min(MOST), factor > MOST);

        let square = batch.checked_mul(batch).ok_or_else(|| Error::invalid("batch", "one whose square fits", batch))?;
        let workspace = self.workspace.grow(workspace_len(batch, batch, features, parallelism.threads())?)?;
        let mut products = |from: &Side, to: &Side| -> Result<Vec<f32>> {
            let mut z = vec![0.0; square];
            let (lhs, rhs) = (View::new(&from.unit, shape)?, View::new(&to.unit, shape)?.transposed());
            Gemm::default().run(lhs, rhs, &mut ViewMut::new(&mut z, [batch; 2])?, workspace, parallelism)?;
            z.iter_mut().for_each(|z| *z *= factor);
            Ok(z)
        };
        let (z, z_transposed) = (products(&sides[0], &sides[1])?, products(&sides[1], &sides[0])?);
        let (own, mut losses): (Vec<usize>, _) = ((0..batch).collect(), vec![0.0; batch]);
        let [mut dz, mut dz_transposed] = [vec![0.0; square], vec![0.0; square]];
        let mut mean = |z: &[f32], dz: &mut [f32]| {
            loss::softmax_cross_entropy([batch; 2], z, &own, &mut losses, Some(dz), parallelism)
        };
        let total = 0.5 * (mean(&z, &mut dz)? + mean(&z_transposed, &mut dz_transposed)?);
        for row in 0..batch {
            for column in 0..batch {
                let at = row * batch + column;
                dz[at] = 0.5 * (dz[at] + dz_transposed[column * batch + row]);
            }
        }
        self.cache = Some(Cache { shape, sides, factor, bounded, dz, z });
        Ok(total)
    }

    /// The gradients of the last call's images and texts; that of the scale is added to its parameter's.
    ///
    /// # Errors
    /// [`Error::NoForward`] without a `forward` before.
    pub fn backward(&mut self, parallelism: Parallelism<'_>) -> Result<[Tensor; 2]> {
        let Cache { shape, sides, factor, bounded, dz, z } = self.cache.take().ok_or(Error::NoForward)?;
        let [batch, features] = shape;
        let workspace = self.workspace.grow(workspace_len(batch, features, batch, parallelism.threads())?)?;
        let mut gradient = |dz: View<'_, f32, 2>, own: &Side, other: &Side| -> Result<Tensor> {
            let mut d_unit = vec![0.0; own.unit.len()];
            let mut out = ViewMut::new(&mut d_unit, shape)?;
            Gemm::default().run(dz, View::new(&other.unit, shape)?, &mut out, workspace, parallelism)?;
            d_unit.iter_mut().for_each(|d| *d *= factor);
            let mut dx = vec![0.0; d_unit.len()];
            normalize::backward(shape, &own.unit, &own.lengths, &d_unit, &mut dx, parallelism)?;
            tensor(&shape, dx)
        };
        let [images, texts] = &sides;
        let d_images = gradient(View::new(&dz, [batch; 2])?, images, texts)?;
        let d_texts = gradient(View::new(&dz, [batch; 2])?.transposed(), texts, images)?;
        if !bounded {
            // One sum of batch^2 products, in double precision: they cancel.
            let sum: f64 = dz.iter().zip(&z).map(|(&dz, &z)| f64::from(dz) * f64::from(z)).sum();
            self.scale.accumulate(&[sum as f32])?;
        }
        Ok([d_images, d_texts])
    }
}
