//! How alike the rows of two matrices are: scaled cosines of all pairs.
//!
//! ```text
//! i = image / |image|,  t = text / |text|       [n, features], [m, features], rows of unit length
//! z = e^s i tᵀ                                  [n, m], s learns, e^s is at most 100
//!
//! di = e^s dz t,   dt = e^s dzᵀ i,   ds = sum of dz z,   then through the normalisation
//! ```
//!
//! Radford et al., "Learning transferable visual models from natural language supervision", ICML 2021.

use kernels::gemm::{Gemm, workspace_len};
use kernels::{Parallelism, View, ViewMut, Workspace, normalize};
use ndarray::Array0;

use crate::error::{Error, Result};
use crate::inference::{Call, Fused, Kernel, Role};
use crate::layer::{Layer, Parameter, bare_name};
use crate::tensor::{Tensor, check_gradient, count, elements, row_major, tensor};

/// The cosine of each row of a first input with each row of a second, times a scale that learns: CLIP's logits. The
/// scale's logarithm is a parameter with the name of the layer.
///
/// ```
/// use nn::{CosineLogits, Layer, Parallelism, tensor};
/// let images = tensor(&[1, 2], vec![0.0, 3.0])?;
/// let texts = tensor(&[2, 2], vec![2.0, 0.0, 0.0, 5.0])?;
/// let z = CosineLogits::new().forward(&[&images, &texts], Parallelism::Serial)?;
/// assert!(z[[0, 0]] == 0.0 && (z[[0, 1]] - 1.0 / 0.07).abs() < 1e-5);
/// # Ok::<(), nn::Error>(())
/// ```
pub struct CosineLogits {
    /// s
    scale: Parameter,
    workspace: Workspace,
    cache: Option<Cache>,
}

struct Cache {
    sides: [Side; 2],
    /// e^s, and whether it is at its bound, where s has no gradient.
    factor: f32,
    is_bounded: bool,
    /// z, [n, m]
    z: Tensor,
}

/// Rows with unit length, and the length that they had.
struct Side {
    shape: [usize; 2],
    unit: Vec<f32>,
    lengths: Vec<f32>,
}

/// The largest e^s.
const MOST: f32 = 100.0;

impl Default for CosineLogits {
    fn default() -> Self {
        Self::new()
    }
}

impl CosineLogits {
    /// A layer whose scale starts at 1 / 0.07.
    pub fn new() -> Self {
        let scale = Parameter::new(Array0::from_elem((), -(0.07f32.ln())).into_dyn());
        Self { scale, workspace: Workspace::new(), cache: None }
    }

    /// e^s
    fn factor(&self) -> f32 {
        self.scale.elements()[0].exp()
    }
}

/// n, m, features
fn sizes(inputs: &[&[usize]]) -> Result<[usize; 3]> {
    match *inputs {
        [&[n, features], &[m, of_second]] if features == of_second && count("texts", &[n, m]).is_ok() => {
            Ok([n, m, features])
        }
        [&[n, features], second] => {
            Err(Error::shape("texts", format!("[rows, {features}], and {n} times rows that fit in memory"), second))
        }
        [first, _] => Err(Error::shape("images", "[rows, features]", first)),
        _ => Err(Error::invalid("inputs", "2 tensors", inputs.len())),
    }
}

/// `z = factor a bᵀ`
fn products(
    [a, b]: [&[f32]; 2],
    [n, m, features]: [usize; 3],
    factor: f32,
    z: &mut [f32],
    workspace: &mut [f32],
    parallelism: Parallelism<'_>,
) -> Result<()> {
    let (lhs, rhs) = (View::new(a, [n, features])?, View::new(b, [m, features])?.transposed());
    Gemm::default().run(lhs, rhs, &mut ViewMut::new(z, [n, m])?, workspace, parallelism)?;
    z.iter_mut().for_each(|z| *z *= factor);
    Ok(())
}

