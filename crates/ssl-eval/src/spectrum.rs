//! How many directions embeddings use: measures of the singular values of `Z` and of the eigenvalues of its covariance.
//!
//! Embeddings that have collapsed to few directions show here before they show in an accuracy. Every measure reads all
//! rows at once; `N` should be several times `D`, since fewer rows than that span fewer directions than there are.

use candle_core::Tensor;

use crate::rows::Rows;
use crate::symmetric::eigenvalues;
use crate::{Error, Result};

/// Added to every share of the singular values by RankMe.
const RANK_ME_EPSILON: f64 = 1e-7;

/// The eigenvalues, counted from 1, through which alpha-ReQ lays its line.
const ALPHA_RANGE: std::ops::RangeInclusive<usize> = 11..=100;

/// The eigenvalues of the covariance of embeddings and what they say, for several measures of the same rows.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
///
/// let rows = Tensor::new(&[[0f32, 0.], [0., 1.], [2., 0.], [2., 1.]], &Device::Cpu)?;
/// let spectrum = ssl_eval::CovarianceSpectrum::of(&rows)?;
/// assert_eq!(spectrum.participation_ratio()?, ssl_eval::participation_ratio(&rows)?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct CovarianceSpectrum {
    eigenvalues: Vec<f64>,
}

impl CovarianceSpectrum {
    /// Those of rows `(N, D)`, as [`covariance_spectrum`] has them.
    ///
    /// # Errors
    /// If there are less than two rows, or a value is not finite.
    pub fn of(rows: &Tensor) -> Result<Self> {
        let rows = Rows::read_two(rows)?;
        let degrees = rows.count() as f64 - 1.0;
        let squares = squared_singular_values(&rows.centred())?;
        Ok(Self { eigenvalues: squares.into_iter().map(|square| square / degrees).collect() })
    }

    /// The eigenvalues in descending order, `min(N, D)` values.
    pub fn eigenvalues(&self) -> &[f64] {
        &self.eigenvalues
    }

    /// As [`covariance_effective_rank`].
    ///
    /// # Errors
    /// If all rows are equal.
    pub fn effective_rank(&self) -> Result<f64> {
        exp_entropy(&self.eigenvalues, 0.0)
    }

    /// As [`participation_ratio`].
    ///
    /// # Errors
    /// If all rows are equal.
    pub fn participation_ratio(&self) -> Result<f64> {
        let shares = shares(&self.eigenvalues)?;
        Ok(1.0 / shares.iter().map(|share| share * share).sum::<f64>())
    }

    /// As [`alpha_req`].
    ///
    /// # Errors
    /// If less than 12 eigenvalues are above 0.
    pub fn alpha_req(&self) -> Result<f64> {
        let positive = self.eigenvalues.iter().filter(|value| **value > 0.0).count();
        let (first, last) = (*ALPHA_RANGE.start(), positive.min(*ALPHA_RANGE.end()));
        if last <= first {
            let (field, allowed) = ("number of eigenvalues above 0", "at least 12");
            return Err(Error::Config { field, value: positive.to_string(), allowed });
        }
        let point = |j: usize| (1.0 / j as f64, (j as f64).ln(), self.eigenvalues[j - 1].ln());
        Ok(-weighted_slope(&(first..=last).map(point).collect::<Vec<_>>()))
    }
}

/// The singular values of the rows as they are, not centred, in descending order.
///
/// They are square roots of eigenvalues of the smaller Gram matrix; those that rounding could have made are 0.
///
/// # Shapes
/// `rows`: `(N, D)`; the result has `min(N, D)` values.
///
/// # Errors
/// If there are no rows, or a value is not finite.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
///
/// let rows = Tensor::new(&[[3f32, 0.], [0., -2.], [4., 0.]], &Device::Cpu)?;
/// assert_eq!(ssl_eval::singular_values(&rows)?, [5.0, 2.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn singular_values(rows: &Tensor) -> Result<Vec<f64>> {
    let squares = squared_singular_values(&Rows::read(rows)?)?;
    Ok(squares.into_iter().map(f64::sqrt).collect())
}

