//! How many dimensions embeddings fill: measures of their singular values, and of the eigenvalues of their covariance.

use candle_core::Tensor;

use crate::rows::{centred, finite_rows, products};
use crate::symmetric::eigenvalues;
use crate::{Error, Result};

/// What RankMe adds to every share.
const RANK_ME_EPSILON: f64 = 1e-7;

/// The eigenvalues that the exponent of alpha-ReQ is fitted to, counted from 1.
const ALPHA_RANGE: std::ops::RangeInclusive<usize> = 11..=100;

/// RankMe: the exponential of the entropy of the singular values of the embeddings as they are, not centred, from 1 to
/// `min(N, D)`. High ones go with good linear probes, if embeddings of the same kind are compared.
///
/// `exp(−Σ p_k log p_k)` with `p_k = s_k / Σ s + 1e-7`. Garrido et al., "RankMe", 2023, equation 1
/// (<https://arxiv.org/abs/2210.02885>). Needs many more rows than dimensions; the paper takes 25,600.
///
/// # Shapes
/// `(N, D)`.
///
/// # Errors
/// If there is no row or a value is not finite.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
///
/// let even = Tensor::eye(4, candle_core::DType::F64, &Device::Cpu)?;
/// assert!((ssl_eval::rank_me(&even)? - 4.0).abs() < 1e-4);
/// let on_a_line = Tensor::new(&[[1f64, 2.], [2., 4.], [3., 6.]], &Device::Cpu)?;
/// assert!((ssl_eval::rank_me(&on_a_line)? - 1.0).abs() < 1e-4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn rank_me(rows: &Tensor) -> Result<f64> {
    Ok(exponential_entropy(&singular_values(rows)?, RANK_ME_EPSILON))
}

/// The effective rank: [`rank_me`] without what that adds.
///
/// Roy & Vetterli, "The effective rank: a measure of effective dimensionality", 2007, section 2.
///
/// # Errors
/// As [`rank_me`].
pub fn effective_rank(rows: &Tensor) -> Result<f64> {
    Ok(exponential_entropy(&singular_values(rows)?, 0.0))
}

/// The effective rank of the covariance: the exponential of the entropy of its eigenvalues, which count dimensions by the
/// variance in them. 0 if all rows are equal.
///
/// # Errors
/// If there are fewer than two rows or a value is not finite.
pub fn covariance_effective_rank(rows: &Tensor) -> Result<f64> {
    Ok(exponential_entropy(&covariance_spectrum(rows)?, 0.0))
}

/// `(Σλ)² / Σλ²` of the eigenvalues of the covariance: dimensions of equal variance that would be as uneven. 0 if all rows
/// are equal.
///
/// # Errors
/// As [`covariance_effective_rank`].
pub fn participation_ratio(rows: &Tensor) -> Result<f64> {
    let values = covariance_spectrum(rows)?;
    let (sum, squares) = values.iter().fold((0.0, 0.0), |(sum, squares), v| (sum + v, squares + v * v));
    Ok(if squares > 0.0 { sum * sum / squares } else { 0.0 })
}

/// The singular values of the rows, not centred: `min(N, D)`, the largest first.
///
/// # Errors
/// As [`rank_me`].
pub fn singular_values(rows: &Tensor) -> Result<Vec<f64>> {
    let rows = finite_rows(rows, 1)?;
    Ok(gram_eigenvalues(&rows, 1.0)?.into_iter().map(f64::sqrt).collect())
}

/// The eigenvalues of the centred, unbiased covariance: `min(N, D)`, the largest first, none below 0.
///
/// # Errors
/// If there are fewer than two rows or a value is not finite.
pub fn covariance_spectrum(rows: &Tensor) -> Result<Vec<f64>> {
    let rows = finite_rows(rows, 2)?;
    gram_eigenvalues(&centred(&rows)?, rows.dim(0)? as f64 - 1.0)
}

/// alpha-ReQ: the exponent `α` with which the eigenvalues of the covariance fall, `λ_j ~ j^(−α)`. Near 1 in good
/// representations; a large one says that few directions have most of the variance, a small one that noise fills all.
///
/// The slope of `log λ` over `log j` for `j` from 11 to 100, by least squares with weights `1 / j`, as in the authors' package.
/// Agrawal et al., "α-ReQ: Assessing representation quality in self-supervised learning by measuring eigenspectrum decay",
/// 2022.
///
/// # Errors
/// If fewer than three of these eigenvalues are there, that is for fewer than 13 dimensions or 14 rows, or a value is not finite.
pub fn alpha_req(rows: &Tensor) -> Result<f64> {
    let values = covariance_spectrum(rows)?;
    let floor = values.first().copied().unwrap_or_default() * 1e-14;
    let points: Vec<(f64, f64, f64)> = ALPHA_RANGE
        .filter_map(|j| values.get(j - 1).filter(|value| **value > floor).map(|value| (j as f64, *value)))
        .map(|(j, value)| (j.ln(), value.ln(), 1.0 / j))
        .collect();
    if points.len() < 3 {
        return Err(Error::TooFew { what: "eigenvalues beyond the tenth", found: points.len(), least: 3 });
    }
    let total: f64 = points.iter().map(|(_, _, w)| w).sum();
    let mean = |of: &dyn Fn(&(f64, f64, f64)) -> f64| points.iter().map(|p| p.2 * of(p)).sum::<f64>() / total;
    let (x, y) = (mean(&|p| p.0), mean(&|p| p.1));
    Ok(-mean(&|p| (p.0 - x) * (p.1 - y)) / mean(&|p| (p.0 - x).powi(2)))
}

