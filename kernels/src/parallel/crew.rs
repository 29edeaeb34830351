//! The helpers behind a team, and how a loop reaches them. This is the only lock-free code of the crate.
//!
//! One word of state is all that callers and helpers agree on:
//!
//! ```text
//! state = | epoch | CLOSED | OPEN | helpers that have entered (16 bits) |
//!
//! caller                                     helper (a job in the caller's rayon pool)
//! ------                                     ------
//! takes the turn (busy := true)              spins on the state until OPEN with an epoch that it has not seen,
//! writes the job and the cursors             or CLOSED, or its idle time is over
//! (1) state += epoch + OPEN, calls helpers   (2) state += 1; was it OPEN? if not, (5) and spins again
//! runs tasks as participant 0                (3) reads the job, runs tasks as the participant of its seat
//! (4) state -= OPEN                          (5) state -= 1
//! (6) waits until nobody is entered
//! gives the turn back (busy := false)
//! ```
//!
//! **No helper touches a job after its loop has returned.** A helper reads the job (3) only if its own increment (2)
//! found OPEN. All changes of the state are read-modify-writes, so they have one order, and in it (2) lies between (1)
//! and (4) of one loop. The caller returns, or writes the next job, only when it has read a count of zero after (4):
//! any such (2) has then been undone by its (5), and a later (2) finds OPEN gone.
//!
//! **Who sees what.** (1) releases and (2) acquires: the helper sees the job, the cursors, and all that the caller did
//! before. (5) releases and (6) acquires: the caller sees all that helpers did. Other read-modify-writes in between do
//! not break these pairs (they continue the release sequence). The turn, taken with acquire and given back with
//! release, does the same between two callers, a seat between the helpers that sit on it one after the other.
//!
//! **No lost wake-up.** `on_duty` counts helper jobs that are queued or running. A helper that gives up decrements it
//! and then looks at the state once more; a caller changes the state and then looks at `on_duty`; all four are
//! sequentially consistent, so at least one sees the other: the caller calls a new helper, or the helper comes back
//! (both claim the place by an increment that stops at the limit, so one of them wins). Even a lost call would cost
//! help, never an end: the caller runs every task that nobody claims.
//!
//! **No deadlock.** The caller waits (6) only for helpers inside a task; a helper that has not come is not waited for.
//! A loop waits for its tasks, a task for the work that it forked, and that for what the thread that runs it began
//! later (rayon's waiting threads run other jobs on top of their stack): each wait is for something that started later
//! than the waiter, so there is no cycle. Whoever finds the turn taken (a loop inside a task, another thread that
//! shares the team) does not wait for it but runs its loop alone. A helper job never spins above a loop or region on
//! the same stack: it leaves at once. Outside of tasks a helper holds its worker for no longer than its idle time.
//!
//! **Panics** are caught around each participant's work; the first payload is kept, the cursors are exhausted, and the
//! caller resumes the panic after (6).

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::claim::{self, Cursor};

/// The bits that count helpers inside a loop. Rayon has fewer threads than that.
const ENTERED: usize = (1 << 16) - 1;
/// There is a job to enter.
const OPEN: usize = 1 << 16;
/// The region is over: helpers leave.
const CLOSED: usize = 1 << 17;
/// The rest counts loops. It may wrap: a helper that slept through all of them misses one loop.
const EPOCH: usize = 1 << 18;
/// What no epoch is equal to.
const NO_EPOCH: usize = 1;

/// Looks at the state between two looks at the clock: 2 microseconds on a Zen 3. After them the thread yields, for the
/// sake of whoever needs the core more; where nobody does, that takes 0.8 microseconds, a loop published meanwhile is
/// seen 0.4 late on average, and the median cost of a loop stays below 1.5 microseconds (`kernelbench parallel`).
const SPINS: usize = 64;

type Task<'t> = dyn Fn(usize, usize) + Sync + 't;

