//! A network's layers, joined where one kernel can do the work of several, with weights packed.

use std::time::Duration;

use kernels::{Activation, activation, sum};

use super::{Call, Fused, Kernel, Role};
use crate::error::{Error, Result};
use crate::layer::Layer;
use crate::leaves::{Leaf, leaves};
use crate::time::LayerTime;

/// What runs.
pub(crate) enum Task {
    Kernel(Box<dyn Kernel>),
    Activation(Activation),
    Sum,
    Concat,
}

/// A kernel, the leaves that it takes and the one whose value it computes.
pub(crate) struct Step {
    pub task: Task,
    /// The path of its first layer.
    pub name: String,
    /// The kinds of the layers that it does the work of.
    pub kind: String,
    pub inputs: Vec<usize>,
    /// The leaves whose shapes the inputs have: those that only show others' elements under a shape of their own, too.
    pub shown: Vec<usize>,
    pub output: usize,
}

/// The steps of a network in an order of computing.
pub(crate) struct Program {
    pub steps: Vec<Step>,
    /// The leaf whose elements each leaf has: itself, unless it is a view.
    pub source: Vec<usize>,
    /// The leaf of each input.
    pub inputs: Vec<usize>,
    pub output: usize,
}

impl Program {
    /// Plans a layer for inputs like those of the given shapes; nothing if a layer has no kernel.
    pub fn new(layer: &dyn Layer, hint: &[Vec<usize>]) -> Result<Option<Self>> {
        let (leaves, Some(output)) = leaves(layer, 0, hint.len()) else { return Ok(None) };
        let role = |at: usize| leaves[at].layer.map_or(Role::View, Layer::role);
        if (0..leaves.len()).any(|at| role(at) == Role::Opaque) {
            return Ok(None);
        }
        let shapes = shapes(&leaves, hint)?;
        let mut source: Vec<usize> = (0..leaves.len()).collect();
        let mut readers = vec![Vec::new(); leaves.len()];
        for (at, leaf) in leaves.iter().enumerate() {
            if let (Role::View, Some(&from)) = (role(at), leaf.from.first()) {
                source[at] = source[from];
            }
            leaf.from.iter().for_each(|&from| readers[from].push(at));
        }
        // The one reader of a value that nobody else needs.
        let only_reader = |at: usize| match readers[at][..] {
            [reader] if at != output => Some(reader),
            _ => None,
        };

        let mut taken = vec![false; leaves.len()];
        let mut steps: Vec<Step> = Vec::new();
        for (at, leaf) in leaves.iter().enumerate() {
            let Some(layer) = leaf.layer else { continue };
            let name = leaf.name();
            let kind = leaf.kind().to_string();
            let mut step =
                Step { task: Task::Sum, name, kind, inputs: leaf.from.clone(), shown: Vec::new(), output: at };
            match role(at) {
                _ if taken[at] => continue,
                Role::Opaque | Role::View => continue,
                Role::Sum => {}
                Role::Concat => step.task = Task::Concat,
                Role::Activation(activation) => step.task = Task::Activation(activation),
                Role::Compute { activation, residual } => {
                    let mut fused = Fused::default();
                    let from: Vec<Vec<usize>> = leaf.from.iter().map(|&from| shapes[from].clone()).collect();
                    // What follows the layer is taken over by the layer that ends the step, so far.
                    let mut last = at;
                    let mut next = only_reader(at);
                    let scale = next.and_then(|next| leaves[next].layer?.channel_scale());
                    let scale = scale.filter(|scale| layer.takes_scale(scale.scale.len()));
                    if let (Some(norm), Some(_)) = (next, &scale) {
                        step.output = norm;
                        step.kind = format!("{} + {}", step.kind, leaves[norm].kind());
                        taken[norm] = true;
                        last = norm;
                        next = only_reader(norm);
                    }
                    if let Some(sum) = next.filter(|&next| residual && role(next) == Role::Sum && !taken[next])
                        && let [a, b] = leaves[sum].from[..]
                    {
                        fused.residual = true;
                        step.inputs.push(if a == last { b } else { a });
                        step.output = sum;
                        step.kind += " + Sum";
                        taken[sum] = true;
                        next = only_reader(sum);
                    }
                    if let Some(next) = next.filter(|_| activation)
                        && let Role::Activation(function) = role(next)
                    {
                        fused.activation = function;
                        step.output = next;
                        step.kind = format!("{} + {}", step.kind, leaves[next].kind());
                        taken[next] = true;
                    }
                    let kernel = match &scale {
                        Some(scale) => layer.scaled_kernel(&from, fused, scale),
                        None => layer.kernel(&from, fused),
                    };
                    step.task = Task::Kernel(kernel.map_err(|error| leaf.within(error))?);
                }
            }
            steps.push(step);
        }
        // A fused step runs where its last layer stood: what it takes besides is there by then.
        steps.sort_by_key(|step| step.output);
        for step in &mut steps {
            step.shown = step.inputs.clone();
            step.inputs.iter_mut().for_each(|input| *input = source[*input]);
        }
        let inputs = (0..leaves.len()).filter(|&at| leaves[at].layer.is_none()).collect();
        Ok(Some(Self { steps, source, inputs, output }))
    }

