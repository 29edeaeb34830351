//! A matrix that rows are multiplied with.
//!
//! ```text
//! y[n, o] = sum over i of  x[n, i] * weight[i, o]       dx = dy weightᵀ,   dweight += xᵀ dy
//! ```

use kernels::gemm::{Gemm, workspace_len};
use kernels::{Parallelism, View, ViewMut, Workspace};

use crate::error::{Error, Result};
use crate::inference::{Fused, Kernel, Role};
use crate::init::xavier_uniform;
use crate::layer::{Layer, Parameter, bare_name, single, single_shape};
use crate::linear::{Linear, Product};
use crate::random::Random;
use crate::tensor::{Tensor, check_gradient, elements, row_major, tensor};

/// `y = x weight` over rows `[batch, inputs]`, with `weight [inputs, outputs]`: what [`Linear`] does, with the matrix
/// the other way around and without a bias, as models hold it that have a matrix instead of a layer, CLIP's
/// `text_projection`. The parameter has the name of the layer.
///
/// ```
/// use nn::{Layer, Parallelism, Projection, Random, tensor};
/// let mut projection = Projection::new(3, 2, &mut Random::new(0))?;
/// projection.visit("proj.", &mut |name, parameter| assert_eq!((name, parameter.value().shape()), ("proj", &[3, 2][..])));
/// let x = tensor(&[1, 3], vec![1.0, 2.0, 3.0])?;
/// assert_eq!(projection.forward(&[&x], Parallelism::Serial)?.shape(), [1, 2]);
/// # Ok::<(), nn::Error>(())
/// ```
pub struct Projection {
    weight: Parameter,
    workspace: Workspace,
    /// The last input.
    cache: Option<Tensor>,
}

impl Projection {
    /// A layer with Xavier-uniform weights.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there are no inputs or outputs, or more weights than memory can hold.
    pub fn new(inputs: usize, outputs: usize, random: &mut Random) -> Result<Self> {
        Linear::check(inputs, outputs)?;
        let weight = Parameter::new(xavier_uniform(&[inputs, outputs], inputs, outputs, random));
        Ok(Self { weight, workspace: Workspace::new(), cache: None })
    }

    /// [inputs, outputs]
    fn size(&self) -> [usize; 2] {
        let shape = self.weight.value().shape();
        [shape[0], shape[1]]
    }

    fn rows(&self, shape: &[usize]) -> Result<usize> {
        let [inputs, _] = self.size();
        match *shape {
            [rows, given] if given == inputs => Ok(rows),
            _ => Err(Error::shape("x", format!("[batch, {inputs}]"), shape)),
        }
    }
}

impl Layer for Projection {
    fn kind(&self) -> &'static str {
        "Projection"
    }

    fn details(&self) -> String {
        let [inputs, outputs] = self.size();
        format!("{inputs}->{outputs}")
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        self.rows(single_shape(inputs)?).map(|rows| vec![rows, self.size()[1]])
    }

    fn flops(&self, inputs: &[Vec<usize>]) -> Result<f64> {
        Ok(2.0 * self.rows(single_shape(inputs)?)? as f64 * self.weight.value().len() as f64)
    }

    fn role(&self) -> Role {
        Role::Compute { activation: true, residual: true }
    }

    fn kernel(&self, _: &[Vec<usize>], fused: Fused) -> Result<Box<dyn Kernel>> {
        let weight = View::new(self.weight.elements(), self.size())?;
        Ok(Box::new(Product::new(weight, None, fused)?))
    }

    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let x = row_major(single(inputs)?);
        let (size @ [inputs, outputs], rows) = (self.size(), self.rows(x.shape())?);
        let workspace = self.workspace.grow(workspace_len(rows, outputs, inputs, parallelism.threads())?)?;
        let mut y = vec![0.0; rows * outputs];
        let (lhs, rhs) = (View::new(elements(&x), [rows, inputs])?, View::new(self.weight.elements(), size)?);
        let mut to = ViewMut::new(&mut y, [rows, outputs])?;
        Gemm::default().run(lhs, rhs, &mut to, workspace, parallelism)?;
        self.cache = Some(x);
        tensor(&[rows, outputs], y)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let x = self.cache.clone().ok_or(Error::NoForward)?;
        let (size @ [inputs, outputs], rows) = (self.size(), x.shape()[0]);
        check_gradient(d_output, &[rows, outputs])?;
        let dy = row_major(d_output);
        let of_data = workspace_len(rows, inputs, outputs, parallelism.threads())?;
        let of_weights = workspace_len(inputs, outputs, rows, parallelism.threads())?;
        let workspace = self.workspace.grow(of_data.max(of_weights))?;
        let dy = View::new(elements(&dy), [rows, outputs])?;
        let mut dx = vec![0.0; x.len()];
        let (weight, gradient) = self.weight.elements_and_gradient();
        let mut to = ViewMut::new(&mut dx, [rows, inputs])?;
        Gemm::default().run(dy, View::new(weight, size)?.transposed(), &mut to, workspace, parallelism)?;
        let x_transposed = View::new(elements(&x), [rows, inputs])?.transposed();
        let adding = Gemm { accumulate: true, ..Gemm::default() };
        adding.run(x_transposed, dy, &mut ViewMut::new(gradient, size)?, workspace, parallelism)?;
        self.cache = None;
        Ok(vec![tensor(&[rows, inputs], dx)?])
    }

    fn visit(&mut self, prefix: &str, visitor: &mut dyn FnMut(&str, &mut Parameter)) {
        visitor(bare_name(prefix), &mut self.weight);
    }
}
