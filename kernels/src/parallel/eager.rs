//! For tests: loops that are shared however little there is to do, and how many of them really were.
//!
//! Small work stays on the calling thread, so that what tests have time for would never meet a second one. Inside of
//! [`eagerly`] the thread's loops are given away whatever they take. That alone is no race yet: whoever gives away
//! microseconds has done all of them when the first helper wakes. So a participant that begins alone waits for another
//! for some microseconds before its first task.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Parallelism;

/// How long the first participant of a loop waits for a second: as long as waking a thread takes. It may come later
/// still, or never: a pool's workers have other things to do.
const COMPANY: Duration = Duration::from_micros(50);

/// The loops of a call that the calling thread gave away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loops {
    /// Those of several tasks, where there was somebody to give them to.
    pub given: u64,
    /// Those of them whose tasks ran on more than one thread.
    pub shared: u64,
}

thread_local! {
    /// The loops of this thread's call, while it shares them all.
    static EAGER: Cell<Option<Loops>> = const { Cell::new(None) };
}

/// Whether this thread gives away all of its loops.
pub(super) fn is_on() -> bool {
    EAGER.get().is_some()
}

/// Runs a call whose loops are given to other threads even where that does not repay, and counts them. Loops that its
/// tasks begin on other threads are as ever.
///
/// The calling thread is that of the loops: `pool.install(|| eagerly(call))`, not the other way round.
pub fn eagerly<R>(call: impl FnOnce() -> R) -> (R, Loops) {
    /// What was before, also after a panic.
    struct Restore(Option<Loops>);
    impl Drop for Restore {
        fn drop(&mut self) {
            EAGER.set(self.0);
        }
    }
    let restore = Restore(EAGER.replace(Some(Loops::default())));
    let result = call();
    let loops = EAGER.get().unwrap_or_default();
    drop(restore);
    (result, loops)
}

/// [`Parallelism::for_each`] with a bit for each slot that has begun. A slot ends when no task is left, so two that
/// have begun are two threads.
pub(super) fn for_each(parallelism: Parallelism<'_>, most: usize, tasks: usize, task: &(dyn Fn(usize, usize) + Sync)) {
    let begun = AtomicU64::new(0);
    let given = parallelism.share(most, tasks, &|index, slot| {
        let mine = 1 << (slot % 64);
        if begun.fetch_or(mine, Ordering::Relaxed) & mine == 0 {
            let start = Instant::now();
            while begun.load(Ordering::Relaxed).is_power_of_two() && start.elapsed() < COMPANY {
                std::thread::yield_now();
            }
        }
        task(index, slot);
    });
    if !given {
        return (0..tasks).for_each(|index| task(index, 0));
    }
    if let Some(Loops { given, shared }) = EAGER.get() {
        let met = begun.into_inner().count_ones() > 1;
        EAGER.set(Some(Loops { given: given + 1, shared: shared + u64::from(met) }));
    }
}
