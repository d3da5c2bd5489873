//! Random numbers from the caller's generator.

use std::f64::consts::TAU;

use rand_core::RngCore;

/// Uniform in `[0, 1)`, with 53 bits.
pub(crate) fn uniform(rng: &mut dyn RngCore) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Standard normal, by Box and Muller, from two uniform numbers.
pub(crate) fn normal(rng: &mut dyn RngCore) -> f64 {
    let (u, v) = (1.0 - uniform(rng), uniform(rng));
    (-2.0 * u.ln()).sqrt() * (TAU * v).cos()
}

/// Uniform in `0..n`, but for a share of `n / 2^64`; `n` is at least 1.
pub(crate) fn below(rng: &mut dyn RngCore, n: usize) -> usize {
    ((u128::from(rng.next_u64()) * n as u128) >> 64) as usize
}

/// `count` of the given values, each set of them as likely, by as many steps of Fisher and Yates.
pub(crate) fn choose<T: Copy>(rng: &mut dyn RngCore, values: &[T], count: usize) -> Vec<T> {
    let mut values = values.to_vec();
    for first in 0..count.min(values.len()) {
        let other = first + below(rng, values.len() - first);
        values.swap(first, other);
    }
    values.truncate(count);
    values
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    use super::*;

    #[test]
    fn every_choice_is_equally_likely() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..6000 {
            let mut chosen = choose(&mut rng, &[10, 20, 30, 40], 2);
            chosen.sort_unstable();
            *counts.entry(chosen).or_insert(0) += 1;
        }
        // 1,000 of each; five standard deviations are 144.
        assert!(counts.len() == 6 && counts.values().all(|count| (856..1144).contains(count)), "{counts:?}");
        assert_eq!(choose(&mut rng, &[1, 2], 5).len(), 2);
    }

    #[test]
    fn numbers_stay_in_their_range() {
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let mean = (0..10_000).map(|_| uniform(&mut rng)).sum::<f64>() / 10_000.0;
        // Five standard deviations are 0.014.
        assert!((mean - 0.5).abs() < 0.015, "{mean}");
        let normals: Vec<f64> = (0..10_000).map(|_| normal(&mut rng)).collect();
        let moment = |power: i32| normals.iter().map(|x| x.powi(power)).sum::<f64>() / 10_000.0;
        // Five standard deviations are 0.05, 0.07 and 0.5.
        assert!(moment(1).abs() < 0.05 && (moment(2) - 1.0).abs() < 0.07 && (moment(4) - 3.0).abs() < 0.5);
        assert!((0..1000).all(|_| below(&mut rng, 3) < 3 && uniform(&mut rng) < 1.0));
    }
}
