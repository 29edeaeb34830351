//! Keys and values of the past, appended to in place: what a decoder attends to.
//!
//! ```text
//! KvCache        sequence 0  │k0 k1 k2 k3 ·  ·  ·  · │      one stretch of `capacity` keys for each sequence
//!                sequence 1  │k0 k1 ·  ·  ·  ·  ·  · │
//!
//! PagedKvCache   pool        │k4 k5│k0 k1│k2 k3│· · │k0 ·│   pages of a few keys, taken when needed
//!                sequence 0  pages 1, 2, 0                  the block table (W. Kwon et al., "Efficient memory management
//!                sequence 1  page 4                         for LLM serving with PagedAttention", SOSP 2023)
//! ```
//!
//! Both give the [`Inputs`] of a call: one query a sequence for decoding, some for a chunk of a prompt. A call has the
//! same bits from either, and from plain views. Appending, truncating and calling allocate nothing.

use super::call::Rows;
use super::inputs::{Inputs, check_shape};
use super::pack::copy_rows;
use super::spec::AttentionSpec;
use crate::error::{Error, checked_len};
use crate::tensor::View;

/// Pages of keys and values, `[pages, kv_heads, rows, dim]`.
#[derive(Clone, Debug)]
struct Pool {
    pages: usize,
    kv_heads: usize,
    rows: usize,
    /// `head_dim` and `v_dim`.
    dims: [usize; 2],
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Pool {
    fn new(spec: &AttentionSpec, pages: usize, rows: usize) -> Result<Self, Error> {
        spec.check()?;
        let (kv_heads, dims) = (spec.kv_heads, [spec.head_dim, spec.v_dim]);
        let [k, v] = dims.map(|dim| zeros(checked_len("cache", &[pages, kv_heads, rows, dim])?));
        Ok(Self { pages, kv_heads, rows, dims, k: k?, v: v? })
    }

    /// The number of new keys, if `[kv_heads, new keys, dim]` they are.
    fn check(&self, k: &View<'_, f32, 3>, v: &View<'_, f32, 3>) -> Result<usize, Error> {
        let new = k.shape()[1];
        check_shape("k", [self.kv_heads, new, self.dims[0]], k.shape())?;
        check_shape("v", [self.kv_heads, new, self.dims[1]], v.shape())?;
        Ok(new)
    }

    /// Writes `count` of the new keys, from `from` on, to rows of a page, from `row` on.
    fn write(&mut self, [page, row]: [usize; 2], new: [&View<'_, f32, 3>; 2], [from, count]: [usize; 2]) {
        let (heads, rows) = (self.kv_heads, self.rows);
        for ((to, dim), new) in [&mut self.k, &mut self.v].into_iter().zip(self.dims).zip(new) {
            let [head_stride, row_stride, step] = new.strides();
            for head in 0..heads {
                let start = new.as_ptr().wrapping_offset(head as isize * head_stride + from as isize * row_stride);
                let to = &mut to[((page * heads + head) * rows + row) * dim..][..count * dim];
                // SAFETY: the new rows are within their view, and `to` has room for as many.
                unsafe { copy_rows(Rows { start, row_stride, step }, count, dim, to.as_mut_ptr()) };
            }
        }
    }

    /// Keys and values, of the first `rows` rows of each page.
    fn views(&self, rows: usize) -> Result<[View<'_, f32, 4>; 2], Error> {
        let view = |data, dim: usize| {
            let strides = [self.kv_heads * self.rows * dim, self.rows * dim, dim, 1].map(|stride| stride as isize);
            View::strided(data, 0, [self.pages, self.kv_heads, rows, dim], strides)
        };
        Ok([view(&self.k[..], self.dims[0])?, view(&self.v[..], self.dims[1])?])
    }
}

fn zeros<T: Copy + Default>(len: usize) -> Result<Vec<T>, Error> {
    let mut data = Vec::new();
    data.try_reserve_exact(len).map_err(|_| Error::OutOfMemory { bytes: len.saturating_mul(size_of::<T>()) })?;
    data.resize(len, T::default());
    Ok(data)
}

/// The keys of a sequence, if there is one of that number.
fn len_of(lens: &[usize], sequence: usize) -> Result<usize, Error> {
    let sequences = lens.len();
    lens.get(sequence)
        .copied()
        .ok_or_else(|| Error::invalid("sequence", format!("one of {sequences} sequences"), sequence))
}

fn full(room: usize, new: usize) -> Error {
    Error::invalid("cache", format!("at most {room} new keys"), new)
}

/// Keys and values of some sequences, with room for as many keys of each as was said in the beginning.
///
/// ```
/// use kernels::attention::{Attention, AttentionSpec, Causal, KvCache, Shape};
/// use kernels::{Parallelism, View, ViewMut, Workspace};
/// let spec = AttentionSpec::new(4, 8).kv_heads(2).causal(Causal::BottomRight);
/// let plan = Attention::new(spec)?;
/// let mut cache = KvCache::new(&spec, 1, 64)?;
/// let mut workspace = Workspace::with_len(plan.workspace_len(Shape::new(1, 5, 64), 1)?)?;
///
/// // The prompt: 5 tokens at once, each sees those before it.
/// let (q, kv) = (vec![0.1; 4 * 5 * 8], vec![0.2; 2 * 5 * 8]);
/// let new = View::new(&kv, [2, 5, 8])?;
/// cache.append(0, &new, &new)?;
/// let mut out = vec![0.0; 4 * 5 * 8];
/// let inputs = cache.inputs(View::new(&q, [1, 4, 5, 8])?)?;
/// plan.forward(&inputs, ViewMut::new(&mut out, [1, 4, 5, 8])?, None, &mut workspace, Parallelism::Serial)?;
///
/// // One token after the other.
/// for step in 0..10 {
///     let (q, kv) = (vec![0.1; 4 * 8], vec![step as f32; 2 * 8]); // what the model makes of the last token
///     let new = View::new(&kv, [2, 1, 8])?;
///     cache.append(0, &new, &new)?;
///     let mut out = vec![0.0; 4 * 8];
///     let inputs = cache.inputs(View::new(&q, [1, 4, 1, 8])?)?;
///     plan.forward(&inputs, ViewMut::new(&mut out, [1, 4, 1, 8])?, None, &mut workspace, Parallelism::Serial)?;
/// }
/// assert_eq!(cache.lens(), [15]);
/// cache.truncate(0, 5); // back to the prompt, for another answer
/// # Ok::<(), kernels::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct KvCache {
    pool: Pool,
    lens: Vec<usize>,
}

impl KvCache {
    /// Room for `capacity` keys of each of `sequences` sequences, all empty.
    ///
    /// # Errors
    /// Those of [`AttentionSpec::check`], [`Error::Overflow`], [`Error::OutOfMemory`].
    pub fn new(spec: &AttentionSpec, sequences: usize, capacity: usize) -> Result<Self, Error> {
        Ok(Self { pool: Pool::new(spec, sequences, capacity)?, lens: zeros(sequences)? })
    }

