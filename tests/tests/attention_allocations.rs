//! A planned attention that is given a workspace allocates nothing. On its own because it counts for the whole process.

use kernels::attention::{
    Attention, AttentionSpec, Causal, Dropout, Gradients, Inputs, KvCache, PagedKvCache, RaggedGradients, RaggedInputs,
    Shape,
};
use kernels::{Parallelism, Team, TeamOptions, View, ViewMut};
use tests::allocations::{Counting, fewest_allocations};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Forward and backward calls of a dense batch.
fn dense(spec: AttentionSpec, shape: Shape, everything: bool, parallelism: Parallelism) -> usize {
    let plan = Attention::new(spec).unwrap();
    let Shape { batch, q_len, kv_len } = shape;
    let (of_q, of_out) = ([batch, spec.heads, q_len, spec.head_dim], [batch, spec.heads, q_len, spec.v_dim]);
    let (of_k, of_v) = ([batch, spec.kv_heads, kv_len, spec.head_dim], [batch, spec.kv_heads, kv_len, spec.v_dim]);
    let data = |shape: [usize; 4]| (0..shape.iter().product()).map(|i| (i % 17) as f32 / 17.0).collect::<Vec<f32>>();
    let (q, k, v, dout) = (data(of_q), data(of_k), data(of_v), data(of_out));
    let (bias, keep, lens) = (vec![0.5; spec.heads * kv_len], vec![true; kv_len], vec![kv_len; batch]);
    let (sinks, slopes) = (vec![0.5; spec.heads], vec![0.1; spec.heads]);
    let pairs = [batch, spec.heads, q_len, kv_len];
    let mut inputs =
        Inputs::new(View::new(&q, of_q).unwrap(), View::new(&k, of_k).unwrap(), View::new(&v, of_v).unwrap());
    if everything {
        inputs = inputs
            .bias(View::strided(&bias, 0, pairs, [0, kv_len as isize, 0, 1]).unwrap())
            .keep(View::strided(&keep, 0, pairs, [0, 0, 0, 1]).unwrap())
            .kv_lens(&lens)
            .sinks(&sinks)
            .alibi(&slopes)
            .dropout(Dropout::new(0.1, 1));
    }
    let (mut out, mut lse) = (dout.clone(), vec![0.0; batch * spec.heads * q_len]);
    let (mut dq, mut dk, mut dv) = (q.clone(), k.clone(), v.clone());
    let (mut dbias, mut dsinks) = (bias.clone(), sinks.clone());
    let len = plan.workspace_len(shape, 2).unwrap().max(plan.backward_workspace_len(shape, 2).unwrap());
    let mut workspace = vec![0.0; len];
    fewest_allocations(|| {
        let to = ViewMut::new(&mut out, of_out).unwrap();
        plan.forward(&inputs, to, Some(&mut lse), &mut workspace, parallelism).unwrap();
        let mut gradients = Gradients::new(
            ViewMut::new(&mut dq, of_q).unwrap(),
            ViewMut::new(&mut dk, of_k).unwrap(),
            ViewMut::new(&mut dv, of_v).unwrap(),
        );
        if everything {
            gradients = gradients.dbias(ViewMut::new(&mut dbias, [1, spec.heads, 1, kv_len]).unwrap());
            gradients = gradients.dsinks(&mut dsinks);
        }
        let (out, dout) = (View::new(&out, of_out).unwrap(), View::new(&dout, of_out).unwrap());
        plan.backward(&inputs, &out, &dout, &lse, gradients, &mut workspace, parallelism).unwrap();
    })
}

