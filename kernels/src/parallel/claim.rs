//! Task numbers that several participants take, each number once.
//!
//! ```text
//! tasks          0 1 2 3 4 5 6 7 8 9        cut for three participants
//! participant 0  0 1 2 3                    takes its own from the front,
//! participant 1          4 5 6              then what is left of 1's, then of 2's
//! participant 2                7 8 9
//! ```
//!
//! The cut depends on the number of tasks and participants alone, so that in a row of similar loops each
//! participant meets the data that its cache holds from the loop before.

use std::sync::atomic::{AtomicUsize, Ordering};

/// The next task number of a range, alone on its cache line (two lines, which some CPUs fetch in pairs).
///
/// All accesses are relaxed: a claim decides who runs a task and nothing else. What the tasks read and write is
/// ordered by the start and the end of the loop.
#[repr(align(128))]
#[derive(Default)]
pub(super) struct Cursor(AtomicUsize);

impl Cursor {
    /// The numbers from `next` on. To be called before the cursor is shared for a loop.
    pub fn set(&self, next: usize) {
        self.0.store(next, Ordering::Relaxed);
    }

    /// The next number below `end`, or none is left. The cursor never passes `end`, so it cannot overflow.
    pub fn claim(&self, end: usize) -> Option<usize> {
        let mut next = self.0.load(Ordering::Relaxed);
        while next < end {
            match self.0.compare_exchange_weak(next, next + 1, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(next),
                Err(now) => next = now,
            }
        }
        None
    }

    /// Leaves nothing to claim.
    pub fn exhaust(&self) {
        self.0.store(usize::MAX, Ordering::Relaxed);
    }
}

/// Where the range of a participant starts; the range of the last one ends where that of `participants` would start.
pub(super) fn start(participant: usize, participants: usize, tasks: usize) -> usize {
    participant * (tasks / participants) + participant.min(tasks % participants)
}

/// Runs the tasks of the range of `me`, then those that are left of the others' ranges, in their order after `me`.
/// There is a cursor for each participant, set to the start of its range.
pub(super) fn work<'c>(
    cursor: impl Fn(usize) -> &'c Cursor,
    me: usize,
    participants: usize,
    tasks: usize,
    mut run: impl FnMut(usize),
) {
    for owner in (me..participants).chain(0..me) {
        let end = start(owner + 1, participants, tasks);
        while let Some(index) = cursor(owner).claim(end) {
            run(index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parts::dealt;

    #[test]
    fn ranges_cover_all_tasks_and_differ_by_one_at_most() {
        for participants in 1..20 {
            for tasks in (0..100).chain([usize::MAX, usize::MAX - 1]) {
                assert_eq!(start(0, participants, tasks), 0);
                assert_eq!(start(participants, participants, tasks), tasks);
                for participant in 0..participants {
                    let len = start(participant + 1, participants, tasks) - start(participant, participants, tasks);
                    assert!(len == tasks / participants || len == tasks / participants + 1);
                }
            }
        }
    }

    #[test]
    fn dealing_gives_each_participant_every_nth_task() {
        for participants in 1..9 {
            for tasks in 1..40 {
                for participant in 0..participants {
                    let range = start(participant, participants, tasks)..start(participant + 1, participants, tasks);
                    let dealt: Vec<_> = range.map(|index| dealt(index, participants, tasks)).collect();
                    assert_eq!(dealt, (participant..tasks).step_by(participants).collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn a_participant_takes_its_own_range_first_and_then_all_others() {
        let cursors: [Cursor; 3] = Default::default();
        for (participant, cursor) in cursors.iter().enumerate() {
            cursor.set(start(participant, 3, 10));
        }
        let mut order = Vec::new();
        work(|participant| &cursors[participant], 1, 3, 10, |index| order.push(index));
        assert_eq!(order, [4, 5, 6, 7, 8, 9, 0, 1, 2, 3]);
        assert_eq!(cursors[0].claim(4), None);
    }

    #[test]
    fn a_cursor_at_the_last_number_does_not_overflow() {
        let cursor = Cursor::default();
        cursor.set(usize::MAX - 1);
        assert_eq!(cursor.claim(usize::MAX), Some(usize::MAX - 1));
        assert_eq!(cursor.claim(usize::MAX), None);
        assert_eq!(cursor.claim(usize::MAX), None);
    }

    #[test]
    fn an_exhausted_cursor_gives_nothing() {
        let cursor = Cursor::default();
        cursor.exhaust();
        assert_eq!(cursor.claim(10), None);
    }
}
