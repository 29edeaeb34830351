//! A computational graph, forward and backward: `cargo run --release --example graph`.
//!
//! ```text
//! x ──┐
//!     ├─ product ──┐
//! y ──┘            ├─ sum ──┐
//! z ───────────────┘        ├─ maximum ── sigmoid ──┐
//! w ────────────────────────┘                       ├─ minimum ──► L
//! limit ────────────────────────────────────────────┘
//! ```
//!
//! Each node knows its own derivatives alone; backprop multiplies them from the end to the beginning.

use std::process::ExitCode;

use nn::{Graph, Layer, Maximum, Minimum, NodeId, Parallelism, Product, Sigmoid, Sum, Tensor, tensor};

const HELP: &str = "\
Computes L = min(sigmoid(max(x y + z, w)), limit) and its derivatives in a graph.

graph [--dot]

  --dot  prints the graph for Graphviz instead: graph --dot | dot -Tsvg > graph.svg
";

/// The inputs, and what they are.
const INPUTS: [(&str, f32); 5] = [("x", -2.0), ("y", 1.5), ("z", 4.0), ("w", -1.0), ("limit", 0.9)];

fn main() -> ExitCode {
    let argument = std::env::args().nth(1);
    let done = match argument.as_deref() {
        None => show(),
        Some("--dot") => graph().map(|(graph, _)| print!("{}", graph.to_dot())),
        Some("-h" | "--help") => {
            print!("{HELP}");
            Ok(())
        }
        Some(other) => {
            eprintln!("graph: {other} is no option; --help says what there is");
            return ExitCode::FAILURE;
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("graph: {problem}");
            ExitCode::FAILURE
        }
    }
}

/// The graph, and its nodes by name in the order of computing.
fn graph() -> nn::Result<(Graph, Vec<(&'static str, NodeId)>)> {
    let mut graph = Graph::new();
    let mut nodes = Vec::new();
    for (name, _) in INPUTS {
        nodes.push((name, graph.input(name)?));
    }
    let [x, y, z, w, limit] = [0, 1, 2, 3, 4].map(|at: usize| nodes[at].1);
    let product = graph.add("product", Product::default(), &[x, y])?;
    let sum = graph.add("sum", Sum::default(), &[product, z])?;
    let maximum = graph.add("maximum", Maximum::default(), &[sum, w])?;
    let sigmoid = graph.add("sigmoid", Sigmoid::default(), &[maximum])?;
    let l = graph.add("L", Minimum::default(), &[sigmoid, limit])?;
    nodes.extend([("product", product), ("sum", sum), ("maximum", maximum), ("sigmoid", sigmoid), ("L", l)]);
    Ok((graph, nodes))
}

/// Forward, backward, and what each node got from both.
fn show() -> nn::Result<()> {
    let (mut graph, nodes) = graph()?;
    let scalar = |value: f32| tensor(&[], vec![value]);
    let inputs: Vec<Tensor> = INPUTS.iter().map(|&(_, value)| scalar(value)).collect::<nn::Result<_>>()?;
    graph.forward(&inputs.iter().collect::<Vec<_>>(), Parallelism::Serial)?;
    graph.backward(&scalar(1.0)?, Parallelism::Serial)?;
    println!("{:>8} {:>8} {:>8}", "node", "value", "dL/dnode");
    for (name, node) in nodes {
        let number = |tensor: Option<&Tensor>| tensor.and_then(|tensor| tensor.first().copied()).unwrap_or_default();
        println!("{name:>8} {:>8.4} {:>8.4}", number(graph.value(node)), number(graph.gradient(node)));
    }
    Ok(())
}
