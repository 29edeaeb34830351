//! A directed acyclic graph of layers, and backprop through it.
//!
//! ```text
//!     x ──┐
//!         ├─► sum ──┐                 forward:  from the inputs to the output, in order
//!     y ──┘         ├─► product       backward: from the output to the inputs, in reverse;
//!     z ────────────┘                           gradients meet in a sum where a value is used twice
//! ```
//!
//! A node may only use nodes that are there already, so no cycle can arise and the order of adding is an order of
//! computing. The chain rule is in [`Graph::backward_from`].

use std::time::{Duration, Instant};

use kernels::Parallelism;
use ndarray::ArrayD;

use crate::attention::MultiHeadAttention;
use crate::error::{Error, Result};
use crate::inference::Role;
use crate::layer::{Layer, Parameter};
use crate::memory::{is_pass, recycle, room};
use crate::tensor::{Tensor, elements, in_order, tensor};

/// A node of a [`Graph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId(pub(crate) usize);

struct Node {
    name: String,
    /// None for an input of the graph.
    layer: Option<Box<dyn Layer>>,
    /// How many numbers it learns.
    parameters: usize,
    from: Vec<NodeId>,
    value: Option<Tensor>,
    gradient: Option<Tensor>,
    /// What the last `forward` and the last `backward` of the layer took.
    times: [Duration; 2],
}

/// A network of any shape. Its output is the node that was added last.
///
/// ```
/// use kernels::Parallelism;
/// use nn::{Graph, Layer, Product, Sum, tensor};
/// // L = (x + y) z
/// let mut graph = Graph::new();
/// let (x, y, z) = (graph.input("x")?, graph.input("y")?, graph.input("z")?);
/// let sum = graph.add("sum", Sum::default(), &[x, y])?;
/// graph.add("L", Product::default(), &[sum, z])?;
///
/// let scalar = |value| tensor(&[], vec![value]);
/// let l = graph.forward(&[&scalar(-2.0)?, &scalar(5.0)?, &scalar(-4.0)?], Parallelism::Serial)?;
/// assert_eq!(l, scalar(-12.0)?);
/// let gradients = graph.backward(&scalar(1.0)?, Parallelism::Serial)?;
/// assert_eq!(gradients, [scalar(-4.0)?, scalar(-4.0)?, scalar(3.0)?]);
/// assert_eq!(graph.gradient(sum), Some(&scalar(-4.0)?));
/// # Ok::<(), nn::Error>(())
/// ```
#[derive(Default)]
pub struct Graph {
    nodes: Vec<Node>,
}

impl Graph {
    /// A graph without nodes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an input. `forward` takes the inputs in the order in which they were added.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name that is taken.
    pub fn input(&mut self, name: &str) -> Result<NodeId> {
        self.push(name, None, &[])
    }

    /// Adds a layer that takes the values of other nodes.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a name that is taken, or a node that this graph does not have.
    pub fn add(&mut self, name: &str, layer: impl Layer + 'static, from: &[NodeId]) -> Result<NodeId> {
        self.push(name, Some(Box::new(layer)), from)
    }

    fn push(&mut self, name: &str, mut layer: Option<Box<dyn Layer>>, from: &[NodeId]) -> Result<NodeId> {
        if self.nodes.iter().any(|node| node.name == name) {
            return Err(Error::invalid("name", "one that no other node has", name));
        }
        if let Some(NodeId(missing)) = from.iter().find(|id| id.0 >= self.nodes.len()) {
            return Err(Error::invalid("from", "nodes of this graph", missing));
        }
        let mut parameters = 0;
        if let Some(layer) = &mut layer {
            layer.visit("", &mut |_, parameter| parameters += parameter.value().len());
        }
        let (name, from) = (name.to_string(), from.to_vec());
        self.nodes.push(Node { name, layer, parameters, from, value: None, gradient: None, times: Default::default() });
        Ok(NodeId(self.nodes.len() - 1))
    }