    /// The times of steps under the names of their layers. What is no step is the copy of a value to the output.
    pub fn name_times(&self, times: &[(Option<usize>, Duration)]) -> Vec<LayerTime> {
        let time = |&(step, forward): &(Option<usize>, Duration)| {
            let (name, kind) = match step {
                Some(at) => (self.steps[at].name.clone(), self.steps[at].kind.clone()),
                None => (String::from("output"), String::from("copy")),
            };
            LayerTime { name, kind, forward, backward: Duration::ZERO }
        };
        times.iter().map(time).collect()
    }
}

/// The shape of each leaf's value.
pub(crate) fn shapes(leaves: &[Leaf<'_>], inputs: &[Vec<usize>]) -> Result<Vec<Vec<usize>>> {
    let expected = leaves.iter().filter(|leaf| leaf.layer.is_none()).count();
    if inputs.len() != expected {
        return Err(Error::invalid("inputs", format!("{expected} tensors"), inputs.len()));
    }
    let mut inputs = inputs.iter();
    let mut shapes: Vec<Vec<usize>> = Vec::with_capacity(leaves.len());
    for leaf in leaves {
        let shape = match leaf.layer {
            None => inputs.next().cloned().unwrap_or_default(),
            Some(layer) => {
                let from: Vec<Vec<usize>> = leaf.from.iter().map(|&from| shapes[from].clone()).collect();
                layer.output_shape(&from).map_err(|error| leaf.within(error))?
            }
        };
        shapes.push(shape);
    }
    Ok(shapes)
}

impl Task {
    /// Floats of scratch memory.
    pub fn workspace_len(&self, inputs: &[Vec<usize>], slots: usize) -> Result<usize> {
        match self {
            Self::Kernel(kernel) => kernel.workspace_len(inputs, slots),
            _ => Ok(0),
        }
    }

    /// Computes the output of a step. An activation in place has no inputs.
    pub fn run(&self, call: Call<'_>) -> Result<()> {
        match self {
            Self::Kernel(kernel) => kernel.run(call)?,
            Self::Activation(function) if call.inputs.is_empty() => {
                activation::forward_in_place(*function, call.y, call.parallelism)?;
            }
            Self::Activation(function) => {
                activation::forward(*function, call.inputs.get(0), call.y, call.parallelism)?;
            }
            Self::Sum => {
                // Two at a time: a list of all would have to be allocated.
                let terms = call.inputs.len();
                match terms {
                    0 | 1 => call.y.copy_from_slice(call.inputs.get(0)),
                    _ => sum::forward(&[call.inputs.get(0), call.inputs.get(1)], call.y, call.parallelism)?,
                }
                for index in 2..terms {
                    sum::add(call.inputs.get(index), call.y, call.parallelism)?;
                }
            }
            Self::Concat => {
                let mut at = 0;
                let batch = call.shapes[0][0];
                let row = call.y.len() / batch.max(1);
                for index in 0..call.inputs.len() {
                    let part = call.inputs.get(index);
                    let len = part.len() / batch.max(1);
                    for n in 0..batch {
                        // By all threads, which a copy of slices is not.
                        sum::forward(&[&part[n * len..][..len]], &mut call.y[n * row + at..][..len], call.parallelism)?;
                    }
                    at += len;
                }
            }
        }
        Ok(())
    }
}
