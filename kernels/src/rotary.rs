//! Rotary position embedding: pairs of a head's elements, turned by angles that grow with the position.
//!
//! ```text
//! angle(p, i) = p / base^(2 i / dim)                 for the pairs i = 0 .. dim / 2
//!
//! y[a] = x[a] cos - x[b] sin                         interleaved   a = 2 i, b = 2 i + 1          (GPT-J)
//! y[b] = x[a] sin + x[b] cos                         half          a = i,   b = i + dim / 2      (GPT-NeoX, Llama)
//! ```
//!
//! Elements from `dim` on stay as they are. A turn is undone by its transpose, so backward turns by the opposite
//! angles.
//!
//! [`Rotary`] keeps cosines and sines, computed in f64, for the positions that it was made for. Interleaved, each
//! stands twice, with the signs that let a vector be turned by one exchange of neighbours:
//! `y = x * [c0, c0, c1, c1, ..] + swapped x * [-s0, s0, -s1, s1, ..]`.
//!
//! Source: J. Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding" (2021).

use std::mem::MaybeUninit;

use crate::error::{Error, check_len, checked_len};
use crate::execution::Execution;
use crate::parts::Parts;
use crate::simd::each::{Step, each_vector, load, store};
use crate::simd::output::{Output, each_result, goes_past};
use crate::simd::{Job, Simd, dispatch};
use crate::workspace::{LINE, Line};

/// A rough cost per element on one core, in seconds.
const SECONDS_PER_ELEMENT: f64 = 0.8e-9;

/// Elements of a task.
const PART: usize = 16 * 1024;

/// Which elements are turned together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// Neighbours: `2 i` and `2 i + 1`.
    Interleaved,
    /// The first half with the second: `i` and `i + dim / 2`.
    Half,
}

/// Heads at positions: `[outer][length][inner][head_dim]`, row-major.
///
/// `[batch, heads, length, head_dim]` has `outer = batch * heads` and `inner = 1`, `[batch, length, heads, head_dim]`
/// has `outer = batch` and `inner = heads`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Sequences.
    pub outer: usize,
    /// Positions of a sequence.
    pub length: usize,
    /// Heads of a position.
    pub inner: usize,
    /// Elements of a head, at least as many as are turned.
    pub head_dim: usize,
}

/// Cosines and sines of the angles of some positions.
#[derive(Clone, Debug)]
pub struct Rotary {
    pairing: Pairing,
    dim: usize,
    positions: usize,
    /// For each position, `width` cosines and as many sines.
    table: Vec<f32>,
}

impl Rotary {
    /// For heads of which `dim` elements are turned, at positions below `positions`. A usual `base` is 10000.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an odd `dim` and a base that is not finite and positive, [`Error::Overflow`],
    /// [`Error::OutOfMemory`].
    pub fn new(pairing: Pairing, dim: usize, base: f64, positions: usize) -> Result<Self, Error> {
        if !dim.is_multiple_of(2) {
            return Err(Error::invalid("dim", "an even number", dim));
        }
        if !(base.is_finite() && base > 0.0) {
            return Err(Error::invalid("base", "a finite number above 0", base));
        }
        let angle = |position: usize, pair: usize| position as f64 / base.powf(2.0 * pair as f64 / dim as f64);
        Self::build(pairing, dim, positions, |position, pair| {
            let angle = angle(position, pair);
            (angle.cos() as f32, angle.sin() as f32)
        })
    }

