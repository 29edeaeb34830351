//! What only the inside shows: which helpers are on duty. What users see is tested in the `tests` crate.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::{Parallelism, Team, TeamOptions};

/// Spins until the condition holds; no failure of timing, however slow the machine, takes this long.
fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain for {what}");
        std::thread::yield_now();
    }
}

fn in_pool<R: Send>(threads: usize, run: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(run)
}

/// A loop that ends only if a helper comes.
fn meet(team: &Team) {
    let here = AtomicUsize::new(0);
    Parallelism::Team(team).for_each(2, 2, &|_, _| {
        here.fetch_add(1, Ordering::SeqCst);
        wait_for("a helper", || here.load(Ordering::SeqCst) == 2);
    });
}

#[test]
fn idle_helpers_leave_and_are_called_back() {
    in_pool(2, || {
        Team::with(TeamOptions::new().helpers(1).idle(Duration::from_micros(200)), |team| {
            for _ in 0..20 {
                meet(team);
                wait_for("the helper to leave", || team.crew().on_duty() == 0);
            }
        });
    });
}

#[test]
fn a_helper_with_no_idle_time_at_all_still_helps_when_called() {
    in_pool(2, || {
        Team::with(TeamOptions::new().helpers(1).idle(Duration::ZERO), |team| {
            for _ in 0..100 {
                meet(team);
            }
        });
    });
}

#[test]
fn helpers_leave_at_the_end_of_the_region() {
    in_pool(3, || {
        let crew = Team::with(TeamOptions::new().helpers(2).idle(Duration::MAX), |team| {
            meet(team);
            team.crew()
        });
        wait_for("the helpers to leave", || crew.on_duty() == 0);
    });
}

#[test]
fn a_smaller_region_right_after_a_larger_one_gets_its_helper() {
    in_pool(4, || {
        for _ in 0..200 {
            Team::with(TeamOptions::new().helpers(3).idle(Duration::MAX), meet);
            Team::with(TeamOptions::new().helpers(1).idle(Duration::MAX), meet);
        }
    });
}

#[test]
fn calls_do_not_pile_up_in_a_pool_whose_workers_never_come() {
    let (held, release) = (AtomicBool::new(false), AtomicBool::new(false));
    in_pool(2, || {
        rayon::scope(|outer| {
            outer.spawn(|_| {
                held.store(true, Ordering::SeqCst);
                wait_for("the release", || release.load(Ordering::SeqCst));
            });
            wait_for("the other worker", || held.load(Ordering::SeqCst));
            let sum = AtomicUsize::new(0);
            for _ in 0..1000 {
                Team::with(TeamOptions::new().helpers(1), |team| {
                    Parallelism::Team(team).for_each(4, 2, &|index, _| {
                        sum.fetch_add(index, Ordering::Relaxed);
                    });
                    assert!(team.crew().on_duty() <= 1);
                });
            }
            assert_eq!(sum.into_inner(), 6000);
            release.store(true, Ordering::SeqCst);
        });
    });
}

#[test]
fn a_call_that_runs_on_the_callers_own_stack_leaves_at_once() {
    // The pool's other worker is held, so the job that the caller pops while it waits for its scope is the helper's.
    let (held, release) = (AtomicBool::new(false), AtomicBool::new(false));
    in_pool(2, || {
        rayon::scope(|outer| {
            outer.spawn(|_| {
                held.store(true, Ordering::SeqCst);
                wait_for("the release", || release.load(Ordering::SeqCst));
            });
            wait_for("the other worker", || held.load(Ordering::SeqCst));
            Team::with(TeamOptions::new().helpers(1).idle(Duration::MAX), |team| {
                assert_eq!(team.crew().on_duty(), 1);
                wait_for("the job to run here", || {
                    rayon::yield_local();
                    team.crew().on_duty() == 0
                });
            });
            release.store(true, Ordering::SeqCst);
        });
    });
}

#[test]
fn small_work_stays_on_the_calling_thread() {
    let serial = |parallelism: Parallelism| matches!(parallelism, Parallelism::Serial);
    assert!(serial(Parallelism::Serial.for_seconds(1.0)));
    assert!(serial(Parallelism::Current.for_seconds(20e-6)));
    assert!(!serial(Parallelism::Current.for_seconds(1e-3)));
    Team::scope(|team| {
        assert!(serial(Parallelism::Team(team).for_seconds(1e-6)));
        assert!(!serial(Parallelism::Team(team).for_seconds(20e-6)));
    });
}
