//! The fully connected layer.
//!
//! ```text
//! y[n, o] = bias[o] + sum over i of  x[n, i] * weight[o, i]
//! ```

use kernels::Parallelism;
use ndarray::{Array1, ArrayD};

use crate::error::{Error, Result};
use crate::init::kaiming_uniform;
use crate::layer::{Layer, Parameter, single};
use crate::random::Random;
use crate::shim;
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
    d_weight: Vec<f32>,
    d_bias: Vec<f32>,
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
            d_weight: vec![0.0; weight.len()],
            d_bias: vec![0.0; bias.as_ref().map_or(0, ArrayD::len)],
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

    /// The cached input, and `d_output` if it has the shape of the output.
    fn check_backward(&self, d_output: &Tensor) -> Result<(Tensor, Tensor)> {
        let x = self.cache.clone().ok_or(Error::NoForward)?;
        check_gradient(d_output, &[x.shape()[0], self.size()[0]])?;
        Ok((x, row_major(d_output)))
    }

    fn accumulate(&mut self, x: &Tensor, dy: &Tensor, parallelism: Parallelism<'_>) -> Result<()> {
        let _ = parallelism;
        let [outputs, inputs] = self.size();
        let db = self.bias.is_some().then_some(self.d_bias.as_mut_slice());
        let sizes = [x.shape()[0], inputs, outputs];
        shim::linear_backward_weights(elements(x), elements(dy), &mut self.d_weight, db, sizes);
        self.weight.accumulate(&self.d_weight)?;
        if let Some(bias) = &mut self.bias {
            bias.accumulate(&self.d_bias)?;
        }
        self.cache = None;
        Ok(())
    }
}

impl Layer for Linear {
    fn kind(&self) -> &'static str {
        "Linear"
    }

    /// x [batch, inputs] -> y [batch, outputs]
    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let _ = parallelism;
        let x = row_major(single(inputs)?);
        let [outputs, inputs] = self.size();
        if x.ndim() != 2 || x.shape()[1] != inputs {
            return Err(Error::shape("x", format!("[batch, {inputs}]"), x.shape()));
        }
        let batch = x.shape()[0];
        let mut y = vec![0.0; batch * outputs];
        let bias = self.bias.as_ref().map(Parameter::elements);
        shim::linear_forward(elements(&x), self.weight.elements(), bias, &mut y, [batch, inputs, outputs]);
        self.cache = Some(x);
        tensor(&[batch, outputs], y)
    }

    /// dx = dy weight;  dweight += dyᵀ x;  dbias += sum of dy over the batch
    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        let (x, dy) = self.check_backward(d_output)?;
        let [outputs, inputs] = self.size();
        let mut dx = vec![0.0; x.len()];
        shim::linear_backward_data(elements(&dy), self.weight.elements(), &mut dx, [x.shape()[0], inputs, outputs]);
        self.accumulate(&x, &dy, parallelism)?;
        Ok(vec![tensor(x.shape(), dx)?])
    }

    fn backward_parameters(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<()> {
        let (x, dy) = self.check_backward(d_output)?;
        self.accumulate(&x, &dy, parallelism)
    }

    fn visit(&mut self, prefix: &str, visitor: &mut dyn FnMut(&str, &mut Parameter)) {
        visitor(&format!("{prefix}weight"), &mut self.weight);
        if let Some(bias) = &mut self.bias {
            visitor(&format!("{prefix}bias"), bias);
        }
    }
}
