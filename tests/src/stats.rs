//! What a run of checks did: without these numbers, "all passed" may mean that all were skipped.

use std::collections::BTreeMap;
use std::fmt;

use kernels::Isa;
use kernels::conv::Algorithm;
use kernels::internals::Loops;

use crate::case::{ConvCase, Pass};
use crate::data::DataKind;

/// The largest error of a pass, in units of `u S`, and the line that has it.
#[derive(Clone, Debug, Default)]
pub struct Worst {
    /// The error.
    pub ratio: f64,
    /// The line.
    pub line: String,
}

impl Worst {
    /// Takes the error of a case, if it is larger.
    fn note(&mut self, case: &ConvCase, ratio: f64) {
        if ratio > self.ratio {
            *self = Self { ratio, line: case.to_string() };
        }
    }

    /// The larger of two; of equal ones that with the smaller line, so that the order of threads does not show.
    fn raise_to(&mut self, other: Self) {
        if other.ratio > self.ratio || other.ratio == self.ratio && other.line < self.line {
            *self = other;
        }
    }
}

/// Counts of a run, which add up over threads.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Problems: a spec, a shape and data.
    pub problems: u64,
    /// Problems times algorithms, instruction sets and numbers of threads, each through every pass.
    pub cases: u64,
    /// The same, where the algorithm took only the forward or only the backward pass.
    pub partial: u64,
    /// Single calls, by the [`number`] of the algorithm, instruction set and pass.
    calls: BTreeMap<(usize, Isa, Pass), u64>,
    /// Plans that an algorithm declined, by its [`number`] and direction.
    declined: BTreeMap<(usize, &'static str), u64>,
    /// Calls on pools of several threads.
    pub pooled: u64,
    /// Those of them with a loop to give to other threads: one of more tasks than one.
    pub given: u64,
    /// Those of them in which at least one loop ran on more than one thread.
    pub shared: u64,
    /// Results compared with the reference.
    pub judged: u64,
    /// Results too large for the exact oracle.
    pub rejected: u64,
    /// Problems with exact data whose outputs are mostly zeros.
    pub weak: u64,
    /// The largest error by data kind and pass.
    worst: BTreeMap<(DataKind, Pass), Worst>,
    /// The largest error of positive data, as a share of [`positive_error`].
    pub positive: Worst,
    /// The largest error of Winograd's algorithms in units of `u` times the shadow, by data kind, tile, the [`number`]
    /// of the algorithm, and result.
    winograd: BTreeMap<(DataKind, Tile, usize, &'static str), Worst>,
}

/// What a Winograd tile makes of its roundings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tile {
    /// Both axes are transformed. The shadow of each product is many times its magnitude, since many products of
    /// transformed numbers add up to it, and their errors cancel.
    Square,
    /// An axis of one tap or one that stays direct, or a stride of 2, where a phase has one tap: some results are, along
    /// an axis or along both, sums of plain products, whose shadow is their magnitude.
    Partial,
}

impl Tile {
    /// The tile of a case.
    fn of(case: &ConvCase, algorithm: Algorithm) -> Self {
        let is_transformed = |taps: usize| match taps {
            3 => true,
            5 => algorithm != Algorithm::Winograd6,
            7 => algorithm == Algorithm::Winograd2,
            _ => false,
        };
        let square = case.spec.stride == [1, 1] && case.spec.kernel.into_iter().all(is_transformed);
        if square { Self::Square } else { Self::Partial }
    }
}

/// The number of an algorithm in [`Algorithm::ALL`]; `Auto` comes last.
fn number(algorithm: Algorithm) -> usize {
    Algorithm::ALL.into_iter().position(|other| other == algorithm).unwrap_or(Algorithm::ALL.len())
}

/// The algorithm of a number.
fn numbered(number: usize) -> Algorithm {
    Algorithm::ALL.get(number).copied().unwrap_or_default()
}

/// An error of positive data that only a worse order of the sums exceeds, in units of `u S`: errors of one sign add up
/// like the steps of a random walk, about `0.7 sqrt(terms)` of them (N. Higham, T. Mary, "A new approach to
/// probabilistic rounding error analysis", SIAM J. Sci. Comput. 41 (2019)).
pub fn positive_error(terms: usize) -> f64 {
    1.5 * (terms as f64).sqrt() + 2.0
}

impl Stats {
    /// Notes a call.
    pub fn call(&mut self, algorithm: Algorithm, isa: Isa, pass: Pass) {
        *self.calls.entry((number(algorithm), isa, pass)).or_default() += 1;
    }

    /// Notes the loops of a call on several threads.
    pub fn loops(&mut self, loops: Option<Loops>) {
        if let Some(Loops { given, shared }) = loops {
            self.pooled += 1;
            self.given += u64::from(given > 0);
            self.shared += u64::from(shared > 0);
        }
    }

