//! Dropout: which weights of the softmax count, as a function of a seed and of a pair's place alone.
//!
//! ```text
//! counter   [16 * (key / 128) + key % 16,  row,  head,  sequence]  ──► Philox4x32-7 ──► four words
//! word      key / 16 % 4 of the four; its lower half for even key / 64, else its upper    ──► signed, >= threshold: kept
//!
//!                       keys 0..16   16..32   32..48   48..64    64..80   ...
//! counters, a lane each   word 0     word 1   word 2   word 3    word 0   ...    128 keys in eight vectors, no shuffle
//! ```
//!
//! Sixteen bits decide about a weight: the rate is a multiple of 2^-16, and what stays is divided by exactly what that
//! leaves. Seven rounds are the fewest that pass all tests of BigCrush (J. Salmon et al., 2011, table 2).
//!
//! Nothing of the mask is stored: backward makes it again, and neither threads nor blocks of keys show in it.

use super::call::MAX_BLOCK;
use crate::error::Error;
use crate::philox::{FEWEST_ROUNDS, RUN, philox4x32, philox4x32_lanes};
use crate::simd::{Job, Simd};

/// Leaves out weights of the softmax at random, and divides those that stay by `1 - probability`.
///
/// Forward and backward calls with the same seed and probability leave out the same weights, on any number of threads.
/// A training step wants a seed of its own. The log-sum-exp is that of all visible keys, as without dropout, and sinks
/// are not left out. A weight that is left out is 0, so a NaN in its value still reaches the row.
///
/// ```
/// use kernels::attention::Dropout;
/// let dropout = Dropout::new(0.25, 42);
/// let kept = (0..4000).filter(|&key| dropout.keeps([0, 0, 7, key])).count();
/// assert!((2900..3100).contains(&kept));
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// How likely a weight is left out, at least 0 and less than 1; used as the nearest multiple of 2^-16 below 1.
    pub probability: f32,
    /// What the mask follows from.
    pub seed: u64,
    /// The number that the first sequence of a call has in the mask: a batch that is cut into several calls gets the
    /// mask of the whole if each says where it starts.
    pub first_sequence: usize,
}

/// Steps from a probability of 0 to 1.
const STEPS: f64 = 65536.0;

/// Keys that one run of counters decides about, 64 with each half of its words.
const PAIR: usize = 2 * RUN;

impl Dropout {
    /// With sequences that are counted from 0.
    pub const fn new(probability: f32, seed: u64) -> Self {
        Self { probability, seed, first_sequence: 0 }
    }

    /// Sets the number of a call's first sequence.
    pub const fn first_sequence(mut self, first_sequence: usize) -> Self {
        self.first_sequence = first_sequence;
        self
    }

    /// Whether the weight of a pair, `[sequence, head, row, key]`, counts. Indices are taken modulo 2^32, keys modulo
    /// 2^34; calls refuse larger ones.
    pub fn keeps(&self, [sequence, head, row, key]: [usize; 4]) -> bool {
        let block = (key / PAIR * 16 + key % 16) as u32;
        let sequence = self.first_sequence.wrapping_add(sequence);
        let words = philox4x32::<FEWEST_ROUNDS>([block, row as u32, head as u32, sequence as u32], self.key());
        let word = words[key / 16 % 4] as i32;
        let number = if (key / RUN).is_multiple_of(2) { word << 16 >> 16 } else { word >> 16 };
        number as f32 >= self.threshold()
    }

    /// What a weight that stays is multiplied with: 1 over the part that stays.
    pub fn factor(&self) -> f64 {
        1.0 / self.stays()
    }

    /// The part of the weights that stays.
    pub(crate) fn stays(&self) -> f64 {
        1.0 - self.steps() / STEPS
    }

    /// The probability in steps.
    fn steps(&self) -> f64 {
        (f64::from(self.probability) * STEPS).round().min(STEPS - 1.0)
    }

    fn key(&self) -> [u32; 2] {
        [self.seed as u32, (self.seed >> 32) as u32]
    }

    /// The least of the signed 16-bit numbers that keep a weight, exactly.
    fn threshold(&self) -> f32 {
        (self.steps() - STEPS / 2.0) as f32
    }

    /// Whether the probability and all places of the pairs are within bounds.
    pub(crate) fn check(&self, [batch, heads, q_len, kv_len]: [usize; 4]) -> Result<(), Error> {
        if !(0.0..1.0).contains(&self.probability) {
            return Err(Error::invalid("dropout", "a probability of at least 0 and less than 1", self.probability));
        }
        let last = self.first_sequence.checked_add(batch).ok_or(Error::Overflow { argument: "dropout" })?;
        let fits = |count: usize| count as u64 <= 1 << 32;
        if fits(last) && fits(heads) && fits(q_len) && fits(kv_len.div_ceil(4)) {
            return Ok(());
        }
        Err(Error::Overflow { argument: "dropout" })
    }
}

/// Factors of the keys `at..end` of a block, whole vectors: `kept` where the weight counts, else 0.
///
/// Whoever makes one vouches that `at..end` is within a block, whose first key is a multiple of 64, and that `factors`
/// has room for [`MAX_BLOCK`].
pub(super) struct DropoutRow<'a> {
    pub dropout: &'a Dropout,
    /// Sequence, head and row.
    pub place: [usize; 3],
    pub first_key: usize,
    pub at: usize,
    pub end: usize,
    pub kept: f32,
    pub factors: *mut f32,
}

