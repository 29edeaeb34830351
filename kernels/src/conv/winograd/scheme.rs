//! The transforms of an axis with sizes that are known at compile time, made of those of its pieces.
//!
//! ```text
//! Toom<N, M>            F(M, N - M + 1), N points          Each<M>     one tap: M products
//! Taps<N>               one output: N products
//! Phases<E, O>          even inputs ─► E, odd inputs ─► O, the sum of both
//! Interleaved<E, O>     the same inputs ─► E and O, whose outputs alternate
//! ```

use std::marker::PhantomData;

use super::axis::{Axis, Form};
use super::points::{MOST, input, output, spread, taps};
use crate::simd::Simd;

/// The bilinear algorithm of an axis: `y = Aᵀ [(G w) . (Bᵀ d)]`.
pub(super) trait Scheme {
    const TAPS: usize;
    const INPUTS: usize;
    const POINTS: usize;
    const OUTPUTS: usize;

    /// `Bᵀ d`. The bodies must be `#[inline(always)]`.
    fn input<S: Simd>(simd: S, d: &[S::F; MOST]) -> [S::F; MOST];

    /// `Aᵀ m`
    fn output<S: Simd>(simd: S, m: &[S::F; MOST]) -> [S::F; MOST];

    /// `A d`
    fn spread<S: Simd>(simd: S, d: &[S::F; MOST]) -> [S::F; MOST];

    /// `Gᵀ m`
    fn taps<S: Simd>(simd: S, m: &[S::F; MOST]) -> [S::F; MOST];
}

/// Something to be done with the scheme of an axis.
pub(super) trait Visit {
    type Output;

    /// The body must be `#[inline(always)]`.
    fn visit<A: Scheme>(self) -> Self::Output;
}

/// Picks the scheme of an axis of a forward pass or of the weights' gradient.
#[inline(always)]
pub(super) fn with_forward<V: Visit>(axis: Axis, visitor: V) -> V::Output {
    debug_assert!(!matches!(axis.form, Form::Interleaved { .. }));
    match (axis.form, axis.taps, axis.outputs) {
        (Form::Whole, 1, _) => visitor.visit::<Each<1>>(),
        (Form::Whole, 3, 2) => visitor.visit::<Toom<4, 2>>(),
        (Form::Whole, 3, 4) => visitor.visit::<Toom<6, 4>>(),
        (Form::Whole, 3, _) => visitor.visit::<Toom<8, 6>>(),
        (Form::Whole, 5, 2) => visitor.visit::<Toom<6, 2>>(),
        (Form::Whole, 5, _) => visitor.visit::<Toom<8, 4>>(),
        (Form::Whole, ..) => visitor.visit::<Toom<8, 2>>(),
        (Form::Direct, 2, _) => visitor.visit::<Taps<2>>(),
        (Form::Direct, 3, _) => visitor.visit::<Taps<3>>(),
        (Form::Direct, 4, _) => visitor.visit::<Taps<4>>(),
        (Form::Direct, 5, _) => visitor.visit::<Taps<5>>(),
        (Form::Direct, 6, _) => visitor.visit::<Taps<6>>(),
        (Form::Direct, 7, _) => visitor.visit::<Taps<7>>(),
        (Form::Direct, 8, _) => visitor.visit::<Taps<8>>(),
        (Form::Direct, 9, _) => visitor.visit::<Taps<9>>(),
        (Form::Direct, 10, _) => visitor.visit::<Taps<10>>(),
        (Form::Direct, ..) => visitor.visit::<Taps<11>>(),
        (_, 3, 2) => visitor.visit::<Phases<Toom<3, 2>, Each<2>>>(),
        (_, 3, _) => visitor.visit::<Phases<Toom<5, 4>, Each<4>>>(),
        (_, 4, 2) => visitor.visit::<Phases<Toom<3, 2>, Toom<3, 2>>>(),
        (_, 4, _) => visitor.visit::<Phases<Toom<5, 4>, Toom<5, 4>>>(),
        (_, 5, 2) => visitor.visit::<Phases<Toom<4, 2>, Toom<3, 2>>>(),
        (_, 5, _) => visitor.visit::<Phases<Toom<6, 4>, Toom<5, 4>>>(),
        _ => visitor.visit::<Phases<Toom<5, 2>, Toom<4, 2>>>(),
    }
}

