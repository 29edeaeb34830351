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
//! The gradient of the weights is the same bilinear form read another way, `F(r, m)`: `r` sums of products of inputs and `m`
//! outputs' gradients. `B` stays, the others change places:
//!
//! ```text
//! <dy, y> = <A dy, (G w) . (Bᵀ d)>          dw = Gᵀ [(A dy) . (Bᵀ d)]
//! ```
//!
//! Points come in pairs: `0, ±a, ±b, ..., infinity`. With `z = x²`, the rows of a pair are `even ± a * odd`, which
//! halves the work. The same points serve several filters: `n = 6` is F(4,3) and F(2,5).
//!
//! | pairs | points | | error of F(m,3) over a direct convolution's |
//! | --- | --- | --- | --- |
//! | 1 | 0, ±1, infinity | F(2,3) | 0.5 to 0.8; exact on integers |
//! | 2 | 0, ±5/8, ±3/2, infinity | F(4,3), F(2,5) | 1.7 to 2.2 |
//! | 3 | 0, ±1, ±2, ±1/2, infinity | F(6,3), F(4,5) | 7 to 11 |
//!
//! Sources: S. Winograd, "Arithmetic complexity of computations" (1980); A. Lavin, S. Gray, "Fast algorithms for
//! convolutional neural networks", CVPR 2016; B. Barabasz et al., "Error analysis and improving the accuracy of Winograd
//! convolution for deep neural networks", ACM TOMS 46 (2020), for points that are not integers.

use crate::simd::Simd;

/// Values of any axis: the most points.
pub(super) const MOST: usize = 8;

/// The positive points of each number of pairs.
const POINTS: [[f64; 3]; 4] = [[0.0; 3], [1.0, 0.0, 0.0], [0.625, 1.5, 0.0], [1.0, 2.0, 0.5]];

/// One axis of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Axis {
    /// Taps of the filter.
    pub taps: usize,
    /// Outputs of a tile.
    pub outputs: usize,
    /// Pairs of points; none leaves an axis of one tap as it is.
    pub pairs: usize,
}

impl Axis {
    /// The tile of `outputs` for a filter of `taps`, if there is one.
    pub const fn new(taps: usize, outputs: usize) -> Option<Self> {
        let pairs = match (taps, outputs) {
            (1, 1) => 0,
            (3, 2) => 1,
            (3, 4) | (5, 2) => 2,
            (3, 6) | (5, 4) => 3,
            _ => return None,
        };
        Some(Self { taps, outputs, pairs })
    }

    /// Inputs of a tile, which are as many as its products.
    pub const fn points(&self) -> usize {
        self.outputs + self.taps - 1
    }