    /// The most keys of a sequence.
    pub fn capacity(&self) -> usize {
        self.pool.rows
    }

    /// The keys of each sequence.
    pub fn lens(&self) -> &[usize] {
        &self.lens
    }

    /// Appends keys, `[kv_heads, new keys, head_dim]`, and their values, `[kv_heads, new keys, v_dim]`, to a sequence.
    ///
    /// # Errors
    /// [`Error::Shape`] for what does not fit, [`Error::Invalid`] for a sequence that there is not, or that has no room
    /// for so many. The cache is untouched then.
    pub fn append(&mut self, sequence: usize, k: &View<'_, f32, 3>, v: &View<'_, f32, 3>) -> Result<(), Error> {
        let (new, len) = (self.pool.check(k, v)?, len_of(&self.lens, sequence)?);
        let room = self.pool.rows - len;
        if new > room {
            return Err(full(room, new));
        }
        self.pool.write([sequence, len], [k, v], [0, new]);
        self.lens[sequence] = len + new;
        Ok(())
    }

    /// Forgets the keys of a sequence from `len` on. Nothing happens where it has no more, or does not exist.
    pub fn truncate(&mut self, sequence: usize, len: usize) {
        if let Some(have) = self.lens.get_mut(sequence) {
            *have = len.min(*have);
        }
    }

    /// The inputs of a call: queries, `[sequences, heads, q_len, head_dim]`, and all keys and values so far.
    ///
    /// # Errors
    /// [`Error::Overflow`]
    pub fn inputs<'a>(&'a self, q: View<'a, f32, 4>) -> Result<Inputs<'a>, Error> {
        let longest = self.lens.iter().copied().max().unwrap_or(0);
        let [k, v] = self.pool.views(longest)?;
        Ok(Inputs::new(q, k, v).kv_lens(&self.lens))
    }
}

/// Keys and values of some sequences on pages of a common pool: a sequence takes a page when it needs one, and gives it
/// back when it is truncated.
///
/// Keys are read in place where pages are a multiple of 512 keys long, of 256 for heads beyond 64 elements, of 128
/// beyond 128 and of 64 beyond 256, in decoding also from pages of 8, 16, 32 and multiples of 64; others are gathered
/// block by block first.
///
/// ```
/// use kernels::View;
/// use kernels::attention::{AttentionSpec, PagedKvCache};
/// let spec = AttentionSpec::new(4, 8).kv_heads(2);
/// let mut cache = PagedKvCache::new(&spec, 3, 10, 16)?; // three sequences, ten pages of 16 keys
/// let kv = vec![0.5; 2 * 40 * 8];
/// let new = View::new(&kv, [2, 40, 8])?;
/// cache.append(0, &new, &new)?; // three pages
/// cache.append(2, &new, &new)?;
/// assert_eq!(cache.free_pages(), 4);
/// cache.truncate(0, 33); // still three
/// cache.truncate(2, 0); // the sequence is done
/// assert_eq!((cache.lens(), cache.free_pages()), (&[33, 0, 0][..], 7));
/// # Ok::<(), kernels::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct PagedKvCache {
    pool: Pool,
    lens: Vec<usize>,
    /// The pages of each sequence in order, with room for all of the pool.
    table: Vec<usize>,
    free: Vec<usize>,
}

