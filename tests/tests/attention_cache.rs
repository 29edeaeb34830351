//! Caches of keys and values, contiguous and paged: calls have the bits that they have on plain views, whatever was
//! appended and truncated before; a cache that is full says so and stays as it is.

use kernels::attention::{Attention, AttentionSpec, Causal, Dropout, Inputs, KvCache, PagedKvCache, Shape};
use kernels::reference::{attention_backward, attention_forward};
use kernels::{Error, Isa, Parallelism, View, ViewMut};
use tests::attention::{Case, Memory};
use tests::cores;
use tests::guard::Side;

fn numbers(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i + seed * 31) * 7919 % 1013) as f32 / 506.0 - 1.0).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

/// What the caches should hold: of each sequence `[len][kv_heads][dim]`.
struct Model {
    spec: AttentionSpec,
    k: Vec<Vec<f32>>,
    v: Vec<Vec<f32>>,
}

impl Model {
    fn new(spec: AttentionSpec, sequences: usize) -> Self {
        Self { spec, k: vec![Vec::new(); sequences], v: vec![Vec::new(); sequences] }
    }

    fn len(&self, sequence: usize) -> usize {
        self.k[sequence].len() / (self.spec.kv_heads * self.spec.head_dim)
    }

    fn append(&mut self, sequence: usize, new: usize, seed: usize, caches: &mut [&mut dyn Cache]) {
        let AttentionSpec { kv_heads, head_dim, v_dim, .. } = self.spec;
        let (k, v) = (numbers(new * kv_heads * head_dim, seed), numbers(new * kv_heads * v_dim, seed + 1));
        for cache in caches {
            // Tokens come one after the other, with all of their heads.
            let view = |data, dim: usize| {
                View::strided(data, 0, [kv_heads, new, dim], [dim as isize, (kv_heads * dim) as isize, 1]).unwrap()
            };
            cache.append(sequence, &view(&k, head_dim), &view(&v, v_dim)).unwrap();
        }
        self.k[sequence].extend(k);
        self.v[sequence].extend(v);
    }

    fn truncate(&mut self, sequence: usize, len: usize, caches: &mut [&mut dyn Cache]) {
        caches.iter_mut().for_each(|cache| cache.truncate(sequence, len));
        self.k[sequence].truncate(len * self.spec.kv_heads * self.spec.head_dim);
        self.v[sequence].truncate(len * self.spec.kv_heads * self.spec.v_dim);
    }
}

trait Cache {
    fn append(&mut self, sequence: usize, k: &View<'_, f32, 3>, v: &View<'_, f32, 3>) -> Result<(), Error>;
    fn truncate(&mut self, sequence: usize, len: usize);
    fn inputs<'a>(&'a self, q: View<'a, f32, 4>) -> Inputs<'a>;
}

impl Cache for KvCache {
    fn append(&mut self, sequence: usize, k: &View<'_, f32, 3>, v: &View<'_, f32, 3>) -> Result<(), Error> {
        self.append(sequence, k, v)
    }
    fn truncate(&mut self, sequence: usize, len: usize) {
        self.truncate(sequence, len);
    }
    fn inputs<'a>(&'a self, q: View<'a, f32, 4>) -> Inputs<'a> {
        self.inputs(q).unwrap()
    }
}

impl Cache for PagedKvCache {
    fn append(&mut self, sequence: usize, k: &View<'_, f32, 3>, v: &View<'_, f32, 3>) -> Result<(), Error> {
        self.append(sequence, k, v)
    }
    fn truncate(&mut self, sequence: usize, len: usize) {
        self.truncate(sequence, len);
    }
    fn inputs<'a>(&'a self, q: View<'a, f32, 4>) -> Inputs<'a> {
        self.inputs(q).unwrap()
    }
}

fn forward(spec: AttentionSpec, inputs: &Inputs<'_>, isa: Isa, parallelism: Parallelism) -> (Vec<f32>, Vec<f32>) {
    let plan = Attention::with_isa(spec, isa).unwrap();
    let shape = inputs.check(&spec).unwrap();
    let Shape { batch, q_len, .. } = shape;
    let mut out = vec![f32::NAN; batch * spec.heads * q_len * spec.v_dim];
    let mut lse = vec![f32::NAN; batch * spec.heads * q_len];
    let mut workspace = vec![f32::NAN; plan.workspace_len(shape, parallelism.threads()).unwrap()];
    let to = ViewMut::new(&mut out, [batch, spec.heads, q_len, spec.v_dim]).unwrap();
    plan.forward(inputs, to, Some(&mut lse), &mut workspace, parallelism).unwrap();
    (out, lse)
}

