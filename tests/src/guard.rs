//! Memory that ends at pages which nobody may touch: a read or write one element too far ends the process.
//!
//! ```text
//! ┌───────────┬──────────────────────────────────┬───────────┐
//! │ no access │ data ▸ (left)  ...  (right) data │ no access │
//! └───────────┴──────────────────────────────────┴───────────┘
//! ```
//!
//! Sanitizers do not see gathers and streaming stores; pages see everything. A buffer is mapped once and used
//! for case after case. Other systems than 64-bit Linux get plain memory.

/// At which end of its memory the data lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The first element is the first of the page: reads before the start are caught.
    Left,
    /// The last element is the last of the page: reads past the end are caught.
    Right,
}

impl Side {
    /// The other side.
    pub const fn other(self) -> Self {
        match self {
            Self::Left => Self::Right,
            Self::Right => Self::Left,
        }
    }
}

/// What outputs hold before a call: a NaN that no computation makes.
pub const SENTINEL: u32 = 0x7fc0_dead;
/// What workspaces hold before a call: another such NaN.
pub const POISON: u32 = 0x7fc0_beef;

/// A growing buffer between two guards.
#[derive(Debug, Default)]
pub struct Guarded {
    memory: memory::Memory,
}

impl Guarded {
    /// `len` elements at one end of the memory, with the contents of earlier uses.
    pub fn floats(&mut self, len: usize, side: Side) -> &mut [f32] {
        let all = self.memory.at_least(len);
        match side {
            Side::Left => &mut all[..len],
            Side::Right => {
                let start = all.len() - len;
                &mut all[start..]
            }
        }
    }

    /// A copy of `from` at one end of the memory.
    pub fn copy(&mut self, from: &[f32], side: Side) -> &mut [f32] {
        let to = self.floats(from.len(), side);
        to.copy_from_slice(from);
        to
    }

    /// A copy of a mask at one end of the memory.
    pub fn copy_mask(&mut self, from: &[bool], side: Side) -> &[bool] {
        self.copy_any(from, side)
    }

    /// A copy of lengths or indices at one end of the memory.
    pub fn copy_indices(&mut self, from: &[usize], side: Side) -> &[usize] {
        self.copy_any(from, side)
    }

    fn copy_any<T: Copy>(&mut self, from: &[T], side: Side) -> &[T] {
        let bytes = size_of_val(from);
        // Plain memory may be less aligned than pages are: there is room to move.
        let room = self.floats((bytes + align_of::<T>()).div_ceil(size_of::<f32>()), side).as_mut_ptr_range();
        let (first, last) = (room.start.cast::<u8>(), room.end.cast::<u8>().wrapping_sub(bytes));
        let start = match side {
            Side::Left => first.wrapping_add(first.align_offset(align_of::<T>())),
            Side::Right => last.wrapping_sub(last.addr() % align_of::<T>()),
        };
        // SAFETY: the elements lie in the memory, aligned, and are written before they are read; `self` is borrowed as
        // long as they are.
        unsafe {
            let start = start.cast::<T>();
            start.copy_from_nonoverlapping(from.as_ptr(), from.len());
            std::slice::from_raw_parts(start, from.len())
        }
    }

    /// `len` elements of these bits at one end of the memory.
    pub fn filled(&mut self, len: usize, side: Side, bits: u32) -> &mut [f32] {
        let to = self.floats(len, side);
        to.fill(f32::from_bits(bits));
        to
    }
}

#[cfg(all(target_os = "linux", target_pointer_width = "64", not(miri)))]
mod memory {
    use std::ffi::{c_int, c_long, c_void};
    use std::ptr::null_mut;

    const PROT_NONE: c_int = 0;
    const PROT_READ_WRITE: c_int = 1 | 2;
    const MAP_PRIVATE_ANONYMOUS: c_int = 2 | 0x20;

    /// The size of a guard, and what bodies are a multiple of: the largest page of any Linux.
    const GUARD: usize = 1 << 16;

    unsafe extern "C" {
        fn mmap(addr: *mut c_void, len: usize, prot: c_int, flags: c_int, file: c_int, offset: c_long) -> *mut c_void;
        fn mprotect(addr: *mut c_void, len: usize, prot: c_int) -> c_int;
        fn munmap(addr: *mut c_void, len: usize) -> c_int;
    }

    /// A mapping: guard, body, guard.
    #[derive(Debug)]
    pub struct Memory {
        start: *mut u8,
        body: usize,
    }

    impl Default for Memory {
        fn default() -> Self {
            Self { start: null_mut(), body: 0 }
        }
    }

    // SAFETY: a `Memory` owns its mapping, which any thread may use.
    unsafe impl Send for Memory {}

    impl Memory {
        /// The whole body, which has room for `len` elements.
        pub fn at_least(&mut self, len: usize) -> &mut [f32] {
            let bytes = len * size_of::<f32>();
            if self.start.is_null() || bytes > self.body {
                *self = Self::map(bytes.next_power_of_two().next_multiple_of(GUARD));
            }
            // SAFETY: the body is mapped for reading and writing, zeroed by the system, aligned to pages,
            // and borrowed as long as `self`.
            unsafe { std::slice::from_raw_parts_mut(self.start.add(GUARD).cast(), self.body / size_of::<f32>()) }
        }

        fn map(body: usize) -> Self {
            // SAFETY: a fresh private mapping, all of whose pages are inaccessible, touches no other memory.
            let start = unsafe { mmap(null_mut(), body + 2 * GUARD, PROT_NONE, MAP_PRIVATE_ANONYMOUS, -1, 0) };
            assert!(start as isize != -1, "no memory for a guarded buffer of {body} bytes");
            // SAFETY: the body lies within the mapping that was just made.
            let status = unsafe { mprotect(start.byte_add(GUARD), body, PROT_READ_WRITE) };
            assert_eq!(status, 0, "the body of a guarded buffer could not be opened");
            Self { start: start.cast(), body }
        }
    }

    impl Drop for Memory {
        fn drop(&mut self) {
            if !self.start.is_null() {
                // SAFETY: the mapping is this one's own, and no borrow of it is left.
                unsafe { munmap(self.start.cast(), self.body + 2 * GUARD) };
            }
        }
    }
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64", not(miri))))]
mod memory {
    /// Plain memory, where there is no `mmap`.
    #[derive(Debug, Default)]
    pub struct Memory(Vec<f32>);

    impl Memory {
        /// The whole memory, which has room for `len` elements.
        pub fn at_least(&mut self, len: usize) -> &mut [f32] {
            if self.0.len() < len {
                self.0.resize(len, 0.0);
            }
            &mut self.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_lie_flush_against_either_guard() {
        let mut buffer = Guarded::default();
        for len in [0, 1, 17, 20_000, 3] {
            let left = buffer.filled(len, Side::Left, SENTINEL).as_ptr_range();
            assert_eq!(left.start as usize % 4096, 0);
            let right = buffer.copy(&vec![1.0; len], Side::Right).as_ptr_range();
            if cfg!(target_os = "linux") {
                assert_eq!(right.end as usize % 4096, 0);
            }
        }
    }
}
