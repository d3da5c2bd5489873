//! Clusters of features by k-means.

use candle_core::Tensor;
use rand_core::RngCore;
use rayon::prelude::*;

use crate::draw::{below, uniform};
use crate::rows::{Rows, squared_distance};
use crate::{Error, Result};

/// Settings of k-means.
#[derive(Clone, Debug, PartialEq)]
pub struct KMeansConfig {
    /// The number of starts, of which the best end is taken, at least 1.
    pub restarts: usize,
    /// A start is given up after so many assignments, at least 1.
    pub max_rounds: usize,
}

impl Default for KMeansConfig {
    fn default() -> Self {
        Self { restarts: 10, max_rounds: 300 }
    }
}

/// What k-means has found.
#[derive(Clone, Debug, PartialEq)]
pub struct KMeans {
    /// The cluster of each row, below k.
    pub clusters: Vec<u32>,
    /// The centre of each cluster, `(k, D)` row-major.
    pub centres: Vec<f64>,
    /// The sum of squared distances of rows from their centres.
    pub inertia: f64,
    /// Assignments of rows to centres until nothing changed, or as many as were allowed.
    pub rounds: usize,
}

/// Clusters of rows around `k` centres, by Lloyd's algorithm; the least inertia of several starts.
///
/// A start is that of k-means++ (Arthur & Vassilvitskii, 2007): the next centre is a row drawn in proportion to its squared
/// distance from those there are. A centre without rows moves to the row that is farthest from its own centre.
/// [`adjusted_rand_index`](crate::adjusted_rand_index) and its kin compare the clusters with labels.
///
/// # Shapes
/// `rows`: `(N, D)`, N at least `k`.
///
/// # Errors
/// If there are less rows than centres, a value is not finite, or a setting is out of range.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use rand_chacha::ChaCha8Rng;
/// use rand_core::SeedableRng;
/// use ssl_eval::{KMeansConfig, k_means};
///
/// let rows = Tensor::new(&[[0f32], [10.], [2.], [12.]], &Device::Cpu)?;
/// let fit = k_means(&rows, 2, &KMeansConfig::default(), &mut ChaCha8Rng::seed_from_u64(0))?;
/// assert_eq!(fit.inertia, 4.0);
/// assert!(fit.clusters[0] == fit.clusters[2] && fit.clusters[0] != fit.clusters[1]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn k_means(rows: &Tensor, k: usize, config: &KMeansConfig, rng: &mut dyn RngCore) -> Result<KMeans> {
    let rows = Rows::read(rows)?;
    if !(1..=rows.count()).contains(&k) {
        return Err(Error::Config { field: "k", value: k.to_string(), allowed: "1 to the number of rows" });
    }
    for (field, value) in [("restarts", config.restarts), ("max_rounds", config.max_rounds)] {
        if value == 0 {
            return Err(Error::Config { field, value: value.to_string(), allowed: "at least 1" });
        }
    }
    let mut best = lloyd(&rows, seeds(&rows, k, rng), config.max_rounds);
    for _ in 1..config.restarts {
        let fit = lloyd(&rows, seeds(&rows, k, rng), config.max_rounds);
        if fit.inertia < best.inertia {
            best = fit;
        }
    }
    Ok(best)
}

/// Rows to start from, `(k, D)`.
fn seeds(rows: &Rows, k: usize, rng: &mut dyn RngCore) -> Vec<f64> {
    let first = rows.row(below(rng, rows.count()));
    let mut centres = first.to_vec();
    let mut nearest: Vec<f64> = rows.iter().map(|row| squared_distance(row, first)).collect();
    for _ in 1..k {
        let drawn = uniform(rng) * nearest.iter().sum::<f64>();
        let mut sum = 0.0;
        let next = nearest.iter().position(|distance| {
            sum += distance;
            sum > drawn
        });
        // Where all rows lie on centres the first will do: such a centre gets no rows.
        let next = rows.row(next.unwrap_or(0));
        centres.extend_from_slice(next);
        for (distance, row) in nearest.iter_mut().zip(rows.iter()) {
            *distance = distance.min(squared_distance(row, next));
        }
    }
    centres
}

fn lloyd(rows: &Rows, centres: Vec<f64>, max_rounds: usize) -> KMeans {
    let (mut fit, mut distances) = assign(rows, centres);
    while fit.rounds < max_rounds {
        let (mut next, next_distances) = assign(rows, means(rows, &fit, &distances));
        next.rounds += fit.rounds;
        let settled = next.clusters == fit.clusters;
        (fit, distances) = (next, next_distances);
        if settled {
            break;
        }
    }
    fit
}

