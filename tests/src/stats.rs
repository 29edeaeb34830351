//! What a run of checks did: without these numbers, "all passed" may mean that all were skipped.

use std::collections::BTreeMap;
use std::fmt;

use kernels::Isa;
use kernels::conv::Algorithm;

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
    /// Single calls, by algorithm, instruction set and pass.
    pub calls: BTreeMap<(String, Isa, Pass), u64>,
    /// Plans that an algorithm declined, by algorithm and direction.
    pub declined: BTreeMap<(String, &'static str), u64>,
    /// Results compared with the reference.
    pub judged: u64,
    /// Results too large for the exact oracle.
    pub rejected: u64,
    /// Problems with exact data whose outputs are mostly zeros.
    pub weak: u64,
    /// The largest error by data kind and pass.
    pub worst: BTreeMap<(String, Pass), Worst>,
    /// The largest error of positive data, as a share of [`positive_error`].
    pub positive: Worst,
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
        *self.calls.entry((algorithm.to_string(), isa, pass)).or_default() += 1;
    }

    /// Notes a plan that an algorithm declined.
    pub fn decline(&mut self, algorithm: Algorithm, direction: &'static str) {
        *self.declined.entry((algorithm.to_string(), direction)).or_default() += 1;
    }

    /// Notes the largest error of results that are sums of so many terms.
    pub fn error(&mut self, case: &ConvCase, pass: Pass, ratio: f64, terms: usize) {
        let share = ratio / positive_error(terms);
        if case.data == DataKind::Positive && share > self.positive.ratio {
            self.positive = Worst { ratio: share, line: case.to_string() };
        }
        let worst = self.worst.entry((case.data.to_string(), pass)).or_default();
        if ratio > worst.ratio {
            *worst = Worst { ratio, line: case.to_string() };
        }
    }

    /// Calls of an algorithm, over all instruction sets and passes.
    pub fn calls_of(&self, algorithm: Algorithm) -> u64 {
        let name = algorithm.to_string();
        self.calls.iter().filter(|((of, ..), _)| *of == name).map(|(_, calls)| calls).sum()
    }

    /// The largest error of a kind of data over all passes.
    pub fn worst_of(&self, data: DataKind) -> Worst {
        let name = data.to_string();
        let of_kind = self.worst.iter().filter(|((of, _), _)| *of == name).map(|(_, worst)| worst);
        of_kind.max_by(|a, b| a.ratio.total_cmp(&b.ratio)).cloned().unwrap_or_default()
    }

    /// Adds the counts of another run.
    pub fn add(&mut self, other: Self) {
        self.problems += other.problems;
        self.cases += other.cases;
        self.partial += other.partial;
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
        self.positive.raise_to(other.positive);
    }
}

impl fmt::Display for Stats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} cases of {} problems ({} more of one direction only), {} results judged, {} rejected, {} weak problems",
            self.cases, self.problems, self.partial, self.judged, self.rejected, self.weak
        )?;
        for ((algorithm, isa, pass), calls) in &self.calls {
            writeln!(
                f,
                "  {algorithm:>10} {isa:>8} {pass:<16} {calls:>8} calls",
                isa = isa.to_string(),
                pass = pass.to_string()
            )?;
        }
        for ((algorithm, direction), plans) in &self.declined {
            writeln!(f, "  {algorithm:>10} declined {plans} {direction} plans")?;
        }
        for ((data, pass), worst) in self.worst.iter().filter(|(_, worst)| worst.ratio > 0.0) {
            writeln!(f, "  error of {data}, {pass}: {:.2} u S in {}", worst.ratio, worst.line)?;
        }
        Ok(())
    }
}