/// What an output may differ from its definition by (`kernels::attention`), where no query, key or value is larger than
/// 1: a score is at most `head_dim`, and two logits are at most twice that times the scale apart.
fn bound(spec: &AttentionSpec, keys: usize, dropout: Option<Dropout>) -> f64 {
    let u = 1.0 / f64::from(1 << 24);
    let (dim, scale, blocks) = (spec.head_dim as f64, f64::from(spec.scale), (keys / 64 + 2) as f64);
    let beta = (scale * (dim + 2.0) * dim + scale * dim) * u;
    let theta = 2.0 * beta + (3.0 * 2.0 * scale * dim + 2.5 + 4.5 * blocks) * u;
    let sums = (2.0 * keys as f64 + 3.0 * blocks + 6.0) * u;
    ((2.0 * theta).exp_m1() + sums) * dropout.map_or(1.0, |dropout| dropout.factor())
}

/// Calls on caches and on plain views give the same bits, and the same numbers by definition.
fn compare(model: &Model, caches: &[&dyn Cache], q_len: usize, dropout: Option<Dropout>, context: &str) {
    let spec = model.spec;
    let sequences = model.k.len();
    let q = numbers(sequences * spec.heads * q_len * spec.head_dim, 77);
    let q = View::new(&q, [sequences, spec.heads, q_len, spec.head_dim]).unwrap();
    for cache in caches {
        let inputs = Inputs { dropout, ..cache.inputs(q) };
        let wide = |data: View<'_, f32, 4>| {
            let [a, b, c, d] = data.shape();
            let mut to = Vec::new();
            for i in 0..a * b * c * d {
                to.push(f64::from(data.get([i / d / c / b, i / d / c % b, i / d % c, i % d])));
            }
            (to, [a, b, c, d])
        };
        let of_pages = [wide(q), wide(inputs.k), wide(inputs.v)];
        let [q64, k64, v64] = of_pages.each_ref().map(|(data, shape)| View::new(data, *shape).unwrap());
        let definition = Inputs { pages: inputs.pages, kv_lens: inputs.kv_lens, dropout, ..Inputs::new(q64, k64, v64) };
        let rows = sequences * spec.heads * q_len;
        let (mut by_definition, mut by_definition_lse) = (vec![0.0; rows * spec.v_dim], vec![0.0; rows]);
        let mut to = ViewMut::new(&mut by_definition, [sequences, spec.heads, q_len, spec.v_dim]).unwrap();
        attention_forward(&spec, &definition, &mut to, &mut by_definition_lse).unwrap();
        for isa in Isa::available() {
            let (out, lse) = forward(spec, &inputs, isa, Parallelism::Serial);
            assert_eq!(bits(&out), bits(&forward(spec, &inputs, isa, Parallelism::Current).0), "{context}");
            for sequence in 0..sequences {
                let len = model.len(sequence);
                let plain = |data, dim: usize| {
                    let strides = [0, dim as isize, (spec.kv_heads * dim) as isize, 1];
                    View::strided(data, 0, [1, spec.kv_heads, len, dim], strides).unwrap()
                };
                let of = spec.heads * q_len;
                let q = numbers(sequences * of * spec.head_dim, 77);
                let q = &q[sequence * of * spec.head_dim..][..of * spec.head_dim];
                let plain = Inputs {
                    dropout: dropout.map(|dropout| dropout.first_sequence(sequence)),
                    ..Inputs::new(
                        View::new(q, [1, spec.heads, q_len, spec.head_dim]).unwrap(),
                        plain(&model.k[sequence], spec.head_dim),
                        plain(&model.v[sequence], spec.v_dim),
                    )
                };
                let (expected, expected_lse) = forward(spec, &plain, isa, Parallelism::Serial);
                let values = sequence * of * spec.v_dim..(sequence + 1) * of * spec.v_dim;
                let rows = sequence * of..(sequence + 1) * of;
                assert_eq!(bits(&out[values.clone()]), bits(&expected), "{context}, sequence {sequence} on {isa}");
                assert_eq!(bits(&lse[rows.clone()]), bits(&expected_lse), "{context}, sequence {sequence} on {isa}");
                // The same keys by definition: far apart if a page were wrong.
                for (given, exact) in out[values.clone()].iter().zip(&by_definition[values]) {
                    let error = (f64::from(*given) - exact).abs();
                    assert!(error <= bound(&spec, len, dropout), "{context}, sequence {sequence} on {isa}: {error:e}");
                }
            }
        }
    }
}