    /// Notes a plan that an algorithm declined.
    pub fn decline(&mut self, algorithm: Algorithm, direction: &'static str) {
        *self.declined.entry((number(algorithm), direction)).or_default() += 1;
    }

    /// Notes the largest error of results that are sums of so many terms.
    pub fn error(&mut self, case: &ConvCase, pass: Pass, ratio: f64, terms: usize) {
        let share = ratio / positive_error(terms);
        if case.data == DataKind::Positive {
            self.positive.note(case, share);
        }
        self.worst.entry((case.data, pass)).or_default().note(case, ratio);
    }

    /// Notes the largest error of results of a Winograd algorithm, in units of `u` times the shadow.
    pub fn winograd_error(&mut self, case: &ConvCase, algorithm: Algorithm, result: &'static str, ratio: f64) {
        self.winograd
            .entry((case.data, Tile::of(case, algorithm), number(algorithm), result))
            .or_default()
            .note(case, ratio);
    }

    /// The largest error of Winograd's algorithms over a kind of data and a tile, for `y`, `dx` or `dw`.
    pub fn winograd_worst_of(&self, data: DataKind, tile: Tile, result: &str) -> Worst {
        let of_all =
            |(key, _): &(&(DataKind, Tile, usize, &str), &Worst)| (key.0, key.1, key.3) == (data, tile, result);
        largest(self.winograd.iter().filter(of_all).map(|(_, worst)| worst))
    }

    /// How much larger the largest of so many errors may be than the largest of ten million: the sum of many roundings
    /// falls off like a normal distribution, whose largest of `n` is about `sqrt(2 ln(2 n))` deviations.
    pub fn growth(&self) -> f64 {
        const FEW: f64 = 1e7;
        ((2.0 * self.judged as f64).max(2.0 * FEW).ln() / (2.0 * FEW).ln()).sqrt()
    }

    /// Calls of an algorithm, over all instruction sets and passes.
    pub fn calls_of(&self, algorithm: Algorithm) -> u64 {
        let number = number(algorithm);
        self.calls.iter().filter(|((of, ..), _)| *of == number).map(|(_, calls)| calls).sum()
    }

    /// The largest error of a kind of data over all passes.
    pub fn worst_of(&self, data: DataKind) -> Worst {
        largest(self.worst.iter().filter(|((of, _), _)| *of == data).map(|(_, worst)| worst))
    }

    /// Adds the counts of another run.
    pub fn add(&mut self, other: Self) {
        self.problems += other.problems;
        self.cases += other.cases;
        self.partial += other.partial;
        self.pooled += other.pooled;
        self.given += other.given;
        self.shared += other.shared;
        self.judged += other.judged;
        self.rejected += other.rejected;
        self.weak += other.weak;
        for (key, calls) in other.calls {
            *self.calls.entry(key).or_default() += calls;
        }
        for (key, plans) in other.declined {
            *self.declined.entry(key).or_default() += plans;
        }
        for (key, worst) in other.worst {
            self.worst.entry(key).or_default().raise_to(worst);
        }
        for (key, worst) in other.winograd {
            self.winograd.entry(key).or_default().raise_to(worst);
        }
        self.positive.raise_to(other.positive);
    }
}

/// The largest error of several.
fn largest<'w>(of: impl Iterator<Item = &'w Worst>) -> Worst {
    of.max_by(|a, b| a.ratio.total_cmp(&b.ratio)).cloned().unwrap_or_default()
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} cases of {} problems ({} more of one direction only), {} results judged, {} rejected, {} weak problems",
            self.cases, self.problems, self.partial, self.judged, self.rejected, self.weak
        )?;
        writeln!(
            f,
            "{} calls on pools, {} with loops to give away, {} of them shared by more than one thread",
            self.pooled, self.given, self.shared
        )?;
        for ((algorithm, isa, pass), calls) in &self.calls {
            writeln!(
                f,
                "  {algorithm:>11} {isa:>8} {pass:<16} {calls:>8} calls",
                algorithm = numbered(*algorithm).to_string(),
                isa = isa.to_string(),
                pass = pass.to_string()
            )?;
        }
        for ((algorithm, direction), plans) in &self.declined {
            writeln!(f, "  {:>11} declined {plans} {direction} plans", numbered(*algorithm).to_string())?;
        }
        for ((data, pass), worst) in self.worst.iter().filter(|(_, worst)| worst.ratio > 0.0) {
            writeln!(f, "  error of {data}, {pass}: {:.2} u S in {}", worst.ratio, worst.line)?;
        }
        for ((data, tile, algorithm, result), worst) in self.winograd.iter().filter(|(_, worst)| worst.ratio > 0.0) {
            let (algorithm, Worst { ratio, line }) = (numbered(*algorithm), worst);
            writeln!(f, "  error of {data}, {algorithm}, {tile:?}, {result}: {ratio:.2} u shadow in {line}")?;
        }
        Ok(())
    }
}
