//! Independent problems on all cores.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Calls a function with each number, on a thread of its own for each core. (A problem that waits for a rayon pool
/// would begin another, and that yet another, if these threads were rayon's.)
///
/// # Panics
/// When a call panics; then no further ones begin.
pub fn for_each(numbers: Range<u64>, run: impl Fn(u64) + Sync) {
    for_each_with(numbers, || (), |(), number| run(number));
}

/// [`for_each`] with something that each thread makes once and keeps.
///
/// # Panics
/// As [`for_each`].
pub fn for_each_with<T>(numbers: Range<u64>, make: impl Fn() -> T + Sync, run: impl Fn(&mut T, u64) + Sync) {
    /// Leaves nothing to do when its thread panics.
    struct Stop<'a>(&'a AtomicU64, u64);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.0.store(self.1, Ordering::Relaxed);
            }
        }
    }
    let next = AtomicU64::new(numbers.start);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                let (_stop, mut kept) = (Stop(&next, numbers.end), make());
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= numbers.end {
                        return;
                    }
                    run(&mut kept, number);
                }
            });
        }
    });
}
