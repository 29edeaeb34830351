//! Elementary functions of vectors: exp, ln, tanh, sigmoid, erf and the tail of the normal distribution.
//!
//! Each reduces its argument to a short interval, evaluates a polynomial there, and puts the result back together:
//!
//! ```text
//! exp x = 2^n * exp r           n = round(x / ln 2),  r = x - n ln 2   in [-0.35, 0.35]
//! ln x  = n ln 2 + ln(1 + f)    x = 2^n (1 + f),      1 + f            in [0.707, 1.415]
//! ```
//!
//! `ln 2` is split in two (W. Cody, W. Waite, "Software Manual for the Elementary Functions", 1980): the first part
//! has so few bits that its product with `n` is exact even without fused multiply-adds. The polynomials are minimax
//! fits (Remez' exchange, in f64) whose coefficients were rounded to f32; what they alone contribute to the error is
//! beside them, in units of 2^-24 relative to the result.
//!
//! Only correctly rounded operations are used, so AVX2 and AVX-512 give the same bits. Errors are in units in the last
//! place (ULP) of the exact result.

use super::Simd;

/// [`exp`] is 0 below: the results there would be subnormal or next to it.
pub(crate) const EXP_LOWEST: f32 = -87.3;
/// The largest float whose exponential is finite; [`exp`] is infinite above.
pub(crate) const EXP_HIGHEST: f32 = 88.722_83;

/// Nine bits of ln 2.
const LN_2_HIGH: f32 = 0.693_359_4;
/// ln 2 - `LN_2_HIGH`
const LN_2_LOW: f32 = -2.121_944_4e-4;
/// Adding and subtracting 1.5 * 2^23 rounds to an integer, which then stands in the low bits of the sum.
const ROUND: f32 = 12_582_912.0;

/// exp r = 1 + r + r^2 q(r) on [-0.35, 0.35]; 0.08.
const EXP: [f32; 5] = [0.499_999_94, 0.166_665_15, 0.041_668_456, 0.008_369_419, 0.001_381_314_5];
/// ln(1 + f) = f - f^2 / 2 + f^3 p(f) for 1 + f in [sqrt(1/2), sqrt 2]; 0.11.
const LN: [f32; 8] =
    [0.333_333_3, -0.250_008_2, 0.200_012_27, -0.166_233_57, 0.142_017_57, -0.131_601_83, 0.127_615_78, -0.076_345];
/// tanh x = x + x z p(z), z = x^2, for |x| up to [`TANH_SMALL`]; 0.03.
const TANH: [f32; 6] = [-0.333_333_3, 0.133_332_07, -0.053_946_834, 0.021_700_839, -0.008_177_198, 0.002_142_345_3];
/// Where the polynomial hands over to the exponential: beyond, `1 - 2 / (exp 2x + 1)` no longer cancels.
const TANH_SMALL: f32 = 0.625;

/// The polynomial with `coefficients`, the constant first.
#[inline(always)]
fn polynomial<S: Simd, const N: usize>(simd: S, coefficients: [f32; N], x: S::F) -> S::F {
    let mut sum = simd.splat(coefficients[N - 1]);
    for i in 1..N {
        sum = simd.fma(sum, x, simd.splat(coefficients[N - 1 - i]));
    }
    sum
}

/// The nearest multiple `n` of ln 2, in the low bits of the first, and `exp(x - n ln 2)`.
#[inline(always)]
fn exp_parts<S: Simd>(simd: S, x: S::F) -> (S::F, S::F) {
    let rounded = simd.fma(x, simd.splat(std::f32::consts::LOG2_E), simd.splat(ROUND));
    let n = simd.sub(rounded, simd.splat(ROUND));
    let r = simd.fma(n, simd.splat(-LN_2_HIGH), x);
    let r = simd.fma(n, simd.splat(-LN_2_LOW), r);
    let q = polynomial(simd, EXP, r);
    (rounded, simd.add(simd.fma(simd.mul(r, r), q, r), simd.splat(1.0)))
}

