//! Packed sequences of different lengths: within the bound of the definition, and each with the bits that it has alone.

use kernels::attention::{
    Attention, AttentionSpec, Causal, Dropout, Gradients, Inputs, RaggedGradients, RaggedInputs, Shape,
};
use kernels::reference::{ragged_attention_backward, ragged_attention_forward};
use kernels::{Error, Isa, Parallelism, View, ViewMut};
use tests::attention::{Case, judge};

fn numbers(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i + seed) * 7919 % 1013) as f32 / 506.0 - 1.0).collect()
}

/// A spec and the lengths of queries and keys.
struct Problem {
    spec: AttentionSpec,
    lens: Vec<(usize, usize)>,
    sinks: bool,
    alibi: bool,
    dropout: Option<Dropout>,
}

impl Problem {
    fn new(spec: AttentionSpec, lens: &[(usize, usize)]) -> Self {
        Self { spec, lens: lens.to_vec(), sinks: false, alibi: false, dropout: None }
    }

    fn starts(&self) -> [Vec<usize>; 2] {
        let mut starts = [vec![0], vec![0]];
        for &(q_len, kv_len) in &self.lens {
            for (starts, len) in starts.iter_mut().zip([q_len, kv_len]) {
                starts.push(starts[starts.len() - 1] + len);
            }
        }
        starts
    }
}

/// Every feature at random, heads of any dimension, and sequences of any length.
fn random(seed: u64) -> Problem {
    let case = Case::new(seed);
    let spec = case.spec;
    // The lengths of other cases, shorter for wider heads.
    let most = (1 << 14) / (spec.heads * spec.head_dim.max(spec.v_dim)) + 3;
    let lens = (0..seed % 5 + 1).map(|number| {
        let Shape { q_len, kv_len, .. } = Case::new(1000 + 8 * seed + number).shape;
        (q_len.min(most), kv_len.min(4 * most))
    });
    Problem {
        sinks: case.sinks.is_some() || seed % 4 == 1,
        alibi: case.alibi.is_some() || seed % 4 == 2,
        dropout: case.dropout,
        ..Problem::new(spec, &lens.collect::<Vec<_>>())
    }
}

fn problems() -> Vec<Problem> {
    let mixed = [(1, 70), (0, 5), (130, 130), (3, 0), (300, 290), (7, 9), (1, 2100), (0, 0), (40, 600)];
    let grouped = AttentionSpec::new(4, 24).kv_heads(2).v_dim(17).causal(Causal::BottomRight);
    vec![
        Problem::new(AttentionSpec::new(2, 64).causal(Causal::TopLeft), &mixed),
        Problem { sinks: true, alibi: true, ..Problem::new(grouped, &mixed) },
        Problem {
            dropout: Some(Dropout::new(0.2, 3).first_sequence(4)),
            ..Problem::new(AttentionSpec::new(3, 16).window(Some(40), Some(3)), &mixed)
        },
        Problem { sinks: true, ..Problem::new(grouped.softcap(2.0), &[(1, 1000), (1, 17), (1, 3000)]) },
        Problem::new(AttentionSpec::new(1, 8), &[]),
        Problem::new(AttentionSpec::new(1, 8), &[(0, 0), (0, 3), (2, 0)]),
    ]
    .into_iter()
    .chain((0..60).map(random))
    .collect()
}

/// Output, log-sum-exp, and the gradients of queries, keys, values and sinks.
type Results = [Vec<f32>; 6];

struct Data {
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    dout: Vec<f32>,
    sinks: Vec<f32>,
    slopes: Vec<f32>,
}

impl Data {
    fn new(problem: &Problem) -> Self {
        let spec = &problem.spec;
        let [queries, keys] = problem.starts().map(|starts| starts[starts.len() - 1]);
        Self {
            q: numbers(queries * spec.heads * spec.head_dim, 1),
            k: numbers(keys * spec.kv_heads * spec.head_dim, 2),
            v: numbers(keys * spec.kv_heads * spec.v_dim, 3),
            dout: numbers(queries * spec.heads * spec.v_dim, 4),
            sinks: numbers(spec.heads, 5),
            slopes: numbers(spec.heads, 6),
        }
    }
}