/// What the participants of a loop need to know.
#[derive(Clone, Copy)]
struct Job {
    task: *const Task<'static>,
    participants: usize,
    tasks: usize,
}

/// A value that shares its cache lines with no other.
#[repr(align(128))]
struct Padded<T>(T);

/// The place of a participant: the caller has the first.
#[derive(Default)]
struct Seat {
    cursor: Cursor,
    taken: AtomicBool,
}

/// The state that a caller shares with its helpers. Kept by its thread from region to region.
pub(super) struct Crew {
    state: Padded<AtomicUsize>,
    job: Padded<UnsafeCell<Job>>,
    /// Whether some caller has the turn to run a loop.
    busy: Padded<AtomicBool>,
    /// Helper jobs that are queued in the pool or running.
    on_duty: AtomicUsize,
    /// How many helpers the region wants.
    helpers: AtomicUsize,
    idle_micros: AtomicUsize,
    panicked: AtomicBool,
    payload: Mutex<Option<Box<dyn Any + Send>>>,
    seats: Box<[Seat]>,
}

// SAFETY:
// - `job` is written only by the holder of `busy` while no helper is entered, and read only by that holder and by
//   helpers that are entered (module docs), so there is no data race on it.
// - The task behind its pointer is `Sync`, and is called only while the loop that borrowed it has not returned.
// - All other fields are `Send` and `Sync` themselves.
unsafe impl Send for Crew {}
// SAFETY: as above.
unsafe impl Sync for Crew {}

impl Crew {
    /// A crew for at most `capacity` helpers, closed.
    fn new(capacity: usize) -> Self {
        let nothing: &'static Task<'static> = &|_, _| {};
        Self {
            state: Padded(AtomicUsize::new(CLOSED)),
            job: Padded(UnsafeCell::new(Job { task: nothing, participants: 0, tasks: 0 })),
            busy: Padded(AtomicBool::new(false)),
            on_duty: AtomicUsize::new(0),
            helpers: AtomicUsize::new(0),
            idle_micros: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            payload: Mutex::new(None),
            seats: (0..=capacity).map(|_| Seat::default()).collect(),
        }
    }

    pub fn threads(&self) -> usize {
        self.helpers.load(Relaxed) + 1
    }

    /// Helper jobs that are queued in the pool or running.
    #[cfg(test)]
    pub fn on_duty(&self) -> usize {
        self.on_duty.load(SeqCst)
    }

    /// Begins a region and calls the helpers. To be called by the thread that keeps the crew, between regions.
    fn open(self: &Arc<Self>, helpers: usize, idle: Duration) {
        debug_assert!(helpers < self.seats.len());
        self.helpers.store(helpers, Relaxed);
        self.idle_micros.store(usize::try_from(idle.as_micros()).unwrap_or(usize::MAX), Relaxed);
        self.state.0.fetch_and(!CLOSED, SeqCst);
        self.call_helpers();
    }

    /// Spawns a job for each helper that is not on duty.
    fn call_helpers(self: &Arc<Self>) {
        while self.sign_on() {
            let crew = Arc::clone(self);
            rayon::spawn(move || help(&crew));
        }
    }

    /// Claims a place on duty, if one is free.
    fn sign_on(&self) -> bool {
        let helpers = self.helpers.load(Relaxed);
        self.on_duty.fetch_update(SeqCst, SeqCst, |on_duty| (on_duty < helpers).then_some(on_duty + 1)).is_ok()
    }

