//! The same attention in other memory: each tensor in an order of its own, with gaps, backwards, off any alignment.

use kernels::attention::{Attention, Gradients, Inputs};
use kernels::{Isa, Parallelism, View, ViewMut};

use super::draw::Draw;
use super::{Case, Memory, Results};
use crate::guard::{POISON, SENTINEL, Side};

/// Where the elements of a tensor lie.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    /// The dimensions, the outermost first.
    pub order: [usize; 4],
    /// How many elements lie idle between neighbours along each dimension.
    pub gaps: [usize; 4],
    /// Along which dimensions the memory runs backwards.
    pub backwards: [bool; 4],
    /// Along which dimensions all elements are one and the same: inputs only.
    pub broadcast: [bool; 4],
    /// Elements before the first.
    pub offset: usize,
}

/// Where everything lies that a call reads and writes by strides.
#[derive(Clone, Copy, Debug)]
pub struct Placements {
    /// Queries, keys and values.
    pub inputs: [Placement; 3],
    /// The bias, its gradient, and the mask.
    pub pairs: [Placement; 3],
    /// The output as forward writes it, as backward reads it, and its gradient.
    pub outputs: [Placement; 3],
    /// The gradients of queries, keys and values.
    pub gradients: [Placement; 3],
}

const ORDERS: [[usize; 4]; 8] =
    [[0, 1, 2, 3], [0, 1, 2, 3], [0, 2, 1, 3], [1, 0, 2, 3], [2, 0, 1, 3], [0, 1, 3, 2], [3, 0, 1, 2], [3, 2, 1, 0]];

impl Placement {
    /// Row-major, from the start of the memory.
    pub const PLAIN: Self =
        Self { order: [0, 1, 2, 3], gaps: [0; 4], backwards: [false; 4], broadcast: [false; 4], offset: 0 };

    fn drawn(draw: &mut Draw<'_>) -> Self {
        Self {
            order: draw.pick(&ORDERS),
            gaps: [0; 4].map(|_| draw.pick(&[0, 0, 0, 1, 3, 16])),
            backwards: [0; 4].map(|_| draw.below(5) == 0),
            broadcast: [false; 4],
            offset: draw.below(17),
        }
    }

    /// The strides, the place of the first element, and how long the memory is.
    fn layout(&self, shape: [usize; 4]) -> ([isize; 4], usize, usize) {
        let (mut strides, mut extent, mut first) = ([0; 4], 1, self.offset);
        for &axis in self.order.iter().rev() {
            if self.broadcast[axis] {
                continue;
            }
            let stride = extent + self.gaps[axis];
            let reach = stride * shape[axis].saturating_sub(1);
            strides[axis] = stride as isize;
            if self.backwards[axis] {
                strides[axis] = -strides[axis];
                first += reach;
            }
            extent += reach;
        }
        (strides, first, self.offset + extent)
    }
}

impl Placements {
    /// Anything that strides can say but broadcasting.
    pub fn new(seed: u64) -> Self {
        let mut draw = Draw::new(seed + 1, &[]);
        for _ in 0..4 {
            draw.next();
        }
        let mut three = || [0; 3].map(|_| Placement::drawn(&mut draw));
        Self { inputs: three(), pairs: three(), outputs: three(), gradients: three() }
    }

    /// Everything in one order.
    pub const fn all(placement: Placement) -> Self {
        let three = [placement; 3];
        Self { inputs: three, pairs: three, outputs: three, gradients: three }
    }
}

/// A tensor in its place.
struct Placed<T> {
    data: Vec<T>,
    shape: [usize; 4],
    strides: [isize; 4],
    first: usize,
}

impl<T: Copy + PartialEq> Placed<T> {
    /// Memory that holds `idle` everywhere.
    fn idle(placement: &Placement, shape: [usize; 4], idle: T) -> Self {
        let (strides, first, len) = placement.layout(shape);
        Self { data: vec![idle; len], shape, strides, first }
    }

    fn new(placement: &Placement, shape: [usize; 4], idle: T, data: &[T]) -> Self {
        let mut placed = Self::idle(placement, shape, idle);
        // A tensor without elements may have data for a broadcast one.
        for (number, &x) in data.iter().take(shape.iter().product()).enumerate() {
            let at = placed.at(number);
            placed.data[at] = x;
        }
        placed
    }

    /// Where the element of a row-major number is.
    fn at(&self, number: usize) -> usize {
        let (mut at, mut rest) = (self.first as isize, number);
        for axis in (0..4).rev() {
            at += (rest % self.shape[axis]) as isize * self.strides[axis];
            rest /= self.shape[axis];
        }
        at as usize
    }

    /// Every element in row-major order; what lies between them must be as it was.
    fn elements(&self, data: &[T], name: &str, untouched: impl Fn(T) -> bool) -> Vec<T> {
        let mut idle = vec![true; data.len()];
        let elements = (0..self.shape.iter().product())
            .map(|number| {
                idle[self.at(number)] = false;
                data[self.at(number)]
            })
            .collect();
        let touched = (0..data.len()).find(|&at| idle[at] && !untouched(data[at]));
        assert!(touched.is_none(), "{name} was written between its elements, at {touched:?} of {:?}", self.strides);
        elements
    }
}

