//! A network as a table: what each layer gives, learns and costs.

use std::fmt;

use crate::error::Result;
use crate::inference::shapes;
use crate::layer::Layer;
use crate::leaves::leaves;

/// One layer of a [`Summary`].
#[derive(Clone, Debug, PartialEq)]
pub struct SummaryRow {
    /// Its path in the network, as its parameters have it.
    pub name: String,
    /// What kind of layer it is.
    pub kind: &'static str,
    /// Channels, kernel and the like, as text.
    pub details: String,
    /// The shape of its output.
    pub shape: Vec<usize>,
    /// How many numbers it learns.
    pub parameters: usize,
    /// Multiplications and additions of its products with weights.
    pub flops: f64,
}

/// Every layer of a network in the order of computing. [`fmt::Display`] makes it a table.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The layers, those of graphs in graphs one by one.
    pub rows: Vec<SummaryRow>,
}

impl Summary {
    /// The table of a layer over inputs of these shapes.
    pub(crate) fn new(layer: &dyn Layer, parameters: usize, inputs: &[Vec<usize>]) -> Result<Self> {
        let (leaves, _) = leaves(layer, parameters, inputs.len());
        let shapes = shapes(&leaves, inputs)?;
        let mut rows = Vec::with_capacity(leaves.len());
        for (leaf, shape) in leaves.iter().zip(&shapes) {
            let Some(layer) = leaf.layer else { continue };
            let from: Vec<Vec<usize>> = leaf.from.iter().map(|&from| shapes[from].clone()).collect();
            rows.push(SummaryRow {
                name: leaf.name(),
                kind: layer.kind(),
                details: layer.details(),
                shape: shape.clone(),
                parameters: leaf.parameters,
                flops: layer.flops(&from).map_err(|error| leaf.within(error))?,
            });
        }
        Ok(Self { rows })
    }

    /// How many numbers all layers learn.
    pub fn parameters(&self) -> usize {
        self.rows.iter().map(|row| row.parameters).sum()
    }

    /// Multiplications and additions of all layers' products with weights.
    pub fn flops(&self) -> f64 {
        self.rows.iter().map(|row| row.flops).sum()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = vec![["layer", "output shape", "parameters", "MFLOP"].map(str::to_string)];
        for row in &self.rows {
            let layer = format!("{} ({})", row.name, format!("{} {}", row.kind, row.details).trim_end());
            let mflop = format!("{:.2}", row.flops / 1e6);
            lines.push([layer.trim_start().to_string(), format!("{:?}", row.shape), grouped(row.parameters), mflop]);
        }
        let mflop = format!("{:.2}", self.flops() / 1e6);
        lines.push(["total".to_string(), String::new(), grouped(self.parameters()), mflop]);
        let mut widths = [0; 4];
        for line in &lines {
            for column in 0..4 {
                widths[column] = widths[column].max(line[column].len());
            }
        }
        let rule = "-".repeat(widths.iter().sum::<usize>() + 6);
        let last = lines.len() - 1;
        for (at, [layer, shape, parameters, mflop]) in lines.iter().enumerate() {
            if at == 1 || at == last {
                writeln!(f, "{rule}")?;
            }
            let [a, b, c, d] = widths;
            writeln!(f, "{layer:<a$}  {shape:<b$}  {parameters:>c$}  {mflop:>d$}")?;
        }
        Ok(())
    }
}

/// A number with a comma before each three digits.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
