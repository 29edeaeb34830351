//! The error function and the normal distribution, for the definitions of activations.

use std::f64::consts::{PI, SQRT_2};

/// `2 / sqrt(pi) * integral from 0 to x of exp(-t^2)`, to about 1e-15 of its value.
pub fn erf(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    if x.abs() < 2.5 { series(x) } else { x.signum() - x.signum() * fraction(x.abs()) }
}

/// `1 - erf(x)`, to about 1e-14 of its value.
pub fn erfc(x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    match x {
        x if x >= 2.5 => fraction(x),
        // Up to here at most one digit cancels ...
        x if x < 0.5 => 1.0 - erf(x),
        // ... and between, the fraction converges as well, only slower.
        x => fraction(x),
    }
}

/// The probability that a standard normal variable is at most `x`.
pub fn normal_cdf(x: f64) -> f64 {
    0.5 * erfc(-x / SQRT_2)
}

/// The density of a standard normal variable.
pub fn normal_density(x: f64) -> f64 {
    (-0.5 * x * x).exp() / (2.0 * PI).sqrt()
}

/// `erf x = 2 / sqrt(pi) exp(-x^2) sum of 2^n x^(2n + 1) / (1 * 3 * ... (2n + 1))`: no term is negative.
fn series(x: f64) -> f64 {
    let (mut term, mut sum, mut n) = (x, 0.0, 0.0);
    while term != 0.0 && sum + term != sum {
        sum += term;
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
    }
    2.0 / PI.sqrt() * (-x * x).exp() * sum
}

/// `erfc x = exp(-x^2) / sqrt(pi) / (x + (1/2) / (x + (2/2) / (x + (3/2) / ...)))` for positive `x`.
fn fraction(x: f64) -> f64 {
    if x > 27.5 {
        return 0.0;
    }
    // The deeper, the closer; a few hundred levels do from 0.5 on ...
    let levels = (60.0 + 700.0 / (x * x)) as usize;
    let mut tail = x;
    for n in (1..levels).rev() {
        tail = x + 0.5 * n as f64 / tail;
    }
    // ... and x^2 is known to more digits than its product has, so that the exponential is.
    let square = x * x;
    let rest = x.mul_add(x, -square);
    (-square).exp() * (1.0 - rest) / PI.sqrt() / tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tabulated_values_come_out() {
        // NIST Digital Library of Mathematical Functions, section 7.
        for (x, value) in [
            (0.1, 0.112_462_916_018_284_9),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (3.0, 0.999_977_909_503_001_4),
        ] {
            assert!((erf(x) / value - 1.0).abs() < 4e-15, "erf({x}) = {}", erf(x));
            assert!((erf(-x) + erf(x)).abs() < 1e-16);
        }
        for (x, value) in [
            (0.5, 0.479_500_122_186_953_5),
            (1.0, 0.157_299_207_050_285_13),
            (2.0, 4.677_734_981_047_266e-3),
            (3.0, 2.209_049_699_858_544e-5),
            (5.0, 1.537_459_794_428_034_8e-12),
            (10.0, 2.088_487_583_762_545e-45),
        ] {
            assert!((erfc(x) / value - 1.0).abs() < 2e-14, "erfc({x}) = {}", erfc(x));
        }
        assert_eq!((erf(f64::INFINITY), erfc(f64::INFINITY), erfc(f64::NEG_INFINITY)), (1.0, 0.0, 2.0));
        assert_eq!(normal_cdf(0.0), 0.5);
    }
}
