//! From bytes to a network and what it is to learn.
//!
//! ```text
//! byte   0        1..4   then
//!        version  seed   batch  inputs  nodes  loss  rule  the inputs, 4 bytes each  the nodes, 5 bytes each
//! ```
//!
//! Every string of bytes of a known version is a network: an operation that does not fit the value that it is to take
//! becomes another one that does. Values that nobody takes are joined, and a linear layer makes the output of them, so
//! every node matters.

use std::fmt;

use kernels::conv::{Accuracy, Conv2dSpec, Padding};
use kernels::pool::Pool2dSpec;
use nn::{
    AdaptiveAvgPool2d, AvgPool2d, Concat, Conv2d, Flatten, Graph, Layer, LayerNorm, Linear, MaxPool2d, Maximum,
    MeanPositions, Minimum, MultiHeadAttention, NodeId, Product, Random, ReLU, Result, SiLU, Sigmoid, Sum, Tanh,
    ToSequence,
};

use super::layers::Window;
use crate::decode::{Bytes, VERSION};

/// As many bytes as a case can use.
pub const MAX_LEN: usize = 10 + 4 * 3 + 5 * 11;

/// No value has more elements, and no layer multiplies more often.
const MAX_WORK: usize = 1 << 12;

/// What a node computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Of all operands, element by element.
    Sum,
    /// Of both.
    Product,
    /// Of all operands, element by element.
    Minimum,
    /// Of all operands, element by element.
    Maximum,
    /// `max(x, 0)`
    Relu,
    /// `1 / (1 + exp(-x))`
    Sigmoid,
    /// The hyperbolic tangent.
    Tanh,
    /// `x sigmoid(x)`
    Silu,
    /// To so many features.
    Linear(usize),
    /// To so many channels.
    Convolution(usize, Window),
    /// The largest in each window.
    MaxPool(Window),
    /// The mean of each window.
    AveragePool(Window),
    /// The mean of each channel.
    GlobalAverage,
    /// The mean over positions.
    MeanPositions,
    /// Pixels become positions.
    ToSequence,
    /// With so many heads: of a sequence to itself, causal or not, or to the second operand.
    Attention(usize, bool),
    /// Over the last dimension.
    LayerNorm,
    /// Along the second dimension.
    Concat,
    /// All but the batch in one dimension.
    Flatten,
}

/// What is minimised.
#[derive(Clone, Debug, PartialEq)]
pub enum Loss {
    /// Softmax cross-entropy with these labels.
    CrossEntropy(Vec<usize>),
    /// The mean of squared differences from these.
    SquaredError(Vec<f32>),
}

/// Which optimiser takes the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Two steps of descent with momentum and decay.
    Momentum,
    /// The same, where the momentum is about to lead.
    Nesterov,
    /// One step of Adam, the decay in the gradient.
    Adam,
    /// One step of Adam, the decay on the weights.
    AdamW,
}

/// A node: what it computes, of which values, and the shape of what it gives. Inputs compute nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Nothing for an input.
    pub op: Option<Op>,
    /// The values that it takes.
    pub from: Vec<usize>,
    /// Of its value.
    pub shape: Vec<usize>,
}

/// A network, its loss and its optimiser.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// The inputs, and then the layers. The last gives the output.
    pub nodes: Vec<Node>,
    /// What is minimised.
    pub loss: Loss,
    /// What minimises it.
    pub rule: Rule,
    /// Of data and parameters.
    pub seed: u64,
    /// Inputs are eighths, of which many are equal, instead of random floats.
    pub eighths: bool,
}

impl Case {
    /// The case of some bytes, if their version is known.
    pub fn decode(data: &[u8]) -> Option<Self> {
        let mut bytes = Bytes::new(data);
        if bytes.byte() != VERSION {
            return None;
        }
        let seed = u64::from(bytes.word());
        let batch = bytes.pick(&[1, 2, 2, 3]);
        let (inputs, count) = (bytes.pick(&[1, 1, 2, 3]), 1 + usize::from(bytes.byte() % 10));
        let (is_classifier, rule) = (bytes.byte() & 1 == 0, bytes.byte());
        let mut nodes: Vec<Node> = (0..inputs)
            .map(|_| {
                let [kind, a, b, c] = [0; 4].map(|_| usize::from(bytes.byte()));
                let shape = match kind % 4 {
                    0 | 1 => vec![batch, 1 + a % 3, 2 + b % 6, 2 + c % 6],
                    2 => vec![batch, 1 + a % 5, [2, 4, 6, 4][b % 4]],
                    _ => vec![batch, 1 + a % 9],
                };
                Node { op: None, from: Vec::new(), shape }
            })
            .collect();
        for _ in 0..count {
            let choices = [0; 5].map(|_| usize::from(bytes.byte()));
            let node = choose(&nodes, choices);
            nodes.push(node);
        }
        let outputs = 2 + usize::from(bytes.byte() % 4);
        end(&mut nodes, batch, outputs);
        let random = &mut Random::new(seed).fork(1);
        let loss = match is_classifier {
            true => Loss::CrossEntropy((0..batch).map(|_| random.below(outputs)).collect()),
            false => Loss::SquaredError((0..batch * outputs).map(|_| random.uniform(-1.0, 1.0)).collect()),
        };
        let rule = [Rule::Momentum, Rule::Nesterov, Rule::Adam, Rule::AdamW][usize::from(rule % 4)];
        Some(Self { nodes, loss, rule, seed, eighths: seed & 1 == 0 })
    }

