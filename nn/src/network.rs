//! A network as its user holds it: one input, one output, and the threads that it may use.

use kernels::Parallelism;

use crate::error::{Error, Result};
use crate::layer::{Layer, Parameter};
use crate::tensor::Tensor;

/// A layer, most often a [`Sequential`](crate::Sequential) or a [`Graph`](crate::Graph), that runs on the current rayon
/// pool unless it is told otherwise. Results are the same to the last bit for any number of threads.
///
/// ```
/// use nn::{Linear, Network, Random, tensor};
/// let mut network = Network::new(Linear::new(3, 2, &mut Random::new(0))?);
/// network.set_parallelism(kernels::Parallelism::Serial);
/// assert_eq!(network.parameter_count(), 8);
/// assert_eq!(network.forward(&tensor(&[1, 3], vec![1.0, 2.0, 3.0])?)?.shape(), [1, 2]);
/// # Ok::<(), nn::Error>(())
/// ```
pub struct Network {
    layer: Box<dyn Layer>,
    parallelism: Parallelism<'static>,
}

impl Network {
    /// A network that runs on the current rayon pool.
    pub fn new(layer: impl Layer + 'static) -> Self {
        Self { layer: Box::new(layer), parallelism: Parallelism::Current }
    }

    /// Says who does the work from now on.
    pub fn set_parallelism(&mut self, parallelism: Parallelism<'static>) {
        self.parallelism = parallelism;
    }

    /// Who does the work.
    pub(crate) fn parallelism(&self) -> Parallelism<'static> {
        self.parallelism
    }

    /// The output for an input.
    ///
    /// # Errors
    /// Those of the layers, with the layer's name.
    pub fn forward(&mut self, x: &Tensor) -> Result<Tensor> {
        self.layer.forward(&[x], self.parallelism)
    }

    /// Adds to the gradients of the parameters, given the gradient of the last output.
    ///
    /// # Errors
    /// [`Error::NoForward`] without a `forward` before, [`Error::Shape`] when `d_output` has not the output's shape.
    pub fn backward(&mut self, d_output: &Tensor) -> Result<()> {
        self.layer.backward_parameters(d_output, self.parallelism)
    }

    /// As [`Network::backward`], and gives the gradient of the input too.
    ///
    /// # Errors
    /// Those of [`Network::backward`].
    pub fn backward_to_input(&mut self, d_output: &Tensor) -> Result<Tensor> {
        self.layer.backward(d_output, self.parallelism)?.pop().ok_or(Error::NoForward)
    }

    /// Shows each parameter under its name: `0.weight`, `0.bias`, ...
    pub fn visit(&mut self, mut visitor: impl FnMut(&str, &mut Parameter)) {
        self.layer.visit("", &mut visitor);
    }

    /// Sets the gradients of all parameters to zero.
    pub fn zero_gradients(&mut self) {
        self.visit(|_, parameter| parameter.zero_gradient());
    }

    /// How many numbers the network learns.
    pub fn parameter_count(&mut self) -> usize {
        let mut count = 0;
        self.visit(|_, parameter| count += parameter.value().len());
        count
    }
}
