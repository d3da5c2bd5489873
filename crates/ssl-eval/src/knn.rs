//! Weighted k-nearest-neighbour classification of frozen features, exact, by brute force.
//!
//! Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", 2018, section 3.4
//! (<https://arxiv.org/abs/1805.01978>); k = 20 is the value of DINO (<https://arxiv.org/abs/2104.14294>).

use std::cmp::Ordering;

use candle_core::{Device, Storage, Tensor, bail};
use rayon::prelude::*;

use crate::accuracy::{accuracy, best_class};
use crate::{Error, Features, Result};

/// A tile of similarities has this many queries and bank rows: 512 KiB, small enough for the cache of one core.
const QUERY_TILE: usize = 128;
const BANK_TILE: usize = 1024;

/// Similarities that are looked at together.
const BLOCK: usize = 64;

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

/// A row of the bank, with its similarity to a query as the matrix multiplication has it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    pub(crate) similarity: f32,
    pub(crate) row: usize,
}

impl Candidate {
    pub(crate) fn nearest_first(&self, other: &Self) -> Ordering {
        other.similarity.total_cmp(&self.similarity).then(self.row.cmp(&other.row))
    }
}

/// The `k` best of the neighbours seen so far. Rows must come in ascending order.
#[derive(Clone, Debug)]
struct TopK {
    k: usize,
    floor: f32,
    found: Vec<Candidate>,
}

impl TopK {
    fn new(k: usize) -> Self {
        Self { k, floor: f32::NEG_INFINITY, found: Vec::new() }
    }

    fn extend(&mut self, first_row: usize, similarities: &[f32]) {
        for (block, similarities) in similarities.chunks(BLOCK).enumerate() {
            // Nearly all blocks are passed over, which takes a few vector instructions each.
            if similarities.iter().fold(false, |any, similarity| any | (*similarity > self.floor)) {
                self.extend_block(first_row + block * BLOCK, similarities);
            }
        }
    }

    fn extend_block(&mut self, first_row: usize, similarities: &[f32]) {
        for (offset, &similarity) in similarities.iter().enumerate() {
            // A row as similar as the k-th comes after it, so it never replaces it.
            if similarity > self.floor {
                self.found.push(Candidate { similarity, row: first_row + offset });
                if self.found.len() == 2 * self.k.max(16) {
                    self.prune();
                }
            }
        }
    }

    fn prune(&mut self) {
        if self.found.len() > self.k {
            let (_, kth, _) = self.found.select_nth_unstable_by(self.k - 1, Candidate::nearest_first);
            self.floor = kth.similarity;
            self.found.truncate(self.k);
        }
    }

    /// The rows, nearest first.
    fn into_rows(mut self) -> Vec<usize> {
        self.prune();
        self.found.sort_unstable_by(Candidate::nearest_first);
        self.found.iter().map(|candidate| candidate.row).collect()
    }
}

/// The `k` nearest bank rows of each query, nearest first.
pub(crate) fn nearest(bank: &Features, queries: &Features, k: usize) -> Result<Vec<Vec<usize>>> {
    let tile = |first| unit_rows(queries, first, QUERY_TILE);
    let query_tiles = (0..queries.rows()).step_by(QUERY_TILE).map(tile).collect::<Result<Vec<_>>>()?;
    let mut best = vec![TopK::new(k); queries.rows()];
    for first_row in (0..bank.rows()).step_by(BANK_TILE) {
        let bank_tile = unit_rows(bank, first_row, BANK_TILE)?.t()?.contiguous()?; // (D, rows)
        query_tiles.par_iter().zip(best.par_chunks_mut(QUERY_TILE)).try_for_each(|(queries, best)| {
            let similarities = queries.matmul(&bank_tile)?; // (queries, rows)
            let (storage, _) = similarities.storage_and_layout();
            let Storage::Cpu(storage) = &*storage else { bail!("features are on the CPU") };
            let rows = storage.as_slice::<f32>()?.chunks_exact(bank_tile.dim(1)?);
            best.iter_mut().zip(rows).for_each(|(best, row)| best.extend(first_row, row));
            Ok::<_, candle_core::Error>(())
        })?;
    }
    Ok(best.into_par_iter().map(TopK::into_rows).collect())
}

/// Up to `count` rows from the row `first` on as a tensor `(rows, D)` of rows of length 1; a row of zeros stays one.
pub(crate) fn unit_rows(features: &Features, first: usize, count: usize) -> Result<Tensor> {
    let (dim, rows) = (features.dim(), count.min(features.rows() - first));
    let mut data = features.data()[first * dim..(first + rows) * dim].to_vec();
    data.par_chunks_exact_mut(dim).for_each(|row| {
        let norm = dot(row, row).sqrt();
        if norm > 0.0 {
            row.iter_mut().for_each(|value| *value = (f64::from(*value) / norm) as f32);
        }
    });
    Ok(Tensor::from_vec(data, (rows, dim), &Device::Cpu)?)
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

/// `Σ aᵢ bᵢ` in `f64`, in eight partial sums.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0f64; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            *sum += f64::from(*a) * f64::from(*b);
        }
    }
    sums.iter().sum()
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

    fn top_k(k: usize, similarities: &[f32]) -> Vec<usize> {
        let mut best = TopK::new(k);
        best.extend(0, similarities);
        best.into_rows()
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
