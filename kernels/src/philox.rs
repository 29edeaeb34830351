//! Philox4x32: random numbers that are a function of a counter and a key.
//!
//! ```text
//! ten rounds   (high0, low0) = 0xD2511F53 * c[0]        c = [high1 ^ c[1] ^ key[0], low1,
//!              (high1, low1) = 0xCD9E8D57 * c[2]             high0 ^ c[3] ^ key[1], low0]
//!              between them   key += [0x9E3779B9, 0xBB67AE85]
//! ```
//!
//! There is no state, so any element of the stream can be made by whoever needs it: a mask is the same on any number of
//! threads, and made again in a backward pass instead of being kept.
//!
//! [`words64`] cuts the stream into runs of 64 words that suit every vector width without a shuffle: word `16 j + l` of
//! run `r` is output `j` of counter `16 r + l`.
//!
//! Source: J. Salmon, M. Moraes, R. Dror, D. Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3" (SC 2011).

use crate::simd::Simd;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// The golden ratio and the square root of 3, less 1.
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
/// Rounds of the streams of [`words64`]: what the authors recommend.
pub(crate) const ROUNDS: usize = 10;
/// The fewest rounds with which the generator passes every test of BigCrush (table 2 of the paper).
pub(crate) const FEWEST_ROUNDS: usize = 7;

/// Words of a run of [`words64`].
pub(crate) const RUN: usize = 64;

/// One block of four words.
pub(crate) fn philox4x32<const ROUNDS: usize>(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut key) = (counter, key);
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let p0 = u64::from(MULTIPLIERS[0]) * u64::from(c[0]);
        let p1 = u64::from(MULTIPLIERS[1]) * u64::from(c[2]);
        let high = |p: u64| (p >> 32) as u32;
        c = [high(p1) ^ c[1] ^ key[0], p1 as u32, high(p0) ^ c[3] ^ key[1], p0 as u32];
    }
    c
}

/// As [`philox4x32`], a block in each lane.
///
/// Products are of every other lane, 64 bits wide. So the even and the odd lanes go through the rounds apart, each in
/// the lower half of such a pair, above which anything may stand: the upper half of a product comes by one shift, and
/// the lanes meet again at the end alone.
#[inline(always)]
pub(crate) fn philox4x32_lanes<S: Simd, const ROUNDS: usize>(simd: S, counter: [S::I; 4], key: [u32; 2]) -> [S::I; 4] {
    let [mut even, mut odd] = [counter; 2];
    for word in &mut odd {
        *word = simd.odd_to_even(*word);
    }
    let mut key = key;
    for round in 0..ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        }
        let keys = [simd.splat_int(key[0] as i32), simd.splat_int(key[1] as i32)];
        even = half_round(simd, even, keys);
        odd = half_round(simd, odd, keys);
    }
    let mut words = even;
    for (word, odd) in words.iter_mut().zip(odd) {
        *word = simd.join_even(*word, odd);
    }
    words
}

/// A round of every other lane.
#[inline(always)]
fn half_round<S: Simd>(simd: S, c: [S::I; 4], keys: [S::I; 2]) -> [S::I; 4] {
    let product0 = simd.mul_even(simd.splat_int(MULTIPLIERS[0] as i32), c[0]);
    let product1 = simd.mul_even(simd.splat_int(MULTIPLIERS[1] as i32), c[2]);
    let (high0, high1) = (simd.odd_to_even(product0), simd.odd_to_even(product1));
    [
        simd.xor_int(simd.xor_int(high1, c[1]), keys[0]),
        product1,
        simd.xor_int(simd.xor_int(high0, c[3]), keys[1]),
        product0,
    ]
}

