//! The fully connected layer.
//!
//! ```text
//! y[n, o] = bias[o] + sum over i of  x[n, i] * weight[o, i]
//! ```

use std::ops::Range;

use kernels::gemm::{self, Bias, Epilogue, Gemm, PackedRhs};
use kernels::{Parallelism, View, ViewMut, Workspace, linear};
use ndarray::{Array1, ArrayD};

use crate::error::{Error, Result};
use crate::inference::{Call, Fused, Kernel, Role};
use crate::init::{kaiming_uniform, xavier_uniform};
use crate::layer::{Layer, Parameter, single, single_shape};
use crate::memory::room;
use crate::random::Random;
use crate::tensor::{Tensor, check_gradient, count, elements, row_major, tensor};

/// `y = x weightᵀ + bias` over rows `[batch, inputs]`, or `[..., inputs]`, with `weight [outputs, inputs]` and `bias
/// [outputs]`.
///
/// ```
/// use kernels::Parallelism;
/// use nn::{Layer, Linear};
/// let weight = ndarray::array![[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]].into_dyn();
/// let mut linear = Linear::with_weights(weight, None)?;
/// let x = nn::tensor(&[1, 2], vec![1.0, 10.0])?;
/// assert_eq!(linear.forward(&[&x], Parallelism::Serial)?, ndarray::array![[21.0, 43.0, 65.0]].into_dyn());
/// # Ok::<(), nn::Error>(())
/// ```
pub struct Linear {
    weight: Parameter,
    bias: Option<Parameter>,
    workspace: Workspace,
    /// The last input, [batch, inputs].
    cache: Option<Tensor>,
}

impl Linear {
    /// A layer with Kaiming-uniform weights and a bias of zeros.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there are no inputs or more weights than memory can hold.
    pub fn new(inputs: usize, outputs: usize, random: &mut Random) -> Result<Self> {
        Self::check(inputs, outputs)?;
        let weight = kaiming_uniform(&[outputs, inputs], inputs, random);
        Self::with_weights(weight, Some(Array1::zeros(outputs).into_dyn()))
    }

    /// A layer with Xavier-uniform weights and a bias of zeros: for sigmoids, and for the projections of attention.
    ///
    /// # Errors
    /// Those of [`Linear::new`].
    pub fn xavier(inputs: usize, outputs: usize, random: &mut Random) -> Result<Self> {
        Self::check(inputs, outputs)?;
        let weight = xavier_uniform(&[outputs, inputs], inputs, outputs, random);
        Self::with_weights(weight, Some(Array1::zeros(outputs).into_dyn()))
    }

    /// Fails unless so many weights fit in memory.
    pub(crate) fn check(inputs: usize, outputs: usize) -> Result<()> {
        if inputs.checked_mul(outputs).is_none_or(|len| len == 0 || len > isize::MAX as usize / size_of::<f32>()) {
            let expected = "at least 1 each, and a product that fits in memory";
            return Err(Error::invalid("inputs, outputs", expected, format!("{inputs}, {outputs}")));
        }
        Ok(())
    }

    /// A layer with given weights, and with a bias or without.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `weight` is `[outputs, inputs]` and `bias` is `[outputs]`, [`Error::Invalid`] without
    /// inputs or outputs.
    pub fn with_weights(weight: ArrayD<f32>, bias: Option<ArrayD<f32>>) -> Result<Self> {
        let &[outputs, inputs] = weight.shape() else {
            return Err(Error::shape("weight", "[outputs, inputs]", weight.shape()));
        };
        Self::check(inputs, outputs)?;
        if let Some(bias) = bias.as_ref().filter(|bias| bias.shape() != [outputs]) {
            return Err(Error::shape("bias", format!("[{outputs}]"), bias.shape()));
        }
        Ok(Self {
            workspace: Workspace::new(),
            weight: Parameter::new(weight),
            bias: bias.map(Parameter::new),
            cache: None,
        })
    }

    /// [outputs, inputs]
    fn size(&self) -> [usize; 2] {
        let shape = self.weight.value().shape();
        [shape[0], shape[1]]
    }

    /// The rows of `[..., inputs]`.
    fn rows(&self, shape: &[usize]) -> Result<usize> {
        let [_, features] = self.size();
        match shape {
            [rows @ .., given] if *given == features && !rows.is_empty() => count("x", rows),
            _ => Err(Error::shape("x", format!("[batch, {features}]"), shape)),
        }
    }