/// RankMe (Garrido et al., 2022, <https://arxiv.org/abs/2210.02885>, section 3.2): `exp(−Σ pₖ log pₖ)` with
/// `pₖ = sₖ / Σ s + 1e-7` of the [`singular_values`], from 1 to `min(N, D)`.
///
/// The paper computes it on projections of 25,600 images of the data that the encoder was trained on.
///
/// # Errors
/// Those of [`singular_values`], or if all values are 0.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
///
/// let even = Tensor::new(&[[1f32, 1.], [1., -1.]], &Device::Cpu)?;
/// let collapsed = Tensor::new(&[[1f32, 2.], [2., 4.]], &Device::Cpu)?;
/// assert!((ssl_eval::rank_me(&even)? - 2.0).abs() < 1e-5);
/// assert!((ssl_eval::rank_me(&collapsed)? - 1.0).abs() < 1e-5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn rank_me(rows: &Tensor) -> Result<f64> {
    exp_entropy(&singular_values(rows)?, RANK_ME_EPSILON)
}

/// The effective rank (Roy & Vetterli, "The effective rank: a measure of effective dimensionality", 2007):
/// `exp(−Σ pₖ log pₖ)` with `pₖ = sₖ / Σ s` of the [`singular_values`], from 1 to `min(N, D)`.
///
/// # Errors
/// Those of [`singular_values`], or if all values are 0.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
///
/// let even = Tensor::new(&[[1f32, 1.], [1., -1.]], &Device::Cpu)?;
/// assert!((ssl_eval::effective_rank(&even)? - 2.0).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn effective_rank(rows: &Tensor) -> Result<f64> {
    exp_entropy(&singular_values(rows)?, 0.0)
}

/// The eigenvalues of the covariance of the rows (centred, divided by `N − 1`), in descending order.
///
/// # Shapes
/// `rows`: `(N, D)`; the result has `min(N, D)` values, beyond which all are 0.
///
/// # Errors
/// If there are less than two rows, or a value is not finite.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
///
/// let rows = Tensor::new(&[[1f32, 5.], [4., 5.], [7., 5.]], &Device::Cpu)?;
/// assert_eq!(ssl_eval::covariance_spectrum(&rows)?, [9.0, 0.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn covariance_spectrum(rows: &Tensor) -> Result<Vec<f64>> {
    Ok(CovarianceSpectrum::of(rows)?.eigenvalues)
}

/// The effective rank of the covariance: `exp(−Σ pₖ log pₖ)` with `pₖ = λₖ / Σ λ` of the [`covariance_spectrum`].
///
/// It weights directions by variance, [`effective_rank`] by deviation, so it is the lower of the two for centred rows.
///
/// # Errors
/// Those of [`covariance_spectrum`], or if all rows are equal.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
///
/// let square = Tensor::new(&[[0f32, 0.], [0., 1.], [1., 0.], [1., 1.]], &Device::Cpu)?;
/// assert!((ssl_eval::covariance_effective_rank(&square)? - 2.0).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn covariance_effective_rank(rows: &Tensor) -> Result<f64> {
    CovarianceSpectrum::of(rows)?.effective_rank()
}

/// The participation ratio `(Σ λ)² / Σ λ²` of the [`covariance_spectrum`], from 1 to `min(N − 1, D)`.
///
/// # Errors
/// Those of [`covariance_spectrum`], or if all rows are equal.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
///
/// // Variances in the ratio of 4 to 1: 5² / (4² + 1²).
/// let rectangle = Tensor::new(&[[0f32, 0.], [0., 1.], [2., 0.], [2., 1.]], &Device::Cpu)?;
/// assert!((ssl_eval::participation_ratio(&rectangle)? - 25.0 / 17.0).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn participation_ratio(rows: &Tensor) -> Result<f64> {
    CovarianceSpectrum::of(rows)?.participation_ratio()
}

