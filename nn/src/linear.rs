//! The fully connected layer.
//!
//! ```text
//! y[n, o] = bias[o] + sum over i of  x[n, i] * weight[o, i]
//! ```

use kernels::{Parallelism, Workspace, linear};
use ndarray::{Array1, ArrayD};

use crate::error::{Error, Result};
use crate::init::kaiming_uniform;
use crate::layer::{Layer, Parameter, single};
use crate::random::Random;
use crate::tensor::{Tensor, check_gradient, elements, row_major, tensor};

/// `y = x weightᵀ + bias` over rows `[batch, inputs]`, with `weight [outputs, inputs]` and `bias [outputs]`.
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
        if inputs.checked_mul(outputs).is_none_or(|len| len == 0 || len > isize::MAX as usize / size_of::<f32>()) {
            let expected = "at least 1 each, and a product that fits in memory";
            return Err(Error::invalid("inputs, outputs", expected, format!("{inputs}, {outputs}")));
        }
        let weight = kaiming_uniform(&[outputs, inputs], inputs, random);
        Self::with_weights(weight, Some(Array1::zeros(outputs).into_dyn()))
    }

    /// A layer with given weights, and with a bias or without.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `weight` is `[outputs, inputs]` and `bias` is `[outputs]`.
    pub fn with_weights(weight: ArrayD<f32>, bias: Option<ArrayD<f32>>) -> Result<Self> {
        let &[outputs, _] = weight.shape() else {
            return Err(Error::shape("weight", "[outputs, inputs]", weight.shape()));
        };
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

    /// Adds to the parameters' gradients; the gradient of the input only if there is room given for it.
    fn run_backward(
        &mut self,
        d_output: &Tensor,
        dx: Option<&mut Vec<f32>>,
        parallelism: Parallelism<'_>,
    ) -> Result<Vec<usize>> {
        let x = self.cache.clone().ok_or(Error::NoForward)?;
        let ([outputs, inputs], batch) = (self.size(), x.shape()[0]);
        check_gradient(d_output, &[batch, outputs])?;
        let dy = row_major(d_output);
        let kernel = linear::Linear::new(inputs, outputs);
        let workspace = self.workspace.grow(kernel.workspace_len(batch, parallelism.threads())?)?;
        let dx = dx.map(|dx| {
            dx.resize(x.len(), 0.0);
            dx.as_mut_slice()
        });
        let (weight, dw) = self.weight.elements_and_gradient();
        let db = self.bias.as_mut().map(|bias| bias.elements_and_gradient().1);
        let gradients = linear::Gradients { dx, dw: Some(dw), db, accumulate_dx: false, accumulate_parameters: true };
        kernel.backward(batch, elements(&x), weight, elements(&dy), gradients, workspace, parallelism)?;
        self.cache = None;
        Ok(x.shape().to_vec())
    }
}

impl Layer for Linear {
    fn kind(&self) -> &'static str {
        "Linear"
    }

    /// x [batch, inputs] -> y [batch, outputs]
    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let x = row_major(single(inputs)?);
        let [outputs, inputs] = self.size();
        if x.ndim() != 2 || x.shape()[1] != inputs {
            return Err(Error::shape("x", format!("[batch, {inputs}]"), x.shape()));
        }
        let batch = x.shape()[0];
        let kernel = linear::Linear::new(inputs, outputs);
        let workspace = self.workspace.grow(kernel.workspace_len(batch, parallelism.threads())?)?;
        let (weight, bias) = (self.weight.elements(), self.bias.as_ref().map(Parameter::elements));
        let mut y = vec![0.0; batch * outputs];
        kernel.forward(batch, elements(&x), weight, bias, &mut y, workspace, parallelism)?;
        self.cache = Some(x);
        tensor(&[batch, outputs], y)
    }

    /// dx = dy weight;  dweight += dyᵀ x;  dbias += sum of dy over the batch
    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let mut dx = Vec::new();
        let x_shape = self.run_backward(d_output, Some(&mut dx), parallelism)?;
        Ok(vec![tensor(&x_shape, dx)?])
    }

    fn backward_parameters(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<()> {
        self.run_backward(d_output, None, parallelism).map(drop)
    }

    fn visit(&mut self, prefix: &str, visitor: &mut dyn FnMut(&str, &mut Parameter)) {
        visitor(&format!("{prefix}weight"), &mut self.weight);
        if let Some(bias) = &mut self.bias {
            visitor(&format!("{prefix}bias"), bias);
        }
    }
}