impl Case {
    /// Forward and backward of a row-major case, with everything in its place between guard pages.
    ///
    /// # Panics
    /// When memory between the elements of a result was written.
    pub fn results_placed(&self, at: &Placements, isa: Isa, memory: &mut Memory) -> Results {
        assert_eq!(self.order, [0, 1, 2, 3], "the data of a case is placed from row-major order");
        let side = if self.seed.is_multiple_of(2) { Side::Left } else { Side::Right };
        let plan = Attention::with_isa(self.spec, isa).expect("a valid spec");
        let Memory { inputs: [m0, m1, m2, m3, ..], results, keep, lens } = memory;
        let shapes = self.shapes();
        let nan = f32::from_bits(POISON);
        let q = Placed::new(&at.inputs[0], shapes[0], nan, &self.q);
        let k = Placed::new(&at.inputs[1], shapes[1], nan, &self.k);
        let v = Placed::new(&at.inputs[2], shapes[2], nan, &self.v);
        let pairs = [self.shape.batch, self.spec.heads, self.shape.q_len, self.shape.kv_len];
        // A broadcast dimension is one element in memory, and a stride of 0 in the view.
        let of_pairs = |axes: [bool; 4]| [0, 1, 2, 3].map(|axis| if axes[axis] { pairs[axis] } else { 1 });
        let broadcast =
            |strides: [isize; 4], axes: [bool; 4]| [0, 1, 2, 3].map(|axis| if axes[axis] { strides[axis] } else { 0 });
        let bias = self.bias.as_ref().map(|(data, axes)| Placed::new(&at.pairs[0], of_pairs(*axes), nan, data));
        let mask = self.keep.as_ref().map(|(data, axes)| Placed::new(&at.pairs[2], of_pairs(*axes), true, data));
        let copies = [(&q, m0), (&k, m1), (&v, m2)];
        let [q, k, v] = copies.map(|(placed, memory)| {
            let data = &*memory.copy(&placed.data, side);
            View::strided(data, placed.first, placed.shape, placed.strides).expect("room for all elements")
        });
        let mut inputs = Inputs { dropout: self.dropout, ..Inputs::new(q, k, v) };
        if let (Some(placed), Some((_, axes))) = (&bias, &self.bias) {
            let strides = broadcast(placed.strides, *axes);
            let data = &*m3.copy(&placed.data, side);
            inputs = inputs.bias(View::strided(data, placed.first, pairs, strides).expect("room for all elements"));
        }
        if let (Some(placed), Some((_, axes))) = (&mask, &self.keep) {
            let strides = broadcast(placed.strides, *axes);
            let data = keep.copy_mask(&placed.data, side);
            inputs = inputs.keep(View::strided(data, placed.first, pairs, strides).expect("room for all elements"));
        }
        inputs.alibi = self.alibi.as_deref();
        inputs.sinks = self.sinks.as_deref();
        inputs.kv_lens = self.kv_lens.as_deref().map(|of| lens.copy_indices(of, side));

        let [m0, m1, m2, m3, m4, m5, m6, ..] = results;
        let sentinel = f32::from_bits(SENTINEL);
        let untouched = |x: f32| x.to_bits() == SENTINEL;
        let to_out = Placed::idle(&at.outputs[0], shapes[3], sentinel);
        let mut lse = vec![sentinel; self.rows()];
        let len = plan.workspace_len(self.shape, 1).expect("a valid shape");
        let out = {
            let data = m0.copy(&to_out.data, side);
            let view = ViewMut::strided(data, to_out.first, to_out.shape, to_out.strides).expect("distinct elements");
            let workspace = m1.filled(len, side, POISON);
            plan.forward(&inputs, view, Some(&mut lse), workspace, Parallelism::Serial).expect("a valid call");
            to_out.elements(data, "out", untouched)
        };
        let (from_out, dout) = (
            Placed::new(&at.outputs[1], shapes[3], nan, &out),
            Placed::new(&at.outputs[2], shapes[3], nan, &self.dout),
        );
        let [of_out, of_dout] = [(&from_out, m0), (&dout, m2)].map(|(placed, memory)| {
            let data = &*memory.copy(&placed.data, side);
            View::strided(data, placed.first, placed.shape, placed.strides).expect("room for all elements")
        });
        let of_bias = self.gradient_sizes().1;
        let to = [
            Placed::idle(&at.gradients[0], shapes[0], sentinel),
            Placed::idle(&at.gradients[1], shapes[1], sentinel),
            Placed::idle(&at.gradients[2], shapes[2], sentinel),
            Placed::idle(&at.pairs[1], of_bias, sentinel),
        ];
        let mut memories = [m3, m4, m5, m6];
        let mut numbers = 0..4;
        let mut data = memories.each_mut().map(|memory| {
            let number = numbers.next().unwrap_or_default();
            memory.copy(&to[number].data, side)
        });
        let mut dsinks = vec![sentinel; self.sinks.as_ref().map_or(0, Vec::len)];
        {
            let [dq, dk, dv, dbias] = data.each_mut().map(|data| &mut **data);
            let view = |data, to: &Placed<f32>| {
                ViewMut::strided(data, to.first, to.shape, to.strides).expect("distinct elements")
            };
            let mut gradients = Gradients::new(view(dq, &to[0]), view(dk, &to[1]), view(dv, &to[2]));
            if self.bias.is_some() {
                gradients = gradients.dbias(view(dbias, &to[3]));
            }
            if self.sinks.is_some() {
                gradients = gradients.dsinks(&mut dsinks);
            }
            let len = plan.backward_workspace_len(self.shape, 1).expect("a valid shape");
            let workspace = m1.filled(len, side, POISON);
            plan.backward(&inputs, &of_out, &of_dout, &lse, gradients, workspace, Parallelism::Serial)
                .expect("a valid call");
        }
        let [dq, dk, dv, mut dbias] =
            [0, 1, 2, 3].map(|which| to[which].elements(data[which], ["dq", "dk", "dv", "dbias"][which], untouched));
        if self.bias.is_none() {
            dbias.clear();
        }
        [out, lse, dq, dk, dv, dbias, dsinks]
    }
}
