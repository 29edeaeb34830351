//! Choices: from bytes as long as there are any, then at random.

/// Head dimensions around the lanes and tiles of every instruction set.
const DIMS: [usize; 14] = [1, 2, 3, 7, 8, 9, 16, 17, 24, 32, 40, 64, 80, 130];

/// Head dimensions around those where blocks of keys become shorter, and the largest.
const WIDE: [usize; 9] = [128, 160, 192, 255, 256, 257, 384, 511, 512];

/// Choices from bytes as long as there are any, then random ones; data is always random.
#[derive(Clone, Debug)]
pub(super) struct Draw<'a> {
    state: u64,
    bytes: &'a [u8],
}

impl<'a> Draw<'a> {
    pub fn new(seed: u64, bytes: &'a [u8]) -> Self {
        Self { state: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1, bytes }
    }

    pub fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 20
    }

    pub fn below(&mut self, n: usize) -> usize {
        match self.bytes {
            [byte, rest @ ..] if n <= 256 => {
                self.bytes = rest;
                usize::from(*byte) % n
            }
            _ => self.next() as usize % n,
        }
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// A head dimension. Bytes from 240 on ask for a wide one; those below mean what they meant before there were any,
    /// so that old inputs stay what they are.
    pub fn dim(&mut self) -> usize {
        match *self.bytes {
            [byte, ref rest @ ..] if byte >= 240 => {
                self.bytes = rest;
                WIDE[usize::from(byte - 240) % WIDE.len()]
            }
            [_, ..] => self.pick(&DIMS),
            [] => {
                let wide = self.next().is_multiple_of(6);
                self.pick(if wide { &WIDE } else { &DIMS })
            }
        }
    }

    pub fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| (self.next() % (1 << 24)) as f32 / (1 << 23) as f32 - 1.0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_below_240_keep_their_dimensions_and_those_above_reach_every_wide_one() {
        let dim = |byte: u8| Draw::new(1, &[byte, 0]).dim();
        assert!((0..240).all(|byte: u8| dim(byte) == DIMS[usize::from(byte) % DIMS.len()]));
        assert!(WIDE.iter().all(|&wide| (240..=255).any(|byte| dim(byte) == wide)));
    }
}