impl Layer for CosineLogits {
    fn kind(&self) -> &'static str {
        "CosineLogits"
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        let shapes: Vec<&[usize]> = inputs.iter().map(Vec::as_slice).collect();
        sizes(&shapes).map(|[n, m, _]| vec![n, m])
    }

    /// Those of the products of all pairs.
    fn flops(&self, inputs: &[Vec<usize>]) -> Result<f64> {
        let pairs: f64 = self.output_shape(inputs)?.iter().map(|&size| size as f64).product();
        Ok(2.0 * pairs * inputs[0][1] as f64)
    }

    fn role(&self) -> Role {
        Role::Compute { activation: false, residual: false }
    }

    fn kernel(&self, _: &[Vec<usize>], _: Fused) -> Result<Box<dyn Kernel>> {
        Ok(Box::new(Planned { factor: self.factor().min(MOST) }))
    }

    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let shapes: Vec<&[usize]> = inputs.iter().map(|x| x.shape()).collect();
        let size @ [n, m, features] = sizes(&shapes)?;
        let side = |x: &Tensor| -> Result<Side> {
            let shape = [x.shape()[0], features];
            let mut side = Side { shape, unit: vec![0.0; x.len()], lengths: vec![0.0; shape[0]] };
            normalize::forward(shape, elements(&row_major(x)), &mut side.unit, &mut side.lengths, parallelism)?;
            Ok(side)
        };
        let sides = [side(inputs[0])?, side(inputs[1])?];
        let (factor, is_bounded) = (self.factor().min(MOST), self.factor() > MOST);
        let mut z = vec![0.0; n * m];
        let workspace = self.workspace.grow(workspace_len(n, m, features, parallelism.threads())?)?;
        products([&sides[0].unit, &sides[1].unit], size, factor, &mut z, workspace, parallelism)?;
        let z = tensor(&[n, m], z)?;
        self.cache = Some(Cache { sides, factor, is_bounded, z: z.clone() });
        Ok(z)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let Cache { sides: [images, texts], factor, is_bounded, z } = self.cache.as_ref().ok_or(Error::NoForward)?;
        check_gradient(d_output, z.shape())?;
        let dz = row_major(d_output);
        let ([n, features], m) = (images.shape, texts.shape[0]);
        let len = workspace_len(n, features, m, parallelism.threads())?;
        let workspace = self.workspace.grow(len.max(workspace_len(m, features, n, parallelism.threads())?))?;
        let mut gradient = |dz: View<'_, f32, 2>, own: &Side, other: &Side| -> Result<Tensor> {
            let mut d_unit = vec![0.0; own.unit.len()];
            let mut out = ViewMut::new(&mut d_unit, own.shape)?;
            Gemm::default().run(dz, View::new(&other.unit, other.shape)?, &mut out, workspace, parallelism)?;
            d_unit.iter_mut().for_each(|d| *d *= factor);
            let mut dx = vec![0.0; d_unit.len()];
            normalize::backward(own.shape, &own.unit, &own.lengths, &d_unit, &mut dx, parallelism)?;
            tensor(&own.shape, dx)
        };
        let d_images = gradient(View::new(elements(&dz), [n, m])?, images, texts)?;
        let d_texts = gradient(View::new(elements(&dz), [n, m])?.transposed(), texts, images)?;
        if !is_bounded {
            // One sum of n m products, in double precision: they cancel.
            let sum: f64 = dz.iter().zip(z).map(|(&dz, &z)| f64::from(dz) * f64::from(z)).sum();
            self.scale.accumulate(&[sum as f32], parallelism)?;
        }
        self.cache = None;
        Ok(vec![d_images, d_texts])
    }

    fn visit(&mut self, prefix: &str, visitor: &mut dyn FnMut(&str, &mut Parameter)) {
        visitor(bare_name(prefix), &mut self.scale);
    }
}

/// The forward pass of a plan.
struct Planned {
    factor: f32,
}

/// Floats for the unit rows of both inputs and for their lengths.
fn own([n, m, features]: [usize; 3]) -> [usize; 3] {
    [n * features, m * features, n.max(m)]
}

impl Kernel for Planned {
    fn workspace_len(&self, inputs: &[Vec<usize>], slots: usize) -> Result<usize> {
        let size @ [n, m, features] = sizes(&[&inputs[0], &inputs[1]])?;
        Ok(own(size).iter().sum::<usize>() + workspace_len(n, m, features, slots)?)
    }

    fn run(&self, call: Call<'_>) -> Result<()> {
        let size @ [n, m, features] = sizes(&[&call.shapes[0], &call.shapes[1]])?;
        let [of_images, of_texts, of_lengths] = own(size);
        let (images, rest) = call.workspace.split_at_mut(of_images);
        let (texts, rest) = rest.split_at_mut(of_texts);
        let (lengths, scratch) = rest.split_at_mut(of_lengths);
        let parallelism = call.parallelism;
        normalize::forward([n, features], call.inputs.get(0), images, &mut lengths[..n], parallelism)?;
        normalize::forward([m, features], call.inputs.get(1), texts, &mut lengths[..m], parallelism)?;
        products([images, texts], size, self.factor, call.y, scratch, parallelism)
    }
}