    /// What a node computed in the last `forward`.
    pub fn value(&self, node: NodeId) -> Option<&Tensor> {
        self.nodes.get(node.0)?.value.as_ref()
    }

    /// The gradient of a node's value, from the last `backward`.
    pub fn gradient(&self, node: NodeId) -> Option<&Tensor> {
        self.nodes.get(node.0)?.gradient.as_ref()
    }

    /// Backprop: from the gradients of some nodes to those of all that they depend on. The gradients of the graph's
    /// inputs are computed if `to_inputs`; those of parameters are added to.
    ///
    /// # Errors
    /// [`Error::NoForward`] without a `forward` before, [`Error::Shape`] for a gradient that does not fit its node.
    pub fn backward_from(
        &mut self,
        gradients: &[(NodeId, &Tensor)],
        to_inputs: bool,
        parallelism: Parallelism<'_>,
    ) -> Result<()> {
        for node in &mut self.nodes {
            if let Some(gradient) = node.gradient.take() {
                recycle(gradient);
            }
        }
        for &(NodeId(at), gradient) in gradients {
            let node = self.nodes.get_mut(at).ok_or_else(|| Error::invalid("node", "one of this graph", at))?;
            let value = node.value.as_ref().ok_or(Error::NoForward)?;
            if value.shape() != gradient.shape() {
                return Err(Error::shape("gradient", format!("{:?}", value.shape()), gradient.shape()));
            }
            accumulate(&mut node.gradient, gradient.clone(), parallelism)?;
        }
        let nobody_looks = is_pass();
        let learns = self.learning_nodes(to_inputs);
        for at in (0..self.nodes.len()).rev() {
            let (before, [node, ..]) = self.nodes.split_at_mut(at) else { continue };
            let (Some(layer), true) = (&mut node.layer, node.gradient.is_some()) else { continue };
            let kind = layer.kind();
            let within = |error: Error| error.within(&node.name, kind);
            let start = Instant::now();
            if node.from.iter().any(|from| learns[from.0]) {
                let own = if nobody_looks && is_activation(layer.as_ref()) { node.gradient.take() } else { None };
                let inputs = match (own, &node.gradient) {
                    (Some(own), _) => layer.backward_own(own, parallelism).map_err(within)?,
                    (None, Some(gradient)) => layer.backward(gradient, parallelism).map_err(within)?,
                    (None, None) => continue,
                };
                for (from, gradient) in node.from.iter().zip(inputs) {
                    accumulate(&mut before[from.0].gradient, gradient, parallelism)?;
                }
            } else if let Some(gradient) = node.gradient.as_ref().filter(|_| node.parameters > 0) {
                layer.backward_parameters(gradient, parallelism).map_err(within)?;
            }
            node.times[1] = start.elapsed();
            if nobody_looks && let Some(gradient) = node.gradient.take() {
                recycle(gradient);
            }
        }
        Ok(())
    }