/// `e` to the power of `x`: at most 1.1 ULP on [-87.3, 88.72], `exp(0) = 1` exactly.
///
/// 0 below -87.3 (-infinity included), infinity above 88.72283, NaN for NaN.
#[inline(always)]
pub(crate) fn exp<S: Simd>(simd: S, x: S::F) -> S::F {
    let (rounded, power) = exp_parts(simd, x);
    // The power is in [0.7, 1.42], so adding n to its exponent stays within the normal numbers: for x of -87.3 or more
    // either n > -126 or the power is at least 1.
    let exponent = simd.shl_int::<23>(simd.bits_to_int(rounded));
    let scaled = simd.int_to_bits(simd.add_int(simd.bits_to_int(power), exponent));
    // x + infinity is infinity for what is too large, and NaN for NaN.
    let high = simd.add(x, simd.splat(f32::INFINITY));
    let scaled = simd.select(simd.le(x, simd.splat(EXP_HIGHEST)), scaled, high);
    simd.select(simd.lt(x, simd.splat(EXP_LOWEST)), simd.zero(), scaled)
}

/// [`exp`] for `x <= 0`, with its bits; NaN for NaN.
#[inline(always)]
pub(crate) fn exp_nonpositive<S: Simd>(simd: S, x: S::F) -> S::F {
    let (rounded, power) = exp_parts(simd, x);
    // A product, which keeps NaN; the exponent is that of a normal number wherever the result is one.
    let exponent = simd.shl_int::<23>(simd.add_int(simd.bits_to_int(rounded), simd.splat_int(127)));
    let scaled = simd.mul(power, simd.int_to_bits(exponent));
    simd.select(simd.lt(x, simd.splat(EXP_LOWEST)), simd.zero(), scaled)
}

/// 2^f = 1 + f q(f) on [-0.5, 0.5]; 0.27.
const EXP2: [f32; 6] =
    [std::f32::consts::LN_2, 0.240_226_48, 0.055_503_324, 0.009_618_437, 0.001_339_887_4, 0.000_153_533_62];
/// 2 to the power of `x` for `x <= 0`: at most 1.25 ULP down to -126, 0 below; `exp2(0) = 1` exactly. NaN for NaN.
#[inline(always)]
pub(crate) fn exp2_nonpositive<S: Simd>(simd: S, x: S::F) -> S::F {
    let (power, f) = simd.split_power(x);
    let fraction = simd.fma(f, polynomial(simd, EXP2, f), simd.splat(1.0));
    // False for NaN, and what is below does not reach the product: the subnormal numbers are slow.
    simd.times_power(simd.lt(x, simd.splat(-126.0)), fraction, power)
}

/// The natural logarithm: at most 1 ULP. `ln(1) = +0`; -infinity for either zero, NaN below and for NaN.
#[inline(always)]
pub(crate) fn ln<S: Simd>(simd: S, x: S::F) -> S::F {
    // Subnormal numbers first come up by 2^23.
    let tiny = simd.lt(x, simd.splat(f32::MIN_POSITIVE));
    let normal = simd.select(tiny, simd.mul(x, simd.splat(8_388_608.0)), x);
    let shift = simd.select(tiny, simd.splat(-23.0), simd.zero());

    let below = simd.splat_int(std::f32::consts::FRAC_1_SQRT_2.to_bits() as i32);
    let exponent = simd.shr_int::<23>(simd.sub_int(simd.bits_to_int(normal), below));
    let mantissa = simd.int_to_bits(simd.sub_int(simd.bits_to_int(normal), simd.shl_int::<23>(exponent)));
    let n = simd.add(simd.int_to_float(exponent), shift);
    let f = simd.sub(mantissa, simd.splat(1.0));

    let square = simd.mul(f, f);
    let cubic = simd.mul(simd.mul(square, f), polynomial(simd, LN, f));
    let tail = simd.fma(simd.splat(-0.5), square, simd.fma(n, simd.splat(LN_2_LOW), cubic));
    let result = simd.fma(n, simd.splat(LN_2_HIGH), simd.add(f, tail));

    let result = simd.select(simd.lt(x, simd.splat(f32::INFINITY)), result, x);
    let result = simd.select(simd.lt(x, simd.zero()), simd.splat(f32::NAN), result);
    simd.select(simd.eq(x, simd.zero()), simd.splat(f32::NEG_INFINITY), result)
}

/// The hyperbolic tangent: at most 1.8 ULP everywhere. Keeps the sign of zero; NaN for NaN.
#[inline(always)]
pub(crate) fn tanh<S: Simd>(simd: S, x: S::F) -> S::F {
    let sign = simd.and_int(simd.bits_to_int(x), simd.splat_int(i32::MIN));
    let a = simd.int_to_bits(simd.and_int(simd.bits_to_int(x), simd.splat_int(i32::MAX)));

    let z = simd.mul(a, a);
    let small = simd.fma(simd.mul(z, a), polynomial(simd, TANH, z), a);

    let e = exp(simd, simd.add(a, a));
    let one = simd.splat(1.0);
    let large = simd.sub(one, simd.div(simd.splat(2.0), simd.add(e, one)));

    let magnitude = simd.select(simd.lt(a, simd.splat(TANH_SMALL)), small, large);
    simd.int_to_bits(simd.or_int(simd.bits_to_int(magnitude), sign))
}

