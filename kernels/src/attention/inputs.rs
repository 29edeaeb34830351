//! What a call reads, and whether it fits the spec.

use super::dropout::Dropout;
use super::spec::{AttentionSpec, Shape};
use crate::error::{Error, check_len};
use crate::tensor::View;

/// What a call reads. Views say the order in memory: `[batch, heads, length, dim]` may lie as batch-heads-length or
/// batch-length-heads, packed with others or broadcast, by their strides.
///
/// ```
/// use kernels::View;
/// use kernels::attention::Inputs;
/// // Queries, keys and values of one projection: [length 4][q, k, v][heads 2][dim 3]
/// let qkv = [0.5f32; 4 * 3 * 2 * 3];
/// let part = |p: usize| View::strided(&qkv, p * 6, [1, 2, 4, 3], [0, 3, 18, 1]);
/// let inputs = Inputs::new(part(0)?, part(1)?, part(2)?);
/// # let _ = inputs;
/// # Ok::<(), kernels::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a, T = f32> {
    /// Queries, `[batch, heads, q_len, head_dim]`.
    pub q: View<'a, T, 4>,
    /// Keys, `[batch, kv_heads, kv_len, head_dim]`.
    pub k: View<'a, T, 4>,
    /// Values, `[batch, kv_heads, kv_len, v_dim]`.
    pub v: View<'a, T, 4>,
    /// Added to the logits, `[batch, heads, q_len, kv_len]`; strides of 0 broadcast.
    pub bias: Option<View<'a, T, 4>>,
    /// Which pairs see each other, `[batch, heads, q_len, kv_len]`; strides of 0 broadcast.
    pub keep: Option<View<'a, bool, 4>>,
    /// ALiBi: the slope of each head (O. Press, N. Smith, M. Lewis, "Train short, test long", ICLR 2022).
    pub alibi: Option<&'a [T]>,
    /// How many of the keys each sequence has; the others are hidden.
    pub kv_lens: Option<&'a [usize]>,
    /// A logit for each head that takes part in the softmax, but has no value.
    pub sinks: Option<&'a [T]>,
    /// Which weights of the softmax are left out at random.
    pub dropout: Option<Dropout>,
    /// For keys and values in pages: which pages each sequence has, `[batch, pages]`.
    pub pages: Option<View<'a, usize, 2>>,
}

impl<'a, T: Copy> Inputs<'a, T> {
    /// Queries, keys and values alone.
    pub const fn new(q: View<'a, T, 4>, k: View<'a, T, 4>, v: View<'a, T, 4>) -> Self {
        Self { q, k, v, bias: None, keep: None, alibi: None, kv_lens: None, sinks: None, dropout: None, pages: None }
    }

    /// Adds a bias to the logits.
    pub const fn bias(mut self, bias: View<'a, T, 4>) -> Self {
        self.bias = Some(bias);
        self
    }

    /// Hides the pairs whose mask is false.
    pub const fn keep(mut self, keep: View<'a, bool, 4>) -> Self {
        self.keep = Some(keep);
        self
    }

    /// Subtracts `slope * |position of the query - key|` from the logits of each head.
    pub const fn alibi(mut self, slopes: &'a [T]) -> Self {
        self.alibi = Some(slopes);
        self
    }

    /// Hides the keys beyond each sequence's length.
    pub const fn kv_lens(mut self, lens: &'a [usize]) -> Self {
        self.kv_lens = Some(lens);
        self
    }

    /// Adds a logit without a value to each head's softmax.
    pub const fn sinks(mut self, sinks: &'a [T]) -> Self {
        self.sinks = Some(sinks);
        self
    }

    /// Leaves out weights of the softmax at random.
    pub const fn dropout(mut self, dropout: Dropout) -> Self {
        self.dropout = Some(dropout);
        self
    }