    /// Runs the tasks on at most `most` threads and tells whether it did: not so where somebody else has the turn.
    pub fn run(self: &Arc<Self>, most: usize, tasks: usize, task: &Task<'_>) -> bool {
        let participants = self.threads().min(most);
        if participants <= 1 || self.busy.0.swap(true, Acquire) {
            return false;
        }
        let job = Job { task: erase(task), participants, tasks };
        for (participant, seat) in self.seats[..participants].iter().enumerate() {
            seat.cursor.set(claim::start(participant, participants, tasks));
        }
        // SAFETY: this thread has the turn, and the loop before ended with no helper entered.
        unsafe { *self.job.0.get() = job };

        // From here to the end of the wait nothing may unwind: the helpers hold a borrow of `task`.
        self.state.0.fetch_add(EPOCH | OPEN, SeqCst);
        self.watch(job, || {
            self.call_helpers();
            // SAFETY: `task` is borrowed by this very function.
            unsafe { self.take_part(0, job) }
        });
        let mut state = self.state.0.fetch_sub(OPEN, Acquire);
        let mut spins = 0;
        while state & ENTERED != 0 {
            spins += 1;
            if spins % SPINS == 0 {
                std::thread::yield_now();
            }
            std::hint::spin_loop();
            state = self.state.0.load(Acquire);
        }

        let payload = if self.panicked.swap(false, Relaxed) { self.payload().take() } else { None };
        self.busy.0.store(false, Release);
        if let Some(payload) = payload {
            resume_unwind(payload);
        }
        true
    }

    /// Runs tasks as the participant of this seat, until none is left.
    ///
    /// # Safety
    /// - The loop that published `job` has not returned: the thread is its caller, or has entered it.
    /// - No other thread takes part from the same seat.
    unsafe fn take_part(&self, seat: usize, job: Job) {
        debug_assert!(seat < job.participants);
        // SAFETY: the loop that has not returned borrows the task.
        let task = unsafe { &*job.task };
        claim::work(|owner| &self.seats[owner].cursor, seat, job.participants, job.tasks, |index| task(index, seat));
    }

    /// Runs `work`; should it panic, leaves no task to claim and keeps the payload for the caller.
    fn watch(&self, job: Job, work: impl FnOnce()) {
        if let Err(payload) = catch_unwind(AssertUnwindSafe(work)) {
            for seat in &self.seats[..job.participants] {
                seat.cursor.exhaust();
            }
            let mut first = self.payload();
            match *first {
                None => *first = Some(payload),
                // To drop it could panic again, here where nobody may unwind.
                Some(_) => std::mem::forget(payload),
            }
            self.panicked.store(true, Relaxed);
        }
    }

    fn payload(&self) -> std::sync::MutexGuard<'_, Option<Box<dyn Any + Send>>> {
        self.payload.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sits on a free seat and helps until the region is over or nothing was to do for the idle time. Tells whether
    /// the helper is to come back at once, still on duty.
    fn attend(&self) -> bool {
        let mut seen = NO_EPOCH;
        let helpers = self.helpers.load(Relaxed);
        // There may be none: a helper of an earlier, larger region can be late.
        if let Some(seat) = (1..=helpers).find(|&seat| !self.seats[seat].taken.swap(true, Acquire)) {
            let mut idle_since = None;
            // A region may have begun that has no such seat.
            while seat <= self.helpers.load(Relaxed) && self.wait_for_loop(seen, &mut idle_since) {
                if self.enter(seat, &mut seen) {
                    idle_since = None;
                }
            }
            self.seats[seat].taken.store(false, Release);
            // A loop that had no place for a seat of an earlier, larger region may have counted on this helper alone.
            if seat > self.helpers.load(Relaxed) {
                seen = NO_EPOCH;
            }
        }
        self.on_duty.fetch_sub(1, SeqCst);
        self.is_news(self.state.0.load(SeqCst), seen) && self.sign_on()
    }

    fn is_news(&self, state: usize, seen: usize) -> bool {
        state & OPEN != 0 && state & !(EPOCH - 1) != seen
    }

    /// Spins until there is a loop that was not seen. False if the helper should leave.
    fn wait_for_loop(&self, seen: usize, idle_since: &mut Option<Instant>) -> bool {
        loop {
            for _ in 0..SPINS {
                let state = self.state.0.load(Relaxed);
                if self.is_news(state, seen) {
                    return true;
                }
                if state & CLOSED != 0 {
                    return false;
                }
                std::hint::spin_loop();
            }
            let idle = idle_since.get_or_insert_with(Instant::now).elapsed();
            if idle.as_micros() >= self.idle_micros.load(Relaxed) as u128 {
                return false;
            }
            std::thread::yield_now();
        }
    }

