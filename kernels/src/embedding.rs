//! Embedding: rows of a table, looked up by index.
//!
//! ```text
//! y[i, :] = table[indices[i], :]              dtable[indices[i], :] += dy[i, :]
//! ```
//!
//! Backward gives each task a range of the table's rows; it goes through all indices and adds what falls into its
//! range, in the order of the indices. So a row is added up in one order whatever the ranges are, no two threads meet,
//! and only rows that were looked up are touched.

use crate::error::{Error, check_len, checked_len};
use crate::execution::Execution;
use crate::parts::Parts;
use crate::simd::each::{Step, each_vector, load, store};
use crate::simd::output::{Output, each_result, goes_past};
use crate::simd::{Job, Simd, dispatch};

/// A rough cost per element on one core, in seconds.
const SECONDS_PER_ELEMENT: f64 = 0.8e-9;

/// Elements of a task.
const PART: usize = 16 * 1024;

/// Ranges for each thread: some are looked up more often than others.
const RANGES_PER_THREAD: usize = 4;

fn check([rows, columns]: [usize; 2], table: usize, indices: &[usize]) -> Result<usize, Error> {
    check_len("table", checked_len("shape", &[rows, columns])?, table)?;
    if let Some(index) = indices.iter().find(|&&index| index >= rows) {
        return Err(Error::invalid("indices", format!("rows below {rows}"), index));
    }
    checked_len("indices", &[indices.len(), columns])
}

/// `y[i, :] = table[indices[i], :]` for a table of `shape = [rows, columns]`. Exact.
///
/// ```
/// use kernels::{Parallelism, embedding};
/// let mut y = [0.0; 4];
/// embedding::forward([3, 2], &[0.0, 0.5, 1.0, 1.5, 2.0, 2.5], &[2, 0], &mut y, Parallelism::Serial)?;
/// assert_eq!(y, [2.0, 2.5, 0.0, 0.5]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// [`Error::Length`] for a slice that does not fit, [`Error::Invalid`] for an index that is no row,
/// [`Error::Overflow`].
pub fn forward<'t>(
    shape: [usize; 2],
    table: &[f32],
    indices: &[usize],
    y: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    let columns = shape[1];
    let len = check(shape, table.len(), indices)?;
    check_len("y", len, y.len())?;
    let execution = execution.into();
    let isa = execution.isa()?;
    if len == 0 {
        return Ok(());
    }
    let parallelism = execution.parallelism.for_seconds(len as f64 * SECONDS_PER_ELEMENT);
    let block = (PART / columns).max(1);
    let past = goes_past(len, columns);
    let parts = Parts::new(y, block * columns);
    parallelism.for_each(parts.count(), parallelism.threads(), &|task, _| {
        // SAFETY: each index comes up once.
        let y = unsafe { parts.take(task) };
        dispatch(isa, Gather { table, columns, indices: &indices[task * block..], y, past });
    });
    Ok(())
}

/// Copies rows, each while the next is asked for: no hardware foresees where that lies.
struct Gather<'a> {
    table: &'a [f32],
    columns: usize,
    /// As many as `y` has rows, or more.
    indices: &'a [usize],
    y: &'a mut [f32],
    /// Whether `y` goes past the caches.
    past: bool,
}

impl Job for Gather<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { table, columns, indices, y, past } = self;
        let rows = y.len() / columns;
        let y = Output { start: y.as_mut_ptr(), past };
        for (row, &index) in indices[..rows].iter().enumerate() {
            let next = indices.get(row + 1).map_or(table.as_ptr(), |&next| table.as_ptr().wrapping_add(next * columns));
            let x = table[index * columns..][..columns].as_ptr();
            let y = y.at(row * columns);
            // SAFETY: both rows have `columns` elements.
            unsafe { each_result(simd, y, columns, &Copy { x, next, y }) };
        }
        y.finish(simd);
    }
}

/// `y = x`
struct Copy {
    x: *const f32,
    /// Any address is fine.
    next: *const f32,
    y: Output,
}

