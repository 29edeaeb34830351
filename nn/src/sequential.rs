//! The graph that is a line.

use kernels::Parallelism;
use ndarray::ArrayD;

use crate::attention::MultiHeadAttention;
use crate::error::Result;
use crate::graph::{Graph, NodeId};
use crate::layer::{Layer, Parameter};
use crate::tensor::Tensor;

/// Layers one behind the other, named `0`, `1`, `2`, ...: `x ──► 0 ──► 1 ──► 2 ──► y`.
///
/// ```
/// use nn::{Layer, Linear, Random, ReLU, Sequential};
/// let random = &mut Random::new(0);
/// let mut network = Sequential::new()
///     .with(Linear::new(784, 100, random)?)?
///     .with(ReLU::default())?
///     .with(Linear::new(100, 10, random)?)?;
/// let mut names = Vec::new();
/// network.visit("", &mut |name, _| names.push(name.to_string()));
/// assert_eq!(names, ["0.weight", "0.bias", "2.weight", "2.bias"]);
/// # Ok::<(), nn::Error>(())
/// ```
#[derive(Default)]
pub struct Sequential {
    graph: Graph,
    last: Option<NodeId>,
    layers: usize,
}

impl Sequential {
    /// A line without layers.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a layer, named by its place.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) when an earlier layer was given that name.
    pub fn with(self, layer: impl Layer + 'static) -> Result<Self> {
        let name = self.layers.to_string();
        self.with_named(&name, layer)
    }

    /// Appends a layer under a name of its own, as torchvision's `features` and `classifier`.
    ///
    /// # Errors
    /// [`Error::Invalid`](crate::Error::Invalid) for a name that is taken.
    pub fn with_named(mut self, name: &str, layer: impl Layer + 'static) -> Result<Self> {
        let from = match self.last {
            Some(last) => last,
            None => self.graph.input("x")?,
        };
        self.last = Some(self.graph.add(name, layer, &[from])?);
        self.layers += 1;
        Ok(self)
    }

    /// The line in the language of Graphviz, see [`Graph::to_dot`].
    pub fn to_dot(&self) -> String {
        self.graph.to_dot()
    }
}

impl Layer for Sequential {
    fn kind(&self) -> &'static str {
        "Sequential"
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        self.graph.output_shape(inputs)
    }

    fn flops(&self, inputs: &[Vec<usize>]) -> Result<f64> {
        self.graph.flops(inputs)
    }

    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        self.graph.forward(inputs, parallelism)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        self.graph.backward(d_output, parallelism)
    }

    fn backward_parameters(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<()> {
        self.graph.backward_parameters(d_output, parallelism)
    }

    fn visit(&mut self, prefix: &str, visitor: &mut dyn FnMut(&str, &mut Parameter)) {
        self.graph.visit(prefix, visitor);
    }

    fn visit_buffers(&mut self, prefix: &str, visitor: &mut dyn FnMut(&str, &mut ArrayD<f32>)) {
        self.graph.visit_buffers(prefix, visitor);
    }

    fn visit_counters(&mut self, prefix: &str, visitor: &mut dyn FnMut(&str, &mut u64)) {
        self.graph.visit_counters(prefix, visitor);
    }

    fn visit_attention(&self, prefix: &str, visitor: &mut dyn FnMut(&str, &MultiHeadAttention)) {
        self.graph.visit_attention(prefix, visitor);
    }

    fn set_training(&mut self, training: bool) {
        self.graph.set_training(training);
    }

    fn as_graph(&self) -> Option<&Graph> {
        Some(&self.graph)
    }
}
