//! Top-1 and top-k accuracy.

use crate::features::check_size;
use crate::{Error, Result};

/// The fraction of predictions that equal their label.
///
/// # Errors
/// If there are no labels or not as many predictions.
///
/// # Example
/// ```
/// assert_eq!(ssl_eval::accuracy(&[0, 2, 1, 1], &[0, 2, 1, 0])?, 0.75);
/// # Ok::<(), ssl_eval::Error>(())
/// ```
pub fn accuracy(predictions: &[u32], labels: &[u32]) -> Result<f64> {
    check_size("number of predictions", predictions.len(), labels.len())?;
    if labels.is_empty() {
        return Err(Error::Empty);
    }
    let hits = predictions.iter().zip(labels).filter(|(prediction, label)| prediction == label).count();
    Ok(hits as f64 / labels.len() as f64)
}

/// The fraction of samples whose label is among their `k` highest scores; of equal scores the lower class goes first.
///
/// # Shapes
/// `scores`: `(N, num_classes)` row-major, any increasing function of the probabilities; `labels`: N.
///
/// # Errors
/// If there are no labels, the sizes do not agree, a label is not below `num_classes`, a score is NaN, or `k` is not
/// in 1 to `num_classes`.
///
/// # Example
/// ```
/// let scores = [0.2, 0.5, 0.3, /* second sample */ 0.6, 0.1, 0.3];
/// assert_eq!(ssl_eval::topk_accuracy(&scores, &[2, 0], 3, 1)?, 0.5);
/// assert_eq!(ssl_eval::topk_accuracy(&scores, &[2, 0], 3, 2)?, 1.0);
/// # Ok::<(), ssl_eval::Error>(())
/// ```
pub fn topk_accuracy(scores: &[f64], labels: &[u32], num_classes: usize, k: usize) -> Result<f64> {
    if labels.is_empty() {
        return Err(Error::Empty);
    }
    if k < 1 || k > num_classes {
        return Err(Error::Config {
            field: "k",
            value: k.to_string(),
            allowed: "1 to the number of classes",
        });
    }
    check_size("number of scores", scores.len(), labels.len() * num_classes)?;
    if let Some(index) = scores.iter().position(|score| score.is_nan()) {
        return Err(Error::NonFinite {
            row: index / num_classes,
            column: index % num_classes,
            value: f64::NAN,
        });
    }
    let mut hits = 0;
    for (row, (scores, &label)) in scores.chunks_exact(num_classes).zip(labels).enumerate() {
        let Some(&own) = scores.get(label as usize) else {
            return Err(Error::Label { row, label, num_classes });
        };
        let before = scores
            .iter()
            .enumerate()
            .filter(|&(class, &score)| score > own || (score == own && class < label as usize));
        hits += usize::from(before.count() < k);
    }
    Ok(hits as f64 / labels.len() as f64)
}

/// The class of the highest score, the lower one of equals.
pub(crate) fn best_class(scores: &[f64]) -> u32 {
    let mut best = 0;
    for class in 1..scores.len() {
        if scores[class] > scores[best] {
            best = class;
        }
    }
    best as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_scores_go_to_the_lower_class() {
        assert_eq!(best_class(&[1.0, 3.0, 3.0, 2.0]), 1);
        assert_eq!(topk_accuracy(&[1.0, 1.0, 1.0], &[0], 3, 1).unwrap(), 1.0);
        assert_eq!(topk_accuracy(&[1.0, 1.0, 1.0], &[1], 3, 1).unwrap(), 0.0);
        assert_eq!(topk_accuracy(&[1.0, 1.0, 1.0], &[1], 3, 2).unwrap(), 1.0);
    }

    #[test]
    fn bad_input_is_refused() {
        assert!(matches!(accuracy(&[], &[]), Err(Error::Empty)));
        assert!(matches!(accuracy(&[1], &[1, 2]), Err(Error::Size { found: 1, expected: 2, .. })));
        assert!(matches!(topk_accuracy(&[], &[], 2, 1), Err(Error::Empty)));
        assert!(matches!(topk_accuracy(&[0.5, 0.5], &[0], 2, 0), Err(Error::Config { field: "k", .. })));
        assert!(matches!(topk_accuracy(&[0.5, 0.5], &[0], 2, 3), Err(Error::Config { field: "k", .. })));
        assert!(matches!(
            topk_accuracy(&[0.5; 3], &[0], 2, 1),
            Err(Error::Size { found: 3, expected: 2, .. })
        ));
        assert!(matches!(topk_accuracy(&[0.5, 0.5], &[2], 2, 1), Err(Error::Label { row: 0, label: 2, .. })));
        let nan = topk_accuracy(&[0.5, 0.5, f64::NAN, 0.5], &[0, 0], 2, 1);
        assert!(matches!(nan, Err(Error::NonFinite { row: 1, column: 0, .. })));
    }
}
