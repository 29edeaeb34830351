//! The transforms of one axis, and their points.
//!
//! `F(m, r)` computes `m` outputs of a filter of `r` taps from `n = m + r - 1` inputs `d` with `n` products: the inputs
//! are a polynomial's coefficients, evaluated at `n` points (infinity among them), and so is the filter; outputs come
//! back by interpolation.
//!
//! ```text
//! y = Aᵀ [(G w) . (Bᵀ d)]          A[p][i] = p^i     G[p][j] = p^j / N(p)     row p of Bᵀ: the product of (x - q), q ≠ p
//! ```
//!
//! The gradient of the weights is the same bilinear form read another way, `F(r, m)`: `r` sums of products of inputs
//! and `m` outputs' gradients. `B` stays, the others change places:
//!
//! ```text
//! <dy, y> = <A dy, (G w) . (Bᵀ d)>          dw = Gᵀ [(A dy) . (Bᵀ d)]
//! ```
//!
//! Points come in pairs: `0, ±a, ±b, ..., infinity`, without 0 where their number is odd. With `z = x²`, the rows of a
//! pair are `even ± a * odd`, which halves the work. The same points serve several filters: `n = 6` is F(4,3) and
//! F(2,5).
//!
//! | n | points | |
//! | --- | --- | --- |
//! | 3 | ±1, infinity | F(2,2); exact on integers |
//! | 4 | 0, ±1, infinity | F(2,3); exact on integers |
//! | 5 | ±1/2, ±5/4, infinity | F(4,2), F(2,4) |
//! | 6 | 0, ±5/8, ±3/2, infinity | F(4,3), F(2,5) |
//! | 8 | 0, ±1, ±2, ±1/2, infinity | F(6,3), F(4,5), F(2,7) |
//!
//! Errors of the tiles are in `docs/convolution.md`.
//!
//! Sources: S. Winograd, "Arithmetic complexity of computations" (1980); A. Lavin, S. Gray, "Fast algorithms for
//! convolutional neural networks", CVPR 2016; B. Barabasz et al., "Error analysis and improving the accuracy of
//! Winograd convolution for deep neural networks", ACM TOMS 46 (2020), for points that are not integers.

use crate::simd::Simd;

/// Values of any axis: the most points, inputs and outputs.
pub(super) const MOST: usize = 11;

/// The positive points, by the number of all of them.
const POINTS: [[f64; 3]; 9] = [
    [0.0; 3],
    [0.0; 3],
    [0.0; 3],
    [1.0, 0.0, 0.0],
    [1.0, 0.0, 0.0],
    [0.5, 1.25, 0.0],
    [0.625, 1.5, 0.0],
    [0.0; 3],
    [1.0, 2.0, 0.5],
];

/// Pairs among `points`.
const fn pairs(points: usize) -> usize {
    (points - 1) / 2
}

/// 1 where 0 is one of `points`.
const fn zeros(points: usize) -> usize {
    (points + 1) % 2
}

/// `F(outputs, taps)`. With one tap, a product for each output; with none, nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub taps: usize,
    pub outputs: usize,
}

impl Piece {
    /// Products.
    pub const fn points(&self) -> usize {
        if self.taps == 0 { 0 } else { self.inputs() }
    }

    pub const fn inputs(&self) -> usize {
        self.outputs + self.taps - 1
    }

    /// Element `[point][tap]` of `G`.
    pub fn weight(&self, point: usize, tap: usize) -> f64 {
        if self.taps == 1 {
            return 1.0;
        }
        if point + 1 == self.points() {
            return f64::from(u8::from(tap + 1 == self.taps));
        }
        let x = self.point(point);
        let scale: f64 =
            (0..self.points() - 1).filter(|&other| other != point).map(|other| x - self.point(other)).product();
        x.powi(tap as i32) / scale
    }