/// `1 / (1 + exp(-x))`: at most 2.5 ULP from -87.3 up, at most 2^-126 below. 0 at -infinity, NaN for NaN.
#[inline(always)]
pub(crate) fn sigmoid<S: Simd>(simd: S, x: S::F) -> S::F {
    let one = simd.splat(1.0);
    simd.div(one, simd.add(one, exp(simd, simd.sub(simd.zero(), x))))
}

/// erf x = x + x p(z), z = x^2, for |x| up to [`ERF_SMALL`]; 0.01.
const ERF: [f32; 7] =
    [0.128_379_17, -0.376_126_32, 0.112_836_9, -0.026_859_073, 0.005_200_229_6, -8.133_631e-4, 8.331_881e-5];
/// -ln(1 - erf x) = x + x q(x) beyond, up to 4, where erf rounds to 1; 0.05.
const ERF_LARGE: [f32; 6] = [0.128_511_92, 0.635_726_6, 0.105_251_04, -0.022_883_06, 0.003_212_808_9, -2.137_252_3e-4];
/// Where the polynomial hands over to the exponential.
const ERF_SMALL: f32 = 0.9277;

/// The error function `2 / sqrt(pi) * integral from 0 to x of exp(-t^2)`: at most 1.3 ULP everywhere. Keeps the sign of
/// zero; NaN for NaN.
// GELU takes the tail of the normal distribution instead, which stays accurate where 1 - erf cancels.
#[inline(always)]
pub(crate) fn erf<S: Simd>(simd: S, x: S::F) -> S::F {
    let sign = simd.and_int(simd.bits_to_int(x), simd.splat_int(i32::MIN));
    let a = simd.int_to_bits(simd.and_int(simd.bits_to_int(x), simd.splat_int(i32::MAX)));
    let small = simd.fma(a, polynomial(simd, ERF, simd.mul(a, a)), a);

    // Beyond 4 the polynomial is of no use, and the result 1. NaN goes the way of the small.
    let b = simd.select(simd.lt(a, simd.splat(4.0)), a, simd.splat(4.0));
    let exponent = simd.fma(b, polynomial(simd, ERF_LARGE, b), b);
    let large = simd.sub(simd.splat(1.0), exp(simd, simd.sub(simd.zero(), exponent)));

    let magnitude = simd.select(simd.lt(simd.splat(ERF_SMALL), a), large, small);
    simd.int_to_bits(simd.or_int(simd.bits_to_int(magnitude), sign))
}

/// The tail of the normal distribution divided by exp(-t^2 / 2) and times t + 3, as a polynomial of
/// (t - 3) / (t + 3), for t up to 13.3; 0.67.
const NORMAL_TAIL: [f32; 9] = [
    0.729_083_66,
    -0.509_332_24,
    0.230_019_26,
    -0.047_257_222,
    -0.010_479_52,
    0.006_929_5,
    0.001_077_484_5,
    -9.114_204e-4,
    -2.722_04e-4,
];