    /// With cosines and sines of the caller's, `[positions][dim / 2]` each: angles that are scaled or learnt.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a `dim` that is odd or 0, [`Error::Length`] for tables that have no whole number of
    /// positions or not the same, [`Error::Overflow`], [`Error::OutOfMemory`].
    ///
    /// ```
    /// use kernels::Parallelism;
    /// use kernels::rotary::{Pairing, Rotary, Shape};
    /// let rotary = Rotary::with_angles(Pairing::Half, 2, &[0.0, 0.5], &[1.0, 0.5])?;
    /// let shape = Shape { outer: 1, length: 2, inner: 1, head_dim: 2 };
    /// let mut y = [0.0; 4];
    /// rotary.forward(shape, 0, &[1.0, 0.0, 2.0, 4.0], &mut y, Parallelism::Serial)?;
    /// assert_eq!(y, [0.0, 1.0, -1.0, 3.0]);
    /// # Ok::<(), kernels::Error>(())
    /// ```
    pub fn with_angles(pairing: Pairing, dim: usize, cos: &[f32], sin: &[f32]) -> Result<Self, Error> {
        if dim == 0 || !dim.is_multiple_of(2) {
            return Err(Error::invalid("dim", "an even number above 0", dim));
        }
        let (half, positions) = (dim / 2, cos.len() / (dim / 2));
        check_len("cos", half * positions, cos.len())?;
        check_len("sin", cos.len(), sin.len())?;
        Self::build(pairing, dim, positions, |position, pair| {
            let at = position * half + pair;
            (cos[at], sin[at])
        })
    }

    /// `turn(position, pair)` is a cosine and a sine.
    fn build(
        pairing: Pairing,
        dim: usize,
        positions: usize,
        turn: impl Fn(usize, usize) -> (f32, f32),
    ) -> Result<Self, Error> {
        let width = if pairing == Pairing::Half { dim / 2 } else { dim };
        let len = checked_len("positions", &[positions, 2, width])?;
        let mut table = Vec::new();
        table.try_reserve_exact(len).map_err(|_| Error::OutOfMemory { bytes: len * size_of::<f32>() })?;
        for position in 0..if len == 0 { 0 } else { positions } {
            match pairing {
                Pairing::Half => {
                    table.extend((0..width).map(|i| turn(position, i).0));
                    table.extend((0..width).map(|i| turn(position, i).1));
                }
                Pairing::Interleaved => {
                    table.extend((0..width).map(|i| turn(position, i / 2).0));
                    let sign = |i: usize| if i.is_multiple_of(2) { -1.0 } else { 1.0 };
                    table.extend((0..width).map(|i| sign(i) * turn(position, i / 2).1));
                }
            }
        }
        Ok(Self { pairing, dim, positions, table })
    }