    /// Row `point` of `Bᵀ`: the coefficients of the product of `x - q` over the other finite points.
    pub fn input(&self, point: usize) -> [f64; MOST] {
        let mut row = [0.0; MOST];
        if self.taps == 1 {
            row[point] = 1.0;
            return row;
        }
        row[0] = 1.0;
        for (degree, other) in (0..self.points() - 1).filter(|&other| other != point).enumerate() {
            let q = self.point(other);
            for k in (0..=degree).rev() {
                row[k + 1] += row[k];
                row[k] *= -q;
            }
        }
        row
    }

    /// Element `[output][point]` of `Aᵀ`.
    pub fn output(&self, output: usize, point: usize) -> f64 {
        if self.taps == 1 {
            return f64::from(u8::from(output == point));
        }
        if point + 1 == self.points() {
            return f64::from(u8::from(output + 1 == self.outputs));
        }
        self.point(point).powi(output as i32)
    }

    /// A finite point: 0 if it is one, then the pairs.
    fn point(&self, index: usize) -> f64 {
        match index.checked_sub(zeros(self.points())) {
            None => 0.0,
            Some(index) => POINTS[self.points()][index / 2] * if index.is_multiple_of(2) { 1.0 } else { -1.0 },
        }
    }
}

/// The coefficients of the product of `z - a²` over all pairs of `points` but `without`.
const fn polynomial(points: usize, without: usize) -> [f64; 4] {
    let mut coefficients = [1.0, 0.0, 0.0, 0.0];
    let (mut degree, mut pair) = (0, 0);
    while pair < pairs(points) {
        if pair != without {
            let square = POINTS[points][pair] * POINTS[points][pair];
            // Times z, minus the square times the same.
            let mut k = degree + 1;
            while k > 0 {
                coefficients[k] = coefficients[k - 1] - square * coefficients[k];
                k -= 1;
            }
            coefficients[0] *= -square;
            degree += 1;
        }
        pair += 1;
    }
    coefficients
}

/// `c[0] d[0] + c[1] d[2] + ... + d[2 degree]`
#[inline(always)]
fn evaluate<S: Simd>(simd: S, coefficients: [f64; 4], degree: usize, d: &[S::F; MOST], first: usize) -> S::F {
    let mut sum = d[first + 2 * degree];
    for k in 0..degree {
        sum = simd.fma(simd.splat(coefficients[k] as f32), d[first + 2 * k], sum);
    }
    sum
}

/// `Bᵀ d` of `N` points.
#[inline(always)]
pub(super) fn input<S: Simd, const N: usize>(simd: S, d: &[S::F; MOST]) -> [S::F; MOST] {
    let (pairs, zeros) = const { (pairs(N), zeros(N)) };
    let mut v = [simd.zero(); MOST];
    let all = const { polynomial(N, N) };
    if zeros == 1 {
        v[0] = evaluate(simd, all, pairs, d, 0);
    }
    v[N - 1] = evaluate(simd, all, pairs, d, zeros);
    for pair in 0..pairs {
        let others = polynomial(N, pair);
        let even = evaluate(simd, others, pairs - 1, d, 2 * zeros);
        let odd = evaluate(simd, others, pairs - 1, d, 1);
        let a = POINTS[N][pair] as f32;
        // With 0 among the points the rows have a factor x: what is even counts from the second input on.
        let (one, times) = if zeros == 1 { (even, odd) } else { (odd, even) };
        v[zeros + 2 * pair] = simd.fma(simd.splat(a), times, one);
        v[zeros + 1 + 2 * pair] = simd.fma(simd.splat(-a), times, one);
    }
    v
}

/// `base^exponent`
const fn power64(base: f64, exponent: usize) -> f64 {
    let (mut power, mut i) = (1.0, 0);
    while i < exponent {
        power *= base;
        i += 1;
    }
    power
}

/// `base^exponent`, rounded once.
const fn power(base: f64, exponent: usize) -> f32 {
    power64(base, exponent) as f32
}

/// Sum and difference of the values at the two points of each pair.
#[inline(always)]
fn of_pairs<S: Simd, const N: usize>(simd: S, m: &[S::F; MOST]) -> ([S::F; 3], [S::F; 3]) {
    let (mut sums, mut differences) = ([simd.zero(); 3], [simd.zero(); 3]);
    for pair in 0..const { pairs(N) } {
        let at = zeros(N) + 2 * pair;
        sums[pair] = simd.add(m[at], m[at + 1]);
        differences[pair] = simd.sub(m[at], m[at + 1]);
    }
    (sums, differences)
}

