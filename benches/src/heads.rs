//! Attentions by name, from CSV files with one a line.
//!
//! ```text
//! name,batch,heads,kv_heads,q_len,kv_len,head_dim,causal
//! gpt2.1024,1,12,12,1024,1024,64,1
//! ```
//!
//! Causal is bottom-right. Two more columns may follow: `dropout`, the probability that a weight is left out, and
//! `page_len`, for keys and values that lie in pages of so many.

use std::path::Path;

use kernels::attention::{AttentionSpec, Causal, Dropout, Shape};

use crate::failure::Failure;
use crate::table;

/// Attentions of known networks.
pub const NETWORKS: &str = include_str!("../shapes/attention.csv");

const COLUMNS: [&str; 8] = ["name", "batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim", "causal"];

/// How queries, keys, values and outputs lie in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Batch, heads, positions, elements: a head's rows follow each other.
    #[default]
    Bhsd,
    /// Batch, positions, heads, elements: as a projection writes them.
    Bshd,
}

impl Layout {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Bhsd, Self::Bshd];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bhsd => "bhsd",
            Self::Bshd => "bshd",
        }
    }

    /// The steps from one batch, head, position and element to the next, of `[batch, heads, positions, elements]`.
    pub fn strides(self, [_, heads, len, dim]: [usize; 4]) -> [usize; 4] {
        match self {
            Self::Bhsd => [heads * len * dim, len * dim, dim, 1],
            Self::Bshd => [len * heads * dim, dim, heads * dim, 1],
        }
    }
}

/// An attention by name.
#[derive(Clone, Debug, PartialEq)]
pub struct Head {
    /// For example `gpt2.1024`.
    pub name: String,
    /// What does not change from call to call.
    pub spec: AttentionSpec,
    /// Batch and lengths.
    pub shape: Shape,
    /// Which weights are left out.
    pub dropout: Option<Dropout>,
    /// Keys of a page, if keys and values lie in pages.
    pub page_len: Option<usize>,
}

/// The attentions of a CSV text. `origin` names it in errors.
///
/// # Errors
/// A missing column, a field that is no number, or an attention that cannot be, each with its line.
pub fn parse(text: &str, origin: &str) -> Result<Vec<Head>, Failure> {
    table::parse(text, origin, &COLUMNS, |fields| {
        let mut numbers = [0usize; COLUMNS.len()];
        for column in 1..COLUMNS.len() {
            let text = fields.text(column)?;
            numbers[column] = text.parse().map_err(|_| format!("`{}` is {text:?}, no number", COLUMNS[column]))?;
        }
        let [_, batch, heads, kv_heads, q_len, kv_len, head_dim, causal] = numbers;
        let causal = if causal == 0 { Causal::None } else { Causal::BottomRight };
        let spec = AttentionSpec::new(heads, head_dim).kv_heads(kv_heads).causal(causal);
        let shape = Shape::new(batch, q_len, kv_len);
        spec.flops(shape).map_err(|error| error.to_string())?;
        let dropout = match fields.optional("dropout") {
            None => 0.0,
            Some(text) => text
                .parse()
                .ok()
                .filter(|share| (0.0..1.0).contains(share))
                .ok_or_else(|| format!("`dropout` is {text:?}, expected a probability below 1"))?,
        };
        let dropout = (dropout != 0.0).then(|| Dropout::new(dropout, 1));
        let page_len = match fields.optional("page_len") {
            None => 0,
            Some(text) => text.parse().map_err(|_| format!("`page_len` is {text:?}, expected a whole number"))?,
        };
        let page_len = (page_len != 0).then_some(page_len);
        Ok(Head { name: fields.text(0)?.into(), spec, shape, dropout, page_len })
    })
}

/// The attentions of a CSV file.
///
/// # Errors
/// A file that cannot be read, and those of [`parse`].
pub fn read(path: &Path) -> Result<Vec<Head>, Failure> {
    table::read(path, parse)
}

/// An attention of [`NETWORKS`].
///
/// # Errors
/// When none has the name.
pub fn named(name: &str) -> Result<Head, Failure> {
    let found = parse(NETWORKS, "attention.csv")?.into_iter().find(|head| head.name == name);
    found.ok_or_else(|| Failure::study(format!("no attention is named {name}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_attentions_of_this_project_are_read() {
        assert_eq!(parse(NETWORKS, "").unwrap().len(), 14);
        let features = parse(include_str!("../shapes/attention_features.csv"), "").unwrap();
        assert_eq!(features.iter().filter(|head| head.page_len.is_some()).count(), 6);
        assert_eq!(features.iter().filter(|head| head.dropout.is_some()).count(), 3);
        assert_eq!(named("llama3.gqa.1024").unwrap().spec.group(), 4);
        assert!(named("llama4711").is_err());
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let header = COLUMNS.join(",");
        let message = |row: &str| parse(&format!("{header},page_len\n{row}\n"), "x.csv").unwrap_err().to_string();
        assert_eq!(message("a,1,2,2,8,eight,16,0,"), "x.csv, line 2: `kv_len` is \"eight\", no number");
        assert!(message("a,1,3,2,8,8,16,0,").starts_with("x.csv, line 2: "));
        assert_eq!(message("a,1,2,2,8,8,16,0,-1"), "x.csv, line 2: `page_len` is \"-1\", expected a whole number");
        assert_eq!(message("a,1,2,2,8,8,16"), "x.csv, line 2: the field `causal` is missing");
    }

    #[test]
    fn strides_lead_to_the_last_element_of_the_tensor() {
        let shape = [2, 3, 5, 7];
        for layout in Layout::ALL {
            let strides = layout.strides(shape);
            let last: usize = shape.iter().zip(strides).map(|(size, stride)| (size - 1) * stride).sum();
            assert_eq!(last + 1, 2 * 3 * 5 * 7, "{}", layout.name());
        }
    }
}
