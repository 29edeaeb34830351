//! The same attention with keys and values on pages.

use kernels::attention::{Attention, Inputs};
use kernels::{Isa, Parallelism, View, ViewMut};

use super::{Case, Memory, broadcast_strides};
use crate::guard::{POISON, SENTINEL, Side};

impl Case {
    /// The output and the log-sum-exp of a row-major case whose keys and values lie on pages of `page_len` keys of a
    /// pool, in no order and with NaN wherever no key is; what the table says of pages without keys is not read.
    pub fn forward_paged(
        &self,
        page_len: usize,
        isa: Isa,
        parallelism: Parallelism,
        memory: &mut Memory,
    ) -> (Vec<f32>, Vec<f32>) {
        assert_eq!(self.order, [0, 1, 2, 3], "keys are taken from row-major order");
        let side = if self.seed.is_multiple_of(2) { Side::Left } else { Side::Right };
        let (batch, kv_heads) = (self.shape.batch, self.spec.kv_heads);
        let pages = self.shape.kv_len.div_ceil(page_len);
        let places = batch * pages + 1;
        // 7919 is prime, and no pool is as large.
        let place_of = |b: usize, page: usize| (b * pages + page + 1) * 7919 % places;
        let lens: Vec<usize> = (0..batch).map(|b| self.keys_of(b)).collect();
        let table: Vec<usize> = (0..batch * pages)
            .map(|at| (at / pages, at % pages))
            .map(|(b, page)| if page * page_len < lens[b] { place_of(b, page) } else { usize::MAX })
            .collect();
        let dims = [self.spec.head_dim, self.spec.v_dim];
        let pools = [1, 2].map(|which| {
            let (data, dim) = ([&self.k, &self.v][which - 1], dims[which - 1]);
            let mut pool = vec![f32::from_bits(POISON); places * kv_heads * page_len * dim];
            for (b, &len) in lens.iter().enumerate() {
                for (head, key) in (0..kv_heads * len).map(|at| (at / len, at % len)) {
                    let row = (place_of(b, key / page_len) * kv_heads + head) * page_len + key % page_len;
                    let from = self.row(which, [b, head, key]);
                    pool[row * dim..][..dim].iter_mut().zip(from).for_each(|(to, at)| *to = data[at]);
                }
            }
            pool
        });
        let kv_len = pages * page_len;
        let pairs = [batch, self.spec.heads, self.shape.q_len, kv_len];
        let bias = self.bias.as_ref().map(|(data, axes)| (self.longer(data, axes[3], kv_len, f32::NAN), *axes));
        let mask = self.keep.as_ref().map(|(data, axes)| (self.longer(data, axes[3], kv_len, true), *axes));

        let plan = Attention::with_isa(self.spec, isa).expect("a valid spec");
        let Memory { inputs: [m0, m1, m2, m3, ..], results: [m4, m5, m6, m7, ..], keep, lens: of_lens } = memory;
        let q = self.view(&*m0.copy(&self.q, side), 0);
        let [k, v] = [(m1, 0), (m2, 1)].map(|(memory, which)| {
            let shape = [places, kv_heads, page_len, dims[which]];
            View::new(&*memory.copy(&pools[which], side), shape).expect("as many elements")
        });
        let table = View::new(m7.copy_indices(&table, side), [batch, pages]).expect("as many elements");
        let mut inputs = Inputs { dropout: self.dropout, ..Inputs::new(q, k, v) }.pages(table);
        if let Some((data, axes)) = &bias {
            let data = &*m3.copy(data, side);
            inputs =
                inputs.bias(View::strided(data, 0, pairs, broadcast_strides(pairs, *axes).0).expect("longer rows"));
        }
        if let Some((data, axes)) = &mask {
            let data = keep.copy_mask(data, side);
            inputs =
                inputs.keep(View::strided(data, 0, pairs, broadcast_strides(pairs, *axes).0).expect("longer rows"));
        }
        inputs = inputs.kv_lens(of_lens.copy_indices(&lens, side));
        inputs.alibi = self.alibi.as_deref();
        inputs.sinks = self.sinks.as_deref();
        let shape = inputs.check(&self.spec).expect("inputs that fit");
        let out = m4.filled(self.dout.len(), side, SENTINEL);
        let lse = m5.filled(self.rows(), side, SENTINEL);
        let len = plan.workspace_len(shape, parallelism.threads()).expect("a valid shape");
        let workspace = m6.filled(len, side, POISON);
        let to = ViewMut::new(out, self.shapes()[3]).expect("as many elements");
        plan.forward(&inputs, to, Some(lse), workspace, parallelism).expect("a valid call");
        (out.to_vec(), lse.to_vec())
    }

    /// Rows of bias or mask that go on to `kv_len` keys.
    fn longer<T: Copy>(&self, data: &[T], by_key: bool, kv_len: usize, fill: T) -> Vec<T> {
        if !by_key {
            return data.to_vec();
        }
        let row = |from: &[T]| {
            let mut row = from.to_vec();
            row.resize(kv_len, fill);
            row
        };
        data.chunks(self.shape.kv_len.max(1)).flat_map(row).collect()
    }
}
