//! Few labelled samples, for a probe that is told little.

use rand_core::RngCore;

use crate::draw::choose;
use crate::{Error, Features, Result};

/// How many labelled samples of each class are kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LowShot {
    /// This part of them, above 0 and at most 1, rounded, but at least one of a class that has any. Papers have 0.01 and
    /// 0.1 of ImageNet.
    Fraction(f64),
    /// This many, at least 1.
    PerClass(usize),
}

/// A random part of the training features that treats all classes alike, in their order there.
///
/// The parts of papers are fixed lists of files; a mean over several generators says how much the choice matters.
///
/// # Errors
/// If a label is not below `num_classes`, a setting is out of range, or a class has less than [`LowShot::PerClass`] samples.
///
/// # Example
/// ```
/// use rand_chacha::ChaCha8Rng;
/// use rand_core::SeedableRng;
/// use ssl_eval::{Features, LowShot, low_shot};
///
/// let train = Features::new((0..100).map(|i| i as f32).collect(), 1, (0..100).map(|i| i % 2).collect())?;
/// let few = low_shot(&train, 2, LowShot::Fraction(0.1), &mut ChaCha8Rng::seed_from_u64(0))?;
/// assert_eq!(few.rows(), 10);
/// assert_eq!(few.labels().iter().filter(|label| **label == 1).count(), 5);
/// # Ok::<(), ssl_eval::Error>(())
/// ```
pub fn low_shot(
    train: &Features,
    num_classes: usize,
    shots: LowShot,
    rng: &mut dyn RngCore,
) -> Result<Features> {
    train.check_labels(num_classes)?;
    let mut rows_of_class = vec![Vec::new(); num_classes];
    for (row, &label) in train.labels().iter().enumerate() {
        rows_of_class[label as usize].push(row);
    }
    let mut kept = Vec::new();
    for (class, rows) in rows_of_class.iter().enumerate() {
        kept.extend(choose(rng, rows, shots.of_class(class, rows.len())?));
    }
    kept.sort_unstable();
    train.select(&kept)
}

impl LowShot {
    /// How many of the `rows` samples of a class are kept.
    fn of_class(self, class: usize, rows: usize) -> Result<usize> {
        let refuse = |field, value, allowed| Err(Error::Config { field, value, allowed });
        match self {
            Self::Fraction(part) if part > 0.0 && part <= 1.0 => {
                Ok(((rows as f64 * part).round() as usize).max(1).min(rows))
            }
            Self::Fraction(part) => refuse("fraction", part.to_string(), "above 0 and at most 1"),
            Self::PerClass(0) => refuse("samples per class", "0".to_owned(), "at least 1"),
            Self::PerClass(count) if count > rows => {
                let value = format!("{count}, but class {class} has {rows}");
                refuse("samples per class", value, "at most those of the smallest class")
            }
            Self::PerClass(count) => Ok(count),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    use super::*;

    /// Rows `0..n` of one feature each, 60 % of class 0, 40 % of class 2.
    fn features(n: u32) -> Features {
        let labels = (0..n).map(|row| if row % 5 < 3 { 0 } else { 2 }).collect();
        Features::new((0..n).map(|row| row as f32).collect(), 1, labels).unwrap()
    }

    fn few(shots: LowShot, seed: u64) -> Result<Features> {
        low_shot(&features(500), 3, shots, &mut ChaCha8Rng::seed_from_u64(seed))
    }

    #[test]
    fn classes_keep_their_shares_or_give_equally() {
        let counts =
            |features: &Features| [0, 1, 2].map(|c| features.labels().iter().filter(|l| **l == c).count());
        assert_eq!(counts(&few(LowShot::Fraction(0.1), 1).unwrap()), [30, 0, 20]);
        assert_eq!(counts(&few(LowShot::Fraction(1e-9), 1).unwrap()), [1, 0, 1]);
        assert_eq!(few(LowShot::Fraction(1.0), 1).unwrap(), features(500));
        let two_classes = features(500).select(&[0, 1, 2, 3, 4, 5, 6, 8, 9]).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let relabelled = two_classes.labels().iter().map(|label| label / 2).collect();
        let two_classes = Features::new(two_classes.data().to_vec(), 1, relabelled).unwrap();
        let three = low_shot(&two_classes, 2, LowShot::PerClass(3), &mut rng).unwrap();
        assert_eq!(counts(&three)[..2], [3, 3]);
        assert!(matches!(
            low_shot(&two_classes, 1, LowShot::PerClass(3), &mut rng),
            Err(Error::Label { .. })
        ));
    }

    #[test]
    fn samples_are_different_ones_in_order_and_depend_on_the_generator() {
        let chosen = few(LowShot::Fraction(0.1), 2).unwrap();
        assert!(chosen.data().is_sorted_by(|a, b| a < b), "{:?}", chosen.data());
        assert!(
            chosen.data().iter().zip(chosen.labels()).all(|(row, label)| (row % 5.0 < 3.0) == (*label == 0))
        );
        assert_eq!(chosen, few(LowShot::Fraction(0.1), 2).unwrap());
        assert_ne!(chosen, few(LowShot::Fraction(0.1), 3).unwrap());
    }

    #[test]
    fn bad_settings_are_refused() {
        let error = |shots| few(shots, 1).unwrap_err().to_string();
        for part in [0.0, -0.1, 1.1, f64::NAN] {
            assert!(error(LowShot::Fraction(part)).contains("allowed is above 0 and at most 1"));
        }
        assert!(error(LowShot::PerClass(0)).contains("allowed is at least 1"));
        assert!(error(LowShot::PerClass(1)).contains("1, but class 1 has 0"));
    }
}
