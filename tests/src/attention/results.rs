//! Everything that an attention computes, and where two of them differ.

use std::fmt::Write;

use kernels::{Isa, Parallelism};

use super::{Case, Memory};
use crate::guard::Side;

/// The names of the results, in their order.
pub const NAMES: [&str; 7] = ["out", "lse", "dq", "dk", "dv", "dbias", "dsinks"];

/// The bits of numbers: a NaN is a NaN, and a zero is a zero.
pub fn bits(values: &[f32]) -> Vec<u32> {
    let bits = |x: &f32| match x {
        x if x.is_nan() => u32::MAX,
        x if *x == 0.0 => 0,
        x => x.to_bits(),
    };
    values.iter().map(bits).collect()
}

/// The output, the log-sum-exp and the gradients of queries, keys, values, bias and sinks.
pub type Results = [Vec<f32>; 7];

/// Where the bits of two calls first differ.
pub fn difference(given: &Results, expected: &Results) -> Option<String> {
    let mut message = String::new();
    for (which, name) in NAMES.into_iter().enumerate() {
        let (of_given, of_expected) = (bits(&given[which]), bits(&expected[which]));
        assert_eq!(of_given.len(), of_expected.len(), "{name}");
        let differ = (0..of_given.len()).filter(|&at| of_given[at] != of_expected[at]);
        let count = differ.clone().count();
        if let Some(at) = { differ }.next() {
            let (given, expected) = (given[which][at], expected[which][at]);
            let _ = write!(message, "{count} of {name} differ, the first [{at}]: {given:e} instead of {expected:e}; ");
        }
    }
    (!message.is_empty()).then_some(message)
}

impl Case {
    /// Forward and backward, on one thread.
    pub fn results(&self, isa: Isa, memory: &mut Memory) -> Results {
        self.results_with(isa, Parallelism::Serial, memory)
    }

    /// Forward and backward.
    pub fn results_with(&self, isa: Isa, parallelism: Parallelism, memory: &mut Memory) -> Results {
        let side = if self.seed.is_multiple_of(2) { Side::Left } else { Side::Right };
        let (out, lse) = self.forward(isa, parallelism, memory, side);
        let [dq, dk, dv, dbias, dsinks] = self.backward(isa, parallelism, memory, side, (&out, &lse));
        [out, lse, dq, dk, dv, dbias, dsinks]
    }
}