/// The mean over dimensions of the standard deviation over rows of length 1, times `√D`: 1 for directions spread evenly over the
/// sphere, 0 if all are one.
///
/// Chen & He, "Exploring simple siamese representation learning", 2021, section 4.1 (<https://arxiv.org/abs/2011.10566>).
///
/// # Errors
/// If there are fewer than two rows or a value is not finite.
pub fn std_collapse(rows: &Tensor) -> Result<f64> {
    let rows = finite_rows(rows, 2)?;
    let lengths = (rows.sqr()?.sum_keepdim(1)?.sqrt()? + 1e-12)?;
    let z = centred(&rows.broadcast_div(&lengths)?)?;
    let std = z.sqr()?.mean(0)?.sqrt()?.mean_all()?.to_scalar::<f64>()?;
    Ok(std * (rows.dim(1)? as f64).sqrt())
}

/// The eigenvalues of `ZᵀZ / by`, none below 0; from `ZZᵀ`, which has the same, where that is smaller.
fn gram_eigenvalues(rows: &Tensor, by: f64) -> Result<Vec<f64>> {
    let (n, d) = rows.dims2()?;
    let transposed = rows.t()?.contiguous()?;
    let gram = if n < d { products(&transposed, &transposed, by)? } else { products(rows, rows, by)? };
    Ok(eigenvalues(&gram, n.min(d))?.into_iter().map(|value| value.max(0.0)).collect())
}

/// `exp(−Σ p log p)` with `p = v / Σv + ε`; 0 if all are 0.
pub(crate) fn exponential_entropy(values: &[f64], epsilon: f64) -> f64 {
    let sum: f64 = values.iter().sum();
    if sum <= 0.0 {
        return 0.0;
    }
    let shares = values.iter().map(|value| value / sum + epsilon).filter(|p| *p > 0.0);
    (-shares.map(|p| p * p.ln()).sum::<f64>()).exp()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn tensor(data: Vec<f64>, n: usize, d: usize) -> Tensor {
        Tensor::from_vec(data, (n, d), &Device::Cpu).unwrap()
    }

    #[test]
    fn alpha_is_the_exponent_of_a_power_law() {
        // Corners of boxes whose edges are j^(−α / 2): rows ±e_j √λ_j have the covariance diag(λ) up to a factor.
        for alpha in [0.5, 1.0, 2.0] {
            let d = 40;
            let rows = (0..2 * d).flat_map(|row| {
                let (axis, sign) = (row / 2, if row % 2 == 0 { 1.0 } else { -1.0 });
                (0..d).map(move |j| if j == axis { sign * ((j + 1) as f64).powf(-alpha / 2.0) } else { 0.0 })
            });
            let found = alpha_req(&tensor(rows.collect(), 2 * d, d)).unwrap();
            assert!((found - alpha).abs() < 1e-9, "{found} is not {alpha}");
        }
    }

    #[test]
    fn rows_fewer_than_dimensions_have_the_same_spectrum_either_way() {
        let data: Vec<f64> = (0..5 * 3).map(|i| ((i * i) as f64).sin()).collect();
        let tall = singular_values(&tensor(data.clone(), 5, 3)).unwrap();
        let wide = singular_values(&tensor(data, 5, 3).t().unwrap()).unwrap();
        assert!(tall.iter().zip(&wide).all(|(a, b)| (a - b).abs() < 1e-12), "{tall:?} {wide:?}");
    }

    #[test]
    fn equal_rows_fill_nothing_and_bad_ones_are_refused() {
        let equal = tensor(vec![1.0, 2.0, 1.0, 2.0, 1.0, 2.0], 3, 2);
        for measure in [covariance_effective_rank, participation_ratio, std_collapse] {
            assert!(measure(&equal).unwrap() < 1e-9);
        }
        assert!(matches!(
            covariance_spectrum(&tensor(vec![1.0], 1, 1)),
            Err(Error::TooFew { found: 1, least: 2, .. })
        ));
        assert!(matches!(rank_me(&tensor(vec![], 0, 3)), Err(Error::Empty)));
        let nan = tensor(vec![1.0, 2.0, f64::NAN, 4.0], 2, 2);
        assert!(matches!(rank_me(&nan), Err(Error::NonFinite { row: 1, column: 0, .. })));
        assert!(alpha_req(&equal).unwrap_err().to_string().contains("at least 3"));
    }
}