    /// Elements of a head that are turned.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// The positions that angles are known for.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// `y` from `x`, whose first position is `offset`: that of a cache's end, for example.
    ///
    /// An element errs by at most `4 u (|x[a]| + |x[b]|)`, `u = 2^-24`, at positions up to a million.
    ///
    /// ```
    /// use kernels::Parallelism;
    /// use kernels::rotary::{Pairing, Rotary, Shape};
    /// let rotary = Rotary::new(Pairing::Half, 2, 10000.0, 16)?;
    /// let shape = Shape { outer: 1, length: 2, inner: 1, head_dim: 3 };
    /// let mut y = [0.0; 6];
    /// rotary.forward(shape, 0, &[1.0, 0.0, 7.0, 1.0, 0.0, 7.0], &mut y, Parallelism::Serial)?;
    /// assert_eq!(y, [1.0, 0.0, 7.0, 1f32.cos(), 1f32.sin(), 7.0]);
    /// # Ok::<(), kernels::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Length`] for a slice that does not fit `shape`, [`Error::Invalid`] for heads shorter than
    /// [`Rotary::dim`] and for positions that no angles are known for, [`Error::Overflow`].
    pub fn forward<'t>(
        &self,
        shape: Shape,
        offset: usize,
        x: &[f32],
        y: &mut [f32],
        execution: impl Into<Execution<'t>>,
    ) -> Result<(), Error> {
        check_len("y", x.len(), y.len())?;
        self.run::<false>(shape, offset, "x", y, execution.into(), &|at, _| x[at..].as_ptr())
    }

    /// As [`Rotary::forward`], `x` becoming `y`.
    ///
    /// # Errors
    /// Those of [`Rotary::forward`].
    pub fn forward_in_place<'t>(
        &self,
        shape: Shape,
        offset: usize,
        x: &mut [f32],
        execution: impl Into<Execution<'t>>,
    ) -> Result<(), Error> {
        self.run::<false>(shape, offset, "x", x, execution.into(), &|_, part| part)
    }

    /// `dx` from `dy`: turned back.
    ///
    /// # Errors
    /// Those of [`Rotary::forward`].
    pub fn backward<'t>(
        &self,
        shape: Shape,
        offset: usize,
        dy: &[f32],
        dx: &mut [f32],
        execution: impl Into<Execution<'t>>,
    ) -> Result<(), Error> {
        check_len("dx", dy.len(), dx.len())?;
        self.run::<true>(shape, offset, "dy", dx, execution.into(), &|at, _| dy[at..].as_ptr())
    }

    /// As [`Rotary::backward`], `gradient` being `dy` before and `dx` after the call.
    ///
    /// # Errors
    /// Those of [`Rotary::forward`].
    pub fn backward_in_place<'t>(
        &self,
        shape: Shape,
        offset: usize,
        gradient: &mut [f32],
        execution: impl Into<Execution<'t>>,
    ) -> Result<(), Error> {
        self.run::<true>(shape, offset, "gradient", gradient, execution.into(), &|_, part| part)
    }

    /// `input(start, part)` says where the input of an output's part begins.
    fn run<const BACK: bool>(
        &self,
        shape: Shape,
        offset: usize,
        argument: &'static str,
        output: &mut [f32],
        execution: Execution,
        input: &(dyn Fn(usize, *const f32) -> *const f32 + Sync),
    ) -> Result<(), Error> {
        let Shape { outer, length, inner, head_dim } = shape;
        let len = checked_len("shape", &[outer, length, inner, head_dim])?;
        check_len(argument, len, output.len())?;
        if head_dim < self.dim {
            return Err(Error::invalid("head_dim", format!("at least {}", self.dim), head_dim));
        }
        if offset.checked_add(length).is_none_or(|end| end > self.positions) {
            return Err(Error::invalid(
                "offset",
                format!("{length} positions below {} from it on", self.positions),
                offset,
            ));
        }
        let isa = execution.isa()?;
        if len == 0 {
            return Ok(());
        }
        let parallelism = execution.parallelism.for_seconds(len as f64 * SECONDS_PER_ELEMENT);
        let row = inner * head_dim;
        let block = (PART / row).max(1);
        let blocks = length.div_ceil(block);
        let rows = Parts::new(output, row);
        // The same positions of all sequences one after the other, as many as L2 has room for their part of the table.
        let angles = (self.table.len() / self.positions).max(1);
        let near = (ANGLES / angles).div_ceil(block).clamp(1, blocks);
        let past = goes_past(len, PART);
        parallelism.for_each(blocks * outer, parallelism.threads(), &|task, _| {
            let (before, within) = (task / (near * outer) * near, task % (near * outer));
            let near = near.min(blocks - before);
            let (first, sequence) = ((before + within % near) * block, within / near);
            let start = sequence * length + first;
            // SAFETY: each task comes up once, and each block of each sequence is that of one task.
            let y = unsafe { rows.take_run(start, block.min(length - first)) };
            let x = input(start * row, y.as_ptr());
            dispatch(isa, Turn::<BACK> { rotary: self, position: offset + first, inner, head_dim, x, y, past });
        });
        Ok(())
    }
}

/// Elements of the table that stay in L2 from one sequence to the next.
const ANGLES: usize = 64 * 1024;

/// Room for heads on their way past the caches, which takes whole lines.
const ROOM: usize = 2048;

struct Turn<'a, const BACK: bool> {
    rotary: &'a Rotary,
    /// The first one.
    position: usize,
    inner: usize,
    head_dim: usize,
    /// As many elements as `y`, possibly the same ones.
    x: *const f32,
    y: &'a mut [f32],
    /// Whether `y` goes past the caches, unless that is `x`.
    past: bool,
}

impl<const BACK: bool> Job for Turn<'_, BACK> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (head_dim, heads) = (self.head_dim, self.y.len() / self.head_dim);
        let y = Output::apart(&mut *self.y, self.past && head_dim <= ROOM, self.x);
        let mut room = MaybeUninit::<[Line; ROOM / LINE]>::uninit();
        let mut first = 0;
        while first < heads {
            let count = if y.past { (ROOM / head_dim).min(heads - first) } else { heads };
            let (from, y) = (first * head_dim, y.at(first * head_dim));
            let to = if y.past { room.as_mut_ptr().cast() } else { y.start };
            // SAFETY: `x` and `y` have `heads` heads; so many as go past the caches at once, there is room for.
            unsafe {
                self.turn(simd, first, count, self.x.add(from), to);
                if y.past {
                    let next = self.x.wrapping_add(from + count * head_dim);
                    each_result(simd, y, count * head_dim, &Rest { x: to, y, next });
                }
            }
            first += count;
        }
        y.finish(simd);
    }
}

