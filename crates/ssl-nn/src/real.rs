//! Functions of real numbers in a form that compilers vectorise, and sums in a fixed order.

use crate::lanes::LANES;
use crate::storage::Element;

/// A scalar with the functions that transformers need. NaN stays NaN.
pub(crate) trait Real: Element {
    fn sqrt(self) -> Self;
    fn exp(self) -> Self;
    /// Distribution function and density of the standard normal distribution.
    fn normal(self) -> (Self, Self);
}

impl Real for f64 {
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }

    fn exp(self) -> Self {
        f64::exp(self)
    }

    fn normal(self) -> (Self, Self) {
        let cdf = 0.5 * candle_core::cpu::erf::erfc_f64(self * -std::f64::consts::FRAC_1_SQRT_2);
        (cdf, (-0.5 * self * self).exp() * DENSITY_AT_ZERO)
    }
}

/// `1 / √(2π)`.
const DENSITY_AT_ZERO: f64 = 0.398_942_280_401_432_7;

impl Real for f32 {
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }

    #[inline(always)]
    fn exp(self) -> Self {
        exp_of_sum(self, 0.0)
    }

    /// The lower tail is the density times a rational function of `|x|`, the upper one its complement, so both keep
    /// their relative accuracy: a few units in the last place. Beyond 13.19 the tails are 0.
    #[inline(always)]
    fn normal(self) -> (Self, Self) {
        let t = self.abs();
        // The upper half of the bits of `t`, whose square is exact; the rest corrects the exponential.
        let high = f32::from_bits(t.to_bits() & 0xffff_f000);
        let e = exp_of_sum(-0.5 * high * high, -0.5 * (t - high) * (t + high));
        let t = if t > 14.0 { 14.0 } else { t };
        // `Φ(-t) / e^(-t²/2)` to 5e-9 for t in [0, 13.25].
        let p = 4.015_934e-3;
        let p = p * t + 3.995_531e-2;
        let p = p * t + 1.812_207_9e-1;
        let p = p * t + 4.355_696_3e-1;
        let p = p * t + 0.5;
        let q = 1.006_631e-2;
        let q = q * t + 1.001_605_3e-1;
        let q = q * t + 4.641_534_4e-1;
        let q = q * t + 1.194_126_1;
        let q = q * t + 1.669_024_2;
        let q = q * t + 1.0;
        let tail = e * p / q;
        (if self > 0.0 { 1.0 - tail } else { tail }, e * DENSITY_AT_ZERO as f32)
    }
}

/// `e^(x + rest)` for a `rest` that is small beside `x`, as `2^n · e^r` with `|r|` about `ln(2) / 2` at most. Where `x`
/// is below -87 the result is 0, above 88 infinity.
#[inline(always)]
fn exp_of_sum(x: f32, rest: f32) -> f32 {
    // Adding and subtracting it rounds to an integer, which is left in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let bounded = if x < -87.0 { -87.0 } else { x };
    let bounded = if bounded > 88.0 { 88.0 } else { bounded };
    let rounded = bounded * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = bounded - n * 0.693_359_4 - n * -2.121_944_4e-4 + rest;
    let p = 1.987_569_1e-4;
    let p = p * r + 1.398_199_9e-3;
    let p = p * r + 8.333_452e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let scale = f32::from_bits((rounded.to_bits() << 23).wrapping_add(0x3f80_0000));
    let y = (p * r * r + r + 1.0) * scale;
    let y = if x < -87.0 { 0.0 } else { y };
    if x > 88.0 { f32::INFINITY } else { y }
}

/// `Σ f(aᵢ, bᵢ)`.
#[inline(always)]
pub(crate) fn sum_by<T: Real>(a: &[T], b: &[T], f: impl Fn(T, T) -> T) -> T {
    let mut lanes = [T::ZERO; LANES];
    let (mut a, mut b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    for (a, b) in (&mut a).zip(&mut b) {
        lanes.iter_mut().zip(a).zip(b).for_each(|((lane, a), b)| *lane += f(*a, *b));
    }
    let mut total = T::ZERO;
    lanes.into_iter().for_each(|lane| total += lane);
    a.remainder().iter().zip(b.remainder()).for_each(|(a, b)| total += f(*a, *b));
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f32_agrees_with_f64() {
        for i in -9000..9000 {
            let x = i as f32 / 1000.0;
            let exact = f64::from(x);
            assert!((f64::from(Real::exp(x)) / exact.exp() - 1.0).abs() < 3e-7, "exp {x}");
        }
        assert!(Real::exp(f32::NAN).is_nan());
        assert_eq!((Real::exp(f32::NEG_INFINITY), Real::exp(500f32)), (0.0, f32::INFINITY));
    }

    #[test]
    fn the_normal_distribution_is_accurate_in_its_tails() {
        for i in -130_000..130_000 {
            let x = i as f32 / 10_000.0;
            let ((cdf, density), (exact_cdf, exact_density)) = (x.normal(), f64::from(x).normal());
            assert!(
                (f64::from(cdf) / exact_cdf - 1.0).abs() < 6e-7,
                "distribution at {x}: {cdf}, {exact_cdf}"
            );
            assert!((f64::from(density) / exact_density - 1.0).abs() < 4e-7, "density at {x}");
        }
        let (cdf, density) = f32::NAN.normal();
        assert!(cdf.is_nan() && density.is_nan());
        assert_eq!(f32::INFINITY.normal(), (1.0, 0.0));
        assert_eq!(f32::NEG_INFINITY.normal(), (0.0, 0.0));
        assert!((Real::normal(-2.0f64).0 / 0.022_750_131_948_179_21 - 1.0).abs() < 1e-15);
    }

    #[test]
    fn sums_take_every_element() {
        let x: Vec<f64> = (0..37).map(f64::from).collect();
        assert_eq!(sum_by(&x, &x, |a, _| a), 666.0);
    }
}