/// Picks the scheme of any axis.
#[inline(always)]
pub(super) fn with_scheme<V: Visit>(axis: Axis, visitor: V) -> V::Output {
    let Form::Interleaved { odd_first } = axis.form else { return with_forward(axis, visitor) };
    match (axis.taps, axis.phase_outputs(), odd_first) {
        (3, 2, true) => visitor.visit::<Interleaved<Toom<3, 2>, Each<2>, true>>(),
        (3, 2, _) => visitor.visit::<Interleaved<Toom<3, 2>, Each<2>, false>>(),
        (3, _, true) => visitor.visit::<Interleaved<Toom<5, 4>, Each<4>, true>>(),
        (3, ..) => visitor.visit::<Interleaved<Toom<5, 4>, Each<4>, false>>(),
        (4, 2, _) => visitor.visit::<Interleaved<Toom<3, 2>, Toom<3, 2>, false>>(),
        (4, ..) => visitor.visit::<Interleaved<Toom<5, 4>, Toom<5, 4>, false>>(),
        (5, 2, _) => visitor.visit::<Interleaved<Toom<4, 2>, Toom<3, 2>, false>>(),
        (5, ..) => visitor.visit::<Interleaved<Toom<6, 4>, Toom<5, 4>, false>>(),
        _ => visitor.visit::<Interleaved<Toom<5, 2>, Toom<4, 2>, true>>(),
    }
}

/// `F(M, N - M + 1)`.
struct Toom<const N: usize, const M: usize>;

impl<const N: usize, const M: usize> Scheme for Toom<N, M> {
    const TAPS: usize = N + 1 - M;
    const INPUTS: usize = N;
    const POINTS: usize = N;
    const OUTPUTS: usize = M;

    #[inline(always)]
    fn input<S: Simd>(simd: S, d: &[S::F; MOST]) -> [S::F; MOST] {
        input::<S, N>(simd, d)
    }

    #[inline(always)]
    fn output<S: Simd>(simd: S, m: &[S::F; MOST]) -> [S::F; MOST] {
        output::<S, N, M>(simd, m)
    }

    #[inline(always)]
    fn spread<S: Simd>(simd: S, d: &[S::F; MOST]) -> [S::F; MOST] {
        spread::<S, N, M>(simd, d)
    }

    #[inline(always)]
    fn taps<S: Simd>(simd: S, m: &[S::F; MOST]) -> [S::F; MOST] {
        match N + 1 - M {
            2 => taps::<S, N, 2>(simd, m),
            3 => taps::<S, N, 3>(simd, m),
            4 => taps::<S, N, 4>(simd, m),
            5 => taps::<S, N, 5>(simd, m),
            _ => taps::<S, N, 7>(simd, m),
        }
    }
}

/// `F(M, 1)`: a product for each output.
struct Each<const M: usize>;

impl<const M: usize> Scheme for Each<M> {
    const TAPS: usize = 1;
    const INPUTS: usize = M;
    const POINTS: usize = M;
    const OUTPUTS: usize = M;

    #[inline(always)]
    fn input<S: Simd>(_: S, d: &[S::F; MOST]) -> [S::F; MOST] {
        *d
    }

    #[inline(always)]
    fn output<S: Simd>(_: S, m: &[S::F; MOST]) -> [S::F; MOST] {
        *m
    }

    #[inline(always)]
    fn spread<S: Simd>(_: S, d: &[S::F; MOST]) -> [S::F; MOST] {
        *d
    }

    #[inline(always)]
    fn taps<S: Simd>(simd: S, m: &[S::F; MOST]) -> [S::F; MOST] {
        let mut w = *m;
        for i in 1..M {
            w[0] = simd.add(w[0], m[i]);
        }
        w
    }
}

/// An axis without a tile: a product for each tap of an output.
struct Taps<const N: usize>;

impl<const N: usize> Scheme for Taps<N> {
    const TAPS: usize = N;
    const INPUTS: usize = N;
    const POINTS: usize = N;
    const OUTPUTS: usize = 1;

    #[inline(always)]
    fn input<S: Simd>(_: S, d: &[S::F; MOST]) -> [S::F; MOST] {
        *d
    }

    #[inline(always)]
    fn output<S: Simd>(simd: S, m: &[S::F; MOST]) -> [S::F; MOST] {
        let mut y = *m;
        for i in 1..N {
            y[0] = simd.add(y[0], m[i]);
        }
        y
    }

    #[inline(always)]
    fn spread<S: Simd>(_: S, d: &[S::F; MOST]) -> [S::F; MOST] {
        [d[0]; MOST]
    }

    #[inline(always)]
    fn taps<S: Simd>(_: S, m: &[S::F; MOST]) -> [S::F; MOST] {
        *m
    }
}

/// Every `step`th value from `first` on, `count` of them.
#[inline(always)]
fn every<S: Simd>(simd: S, from: &[S::F; MOST], first: usize, step: usize, count: usize) -> [S::F; MOST] {
    let mut some = [simd.zero(); MOST];
    for i in 0..count {
        some[i] = from[first + i * step];
    }
    some
}