    /// Element `[point][tap]` of `G`.
    pub fn weight(&self, point: usize, tap: usize) -> f64 {
        if self.pairs == 0 {
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
        row[0] = 1.0;
        if self.pairs == 0 {
            return row;
        }
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
        if self.pairs == 0 {
            return 1.0;
        }
        if point + 1 == self.points() {
            return f64::from(u8::from(output + 1 == self.outputs));
        }
        self.point(point).powi(output as i32)
    }

    /// The largest share of `|Aᵀ| (|G| |w| . |Bᵀ| |d|)` in the `taps` products of an output, all of the same magnitude.
    pub fn amplification(&self) -> f64 {
        let term = |output: usize, point: usize| {
            let weights: f64 = (0..self.taps).map(|tap| self.weight(point, tap).abs()).sum();
            let inputs: f64 = self.input(point).iter().map(|b| b.abs()).sum();
            self.output(output, point).abs() * weights * inputs
        };
        let sum = |output: usize| (0..self.points()).map(|point| term(output, point)).sum::<f64>();
        (0..self.outputs).map(sum).fold(0.0, f64::max) / self.taps as f64
    }

    /// [`Axis::amplification`] of the weights' gradient: the largest share of `|Gᵀ| (|A| |dy| . |Bᵀ| |d|)` in the `outputs`
    /// products that a tile adds to a tap.
    pub fn gradient_amplification(&self) -> f64 {
        let term = |tap: usize, point: usize| {
            let outputs: f64 = (0..self.outputs).map(|output| self.output(output, point).abs()).sum();
            let inputs: f64 = self.input(point).iter().map(|b| b.abs()).sum();
            self.weight(point, tap).abs() * outputs * inputs
        };
        let sum = |tap: usize| (0..self.points()).map(|point| term(tap, point)).sum::<f64>();
        (0..self.taps).map(sum).fold(0.0, f64::max) / self.outputs as f64
    }

    /// A finite point: 0, then the pairs.
    fn point(&self, index: usize) -> f64 {
        match index {
            0 => 0.0,
            _ => POINTS[self.pairs][(index - 1) / 2] * if index % 2 == 1 { 1.0 } else { -1.0 },
        }
    }
}

/// The coefficients of the product of `z - a²` over all pairs but `without`.
const fn polynomial(pairs: usize, without: usize) -> [f64; 4] {
    let mut coefficients = [1.0, 0.0, 0.0, 0.0];
    let (mut degree, mut pair) = (0, 0);
    while pair < pairs {
        if pair != without {
            let square = POINTS[pairs][pair] * POINTS[pairs][pair];
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

/// `Bᵀ d` of an axis with `PAIRS` pairs of points.
#[inline(always)]
pub(super) fn input<S: Simd, const PAIRS: usize>(simd: S, d: &[S::F; MOST]) -> [S::F; MOST] {
    if PAIRS == 0 {
        return *d;
    }
    let mut v = [simd.zero(); MOST];
    let all = const { polynomial(PAIRS, PAIRS) };
    v[0] = evaluate(simd, all, PAIRS, d, 0);
    v[2 * PAIRS + 1] = evaluate(simd, all, PAIRS, d, 1);
    for pair in 0..PAIRS {
        let others = polynomial(PAIRS, pair);
        let even = evaluate(simd, others, PAIRS - 1, d, 2);
        let odd = evaluate(simd, others, PAIRS - 1, d, 1);
        let a = POINTS[PAIRS][pair] as f32;
        v[1 + 2 * pair] = simd.fma(simd.splat(a), odd, even);
        v[2 + 2 * pair] = simd.fma(simd.splat(-a), odd, even);
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
fn of_pairs<S: Simd, const PAIRS: usize>(simd: S, m: &[S::F; MOST]) -> ([S::F; 3], [S::F; 3]) {
    let (mut sums, mut differences) = ([simd.zero(); 3], [simd.zero(); 3]);
    for pair in 0..PAIRS {
        sums[pair] = simd.add(m[1 + 2 * pair], m[2 + 2 * pair]);
        differences[pair] = simd.sub(m[1 + 2 * pair], m[2 + 2 * pair]);
    }
    (sums, differences)
}

/// `Aᵀ m`: `OUTPUTS` outputs of an axis with `PAIRS` pairs of points.
#[inline(always)]
pub(super) fn output<S: Simd, const PAIRS: usize, const OUTPUTS: usize>(simd: S, m: &[S::F; MOST]) -> [S::F; MOST] {
    if PAIRS == 0 {
        return *m;
    }
    let (sums, differences) = of_pairs::<S, PAIRS>(simd, m);
    let mut y = [simd.zero(); MOST];
    for i in 0..OUTPUTS {
        let terms = if i % 2 == 0 { &sums } else { &differences };
        let mut sum =
            if i == 0 { simd.add(m[0], terms[0]) } else { simd.mul(simd.splat(power(POINTS[PAIRS][0], i)), terms[0]) };
        for pair in 1..PAIRS {
            sum = simd.fma(simd.splat(power(POINTS[PAIRS][pair], i)), terms[pair], sum);
        }
        y[i] = if i + 1 == OUTPUTS { simd.add(sum, m[2 * PAIRS + 1]) } else { sum };
    }
    y
}

/// `A d`: `OUTPUTS` gradients of outputs, an even number, at the points of an axis with `PAIRS` pairs of them.
#[inline(always)]
pub(super) fn spread<S: Simd, const PAIRS: usize, const OUTPUTS: usize>(simd: S, d: &[S::F; MOST]) -> [S::F; MOST] {
    let mut v = [simd.zero(); MOST];
    v[0] = d[0];
    v[2 * PAIRS + 1] = d[OUTPUTS - 1];
    for pair in 0..PAIRS {
        let (mut even, mut odd) = (d[OUTPUTS - 2], d[OUTPUTS - 1]);
        let square = simd.splat(power(POINTS[PAIRS][pair], 2));
        for i in (0..OUTPUTS / 2 - 1).rev() {
            even = simd.fma(square, even, d[2 * i]);
            odd = simd.fma(square, odd, d[2 * i + 1]);
        }
        let a = POINTS[PAIRS][pair] as f32;
        v[1 + 2 * pair] = simd.fma(simd.splat(a), odd, even);
        v[2 + 2 * pair] = simd.fma(simd.splat(-a), odd, even);
    }
    v
}

/// The product of `a - q` over the other finite points `q`, for `a` of a pair (and for `-a`), or for 0.
const fn scale(pairs: usize, pair: Option<usize>) -> f64 {
    let a = match pair {
        Some(pair) => POINTS[pairs][pair],
        None => 0.0,
    };
    let mut scale = if a == 0.0 { 1.0 } else { 2.0 * a * a };
    let mut other = 0;
    while other < pairs {
        if POINTS[pairs][other] != a {
            scale *= a * a - POINTS[pairs][other] * POINTS[pairs][other];
        }
        other += 1;
    }
    scale
}

/// `Gᵀ m`: the gradients of `TAPS` weights of an axis with `PAIRS` pairs of points.
#[inline(always)]
pub(super) fn taps<S: Simd, const PAIRS: usize, const TAPS: usize>(simd: S, m: &[S::F; MOST]) -> [S::F; MOST] {
    if PAIRS == 0 {
        return *m;
    }
    let (sums, differences) = of_pairs::<S, PAIRS>(simd, m);
    let mut w = [simd.zero(); MOST];
    for i in 0..TAPS {
        let terms = if i % 2 == 0 { &sums } else { &differences };
        let weight = |pair: usize| simd.splat((power64(POINTS[PAIRS][pair], i) / scale(PAIRS, Some(pair))) as f32);
        let mut sum = simd.mul(weight(0), terms[0]);
        for pair in 1..PAIRS {
            sum = simd.fma(weight(pair), terms[pair], sum);
        }
        if i == 0 {
            sum = simd.fma(simd.splat((1.0 / scale(PAIRS, None)) as f32), m[0], sum);
        }
        w[i] = if i + 1 == TAPS { simd.add(sum, m[2 * PAIRS + 1]) } else { sum };
    }
    w
}
