//! Attention's memory grows with the lengths, not with their product: by formula up to 65,536 keys, and in calls that
//! get no more than that.

use kernels::attention::{Attention, AttentionSpec, Causal, Inputs, Shape};
use kernels::{Isa, Parallelism, View, ViewMut};
use tests::attention::{Case, Memory, NAMES, judge};
use tests::guard::Side;

/// Numbers of keys that are doubled up to 65,536, from where there are several tasks, and blocks of keys with sums
/// between them.
fn lengths() -> impl Iterator<Item = usize> {
    (10..=15).map(|power| 1 << power)
}

#[test]
fn workspaces_are_linear_in_the_length() {
    let specs = [
        AttentionSpec::new(1, 64),
        AttentionSpec::new(8, 128).kv_heads(2).causal(Causal::BottomRight),
        AttentionSpec::new(2, 17).v_dim(300).softcap(3.0).window(Some(100), None),
    ];
    for spec in specs {
        let plan = Attention::new(spec).unwrap();
        for batch in [1, 3] {
            // As many queries as keys, few queries, and many queries of few keys.
            let shapes: [fn(usize) -> [usize; 2]; 3] = [|n| [n, n], |n| [1, n], |n| [n, 77]];
            for of in shapes {
                let shape = |n: usize| {
                    let [q_len, kv_len] = of(n);
                    Shape::new(batch, q_len, kv_len)
                };
                for n in lengths() {
                    for slots in [1, 2] {
                        let len = |n| plan.workspace_len(shape(n), slots).unwrap();
                        let backward = |n| plan.backward_workspace_len(shape(n), slots).unwrap();
                        assert!(len(2 * n) <= 2 * len(n), "{spec}, forward, {:?}", shape(n));
                        assert!(backward(2 * n) <= 2 * backward(n), "{spec}, backward, {:?}", shape(n));
                    }
                }
                // A slot of the longest: rows in flight, a block of keys; backward all rows of a group of heads.
                let (longest, rows) = (shape(1 << 16), spec.group() * of(1 << 16)[0]);
                let fixed = 1 << 20;
                let pieces = if plan.describe(longest).contains("few rows") { 64 * batch * spec.heads } else { 0 };
                let state = 6 * (spec.v_dim.next_multiple_of(64) + 32);
                assert!(plan.workspace_len(longest, 1).unwrap() <= fixed + pieces * state, "{spec}, {longest:?}");
                let of_row = spec.head_dim.next_multiple_of(64) + 2;
                assert!(
                    plan.backward_workspace_len(longest, 1).unwrap() <= fixed + rows * of_row,
                    "{spec}, {longest:?}"
                );
            }
        }
    }
}

#[test]
fn a_head_of_65_536_keys_stays_within_its_bound_forward_decoding_and_backward() {
    let spec = AttentionSpec::new(2, 8).kv_heads(1).causal(Causal::BottomRight);
    let mut memory = Memory::default();
    for q_len in [1, 40] {
        let case = Case::plain(spec, Shape::new(1, q_len, 1 << 16), 3);
        let (expected_out, expected_lse) = case.reference();
        let expected = case.reference_gradients();
        let bounds = case.bounds(&expected_out, &expected_lse);
        for isa in Isa::available() {
            let (out, lse) = case.forward(isa, Parallelism::Serial, &mut memory, Side::Right);
            judge("out", &out, &expected_out, &bounds.out).unwrap();
            judge("lse", &lse, &expected_lse, &bounds.lse).unwrap();
            let given = case.backward(isa, Parallelism::Serial, &mut memory, Side::Right, (&out, &lse));
            for (which, name) in ["dq", "dk", "dv"].into_iter().enumerate() {
                judge(name, &given[which], &expected[which], &bounds.gradients[which]).unwrap();
            }
        }
    }
}

#[test]
fn a_window_over_65_536_queries_and_keys_gives_exact_means() {
    let (n, window) = (1 << 16, 63);
    let spec = AttentionSpec::new(1, 4).causal(Causal::TopLeft).window(Some(window), None);
    let zeros = vec![0.0; n * 4];
    let v: Vec<f32> = (0..n * 4).map(|i| (i / 4 % 64 * (i % 4 + 1)) as f32).collect();
    let shape = [1, 1, n, 4];
    for isa in Isa::available() {
        let plan = Attention::with_isa(spec, isa).unwrap();
        let view = |data| View::new(data, shape).unwrap();
        let inputs = Inputs::new(view(&zeros), view(&zeros), view(&v));
        let mut workspace = vec![f32::NAN; plan.workspace_len(Shape::new(1, n, n), 1).unwrap()];
        let mut out = vec![f32::NAN; n * 4];
        let to = ViewMut::new(&mut out, shape).unwrap();
        plan.forward(&inputs, to, None, &mut workspace, Parallelism::Serial).unwrap();
        for row in window..n {
            // Any 64 keys in a row hold each of 0..64 once.
            for c in 0..4 {
                assert_eq!(out[row * 4 + c], 31.5 * (c + 1) as f32, "row {row} on {isa}");
            }
        }
    }
}

/// Slices of the gradients against those of short attentions: rows that see the same keys have the same gradients of
/// queries, keys that the same rows see those of keys and values.
#[test]
fn gradients_of_a_window_over_65_536_queries_and_keys_stay_within_their_bounds() {
    let (n, window, slice, dim) = (1 << 16, 40, 300, 4);
    let spec = AttentionSpec::new(1, dim).causal(Causal::TopLeft).window(Some(window), None);
    let case = Case::plain(spec, Shape::new(1, n, n), 6);
    let mut memory = Memory::default();
    for isa in Isa::available() {
        let results = case.results(isa, &mut memory);
        for start in [0, 511, 30_000, n - slice] {
            let of = |data: &[f32]| data[start * dim..(start + slice) * dim].to_vec();
            let [q, k, v, dout] = [&case.q, &case.k, &case.v, &case.dout].map(|data| of(data));
            let part =
                Case { q, k, v, dout, shape: Shape::new(1, slice, slice), ..Case::plain(spec, Shape::new(1, 0, 0), 6) };
            let (out, lse) = part.reference();
            let [dq, dk, dv, ..] = part.reference_gradients();
            let bounds = part.bounds(&out, &lse);
            let rows = if start == 0 { 0..slice } else { window..slice };
            let keys = rows.start..if start + slice == n { slice } else { slice - window };
            let [of_dq, of_dk, of_dv, ..] = &bounds.gradients;
            for (which, expected, bounds, lines) in
                [(0, &out, &bounds.out, &rows), (2, &dq, of_dq, &rows), (3, &dk, of_dk, &keys), (4, &dv, of_dv, &keys)]
            {
                let range = lines.start * dim..lines.end * dim;
                let given = &of(&results[which])[range.clone()];
                judge(NAMES[which], given, &expected[range.clone()], &bounds[range])
                    .unwrap_or_else(|message| panic!("rows from {start} on, on {isa}: {message}"));
            }
        }
    }
}