/// `E::POINTS` values, and behind them those of `O`.
#[inline(always)]
fn one_after_the_other<S: Simd, E: Scheme, O: Scheme>(even: [S::F; MOST], odd: [S::F; MOST]) -> [S::F; MOST] {
    let mut all = even;
    all[E::POINTS..][..O::POINTS].copy_from_slice(&odd[..O::POINTS]);
    all
}

/// Stride 2: the sum of `E` over the even inputs and taps, and `O` over the odd ones.
struct Phases<E, O>(PhantomData<(E, O)>);

impl<E: Scheme, O: Scheme> Scheme for Phases<E, O> {
    const TAPS: usize = E::TAPS + O::TAPS;
    const INPUTS: usize = 2 * (E::OUTPUTS - 1) + Self::TAPS;
    const POINTS: usize = E::POINTS + O::POINTS;
    const OUTPUTS: usize = E::OUTPUTS;

    #[inline(always)]
    fn input<S: Simd>(simd: S, d: &[S::F; MOST]) -> [S::F; MOST] {
        let even = E::input(simd, &every(simd, d, 0, 2, E::INPUTS));
        let odd = O::input(simd, &every(simd, d, 1, 2, O::INPUTS));
        one_after_the_other::<S, E, O>(even, odd)
    }

    #[inline(always)]
    fn output<S: Simd>(simd: S, m: &[S::F; MOST]) -> [S::F; MOST] {
        let mut y = E::output(simd, m);
        let odd = O::output(simd, &every(simd, m, E::POINTS, 1, O::POINTS));
        for i in 0..E::OUTPUTS {
            y[i] = simd.add(y[i], odd[i]);
        }
        y
    }

    #[inline(always)]
    fn spread<S: Simd>(simd: S, d: &[S::F; MOST]) -> [S::F; MOST] {
        one_after_the_other::<S, E, O>(E::spread(simd, d), O::spread(simd, d))
    }

    #[inline(always)]
    fn taps<S: Simd>(simd: S, m: &[S::F; MOST]) -> [S::F; MOST] {
        let even = E::taps(simd, m);
        let odd = O::taps(simd, &every(simd, m, E::POINTS, 1, O::POINTS));
        alternate::<S>(simd, even, odd, Self::TAPS)
    }
}

/// `count` values, one of each in turn.
#[inline(always)]
fn alternate<S: Simd>(simd: S, first: [S::F; MOST], second: [S::F; MOST], count: usize) -> [S::F; MOST] {
    let mut all = [simd.zero(); MOST];
    for i in 0..count {
        all[i] = if i % 2 == 0 { first[i / 2] } else { second[i / 2] };
    }
    all
}

/// The gradient of the input of [`Phases`]: `E` and `O` make every other output.
struct Interleaved<E, O, const ODD_FIRST: bool>(PhantomData<(E, O)>);

impl<E: Scheme, O: Scheme, const ODD_FIRST: bool> Scheme for Interleaved<E, O, ODD_FIRST> {
    const TAPS: usize = E::TAPS + O::TAPS;
    const INPUTS: usize = E::OUTPUTS + if ODD_FIRST || E::TAPS > O::TAPS { E::TAPS - 1 } else { O::TAPS };
    const POINTS: usize = E::POINTS + O::POINTS;
    const OUTPUTS: usize = 2 * E::OUTPUTS;

    #[inline(always)]
    fn input<S: Simd>(simd: S, d: &[S::F; MOST]) -> [S::F; MOST] {
        let even = E::input(simd, d);
        let odd = O::input(simd, &every(simd, d, usize::from(!ODD_FIRST), 1, O::INPUTS));
        one_after_the_other::<S, E, O>(even, odd)
    }

    #[inline(always)]
    fn output<S: Simd>(simd: S, m: &[S::F; MOST]) -> [S::F; MOST] {
        let even = E::output(simd, m);
        let odd = O::output(simd, &every(simd, m, E::POINTS, 1, O::POINTS));
        let [first, second] = if ODD_FIRST { [odd, even] } else { [even, odd] };
        alternate::<S>(simd, first, second, Self::OUTPUTS)
    }

    /// The gradient of a gradient's weights is that of the forward pass.
    #[inline(always)]
    fn spread<S: Simd>(_: S, _: &[S::F; MOST]) -> [S::F; MOST] {
        unreachable!("gradients of weights have the forward scheme")
    }

    /// As [`Scheme::spread`].
    #[inline(always)]
    fn taps<S: Simd>(_: S, _: &[S::F; MOST]) -> [S::F; MOST] {
        unreachable!("gradients of weights have the forward scheme")
    }
}
