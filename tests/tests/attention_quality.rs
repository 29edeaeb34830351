//! How accurate attention is on ordinary data: bounds allow for the worst, which is a hundred times worse.

use kernels::Isa;
use kernels::attention::{AttentionSpec, Causal, Shape};
use tests::attention::{Case, Memory, NAMES};

/// Half a unit in the last place of 1.
const U: f64 = 1.0 / (1 << 24) as f64;

/// Numbers of mean 0 and variance 1, nearly normal: sums of twelve uniform ones.
fn normal(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32
    };
    (0..len).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
}

fn largest(given: &[f32], expected: &[f64]) -> f64 {
    given.iter().zip(expected).map(|(&given, expected)| (f64::from(given) - expected).abs()).fold(0.0, f64::max)
}

/// The error of the output is at most 16 units of the weighted sum of `|v|`, and at most twice that of the definition
/// in single precision; those of the gradients of queries, keys and values are at most three times.
#[test]
fn errors_on_normal_data_are_a_few_roundings_and_hardly_more_than_those_of_the_definition_in_single_precision() {
    let problems = [
        (AttentionSpec::new(2, 64), 197, 197),
        (AttentionSpec::new(1, 128).causal(Causal::TopLeft), 300, 300),
        (AttentionSpec::new(1, 40), 77, 600),
        (AttentionSpec::new(4, 64).kv_heads(1), 1, 1100),
        (AttentionSpec::new(2, 80).kv_heads(1).causal(Causal::BottomRight), 5, 300),
        (AttentionSpec::new(1, 256).v_dim(32), 50, 200),
        (AttentionSpec::new(1, 512), 40, 130),
    ];
    for (number, (spec, q_len, kv_len)) in problems.into_iter().enumerate() {
        let mut case = Case::plain(spec, Shape::new(1, q_len, kv_len), number as u64);
        for (seed, data) in [&mut case.q, &mut case.k, &mut case.v, &mut case.dout].into_iter().enumerate() {
            *data = normal(data.len(), (10 * number + seed) as u64);
        }
        let (out, lse) = case.reference();
        let [dq, dk, dv, ..] = case.reference_gradients();
        let expected = [out, lse, dq, dk, dv];
        let (out, lse) = case.defined::<f32>();
        let [dq, dk, dv, ..] = case.defined_gradients::<f32>();
        let single = [out, lse, dq, dk, dv];
        let sizes = Case { v: case.v.iter().map(|v| v.abs()).collect(), ..case.clone() }.reference().0;
        let mut memory = Memory::default();
        for isa in Isa::available() {
            let context = format!("{spec}, {q_len} x {kv_len} on {isa}");
            let given = case.results(isa, &mut memory);
            for (at, (&given, (expected, size))) in given[0].iter().zip(expected[0].iter().zip(&sizes)).enumerate() {
                let units = (f64::from(given) - expected).abs() / (U * size);
                assert!(units <= 16.0, "out[{at}] errs by {units} units of its weighted values: {context}");
            }
            for (which, times) in [(0, 2.0), (2, 3.0), (3, 3.0), (4, 3.0)] {
                let (error, of_single) =
                    (largest(&given[which], &expected[which]), largest(&single[which], &expected[which]));
                let name = NAMES[which];
                assert!(
                    error <= times * of_single,
                    "{name} errs by {error:e}, the definition by {of_single:e}: {context}"
                );
            }
        }
    }
}
