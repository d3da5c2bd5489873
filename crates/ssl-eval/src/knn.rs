//! Weighted k-nearest-neighbour classification of frozen features, exact, by brute force.
//!
//! Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", 2018, section 3.4
//! (<https://arxiv.org/abs/1805.01978>); k = 20 is the value of DINO (<https://arxiv.org/abs/2104.14294>).

use rayon::prelude::*;

use crate::accuracy::{accuracy, best_class};
use crate::nearest::{dot, nearest};
use crate::{Error, Features, Result};

/// Settings of the kNN classifier.
#[derive(Clone, Debug, PartialEq)]
pub struct KnnConfig {
    /// The number of neighbours that vote, at least 1; clipped to the size of the bank.
    pub k: usize,
    /// A neighbour of cosine similarity `s` votes with weight `exp(s / temperature)`; above 0.
    pub temperature: f64,
}

impl Default for KnnConfig {
    fn default() -> Self {
        Self { k: 20, temperature: 0.07 }
    }
}

impl KnnConfig {
    /// Checks both settings.
    ///
    /// # Errors
    /// Names the setting, its value and the allowed range.
    pub fn check(&self) -> Result<()> {
        if self.k == 0 {
            return Err(Error::Config { field: "k", value: self.k.to_string(), allowed: "at least 1" });
        }
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            let value = self.temperature.to_string();
            return Err(Error::Config { field: "temperature", value, allowed: "above 0 and finite" });
        }
        Ok(())
    }
}

/// What the neighbours of each query voted for.
#[derive(Clone, Debug, PartialEq)]
pub struct KnnPrediction {
    /// The class of the highest score of each query; the lower one of equals.
    pub classes: Vec<u32>,
    /// `(M, num_classes)` row-major: the sum of `exp(s / temperature)` over the neighbours of each class.
    pub scores: Vec<f64>,
}

/// Classifies each query by its `k` nearest neighbours of the bank.
///
/// Rows are L2-normalised and compared by cosine; of equally similar bank rows the earlier one is nearer. The labels
/// of the queries are not read. Neighbours are found in `f32`; their votes have similarities computed in `f64`.
/// Memory beyond the features and the result is a copy of the queries and a few MiB.
///
/// # Errors
/// If `k` is 0, the temperature is not above 0, the dimensions differ, or a label of the bank is not below
/// `num_classes`.
///
/// # Example
/// ```
/// use ssl_eval::{Features, KnnConfig, knn_predict};
///
/// let bank = Features::new(vec![1.0, 0.0, 0.0, 1.0, 0.6, 0.8], 2, vec![0, 1, 1])?;
/// let query = Features::new(vec![2.0, 0.0], 2, vec![0])?;
/// let prediction = knn_predict(&bank, &query, 2, &KnnConfig { k: 2, temperature: 1.0 })?;
/// assert_eq!(prediction.classes, [0]);
/// assert!((prediction.scores[0] - 1f64.exp()).abs() < 1e-6);
/// assert!((prediction.scores[1] - 0.6f64.exp()).abs() < 1e-6);
/// # Ok::<(), ssl_eval::Error>(())
/// ```
pub fn knn_predict(
    bank: &Features,
    queries: &Features,
    num_classes: usize,
    config: &KnnConfig,
) -> Result<KnnPrediction> {
    config.check()?;
    bank.check_labels(num_classes)?;
    queries.check_dim(bank.dim())?;
    let mut classes = Vec::with_capacity(queries.rows());
    let mut scores = Vec::with_capacity(queries.rows() * num_classes);
    let rows = nearest(bank, queries, config.k.min(bank.rows()))?;
    for neighbours in similarities(bank, queries, &rows) {
        let (class, votes) = vote(&neighbours, bank.labels(), num_classes, config.temperature);
        classes.push(class);
        scores.extend(votes);
    }
    Ok(KnnPrediction { classes, scores })
}

/// The fraction of test samples that their neighbours in the training set classify rightly.
///
/// # Errors
/// Those of [`knn_predict`], or if a label of the test set is not below `num_classes`.
pub fn knn_accuracy(
    train: &Features,
    test: &Features,
    num_classes: usize,
    config: &KnnConfig,
) -> Result<f64> {
    test.check_labels(num_classes)?;
    accuracy(&knn_predict(train, test, num_classes, config)?.classes, test.labels())
}

/// A row of the bank with its cosine similarity to a query.
#[derive(Clone, Copy, Debug)]
struct Neighbour {
    similarity: f64,
    row: usize,
}

/// The neighbours of each query, given their rows.
fn similarities(bank: &Features, queries: &Features, rows: &[Vec<usize>]) -> Vec<Vec<Neighbour>> {
    let cosine = |a: &[f32], b: &[f32]| {
        let norms = (dot(a, a) * dot(b, b)).sqrt();
        if norms > 0.0 { dot(a, b) / norms } else { 0.0 }
    };
    let neighbours = |(query, rows): (usize, &Vec<usize>)| {
        let query = queries.row(query);
        rows.iter().map(|&row| Neighbour { similarity: cosine(query, bank.row(row)), row }).collect()
    };
    rows.par_iter().enumerate().map(neighbours).collect()
}

/// The winning class and the score of each class. There is at least one neighbour.
fn vote(neighbours: &[Neighbour], labels: &[u32], num_classes: usize, temperature: f64) -> (u32, Vec<f64>) {
    // Weights relative to the nearest neighbour cannot all overflow or vanish, however low the temperature.
    let nearest = neighbours.iter().map(|n| n.similarity).fold(f64::NEG_INFINITY, f64::max);
    let mut scores = vec![0.0; num_classes];
    for neighbour in neighbours {
        let class = labels[neighbour.row] as usize;
        scores[class] += ((neighbour.similarity - nearest) / temperature).exp();
    }
    let winner = best_class(&scores);
    let scale = (nearest / temperature).exp();
    scores.iter_mut().filter(|score| **score > 0.0).for_each(|score| *score *= scale);
    (winner, scores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_low_temperature_still_has_a_winner() {
        let neighbours = [Neighbour { similarity: 0.9, row: 0 }, Neighbour { similarity: 0.8, row: 1 }];
        let (winner, scores) = vote(&neighbours, &[1, 0], 3, 1e-6);
        assert_eq!(winner, 1);
        assert!(scores.iter().all(|score| !score.is_nan()), "{scores:?}");
    }
}
