//! How work is cut into tasks and spread over threads: the caller's, never our own.

/// Who does the work of a call.
#[derive(Clone, Copy, Debug, Default)]
pub enum Parallelism<'t> {
    /// The calling thread alone; rayon is not touched.
    Serial,
    /// The current rayon pool: the one that the caller is inside of, else the global one.
    #[default]
    Current,
    /// A team: workers of the caller's pool that stay awake for a region.
    Team(&'t Team),
}

/// Workers of a pool that stay awake.
#[derive(Debug)]
pub struct Team(());

impl Parallelism<'_> {
    /// How many threads can work at once.
    pub fn threads(self) -> usize {
        match self {
            Self::Serial | Self::Team(_) => 1,
            #[cfg(feature = "rayon")]
            Self::Current => rayon::current_num_threads(),
            #[cfg(not(feature = "rayon"))]
            Self::Current => 1,
        }
    }

    /// This, or [`Parallelism::Serial`] where so little work does not repay waking other threads.
    pub(crate) fn for_seconds(self, seconds: f64) -> Self {
        match self {
            Self::Current if seconds < 100e-6 => Self::Serial,
            other => other,
        }
    }

    /// Runs `task(index, slot)` for each index below `tasks`, each once, on at most `slots` threads at once.
    /// A slot is below `slots` and belongs to one running task at a time, so it can index scratch memory.
    /// Which thread runs which task is not specified, so tasks may not depend on it.
    pub(crate) fn for_each(self, tasks: usize, slots: usize, task: &(dyn Fn(usize, usize) + Sync)) {
        let threads = self.threads().min(slots).min(tasks);
        if threads <= 1 {
            for index in 0..tasks {
                task(index, 0);
            }
            return;
        }
        #[cfg(feature = "rayon")]
        {
            let next = std::sync::atomic::AtomicUsize::new(0);
            rayon::scope(|scope| {
                for slot in 0..threads {
                    let next = &next;
                    scope.spawn(move |_| {
                        loop {
                            let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                            if index >= tasks {
                                break;
                            }
                            task(index, slot);
                        }
                    });
                }
            });
        }
    }
}
