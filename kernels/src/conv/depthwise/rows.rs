//! Padded copies of image rows: dense vectors for the kernels, whatever the padding, stride and layout.
//!
//! ```text
//! a row, stride 1     0 0 x0 x1 x2 ... 0 0
//! a row, stride 2     0 x1 x3 x5 ... 0 | 0 x0 x2 x4 ... 0      a slot for even, one for odd positions
//! ```
//!
//! With one slot for each remainder by the stride, neighbouring outputs read neighbouring elements.

use super::axis::Axis;
use crate::conv::spec::Layout;
use crate::simd::Simd;

/// The widest vector of any instruction set: rows have so much room at their end, that full vectors may be read
/// and written there. The same everywhere, so that a workspace's size does not depend on the instruction set.
pub(in crate::conv) const SPARE: usize = 16;

/// One channel of one image.
#[derive(Clone, Copy)]
pub(in crate::conv) struct Channel {
    pub start: *const f32,
    /// Elements from row to row, and from column to column.
    pub strides: [usize; 2],
    pub size: [usize; 2],
}

impl Channel {
    /// Channel `c` of image `n`.
    ///
    /// # Safety
    /// - `start` is the first element of a tensor with that image and channel.
    #[inline(always)]
    pub unsafe fn new(
        start: *const f32,
        layout: Layout,
        channels: usize,
        size: [usize; 2],
        n: usize,
        c: usize,
    ) -> Self {
        let [height, width] = size;
        let (at, strides) = match layout {
            Layout::Nchw => ((n * channels + c) * height * width, [width, 1]),
            Layout::Nhwc => (n * height * width * channels + c, [width * channels, channels]),
        };
        // SAFETY: the caller's contract.
        Self { start: unsafe { start.add(at) }, strides, size }
    }
}

/// How padded rows lie in scratch memory.
#[derive(Clone, Copy, Debug)]
pub(in crate::conv) struct RowLayout {
    pub slot_len: usize,
    pub row_len: usize,
}

impl RowLayout {
    /// Rows from which `count` neighbouring targets read.
    pub fn new(columns: &Axis, count: usize) -> Self {
        let slot_len = columns.max_shift.saturating_add(count.max(SPARE)).saturating_add(SPARE);
        // Whole half-lines, so that rows start alike.
        let slot_len = slot_len.div_ceil(8).saturating_mul(8);
        Self { slot_len, row_len: slot_len.saturating_mul(columns.residues.len().max(1)) }
    }
}

/// Copies `count` rows, from padded position `first` on. Everything outside of the image's columns must be zero
/// already; rows outside of the image are set to zero if `clear` says that they may hold anything.
///
/// # Safety
/// - `channel` describes readable memory.
/// - `count` rows of `layout` are writable at `to`, and `layout` was made for `columns`.
#[inline(always)]
pub(in crate::conv) unsafe fn fill<S: Simd>(
    simd: S,
    channel: Channel,
    rows: &Axis,
    columns: &Axis,
    layout: RowLayout,
    to: *mut f32,
    first: usize,
    count: usize,
    clear: bool,
) {
    let [height, width] = channel.size;
    let room = layout.slot_len - SPARE;
    for i in 0..count {
        let ih = (first + i) as isize + rows.origin;
        // SAFETY: row `i` of `count`.
        let to = unsafe { to.add(i * layout.row_len) };
        if ih < 0 || ih >= height as isize {
            if clear {
                // SAFETY: one whole row.
                unsafe { std::slice::from_raw_parts_mut(to, layout.row_len).fill(0.0) };
            }
            continue;
        }
        // SAFETY: `ih` is a row of the image.
        let from = unsafe { channel.start.add(ih as usize * channel.strides[0]) };
        // The first position that holds an element, and the element.
        let start = (-columns.origin).max(0) as usize;
        let iw = (start as isize + columns.origin) as usize;
        if channel.strides[1] == 1 && columns.step == 1 {
            let n = width.saturating_sub(iw).min(room.saturating_sub(start));
            // SAFETY: `n` elements from `iw` on are inside of the image's row and of the padded row.
            unsafe { copy(simd, from.add(iw), to.add(start), n) };
        } else if channel.strides[1] == 1 && columns.step == 2 && columns.residues == [0, 1] {
            let n = width.saturating_sub(iw).min((2 * room).saturating_sub(start));
            let (a, b) = (start % 2, (start + 1) % 2);
            // SAFETY: as above; positions `start` and `start + 1` are elements of the two slots.
            unsafe {
                let even = to.add(a * layout.slot_len + start / 2);
                let odd = to.add(b * layout.slot_len + start.div_ceil(2));
                split(simd, from.add(iw), even, odd, n);
            }
        } else {
            for (slot, &residue) in columns.residues.iter().enumerate() {
                let t = start.saturating_sub(residue).div_ceil(columns.step);
                let mut iw = ((residue + t * columns.step) as isize + columns.origin) as usize;
                let mut at = t;
                while iw < width && at < room {
                    // SAFETY: inside of the image's row and of the slot.
                    unsafe {
                        *to.add(slot * layout.slot_len + at) = *from.add(iw * channel.strides[1]);
                    }
                    iw += columns.step;
                    at += 1;
                }
            }
        }
    }
}

/// Copies `n` elements; may write zeros up to a vector's length behind them when `n` is smaller than a vector.
///
/// # Safety
/// - `n` elements are readable, `n + LANES` writable.
#[inline(always)]
unsafe fn copy<S: Simd>(simd: S, from: *const f32, to: *mut f32, n: usize) {
    // SAFETY: all vectors start and end within the `n` elements, except for the single masked one.
    unsafe {
        if n < S::LANES {
            simd.store(to, simd.load_first(from, n));
            return;
        }
        let mut i = 0;
        while i + S::LANES < n {
            simd.store(to.add(i), simd.load(from.add(i)));
            i += S::LANES;
        }
        simd.store(to.add(n - S::LANES), simd.load(from.add(n - S::LANES)));
    }
}

/// Copies the elements 0, 2, 4 ... of `n` to `even` and the others to `odd`; may write zeros up to a vector's
/// length behind them.
///
/// # Safety
/// - `n` elements are readable, `n / 2 + 1 + LANES` writable at both places.
#[inline(always)]
unsafe fn split<S: Simd>(simd: S, from: *const f32, even: *mut f32, odd: *mut f32, n: usize) {
    let mut i = 0;
    // SAFETY: loads end at `n`; stores start within the copied elements.
    unsafe {
        while i + 2 * S::LANES <= n {
            let (e, o) = simd.even_odd(simd.load(from.add(i)), simd.load(from.add(i + S::LANES)));
            simd.store(even.add(i / 2), e);
            simd.store(odd.add(i / 2), o);
            i += 2 * S::LANES;
        }
        if i < n {
            let left = n - i;
            let a = simd.load_first(from.add(i), left);
            let b =
                if left > S::LANES { simd.load_first(from.add(i + S::LANES), left - S::LANES) } else { simd.zero() };
            let (e, o) = simd.even_odd(a, b);
            simd.store(even.add(i / 2), e);
            simd.store(odd.add(i / 2), o);
        }
    }
}
