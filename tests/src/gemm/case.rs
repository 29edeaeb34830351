//! A matrix product to be checked, as one line of text:
//!
//! ```text
//! gemm m17 n33 k5 lhs=rows,gap3 rhs=columns out=rows bias=rows relu accumulate packed=lhs blocks=toy data=int seed=42
//! gemm b4 m3 n8 k20 lhs=rows,shared rhs=rows out=columns,up residual=rows data=uniform seed=7 isa=avx2 threads=3
//!      └ a batch
//! ```
//!
//! Whatever is left out has a default; without `isa` or `threads` all of them run.

use std::fmt;
use std::str::FromStr;

use kernels::internals::GemmBlocking;
use kernels::{Activation, Isa};

use super::arrangement::Arrangement;
use crate::case::{number, read_activation, write_activation};
use crate::data::DataKind;

/// Which way a bias goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Along {
    /// There is none.
    #[default]
    None,
    /// An element for each row.
    Rows,
    /// An element for each column.
    Columns,
}

/// Which operand is packed ahead of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Packed {
    /// None is.
    #[default]
    None,
    /// The left one.
    Lhs,
    /// The right one.
    Rhs,
}

/// Where the loops are cut: `GemmBlocking::of_tests`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Blocks {
    /// As on this CPU, through the public functions.
    #[default]
    Cpu,
    /// So small that every border is crossed, and threads share the smallest product.
    Toy,
    /// The same, and operands are read in place.
    InPlace,
    /// All in one block, packed for all threads.
    Whole,
}

impl Blocks {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Cpu, Self::Toy, Self::InPlace, Self::Whole];

    /// The sizes, unless they are the CPU's.
    pub fn sizes(self) -> Option<GemmBlocking> {
        let [toy, in_place, whole, _] = GemmBlocking::of_tests();
        match self {
            Self::Cpu => None,
            Self::Toy => Some(toy),
            Self::InPlace => Some(in_place),
            Self::Whole => Some(whole),
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Toy => "toy",
            Self::InPlace => "in-place",
            Self::Whole => "whole",
        }
    }
}

/// A product, its data, and how it is to be run.
///
/// ```
/// use tests::gemm::case::GemmCase;
/// let case = GemmCase { accumulate: true, ..GemmCase::new(17, 33, 5) };
/// assert_eq!(case, case.to_string().parse()?);
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GemmCase {
    /// Products side by side, if it is a batch.
    pub batch: Option<usize>,
    /// Rows of the output.
    pub m: usize,
    /// Columns of the output.
    pub n: usize,
    /// Terms of each chain.
    pub k: usize,
    /// How the left operand lies in memory.
    pub lhs: Arrangement,
    /// How the right operand lies in memory.
    pub rhs: Arrangement,
    /// How the output lies in memory.
    pub out: Arrangement,
    /// How the residual lies in memory, if there is one.
    pub residual: Option<Arrangement>,
    /// The bias.
    pub bias: Along,
    /// What is applied last.
    pub activation: Activation,
    /// Whether the output is added to.
    pub accumulate: bool,
    /// What is packed ahead of time; nothing of a batch.
    pub packed: Packed,
    /// Where the loops are cut.
    pub blocks: Blocks,
    /// What the operands hold.
    pub data: DataKind,
    /// The seed of the operands.
    pub seed: u64,
    /// The instruction set, or all that the CPU has.
    pub isa: Option<Isa>,
    /// The number of threads, or 1, 2 and 3.
    pub threads: Option<usize>,
}

impl GemmCase {
    /// A plain product of dense matrices of integers, run every way.
    pub fn new(m: usize, n: usize, k: usize) -> Self {
        Self {
            batch: None,
            m,
            n,
            k,
            lhs: Arrangement::default(),
            rhs: Arrangement::default(),
            out: Arrangement::default(),
            residual: None,
            bias: Along::None,
            activation: Activation::Identity,
            accumulate: false,
            packed: Packed::None,
            blocks: Blocks::Cpu,
            data: DataKind::Integers,
            seed: 1,
            isa: None,
            threads: None,
        }
    }
}

impl fmt::Display for GemmCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("gemm")?;
        if let Some(batch) = self.batch {
            write!(f, " b{batch}")?;
        }
        write!(f, " m{} n{} k{} lhs={} rhs={} out={}", self.m, self.n, self.k, self.lhs, self.rhs, self.out)?;
        if let Some(residual) = self.residual {
            write!(f, " residual={residual}")?;
        }
        f.write_str(match self.bias {
            Along::None => "",
            Along::Rows => " bias=rows",
            Along::Columns => " bias=columns",
        })?;
        write_activation(f, self.activation)?;
        f.write_str(if self.accumulate { " accumulate" } else { "" })?;
        f.write_str(match self.packed {
            Packed::None => "",
            Packed::Lhs => " packed=lhs",
            Packed::Rhs => " packed=rhs",
        })?;
        write!(f, " blocks={} data={} seed={}", self.blocks.name(), self.data, self.seed)?;
        if let Some(isa) = self.isa {
            write!(f, " isa={isa}")?;
        }
        if let Some(threads) = self.threads {
            write!(f, " threads={threads}")?;
        }
        Ok(())
    }
}

impl FromStr for GemmCase {
    type Err = String;

    fn from_str(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace();
        if words.next() != Some("gemm") {
            return Err("a line starts with `gemm`".into());
        }
        let mut case = Self::new(1, 1, 1);
        for word in words {
            case.read(word).map_err(|reason| format!("`{word}`: {reason}"))?;
        }
        if case.batch.is_some() && case.packed != Packed::None {
            return Err("nothing of a batch is packed ahead of time".into());
        }
        let repeated = |of: &Arrangement| of.shared || of.repeated != [false; 2];
        if repeated(&case.out) {
            return Err("elements of an output are all different".into());
        }
        Ok(case)
    }
}

impl GemmCase {
    /// Takes one word of a line.
    fn read(&mut self, word: &str) -> Result<(), String> {
        if let Some(activation) = read_activation(word) {
            self.activation = activation?;
            return Ok(());
        }
        let Some((key, value)) = word.split_once('=') else {
            let (key, value) = word.split_at_checked(1).ok_or("unknown word")?;
            match key {
                _ if word == "accumulate" => self.accumulate = true,
                "b" => self.batch = Some(number(value)?),
                "m" => self.m = number(value)?,
                "n" => self.n = number(value)?,
                "k" => self.k = number(value)?,
                _ => return Err("unknown word".into()),
            }
            return Ok(());
        };
        match key {
            "lhs" => self.lhs = value.parse()?,
            "rhs" => self.rhs = value.parse()?,
            "out" => self.out = value.parse()?,
            "residual" => self.residual = Some(value.parse()?),
            "bias" => {
                self.bias = match value {
                    "rows" => Along::Rows,
                    "columns" => Along::Columns,
                    _ => return Err("a bias goes along rows or columns".into()),
                }
            }
            "packed" => {
                self.packed = match value {
                    "lhs" => Packed::Lhs,
                    "rhs" => Packed::Rhs,
                    _ => return Err("lhs or rhs is packed".into()),
                }
            }
            "blocks" => {
                let blocks = Blocks::ALL.into_iter().find(|blocks| blocks.name() == value);
                self.blocks = blocks.ok_or("no such blocks")?;
            }
            "data" => self.data = value.parse()?,
            "seed" => self.seed = number(value)?,
            "isa" => self.isa = Some(value.parse().map_err(|error: kernels::Error| error.to_string())?),
            "threads" => self.threads = Some(number(value)?),
            _ => return Err("unknown key".into()),
        }
        Ok(())
    }
}
