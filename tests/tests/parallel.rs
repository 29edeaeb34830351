//! Loops on the caller's threads: every task once, slots for one task at a time, panics, nesting, busy and
//! oversubscribed pools, teams on many threads at once.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use kernels::internals::{Loops, eagerly};
use kernels::{Parallelism, Team, TeamOptions};

/// Fails, rather than hangs, on a deadlock.
fn in_time<R: Send + 'static>(run: impl FnOnce() -> R + Send + 'static) -> R {
    let (sender, receiver) = mpsc::channel();
    let thread = std::thread::spawn(move || sender.send(run()));
    match receiver.recv_timeout(Duration::from_secs(120)) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("deadlock"),
        Err(mpsc::RecvTimeoutError::Disconnected) => resume_unwind(thread.join().unwrap_err()),
    }
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "waited in vain for {what}");
        std::thread::yield_now();
    }
}

fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

/// All the helpers that the pool has.
fn full() -> TeamOptions {
    TeamOptions::new().helpers(usize::MAX)
}

/// Runs a loop and checks that each task ran once, and each slot had one task at a time.
fn check(parallelism: Parallelism, tasks: usize, slots: usize) {
    let runs: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
    let taken: Vec<AtomicBool> = (0..slots.max(1)).map(|_| AtomicBool::new(false)).collect();
    parallelism.for_each(tasks, slots, &|index, slot| {
        assert!(!taken[slot].swap(true, Ordering::Relaxed), "slot {slot} is taken");
        runs[index].fetch_add(1, Ordering::Relaxed);
        taken[slot].store(false, Ordering::Relaxed);
    });
    assert!(runs.iter().all(|runs| runs.load(Ordering::Relaxed) == 1));
}

/// All three ways, in the current pool.
fn check_all(tasks: usize, slots: usize) {
    check(Parallelism::Serial, tasks, slots);
    check(Parallelism::Current, tasks, slots);
    Team::with(full(), |team| check(Parallelism::Team(team), tasks, slots));
}

/// A loop that ends only if a helper comes; then `then(slot)` runs on both threads.
fn meet(parallelism: Parallelism, then: impl Fn(usize) + Sync) {
    let here = AtomicUsize::new(0);
    parallelism.for_each(2, 2, &|_, slot| {
        here.fetch_add(1, Ordering::SeqCst);
        wait_for("a helper", || here.load(Ordering::SeqCst) == 2);
        then(slot);
    });
}

/// A panic that prints nothing.
fn panic_with(payload: &'static str) -> ! {
    resume_unwind(Box::new(payload))
}

fn payload_of(panic: Result<(), Box<dyn Any + Send>>) -> &'static str {
    panic.expect_err("a panic").downcast_ref::<&'static str>().expect("our payload")
}

/// A small generator (xorshift), for gaps.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

#[test]
fn every_task_runs_once_in_pools_of_every_size() {
    in_time(|| {
        for threads in [1, 2, 3, 7, 16] {
            pool(threads).install(|| {
                for tasks in [0, 1, 2, 3, 5, 16, 17, 100, 1000] {
                    for slots in [0, 1, 2, 3, threads, 100] {
                        check_all(tasks, slots);
                    }
                }
            });
        }
    });
}

#[test]
fn every_task_runs_once_outside_of_any_pool() {
    in_time(|| {
        for tasks in [0, 1, 2, 100] {
            check_all(tasks, 4);
        }
    });
}

#[test]
fn a_team_has_the_threads_that_the_pool_has_and_no_more() {
    assert_eq!(pool(1).install(|| Team::with(full(), Team::threads)), 1);
    assert_eq!(pool(3).install(|| Team::with(full(), Team::threads)), 3);
    assert_eq!(pool(3).install(|| Team::with(full().helpers(1), Team::threads)), 2);
    assert_eq!(pool(3).install(|| Team::with(full().helpers(0), Team::threads)), 1);
    let cores = std::thread::available_parallelism().unwrap().get();
    assert_eq!(pool(64).install(|| Team::scope(Team::threads)), cores.min(64));
    assert_eq!(pool(3).install(|| Parallelism::Current.threads()), 3);
    assert_eq!(pool(3).install(|| Parallelism::Serial.threads()), 1);
    assert_eq!(pool(3).install(|| Team::with(full(), |team| Parallelism::Team(team).threads())), 3);
}

