//! Functions of real numbers in a form that compilers vectorise, and sums in a fixed order.

use crate::lanes::LANES;
use crate::storage::Element;

/// A scalar with the functions that transformers need. NaN stays NaN.
pub(crate) trait Real: Element {
    fn sqrt(self) -> Self;
    fn exp(self) -> Self;
    fn erf(self) -> Self;
}

impl Real for f64 {
    fn sqrt(self) -> Self {
        f64::sqrt(self)
    }

    fn exp(self) -> Self {
        f64::exp(self)
    }

    fn erf(self) -> Self {
        candle_core::cpu::erf::erf_f64(self)
    }
}

impl Real for f32 {
    fn sqrt(self) -> Self {
        f32::sqrt(self)
    }

    /// `2^n · e^r` with `|r| <= ln(2) / 2`. Below -87 the result is 0, above 88 infinity.
    #[inline(always)]
    fn exp(self) -> Self {
        // Adding and subtracting it rounds to an integer, which is left in the low bits.
        const ROUND: f32 = 12_582_912.0;
        let x = if self < -87.0 { -87.0 } else { self };
        let x = if x > 88.0 { 88.0 } else { x };
        let rounded = x * std::f32::consts::LOG2_E + ROUND;
        let n = rounded - ROUND;
        let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
        let p = 1.987_569_1e-4;
        let p = p * r + 1.398_199_9e-3;
        let p = p * r + 8.333_452e-3;
        let p = p * r + 4.166_579_6e-2;
        let p = p * r + 1.666_666_5e-1;
        let p = p * r + 0.5;
        let scale = f32::from_bits((rounded.to_bits() << 23).wrapping_add(0x3f80_0000));
        let y = (p * r * r + r + 1.0) * scale;
        let y = if self < -87.0 { 0.0 } else { y };
        if self > 88.0 { f32::INFINITY } else { y }
    }

    /// A rational function of odd degree 13 over even degree 8; beyond 4 the result is ±1 in f32. Off by at most
    /// 5e-7.
    #[inline(always)]
    fn erf(self) -> Self {
        let x = if self < -4.0 { -4.0 } else { self };
        let x = if x > 4.0 { 4.0 } else { x };
        let s = x * x;
        let p = -2.726_142_3e-10;
        let p = p * s + 2.770_681_4e-8;
        let p = p * s - 2.101_024e-6;
        let p = p * s - 5.692_506_4e-5;
        let p = p * s - 7.349_906e-4;
        let p = p * s - 2.954_6e-3;
        let p = p * s - 1.609_603_3e-2;
        let q = -1.456_607_2e-5;
        let q = q * s - 2.133_740_6e-4;
        let q = q * s - 1.682_827e-3;
        let q = q * s - 7.373_329_2e-3;
        let q = q * s - 1.426_473_9e-2;
        x * p / q
    }
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
            assert!((f64::from(Real::erf(x)) - Real::erf(exact)).abs() < 5e-7, "erf {x}");
        }
        assert!(Real::exp(f32::NAN).is_nan() && Real::erf(f32::NAN).is_nan());
        assert_eq!((Real::exp(f32::NEG_INFINITY), Real::exp(500f32)), (0.0, f32::INFINITY));
    }

    #[test]
    fn sums_take_every_element() {
        let x: Vec<f64> = (0..37).map(f64::from).collect();
        assert_eq!(sum_by(&x, &x, |a, _| a), 666.0);
    }
}