impl<const BACK: bool> Turn<'_, BACK> {
    /// Turns some heads, the first of which has a number among the task's.
    ///
    /// # Safety
    /// - There are so many at `x` and `y`, and angles for their positions.
    #[inline(always)]
    unsafe fn turn<S: Simd>(&self, simd: S, first: usize, count: usize, x: *const f32, y: *mut f32) {
        let Self { rotary, position, inner, head_dim, .. } = *self;
        let (dim, half) = (rotary.dim, rotary.dim / 2);
        let width = if rotary.pairing == Pairing::Half { half } else { dim };
        let (mut row, mut within) = (first / inner, first % inner);
        for head in 0..count {
            let cos = rotary.table[(position + row) * 2 * width..][..2 * width].as_ptr();
            // SAFETY: the caller's contract: heads have `head_dim` elements, at least `dim`, and there are `width`
            // cosines and sines.
            unsafe {
                let (x, y) = (x.add(head * head_dim), y.add(head * head_dim));
                let sin = cos.add(width);
                match rotary.pairing {
                    Pairing::Half => each_vector(simd, width, &TurnHalves::<BACK> { x, y, cos, sin, half }),
                    Pairing::Interleaved => each_vector(simd, width, &TurnNeighbours::<BACK> { x, y, cos, sin }),
                }
                let rest = Output { start: y.add(dim), past: false };
                each_vector(simd, head_dim - dim, &Rest { x: x.add(dim), y: rest, next: x.wrapping_add(head_dim) });
            }
            within += 1;
            if within == inner {
                (row, within) = (row + 1, 0);
            }
        }
    }
}

/// Turns `x[at]` with `x[half + at]`.
struct TurnHalves<const BACK: bool> {
    x: *const f32,
    y: *mut f32,
    cos: *const f32,
    sin: *const f32,
    half: usize,
}

impl<const BACK: bool> Step for TurnHalves<BACK> {
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, simd: S, at: usize, count: usize) {
        // SAFETY: the caller's contract, for both halves.
        unsafe {
            let (cos, sin) = (load(simd, self.cos.add(at), count), load(simd, self.sin.add(at), count));
            let sin = if BACK { simd.sub(simd.zero(), sin) } else { sin };
            let (a, b) = (load(simd, self.x.add(at), count), load(simd, self.x.add(self.half + at), count));
            store(simd, self.y.add(at), count, simd.sub(simd.mul(a, cos), simd.mul(b, sin)));
            store(simd, self.y.add(self.half + at), count, simd.fma(a, sin, simd.mul(b, cos)));
        }
    }
}

/// Turns `x[2 i]` with `x[2 i + 1]`: no vector and no tail parts a pair.
struct TurnNeighbours<const BACK: bool> {
    x: *const f32,
    y: *mut f32,
    cos: *const f32,
    sin: *const f32,
}

impl<const BACK: bool> Step for TurnNeighbours<BACK> {
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, simd: S, at: usize, count: usize) {
        // SAFETY: the caller's contract.
        unsafe {
            let (cos, sin) = (load(simd, self.cos.add(at), count), load(simd, self.sin.add(at), count));
            let sin = if BACK { simd.sub(simd.zero(), sin) } else { sin };
            let v = load(simd, self.x.add(at), count);
            store(simd, self.y.add(at), count, simd.fma(simd.swap_pairs(v), sin, simd.mul(v, cos)));
        }
    }
}

/// What is as it was, while what is read next is asked for.
struct Rest {
    x: *const f32,
    y: Output,
    /// Any address is fine.
    next: *const f32,
}

impl Step for Rest {
    #[inline(always)]
    unsafe fn step<S: Simd>(&self, simd: S, at: usize, count: usize) {
        simd.prefetch(self.next.wrapping_add(at));
        // SAFETY: the caller's contract.
        unsafe { self.y.put(simd, at, count, load(simd, self.x.add(at), count)) };
    }
}