#[test]
fn calls_on_caches_have_the_bits_of_calls_on_plain_views() {
    let specs = [
        AttentionSpec::new(4, 24).kv_heads(2).v_dim(40).causal(Causal::BottomRight),
        AttentionSpec::new(2, 64).causal(Causal::BottomRight).window(Some(50), None),
        AttentionSpec::new(3, 80).v_dim(7),
    ];
    for spec in specs {
        for page_len in [1, 3, 8, 16, 24, 32, 64, 256, 300] {
            let (sequences, pages) = (3, 2100usize.div_ceil(page_len) + 3);
            let mut model = Model::new(spec, sequences);
            let mut contiguous = KvCache::new(&spec, sequences, 1500).unwrap();
            let mut paged = PagedKvCache::new(&spec, sequences, pages, page_len).unwrap();
            // Turns, so that neighbouring pages of a sequence are not neighbours in the pool.
            let steps = [(0, 5), (2, 70), (0, 1), (2, 1), (0, 260), (2, 3), (0, 900)];
            for (step, (sequence, new)) in steps.into_iter().enumerate() {
                let mut caches: [&mut dyn Cache; 2] = [&mut contiguous, &mut paged];
                model.append(sequence, new, step, &mut caches);
                let context = format!("{spec}, pages of {page_len}, step {step}");
                let q_len = [1, 1, 3, 20][step % 4];
                compare(&model, &[&contiguous, &paged], q_len, None, &context);
            }
            let mut caches: [&mut dyn Cache; 2] = [&mut contiguous, &mut paged];
            model.truncate(0, 130, &mut caches);
            model.truncate(2, 0, &mut caches);
            model.truncate(1, 10, &mut caches);
            model.append(1, 190, 50, &mut caches);
            model.append(0, 40, 51, &mut caches);
            assert_eq!(contiguous.lens(), [170, 190, 0]);
            assert_eq!(paged.lens(), [170, 190, 0]);
            let used = 170usize.div_ceil(page_len) + 190usize.div_ceil(page_len);
            assert_eq!(paged.free_pages(), pages - used);
            let dropout = Some(Dropout::new(0.4, 8));
            let context = format!("{spec}, pages of {page_len}, truncated");
            compare(&model, &[&contiguous, &paged], 30, dropout, &context);
            compare(&model, &[&contiguous, &paged], 1, dropout, &context);
        }
    }
}

/// Pages that are read in place, met one by one, or gathered; a call on plain memory is within its bounds
/// (`attention::every_feature_stays_within_its_bound_forward_and_backward`).
#[test]
fn pages_with_any_feature_have_the_bits_of_plain_memory() {
    tests::crash::report_faults();
    cores::for_each_with(0..250, Memory::default, |memory, seed| {
        let mut case = Case::new(seed);
        case.order = [0, 1, 2, 3];
        let page_len = [1, 3, 8, 16, 24, 32, 64, 128, 256, 300, 512][seed as usize % 11];
        for isa in Isa::available() {
            let (out, lse) = case.forward(isa, Parallelism::Serial, memory, Side::Left);
            let (paged, paged_lse) = case.forward_paged(page_len, isa, Parallelism::Serial, memory);
            let context = format!("seed {seed}, pages of {page_len} on {isa}, {}, {:?}", case.spec, case.shape);
            assert!(tests::attention::bits(&paged) == tests::attention::bits(&out), "the output, {context}");
            assert!(tests::attention::bits(&paged_lse) == tests::attention::bits(&lse), "the log-sum-exp, {context}");
        }
    });
}

#[test]
fn no_page_belongs_to_two_sequences_and_none_is_lost() {
    let spec = AttentionSpec::new(1, 2);
    let mut cache = PagedKvCache::new(&spec, 4, 32, 4).unwrap();
    let mut state = 1u64;
    for step in 0..2000 {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let (sequence, amount) = ((state >> 40) as usize % 4, (state >> 50) as usize % 40);
        if step % 3 == 2 {
            cache.truncate(sequence, amount);
        } else {
            let data = vec![step as f32; amount * 2];
            let view = View::new(&data, [1, amount, 2]).unwrap();
            let (before, lens) = (cache.free_pages(), cache.lens().to_vec());
            if cache.append(sequence, &view, &view).is_err() {
                assert_eq!((cache.free_pages(), cache.lens()), (before, &lens[..]));
            }
        }
        let mut owned: Vec<usize> = (0..4).flat_map(|sequence| cache.pages(sequence).unwrap().to_vec()).collect();
        owned.sort_unstable();
        let count = owned.len();
        owned.dedup();
        assert_eq!((owned.len(), cache.free_pages() + count), (count, 32));
    }
}

