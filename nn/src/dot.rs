//! Graphs as text for Graphviz.
//!
//! ```text
//! digraph {
//!     n0 [label="x"]
//!     subgraph cluster_0 { label="block"  n1 [label="conv\nConv2d 3->64 3x3"] }
//!     n0 -> n1
//! }
//! ```

use std::fmt::Write as _;

use crate::graph::Graph;
use crate::leaves::leaves;

/// The whole graph, down to the layers that are no graphs.
pub(crate) fn to_dot(graph: &Graph) -> String {
    let (leaves, _) = leaves(graph, 0, 1);
    let mut text = String::from("digraph {\n    rankdir=TB\n    node [shape=box, fontname=\"sans-serif\"]\n");
    // The graphs around the last leaf: those that are open.
    let mut open: Vec<&str> = Vec::new();
    let mut clusters = 0;
    // Writing to a string cannot fail.
    for (at, leaf) in leaves.iter().enumerate() {
        let (name, around) = leaf.path.split_last().map_or(("", &[][..]), |(name, around)| (*name, around));
        let common = open.iter().zip(around).take_while(|(a, b)| a == b).count();
        for _ in common..open.len() {
            open.pop();
            let _ = writeln!(text, "{}}}", indent(open.len()));
        }
        for graph in &around[common..] {
            let (space, label) = (indent(open.len()), escaped(graph));
            let _ = writeln!(text, "{space}subgraph cluster_{clusters} {{\n{space}    label=\"{label}\"");
            clusters += 1;
            open.push(graph);
        }
        let details = leaf.layer.map(|layer| format!("\\n{} {}", leaf.kind(), escaped(&layer.details())));
        let label = format!("{}{}", escaped(name), details.as_deref().unwrap_or_default().trim_end());
        let _ = writeln!(text, "{}n{at} [label=\"{label}\"]", indent(open.len()));
    }
    for depth in (0..open.len()).rev() {
        let _ = writeln!(text, "{}}}", indent(depth));
    }
    for (at, leaf) in leaves.iter().enumerate() {
        for from in &leaf.from {
            let _ = writeln!(text, "    n{from} -> n{at}");
        }
    }
    text.push_str("}\n");
    text
}

fn indent(depth: usize) -> String {
    "    ".repeat(depth + 1)
}

/// A name as the inside of a quoted label.
fn escaped(name: &str) -> String {
    name.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
