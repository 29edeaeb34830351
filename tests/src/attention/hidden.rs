//! Which pairs of a case see each other, and where in memory what they hold is.

use std::ops::Range;

use super::{Case, broadcast_strides, strides};

impl Case {
    /// The keys of a sequence.
    pub fn keys_of(&self, batch: usize) -> usize {
        self.kv_lens.as_ref().map_or(self.shape.kv_len, |lens| lens[batch])
    }

    /// Whether a query sees a key: unless causal, the window, the length or the keep mask hides it, or a bias of
    /// -infinity.
    pub fn sees(&self, at: [usize; 4]) -> bool {
        let [b, _, i, j] = at;
        let kept = self.keep.as_ref().is_none_or(|(keep, axes)| keep[self.of_pair(*axes, at)]);
        let finite = self.bias.as_ref().is_none_or(|(bias, axes)| bias[self.of_pair(*axes, at)] != f32::NEG_INFINITY);
        kept && finite && self.spec.visible_keys(i, self.shape.q_len, self.keys_of(b)).contains(&j)
    }

    /// Where the bias or mask of a pair is, if it is broadcast where `axes` are false.
    pub fn of_pair(&self, axes: [bool; 4], at: [usize; 4]) -> usize {
        let pairs = [self.shape.batch, self.spec.heads, self.shape.q_len, self.shape.kv_len];
        let strides = broadcast_strides(pairs, axes).0;
        (0..4).map(|axis| at[axis] * strides[axis] as usize).sum()
    }

    /// The query heads that share a head of keys.
    pub fn heads_of(&self, kv_head: usize) -> Range<usize> {
        kv_head * self.spec.group()..(kv_head + 1) * self.spec.group()
    }

    /// The row of queries (0), keys (1), values (2) or outputs (3) of a head, element by element in memory.
    pub fn row(&self, which: usize, [b, h, row]: [usize; 3]) -> impl Iterator<Item = usize> + use<> {
        let shape = self.shapes()[which];
        let [batch, head, position, element] = strides(shape, self.order).map(|stride| stride as usize);
        (0..shape[3]).map(move |d| b * batch + h * head + row * position + d * element)
    }
}
