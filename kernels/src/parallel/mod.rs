//! How work is spread over threads: the caller's, never our own.
//!
//! A kernel cuts its work into numbered tasks, by the shape alone, and [`Parallelism::for_each`] runs them:
//!
//! ```text
//! Serial    the caller:  0 1 2 3 4 5 6 7
//! Current   rayon::join over slots; each slot takes the next number from one counter
//! Team      the caller:  0 1 2 3   a helper that is awake already:  4 5 6 7   whoever is done first helps the other
//! ```
//!
//! Rayon's workers sleep when they have nothing to do, and waking one costs tens of microseconds; that is why
//! small work under `Current` stays on the calling thread, and why there are teams.

#[cfg(feature = "rayon")]
mod claim;
#[cfg(feature = "rayon")]
mod crew;
#[cfg(feature = "rayon")]
mod current;
#[cfg(feature = "internals")]
pub(crate) mod eager;
mod team;
#[cfg(all(test, feature = "rayon"))]
mod tests;

pub use team::{Team, TeamOptions};

/// Work below this many seconds on one thread is not given to a pool whose workers may sleep. Two halves under
/// `rayon::join` take 5 to 45 microseconds more than half of the work once a worker has slept, and sometimes it wakes
/// too late to help at all, even with 200 (medians of two runs of `kernelbench parallel`, two cores). Two threads break
/// even at 10 to 90, or never; beyond that the caller, who does what nobody takes, loses little.
const WORTH_A_POOL: f64 = 100e-6;

/// Work below this many seconds on one thread is not given to a team. Two halves in a team take 0.3 to 1.3
/// microseconds more than half of the work (medians of two runs, same command), so that two threads break even at 0.6
/// to 2.6, the former where loops follow each other closely. LeNet-5 with one image takes 12.0 microseconds with 1.5,
/// and 12.8 with 3.
const WORTH_A_TEAM: f64 = 1.5e-6;

/// Who does the work of a call.
#[derive(Clone, Copy, Debug, Default)]
pub enum Parallelism<'t> {
    /// The calling thread alone; rayon is not touched.
    Serial,
    /// The current rayon pool: the one that the caller is inside of, else the global one.
    /// Without the feature `rayon`, the same as [`Parallelism::Serial`].
    #[default]
    Current,
    /// A team: workers of the caller's pool that stay awake for a region.
    Team(&'t Team),
}

impl Parallelism<'_> {
    /// How many threads can work at once.
    pub fn threads(self) -> usize {
        match self {
            Self::Serial => 1,
            #[cfg(feature = "rayon")]
            Self::Current => rayon::current_num_threads(),
            #[cfg(not(feature = "rayon"))]
            Self::Current => 1,
            Self::Team(team) => team.threads(),
        }
    }

    /// This, or [`Parallelism::Serial`] where so little work does not repay handing it to other threads.
    pub(crate) fn for_seconds(self, seconds: f64) -> Self {
        #[cfg(feature = "internals")]
        if eager::is_on() {
            return self;
        }
        match self {
            Self::Current if seconds < WORTH_A_POOL => Self::Serial,
            Self::Team(_) if seconds < WORTH_A_TEAM => Self::Serial,
            other => other,
        }
    }

    /// Runs `task(index, slot)` for each index below `tasks`, each once, on at most `slots` threads at once.
    ///
    /// A slot is below `slots` (0 counts as 1) and belongs to one running task at a time, so it can index scratch
    /// memory. Which thread runs which task is not specified, so results must not depend on it. All that the tasks
    /// wrote is visible when the call returns. Nothing is allocated, except by rayon's own queues.
    ///
    /// A task may call `for_each` again; inside a loop of a team, a loop of the same team runs on its caller alone.
    /// A task must not wait for a thread that it did not give work to (a barrier, `rayon::broadcast`).
    ///
    /// # Panics
    ///
    /// If a task panics, some of the others may not run; the panic goes on in the caller once all have stopped.
    ///
    /// ```
    /// use kernels::Parallelism;
    /// use std::sync::atomic::{AtomicU64, Ordering};
    ///
    /// let sums = [const { AtomicU64::new(0) }; 4]; // one for each slot
    /// Parallelism::Current.for_each(100, sums.len(), &|index, slot| {
    ///     sums[slot].fetch_add(index as u64, Ordering::Relaxed);
    /// });
    /// assert_eq!(sums.map(AtomicU64::into_inner).iter().sum::<u64>(), 99 * 100 / 2);
    /// ```
    pub fn for_each(self, tasks: usize, slots: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        let most = tasks.min(slots);
        #[cfg(feature = "internals")]
        if most > 1 && eager::is_on() {
            return eager::for_each(self, most, tasks, task);
        }
        if most <= 1 || !self.share(most, tasks, task) {
            for index in 0..tasks {
                task(index, 0);
            }
        }
    }

    /// Runs the tasks on at most `most` threads and tells whether it did: not so where there is nobody to share with.
    fn share(self, most: usize, tasks: usize, task: &(dyn Fn(usize, usize) + Sync)) -> bool {
        match self {
            Self::Serial => false,
            #[cfg(feature = "rayon")]
            Self::Current => current::for_each(most, tasks, task),
            #[cfg(not(feature = "rayon"))]
            Self::Current => false,
            Self::Team(team) => team.for_each(most, tasks, task),
        }
    }
}