    /// The positions and shapes of the inputs.
    pub fn inputs(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.op.is_none())
    }

    /// The network of `nn`, and its nodes. Node `i` is called `n{i}`.
    ///
    /// # Errors
    /// When a layer is not accepted, which is a mistake.
    pub fn build(&self) -> Result<(Graph, Vec<NodeId>)> {
        let (mut graph, mut ids) = (Graph::new(), Vec::<NodeId>::new());
        let random = &mut Random::new(self.seed).fork(2);
        for (at, node) in self.nodes.iter().enumerate() {
            let from: Vec<NodeId> = node.from.iter().map(|&from| ids[from]).collect();
            let name = format!("n{at}");
            let x = node.from.first().map_or(&[][..], |&from| &self.nodes[from].shape);
            let columns = x.last().copied().unwrap_or(0);
            ids.push(match node.op {
                None => graph.input(&name)?,
                Some(Op::Sum) => graph.add(&name, Sum::default(), &from)?,
                Some(Op::Product) => graph.add(&name, Product::default(), &from)?,
                Some(Op::Minimum) => graph.add(&name, Minimum::default(), &from)?,
                Some(Op::Maximum) => graph.add(&name, Maximum::default(), &from)?,
                Some(Op::Relu) => graph.add(&name, ReLU::default(), &from)?,
                Some(Op::Sigmoid) => graph.add(&name, Sigmoid::default(), &from)?,
                Some(Op::Tanh) => graph.add(&name, Tanh::default(), &from)?,
                Some(Op::Silu) => graph.add(&name, SiLU::default(), &from)?,
                Some(Op::Linear(outputs)) => graph.add(&name, Linear::new(columns, outputs, random)?, &from)?,
                Some(Op::Convolution(channels, window)) => {
                    // Direct algorithms keep to the bound of a plain sum; Winograd's has its own tests.
                    let spec = Conv2dSpec::new(x[1], channels, [window.kernel; 2])
                        .stride([window.stride; 2])
                        .padding(Padding::all(window.padding))
                        .accuracy(Accuracy::Direct);
                    graph.add(&name, Conv2d::new(spec, random)?, &from)?
                }
                Some(Op::MaxPool(window)) => graph.add(&name, MaxPool2d::new(pool(window))?, &from)?,
                Some(Op::AveragePool(window)) => graph.add(&name, AvgPool2d::new(pool(window))?, &from)?,
                Some(Op::GlobalAverage) => graph.add(&name, AdaptiveAvgPool2d::global(), &from)?,
                Some(Op::MeanPositions) => graph.add(&name, MeanPositions::default(), &from)?,
                Some(Op::ToSequence) => graph.add(&name, ToSequence::default(), &from)?,
                Some(Op::Attention(heads, causal)) => {
                    graph.add(&name, MultiHeadAttention::new(columns, heads, random)?.causal(causal)?, &from)?
                }
                Some(Op::LayerNorm) => graph.add(&name, LayerNorm::new(columns)?, &from)?,
                Some(Op::Concat) => graph.add(&name, Concat::default(), &from)?,
                Some(Op::Flatten) => graph.add(&name, Flatten::default(), &from)?,
            });
        }
        // Other parameters than those that layers begin with, of which many are 0 or 1.
        let random = &mut Random::new(self.seed).fork(3);
        graph.visit("", &mut |_, parameter| {
            parameter.update().0.iter_mut().for_each(|value| *value = random.uniform(-0.75, 0.75));
        });
        Ok((graph, ids))
    }
}

fn pool(window: Window) -> Pool2dSpec {
    Pool2dSpec::new([window.kernel; 2]).stride([window.stride; 2]).padding(Padding::all(window.padding))
}