    /// Which nodes need a gradient: inputs, if asked for, nodes with parameters, and all that depend on them.
    fn learning_nodes(&self, to_inputs: bool) -> Vec<bool> {
        let mut learns = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let own = if node.layer.is_some() { node.parameters > 0 } else { to_inputs };
            learns.push(own || node.from.iter().any(|from| learns[from.0]));
        }
        learns
    }

    /// The nodes as name, layer (none for an input of the graph), number of parameters, and positions of the nodes
    /// whose values it takes. In the order of adding.
    pub(crate) fn nodes(&self) -> impl Iterator<Item = (&str, Option<&dyn Layer>, usize, &[NodeId])> {
        self.nodes.iter().map(|node| (node.name.as_str(), node.layer.as_deref(), node.parameters, node.from.as_slice()))
    }

    /// What the last `forward` and the last `backward` of each node's layer took.
    pub(crate) fn times(&self) -> impl Iterator<Item = [Duration; 2]> {
        self.nodes.iter().map(|node| node.times)
    }

    /// The shape of every node's value.
    fn shapes(&self, inputs: &[Vec<usize>]) -> Result<Vec<Vec<usize>>> {
        self.check_count(inputs.len())?;
        let mut inputs = inputs.iter();
        let mut shapes: Vec<Vec<usize>> = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let shape = match &node.layer {
                None => inputs.next().cloned().unwrap_or_default(),
                Some(layer) => {
                    let from: Vec<Vec<usize>> = node.from.iter().map(|from| shapes[from.0].clone()).collect();
                    layer.output_shape(&from).map_err(|error| error.within(&node.name, layer.kind()))?
                }
            };
            shapes.push(shape);
        }
        Ok(shapes)
    }

    /// Fails unless so many tensors are what the graph takes.
    fn check_count(&self, given: usize) -> Result<()> {
        let expected = self.nodes.iter().filter(|node| node.layer.is_none()).count();
        if given == expected { Ok(()) } else { Err(Error::invalid("inputs", format!("{expected} tensors"), given)) }
    }

    /// The graph in the language of Graphviz: `dot -Tsvg` draws it. Graphs in the graph are boxes of their own.
    ///
    /// ```
    /// let mut graph = nn::Graph::new();
    /// let x = graph.input("x")?;
    /// graph.add("double", nn::Sum::default(), &[x, x])?;
    /// let text = graph.to_dot();
    /// assert!(text.starts_with("digraph") && text.contains("double") && text.matches("->").count() == 2);
    /// # Ok::<(), nn::Error>(())
    /// ```
    pub fn to_dot(&self) -> String {
        crate::dot::to_dot(self)
    }

    fn output(&self) -> Result<NodeId> {
        let last = self.nodes.len().checked_sub(1);
        last.map(NodeId).ok_or_else(|| Error::invalid("graph", "at least one node", 0))
    }
}

fn is_activation(layer: &dyn Layer) -> bool {
    matches!(layer.role(), Role::Activation(_))
}

/// Adds a term to a sum that may not have begun.
fn accumulate(sum: &mut Option<Tensor>, term: Tensor, parallelism: Parallelism<'_>) -> Result<()> {
    let Some(so_far) = sum.take() else {
        *sum = Some(term);
        return Ok(());
    };
    let (so_far, term) = (in_order(so_far), in_order(term));
    // Whichever nobody else has becomes the sum: addition does not mind the order of two.
    let (own, other) = match so_far.try_into_owned_nocopy() {
        Ok(own) => (Ok(own), term),
        Err(so_far) => (term.try_into_owned_nocopy(), so_far),
    };
    let total = match own {
        Ok(mut own) => {
            kernels::sum::add(elements(&other), own.as_slice_mut().unwrap_or_default(), parallelism)?;
            own.into_shared()
        }
        Err(term) => {
            let mut y = room(term.len());
            kernels::sum::forward(&[elements(&other), elements(&term)], &mut y, parallelism)?;
            tensor(term.shape(), y)?
        }
    };
    recycle(other);
    *sum = Some(total);
    Ok(())
}

