//! Independent problems on all cores.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Calls a function with each number, on a thread of its own for each core. (A problem that waits for a rayon pool
/// would begin another, and that yet another, if these threads were rayon's.)
///
/// # Panics
/// When a call panics.
pub fn for_each(numbers: Range<u64>, run: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(numbers.start);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= numbers.end {
                        return;
                    }
                    run(number);
                }
            });
        }
    });
}
