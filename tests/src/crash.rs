//! The last words of a process that touched a guard page, or whose check panicked: the lines that were running.
//!
//! Each thread that checks has a slot for the line that it is busy with. A panic prints its own thread's line while
//! it unwinds. A handler for SIGSEGV prints all lines, then lets the signal do what it does.

use std::cell::Cell;
use std::fmt::{Display, Write as _};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

/// As many threads can have a line at once; more go without.
const SLOTS: usize = 32;
/// The longest line that is kept.
const LINE: usize = 400;

struct Slot {
    taken: AtomicBool,
    len: AtomicUsize,
    text: [AtomicU8; LINE],
}

static LINES: [Slot; SLOTS] = [const {
    Slot { taken: AtomicBool::new(false), len: AtomicUsize::new(0), text: [const { AtomicU8::new(0) }; LINE] }
}; SLOTS];

/// A thread's slot, given back when the thread ends.
struct Owned(Option<&'static Slot>);

impl Drop for Owned {
    fn drop(&mut self) {
        if let Some(slot) = self.0 {
            slot.len.store(0, Ordering::Relaxed);
            slot.taken.store(false, Ordering::Release);
        }
    }
}

thread_local! {
    static MINE: Owned = Owned(LINES.iter().find(|slot| !slot.taken.swap(true, Ordering::Acquire)));
    static BUFFER: Cell<String> = const { Cell::new(String::new()) };
}

/// Says that this thread is busy with a case until the value is dropped.
#[must_use]
pub fn running(case: &dyn Display) -> Running {
    let mut line = BUFFER.take();
    line.clear();
    let _ = write!(line, "{case}");
    MINE.with(|mine| {
        if let Some(slot) = mine.0 {
            slot.len.store(0, Ordering::Release);
            for (to, from) in slot.text.iter().zip(line.bytes()) {
                to.store(from, Ordering::Relaxed);
            }
            slot.len.store(line.len().min(LINE), Ordering::Release);
        }
    });
    BUFFER.set(line);
    Running(())
}

/// See [`running`].
#[derive(Debug)]
pub struct Running(());

impl Drop for Running {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let line = BUFFER.take();
            eprintln!("a panic in  {line}\n  again: cargo run -p tests --example repro -- \"{line}\"");
        }
        MINE.with(|mine| {
            if let Some(slot) = mine.0 {
                slot.len.store(0, Ordering::Release);
            }
        });
    }
}

/// Makes a fault print what was running. Only for tests of their own: fuzzers have handlers too.
pub fn report_faults() {
    #[cfg(all(target_os = "linux", target_pointer_width = "64", not(miri)))]
    signal::install();
}

#[cfg(all(target_os = "linux", target_pointer_width = "64", not(miri)))]
mod signal {
    use std::ffi::{c_int, c_void};
    use std::sync::atomic::Ordering;

    use super::LINES;

    const SIGSEGV: c_int = 11;
    /// What a signal does by default.
    const SIG_DFL: usize = 0;

    unsafe extern "C" {
        fn signal(number: c_int, handler: usize) -> usize;
        fn write(file: c_int, bytes: *const c_void, len: usize) -> isize;
    }

    pub fn install() {
        let handler: extern "C" fn(c_int) = report;
        // SAFETY: the handler only reads atomics and calls functions that are safe in handlers.
        unsafe { signal(SIGSEGV, handler as usize) };
    }

    fn say(bytes: &[u8]) {
        // SAFETY: the bytes are readable, and standard error takes any.
        unsafe { write(2, bytes.as_ptr().cast(), bytes.len()) };
    }

    extern "C" fn report(_: c_int) {
        say(b"\nmemory out of bounds (SIGSEGV) in one of\n");
        for slot in &LINES {
            let len = slot.len.load(Ordering::Acquire);
            if len > 0 {
                say(b"  cargo run -p tests --example repro -- \"");
                for byte in &slot.text[..len] {
                    say(&[byte.load(Ordering::Relaxed)]);
                }
                say(b"\"\n");
            }
        }
        // SAFETY: back to the default; the faulting instruction runs again and ends the process.
        unsafe { signal(SIGSEGV, SIG_DFL) };
    }
}