/// alpha-ReQ (Agrawal et al., "alpha-ReQ: Assessing Representation Quality in Self-Supervised Learning by measuring
/// eigenspectrum decay", 2022): the exponent of `λⱼ ~ j^−α`.
///
/// As in the authors' package, the line through `(log j, log λⱼ)` is fitted by least squares with weights `1 / j` to the
/// eigenvalues 11 to 100 of the [`covariance_spectrum`], counted from 1, or to as many as are above 0. Near 1 is good,
/// larger is dominated by few directions, smaller is flat.
///
/// # Errors
/// Those of [`covariance_spectrum`], or if less than 12 eigenvalues are above 0: two points make a line.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
///
/// // Pairs of opposite rows along 20 axes, whose variances are as 1 / j.
/// let value = |row: usize, j: usize| match row / 2 == j {
///     true => (1.0 - 2.0 * (row % 2) as f64) / (j as f64 + 1.0).sqrt(),
///     false => 0.0,
/// };
/// let rows = (0..40 * 20).map(|i| value(i / 20, i % 20)).collect();
/// let alpha = ssl_eval::alpha_req(&Tensor::from_vec(rows, (40, 20), &Device::Cpu)?)?;
/// assert!((alpha - 1.0).abs() < 1e-9);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn alpha_req(rows: &Tensor) -> Result<f64> {
    CovarianceSpectrum::of(rows)?.alpha_req()
}

/// How far embeddings are from one point (Chen & He, 2020, <https://arxiv.org/abs/2011.10566>, section 4.1): the mean over
/// dimensions of the standard deviation of L2-normalised rows, times `√D`.
///
/// It is 0 for rows of one direction and about 1 for rows that point everywhere. The deviation divides by `N − 1`, as
/// PyTorch's does; a row of zeros stays one.
///
/// # Errors
/// If there are less than two rows, or a value is not finite.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
///
/// let one_direction = Tensor::new(&[[1f32, 2.], [2., 4.], [3., 6.]], &Device::Cpu)?;
/// assert!(ssl_eval::std_collapse(&one_direction)? < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn std_collapse(rows: &Tensor) -> Result<f64> {
    let rows = Rows::read_two(rows)?.on_sphere();
    let (degrees, dim) = (rows.count() as f64 - 1.0, rows.dim());
    let mut squares = vec![0.0; dim];
    for row in rows.centred().iter() {
        squares.iter_mut().zip(row).for_each(|(sum, value)| *sum += value * value);
    }
    let sum: f64 = squares.iter().map(|sum| (sum / degrees).sqrt()).sum();
    Ok(sum / (dim as f64).sqrt())
}

/// The eigenvalues of the smaller Gram matrix in descending order, without what rounding leaves of those that are 0.
fn squared_singular_values(rows: &Rows) -> Result<Vec<f64>> {
    let gram = rows.smaller_gram()?;
    let mut values = eigenvalues(&gram.values, gram.size)?;
    let rounding = gram.size as f64 * f64::EPSILON * values[0].max(0.0);
    values.iter_mut().filter(|value| **value <= rounding).for_each(|value| *value = 0.0);
    Ok(values)
}

/// Values that are at least 0 as parts of their sum.
fn shares(values: &[f64]) -> Result<Vec<f64>> {
    let sum: f64 = values.iter().sum();
    if sum > 0.0 {
        Ok(values.iter().map(|value| value / sum).collect())
    } else {
        Err(Error::Zero { what: "the sum of the spectrum" })
    }
}

/// `exp(−Σ pₖ log pₖ)` with `pₖ = vₖ / Σ v + epsilon`, where `0 log 0` is 0.
pub(crate) fn exp_entropy(values: &[f64], epsilon: f64) -> Result<f64> {
    let shares = shares(values)?.into_iter().map(|share| share + epsilon).filter(|share| *share > 0.0);
    Ok((-shares.map(|share| share * share.ln()).sum::<f64>()).exp())
}