fn ragged(problem: &Problem, data: &Data, isa: Isa, parallelism: Parallelism) -> Results {
    let spec = problem.spec;
    let [q_starts, kv_starts] = problem.starts();
    let [queries, keys] = [&q_starts, &kv_starts].map(|starts| starts[starts.len() - 1]);
    let of_k = [keys, spec.kv_heads, spec.head_dim];
    let of_v = [keys, spec.kv_heads, spec.v_dim];
    let (of_q, of_out) = ([queries, spec.heads, spec.head_dim], [queries, spec.heads, spec.v_dim]);
    let mut inputs = RaggedInputs::new(
        View::new(&data.q, of_q).unwrap(),
        View::new(&data.k, of_k).unwrap(),
        View::new(&data.v, of_v).unwrap(),
        &q_starts,
        &kv_starts,
    );
    if problem.sinks {
        inputs = inputs.sinks(&data.sinks);
    }
    if problem.alibi {
        inputs = inputs.alibi(&data.slopes);
    }
    inputs.dropout = problem.dropout;
    let plan = Attention::with_isa(spec, isa).unwrap();
    let threads = parallelism.threads();
    let (mut out, mut lse) = (vec![f32::NAN; data.dout.len()], vec![f32::NAN; queries * spec.heads]);
    let mut workspace = vec![f32::NAN; plan.ragged_workspace_len(&q_starts, &kv_starts, threads).unwrap()];
    let to = ViewMut::new(&mut out, of_out).unwrap();
    plan.forward_ragged(&inputs, to, Some(&mut lse), &mut workspace, parallelism).unwrap();
    let [mut dq, mut dk, mut dv] = [&data.q, &data.k, &data.v].map(|of| vec![f32::NAN; of.len()]);
    let mut dsinks = vec![f32::NAN; spec.heads];
    let mut gradients = RaggedGradients::new(
        ViewMut::new(&mut dq, of_q).unwrap(),
        ViewMut::new(&mut dk, of_k).unwrap(),
        ViewMut::new(&mut dv, of_v).unwrap(),
    );
    if problem.sinks {
        gradients = gradients.dsinks(&mut dsinks);
    }
    let mut workspace = vec![f32::NAN; plan.ragged_backward_workspace_len(&q_starts, &kv_starts, threads).unwrap()];
    let (of, dout) = (View::new(&out, of_out).unwrap(), View::new(&data.dout, of_out).unwrap());
    plan.backward_ragged(&inputs, &of, &dout, &lse, gradients, &mut workspace, parallelism).unwrap();
    if !problem.sinks {
        dsinks.clear();
    }
    [out, lse, dq, dk, dv, dsinks]
}

