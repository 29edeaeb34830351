//! A network as its layers alone, graphs in graphs taken apart: what is drawn, listed and planned.

use std::time::Duration;

use crate::error::Error;
use crate::graph::Graph;
use crate::layer::Layer;

/// A layer that is no graph, or an input of the network.
pub(crate) struct Leaf<'a> {
    /// The names of the graphs that it stands in, from the outside, then its own.
    pub path: Vec<&'a str>,
    /// None for an input of the network.
    pub layer: Option<&'a dyn Layer>,
    /// How many numbers it learns.
    pub parameters: usize,
    /// The leaves whose values it takes.
    pub from: Vec<usize>,
    /// What its last `forward` and its last `backward` took.
    pub times: [Duration; 2],
}

impl Leaf<'_> {
    /// The path as parameters have it: `inception3a.branch1.conv`.
    pub fn name(&self) -> String {
        self.path.join(".")
    }

    /// An error, said to have happened in this layer if the network is more than one layer.
    pub fn within(&self, error: Error) -> Error {
        if self.path.is_empty() { error } else { error.within(&self.name(), self.kind()) }
    }

    pub fn kind(&self) -> &'static str {
        self.layer.map_or("Input", Layer::kind)
    }
}

/// The leaves of a layer in an order of computing, and the one whose value is the output; none for an empty graph. A
/// layer that is no graph takes so many inputs, each of them an `x`.
pub(crate) fn leaves(layer: &dyn Layer, parameters: usize, inputs: usize) -> (Vec<Leaf<'_>>, Option<usize>) {
    let mut leaves = Vec::new();
    let output = match layer.as_graph() {
        Some(graph) => take_apart(graph, &[], None, &mut leaves),
        None => {
            let times = Default::default();
            for _ in 0..inputs {
                leaves.push(Leaf { path: vec!["x"], layer: None, parameters: 0, from: Vec::new(), times });
            }
            leaves.push(Leaf { path: Vec::new(), layer: Some(layer), parameters, from: (0..inputs).collect(), times });
            Some(inputs)
        }
    };
    (leaves, output)
}

/// Adds the leaves of a graph whose inputs are those leaves of the graph around it, or else inputs of the network. The
/// leaf of its output.
fn take_apart<'a>(
    graph: &'a Graph,
    path: &[&'a str],
    inputs: Option<&[usize]>,
    leaves: &mut Vec<Leaf<'a>>,
) -> Option<usize> {
    let mut outer = inputs.map(|inputs| inputs.iter());
    // The leaf of each node's value.
    let mut values: Vec<usize> = Vec::new();
    for ((name, layer, parameters, from), times) in graph.nodes().zip(graph.times()) {
        let from: Vec<usize> = from.iter().map(|id| values[id.0]).collect();
        let path: Vec<&str> = path.iter().copied().chain([name]).collect();
        let inner = layer.and_then(Layer::as_graph);
        let value = match (layer, inner, &mut outer) {
            (None, _, Some(outer)) => *outer.next()?,
            (Some(_), Some(inner), _) => take_apart(inner, &path, Some(&from), leaves)?,
            _ => {
                leaves.push(Leaf { path, layer, parameters, from, times });
                leaves.len() - 1
            }
        };
        values.push(value);
    }
    values.last().copied()
}