/// For `t = |x|`: the probability that a standard normal variable exceeds `t`, and `exp(-t^2 / 2)`.
///
/// The exponential errs by at most `(t^2 / 2 + 3) u`, the tail by `(t^2 / 2 + 12) u` of its value, `u = 2^-24`; both
/// are 0 beyond 13.21, where the exponential is below exp(-87.3), and NaN for NaN.
#[inline(always)]
pub(crate) fn normal_tail<S: Simd>(simd: S, x: S::F) -> (S::F, S::F) {
    let t = simd.int_to_bits(simd.and_int(simd.bits_to_int(x), simd.splat_int(i32::MAX)));
    let e = exp_nonpositive(simd, simd.mul(simd.mul(t, t), simd.splat(-0.5)));
    let r = simd.div(simd.splat(1.0), simd.add(t, simd.splat(3.0)));
    let q = simd.fma(r, simd.splat(-6.0), simd.splat(1.0));
    // Far out, r is 0 and q is 1, so that the polynomial stays finite.
    (simd.mul(simd.mul(e, r), polynomial(simd, NORMAL_TAIL, q)), e)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference;
    use crate::simd::{Isa, Job, dispatch};

    #[derive(Clone, Copy, Debug)]
    enum Function {
        Exp,
        Exp2,
        Ln,
        Tanh,
        Sigmoid,
        Erf,
    }

    const ALL: [Function; 6] =
        [Function::Exp, Function::Exp2, Function::Ln, Function::Tanh, Function::Sigmoid, Function::Erf];

    /// Applies a function in place.
    struct Apply<'a>(Function, &'a mut [f32]);

    impl Job for Apply<'_> {
        type Output = ();
        #[inline(always)]
        fn run<S: Simd>(self, simd: S) {
            let Self(function, values) = self;
            for at in (0..values.len()).step_by(S::LANES) {
                let count = S::LANES.min(values.len() - at);
                // SAFETY: `count` elements are left.
                unsafe {
                    let p = values.as_mut_ptr().add(at);
                    let x = simd.load_first(p, count);
                    let y = match function {
                        Function::Exp => exp(simd, x),
                        Function::Exp2 => exp2_nonpositive(simd, x),
                        Function::Ln => ln(simd, x),
                        Function::Tanh => tanh(simd, x),
                        Function::Sigmoid => sigmoid(simd, x),
                        Function::Erf => erf(simd, x),
                    };
                    simd.store_first(p, count, y);
                }
            }
        }
    }

    fn apply(isa: Isa, function: Function, x: &[f32]) -> Vec<f32> {
        let mut y = x.to_vec();
        dispatch(isa, Apply(function, &mut y));
        y
    }

    impl Function {
        fn exact(self, x: f64) -> f64 {
            match self {
                Self::Exp => x.exp(),
                Self::Exp2 => x.exp2(),
                Self::Ln => x.ln(),
                Self::Tanh => x.tanh(),
                Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
                Self::Erf => reference::erf(x),
            }
        }

        /// The promised bound in ULP, and where it holds.
        fn promise(self) -> (f64, std::ops::RangeInclusive<f32>) {
            match self {
                Self::Exp => (1.1, EXP_LOWEST..=EXP_HIGHEST),
                Self::Exp2 => (1.25, -126.0..=-0.0),
                Self::Ln => (1.0, f32::from_bits(1)..=f32::MAX),
                Self::Tanh => (1.8, f32::NEG_INFINITY..=f32::INFINITY),
                Self::Sigmoid => (2.5, EXP_LOWEST..=f32::INFINITY),
                Self::Erf => (1.3, f32::NEG_INFINITY..=f32::INFINITY),
            }
        }
    }

    /// The distance from the exact value in units of the last place that it has as a normal `f32`.
    fn ulp_error(y: f32, exact: f64) -> f64 {
        if y as f64 == exact {
            return 0.0;
        }
        let exponent = (exact.abs().to_bits() >> 52) as i32 - 1023;
        (y as f64 - exact).abs() / ((exponent.max(-126) - 23) as f64).exp2()
    }

    /// The largest error, and where, over the floats with bits `start..end` in steps of `step`.
    fn worst(function: Function, bits: std::ops::Range<u64>, step: usize) -> (f64, f32) {
        let (bound, domain) = function.promise();
        let mut worst = (0.0, 0.0);
        let mut x = Vec::with_capacity(1 << 16);
        let mut all = bits.step_by(step).map(|bits| f32::from_bits(bits as u32)).peekable();
        while all.peek().is_some() {
            x.clear();
            x.extend(all.by_ref().take(1 << 16));
            let outputs: Vec<(Isa, Vec<f32>)> = Isa::available().map(|isa| (isa, apply(isa, function, &x))).collect();
            for (i, &x) in x.iter().enumerate() {
                let inside = domain.contains(&x);
                let exact = if inside { function.exact(x as f64) } else { 0.0 };
                for (isa, y) in &outputs {
                    let y = y[i];
                    if x.is_nan() {
                        assert!(y.is_nan(), "{function:?}({x}) = {y} on {isa}");
                    } else if inside {
                        let error = ulp_error(y, exact);
                        assert!(error <= bound, "{function:?}({x:e}) = {y:e} on {isa}: {error} ULP");
                        if error > worst.0 {
                            worst = (error, x);
                        }
                    }
                }
            }
        }
        worst
    }

    #[test]
    fn errors_stay_below_the_promised_ulp_over_a_dense_sample() {
        for function in ALL {
            // An odd step visits all mantissa endings: 2^22 floats of both signs.
            let (error, at) = worst(function, 0..1 << 32, 1023);
            println!("{function:?}: {error:.3} ULP at {at:e}");
        }
    }

    #[test]
    #[ignore = "takes minutes: all 2^32 floats"]
    fn errors_stay_below_the_promised_ulp_for_every_float() {
        for function in ALL {
            // Pieces for threads: no piece is alone with a sign or with the numbers near 1.
            let pieces = 64u64;
            let next = std::sync::atomic::AtomicU64::new(0);
            let work = || {
                let mut most = (0.0, 0.0);
                loop {
                    let piece = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if piece >= pieces {
                        return most;
                    }
                    let found = worst(function, piece << 26..(piece + 1) << 26, 1);
                    most = if found.0 > most.0 { found } else { most };
                }
            };
            let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
            let (error, at) = std::thread::scope(|scope| {
                let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
                let found = workers.into_iter().map(|worker| worker.join().unwrap());
                found.fold((0.0, 0.0), |a: (f64, f32), b| if b.0 > a.0 { b } else { a })
            });
            println!("{function:?}: {error:.4} ULP at {at:e}");
        }
    }

    #[test]
    fn the_tail_of_the_normal_distribution_errs_by_no_more_than_promised() {
        struct Tail<'a>(&'a [f32], &'a mut [f32], &'a mut [f32]);
        impl Job for Tail<'_> {
            type Output = ();
            #[inline(always)]
            fn run<S: Simd>(self, simd: S) {
                let Self(x, tail, e) = self;
                for at in (0..x.len()).step_by(S::LANES) {
                    let count = S::LANES.min(x.len() - at);
                    // SAFETY: `count` elements are left in each.
                    unsafe {
                        let (t, d) = normal_tail(simd, simd.load_first(x.as_ptr().add(at), count));
                        simd.store_first(tail.as_mut_ptr().add(at), count, t);
                        simd.store_first(e.as_mut_ptr().add(at), count, d);
                    }
                }
            }
        }
        let unit = 1.0 / (1u64 << 24) as f64;
        let x: Vec<f32> = (0..400_000).map(|i| i as f32 * 3.3e-5 * if i % 2 == 0 { 1.0 } else { -1.0 }).collect();
        for isa in Isa::available() {
            let (mut tail, mut e) = (vec![0.0; x.len()], vec![0.0; x.len()]);
            dispatch(isa, Tail(&x, &mut tail, &mut e));
            for i in 0..x.len() {
                let t = x[i].abs() as f64;
                let (exact_e, exact) = ((-0.5 * t * t).exp(), reference::normal_cdf(-t));
                let half_square = 0.5 * t * t;
                let error = (e[i] as f64 / exact_e - 1.0).abs() / unit;
                assert!(error <= half_square + 3.0 || t > 13.2, "exponential at {t} on {isa}: {error}");
                let error = (tail[i] as f64 / exact - 1.0).abs() / unit;
                assert!(error <= half_square + 12.0 || t > 13.2, "tail at {t} on {isa}: {error}");
            }
            let mut out = ([9.0; 3], [9.0; 3]);
            dispatch(isa, Tail(&[f32::INFINITY, -14.0, f32::NAN], &mut out.0, &mut out.1));
            assert_eq!((&out.0[..2], &out.1[..2]), (&[0.0; 2][..], &[0.0; 2][..]));
            assert!(out.0[2].is_nan() && out.1[2].is_nan());
        }
    }

    #[test]
    fn special_values_come_out_as_documented() {
        let x = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN, 88.73, -87.300_01, 1.0];
        // NaNs whose payload fills the low bits, where the exponent is read off, and signalling ones.
        let nans = [0x7fff_ffff, 0xffff_ffff, 0x7fc0_0155, 0x7f80_0001, 0xff80_0100].map(f32::from_bits);
        for isa in Isa::available() {
            let y = apply(isa, Function::Exp, &x);
            assert_eq!(y[..4], [1.0, 1.0, f32::INFINITY, 0.0]);
            assert!(y[4].is_nan());
            assert_eq!(y[5..9], [f32::INFINITY, 0.0, f32::INFINITY, 0.0]);

            let y = apply(isa, Function::Exp2, &[0.0, -0.0, f32::NEG_INFINITY, f32::MIN, -126.0, -126.000_01, -1e-30]);
            assert_eq!(y, [1.0, 1.0, 0.0, 0.0, f32::MIN_POSITIVE, 0.0, 1.0]);

            let y = apply(isa, Function::Ln, &x);
            assert_eq!(y[..3], [f32::NEG_INFINITY, f32::NEG_INFINITY, f32::INFINITY]);
            assert!(y[3].is_nan() && y[4].is_nan() && y[6].is_nan());
            assert_eq!(y[9].to_bits(), 0.0f32.to_bits());

            let y = apply(isa, Function::Tanh, &x);
            assert_eq!([y[0].to_bits(), y[1].to_bits()], [0.0f32.to_bits(), (-0.0f32).to_bits()]);
            assert_eq!(y[2..4], [1.0, -1.0]);
            assert!(y[4].is_nan());
            assert_eq!(y[5..7], [1.0, -1.0]);

            let y = apply(isa, Function::Erf, &x);
            assert_eq!([y[0].to_bits(), y[1].to_bits()], [0.0f32.to_bits(), (-0.0f32).to_bits()]);
            assert_eq!(y[2..4], [1.0, -1.0]);
            assert!(y[4].is_nan());
            assert_eq!(y[5..7], [1.0, -1.0]);

            let y = apply(isa, Function::Sigmoid, &x);
            assert_eq!(y[..4], [0.5, 0.5, 1.0, 0.0]);
            assert!(y[4].is_nan());
            assert_eq!(y[5..7], [1.0, 0.0]);

            for function in ALL {
                assert!(apply(isa, function, &nans).iter().all(|y| y.is_nan()), "{function:?} on {isa}");
            }
        }
    }

    #[test]
    fn exp_of_what_is_not_positive_has_the_bits_of_exp() {
        struct Both<'a>(&'a [f32], &'a mut [f32], &'a mut [f32]);
        impl Job for Both<'_> {
            type Output = ();
            #[inline(always)]
            fn run<S: Simd>(self, simd: S) {
                for at in (0..self.0.len()).step_by(S::LANES) {
                    let count = S::LANES.min(self.0.len() - at);
                    // SAFETY: `count` elements are left in each.
                    unsafe {
                        let x = simd.load_first(self.0.as_ptr().add(at), count);
                        simd.store_first(self.1.as_mut_ptr().add(at), count, exp(simd, x));
                        simd.store_first(self.2.as_mut_ptr().add(at), count, exp_nonpositive(simd, x));
                    }
                }
            }
        }
        let mut x: Vec<f32> = (1u64 << 31..1 << 32).step_by(4093).map(|bits| f32::from_bits(bits as u32)).collect();
        x.extend([0.0, f32::NEG_INFINITY, EXP_LOWEST, EXP_LOWEST.next_down(), f32::NAN]);
        for isa in Isa::available() {
            let (mut wanted, mut given) = (vec![9.0; x.len()], vec![9.0; x.len()]);
            dispatch(isa, Both(&x, &mut wanted, &mut given));
            for (x, (wanted, given)) in x.iter().zip(wanted.iter().zip(&given)) {
                let same = wanted.to_bits() == given.to_bits() || wanted.is_nan() && given.is_nan();
                assert!(same, "{x:e} on {isa}: {given:e} instead of {wanted:e}");
            }
        }
    }

    #[test]
    fn exp_is_zero_below_its_domain_and_infinite_above() {
        for isa in Isa::available() {
            let edge = [EXP_LOWEST, EXP_LOWEST.next_down(), EXP_HIGHEST, EXP_HIGHEST.next_up()];
            let y = apply(isa, Function::Exp, &edge);
            assert!(y[0] >= f32::MIN_POSITIVE && y[1] == 0.0 && y[2].is_finite() && y[3] == f32::INFINITY, "{y:?}");
        }
    }

    #[test]
    fn instruction_sets_with_fused_operations_agree_to_the_last_bit() {
        let mut x: Vec<f32> = (0..1u64 << 32).step_by(16381).map(|bits| f32::from_bits(bits as u32)).collect();
        // Halves are as near to one whole number as to the next.
        x.extend((0..256).map(|i| -0.5 * i as f32));
        for function in ALL {
            let fused: Vec<_> = Isa::available().filter(|&isa| isa != Isa::Portable).collect();
            for pair in fused.windows(2) {
                let (a, b) = (apply(pair[0], function, &x), apply(pair[1], function, &x));
                for (&x, (a, b)) in x.iter().zip(a.iter().zip(&b)) {
                    let undefined = matches!(function, Function::Exp2) && x > 0.0;
                    let same = a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
                    assert!(same || undefined, "{function:?} of {x:e}: {a:e} on {}, {b:e} on {}", pair[0], pair[1]);
                }
            }
        }
    }
}