/// Every sequence in a call of its own.
fn alone(problem: &Problem, data: &Data, isa: Isa) -> Results {
    let spec = problem.spec;
    let [q_starts, kv_starts] = problem.starts();
    let queries = q_starts[q_starts.len() - 1];
    let plan = Attention::with_isa(spec, isa).unwrap();
    let (mut out, mut lse) = (vec![f32::NAN; data.dout.len()], vec![f32::NAN; queries * spec.heads]);
    let [mut dq, mut dk, mut dv] = [&data.q, &data.k, &data.v].map(|of| vec![f32::NAN; of.len()]);
    let mut sinks = vec![0.0; if problem.sinks { spec.heads } else { 0 }];
    for (b, &(q_len, kv_len)) in problem.lens.iter().enumerate() {
        let shape = Shape::new(1, q_len, kv_len);
        let place = |first: usize, len: usize, heads: usize, dim: usize| {
            let [row, head] = [heads * dim, dim];
            (first * row..(first + len) * row, [1, heads, len, dim], [0, head as isize, row as isize, 1])
        };
        let of_q = place(q_starts[b], q_len, spec.heads, spec.head_dim);
        let of_k = place(kv_starts[b], kv_len, spec.kv_heads, spec.head_dim);
        let of_v = place(kv_starts[b], kv_len, spec.kv_heads, spec.v_dim);
        let of_out = place(q_starts[b], q_len, spec.heads, spec.v_dim);
        let view = |data, (range, shape, strides): &(std::ops::Range<usize>, _, _)| {
            let data: &[f32] = data;
            View::strided(&data[range.clone()], 0, *shape, *strides).unwrap()
        };
        let mut inputs = Inputs::new(view(&data.q, &of_q), view(&data.k, &of_k), view(&data.v, &of_v));
        if problem.sinks {
            inputs = inputs.sinks(&data.sinks);
        }
        if problem.alibi {
            inputs = inputs.alibi(&data.slopes);
        }
        inputs.dropout = problem.dropout.map(|dropout| dropout.first_sequence(dropout.first_sequence + b));
        let forward = plan.workspace_len(shape, 1).unwrap();
        let mut workspace = vec![f32::NAN; forward.max(plan.backward_workspace_len(shape, 1).unwrap())];
        let mut of_lse = vec![f32::NAN; spec.heads * q_len];
        let (range, shape, strides) = of_out.clone();
        let to = ViewMut::strided(&mut out[range], 0, shape, strides).unwrap();
        plan.forward(&inputs, to, Some(&mut of_lse), &mut workspace, Parallelism::Serial).unwrap();
        for h in 0..spec.heads {
            lse[h * queries + q_starts[b]..][..q_len].copy_from_slice(&of_lse[h * q_len..][..q_len]);
        }
        let mut of_sinks = vec![0.0; spec.heads];
        let mut gradients = Gradients::new(
            ViewMut::strided(&mut dq[of_q.0], 0, of_q.1, of_q.2).unwrap(),
            ViewMut::strided(&mut dk[of_k.0], 0, of_k.1, of_k.2).unwrap(),
            ViewMut::strided(&mut dv[of_v.0], 0, of_v.1, of_v.2).unwrap(),
        );
        if problem.sinks {
            gradients = gradients.dsinks(&mut of_sinks);
        }
        let (of, dout) = (view(&out, &of_out), view(&data.dout, &of_out));
        plan.backward(&inputs, &of, &dout, &of_lse, gradients, &mut workspace, Parallelism::Serial).unwrap();
        for (sum, of) in sinks.iter_mut().zip(of_sinks) {
            *sum += of;
        }
    }
    [out, lse, dq, dk, dv, sinks]
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| if *x == 0.0 { 0 } else { x.to_bits() }).collect()
}

#[test]
fn packed_sequences_have_the_bits_that_they_have_alone_on_any_number_of_threads() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    for (number, problem) in problems().iter().enumerate() {
        let data = Data::new(problem);
        for isa in Isa::available() {
            let alone = alone(problem, &data, isa);
            let serial = ragged(problem, &data, isa, Parallelism::Serial);
            let shared = pool.install(|| ragged(problem, &data, isa, Parallelism::Current));
            for (which, name) in NAMES.into_iter().enumerate() {
                let context = format!("{name} of problem {number}, {}, {:?} on {isa}", problem.spec, problem.lens);
                // The sums of sinks go over all sequences in one chain.
                if name != "dsinks" {
                    assert_eq!(bits(&serial[which]), bits(&alone[which]), "{context}");
                }
                assert_eq!(bits(&serial[which]), bits(&shared[which]), "{context}");
            }
        }
    }
}

/// Half a unit in the last place of 1.
const U: f64 = 1.0 / (1 << 24) as f64;

const NAMES: [&str; 6] = ["out", "lse", "dq", "dk", "dv", "dsinks"];