impl PagedKvCache {
    /// A pool of `pages` pages of `page_len` keys for `sequences` sequences, all empty.
    ///
    /// # Errors
    /// Those of [`AttentionSpec::check`], [`Error::Invalid`] for pages without keys, [`Error::Overflow`],
    /// [`Error::OutOfMemory`].
    pub fn new(spec: &AttentionSpec, sequences: usize, pages: usize, page_len: usize) -> Result<Self, Error> {
        if page_len == 0 {
            return Err(Error::invalid("page_len", "at least 1", 0));
        }
        let pool = Pool::new(spec, pages, page_len)?;
        let table = zeros(checked_len("pages", &[sequences, pages])?)?;
        let mut free: Vec<usize> = zeros(pages)?;
        // The last is taken first.
        free.iter_mut().rev().enumerate().for_each(|(page, place)| *place = page);
        Ok(Self { pool, lens: zeros(sequences)?, table, free })
    }

    /// The keys of a page.
    pub fn page_len(&self) -> usize {
        self.pool.rows
    }

    /// Pages that no sequence has.
    pub fn free_pages(&self) -> usize {
        self.free.len()
    }

    /// The keys of each sequence.
    pub fn lens(&self) -> &[usize] {
        &self.lens
    }

    /// The pages of a sequence in order.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a sequence that there is not.
    pub fn pages(&self, sequence: usize) -> Result<&[usize], Error> {
        let count = len_of(&self.lens, sequence)?.div_ceil(self.pool.rows);
        Ok(&self.table[sequence * self.pool.pages..][..count])
    }

    /// Appends keys, `[kv_heads, new keys, head_dim]`, and their values, `[kv_heads, new keys, v_dim]`, to a sequence.
    ///
    /// # Errors
    /// [`Error::Shape`] for what does not fit, [`Error::Invalid`] for a sequence that there is not, or where the pool
    /// has no room for so many. The cache is untouched then.
    pub fn append(&mut self, sequence: usize, k: &View<'_, f32, 3>, v: &View<'_, f32, 3>) -> Result<(), Error> {
        let (new, len) = (self.pool.check(k, v)?, len_of(&self.lens, sequence)?);
        let rows = self.pool.rows;
        // The rest of the last page, and the free ones.
        let room = (len.next_multiple_of(rows) - len) + self.free.len() * rows;
        if new > room {
            return Err(full(room, new));
        }
        let first = sequence * self.pool.pages;
        let mut done = 0;
        while done < new {
            let (page, row) = ((len + done) / rows, (len + done) % rows);
            if row == 0
                && let Some(free) = self.free.pop()
            {
                self.table[first + page] = free;
            }
            let count = (rows - row).min(new - done);
            self.pool.write([self.table[first + page], row], [k, v], [done, count]);
            done += count;
        }
        self.lens[sequence] = len + new;
        Ok(())
    }

    /// Forgets the keys of a sequence from `len` on, and gives back the pages that have no others. Nothing happens
    /// where it has no more, or does not exist.
    pub fn truncate(&mut self, sequence: usize, len: usize) {
        let Some(have) = self.lens.get_mut(sequence) else { return };
        let rows = self.pool.rows;
        let kept = len.min(*have);
        for page in (kept.div_ceil(rows)..have.div_ceil(rows)).rev() {
            self.free.push(self.table[sequence * self.pool.pages + page]);
        }
        *have = kept;
    }

    /// The inputs of a call: queries, `[sequences, heads, q_len, head_dim]`, and all keys and values so far.
    ///
    /// # Errors
    /// [`Error::Overflow`]
    pub fn inputs<'a>(&'a self, q: View<'a, f32, 4>) -> Result<Inputs<'a>, Error> {
        let longest = self.lens.iter().copied().max().unwrap_or(0);
        let shape = [self.lens.len(), longest.div_ceil(self.pool.rows)];
        let table = View::strided(&self.table, 0, shape, [self.pool.pages as isize, 1])?;
        let [k, v] = self.pool.views(self.pool.rows)?;
        Ok(Inputs::new(q, k, v).pages(table).kv_lens(&self.lens))
    }
}