#[test]
fn helpers_are_workers_of_the_callers_pool() {
    in_time(|| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).thread_name(|_| "ours".to_string()).build().unwrap();
        pool.install(|| {
            Team::with(full(), |team| {
                meet(Parallelism::Team(team), |_| assert_eq!(std::thread::current().name(), Some("ours")));
            });
        });
    });
}

#[test]
fn tasks_stay_with_their_participant_from_loop_to_loop() {
    in_time(|| {
        pool(2).install(|| {
            Team::with(full(), |team| {
                for _ in 0..100 {
                    let here = AtomicUsize::new(0);
                    // The first task of each range waits for the other, so that nobody needs help.
                    Parallelism::Team(team).for_each(2, 2, &|index, slot| {
                        here.fetch_add(1, Ordering::SeqCst);
                        wait_for("a helper", || here.load(Ordering::SeqCst) == 2);
                        assert_eq!(index, slot);
                    });
                }
            });
        });
    });
}

#[test]
fn loops_nest_in_tasks_of_every_kind() {
    in_time(|| {
        for threads in [1, 2, 3, 7] {
            pool(threads).install(|| {
                Team::with(full(), |team| {
                    for outer in [Parallelism::Serial, Parallelism::Current, Parallelism::Team(team)] {
                        for inner in [Parallelism::Serial, Parallelism::Current, Parallelism::Team(team)] {
                            for _ in 0..20 {
                                outer.for_each(5, 3, &|_, _| check(inner, 7, 2));
                            }
                        }
                    }
                });
            });
        }
    });
}

#[test]
fn regions_nest_in_regions_and_tasks() {
    in_time(|| {
        for threads in [1, 2, 3, 7] {
            pool(threads).install(|| {
                Team::with(full(), |outer| {
                    Team::with(full(), |inner| {
                        assert_eq!(inner.threads(), outer.threads());
                        check(Parallelism::Team(inner), 20, 8);
                        check(Parallelism::Team(outer), 20, 8);
                    });
                    for parallelism in [Parallelism::Current, Parallelism::Team(outer)] {
                        parallelism.for_each(5, 3, &|_, _| {
                            Team::with(full(), |inner| check(Parallelism::Team(inner), 9, 4));
                        });
                    }
                    check(Parallelism::Team(outer), 20, 8);
                });
            });
        }
    });
}

#[test]
fn an_inner_region_leaves_the_outer_one_its_helpers() {
    in_time(|| {
        pool(2).install(|| {
            Team::with(full(), |outer| {
                Team::with(full(), |inner| meet(Parallelism::Team(inner), |_| ()));
                meet(Parallelism::Team(outer), |_| ());
            });
        });
    });
}

#[test]
fn regions_nest_across_pools() {
    in_time(|| {
        let (one, two) = (pool(2), pool(3));
        one.install(|| {
            Team::with(full(), |outer| {
                for _ in 0..50 {
                    two.install(|| {
                        check(Parallelism::Team(outer), 10, 4);
                        Team::with(full(), |inner| {
                            check(Parallelism::Team(inner), 10, 4);
                            check(Parallelism::Team(outer), 10, 4);
                        });
                    });
                    check(Parallelism::Team(outer), 10, 4);
                }
            });
        });
    });
}

#[test]
fn rayon_itself_works_inside_regions_and_tasks() {
    in_time(|| {
        for threads in [1, 2, 3, 7] {
            pool(threads).install(|| {
                Team::with(full(), |team| {
                    for _ in 0..20 {
                        assert_eq!(rayon::join(|| 1, || rayon::join(|| 2, || 3)), (1, (2, 3)));
                        Parallelism::Team(team).for_each(4, 4, &|_, _| {
                            assert_eq!(rayon::join(|| 1, || rayon::join(|| 2, || 3)), (1, (2, 3)));
                        });
                    }
                });
            });
        }
    });
}

