//! Random draws over any [`RngCore`].
//!
//! They are written out here, not taken from a crate of distributions, because a run must give the same views
//! after a dependency has changed. Each function says how many numbers it takes from the generator.

use std::f64::consts::TAU;

use rand_core::RngCore;

/// A number of `[low, high)`, from the upper 53 bits of one `u64`.
pub fn uniform(rng: &mut dyn RngCore, [low, high]: [f64; 2]) -> f64 {
    low + (high - low) * unit(rng)
}

/// An integer of `0..n` without bias; 0 if `n` is 0.
///
/// Takes one `u64`, and another with a probability of at most `n / 2^64` (Lemire, 2019, <https://arxiv.org/abs/1805.10941>).
pub fn below(rng: &mut dyn RngCore, n: usize) -> usize {
    let n = n as u64;
    let rejected = n.wrapping_neg().checked_rem(n).unwrap_or(0);
    loop {
        let product = u128::from(rng.next_u64()) * u128::from(n);
        if product as u64 >= rejected {
            return (product >> 64) as usize;
        }
    }
}

/// True with probability `p`: never for 0, always for 1. Takes one `u64` in every case.
pub fn chance(rng: &mut dyn RngCore, p: f64) -> bool {
    unit(rng) < p
}

/// A uniformly random order of `items`, by Fisher and Yates from the end; takes `N - 1` calls of [`below`].
pub fn shuffle<T>(rng: &mut dyn RngCore, items: &mut [T]) {
    for last in (1..items.len()).rev() {
        items.swap(last, below(rng, last + 1));
    }
}

/// A number of the standard normal distribution, by Box and Muller. Takes two `u64`.
pub fn normal(rng: &mut dyn RngCore) -> f64 {
    let (u, v) = (1.0 - unit(rng), unit(rng));
    (-2.0 * u.ln()).sqrt() * (TAU * v).cos()
}

/// A number of `[0, 1)` on the grid of 2^-53.
fn unit(rng: &mut dyn RngCore) -> f64 {
    (rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    /// A generator that gives the same number for ever.
    struct Constant(u64);

    impl RngCore for Constant {
        fn next_u32(&mut self) -> u32 {
            self.0 as u32
        }
        fn next_u64(&mut self) -> u64 {
            self.0
        }
        fn fill_bytes(&mut self, dst: &mut [u8]) {
            dst.fill(self.0 as u8);
        }
    }

    #[test]
    fn uniform_reaches_its_lower_end_and_not_its_upper_one() {
        assert_eq!(uniform(&mut Constant(0), [2.0, 3.0]), 2.0);
        assert_eq!(uniform(&mut Constant(u64::MAX), [0.0, 1.0]), 1.0 - f64::EPSILON / 2.0);
        assert_eq!(uniform(&mut Constant(1 << 63), [-1.0, 1.0]), 0.0);
    }

    #[test]
    fn chance_is_certain_at_both_ends() {
        assert!(!chance(&mut Constant(0), 0.0));
        assert!(chance(&mut Constant(u64::MAX), 1.0));
    }

    #[test]
    fn normal_numbers_have_their_moments_and_are_always_finite() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let normals: Vec<f64> = (0..10_000).map(|_| normal(&mut rng)).collect();
        let moment = |power: i32| normals.iter().map(|x| x.powi(power)).sum::<f64>() / 10_000.0;
        // Five standard deviations are 0.05, 0.07 and 0.5.
        assert!(moment(1).abs() < 0.05 && (moment(2) - 1.0).abs() < 0.07 && (moment(4) - 3.0).abs() < 0.5);
        assert_eq!(normal(&mut Constant(0)), 0.0);
        // The smallest uniform number is 2^-53.
        assert!((normal(&mut Constant(u64::MAX)) - (106.0 * 2f64.ln()).sqrt()).abs() < 1e-9);
    }

    #[test]
    fn below_covers_its_range_evenly() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut counts = [0usize; 7];
        for _ in 0..70_000 {
            counts[below(&mut rng, 7)] += 1;
        }
        // Five standard deviations of a binomial with n = 70000, p = 1/7.
        assert!(counts.iter().all(|&count| count.abs_diff(10_000) < 465), "{counts:?}");
        assert_eq!(below(&mut rng, 1), 0);
        assert_eq!(below(&mut rng, 0), 0);
    }

    #[test]
    fn below_rejects_the_biased_numbers() {
        // 2^64 mod 3 = 1, so that of all u64 only 0 is rejected.
        struct ZeroThen(u64);
        impl RngCore for ZeroThen {
            fn next_u32(&mut self) -> u32 {
                0
            }
            fn next_u64(&mut self) -> u64 {
                std::mem::replace(&mut self.0, u64::MAX)
            }
            fn fill_bytes(&mut self, _: &mut [u8]) {}
        }
        assert_eq!(below(&mut ZeroThen(0), 3), 2);
        assert_eq!(below(&mut ZeroThen(1), 3), 0);
    }
}