/// `Aᵀ m`: `OUTPUTS` outputs of `N` points.
#[inline(always)]
pub(super) fn output<S: Simd, const N: usize, const OUTPUTS: usize>(simd: S, m: &[S::F; MOST]) -> [S::F; MOST] {
    let (sums, differences) = of_pairs::<S, N>(simd, m);
    let mut y = [simd.zero(); MOST];
    for i in 0..OUTPUTS {
        let terms = if i % 2 == 0 { &sums } else { &differences };
        let mut sum = match i {
            0 if zeros(N) == 1 => simd.add(m[0], terms[0]),
            0 => terms[0],
            _ => simd.mul(simd.splat(power(POINTS[N][0], i)), terms[0]),
        };
        for pair in 1..const { pairs(N) } {
            sum = simd.fma(simd.splat(power(POINTS[N][pair], i)), terms[pair], sum);
        }
        y[i] = if i + 1 == OUTPUTS { simd.add(sum, m[N - 1]) } else { sum };
    }
    y
}

/// `A d`: `OUTPUTS` gradients of outputs, an even number, at `N` points.
#[inline(always)]
pub(super) fn spread<S: Simd, const N: usize, const OUTPUTS: usize>(simd: S, d: &[S::F; MOST]) -> [S::F; MOST] {
    let mut v = [simd.zero(); MOST];
    v[0] = d[0];
    v[N - 1] = d[OUTPUTS - 1];
    for pair in 0..const { pairs(N) } {
        let (mut even, mut odd) = (d[OUTPUTS - 2], d[OUTPUTS - 1]);
        let square = simd.splat(power(POINTS[N][pair], 2));
        for i in (0..OUTPUTS / 2 - 1).rev() {
            even = simd.fma(square, even, d[2 * i]);
            odd = simd.fma(square, odd, d[2 * i + 1]);
        }
        let (a, at) = (POINTS[N][pair] as f32, zeros(N) + 2 * pair);
        v[at] = simd.fma(simd.splat(a), odd, even);
        v[at + 1] = simd.fma(simd.splat(-a), odd, even);
    }
    v
}

/// The product of `a - q` over the other finite points `q`, for `a` of a pair, or for 0. For `-a` it is the same, or,
/// without 0 among the points, its opposite.
const fn scale(points: usize, pair: Option<usize>) -> f64 {
    let a = match pair {
        Some(pair) => POINTS[points][pair],
        None => 0.0,
    };
    let mut scale = match (pair, zeros(points)) {
        (None, _) => 1.0,
        (_, 1) => 2.0 * a * a,
        _ => 2.0 * a,
    };
    let mut other = 0;
    while other < pairs(points) {
        if POINTS[points][other] != a {
            scale *= a * a - POINTS[points][other] * POINTS[points][other];
        }
        other += 1;
    }
    scale
}

/// `Gᵀ m`: the gradients of `TAPS` weights of `N` points.
#[inline(always)]
pub(super) fn taps<S: Simd, const N: usize, const TAPS: usize>(simd: S, m: &[S::F; MOST]) -> [S::F; MOST] {
    let (sums, differences) = of_pairs::<S, N>(simd, m);
    let mut w = [simd.zero(); MOST];
    for i in 0..TAPS {
        let terms = if i % 2 == 1 - zeros(N) { &sums } else { &differences };
        let weight = |pair: usize| simd.splat((power64(POINTS[N][pair], i) / scale(N, Some(pair))) as f32);
        let mut sum = simd.mul(weight(0), terms[0]);
        for pair in 1..const { pairs(N) } {
            sum = simd.fma(weight(pair), terms[pair], sum);
        }
        if i == 0 && zeros(N) == 1 {
            sum = simd.fma(simd.splat((1.0 / scale(N, None)) as f32), m[0], sum);
        }
        w[i] = if i + 1 == TAPS { simd.add(sum, m[N - 1]) } else { sum };
    }
    w
}
