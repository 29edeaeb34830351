//! What a check of a case reports: what is wrong with it, or what was looked at.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Mutex;
use std::time::Instant;

use crate::{cores, crash};

/// A case that is wrong: the line that repeats it, and what is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The case, narrowed down to what failed.
    pub line: String,
    /// What is wrong.
    pub message: String,
}

impl Failure {
    /// Of a case.
    pub fn new(case: &dyn fmt::Display, message: String) -> Self {
        Self { line: case.to_string(), message }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.message)?;
        writeln!(f, "  case:  {}", self.line)?;
        write!(f, "  again: cargo run -p tests --example repro -- \"{}\"", self.line)
    }
}

impl std::error::Error for Failure {}

/// What was looked at, which adds up over cases and threads: without these numbers, "all passed" may mean that all
/// were skipped.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Cases.
    pub cases: u64,
    /// Calls by what was called.
    pub calls: BTreeMap<String, u64>,
    /// Results compared with the reference.
    pub judged: u64,
    /// Results too large for the exact oracle.
    pub rejected: u64,
    /// Calls that had to be refused, and were.
    pub refused: u64,
}

impl Tally {
    /// Checks numbered cases on all cores, each on the bench of its thread, and prints what was looked at.
    ///
    /// # Panics
    /// When a case is wrong.
    pub fn of<B>(
        numbers: Range<u64>,
        bench: impl Fn() -> B + Sync,
        check: impl Fn(&mut B, u64, &mut Self) -> Result<(), Failure> + Sync,
    ) -> Self {
        crash::report_faults();
        let (start, total) = (Instant::now(), Mutex::new(Self::default()));
        cores::for_each_with(numbers, bench, |bench, number| {
            let mut tally = Self::default();
            if let Err(failure) = check(bench, number, &mut tally) {
                panic!("{failure}");
            }
            total.lock().expect("no thread panicked").add(tally);
        });
        let tally = total.into_inner().expect("no thread panicked");
        println!("{tally}{:.1} seconds", start.elapsed().as_secs_f64());
        tally
    }

    /// Notes a call.
    pub fn call(&mut self, name: &str) {
        match self.calls.get_mut(name) {
            Some(calls) => *calls += 1,
            None => {
                self.calls.insert(name.into(), 1);
            }
        }
    }

    /// Calls of this name.
    pub fn calls_of(&self, name: &str) -> u64 {
        self.calls.get(name).copied().unwrap_or(0)
    }

    /// Adds what another one looked at.
    pub fn add(&mut self, other: Self) {
        self.cases += other.cases;
        self.judged += other.judged;
        self.rejected += other.rejected;
        self.refused += other.refused;
        for (name, calls) in other.calls {
            *self.calls.entry(name).or_default() += calls;
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cases, judged, rejected, refused, .. } = self;
        writeln!(f, "{cases} cases, {judged} results judged, {rejected} rejected, {refused} calls refused")?;
        self.calls.iter().try_for_each(|(name, calls)| writeln!(f, "  {name:<30} {calls:>8} calls"))
    }
}