/// What each element may differ by: as much as those of its sequence alone, and sinks by as much as all sequences
/// together, whose terms are one chain of sums.
fn bounds(problem: &Problem, data: &Data, out: &[f64], lse: &[f64]) -> [Vec<f64>; 6] {
    let spec = problem.spec;
    let [q_starts, kv_starts] = problem.starts();
    let queries = q_starts[q_starts.len() - 1];
    let mut bounds = [Vec::new(), vec![0.0; lse.len()], Vec::new(), Vec::new(), Vec::new(), vec![0.0; spec.heads]];
    for (b, &(q_len, kv_len)) in problem.lens.iter().enumerate() {
        let of = |data: &[f32], first: usize, len: usize, row: usize| data[first * row..(first + len) * row].to_vec();
        let (of_q, of_out) = (spec.heads * spec.head_dim, spec.heads * spec.v_dim);
        let (of_k, of_v) = (spec.kv_heads * spec.head_dim, spec.kv_heads * spec.v_dim);
        let case = Case {
            order: [0, 2, 1, 3],
            q: of(&data.q, q_starts[b], q_len, of_q),
            k: of(&data.k, kv_starts[b], kv_len, of_k),
            v: of(&data.v, kv_starts[b], kv_len, of_v),
            dout: of(&data.dout, q_starts[b], q_len, of_out),
            alibi: problem.alibi.then(|| data.slopes.clone()),
            sinks: problem.sinks.then(|| data.sinks.clone()),
            dropout: problem.dropout.map(|of| Dropout { first_sequence: of.first_sequence + b, ..of }),
            ..Case::plain(spec, Shape::new(1, 0, 0), 0)
        };
        let case = Case { shape: Shape::new(1, q_len, kv_len), ..case };
        let out = &out[q_starts[b] * of_out..][..q_len * of_out];
        let of_lse: Vec<f64> =
            (0..spec.heads).flat_map(|h| &lse[h * queries + q_starts[b]..][..q_len]).copied().collect();
        let alone = case.bounds(out, &of_lse);
        let [dq, dk, dv, _, dsinks] = alone.gradients;
        for (to, from) in [(0, alone.out), (2, dq), (3, dk), (4, dv)] {
            bounds[to].extend(from);
        }
        for h in 0..spec.heads {
            bounds[1][h * queries + q_starts[b]..][..q_len].copy_from_slice(&alone.lse[h * q_len..][..q_len]);
            bounds[5][h] += dsinks.get(h).unwrap_or(&0.0);
            // A weight is at most 1.
            for row in 0..q_len {
                let at = (row * spec.heads + h) * spec.v_dim;
                let products = out[at..][..spec.v_dim].iter().zip(&case.dout[at..]);
                let mean: f64 = products.map(|(out, &dout)| out * f64::from(dout)).sum();
                bounds[5][h] += queries as f64 * U * mean.abs();
            }
        }
    }
    bounds[5].truncate(if problem.sinks { spec.heads } else { 0 });
    bounds
}