impl Layer for Graph {
    fn kind(&self) -> &'static str {
        "Graph"
    }

    fn output_shape(&self, inputs: &[Vec<usize>]) -> Result<Vec<usize>> {
        self.shapes(inputs)?.pop().ok_or_else(|| Error::invalid("graph", "at least one node", 0))
    }

    fn flops(&self, inputs: &[Vec<usize>]) -> Result<f64> {
        let shapes = self.shapes(inputs)?;
        let mut flops = 0.0;
        for node in &self.nodes {
            if let Some(layer) = &node.layer {
                let from: Vec<Vec<usize>> = node.from.iter().map(|from| shapes[from.0].clone()).collect();
                flops += layer.flops(&from)?;
            }
        }
        Ok(flops)
    }

    fn forward(&mut self, inputs: &[&Tensor], parallelism: Parallelism<'_>) -> Result<Tensor> {
        let output = self.output()?;
        self.check_count(inputs.len())?;
        for node in &mut self.nodes {
            if let Some(value) = node.value.take() {
                recycle(value);
            }
        }
        let mut inputs = inputs.iter();
        let nobody_looks = is_pass();
        let mut readers = vec![0; self.nodes.len()];
        self.nodes.iter().flat_map(|node| &node.from).for_each(|from| readers[from.0] += 1);
        for at in 0..self.nodes.len() {
            let (before, [node, ..]) = self.nodes.split_at_mut(at) else { continue };
            node.value = match &mut node.layer {
                None => inputs.next().map(|&x| x.clone()),
                Some(layer) => {
                    let start = Instant::now();
                    // What only this activation reads, it may overwrite; an input is the caller's.
                    let own = match node.from[..] {
                        [from]
                            if nobody_looks
                                && readers[from.0] == 1
                                && before[from.0].layer.is_some()
                                && is_activation(layer.as_ref()) =>
                        {
                            before[from.0].value.take()
                        }
                        _ => None,
                    };
                    let value = match own {
                        Some(x) => layer.forward_own(x, parallelism),
                        None => {
                            let from: Vec<&Tensor> =
                                node.from.iter().filter_map(|from| before[from.0].value.as_ref()).collect();
                            layer.forward(&from, parallelism)
                        }
                    };
                    node.times[0] = start.elapsed();
                    Some(value.map_err(|error| error.within(&node.name, layer.kind()))?)
                }
            };
        }
        self.value(output).cloned().ok_or(Error::NoForward)
    }

    fn backward(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<Vec<Tensor>> {
        self.backward_from(&[(self.output()?, d_output)], true, parallelism)?;
        let mut gradients = Vec::new();
        for node in self.nodes.iter_mut().filter(|node| node.layer.is_none()) {
            // An input that the output does not depend on.
            let zeros = || node.value.as_ref().map(|value| Tensor::zeros(value.raw_dim()));
            // What only the caller has, the caller may add to.
            let gradient = if is_pass() { node.gradient.take() } else { node.gradient.clone() };
            gradients.push(gradient.or_else(zeros).ok_or(Error::NoForward)?);
        }
        Ok(gradients)
    }

    fn backward_parameters(&mut self, d_output: &Tensor, parallelism: Parallelism<'_>) -> Result<()> {
        self.backward_from(&[(self.output()?, d_output)], false, parallelism)
    }

    fn visit_buffers(&mut self, prefix: &str, visitor: &mut dyn FnMut(&str, &mut ArrayD<f32>)) {
        for node in &mut self.nodes {
            if let Some(layer) = &mut node.layer {
                layer.visit_buffers(&format!("{prefix}{}.", node.name), visitor);
            }
        }
    }

    fn visit_counters(&mut self, prefix: &str, visitor: &mut dyn FnMut(&str, &mut u64)) {
        for node in &mut self.nodes {
            if let Some(layer) = &mut node.layer {
                layer.visit_counters(&format!("{prefix}{}.", node.name), visitor);
            }
        }
    }

    fn visit_attention(&self, prefix: &str, visitor: &mut dyn FnMut(&str, &MultiHeadAttention)) {
        for node in &self.nodes {
            if let Some(layer) = &node.layer {
                layer.visit_attention(&format!("{prefix}{}.", node.name), visitor);
            }
        }
    }

    fn set_training(&mut self, training: bool) {
        for node in &mut self.nodes {
            if let Some(layer) = &mut node.layer {
                layer.set_training(training);
            }
        }
    }

    fn as_graph(&self) -> Option<&Graph> {
        Some(self)
    }

    fn visit(&mut self, prefix: &str, visitor: &mut dyn FnMut(&str, &mut Parameter)) {
        for node in &mut self.nodes {
            if let Some(layer) = &mut node.layer {
                layer.visit(&format!("{prefix}{}.", node.name), visitor);
            }
        }
    }
}
