//! Teams: workers of the caller's pool that stay awake for a region.

use std::fmt;
use std::time::Duration;

#[cfg(feature = "rayon")]
use super::crew::Region;

/// Helpers spin for some 25 to 100 times as long as waking them takes (10 to 40 microseconds, `kernelbench parallel`),
/// so that gaps between the layers of a network are bridged and a longer pause burns no more than this.
const IDLE: Duration = Duration::from_millis(1);

/// How a team is made: how many helpers it has, and how long they stay awake for nothing.
///
/// ```
/// use kernels::{Team, TeamOptions};
/// use std::time::Duration;
///
/// let options = TeamOptions::new().helpers(3).idle(Duration::from_millis(5));
/// Team::with(options, |team| assert!(team.threads() <= 4));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct TeamOptions {
    helpers: Option<usize>,
    idle: Duration,
}

impl TeamOptions {
    /// As many helpers as the pool and the machine have for us, which stay for a millisecond.
    pub const fn new() -> Self {
        Self { helpers: None, idle: IDLE }
    }

    /// At most so many helpers beside the caller; never more than the current pool has workers (but the caller).
    ///
    /// Without this, a team has no more threads than the pool, nor than the machine has cores: helpers that spin on
    /// the core of somebody who works do harm.
    #[must_use]
    pub const fn helpers(mut self, helpers: usize) -> Self {
        self.helpers = Some(helpers);
        self
    }

    /// How long a helper spins without work before it gives its worker back to the pool. The next loop calls it back,
    /// at the cost of waking a thread.
    #[must_use]
    pub const fn idle(mut self, idle: Duration) -> Self {
        self.idle = idle;
        self
    }
}

impl Default for TeamOptions {
    fn default() -> Self {
        Self::new()
    }
}

/// Workers of the caller's rayon pool that stay awake for a region: a network's forward, a loop of many small calls.
///
/// A parallel loop in a team costs about a microsecond, whatever the gap since the last one, where a pool whose
/// workers have fallen asleep costs tens. The helpers spin in between, and leave after some idle time
/// ([`TeamOptions::idle`]), at the end of the region at the latest. Nobody waits for a helper: in a pool whose
/// workers are busy the caller does the work alone.
///
/// A region inside a region, or inside a task, joins the team that is there. A team may be shared with other threads;
/// of several loops at once, one has the helpers, and the others run on their callers. While its helpers spin, the pool
/// has fewer workers for other jobs, so `rayon::join` inside a region gets less help.
///
/// Without the feature `rayon` a team is the calling thread alone.
///
/// ```
/// use kernels::{Parallelism, Team};
///
/// let sum = std::sync::atomic::AtomicUsize::new(0);
/// Team::scope(|team| {
///     for _layer in 0..10 {
///         Parallelism::Team(team).for_each(8, team.threads(), &|index, _slot| {
///             sum.fetch_add(index, std::sync::atomic::Ordering::Relaxed);
///         });
///     }
/// });
/// assert_eq!(sum.into_inner(), 280);
/// ```
pub struct Team {
    #[cfg(feature = "rayon")]
    region: Option<Region>,
}

impl Team {
    /// Runs `region` with a team made of workers of the current rayon pool: the one that the caller is inside of, else
    /// the global one.
    pub fn scope<R>(region: impl FnOnce(&Self) -> R) -> R {
        Self::with(TeamOptions::new(), region)
    }

    /// Like [`Team::scope`], with options. They are ignored where the thread is in a region already.
    pub fn with<R>(options: TeamOptions, region: impl FnOnce(&Self) -> R) -> R {
        let team = Self::assemble(options);
        region(&team)
    }

    /// How many threads the team has: the caller and its helpers.
    pub fn threads(&self) -> usize {
        #[cfg(feature = "rayon")]
        if let Some(region) = &self.region {
            return region.crew().threads();
        }
        1
    }
}

#[cfg(feature = "rayon")]
impl Team {
    fn assemble(TeamOptions { helpers, idle }: TeamOptions) -> Self {
        let helpers = helpers.unwrap_or_else(|| rayon::current_num_threads().min(cores()) - 1);
        Self { region: (helpers > 0).then(|| Region::begin(helpers, idle)) }
    }

    /// Runs the tasks on at most `most` threads and tells whether it did: not so where the team has no helpers, or they
    /// are at another loop.
    pub(super) fn for_each(&self, most: usize, tasks: usize, task: &(dyn Fn(usize, usize) + Sync)) -> bool {
        self.region.as_ref().is_some_and(|region| region.crew().run(most, tasks, task))
    }

    #[cfg(test)]
    pub(super) fn crew(&self) -> std::sync::Arc<super::crew::Crew> {
        self.region.as_ref().expect("a team with helpers").crew().clone()
    }
}

/// The cores that this process may use. Asked once: it reads files.
#[cfg(feature = "rayon")]
fn cores() -> usize {
    static CORES: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

#[cfg(not(feature = "rayon"))]
impl Team {
    fn assemble(TeamOptions { helpers: _, idle: _ }: TeamOptions) -> Self {
        Self {}
    }

    /// Never runs the tasks: there are no helpers.
    pub(super) fn for_each(&self, _most: usize, _tasks: usize, _task: &(dyn Fn(usize, usize) + Sync)) -> bool {
        false
    }
}

impl fmt::Debug for Team {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Team").field("threads", &self.threads()).finish_non_exhaustive()
    }
}
