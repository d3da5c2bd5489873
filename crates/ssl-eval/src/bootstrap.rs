//! How sure an accuracy is, given the test samples that there are.
//!
//! The percentile bootstrap of Efron, "Bootstrap methods: another look at the jackknife", 1979.

use rand_core::RngCore;

use crate::draw::below;
use crate::{Error, Result};

/// Settings of the bootstrap.
#[derive(Clone, Debug, PartialEq)]
pub struct BootstrapConfig {
    /// The share of test sets whose interval holds the true accuracy, above 0 and below 1.
    pub level: f64,
    /// The number of test sets that are drawn, at least 1.
    pub resamples: usize,
}

impl Default for BootstrapConfig {
    fn default() -> Self {
        Self { level: 0.95, resamples: 2000 }
    }
}

/// Where an accuracy lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConfidenceInterval {
    /// The lower end, a fraction in [0, 1].
    pub low: f64,
    /// The upper end, a fraction in [0, 1].
    pub high: f64,
}

/// The confidence interval of an accuracy: percentiles, with linear interpolation, of the accuracies of test sets that are
/// drawn from `correct` with replacement.
///
/// It knows of the chance in the choice of test samples, not of that in training. If all samples are right, or all wrong, it
/// has no width, which says that there are too few of them.
///
/// # Errors
/// If there are no samples or a setting is out of range.
///
/// # Example
/// ```
/// use rand_chacha::ChaCha8Rng;
/// use rand_core::SeedableRng;
/// use ssl_eval::{BootstrapConfig, accuracy_interval};
///
/// // 80 of 100, whose standard deviation is 0.04.
/// let correct: Vec<bool> = (0..100).map(|i| i % 5 > 0).collect();
/// let mut rng = ChaCha8Rng::seed_from_u64(0);
/// let interval = accuracy_interval(&correct, &BootstrapConfig::default(), &mut rng)?;
/// assert!((interval.low - 0.72).abs() < 0.015 && (interval.high - 0.88).abs() < 0.015);
/// # Ok::<(), ssl_eval::Error>(())
/// ```
pub fn accuracy_interval(
    correct: &[bool],
    config: &BootstrapConfig,
    rng: &mut dyn RngCore,
) -> Result<ConfidenceInterval> {
    if !(config.level > 0.0 && config.level < 1.0) {
        let value = config.level.to_string();
        return Err(Error::Config { field: "level", value, allowed: "above 0 and below 1" });
    }
    if config.resamples == 0 {
        return Err(Error::Config { field: "resamples", value: "0".to_owned(), allowed: "at least 1" });
    }
    if correct.is_empty() {
        return Err(Error::Empty);
    }
    let n = correct.len();
    let mut resample = || (0..n).filter(|_| correct[below(rng, n)]).count();
    let mut hits: Vec<usize> = (0..config.resamples).map(|_| resample()).collect();
    hits.sort_unstable();
    let quantile = |share: f64| {
        let place = share * (hits.len() - 1) as f64;
        let (below, above) = (hits[place.floor() as usize] as f64, hits[place.ceil() as usize] as f64);
        (below + (above - below) * place.fract()) / n as f64
    };
    let tail = (1.0 - config.level) / 2.0;
    Ok(ConfidenceInterval { low: quantile(tail), high: quantile(1.0 - tail) })
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    use super::*;
    use crate::draw::uniform;

    #[test]
    fn intervals_hold_the_true_accuracy_as_often_as_they_say() {
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        let config = BootstrapConfig { level: 0.9, resamples: 300 };
        let mut holds = || {
            let correct: Vec<bool> = (0..200).map(|_| uniform(&mut rng) < 0.7).collect();
            let ConfidenceInterval { low, high } = accuracy_interval(&correct, &config, &mut rng).unwrap();
            (low..=high).contains(&0.7)
        };
        let held = (0..400).filter(|_| holds()).count();
        // 360 of 400 with a standard deviation of 6; steps of 1 / 200 and 300 resamples cost a few.
        assert!((335..385).contains(&held), "{held} of 400");
    }

    #[test]
    fn a_certain_accuracy_has_no_width_and_equal_seeds_agree() {
        let config = BootstrapConfig::default();
        let interval = |correct: &[bool]| {
            accuracy_interval(correct, &config, &mut ChaCha8Rng::seed_from_u64(4)).unwrap()
        };
        assert_eq!(interval(&[true; 9]), ConfidenceInterval { low: 1.0, high: 1.0 });
        assert_eq!(interval(&[false; 9]), ConfidenceInterval { low: 0.0, high: 0.0 });
        let mixed = [true, false, true, true];
        assert_eq!(interval(&mixed), interval(&mixed));
    }

    #[test]
    fn bad_input_is_refused() {
        let check = |correct: &[bool], level: f64, resamples: usize| {
            let config = BootstrapConfig { level, resamples };
            let error = accuracy_interval(correct, &config, &mut ChaCha8Rng::seed_from_u64(5)).unwrap_err();
            error.to_string()
        };
        assert!(check(&[], 0.5, 1).contains("no samples"));
        assert!(check(&[true], 0.5, 0).contains("resamples is 0"));
        for level in [0.0, 1.0, f64::NAN] {
            assert!(check(&[true], level, 1).contains("allowed is above 0 and below 1"));
        }
    }
}
