//! Mean 0 and standard deviation 1 for each feature, by the statistics of a training set.

use crate::{Features, Result};

/// The mean and (biased) standard deviation of each column.
#[derive(Debug)]
pub(crate) struct Standardizer {
    mean: Vec<f64>,
    std: Vec<f64>,
}

impl Standardizer {
    /// Measures `features`. A constant column gets a standard deviation of 1.
    pub(crate) fn fit(features: &Features) -> Self {
        // Deviations from the first row are exactly 0 in a constant column, whatever its value.
        let first = features.row(0);
        let mut sums = vec![(0.0, 0.0); features.dim()];
        for row in features.data().chunks_exact(features.dim()) {
            for ((sum, sum_of_squares), (&value, &origin)) in sums.iter_mut().zip(row.iter().zip(first)) {
                let deviation = f64::from(value) - f64::from(origin);
                *sum += deviation;
                *sum_of_squares += deviation * deviation;
            }
        }
        let n = features.rows() as f64;
        let mean = sums.iter().zip(first).map(|((sum, _), &origin)| f64::from(origin) + sum / n).collect();
        let variances = sums.iter().map(|(sum, sum_of_squares)| sum_of_squares / n - (sum / n).powi(2));
        let std = variances.map(|variance| if variance > 0.0 { variance.sqrt() } else { 1.0 }).collect();
        Self { mean, std }
    }

    /// Shifts and scales each column.
    ///
    /// # Errors
    /// If a value leaves the range of `f32`.
    pub(crate) fn apply(&self, features: &Features) -> Result<Features> {
        let mut data = features.data().to_vec();
        for row in data.chunks_exact_mut(features.dim()) {
            for (value, (mean, std)) in row.iter_mut().zip(self.mean.iter().zip(&self.std)) {
                *value = ((f64::from(*value) - mean) / std) as f32;
            }
        }
        Features::new(data, features.dim(), features.labels().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_standardised_and_constants_become_zero() {
        let train = Features::new(vec![1.0, 0.1, 3.0, 0.1, 5.0, 0.1], 2, vec![0, 1, 2]).unwrap();
        let standardizer = Standardizer::fit(&train);
        let step = 1.5f32.sqrt();
        assert_eq!(standardizer.apply(&train).unwrap().data(), [-step, 0.0, 0.0, 0.0, step, 0.0]);
        // The statistics are those of the training set; a constant column is only shifted.
        let test = Features::new(vec![3.0, 1.1], 2, vec![0]).unwrap();
        assert_eq!(standardizer.apply(&test).unwrap().data(), [0.0, 1.0]);
    }
}
