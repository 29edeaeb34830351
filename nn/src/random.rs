//! Random numbers that are a function of a seed and a counter, so that every run can be repeated.
//!
//! ```text
//! number i  =  mix(seed + i * golden)          mix: the finaliser of SplitMix64
//! ```
//!
//! Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.

/// 2^64 divided by the golden ratio, made odd: neighbouring counters land far apart.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A stream of random numbers.
///
/// ```
/// let (mut a, mut b) = (nn::Random::new(7), nn::Random::new(7));
/// assert_eq!(a.uniform(-1.0, 1.0), b.uniform(-1.0, 1.0));
/// ```
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self { state: mix(seed) }
    }

    /// A stream of its own for a part of the work, say a sample: the same whatever was drawn from others.
    pub fn fork(&self, part: u64) -> Self {
        Self { state: mix(self.state ^ mix(part.wrapping_mul(GOLDEN).wrapping_add(1))) }
    }

    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state)
    }

    /// A number from `low` up to `high`, in steps of 2^-24 of the distance.
    pub fn uniform(&mut self, low: f32, high: f32) -> f32 {
        let unit = (self.bits() >> 40) as f32 / (1u32 << 24) as f32;
        low + (high - low) * unit
    }

    /// A number below `bound`; 0 if that is 0. The high half of a product: no choice is favoured by more than
    /// `bound` in 2^64.
    pub fn below(&mut self, bound: usize) -> usize {
        ((self.bits() as u128 * bound as u128) >> 64) as usize
    }

    /// Brings elements into a random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, elements: &mut [T]) {
        for last in (1..elements.len()).rev() {
            elements.swap(last, self.below(last + 1));
        }
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shuffle_keeps_every_element_and_repeats_for_a_seed() {
        let shuffled = |seed| {
            let mut order: Vec<usize> = (0..100).collect();
            Random::new(seed).shuffle(&mut order);
            order
        };
        let mut sorted = shuffled(1);
        assert_eq!(sorted, shuffled(1));
        assert_ne!(sorted, shuffled(2));
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn uniform_numbers_fill_their_range_evenly() {
        let mut random = Random::new(3);
        let mut counts = [0; 10];
        for _ in 0..100_000 {
            counts[(random.uniform(0.0, 1.0) * 10.0) as usize] += 1;
        }
        // Five standard deviations of a binomial count: sqrt(1e5 * 0.1 * 0.9) is 95.
        assert!(counts.iter().all(|&count| (9_525..=10_475).contains(&count)), "{counts:?}");
    }

    #[test]
    fn a_fork_does_not_depend_on_what_was_drawn_from_its_sibling() {
        let parent = Random::new(1);
        let mut sibling = parent.fork(0);
        sibling.bits();
        assert_eq!(parent.fork(1).bits(), parent.clone().fork(1).bits());
        assert_ne!(parent.fork(0).bits(), parent.fork(1).bits());
    }
}