/// Forward and backward calls of packed sequences.
fn ragged(spec: AttentionSpec, starts: &[usize], parallelism: Parallelism) -> usize {
    let plan = Attention::new(spec).unwrap();
    let all = starts[starts.len() - 1];
    let (of_q, of_k) = ([all, spec.heads, spec.head_dim], [all, spec.kv_heads, spec.head_dim]);
    let data = |shape: [usize; 3]| (0..shape.iter().product()).map(|i| (i % 17) as f32 / 17.0).collect::<Vec<f32>>();
    let (q, k) = (data(of_q), data(of_k));
    let of = View::new(&k, of_k).unwrap();
    let inputs = RaggedInputs::new(View::new(&q, of_q).unwrap(), of, of, starts, starts);
    let (mut out, mut lse) = (q.clone(), vec![0.0; all * spec.heads]);
    let (mut dq, mut dk, mut dv) = (q.clone(), k.clone(), k.clone());
    let forward = plan.ragged_workspace_len(starts, starts, 2).unwrap();
    let mut workspace = vec![0.0; forward.max(plan.ragged_backward_workspace_len(starts, starts, 2).unwrap())];
    fewest_allocations(|| {
        let to = ViewMut::new(&mut out, of_q).unwrap();
        plan.forward_ragged(&inputs, to, Some(&mut lse), &mut workspace, parallelism).unwrap();
        let gradients = RaggedGradients::new(
            ViewMut::new(&mut dq, of_q).unwrap(),
            ViewMut::new(&mut dk, of_k).unwrap(),
            ViewMut::new(&mut dv, of_k).unwrap(),
        );
        let (out, dout) = (View::new(&out, of_q).unwrap(), View::new(&q, of_q).unwrap());
        plan.backward_ragged(&inputs, &out, &dout, &lse, gradients, &mut workspace, parallelism).unwrap();
    })
}

/// A decoding loop on both caches: append, call, truncate.
fn decoding(spec: AttentionSpec, parallelism: Parallelism) -> usize {
    let plan = Attention::new(spec).unwrap();
    let mut contiguous = KvCache::new(&spec, 2, 1300).unwrap();
    let mut paged = PagedKvCache::new(&spec, 2, 200, 16).unwrap();
    let data = vec![0.25; spec.heads * 600 * spec.head_dim];
    let new = |count: usize| {
        let strides = [(600 * spec.head_dim) as isize, spec.head_dim as isize, 1];
        View::strided(&data, 0, [spec.kv_heads, count, spec.head_dim], strides).unwrap()
    };
    let of_q = [2, spec.heads, 1, spec.head_dim];
    let q = View::strided(&data, 0, of_q, [0, spec.head_dim as isize, 0, 1]).unwrap();
    let mut out = vec![0.0; of_q.iter().product()];
    let mut workspace = vec![0.0; plan.workspace_len(Shape::new(2, 1, 1300), 2).unwrap()];
    fewest_allocations(|| {
        for count in [600, 1, 1, 40] {
            for sequence in 0..2 {
                contiguous.append(sequence, &new(count), &new(count)).unwrap();
                paged.append(sequence, &new(count), &new(count)).unwrap();
            }
            for inputs in [contiguous.inputs(q).unwrap(), paged.inputs(q).unwrap()] {
                let to = ViewMut::new(&mut out, of_q).unwrap();
                plan.forward(&inputs, to, None, &mut workspace, parallelism).unwrap();
            }
        }
        for sequence in 0..2 {
            contiguous.truncate(sequence, 0);
            paged.truncate(sequence, 3);
            paged.truncate(sequence, 0);
        }
    })
}

fn all(name: &str, parallelism: Parallelism) {
    let grouped = AttentionSpec::new(4, 40).kv_heads(2).causal(Causal::BottomRight);
    for (spec, shape) in [
        (AttentionSpec::new(8, 64), Shape::new(2, 300, 300)),
        (grouped, Shape::new(3, 2, 2500)),
        (grouped.softcap(3.0), Shape::new(2, 129, 200)),
        (AttentionSpec::new(2, 16).v_dim(24), Shape::new(16, 17, 17)),
    ] {
        for everything in [false, true] {
            assert_eq!(dense(spec, shape, everything, parallelism), 0, "{name}: {spec}, {shape:?}, {everything}");
        }
    }
    assert_eq!(ragged(grouped, &[0, 1, 200, 200, 203, 500], parallelism), 0, "{name}: packed sequences");
    assert_eq!(decoding(grouped, parallelism), 0, "{name}: decoding");
}

#[test]
fn planned_attentions_allocate_nothing() {
    all("serial", Parallelism::Serial);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    pool.install(|| {
        all("pool", Parallelism::Current);
        // Helpers that stay: to call one back is a job in rayon's queue.
        let team = TeamOptions::new().helpers(1).idle(std::time::Duration::MAX);
        Team::with(team, |team| all("team", Parallelism::Team(team)));
    });
}