static LANE: [u32; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Words `lane, 16 + lane, 32 + lane, 48 + lane` of run `run` for the lanes `first .. first + LANES`, `first` being a
/// multiple of `LANES` below 16. `stream` tells apart what is drawn with the same key: it is the counter's upper half.
#[inline(always)]
pub(crate) fn words64<S: Simd>(simd: S, run: u64, first: usize, stream: u64, key: [u32; 2]) -> [S::I; 4] {
    debug_assert!(first + S::LANES <= LANE.len());
    // The lowest four bits of the counter are 0, so that adding a lane carries nothing.
    let block = run << 4;
    // SAFETY: the table has `first + LANES` words, which are loaded as bits.
    let lane = simd.bits_to_int(unsafe { simd.load(LANE.as_ptr().add(first).cast()) });
    let low = simd.add_int(simd.splat_int(block as u32 as i32), lane);
    let [c1, c2, c3] = [(block >> 32) as u32, stream as u32, (stream >> 32) as u32].map(|c| simd.splat_int(c as i32));
    philox4x32_lanes::<S, ROUNDS>(simd, [low, c1, c2, c3], key)
}

/// Word `at` of the stream that [`words64`] makes 64 words at a time.
pub(crate) fn word(at: u64, stream: u64, key: [u32; 2]) -> u32 {
    let (run, within) = (at / RUN as u64, at % RUN as u64);
    let block = (run << 4) | (within % 16);
    philox4x32::<ROUNDS>([block as u32, (block >> 32) as u32, stream as u32, (stream >> 32) as u32], key)
        [(within / 16) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::{Isa, Job, dispatch};

    /// A counter, a key, and the answers after 7 rounds and after 10.
    type Known = ([u32; 4], [u32; 2], [[u32; 4]; 2]);

    /// The known answers that the authors publish with their implementation (Random123, `kat_vectors`), after 7 rounds
    /// and after 10.
    const KNOWN: [Known; 3] = [
        (
            [0; 4],
            [0; 2],
            [
                [0x5f6f_b709, 0x0d89_3f64, 0x4f12_1f81, 0x4f73_0a48],
                [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
            ],
        ),
        (
            [u32::MAX; 4],
            [u32::MAX; 2],
            [
                [0x5207_ddc2, 0x4516_5e59, 0x4d8e_e751, 0x8c52_f662],
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ],
        ),
        (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [
                [0x4dfc_caba, 0x190a_87f0, 0xc473_62ba, 0xb6b5_242a],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ],
        ),
    ];

    struct Lanes<const ROUNDS: usize>([u32; 4], [u32; 2]);

    impl<const ROUNDS: usize> Job for Lanes<ROUNDS> {
        type Output = Vec<[u32; 4]>;
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<[u32; 4]> {
            let counter = self.0.map(|c| simd.splat_int(c as i32));
            let words = philox4x32_lanes::<S, ROUNDS>(simd, counter, self.1);
            let words = words.map(|w| stored(simd, w));
            (0..S::LANES).map(|lane| [0, 1, 2, 3].map(|j| words[j][lane])).collect()
        }
    }

    struct Run(u64, u64, [u32; 2]);

    impl Job for Run {
        type Output = Vec<u32>;
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Vec<u32> {
            let mut out = vec![0; RUN];
            for first in (0..16).step_by(S::LANES) {
                for (j, words) in words64(simd, self.0, first, self.1, self.2).into_iter().enumerate() {
                    out[16 * j + first..][..S::LANES].copy_from_slice(&stored(simd, words)[..S::LANES]);
                }
            }
            out
        }
    }

    #[inline(always)]
    fn stored<S: Simd>(simd: S, words: S::I) -> [u32; 16] {
        let mut out = [0u32; 16];
        // SAFETY: there is room for the widest vector.
        unsafe { simd.store(out.as_mut_ptr().cast(), simd.int_to_bits(words)) };
        out
    }

    #[test]
    fn the_published_answers_come_out_on_every_instruction_set() {
        for (counter, key, [fewest, answer]) in KNOWN {
            assert_eq!(philox4x32::<FEWEST_ROUNDS>(counter, key), fewest);
            assert_eq!(philox4x32::<ROUNDS>(counter, key), answer);
            for isa in Isa::available() {
                let lanes = dispatch(isa, Lanes::<FEWEST_ROUNDS>(counter, key));
                assert!(lanes.iter().all(|&lane| lane == fewest), "{isa}");
                let lanes = dispatch(isa, Lanes::<ROUNDS>(counter, key));
                assert!(lanes.iter().all(|&lane| lane == answer), "{isa}");
            }
        }
    }

    #[test]
    fn a_run_holds_the_words_of_the_stream_on_every_instruction_set() {
        let key = [0x1234_5678, 0x9abc_def0];
        for isa in Isa::available() {
            for (run, stream) in [(0, 0), (1, 7), (0x0fff_ffff, 1 << 40), (1 << 40, u64::MAX)] {
                let expected: Vec<u32> = (0..64).map(|i| word(64 * run + i, stream, key)).collect();
                assert_eq!(dispatch(isa, Run(run, stream, key)), expected, "{isa}");
            }
        }
    }

    #[test]
    fn words_are_uniform_in_every_bit() {
        let mut ones = [0u32; 32];
        let count = 20_000u64;
        for at in 0..count {
            let word = word(at, 0, [42, 0]);
            for (bit, ones) in ones.iter_mut().enumerate() {
                *ones += word >> bit & 1;
            }
        }
        // Six standard deviations of a fair coin.
        let allowed = 6.0 * (count as f64).sqrt() / 2.0;
        assert!(ones.iter().all(|&ones| (f64::from(ones) - count as f64 / 2.0).abs() < allowed), "{ones:?}");
    }
}