    /// The forward pass with packed weights, of some of the outputs.
    pub(crate) fn product(&self, outputs: Range<usize>, fused: Fused) -> Result<Product> {
        let inputs = self.size()[1];
        let weight = &self.weight.elements()[outputs.start * inputs..outputs.end * inputs];
        let weight = View::new(weight, [outputs.len(), inputs])?.transposed();
        let bias = self.bias.as_ref().map(|bias| bias.elements()[outputs].to_vec());
        Product::new(weight, bias, fused)
    }

    /// Some of the outputs. Keeps nothing for `backward`.
    pub(crate) fn forward_part(
        &mut self,
        outputs: Range<usize>,
        x: &Tensor,
        parallelism: Parallelism<'_>,
    ) -> Result<Tensor> {
        let (x, inputs, batch) = (row_major(x), self.size()[1], self.rows(x.shape())?);
        let kernel = linear::Linear::new(inputs, outputs.len());
        let workspace = self.workspace.grow(kernel.workspace_len(batch, parallelism.threads())?)?;
        let weight = &self.weight.elements()[outputs.start * inputs..outputs.end * inputs];
        let bias = self.bias.as_ref().map(|bias| &bias.elements()[outputs.clone()]);
        let mut y = room(batch * outputs.len());
        kernel.forward(batch, elements(&x), weight, bias, &mut y, workspace, parallelism)?;
        tensor(&[&x.shape()[..x.ndim() - 1], &[outputs.len()]].concat(), y)
    }

    /// Adds to the parameters' gradients, given the gradient of some of the outputs for an input; the gradient of the
    /// input only if there is a vector given for it, to which it is added unless it is empty.
    pub(crate) fn backward_part(
        &mut self,
        outputs: Range<usize>,
        x: &Tensor,
        d_output: &Tensor,
        dx: Option<&mut Vec<f32>>,
        parallelism: Parallelism<'_>,
    ) -> Result<()> {
        let (inputs, batch) = (self.size()[1], self.rows(x.shape())?);
        let is_whole = outputs.len() == self.size()[0];
        check_gradient(d_output, &[&x.shape()[..x.ndim() - 1], &[outputs.len()]].concat())?;
        let (x, dy) = (row_major(x), row_major(d_output));
        let kernel = linear::Linear::new(inputs, outputs.len());
        let workspace = self.workspace.grow(kernel.workspace_len(batch, parallelism.threads())?)?;
        let accumulate_dx = dx.as_ref().is_some_and(|dx| !dx.is_empty());
        let dx = dx.map(|dx| {
            if !accumulate_dx {
                *dx = room(x.len());
            }
            dx.as_mut_slice()
        });
        // Where there is nothing to add to, the kernel writes to the parameters' gradients without reading them.
        let is_cleared = self.weight.is_cleared() && self.bias.as_ref().is_none_or(Parameter::is_cleared);
        let writes = is_whole && is_cleared;
        let weights = outputs.start * inputs..outputs.end * inputs;
        let (weight, dw) = room_for(&mut self.weight, writes);
        let (weight, dw) = (&weight[weights.clone()], Some(&mut dw[weights]));
        let db = self.bias.as_mut().map(|bias| &mut room_for(bias, writes).1[outputs]);
        let gradients = linear::Gradients { dx, dw, db, accumulate_dx, accumulate_parameters: !writes };
        let result = kernel.backward(batch, elements(&x), weight, elements(&dy), gradients, workspace, parallelism);
        if result.is_err() && writes {
            self.weight.zero_gradient();
            if let Some(bias) = &mut self.bias {
                bias.zero_gradient();
            }
        }
        Ok(result?)
    }
}

/// The elements of a parameter, and its gradient to be written, or to be added to.
fn room_for(parameter: &mut Parameter, writes: bool) -> (&[f32], &mut [f32]) {
    if writes { parameter.elements_and_room() } else { parameter.elements_and_gradient() }
}

