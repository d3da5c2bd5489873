//! Covariances, shrunk or not, and what a Gaussian of such a covariance says: entropy and total correlation.

use std::f64::consts::{E, TAU};

use candle_core::Tensor;

use crate::cholesky::Cholesky;
use crate::features::check_size;
use crate::rows::Rows;
use crate::{Error, Result};

/// What two entries of a symmetric matrix may differ by, as a part of the largest entry.
const ASYMMETRY: f64 = 1e-9;

/// How far a sample covariance `S` is drawn towards a multiple of the identity, `(1 − w) S + w tr(S) / D · I`.
///
/// The identity has a scale, so features should be of like scale, and so should two views that are shrunk together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shrinkage {
    /// Not at all.
    None,
    /// By this weight, in [0, 1].
    Fixed(f64),
    /// By the weight that is best for the squared error, estimated from the rows themselves (Ledoit & Wolf, "A
    /// well-conditioned estimator for large-dimensional covariance matrices", 2004), as scikit-learn's `ledoit_wolf`.
    LedoitWolf,
}

/// The covariance of D features.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use ssl_eval::{Covariance, Shrinkage};
///
/// let rows = Tensor::new(&[[0f64, 0.], [2., 1.], [4., 5.]], &Device::Cpu)?;
/// let sample = Covariance::of(&rows, Shrinkage::None)?;
/// assert_eq!(sample.values(), [4.0, 5.0, 5.0, 7.0]);
/// // ½ log(4 · 7 / (4 · 7 − 5 · 5))
/// assert!((sample.total_correlation()? - 0.5 * (28f64 / 3.0).ln()).abs() < 1e-12);
/// let diagonal = Covariance::of(&rows, Shrinkage::Fixed(1.0))?;
/// assert_eq!((diagonal.values(), diagonal.total_correlation()?), (&[5.5, 0.0, 0.0, 5.5][..], 0.0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Covariance {
    values: Vec<f64>,
    size: usize,
    shrinkage: f64,
}

impl Covariance {
    /// The covariance of rows `(N, D)`: centred, divided by `N − 1`, then shrunk.
    ///
    /// # Errors
    /// If there are less than two rows, a value is not finite, or a fixed weight is not in [0, 1].
    pub fn of(rows: &Tensor, shrinkage: Shrinkage) -> Result<Self> {
        Self::of_rows(Rows::read_two(rows)?, shrinkage)
    }

    pub(crate) fn of_rows(rows: Rows, shrinkage: Shrinkage) -> Result<Self> {
        let (degrees, size) = (rows.count() as f64 - 1.0, rows.dim());
        let rows = rows.centred();
        let products = rows.products()?;
        let weight = match shrinkage {
            Shrinkage::None => 0.0,
            Shrinkage::Fixed(weight) if (0.0..=1.0).contains(&weight) => weight,
            Shrinkage::Fixed(weight) => {
                let value = weight.to_string();
                return Err(Error::Config { field: "shrinkage", value, allowed: "0 to 1" });
            }
            Shrinkage::LedoitWolf => ledoit_wolf(&rows, &products),
        };
        let identity = weight * trace(&products, size) / size as f64;
        let mut values: Vec<f64> = products.iter().map(|product| (1.0 - weight) * product).collect();
        values.iter_mut().step_by(size + 1).for_each(|value| *value += identity);
        values.iter_mut().for_each(|value| *value /= degrees);
        Ok(Self { values: Rows::new(values, size)?.into_values(), size, shrinkage: weight })
    }

    /// A covariance that is known, `(D, D)`.
    ///
    /// # Errors
    /// If the matrix is empty, not square, not finite or not symmetric.
    pub fn new(matrix: &Tensor) -> Result<Self> {
        let rows = Rows::read(matrix)?;
        let size = rows.dim();
        check_size("number of rows of the covariance", rows.count(), size)?;
        let values = rows.into_values();
        let largest = values.iter().fold(0.0, |max: f64, value| max.max(value.abs()));
        let difference = |at: usize| (values[at] - values[at % size * size + at / size]).abs();
        let asymmetry = (0..values.len()).map(difference).fold(0.0, f64::max);
        if asymmetry > ASYMMETRY * largest {
            let (field, allowed) = ("asymmetry of the covariance", "at most 1e-9 of its largest entry");
            return Err(Error::Config { field, value: asymmetry.to_string(), allowed });
        }
        Ok(Self { values, size, shrinkage: 0.0 })
    }

    /// The number of features, D.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The matrix, `(D, D)` row-major.
    pub fn values(&self) -> &[f64] {
        &self.values
    }