    /// Takes keys and values from pages of a pool: `k` and `v` are `[pages of the pool, kv_heads, page size, dim]`, and
    /// key `j` of sequence `b` is row `j % page size` of page `table[b, j / page size]`. Forward only.
    ///
    /// ```
    /// use kernels::View;
    /// use kernels::attention::{AttentionSpec, Inputs};
    /// // A pool of three pages of two keys; the only sequence has three keys, on the last and the first page.
    /// let (q, pool) = ([1.0f32; 4], [0.5f32; 3 * 2 * 4]);
    /// let kv = View::new(&pool, [3, 1, 2, 4])?;
    /// let inputs = Inputs::new(View::new(&q, [1, 1, 1, 4])?, kv, kv);
    /// let inputs = inputs.pages(View::new(&[2, 0], [1, 2])?).kv_lens(&[3]);
    /// assert_eq!(inputs.check(&AttentionSpec::new(1, 4))?.kv_len, 4); // as many as two pages hold
    /// # Ok::<(), kernels::Error>(())
    /// ```
    pub const fn pages(mut self, table: View<'a, usize, 2>) -> Self {
        self.pages = Some(table);
        self
    }

    /// The shape, if all inputs fit the spec and each other.
    ///
    /// # Errors
    /// Those of [`AttentionSpec::check`], [`Error::Shape`], [`Error::Length`] and [`Error::Invalid`] for an input that
    /// does not fit, [`Error::Overflow`].
    pub fn check(&self, spec: &AttentionSpec) -> Result<Shape, Error> {
        let ([batch, _, q_len, _], [places, _, rows, _]) = (self.q.shape(), self.k.shape());
        let (places, kv_len) = match self.pages {
            None => (batch, rows),
            Some(table) => {
                let [_, pages] = table.shape();
                check_shape("pages", [batch, pages], table.shape())?;
                (places, pages.checked_mul(rows).ok_or(Error::Overflow { argument: "pages" })?)
            }
        };
        let shape = Shape { batch, q_len, kv_len };
        spec.sizes(shape)?;
        check_shape("q", [batch, spec.heads, q_len, spec.head_dim], self.q.shape())?;
        check_shape("k", [places, spec.kv_heads, rows, spec.head_dim], self.k.shape())?;
        check_shape("v", [places, spec.kv_heads, rows, spec.v_dim], self.v.shape())?;
        let pairs = [batch, spec.heads, q_len, kv_len];
        check_shape("bias", pairs, self.bias.map_or(pairs, |bias| bias.shape()))?;
        check_shape("keep", pairs, self.keep.map_or(pairs, |keep| keep.shape()))?;
        check_len("alibi", spec.heads, self.alibi.map_or(spec.heads, <[T]>::len))?;
        check_len("sinks", spec.heads, self.sinks.map_or(spec.heads, <[T]>::len))?;
        check_len("kv_lens", batch, self.kv_lens.map_or(batch, <[usize]>::len))?;
        if let Some(len) = self.kv_lens.unwrap_or_default().iter().find(|&&len| len > kv_len) {
            return Err(Error::invalid("kv_lens", format!("at most {kv_len}"), len));
        }
        if let Some(dropout) = self.dropout {
            dropout.check(pairs)?;
        }
        if let Some(table) = self.pages
            && rows > 0
        {
            for b in 0..batch {
                for page in 0..self.keys_of(b, kv_len).div_ceil(rows) {
                    let place = table.get([b, page]);
                    if place >= places {
                        return Err(Error::invalid("pages", format!("pages of a pool of {places}"), place));
                    }
                }
            }
        }
        Ok(shape)
    }

    /// Where the key of a sequence is: the first index and the row of `k` and `v`.
    pub(crate) fn place(&self, batch: usize, key: usize) -> [usize; 2] {
        match self.pages {
            None => [batch, key],
            Some(table) => {
                let rows = self.k.shape()[2];
                [table.get([batch, key / rows]), key % rows]
            }
        }
    }

    /// The keys of a sequence.
    pub(crate) fn keys_of(&self, batch: usize, kv_len: usize) -> usize {
        self.kv_lens.map_or(kv_len, |lens| lens[batch])
    }
}

/// Fails unless a view has exactly the expected shape.
pub(crate) fn check_shape<const N: usize>(
    argument: &'static str,
    expected: [usize; N],
    given: [usize; N],
) -> Result<(), Error> {
    if expected == given {
        return Ok(());
    }
    Err(Error::Shape { argument, expected: expected.to_vec(), given: given.to_vec() })
}
