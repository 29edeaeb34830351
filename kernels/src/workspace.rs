//! Scratch memory that the caller owns, aligned to cache lines.
//!
//! Planned calls take their scratch as a plain `&mut [f32]` and allocate nothing. [`Workspace`] is the
//! convenient way to own one; any slice that is long enough will do.

use std::ops::{Deref, DerefMut};

use crate::error::Error;
use crate::huge_pages;

/// The size of a cache line, in `f32`s.
pub(crate) const LINE: usize = 16;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line([f32; LINE]);

/// Scratch memory that starts on a cache line.
///
/// ```
/// let mut workspace = kernels::Workspace::new();
/// workspace.grow(1000)?;
/// assert!(workspace.len() >= 1000);
/// # Ok::<(), kernels::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Workspace {
    lines: Vec<Line>,
}

impl Workspace {
    /// An empty workspace. Allocates nothing.
    pub const fn new() -> Self {
        Self { lines: Vec::new() }
    }

    /// A workspace of at least `len` elements, all zero.
    pub fn with_len(len: usize) -> Result<Self, Error> {
        let mut workspace = Self::new();
        workspace.grow(len)?;
        Ok(workspace)
    }

    /// Makes room for at least `len` elements and keeps what is there already if it is enough.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the allocator refuses.
    pub fn grow(&mut self, len: usize) -> Result<&mut [f32], Error> {
        let lines = len.div_ceil(LINE);
        if lines > self.lines.len() {
            self.lines
                .try_reserve_exact(lines - self.lines.len())
                .map_err(|_| Error::OutOfMemory { bytes: len.saturating_mul(size_of::<f32>()) })?;
            huge_pages::ask_for(self.lines.as_mut_ptr().cast(), self.lines.capacity() * size_of::<Line>());
            self.lines.resize(lines, Line([0.0; LINE]));
        }
        Ok(self)
    }
}

impl Deref for Workspace {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // SAFETY: a `Line` is `LINE` floats without padding, and the vector holds `lines.len()` of them.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * LINE) }
    }
}

impl DerefMut for Workspace {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`; `&mut self` makes the borrow unique.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * LINE) }
    }
}

/// Whole cache lines; a length that no memory holds stays as it is.
pub(crate) fn round_up(len: usize) -> usize {
    len.checked_next_multiple_of(LINE).unwrap_or(len)
}

/// Skips to the first cache line in `scratch`. Costs up to `LINE - 1` elements, which `workspace_len`s include.
pub(crate) fn aligned(scratch: &mut [f32]) -> &mut [f32] {
    let skip = scratch.as_ptr().align_offset(64).min(scratch.len());
    &mut scratch[skip..]
}

/// A table of indices at the start of scratch memory.
pub(crate) mod split_indices {
    use super::LINE;

    /// Elements of scratch memory that hold `count` indices and end on a cache line.
    pub(crate) const fn len(count: usize) -> usize {
        (count * (size_of::<usize>() / size_of::<f32>())).next_multiple_of(LINE)
    }

    /// Cuts off room for `count` indices, set to 0. `scratch` starts on a cache line and holds `len(count)` elements.
    pub(crate) fn split(scratch: &mut [f32], count: usize) -> (&mut [usize], &mut [f32]) {
        let (head, rest) = scratch.split_at_mut(len(count));
        head.fill(0.0);
        assert!(head.is_empty() || head.as_ptr().cast::<usize>().is_aligned());
        // SAFETY: the memory is aligned for indices (asserted), long enough (`len`), initialised (filled), borrowed
        // for as long as the result, and any bits are an index as well as a float.
        let indices = unsafe { std::slice::from_raw_parts_mut(head.as_mut_ptr().cast::<usize>(), count) };
        (indices, rest)
    }
}
