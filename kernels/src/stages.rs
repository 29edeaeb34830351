//! Where the time of a call goes: a clock that kernels read between their stages, while a study asks for it.
//!
//! The clock exists with the feature `stages` alone; without it every function here is empty. Times are summed over
//! the threads, so a stage of two busy threads counts twice the time that passed. One study at a time: the sums are
//! those of the process.

use std::fmt;

/// A part of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Copies of inputs into the order that a product reads.
    Pack,
    /// Winograd's transforms of inputs and outputs; the last one ends with the epilogue.
    Transform,
    /// Multiplications, and an epilogue that works on registers.
    Product,
    /// Bias, residual, activation and stores as a pass of their own, and the gradient of the bias.
    Epilogue,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Self; 4] = [Self::Pack, Self::Transform, Self::Product, Self::Epilogue];
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pack => "pack",
            Self::Transform => "transform",
            Self::Product => "product",
            Self::Epilogue => "epilogue",
        })
    }
}

#[cfg(feature = "stages")]
mod clock {
    use super::Stage;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
    use std::time::Instant;

    static RUNS: AtomicBool = AtomicBool::new(false);
    static NANOSECONDS: [AtomicU64; Stage::ALL.len()] = [const { AtomicU64::new(0) }; Stage::ALL.len()];

    /// Runs `work` with the clock on: what it returned, and the seconds of each stage in the order of [`Stage::ALL`].
    ///
    /// ```
    /// use kernels::study::{Stage, stages};
    /// let (four, seconds) = stages(|| 2 + 2);
    /// assert_eq!((four, seconds), (4, [0.0; Stage::ALL.len()]));
    /// ```
    pub fn stages<T>(work: impl FnOnce() -> T) -> (T, [f64; Stage::ALL.len()]) {
        for sum in &NANOSECONDS {
            sum.store(0, Relaxed);
        }
        RUNS.store(true, Relaxed);
        let result = work();
        RUNS.store(false, Relaxed);
        (result, std::array::from_fn(|stage| NANOSECONDS[stage].load(Relaxed) as f64 * 1e-9))
    }

    /// One thread's clock.
    pub(crate) struct Laps(Option<Instant>);

    impl Laps {
        /// Starts, while a study runs.
        #[inline(always)]
        pub fn start() -> Self {
            Self(RUNS.load(Relaxed).then(Instant::now))
        }

        /// What passed since the last lap was `stage`.
        #[inline(always)]
        pub fn lap(&mut self, stage: Stage) {
            if let Some(since) = &mut self.0 {
                let now = Instant::now();
                NANOSECONDS[stage as usize].fetch_add((now - *since).as_nanos() as u64, Relaxed);
                *since = now;
            }
        }
    }
}

#[cfg(feature = "stages")]
pub(crate) use clock::Laps;
#[cfg(feature = "stages")]
pub use clock::stages;

/// A clock that stands still.
#[cfg(not(feature = "stages"))]
pub(crate) struct Laps;

#[cfg(not(feature = "stages"))]
impl Laps {
    #[inline(always)]
    pub fn start() -> Self {
        Self
    }

    #[inline(always)]
    pub fn lap(&mut self, _stage: Stage) {}
}
