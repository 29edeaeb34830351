//! A loop on the caller's rayon pool.
//!
//! The slots are split in halves by `rayon::join`, whose jobs live on the stack, so that nothing is allocated; each
//! slot then takes task after task from one counter. A slot that starts late, or on the same thread after another,
//! finds nothing left and is done: no thread waits for a busy one to come.

use std::ops::Range;

use super::claim::Cursor;

/// Runs the tasks on at most `most` threads and tells whether it did: not so where the pool has one thread.
pub(super) fn for_each(most: usize, tasks: usize, task: &(dyn Fn(usize, usize) + Sync)) -> bool {
    let slots = rayon::current_num_threads().min(most);
    if slots <= 1 {
        return false;
    }
    let next = Cursor::default();
    split(0..slots, &|slot| {
        let stop = StopOthers(&next);
        while let Some(index) = next.claim(tasks) {
            task(index, slot);
        }
        std::mem::forget(stop);
    });
    true
}

/// Calls `work` for each slot, in parallel where the pool has workers to spare.
fn split(slots: Range<usize>, work: &(dyn Fn(usize) + Sync)) {
    if slots.len() == 1 {
        return work(slots.start);
    }
    let middle = slots.start + slots.len().div_ceil(2);
    rayon::join(|| split(slots.start..middle, work), || split(middle..slots.end, work));
}

/// Dropped only by a task that panics: the other slots then end after their current task.
struct StopOthers<'c>(&'c Cursor);

impl Drop for StopOthers<'_> {
    fn drop(&mut self) {
        self.0.exhaust();
    }
}
