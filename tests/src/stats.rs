//! What a run of checks did: without these numbers, "all passed" may mean that all were skipped.

use std::collections::BTreeMap;
use std::fmt;

use kernels::Isa;
use kernels::conv::Algorithm;

use crate::case::{ConvCase, Pass};

/// The largest error of a pass, in units of `u S`, and the line that has it.
#[derive(Clone, Debug, Default)]
pub struct Worst {
    /// The error.
    pub ratio: f64,
    /// The line.
    pub line: String,
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

    /// Notes the error of a result.
    pub fn error(&mut self, case: &ConvCase, pass: Pass, ratio: f64) {
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
    pub fn worst_of(&self, data: crate::data::DataKind) -> Worst {
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
            let mine = self.worst.entry(key).or_default();
            // Equal errors: the smaller line, so that the order of threads does not show.
            if worst.ratio > mine.ratio || worst.ratio == mine.ratio && worst.line < mine.line {
                *mine = worst;
            }
        }
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