/// The node that some choices mean after those that are there: an operation, two operands, two sizes.
fn choose(nodes: &[Node], [op, first, second, a, b]: [usize; 5]) -> Node {
    // Counted from the last, so that small numbers make deep networks.
    let first = nodes.len() - 1 - first % nodes.len();
    let x = &nodes[first].shape;
    let len: usize = x.iter().product();
    // The second operand: the next one, in some order, that has a shape to go with the first; there is always itself.
    let other = |fits: &dyn Fn(&[usize]) -> bool| {
        let mut from = (0..nodes.len()).map(|step| (nodes.len() - 1 + step - second % nodes.len()) % nodes.len());
        from.find(|&at| fits(&nodes[at].shape)).unwrap_or(first)
    };
    let same = || other(&|shape| shape == x);
    let element_wise = |op: Op, from: Vec<usize>| Node { op: Some(op), from, shape: x.clone() };
    let several = |op: Op| match b % 3 {
        0 => element_wise(op, vec![first, same(), first]),
        _ => element_wise(op, vec![first, same()]),
    };
    let one = |op: Op, shape: Vec<usize>| Node { op: Some(op), from: vec![first], shape };
    let linear = || {
        let (columns, outputs) = (x[x.len() - 1], [2, 4, 6, 3, 5][a % 5]);
        let shape = [&x[..x.len() - 1], &[outputs]].concat();
        if len * outputs <= MAX_WORK && columns > 0 {
            one(Op::Linear(outputs), shape)
        } else {
            one(Op::Relu, x.clone())
        }
    };
    match (op % 16, &x[..]) {
        (0, _) => several(Op::Sum),
        (1, _) => element_wise(Op::Product, vec![first, same()]),
        (2, _) => several(Op::Minimum),
        (3, _) => several(Op::Maximum),
        (4, _) => one(Op::Relu, x.clone()),
        (5, _) => one(Op::Sigmoid, x.clone()),
        (6, _) => one(Op::Tanh, x.clone()),
        (7, _) => one(Op::Silu, x.clone()),
        (9 | 10, &[batch, channels, height, width]) => {
            let most = height.min(width);
            let window = Window { kernel: 1 + a % 3.min(most), stride: 1 + b % 2, padding: b / 2 % 2 };
            let window = Window { padding: window.padding.min(window.kernel / 2), ..window };
            let out_channels = 1 + a / 3 % 4;
            let shape = vec![batch, out_channels, window.places(height), window.places(width)];
            let work = shape.iter().product::<usize>() * channels * window.kernel * window.kernel;
            if work > MAX_WORK {
                one(Op::GlobalAverage, vec![batch, channels, 1, 1])
            } else {
                one(Op::Convolution(out_channels, window), shape)
            }
        }
        (11 | 12, &[batch, channels, height, width]) => {
            let kernel = 1 + a % 3.min(height.min(width));
            let (stride, is_average) = (1 + b % 3, op % 16 == 12);
            let padding = if is_average { 0 } else { (b / 3 % 2).min(kernel / 2) };
            let window = Window { kernel, stride, padding };
            let shape = vec![batch, channels, window.places(height), window.places(width)];
            one(if is_average { Op::AveragePool(window) } else { Op::MaxPool(window) }, shape)
        }
        (9..=11, &[batch, length, features]) if len * features * 4 <= MAX_WORK => {
            let heads = if features % 2 == 0 && a % 2 == 0 { 2 } else { 1 };
            let memory = other(&|shape| matches!(*shape, [of, _, given] if of == batch && given == features));
            let from = if op % 16 == 11 { vec![first, memory] } else { vec![first] };
            let shape = vec![batch, length, features];
            Node { op: Some(Op::Attention(heads, b % 2 == 1 && from.len() == 1)), from, shape }
        }
        (12, &[batch, _, features]) => one(Op::MeanPositions, vec![batch, features]),
        (13, _) => one(Op::LayerNorm, x.clone()),
        (14, _) => {
            let second = other(&|shape| shape.len() == x.len() && shape[0] == x[0] && shape[2..] == x[2..]);
            let mut shape = x.clone();
            shape[1] += nodes[second].shape[1];
            let is_small = shape.iter().product::<usize>() <= MAX_WORK / 16;
            if is_small {
                Node { op: Some(Op::Concat), from: vec![first, second], shape }
            } else {
                one(Op::Tanh, x.clone())
            }
        }
        (15, &[batch, channels, height, width]) if a % 2 == 0 => {
            one(Op::ToSequence, vec![batch, height * width, channels])
        }
        (15, _) => one(Op::Flatten, vec![x[0], len / x[0]]),
        _ => linear(),
    }
}

/// Joins all values that nobody takes, and makes so many outputs of them.
fn end(nodes: &mut Vec<Node>, batch: usize, outputs: usize) {
    let is_free = |at: usize| nodes.iter().all(|node| !node.from.contains(&at));
    let mut free: Vec<usize> = (0..nodes.len()).filter(|&at| is_free(at)).collect();
    for at in &mut free {
        let shape = nodes[*at].shape.clone();
        if shape.len() > 2 {
            nodes.push(Node {
                op: Some(Op::Flatten),
                from: vec![*at],
                shape: vec![batch, shape[1..].iter().product()],
            });
            *at = nodes.len() - 1;
        }
    }
    let columns = free.iter().map(|&at| nodes[at].shape[1]).sum();
    if free.len() > 1 {
        nodes.push(Node { op: Some(Op::Concat), from: free, shape: vec![batch, columns] });
    }
    let last = nodes.len() - 1;
    nodes.push(Node { op: Some(Op::Linear(outputs)), from: vec![last], shape: vec![batch, outputs] });
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, node) in self.nodes.iter().enumerate() {
            match &node.op {
                None => write!(f, "n{at} {:?}, ", node.shape)?,
                Some(op) => {
                    let from: Vec<String> = node.from.iter().map(|from| format!("n{from}")).collect();
                    write!(f, "n{at} = {op:?} of {}, ", from.join(" "))?;
                }
            }
        }
        let loss = if let Loss::CrossEntropy(_) = self.loss { "cross-entropy" } else { "squared error" };
        write!(f, "{loss}, {:?}", self.rule)
    }
}