#[test]
fn a_team_in_a_busy_pool_does_without_helpers() {
    in_time(|| {
        let (pool, held, release) = (pool(3), AtomicUsize::new(0), AtomicBool::new(false));
        pool.in_place_scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|_| {
                    held.fetch_add(1, Ordering::SeqCst);
                    if held.load(Ordering::SeqCst) == 3 {
                        // The last worker finds all others busy.
                        for _ in 0..100 {
                            Team::with(full(), |team| {
                                for _ in 0..10 {
                                    check(Parallelism::Team(team), 20, 8);
                                }
                            });
                        }
                        release.store(true, Ordering::SeqCst);
                    }
                    wait_for("the release", || release.load(Ordering::SeqCst));
                });
            }
        });
    });
}

#[test]
fn many_threads_have_teams_in_one_pool_at_once() {
    in_time(|| {
        let pool = pool(3);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        pool.install(|| Team::with(full(), |team| check(Parallelism::Team(team), 50, 8)));
                        Team::with(full(), |team| check(Parallelism::Team(team), 50, 8));
                        check(Parallelism::Current, 50, 8);
                    }
                });
            }
        });
    });
}

#[test]
fn many_threads_share_one_team() {
    in_time(|| {
        pool(3).install(|| {
            Team::with(full(), |team| {
                std::thread::scope(|scope| {
                    for _ in 0..6 {
                        scope.spawn(|| {
                            for _ in 0..200 {
                                check(Parallelism::Team(team), 20, 4);
                            }
                        });
                    }
                });
                check(Parallelism::Team(team), 20, 4);
            });
        });
    });
}

#[test]
fn a_panic_in_any_task_reaches_the_caller_and_the_next_loop_works() {
    in_time(|| {
        for threads in [1, 2, 3, 7] {
            pool(threads).install(|| {
                Team::with(full(), |team| {
                    for parallelism in [Parallelism::Serial, Parallelism::Current, Parallelism::Team(team)] {
                        for bad in 0..10 {
                            let running = AtomicUsize::new(0);
                            let outcome = catch_unwind(AssertUnwindSafe(|| {
                                parallelism.for_each(10, 4, &|index, _| {
                                    running.fetch_add(1, Ordering::SeqCst);
                                    if index == bad {
                                        running.fetch_sub(1, Ordering::SeqCst);
                                        panic_with("bad");
                                    }
                                    std::thread::yield_now();
                                    running.fetch_sub(1, Ordering::SeqCst);
                                });
                            }));
                            assert_eq!(payload_of(outcome), "bad");
                            assert_eq!(running.into_inner(), 0, "a task runs on after the loop");
                            check(parallelism, 30, 4);
                        }
                    }
                });
            });
        }
    });
}

#[test]
fn a_panic_in_a_helper_and_one_in_the_caller_are_told_apart() {
    in_time(|| {
        pool(2).install(|| {
            Team::with(full(), |team| {
                let team = Parallelism::Team(team);
                for (bad, name) in [(0, "caller"), (1, "helper")] {
                    let outcome = catch_unwind(AssertUnwindSafe(|| {
                        meet(team, |slot| {
                            if slot == bad {
                                panic_with(name);
                            }
                        });
                    }));
                    assert_eq!(payload_of(outcome), name);
                    meet(team, |_| ());
                }
                let both = catch_unwind(AssertUnwindSafe(|| meet(team, |_| panic_with("both"))));
                assert_eq!(payload_of(both), "both");
                meet(team, |_| ());
            });
        });
    });
}