#[test]
fn packed_sequences_stay_within_the_bound_of_the_definition() {
    for (number, problem) in problems().iter().enumerate() {
        let (spec, data) = (problem.spec, Data::new(problem));
        let [q_starts, kv_starts] = problem.starts();
        let [queries, keys] = [&q_starts, &kv_starts].map(|starts| starts[starts.len() - 1]);
        let wide = |of: &[f32]| of.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        let [q, k, v, dout] = [&data.q, &data.k, &data.v, &data.dout].map(|of| wide(of));
        let (sinks, slopes) = (wide(&data.sinks), wide(&data.slopes));
        let (of_k, of_v) = ([keys, spec.kv_heads, spec.head_dim], [keys, spec.kv_heads, spec.v_dim]);
        let (of_q, of_out) = ([queries, spec.heads, spec.head_dim], [queries, spec.heads, spec.v_dim]);
        let mut inputs = RaggedInputs::new(
            View::new(&q, of_q).unwrap(),
            View::new(&k, of_k).unwrap(),
            View::new(&v, of_v).unwrap(),
            &q_starts,
            &kv_starts,
        );
        inputs.dropout = problem.dropout;
        inputs.sinks = problem.sinks.then_some(&sinks[..]);
        inputs.alibi = problem.alibi.then_some(&slopes[..]);
        let (mut out, mut lse) = (vec![0.0; dout.len()], vec![0.0; queries * spec.heads]);
        let mut to = ViewMut::new(&mut out, of_out).unwrap();
        ragged_attention_forward(&spec, &inputs, &mut to, &mut lse).unwrap();
        let [mut dq, mut dk, mut dv] = [&q, &k, &v].map(|of| vec![0.0; of.len()]);
        let mut dsinks = vec![0.0; if problem.sinks { spec.heads } else { 0 }];
        let mut gradients = RaggedGradients::new(
            ViewMut::new(&mut dq, of_q).unwrap(),
            ViewMut::new(&mut dk, of_k).unwrap(),
            ViewMut::new(&mut dv, of_v).unwrap(),
        );
        if problem.sinks {
            gradients = gradients.dsinks(&mut dsinks);
        }
        ragged_attention_backward(&spec, &inputs, &View::new(&dout, of_out).unwrap(), &mut gradients).unwrap();
        let bounds = bounds(problem, &data, &out, &lse);
        for isa in Isa::available() {
            let given = ragged(problem, &data, isa, Parallelism::Serial);
            for (which, expected) in [&out, &lse, &dq, &dk, &dv, &dsinks].into_iter().enumerate() {
                assert_eq!(given[which].len(), expected.len());
                judge(NAMES[which], &given[which], expected, &bounds[which]).unwrap_or_else(|message| {
                    panic!("problem {number}, {spec}, {:?} on {isa}: {message}", problem.lens)
                });
            }
        }
    }
}

#[test]
fn lengths_that_do_not_fit_are_named_and_outputs_stay_untouched() {
    let plan = Attention::new(AttentionSpec::new(1, 2)).unwrap();
    let data = [1.0f32; 8];
    let view = View::new(&data, [4, 1, 2]).unwrap();
    let call = |q_starts: &[usize], kv_starts: &[usize], workspace: usize| {
        let inputs = RaggedInputs::new(view, view, view, q_starts, kv_starts);
        let mut memory = [7.0; 8];
        let to = ViewMut::new(&mut memory, [4, 1, 2]).unwrap();
        let result = plan.forward_ragged(&inputs, to, None, &mut vec![0.0; workspace], Parallelism::Serial);
        assert!(result.is_ok() || memory == [7.0; 8]);
        result
    };
    assert_eq!(call(&[0, 1, 4], &[0, 4, 4], 1 << 16), Ok(()));
    assert!(matches!(call(&[], &[], 1 << 16), Err(Error::Invalid { argument: "q_starts", .. })));
    assert!(matches!(call(&[1, 4], &[0, 4], 1 << 16), Err(Error::Invalid { argument: "q_starts", .. })));
    assert!(matches!(call(&[0, 4], &[0, 5, 4], 1 << 16), Err(Error::Invalid { argument: "kv_starts", .. })));
    assert!(matches!(call(&[0, 4], &[0, 1, 4], 1 << 16), Err(Error::Length { argument: "kv_starts", .. })));
    assert!(matches!(call(&[0, 3], &[0, 4], 1 << 16), Err(Error::Shape { argument: "q", .. })));
    assert!(matches!(call(&[0, 4], &[0, usize::MAX], 1 << 16), Err(Error::Overflow { .. })));
    assert!(matches!(call(&[0, 4], &[0, 4], 3), Err(Error::Length { argument: "workspace", .. })));
    assert!(matches!(plan.ragged_workspace_len(&[0, 4], &[0, 4], 0), Err(Error::Invalid { argument: "slots", .. })));
}
