//! Who does the work of a call: its caller alone, the workers of a pool, or a team of them.

use std::collections::BTreeMap;
use std::time::Duration;

use kernels::internals::eagerly;
use kernels::{Parallelism, Team, TeamOptions};
use rayon::{ThreadPool, ThreadPoolBuilder};

/// Numbers of threads that every case runs on.
pub const THREADS: [usize; 3] = [1, 2, 3];

/// Helpers that wait for more would only take time from other cases.
const IDLE: Duration = Duration::from_micros(20);

/// Pools of a few threads, each made once.
#[derive(Debug, Default)]
pub struct Pools(BTreeMap<usize, ThreadPool>);

impl Pools {
    /// Runs a call on so many threads, which share whatever can be shared, however small it is.
    ///
    /// # Panics
    /// When there is no thread to be had.
    pub fn on<R: Send>(&mut self, threads: usize, as_team: bool, call: impl FnOnce(Parallelism) -> R + Send) -> R {
        if threads <= 1 {
            return call(Parallelism::Serial);
        }
        self.inside(threads, || {
            if as_team {
                let options = TeamOptions::new().helpers(threads - 1).idle(IDLE);
                Team::with(options, |team| eagerly(|| call(Parallelism::Team(team))).0)
            } else {
                eagerly(|| call(Parallelism::Current)).0
            }
        })
    }

    /// Does something on the calling thread, or inside the pool of so many.
    ///
    /// # Panics
    /// As [`Pools::on`].
    pub fn inside<R: Send>(&mut self, threads: usize, work: impl FnOnce() -> R + Send) -> R {
        if threads <= 1 {
            return work();
        }
        let pool = self
            .0
            .entry(threads)
            .or_insert_with(|| ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool of a few threads"));
        pool.install(work)
    }
}
