//! `kernelbench parallel`: what it costs to give half of some work to a second thread.
//!
//! ```text
//! |-- gap: this thread is busy alone --|-- loop: two halves at once --|-- gap --| ...
//!                                      cost = wall time of the loop - half of the work
//! ```
//!
//! The work is to look at the clock until its time is over, so that the cost has no part of caches or clock rates, and
//! staying serial would cost exactly the other half. Rayon's workers fall asleep in the gap, a team's helpers do not.

use std::hint::black_box;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use kernels::{Parallelism, Team};

use crate::failure::Failure;
use crate::machine;

const GAPS: [u64; 5] = [0, 2, 20, 200, 2000];
const WORKS: [u64; 3] = [2, 20, 200];
/// Time for each cell of the table, and bounds on its number of loops.
const CELL: Duration = Duration::from_millis(250);
const LOOPS: std::ops::RangeInclusive<u64> = 100..=5000;

/// Prints the table. Takes about ten seconds.
///
/// # Errors
/// When threads cannot be had, or the output fails.
pub fn run(out: &mut (dyn Write + Send)) -> Result<(), Failure> {
    let pool = machine::pool(2)?;
    writeln!(out, "Cost of a parallel loop of two halves, in microseconds: wall time minus half of the work.")?;
    writeln!(out, "Two threads, inside install. median / 90th percentile.\n")?;
    write!(out, "{:>8}", "gap")?;
    for name in ["team", "join"] {
        for work in WORKS {
            write!(out, "{:>17}", format!("{name} {work} us"))?;
        }
    }
    writeln!(out)?;
    pool.install(|| {
        for gap in GAPS.map(Duration::from_micros) {
            write!(out, "{:>5} us", gap.as_micros())?;
            for work in WORKS.map(Duration::from_micros) {
                let half = work / 2;
                let costs =
                    Team::scope(|team| cost(gap, work, || Parallelism::Team(team).for_each(2, 2, &|_, _| spin(half))));
                show(out, costs)?;
            }
            for work in WORKS.map(Duration::from_micros) {
                let half = work / 2;
                show(out, cost(gap, work, || _ = rayon::join(|| spin(half), || spin(half))))?;
            }
            writeln!(out)?;
        }
        Ok(())
    })
}

/// The sorted costs of many loops, in microseconds.
fn cost(gap: Duration, work: Duration, mut parallel_loop: impl FnMut()) -> Vec<f64> {
    let loops = (CELL.as_nanos() / (gap + work).as_nanos()) as u64;
    let mut costs: Vec<f64> = (0..loops.clamp(*LOOPS.start(), *LOOPS.end()))
        .map(|_| {
            spin(gap);
            let start = Instant::now();
            parallel_loop();
            (start.elapsed().as_secs_f64() - work.as_secs_f64() / 2.0) * 1e6
        })
        .collect();
    costs.sort_by(f64::total_cmp);
    costs
}

fn show(out: &mut (dyn Write + Send), costs: Vec<f64>) -> io::Result<()> {
    write!(out, "{:>17}", format!("{:.2} / {:.2}", costs[costs.len() / 2], costs[costs.len() * 9 / 10]))
}

/// Keeps this thread busy.
fn spin(time: Duration) {
    let start = Instant::now();
    while black_box(start.elapsed()) < time {
        std::hint::spin_loop();
    }
}
