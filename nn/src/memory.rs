//! Memory that goes from one value to the next: a step of training needs the same sizes as the one before.
//!
//! ```text
//! layer ── room ──► value ──► ... ──► recycle          the pool is the network's, and lent to the thread for a pass
//!           ▲                            │
//!           └────────── pool ◄───────────┘
//! ```
//!
//! Fresh memory comes from the operating system page by page, each of them a fault and a fill: for large values that
//! takes as long as computing them. Outside of a network's pass there is no pool, and memory is allocated and freed as
//! everywhere.

use std::cell::RefCell;
use std::collections::HashMap;

use crate::tensor::Tensor;

/// Values with fewer elements are left to the allocator, which keeps them in lists of its own.
const LEAST: usize = 4096;

/// Vectors that nobody needs any more, by their length.
#[derive(Default)]
pub(crate) struct Pool(HashMap<usize, Vec<Vec<f32>>>);

thread_local! {
    /// The pool of the network whose pass this thread runs.
    static LENT: RefCell<Option<Pool>> = const { RefCell::new(None) };
}

impl Pool {
    /// Runs a pass with this pool. A pass inside of a pass has the pool of the outer one.
    pub fn lend<R>(&mut self, pass: impl FnOnce() -> R) -> R {
        /// Gives the pool back, even if the pass panics.
        struct Return<'a>(&'a mut Pool);
        impl Drop for Return<'_> {
            fn drop(&mut self) {
                *self.0 = LENT.take().unwrap_or_default();
            }
        }
        if is_pass() {
            return pass();
        }
        LENT.set(Some(std::mem::take(self)));
        let _back = Return(self);
        pass()
    }

    /// Gives all memory back to the allocator.
    pub fn clear(&mut self) {
        self.0.clear();
    }
}

/// Whether this thread runs the pass of a network, in which nobody can look at a value in between.
pub(crate) fn is_pass() -> bool {
    LENT.with_borrow(Option::is_some)
}

/// Room for a value of which every element will be written: it may hold anything.
pub(crate) fn room(len: usize) -> Vec<f32> {
    let used = if len < LEAST {
        None
    } else {
        LENT.with_borrow_mut(|lent| lent.as_mut().and_then(|Pool(pool)| pool.get_mut(&len)?.pop()))
    };
    used.unwrap_or_else(|| kernels::zeros(len))
}

/// Takes the memory of a value back, if nobody else has it.
pub(crate) fn recycle(value: Tensor) {
    if value.len() < LEAST || !is_pass() {
        return;
    }
    if let Ok(value) = value.try_into_owned_nocopy() {
        let len = value.len();
        let (elements, offset) = value.into_raw_vec_and_offset();
        if elements.len() == len && offset == Some(0) {
            LENT.with_borrow_mut(|lent| {
                if let Some(Pool(pool)) = lent {
                    pool.entry(len).or_default().push(elements);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::tensor;

    #[test]
    fn memory_comes_back_within_passes_alone() {
        let value = || tensor(&[LEAST], room(LEAST)).unwrap();
        let mut pool = Pool::default();
        recycle(value());
        pool.lend(|| {
            let first = value();
            let (address, other) = (first.as_ptr(), first.clone());
            recycle(first); // somebody else has it
            assert_ne!(value().as_ptr(), address);
            recycle(other);
            assert_eq!(value().as_ptr(), address);
            recycle(tensor(&[2], room(2)).unwrap());
        });
        assert!(!is_pass());
        let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.lend(|| panic!("on purpose"))));
        assert!(panics.is_err() && !is_pass());
        pool.clear();
    }
}
