//! Values at any address, as a place that is read and written.
//!
//! `ptr::read_unaligned`, and the intrinsics made of it, copy to a local; where debug assertions are on, each copy
//! checks that the two do not overlap: eight instructions and a spill for every vector that a tile loads, half of all
//! code of the tests.

/// A value without alignment.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Unaligned<T>(T);

/// Reads a value.
///
/// # Safety
/// - It is readable and valid.
#[inline(always)]
pub(super) unsafe fn read<T: Copy>(from: *const f32) -> T {
    // SAFETY: the caller's contract.
    unsafe { (*from.cast::<Unaligned<T>>()).0 }
}

/// Writes a value.
///
/// # Safety
/// - The place is writable.
#[inline(always)]
pub(super) unsafe fn write<T: Copy>(to: *mut f32, value: T) {
    // SAFETY: the caller's contract.
    unsafe { (*to.cast::<Unaligned<T>>()).0 = value }
}