#[test]
fn a_full_cache_says_so_and_stays_as_it_is() {
    let spec = AttentionSpec::new(2, 3).v_dim(2);
    let (k, v) = (numbers(2 * 9 * 3, 1), numbers(2 * 9 * 2, 2));
    let new = |count: usize| {
        let k = View::strided(&k, 0, [2, count, 3], [27, 3, 1]).unwrap();
        (k, View::strided(&v, 0, [2, count, 2], [18, 2, 1]).unwrap())
    };
    let mut contiguous = KvCache::new(&spec, 2, 8).unwrap();
    let mut paged = PagedKvCache::new(&spec, 2, 4, 2).unwrap();
    for cache in [&mut contiguous as &mut dyn Cache, &mut paged] {
        let (k, v) = new(6);
        cache.append(1, &k, &v).unwrap();
        let (k, v) = new(3);
        let expected = "at most 2 new keys".into();
        assert_eq!(cache.append(1, &k, &v), Err(Error::Invalid { argument: "cache", expected, given: "3".into() }));
        assert!(matches!(cache.append(2, &k, &v), Err(Error::Invalid { argument: "sequence", .. })));
        assert!(matches!(cache.append(0, &v, &v), Err(Error::Shape { argument: "k", .. })));
        assert!(matches!(cache.append(0, &k, &k), Err(Error::Shape { argument: "v", .. })));
        cache.truncate(7, 0);
        cache.truncate(1, 100);
        let (k, v) = new(2);
        cache.append(1, &k, &v).unwrap();
    }
    assert_eq!((contiguous.lens(), paged.lens()), (&[0, 8][..], &[0, 8][..]));
    assert_eq!(paged.free_pages(), 0);
    assert!(matches!(PagedKvCache::new(&spec, 1, 4, 0), Err(Error::Invalid { argument: "page_len", .. })));
    assert_eq!(KvCache::new(&spec, usize::MAX, 2).err(), Some(Error::Overflow { argument: "cache" }));
}

#[test]
fn tables_that_do_not_fit_are_named() {
    let spec = AttentionSpec::new(1, 2);
    let (q, pool) = ([0.5f32; 4], [0.25f32; 3 * 4 * 2]);
    let kv = View::new(&pool, [3, 1, 4, 2]).unwrap();
    let inputs = Inputs::new(View::new(&q, [2, 1, 1, 2]).unwrap(), kv, kv);
    let check = |table: &[usize], shape: [usize; 2], lens: &[usize]| {
        inputs.pages(View::new(table, shape).unwrap()).kv_lens(lens).check(&spec)
    };
    assert_eq!(check(&[0, 1, 2, 0], [2, 2], &[8, 8]), Ok(Shape::new(2, 1, 8)));
    // Entries beyond a sequence's keys are not read.
    assert_eq!(check(&[0, 99, 2, 99], [2, 2], &[4, 1]), Ok(Shape::new(2, 1, 8)));
    assert!(matches!(check(&[0, 99, 2, 99], [2, 2], &[5, 1]), Err(Error::Invalid { argument: "pages", .. })));
    assert!(matches!(check(&[0, 1], [1, 2], &[8, 8]), Err(Error::Shape { argument: "pages", .. })));
    assert!(matches!(check(&[0, 1, 2, 0], [2, 2], &[8, 9]), Err(Error::Invalid { argument: "kv_lens", .. })));
    let inputs = inputs.pages(View::new(&[0, 1], [2, 1]).unwrap());
    let plan = Attention::new(spec).unwrap();
    let (mut dq, mut dk, mut dv) = ([7.0; 4], [7.0; 24], [7.0; 24]);
    let of = View::new(&q, [2, 1, 1, 2]).unwrap();
    let gradients = kernels::attention::Gradients::new(
        ViewMut::new(&mut dq, [2, 1, 1, 2]).unwrap(),
        ViewMut::new(&mut dk, [3, 1, 4, 2]).unwrap(),
        ViewMut::new(&mut dv, [3, 1, 4, 2]).unwrap(),
    );
    let mut workspace = vec![0.0; 1 << 16];
    let result = plan.backward(&inputs, &of, &of, &[0.0; 2], gradients, &mut workspace, Parallelism::Serial);
    assert!(matches!(result, Err(Error::Invalid { argument: "pages", .. })));
    assert_eq!((dq, dk), ([7.0; 4], [7.0; 24]));
    let mut gradients = kernels::attention::Gradients::new(
        ViewMut::new(&mut dq, [2, 1, 1, 2]).unwrap(),
        ViewMut::new(&mut dk, [3, 1, 4, 2]).unwrap(),
        ViewMut::new(&mut dv, [3, 1, 4, 2]).unwrap(),
    );
    assert!(attention_backward(&spec, &inputs, &of, &mut gradients).is_err());
}
