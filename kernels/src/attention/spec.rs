//! What an attention is: everything that does not change from call to call, and the shape that may.

use std::fmt;
use std::ops::Range;

use crate::error::{Error, checked_len};

/// Whether a query sees the keys after it, and which corner of the score matrix the diagonal starts from.
///
/// ```text
/// TopLeft      k0 k1 k2 k3      BottomRight  k0 k1 k2 k3
///         q0   x                        q0   x  x  x
///         q1   x  x                     q1   x  x  x  x
/// ```
///
/// The two agree where there are as many queries as keys. Queries that continue a cache want [`Causal::BottomRight`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Causal {
    /// Every query sees every key.
    #[default]
    None,
    /// Query `i` sees keys `0..=i`.
    TopLeft,
    /// The last query sees the last key of its sequence: query `i` sees keys `0..=i + kv_len - q_len`.
    BottomRight,
}

/// How far a query sees to either side of its own position; `None` is without bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Window {
    /// Keys before the query's position.
    pub left: Option<usize>,
    /// Keys after the query's position.
    pub right: Option<usize>,
}

/// The largest head dimension.
pub const MAX_HEAD_DIM: usize = 512;

/// Scaled dot-product attention:
///
/// ```text
/// logit[i, j] = cap(scale * sum over d of q[i, d] k[j, d]) + bias[i, j] - slope |position(i) - j|
/// out[i, :]   = sum over visible j of exp(logit[i, j]) v[j, :]  /  (sum over visible j of exp(logit[i, j]) + exp(sink))
/// cap(x)      = softcap * tanh(x / softcap)
/// position(i) = i, or i + kv_len - q_len where causal is BottomRight
/// ```
///
/// A key is visible unless causal, window, the length of its sequence or the keep mask hides it. Hidden keys contribute
/// nothing, whatever `k` and `v` hold there; nor does a key whose bias is -infinity, or its logit. A query without keys
/// has outputs 0.
///
/// ```
/// use kernels::attention::{AttentionSpec, Causal};
/// let spec = AttentionSpec::new(32, 128).kv_heads(8).causal(Causal::BottomRight);
/// assert_eq!(spec.visible_keys(1, 3, 10), 0..9); // the second of three queries, of ten keys
/// # Ok::<(), kernels::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Heads of the queries.
    pub heads: usize,
    /// Heads of keys and values, a divisor of `heads`: each serves `heads / kv_heads` neighbouring query heads.
    pub kv_heads: usize,
    /// Elements of a query and of a key, 1 to [`MAX_HEAD_DIM`].
    pub head_dim: usize,
    /// Elements of a value and of an output, 1 to [`MAX_HEAD_DIM`].
    pub v_dim: usize,
    /// What scores are multiplied with, finite.
    pub scale: f32,
    /// Whether queries see later keys.
    pub causal: Causal,
    /// How far queries see.
    pub window: Window,
    /// Bounds logits smoothly, before bias and masks; positive.
    pub softcap: Option<f32>,
}

impl AttentionSpec {
    /// As many heads of keys as of queries, values of `head_dim`, the scale `1 / sqrt(head_dim)`, nothing hidden.
    pub fn new(heads: usize, head_dim: usize) -> Self {
        Self {
            heads,
            kv_heads: heads,
            head_dim,
            v_dim: head_dim,
            scale: (1.0 / (head_dim.max(1) as f64).sqrt()) as f32,
            causal: Causal::None,
            window: Window { left: None, right: None },
            softcap: None,
        }
    }

    /// Sets the heads of keys and values.
    pub const fn kv_heads(mut self, kv_heads: usize) -> Self {
        self.kv_heads = kv_heads;
        self
    }

    /// Sets the elements of a value.
    pub const fn v_dim(mut self, v_dim: usize) -> Self {
        self.v_dim = v_dim;
        self
    }

    /// Sets the scale.
    pub const fn scale(mut self, scale: f32) -> Self {
        self.scale = scale;
        self
    }

    /// Sets whether queries see later keys.
    pub const fn causal(mut self, causal: Causal) -> Self {
        self.causal = causal;
        self
    }

    /// Sets how far queries see: so many keys before and after their own position.
    pub const fn window(mut self, left: Option<usize>, right: Option<usize>) -> Self {
        self.window = Window { left, right };
        self
    }

    /// Sets the bound of the logits.
    pub const fn softcap(mut self, softcap: f32) -> Self {
        self.softcap = Some(softcap);
        self
    }

