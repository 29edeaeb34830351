//! Attentions made up at random, of the kinds that networks have: no path can have been tuned for them.

use kernels::attention::{AttentionSpec, Causal, Dropout, Shape};

use crate::heads::Head;
use crate::split_mix::SplitMix;

/// The least operations of an attention, and the most.
const OPERATIONS: std::ops::Range<f64> = 1e5..4e9;

/// Keys and values that a study has room for, in elements.
const MOST_KEYS: usize = 1 << 25;

/// `count` attentions of a seed; their names are numbers.
pub fn heads(count: usize, seed: u64) -> Vec<Head> {
    let mut generator = SplitMix(seed);
    let mut heads = Vec::new();
    while heads.len() < count {
        let (spec, shape, dropout) = head(&mut generator);
        let keys = shape.batch * spec.kv_heads * shape.kv_len * spec.head_dim;
        let Ok(operations) = spec.flops(shape) else { continue };
        if OPERATIONS.contains(&operations) && keys <= MOST_KEYS {
            heads.push(Head { name: format!("random.{}", heads.len()), spec, shape, dropout, page_len: None });
        }
    }
    heads
}

fn head(generator: &mut SplitMix) -> (AttentionSpec, Shape, Option<Dropout>) {
    let mut pick = |from: &[usize]| from[generator.next() as usize % from.len()];
    let lens = [1, 5, 17, 49, 64, 77, 100, 128, 197, 256, 300, 512, 577, 1000, 1024, 2048, 4096];
    let len = pick(&lens);
    // As many queries as keys, one for many keys, a few that continue a cache, or keys of something else.
    let (q_len, kv_len) = match pick(&[0, 0, 0, 1, 2, 3]) {
        0 => (len, len),
        1 => (1, 2 * len),
        2 => (pick(&[2, 4, 8, 16, 64, 256]).min(len), len),
        _ => (pick(&lens), len),
    };
    let head_dim = pick(&[16, 32, 40, 48, 64, 64, 64, 72, 80, 96, 128, 128, 256]);
    let group = pick(&[1, 1, 1, 2, 4, 8]);
    let kv_heads = pick(&[1, 2, 3, 4, 6, 8, 12, 16]);
    let batch = pick(&[1, 1, 1, 2, 4, 16, 64]);
    // Queries without a key would be no attention that a network has.
    let causal = if q_len <= kv_len && pick(&[0, 1]) == 1 { Causal::BottomRight } else { Causal::None };
    let mut spec = AttentionSpec::new(kv_heads * group, head_dim).kv_heads(kv_heads).causal(causal);
    if causal == Causal::BottomRight && pick(&[0, 0, 0, 1]) == 1 {
        spec = spec.window(Some(pick(&[16, 100, 256, 1000])), None);
    }
    let dropout = (pick(&[0, 0, 0, 0, 0, 0, 0, 1]) == 1).then(|| Dropout::new(0.1, 1));
    (spec, Shape::new(batch, q_len, kv_len), dropout)
}

#[cfg(test)]
mod tests {
    use super::*;

    type Kind = (&'static str, fn(&Head) -> bool);

    #[test]
    fn a_seed_makes_the_same_attentions_of_every_kind() {
        let heads_of_one = heads(200, 1);
        assert_eq!(heads_of_one, heads(200, 1));
        assert_ne!(heads_of_one, heads(200, 2));
        let kinds: [Kind; 5] = [
            ("decoding", |head| head.shape.q_len == 1 && head.shape.kv_len > 1),
            ("grouped heads", |head| head.spec.group() > 1),
            ("a window", |head| head.spec.window.left.is_some()),
            ("dropout", |head| head.dropout.is_some()),
            ("more queries than keys", |head| head.shape.q_len > head.shape.kv_len),
        ];
        for (kind, is) in kinds {
            assert!(heads_of_one.iter().any(is), "none of 200 has {kind}");
        }
    }
}