/// Each row with the centre that is nearest, the first of equals, and its squared distance from it.
fn assign(rows: &Rows, centres: Vec<f64>) -> (KMeans, Vec<f64>) {
    let nearest = |row: &[f64]| {
        let mut best = (0, f64::INFINITY);
        for (cluster, centre) in (0..).zip(centres.chunks_exact(rows.dim())) {
            let distance = squared_distance(row, centre);
            if distance < best.1 {
                best = (cluster, distance);
            }
        }
        best
    };
    let (clusters, distances): (Vec<u32>, Vec<f64>) = rows.par_rows().map(nearest).unzip();
    let inertia = distances.iter().sum();
    (KMeans { clusters, centres, inertia, rounds: 1 }, distances)
}

/// The mean of the rows of each cluster; a cluster without rows gets the farthest row that no other such cluster has.
fn means(rows: &Rows, fit: &KMeans, distances: &[f64]) -> Vec<f64> {
    let dim = rows.dim();
    let (mut sums, mut counts) = (vec![0.0; fit.centres.len()], vec![0usize; fit.centres.len() / dim]);
    for (row, &cluster) in rows.iter().zip(&fit.clusters) {
        counts[cluster as usize] += 1;
        let sum = &mut sums[cluster as usize * dim..][..dim];
        sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
    }
    let mut farthest: Vec<usize> = Vec::new();
    if counts.contains(&0) {
        farthest.extend(0..rows.count());
        farthest.sort_by(|a, b| distances[*a].total_cmp(&distances[*b]).then(b.cmp(a)));
    }
    for (sum, count) in sums.chunks_exact_mut(dim).zip(counts) {
        match farthest.pop_if(|_| count == 0) {
            Some(row) => sum.copy_from_slice(rows.row(row)),
            None => sum.iter_mut().for_each(|value| *value /= count as f64),
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    use super::*;

    fn fit(rows: &[f64], k: usize, config: &KMeansConfig) -> Result<KMeans> {
        let rows = Tensor::from_slice(rows, (rows.len(), 1), &Device::Cpu).unwrap();
        k_means(&rows, k, config, &mut ChaCha8Rng::seed_from_u64(1))
    }

    #[test]
    fn centres_are_the_means_of_their_rows() {
        let found = fit(&[1.0, 2.0, 3.0, 10.0, 12.0, 50.0], 3, &KMeansConfig::default()).unwrap();
        let mut centres = found.centres.clone();
        centres.sort_by(f64::total_cmp);
        assert_eq!((centres, found.inertia), (vec![2.0, 11.0, 50.0], 4.0));
    }

    #[test]
    fn a_centre_without_rows_moves_to_the_farthest_row() {
        let rows = Rows::new(vec![0.0, 1.0, 2.0, 9.0], 1).unwrap();
        let found = lloyd(&rows, vec![1.0, 100.0, 100.0], 10);
        assert_eq!(found.centres.iter().filter(|centre| **centre == 9.0).count(), 1);
        assert_eq!(found.inertia, 0.5);
    }

    #[test]
    fn as_many_centres_as_rows_and_equal_rows_end() {
        let config = KMeansConfig::default();
        assert_eq!(fit(&[3.0, 1.0, 2.0], 3, &config).unwrap().inertia, 0.0);
        let equal = fit(&[5.0; 4], 3, &config).unwrap();
        assert_eq!((equal.inertia, equal.clusters), (0.0, vec![0; 4]));
        assert_eq!(fit(&[0.0, 1.0, 5.0], 1, &KMeansConfig { max_rounds: 1, ..config }).unwrap().rounds, 1);
    }

    #[test]
    fn bad_input_is_refused() {
        let config = KMeansConfig::default();
        for k in [0, 3] {
            let error = fit(&[1.0, 2.0], k, &config).unwrap_err().to_string();
            assert!(error.contains("allowed is 1 to the number of rows"), "{error}");
        }
        assert!(fit(&[1.0, f64::NAN], 1, &config).is_err());
        for config in
            [KMeansConfig { restarts: 0, max_rounds: 1 }, KMeansConfig { restarts: 1, max_rounds: 0 }]
        {
            assert!(fit(&[1.0], 1, &config).unwrap_err().to_string().contains("is 0, allowed is at least 1"));
        }
    }
}