    /// The weight of the identity, in [0, 1].
    pub fn shrinkage(&self) -> f64 {
        self.shrinkage
    }

    /// The entropy of a Gaussian of this covariance, `½ log det(2πe Σ)` in nats. It is an upper bound for any other
    /// distribution of this covariance, and negative where that is narrow.
    ///
    /// From N rows without shrinkage it is too low by about `D (D + 1) / (4N)`.
    ///
    /// # Errors
    /// If the covariance is singular.
    pub fn entropy(&self) -> Result<f64> {
        Ok(0.5 * (self.size as f64 * (TAU * E).ln() + self.factor()?.log_det()))
    }

    /// The total correlation of a Gaussian of this covariance, `Σ ½ log σⱼ² − ½ log det Σ` in nats: what is told twice
    /// because features depend on each other, 0 if they do not.
    ///
    /// From N rows without shrinkage it is too high by about `D (D − 1) / (4N)`.
    ///
    /// # Errors
    /// If the covariance is singular.
    pub fn total_correlation(&self) -> Result<f64> {
        let variances = self.values.iter().step_by(self.size + 1);
        Ok(0.5 * (variances.map(|variance| variance.ln()).sum::<f64>() - self.factor()?.log_det()))
    }

    /// The covariances of the features `rows` with the features `columns`.
    pub(crate) fn block(&self, rows: std::ops::Range<usize>, columns: std::ops::Range<usize>) -> Vec<f64> {
        rows.flat_map(|row| &self.values[row * self.size..][columns.clone()]).copied().collect()
    }

    fn factor(&self) -> Result<Cholesky> {
        Cholesky::definite(self.values.clone(), self.size).ok_or(Error::Singular { what: "the features" })
    }
}

/// The weight of Ledoit and Wolf for centred rows `X` with `products = XᵀX`; both in units of the paper times D.
fn ledoit_wolf(rows: &Rows, products: &[f64]) -> f64 {
    let (n, dim) = (rows.count() as f64, rows.dim() as f64);
    let squares: f64 = products.iter().map(|product| (product / n).powi(2)).sum();
    let trace = trace(products, rows.dim()) / n;
    let fourth_powers = rows.iter().map(|row| row.iter().map(|value| value * value).sum::<f64>().powi(2));
    let error = (fourth_powers.sum::<f64>() / n - squares) / n;
    let distance = squares - trace * trace / dim;
    if error > 0.0 && distance > 0.0 { (error / distance).min(1.0) } else { 0.0 }
}

fn trace(matrix: &[f64], size: usize) -> f64 {
    matrix.iter().step_by(size + 1).sum()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn entropy_of_known_variances() {
        let diagonal = Tensor::new(&[[4f64, 0.], [0., 0.25]], &Device::Cpu).unwrap();
        let covariance = Covariance::new(&diagonal).unwrap();
        // log(2πe) for two unit variances; 4 and 1/4 make up for each other.
        assert!((covariance.entropy().unwrap() - (TAU * E).ln()).abs() < 1e-12);
        assert_eq!(covariance.total_correlation().unwrap(), 0.0);
    }

    #[test]
    fn bad_input_is_refused() {
        let tensor = |values: [[f64; 2]; 2]| Tensor::new(&values, &Device::Cpu).unwrap();
        let error = |matrix: &Tensor| Covariance::new(matrix).unwrap_err().to_string();
        assert!(error(&tensor([[1.0, 0.75], [0.25, 1.0]])).contains("asymmetry of the covariance is 0.5"));
        assert!(error(&tensor([[1.0, f64::NAN], [0.4, 1.0]])).contains("expected a finite number"));
        assert!(error(&tensor([[1.0, 0.0]; 2]).narrow(0, 0, 1).unwrap()).contains("is 1, expected 2"));
        let rows = tensor([[1.0, 2.0], [2.0, 5.0]]);
        for weight in [-0.1, 1.1, f64::NAN] {
            let error = Covariance::of(&rows, Shrinkage::Fixed(weight)).unwrap_err();
            assert!(error.to_string().contains("allowed is 0 to 1"), "{error}");
        }
        // Two rows have one direction.
        let line = Covariance::of(&rows, Shrinkage::None).unwrap();
        assert!(matches!(line.entropy(), Err(Error::Singular { .. })));
        assert!(matches!(line.total_correlation(), Err(Error::Singular { .. })));
        assert!(Covariance::of(&rows, Shrinkage::Fixed(0.1)).unwrap().entropy().is_ok());
    }
}