    /// Enters the loop that is open, if it still is, and tells whether it had a place for this seat.
    fn enter(&self, seat: usize, seen: &mut usize) -> bool {
        let mut took_part = false;
        let state = self.state.0.fetch_add(1, Acquire);
        if state & OPEN != 0 {
            *seen = state & !(EPOCH - 1);
            // SAFETY: this helper is entered, so that the caller does not write the job.
            let job = unsafe { *self.job.0.get() };
            took_part = seat < job.participants;
            if took_part {
                // SAFETY: the caller waits for the decrement below, and the seat is this helper's.
                self.watch(job, || unsafe { self.take_part(seat, job) });
            }
        }
        self.state.0.fetch_sub(1, Release);
        took_part
    }
}

/// Forgets how long the task lives, so that helpers can be told of it.
///
/// The pointer must be followed only while the borrow lasts: [`Crew::run`] does not end it before the helpers have
/// left.
fn erase<'t>(task: &'t Task<'t>) -> *const Task<'static> {
    // SAFETY: the two types differ in a lifetime alone, and to hold a pointer asks nothing of what it points to.
    unsafe { std::mem::transmute::<*const Task<'t>, *const Task<'static>>(task) }
}

/// The job that is spawned in the pool for each helper.
fn help(crew: &Arc<Crew>) {
    let before = MEMBERSHIP.take();
    if before.inside {
        MEMBERSHIP.set(before);
        crew.on_duty.fetch_sub(1, SeqCst);
        return;
    }
    MEMBERSHIP.set(Membership { crew: Some(Arc::clone(crew)), inside: true });
    while crew.attend() {}
    MEMBERSHIP.set(before);
}

/// What a thread has to do with crews.
#[derive(Default)]
struct Membership {
    /// The crew of the region or helper that the thread is inside of, else the one that it keeps for its next region.
    crew: Option<Arc<Crew>>,
    inside: bool,
}

thread_local! {
    /// Taken out and put back, never borrowed.
    static MEMBERSHIP: Cell<Membership> = const { Cell::new(Membership { crew: None, inside: false }) };
}

/// A region of the current thread. Its end sends the helpers away, without waiting for those that have not come.
pub(super) struct Region {
    crew: Arc<Crew>,
    nested: bool,
}

impl Region {
    /// Begins a region with so many helpers at most, or joins the one that the thread is inside of.
    ///
    /// A thread keeps its crew, so that jobs which the pool has not come to run are not queued again by the next
    /// region: they are bounded by the number of workers. (The current pool of a thread never changes: a worker's
    /// is its own, other threads' is the global one.)
    pub fn begin(helpers: usize, idle: Duration) -> Self {
        let before = MEMBERSHIP.take();
        if let Membership { crew: Some(crew), inside: true } = &before {
            let crew = Arc::clone(crew);
            MEMBERSHIP.set(before);
            return Self { crew, nested: true };
        }
        let workers = rayon::current_num_threads();
        let capacity = if rayon::current_thread_index().is_some() { workers - 1 } else { workers };
        let crew = match before.crew {
            Some(crew) if crew.seats.len() == capacity + 1 => crew,
            _ => Arc::new(Crew::new(capacity)),
        };
        MEMBERSHIP.set(Membership { crew: Some(Arc::clone(&crew)), inside: true });
        let region = Self { crew, nested: false };
        region.crew.open(helpers.min(capacity), idle);
        region
    }

    pub fn crew(&self) -> &Arc<Crew> {
        &self.crew
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if !self.nested {
            self.crew.state.0.fetch_or(CLOSED, Relaxed);
            MEMBERSHIP.set(Membership { crew: Some(Arc::clone(&self.crew)), inside: false });
        }
    }
}
