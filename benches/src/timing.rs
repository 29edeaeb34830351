//! The best and the median of many calls.

use std::time::{Duration, Instant};

/// How long a call took.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The fastest call: what the code can do when nothing else disturbs it.
    pub seconds_min: f64,
    /// The median: what a user will see.
    pub seconds_median: f64,
    /// Calls that were timed.
    pub calls: usize,
}

impl Timing {
    /// The best and the median of the seconds of calls, at least one.
    pub fn of(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        // A clock that did not tick makes no infinite speeds.
        let seconds_min = seconds[0].max(1e-9);
        let seconds_median = seconds[seconds.len() / 2].max(1e-9);
        Self { seconds_min, seconds_median, calls: seconds.len() }
    }
}

/// How long to go on.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Calls go on until so much time has passed ...
    pub time: Duration,
    /// ... and at least so many were timed.
    pub least_calls: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { time: Duration::from_millis(250), least_calls: 5 }
    }
}

/// Calls that are not timed: they fetch code and data, and wake threads and clocks up.
const WARM_UP: usize = 2;

/// Times a call again and again.
pub fn time<E>(budget: Budget, mut call: impl FnMut() -> Result<(), E>) -> Result<Timing, E> {
    for _ in 0..WARM_UP {
        call()?;
    }
    let mut seconds = Vec::new();
    let start = Instant::now();
    while seconds.len() < budget.least_calls.max(1) || start.elapsed() < budget.time {
        let before = Instant::now();
        call()?;
        seconds.push(before.elapsed().as_secs_f64());
    }
    Ok(Timing::of(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_no_longer_than_the_median_and_calls_are_counted() {
        let mut calls = 0;
        let budget = Budget { time: Duration::ZERO, least_calls: 7 };
        let timing = time(budget, || {
            calls += 1;
            Ok::<(), ()>(())
        })
        .unwrap();
        assert_eq!((timing.calls, calls), (7, 7 + WARM_UP));
        assert!(timing.seconds_min <= timing.seconds_median);
        assert_eq!(time(budget, || Err("no")).unwrap_err(), "no");
    }
}