#[test]
fn a_region_that_panics_leaves_the_next_one_in_order() {
    in_time(|| {
        pool(2).install(|| {
            for _ in 0..20 {
                let outcome = catch_unwind(|| {
                    Team::with(full(), |team| {
                        check(Parallelism::Team(team), 10, 2);
                        panic_with("region")
                    })
                });
                assert_eq!(payload_of(outcome), "region");
                Team::with(full(), |team| meet(Parallelism::Team(team), |_| ()));
            }
        });
    });
}

/// A number without any synchronisation of its own: a thread sanitizer sees whether a loop orders what it must.
struct Plain(UnsafeCell<usize>);

// SAFETY: used only by the task that has the slot, and by the caller between loops.
unsafe impl Sync for Plain {}

/// Many tiny loops with gaps of all sizes around the idle time; each loop's sum must be right when it returns. The
/// task borrows locals of the loop, so that a helper which came late would read memory that is in use again.
fn tiny_loops(threads: usize, loops: usize, idle: Duration) {
    pool(threads).install(|| {
        Team::with(full().idle(idle), |team| {
            let mut random = Random(0x9e37_79b9_7f4a_7c15);
            for round in 0..loops {
                let tasks = 1 + random.below(9) as usize;
                let slots = 1 + random.below(threads as u64 + 1) as usize;
                let mut sums = [const { Plain(UnsafeCell::new(0)) }; 20];
                Parallelism::Team(team).for_each(tasks, slots, &|index, slot| {
                    // SAFETY: the slot is this task's.
                    unsafe { *sums[slot].0.get() += (index + 1) * (round + 1) }
                });
                let sum: usize = sums.iter_mut().map(|sum| std::mem::replace(sum.0.get_mut(), usize::MAX / 2)).sum();
                assert_eq!(sum, (round + 1) * tasks * (tasks + 1) / 2, "round {round}");
                let gap = if random.below(100) == 0 { random.below(4000) } else { random.below(20) };
                for _ in 0..gap {
                    std::hint::spin_loop();
                }
            }
        });
    });
}

#[test]
fn a_hundred_thousand_tiny_loops_add_up() {
    in_time(|| {
        tiny_loops(2, 100_000, Duration::from_millis(1));
        tiny_loops(2, 20_000, Duration::from_micros(5));
    });
}

#[test]
fn tiny_loops_add_up_with_more_threads_than_cores() {
    in_time(|| {
        for threads in [3, 7, 16] {
            tiny_loops(threads, 2_000, Duration::from_micros(100));
        }
    });
}

#[test]
#[ignore = "takes a minute; run it in release after a change of the protocol"]
fn millions_of_tiny_loops_add_up() {
    for idle in [0, 5, 50, 1000].map(Duration::from_micros) {
        tiny_loops(2, 1_000_000, idle);
        tiny_loops(3, 50_000, idle);
    }
}

#[test]
fn a_call_that_gives_away_small_loops_says_how_many_met_a_second_thread() {
    const LEN: usize = 40_000;
    let work = || {
        let mut sum = vec![2.0; LEN];
        kernels::sum::add(&vec![1.0; LEN], &mut sum, Parallelism::Current).unwrap();
        assert!(sum.iter().all(|&sum| sum == 3.0));
    };
    pool(2).install(|| {
        work();
        let ((), Loops { given, shared }) = eagerly(|| meet(Parallelism::Current, |_| {}));
        assert_eq!([given, shared], [1, 1], "a loop that ends only if a helper comes");
        let ((), Loops { given, .. }) = eagerly(work);
        assert_eq!(given, 1, "a loop that is too small to repay it");
        let ((), Loops { given, .. }) = eagerly(|| check(Parallelism::Serial, 5, 5));
        assert_eq!(given, 0, "there is nobody to give it to");
        let caught = catch_unwind(|| eagerly(|| panic_with("thrown")));
        assert_eq!(payload_of(caught.map(drop)), "thrown");
        let ((), loops) = eagerly(|| ());
        assert_eq!(loops, Loops::default(), "the counts of a call that panicked are gone");
    });
}