/// The slope of the line through points `(weight, x, y)` by weighted least squares.
fn weighted_slope(points: &[(f64, f64, f64)]) -> f64 {
    let mean = |of: fn(f64, f64) -> f64| {
        let total: f64 = points.iter().map(|(weight, ..)| weight).sum();
        points.iter().map(|(weight, x, y)| weight * of(*x, *y)).sum::<f64>() / total
    };
    let (x_mean, y_mean) = (mean(|x, _| x), mean(|_, y| y));
    let slope_terms = points.iter().map(|(weight, x, y)| {
        let along = weight * (x - x_mean);
        (along * (y - y_mean), along * (x - x_mean))
    });
    let (cross, square) = slope_terms.fold((0.0, 0.0), |sums, term| (sums.0 + term.0, sums.1 + term.1));
    cross / square
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::*;

    fn tensor(rows: &[&[f64]]) -> Tensor {
        Tensor::from_vec(rows.concat(), (rows.len(), rows[0].len()), &Device::Cpu).unwrap()
    }

    #[test]
    fn a_weighted_line_by_hand() {
        // Twice the weight is the point twice.
        let doubled = weighted_slope(&[(1.0, 0.0, 0.0), (1.0, 1.0, 3.0), (1.0, 1.0, 3.0), (1.0, 2.0, 2.0)]);
        assert!(
            (weighted_slope(&[(1.0, 0.0, 0.0), (2.0, 1.0, 3.0), (1.0, 2.0, 2.0)]) - doubled).abs() < 1e-12
        );
        assert!((doubled - 1.0).abs() < 1e-12, "{doubled}");
    }

    #[test]
    fn more_dimensions_than_rows_are_as_good() {
        let wide = tensor(&[&[3.0, 0.0, 4.0], &[0.0, 2.0, 0.0]]);
        assert_eq!(singular_values(&wide).unwrap(), [5.0, 2.0]);
        assert_eq!(singular_values(&wide.t().unwrap()).unwrap(), [5.0, 2.0]);
        // One difference of two rows, of length sqrt(29).
        let spectrum = covariance_spectrum(&wide).unwrap();
        assert!((spectrum[0] - 14.5).abs() < 1e-12 && spectrum[1] == 0.0, "{spectrum:?}");
    }

    #[test]
    fn deviation_of_directions_by_hand() {
        // Unit rows (1, 0), (0, 1), (-1, 0), (0, -1): both variances are 2 / 3.
        let cross = tensor(&[&[5.0, 0.0], &[0.0, 1e-200], &[-1e200, 0.0], &[0.0, -1.0]]);
        let expected = 2f64.sqrt() * (2f64 / 3.0).sqrt();
        assert!((std_collapse(&cross).unwrap() - expected).abs() < 1e-12);
    }

    #[test]
    fn degenerate_rows_are_refused() {
        let zeros = tensor(&[&[0.0, 0.0], &[0.0, 0.0]]);
        for measure in [rank_me, effective_rank, covariance_effective_rank, participation_ratio] {
            assert!(matches!(measure(&zeros), Err(Error::Zero { .. })));
        }
        let single = tensor(&[&[1.0, 2.0]]);
        for measure in [covariance_effective_rank, participation_ratio, alpha_req, std_collapse] {
            assert!(measure(&single).unwrap_err().to_string().contains("number of rows is 1"));
        }
        let error = alpha_req(&tensor(&[&[1.0, 2.0], &[3.0, 5.0]])).unwrap_err().to_string();
        assert_eq!(error, "number of eigenvalues above 0 is 1, allowed is at least 12");
        assert_eq!(std_collapse(&zeros).unwrap(), 0.0);
    }
}