impl Job for DropoutRow<'_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        debug_assert!(self.first_key.is_multiple_of(RUN) && self.end <= MAX_BLOCK);
        let [sequence, head, row] = self.place;
        let sequence = self.dropout.first_sequence + sequence;
        let upper = [row, head, sequence].map(|of| simd.splat_int(of as u32 as i32));
        let (threshold, kept, key) = (simd.splat(self.dropout.threshold()), simd.splat(self.kept), self.dropout.key());
        // Halves that nobody asks for, before the first key and after the last, are not written.
        let first_run = (self.first_key + self.at) / PAIR * PAIR;
        let mut run = first_run;
        while run < self.first_key + self.end {
            let block = (run / PAIR * 16) as u32 as i32;
            let mut first = 0;
            while first < 16 {
                // SAFETY: sixteen lane numbers; a half that is asked for is within the block, which `RUN` divides.
                unsafe {
                    let lane = simd.bits_to_int(simd.load(LANES.as_ptr().add(first).cast()));
                    let counter = simd.add_int(simd.splat_int(block), lane);
                    let counter = [counter, upper[0], upper[1], upper[2]];
                    let words = philox4x32_lanes::<S, FEWEST_ROUNDS>(simd, counter, key);
                    for half in 0..2 {
                        let start = (run + half * RUN).wrapping_sub(self.first_key);
                        if start >= self.end {
                            continue;
                        }
                        for j in 0..4 {
                            let word = if half == 0 { simd.shl_int::<16>(words[j]) } else { words[j] };
                            let number = simd.int_to_float(simd.shr_int::<16>(word));
                            let factor = simd.select(simd.le(threshold, number), kept, simd.zero());
                            simd.store(self.factors.add(start + 16 * j + first), factor);
                        }
                    }
                }
                first += S::LANES;
            }
            run += PAIR;
        }
    }
}

static LANES: [u32; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

const _: () = assert!(MAX_BLOCK.is_multiple_of(RUN));

/// Multiplies the weights `at..end` of a row, whole vectors, with its mask.
///
/// # Safety
/// - They are readable and writable, the factors readable.
#[inline(always)]
pub(super) unsafe fn mask_row<S: Simd>(simd: S, weights: *mut f32, factors: *const f32, at: usize, end: usize) {
    for at in (at..end).step_by(S::LANES) {
        // SAFETY: the caller's contract.
        unsafe {
            let factor = simd.load(factors.add(at));
            simd.store(weights.add(at), simd.mul(simd.load(weights.add(at)), factor));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, dispatch};

    #[test]
    fn rows_of_factors_are_the_mask_on_every_instruction_set() {
        for isa in Isa::available() {
            for (probability, first_key, at, end) in
                [(0.5, 0, 0, 256), (0.1, 128, 48, 112), (0.9, 1 << 33, 64, 80), (0.5, 64, 0, 64), (0.5, 192, 16, 336)]
            {
                let dropout = Dropout::new(probability, 0x1234_5678_9abc_def0).first_sequence(5);
                let mut factors = [f32::NAN; MAX_BLOCK];
                let place = [3, 7, 1000];
                let kept = dropout.factor() as f32;
                let to = factors.as_mut_ptr();
                let job = DropoutRow { dropout: &dropout, place, first_key, at, end, kept, factors: to };
                dispatch(isa, job);
                for key in at..end {
                    let keeps = dropout.keeps([place[0], place[1], place[2], first_key + key]);
                    assert_eq!(factors[key], if keeps { kept } else { 0.0 }, "{isa}, key {key}");
                }
            }
        }
    }

    /// Two masks from an implementation of its own: whoever keeps a seed keeps its mask.
    #[test]
    fn the_mask_of_a_seed_stays_what_it_is() {
        let mask = |dropout: Dropout, [sequence, head, row]: [usize; 3]| {
            (0..64).fold(0u64, |mask, at| mask | u64::from(dropout.keeps([sequence, head, row, 100 + at])) << at)
        };
        assert_eq!(mask(Dropout::new(0.5, 42), [0, 0, 0]), 0x2a25_a7d1_23d7_f825);
        assert_eq!(mask(Dropout::new(0.1, 7 << 32 | 9), [3, 2, 5]), 0xb7bf_fffe_77fb_3bff);
    }

    #[test]
    fn the_rate_is_right_and_neighbours_know_nothing_of_each_other() {
        for probability in [0.0, 0.001, 0.1, 0.5, 0.9] {
            let dropout = Dropout::new(probability, 7);
            // Rows, heads, sequences and seeds differ in turn, so that a counter that forgets one of them shows.
            let (mut kept, mut pairs, mut count) = (0.0, 0.0, 0.0);
            for place in 0..256 {
                let [sequence, head, row] = [place % 4, place / 4 % 8, place / 32];
                for key in 0..512 {
                    let here = dropout.keeps([sequence, head, row, key]);
                    let others = [
                        dropout.keeps([sequence + 1, head, row, key]),
                        dropout.keeps([sequence, head + 1, row, key]),
                        dropout.keeps([sequence, head, row + 1, key]),
                        dropout.keeps([sequence, head, row, key + 1]),
                        Dropout::new(probability, 8).keeps([sequence, head, row, key]),
                        Dropout::new(probability, 7 + (1 << 32)).keeps([sequence, head, row, key]),
                    ];
                    kept += f64::from(u8::from(here));
                    pairs += f64::from(u8::from(here && others[(place + key) % 6]));
                    count += 1.0;
                }
            }
            let p = Dropout::new(probability, 7).stays();
            // Six standard deviations; pairs of neighbours overlap, so their variance is up to three times as large.
            let within =
                |sum: f64, p: f64, times: f64| (sum - count * p).abs() <= 6.0 * (times * count * p * (1.0 - p)).sqrt();
            assert!(within(kept, p, 1.0), "{probability}: {kept} of {count}");
            assert!(within(pairs, p * p, 3.0), "{probability}: {pairs} of {count} pairs");
        }
    }
}