impl Layer for Linear {
    fn kind(&self) -> &'static str {
        "Linear"
    }

    fn details(&self) -> String {
        let [outputs, inputs] = self.size();
        format!("{inputs}->{outputs}{}", if self.bias.is_some() { "" } else { " without bias" })
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        let [outputs, _] = self.size();
        let shape = single_shape(inputs)?;
        self.rows(shape)?;
        Ok([&shape[..shape.len() - 1], &[outputs]].concat())
    }

    fn flops(&self, inputs: &[Vec<usize>]) -> Result<f64> {
        let outputs: f64 = self.output_shape(inputs)?.iter().map(|&size| size as f64).product();
        Ok(2.0 * outputs * self.size()[1] as f64)
    }

    fn role(&self) -> Role {
        Role::Compute { activation: true, residual: true }
    }

    fn kernel(&self, _: &[Vec<usize>], fused: Fused) -> Result<Box<dyn Kernel>> {
        Ok(Box::new(self.product(0..self.size()[0], fused)?))
    }

    /// x [..., inputs] -> y [..., outputs]
    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let x = single(inputs)?;
        let y = self.forward_part(0..self.size()[0], x, parallelism)?;
        self.cache = Some(x.clone());
        Ok(y)
    }

    /// dx = dy weight;  dweight += dyᵀ x;  dbias += sum of dy over the batch
    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let (x, mut dx) = (self.cache.clone().ok_or(Error::NoForward)?, Vec::new());
        self.backward_part(0..self.size()[0], &x, d_output, Some(&mut dx), parallelism)?;
        self.cache = None;
        Ok(vec![tensor(x.shape(), dx)?])
    }

    fn backward_parameters(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<()> {
        let x = self.cache.clone().ok_or(Error::NoForward)?;
        self.backward_part(0..self.size()[0], &x, d_output, None, parallelism)?;
        self.cache = None;
        Ok(())
    }

    fn visit(&mut self, prefix: &str, visitor: &mut dyn FnMut(&str, &mut Parameter)) {
        visitor(&format!("{prefix}weight"), &mut self.weight);
        if let Some(bias) = &mut self.bias {
            visitor(&format!("{prefix}bias"), bias);
        }
    }
}

/// The forward pass with packed weights: `y = activation(x weightᵀ + bias + residual)`.
pub(crate) struct Product {
    /// [inputs, outputs]
    weight: PackedRhs,
    bias: Option<Vec<f32>>,
    fused: Fused,
}

impl Product {
    /// With `weight [inputs, outputs]`.
    pub fn new(weight: View<'_, f32, 2>, bias: Option<Vec<f32>>, fused: Fused) -> Result<Self> {
        Ok(Self { weight: PackedRhs::new(weight, None)?, bias, fused })
    }

    /// Floats of scratch memory for so many rows.
    pub fn scratch_len(&self, rows: usize, slots: usize) -> Result<usize> {
        let [features, outputs] = self.weight.shape();
        Ok(gemm::workspace_len(rows, outputs, features, slots)?)
    }

    /// Computes so many rows.
    pub fn run_rows(
        &self,
        rows: usize,
        x: &[f32],
        residual: Option<&[f32]>,
        y: &mut [f32],
        workspace: &mut [f32],
        parallelism: Parallelism<'_>,
    ) -> Result<()> {
        let [features, outputs] = self.weight.shape();
        let epilogue = Epilogue {
            bias: self.bias.as_deref().map_or(Bias::None, Bias::Columns),
            residual: residual.map(|residual| View::new(residual, [rows, outputs])).transpose()?,
            activation: self.fused.activation,
        };
        let mut y = ViewMut::new(y, [rows, outputs])?;
        let gemm = Gemm { epilogue, ..Gemm::default() };
        gemm.run_packed_rhs(View::new(x, [rows, features])?, &self.weight, &mut y, workspace, parallelism)?;
        Ok(())
    }
}

/// The rows of `[..., features]`.
fn rows(shape: &[usize]) -> Result<usize> {
    shape.split_last().map_or(Ok(0), |(_, rows)| count("x", rows))
}

impl Kernel for Product {
    fn workspace_len(&self, inputs: &[Vec<usize>], slots: usize) -> Result<usize> {
        self.scratch_len(rows(&inputs[0])?, slots)
    }

    fn run(&self, call: Call<'_>) -> Result<()> {
        let residual = self.fused.residual.then(|| call.inputs.get(1));
        let rows = rows(&call.shapes[0])?;
        self.run_rows(rows, call.inputs.get(0), residual, call.y, call.workspace, call.parallelism)
    }
}
