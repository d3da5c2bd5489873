//! Weighted k-nearest-neighbour classification of frozen features, exact, by brute force.
//!
//! Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", 2018, section 3.4
//! (<https://arxiv.org/abs/1805.01978>); k = 20 is the value of DINO (<https://arxiv.org/abs/2104.14294>).

use std::cmp::Ordering;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use crate::accuracy::{accuracy, best_class};
use crate::{Error, Features, Result};

/// A tile of similarities has this many queries and bank rows: 8 MiB, small enough to stay in a cache.
const QUERY_TILE: usize = 512;
const BANK_TILE: usize = 4096;

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
/// of the queries are not read. Memory beyond the features and the result is a few MiB.
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
    for neighbours in nearest(bank, queries, config.k.min(bank.rows()))? {
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

#[derive(Clone, Copy, Debug)]
struct Neighbour {
    similarity: f32,
    row: usize,
}

impl Neighbour {
    fn nearest_first(&self, other: &Self) -> Ordering {
        other.similarity.total_cmp(&self.similarity).then(self.row.cmp(&other.row))
    }
}

/// The `k` best of the neighbours seen so far. Rows must come in ascending order.
#[derive(Clone, Debug)]
struct TopK {
    k: usize,
    floor: f32,
    found: Vec<Neighbour>,
}

impl TopK {
    fn new(k: usize) -> Self {
        Self { k, floor: f32::NEG_INFINITY, found: Vec::new() }
    }

    fn extend(&mut self, first_row: usize, similarities: &[f32]) {
        for (offset, &similarity) in similarities.iter().enumerate() {
            // A row as similar as the k-th comes after it, so it never replaces it.
            if similarity > self.floor {
                self.found.push(Neighbour { similarity, row: first_row + offset });
                if self.found.len() == 2 * self.k.max(16) {
                    self.prune();
                }
            }
        }
    }

    fn prune(&mut self) {
        if self.found.len() > self.k {
            let (_, kth, _) = self.found.select_nth_unstable_by(self.k - 1, Neighbour::nearest_first);
            self.floor = kth.similarity;
            self.found.truncate(self.k);
        }
    }

    fn into_sorted(mut self) -> Vec<Neighbour> {
        self.prune();
        self.found.sort_unstable_by(Neighbour::nearest_first);
        self.found
    }
}

/// The `k` nearest bank rows of each query, nearest first.
fn nearest(bank: &Features, queries: &Features, k: usize) -> Result<Vec<Vec<Neighbour>>> {
    let (bank_size, query_count) = (bank.rows(), queries.rows());
    let (bank, queries) = (unit_rows(bank)?, unit_rows(queries)?);
    let mut result = Vec::with_capacity(query_count);
    for first_query in (0..query_count).step_by(QUERY_TILE) {
        let tile_queries = QUERY_TILE.min(query_count - first_query);
        let queries = queries.narrow(0, first_query, tile_queries)?;
        let mut best = vec![TopK::new(k); tile_queries];
        for first_row in (0..bank_size).step_by(BANK_TILE) {
            let tile_rows = BANK_TILE.min(bank_size - first_row);
            let similarities = queries.matmul(&bank.narrow(0, first_row, tile_rows)?.t()?)?;
            let similarities = similarities.flatten_all()?.to_vec1::<f32>()?;
            best.par_iter_mut()
                .zip(similarities.par_chunks_exact(tile_rows))
                .for_each(|(best, similarities)| best.extend(first_row, similarities));
        }
        result.par_extend(best.into_par_iter().map(TopK::into_sorted));
    }
    Ok(result)
}

/// The features as a tensor `(N, D)` of rows of length 1; a row of zeros stays one.
fn unit_rows(features: &Features) -> Result<Tensor> {
    let mut data = features.data().to_vec();
    data.par_chunks_exact_mut(features.dim()).for_each(|row| {
        let norm = row.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
        if norm > 0.0 {
            row.iter_mut().for_each(|value| *value = (f64::from(*value) / norm) as f32);
        }
    });
    Ok(Tensor::from_vec(data, (features.rows(), features.dim()), &Device::Cpu)?)
}

/// The winning class and the score of each class. `neighbours` are sorted and not empty.
fn vote(neighbours: &[Neighbour], labels: &[u32], num_classes: usize, temperature: f64) -> (u32, Vec<f64>) {
    // Weights relative to the nearest neighbour cannot all overflow or vanish, however low the temperature.
    let nearest = f64::from(neighbours[0].similarity);
    let mut scores = vec![0.0; num_classes];
    for neighbour in neighbours {
        let class = labels[neighbour.row] as usize;
        scores[class] += ((f64::from(neighbour.similarity) - nearest) / temperature).exp();
    }
    let winner = best_class(&scores);
    let scale = (nearest / temperature).exp();
    scores.iter_mut().filter(|score| **score > 0.0).for_each(|score| *score *= scale);
    (winner, scores)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn top_k(k: usize, similarities: &[f32]) -> Vec<usize> {
        let mut best = TopK::new(k);
        best.extend(0, similarities);
        best.into_sorted().iter().map(|neighbour| neighbour.row).collect()
    }

    #[test]
    fn ties_go_to_the_earlier_row() {
        assert_eq!(top_k(2, &[0.5, 0.7, 0.7, 0.7]), [1, 2]);
        assert_eq!(top_k(3, &[0.5; 200]), [0, 1, 2]);
    }

    #[test]
    fn top_k_equals_a_full_sort() {
        // Steps of 37 modulo 101 give a fixed order with many ties.
        let similarities: Vec<f32> = (0..5000).map(|i| ((i * 37) % 101) as f32 / 101.0).collect();
        let mut rows: Vec<usize> = (0..similarities.len()).collect();
        rows.sort_by(|&a, &b| similarities[b].total_cmp(&similarities[a]).then(a.cmp(&b)));
        for k in [1, 20, 200, 5000] {
            assert_eq!(top_k(k, &similarities), rows[..k]);
        }
    }

    #[test]
    fn a_low_temperature_still_has_a_winner() {
        let neighbours = [Neighbour { similarity: 0.9, row: 0 }, Neighbour { similarity: 0.8, row: 1 }];
        let (winner, scores) = vote(&neighbours, &[1, 0], 3, 1e-6);
        assert_eq!(winner, 1);
        assert!(scores.iter().all(|score| !score.is_nan()), "{scores:?}");
    }
}