impl Step for Copy {
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, simd: S, at: usize, count: usize) {
        simd.prefetch(self.next.wrapping_add(at));
        // SAFETY: the caller's contract.
        unsafe { self.y.put(simd, at, count, load(simd, self.x.add(at), count)) };
    }
}

/// `dtable[indices[i], :] += dy[i, :]`, one after the other: adds to what is there.
///
/// An element to which `n` rows are added errs by at most `n u` times the sum of all magnitudes, `u = 2^-24`.
///
/// ```
/// use kernels::{Parallelism, embedding};
/// let mut dtable = [0.0; 3];
/// embedding::backward([3, 1], &[2, 0, 2], &[1.0, 2.0, 3.0], &mut dtable, Parallelism::Serial)?;
/// assert_eq!(dtable, [2.0, 0.0, 4.0]);
/// # Ok::<(), kernels::Error>(())
/// ```
///
/// # Errors
/// Those of [`forward`].
pub fn backward<'t>(
    shape: [usize; 2],
    indices: &[usize],
    dy: &[f32],
    dtable: &mut [f32],
    execution: impl Into<Execution<'t>>,
) -> Result<(), Error> {
    let [rows, columns] = shape;
    let len = check(shape, dtable.len(), indices)?;
    check_len("dy", len, dy.len())?;
    let execution = execution.into();
    let isa = execution.isa()?;
    if len == 0 {
        return Ok(());
    }
    let parallelism = execution.parallelism.for_seconds(2.0 * len as f64 * SECONDS_PER_ELEMENT);
    let threads = parallelism.threads();
    let ranges = if threads == 1 { 1 } else { RANGES_PER_THREAD.saturating_mul(threads) };
    let range = rows.div_ceil(ranges);
    let parts = Parts::new(dtable, range * columns);
    parallelism.for_each(parts.count(), threads, &|task, _| {
        // SAFETY: each index comes up once.
        let dtable = unsafe { parts.take(task) };
        dispatch(isa, Add { columns, first: task * range, indices, dy, dtable });
    });
    Ok(())
}

struct Add<'a> {
    columns: usize,
    /// The first row of the range.
    first: usize,
    indices: &'a [usize],
    dy: &'a [f32],
    /// The range's rows.
    dtable: &'a mut [f32],
}

impl Job for Add<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self { columns, first, indices, dy, dtable } = self;
        let rows = dtable.len() / columns;
        // A row that is found waits for the next to be found, which is asked for meanwhile.
        let mut waiting: Option<(*mut f32, *const f32)> = None;
        for (&index, dy) in indices.iter().zip(dy.chunks_exact(columns)) {
            // What lies before the range wraps around to far beyond it.
            let row = index.wrapping_sub(first);
            if row >= rows {
                continue;
            }
            let found = (dtable[row * columns..][..columns].as_mut_ptr(), dy.as_ptr());
            if let Some((sum, dy)) = waiting.replace(found) {
                // SAFETY: both rows have `columns` elements.
                unsafe { each_vector(simd, columns, &AddRow { sum, dy, next: found }) };
            }
        }
        if let Some((sum, dy)) = waiting {
            // SAFETY: both rows have `columns` elements.
            unsafe { each_vector(simd, columns, &AddRow { sum, dy, next: (sum, dy) }) };
        }
    }
}

/// `sum += dy`
struct AddRow {
    sum: *mut f32,
    dy: *const f32,
    /// What is asked for meanwhile.
    next: (*mut f32, *const f32),
}

impl Step for AddRow {
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, simd: S, at: usize, count: usize) {
        simd.prefetch(self.next.0.wrapping_add(at));
        simd.prefetch(self.next.1.wrapping_add(at));
        // SAFETY: the caller's contract.
        unsafe {
            let v = simd.add(load(simd, self.sum.add(at), count), load(simd, self.dy.add(at), count));
            store(simd, self.sum.add(at), count, v);
        }
    }
}