    /// Query heads for each head of keys and values.
    pub const fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    /// Whether the parameters fit each other.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a parameter outside of its domain.
    pub fn check(&self) -> Result<(), Error> {
        for (argument, heads) in [("heads", self.heads), ("kv_heads", self.kv_heads)] {
            if heads == 0 {
                return Err(Error::invalid(argument, "at least 1", heads));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Error::invalid("kv_heads", format!("a divisor of the {} heads", self.heads), self.kv_heads));
        }
        for (argument, dim) in [("head_dim", self.head_dim), ("v_dim", self.v_dim)] {
            if !(1..=MAX_HEAD_DIM).contains(&dim) {
                return Err(Error::invalid(argument, format!("1 to {MAX_HEAD_DIM}"), dim));
            }
        }
        if !self.scale.is_finite() {
            return Err(Error::invalid("scale", "a finite number", self.scale));
        }
        match self.softcap {
            Some(cap) if !(cap.is_normal() && cap > 0.0) => {
                Err(Error::invalid("softcap", "a positive normal number", cap))
            }
            _ => Ok(()),
        }
    }

    /// The position of query 0 among the keys of a sequence of `kv_len`.
    pub(crate) fn offset(&self, q_len: usize, kv_len: usize) -> isize {
        match self.causal {
            Causal::BottomRight => kv_len as isize - q_len as isize,
            Causal::None | Causal::TopLeft => 0,
        }
    }

    /// The keys that query `i` of `q_len` may see in a sequence of `kv_len` keys; the keep mask may hide more.
    pub fn visible_keys(&self, i: usize, q_len: usize, kv_len: usize) -> Range<usize> {
        let position = (i as isize).saturating_add(self.offset(q_len, kv_len));
        let reach = |side: usize| isize::try_from(side).unwrap_or(isize::MAX);
        let (mut first, mut end) = (0isize, kv_len as isize);
        if self.causal != Causal::None {
            end = end.min(position.saturating_add(1));
        }
        if let Some(left) = self.window.left {
            first = first.max(position.saturating_sub(reach(left)));
        }
        if let Some(right) = self.window.right {
            end = end.min(position.saturating_add(reach(right)).saturating_add(1));
        }
        let end = end.max(0);
        let first = first.min(end);
        first as usize..end as usize
    }

    /// Multiplications and additions of a forward call without keep mask: `2 (head_dim + v_dim)` for each visible pair.
    /// A backward call counts 2.5 times as many.
    ///
    /// # Errors
    /// Those of [`AttentionSpec::check`], and [`Error::Overflow`].
    pub fn flops(&self, shape: Shape) -> Result<f64, Error> {
        self.sizes(shape)?;
        let mut pairs = 0.0;
        for i in 0..shape.q_len {
            pairs += self.visible_keys(i, shape.q_len, shape.kv_len).len() as f64;
        }
        Ok(2.0 * pairs * (self.head_dim + self.v_dim) as f64 * shape.batch as f64 * self.heads as f64)
    }

    /// Checks the sizes of a call.
    pub(crate) fn sizes(&self, shape: Shape) -> Result<(), Error> {
        self.check()?;
        let Shape { batch, q_len, kv_len } = shape;
        checked_len("q", &[batch, self.heads, q_len, self.head_dim])?;
        checked_len("k", &[batch, self.kv_heads, kv_len, self.head_dim])?;
        checked_len("v", &[batch, self.kv_heads, kv_len, self.v_dim])?;
        checked_len("out", &[batch, self.heads, q_len, self.v_dim])?;
        // Lengths stay positions even of empty batches.
        for (argument, len) in [("q_len", q_len), ("kv_len", kv_len)] {
            if len > isize::MAX as usize / 4 {
                return Err(Error::Overflow { argument });
            }
        }
        Ok(())
    }
}

/// What may change from call to call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Sequences.
    pub batch: usize,
    /// Queries of each.
    pub q_len: usize,
    /// Keys of each (the most, where lengths are given).
    pub kv_len: usize,
}

impl Shape {
    /// `batch` sequences of `q_len` queries and `kv_len` keys.
    pub const fn new(batch: usize, q_len: usize, kv_len: usize) -> Self {
        Self { batch, q_len, kv_len }
    }
}

impl fmt::Display for AttentionSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} heads", self.heads)?;
        if self.kv_heads != self.heads {
            write!(f, " on {}", self.kv_heads)?;
        }
        write!(f, " of {}", self.head_dim)?;
        if self.v_dim != self.head_dim {
            write!(f, " and {}", self.v_dim)?;
        }
        match self.causal {
            Causal::None => {}
            Causal::TopLeft => f.write_str(", causal from the top left")?,
            Causal::BottomRight => f.write_str(", causal to the bottom right")?,
        }
        if self.window != Window::default() {
            let side = |side: Option<usize>| side.map_or("all".into(), |keys| keys.to_string());
            write!(f, ", window {} and {}", side(self.window.left), side(self.window.right))?;
        }
        if let Some(cap) = self.softcap {
            write!(f, ", softcap {cap}")?;
        }
        Ok(())
    }
}
