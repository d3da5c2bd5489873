//! Entropy, redundancy and mutual information of embeddings as if they were normally distributed, in nats.
//!
//! What is not normally distributed has less entropy than this says, and may share more or less information. Correlations found
//! in few samples are too high: without shrinkage the information of independent samples is about `dx · dy / 2N` nats
//! instead of 0.

use candle_core::Tensor;

use crate::cholesky::Cholesky;
use crate::rows::{centred, finite_rows, products};
use crate::symmetric::eigenvalues;
use crate::{Error, Result};

/// How a sample covariance is drawn towards a sphere of the same mean variance, so that noise in the small directions does not
/// pass for knowledge.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Shrinkage {
    /// Not at all.
    None,
    /// `(1 − s) Σ + s (tr Σ / D) I`, `s` in `[0, 1]`.
    Fixed(f64),
    /// With the share that Ledoit & Wolf estimate, "A well-conditioned estimator for large-dimensional covariance matrices",
    /// 2004, section 3.2.
    LedoitWolf,
}

/// Differential entropy of a normal distribution with the covariance of the rows, `½ log det 2πeΣ`, in nats. It may be negative.
///
/// # Shapes
/// `(N, D)`.
///
/// # Errors
/// If there are fewer than two rows, a value is not finite, or a shrinkage is out of range.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use ssl_eval::{Shrinkage, gaussian_entropy};
///
/// let rows = Tensor::new(&[[1f64], [-1.], [1.], [-1.]], &Device::Cpu)?;
/// let expected = 0.5 * (std::f64::consts::TAU * std::f64::consts::E * 4.0 / 3.0).ln();
/// assert!((gaussian_entropy(&rows, Shrinkage::None)? - expected).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn gaussian_entropy(rows: &Tensor, shrinkage: Shrinkage) -> Result<f64> {
    let (sigma, d) = covariance(rows, shrinkage)?;
    Ok(0.5 * (log_det(sigma, d) + d as f64 * (std::f64::consts::TAU * std::f64::consts::E).ln()))
}

/// Total correlation `Σ ½ log σ_j² − ½ log det Σ`, in nats: what the dimensions of normally distributed rows tell more than
/// once. 0 for dimensions that are not correlated, infinite for one that others determine. Barlow Twins and VICReg push it
/// down. Watanabe, "Information theoretical analysis of multivariate correlation", 1960.
///
/// # Errors
/// As [`gaussian_entropy`].
pub fn total_correlation(rows: &Tensor, shrinkage: Shrinkage) -> Result<f64> {
    let (sigma, d) = covariance(rows, shrinkage)?;
    let variances: f64 = (0..d).map(|j| sigma[j * d + j].max(f64::MIN_POSITIVE).ln()).sum();
    Ok((0.5 * (variances - log_det(sigma, d))).max(0.0))
}

/// Mutual information of two sets of normally distributed rows, `−½ log det(I − S₁₂ S₂₁) = −½ Σ log(1 − ρ²)` over their
/// canonical correlations `ρ`, in nats.
///
/// The covariance of both together is shrunk, so that what they share is, too. Without shrinkage the value of `N` samples is
/// too high by about `dx · dy / 2N`, and it is infinite for `N ≤ dx + dy`.
///
/// # Shapes
/// `x` is `(N, dx)`, `y` is `(N, dy)`, row by row from the same image.
///
/// # Errors
/// As [`gaussian_entropy`], or if they differ in rows.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use ssl_eval::{Shrinkage, gaussian_information};
///
/// // The correlation is 0.6.
/// let x = Tensor::new(&[[1f64], [1.], [-1.], [-1.], [1.], [-1.], [1.], [1.], [-1.], [-1.]], &Device::Cpu)?;
/// let y = Tensor::new(&[[1f64], [1.], [-1.], [-1.], [1.], [-1.], [1.], [-1.], [1.], [-1.]], &Device::Cpu)?;
/// let nats = gaussian_information(&x, &y, Shrinkage::None)?;
/// assert!((nats + 0.5 * (1.0 - 0.6f64.powi(2)).ln()).abs() < 1e-12);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn gaussian_information(x: &Tensor, y: &Tensor, shrinkage: Shrinkage) -> Result<f64> {
    let (n, dx) = x.dims2()?;
    if y.dim(0)? != n {
        return Err(Error::Size { what: "number of rows of y", found: y.dim(0)?, expected: n });
    }
    let (sigma, _) = covariance(&Tensor::cat(&[x, &y.to_dtype(x.dtype())?], 1)?, shrinkage)?;
    information_of_covariance(&sigma, dx)
}

/// [`gaussian_information`] given the covariance of both together, `(d, d)` row-major, of which the first `dx` belong to `x`.
///
/// # Errors
/// If it is not square, `dx` is not in `1..d`, or a value is not finite.
pub fn information_of_covariance(sigma: &[f64], dx: usize) -> Result<f64> {
    let correlations = canonical_correlations(sigma, dx)?;
    Ok(-0.5 * correlations.iter().map(|rho| (1.0 - rho * rho).max(0.0).ln()).sum::<f64>())
}

/// The canonical correlations, `min(dx, dy)` in `[0, 1]`, the highest first, given a covariance as
/// [`information_of_covariance`] is.
///
/// Hotelling, "Relations between two sets of variates", 1936.
///
/// # Errors
/// As [`information_of_covariance`].
pub fn canonical_correlations(sigma: &[f64], dx: usize) -> Result<Vec<f64>> {
    let d = sigma.len().isqrt();
    if d * d != sigma.len() {
        return Err(Error::Size {
            what: "number of values of a covariance",
            found: sigma.len(),
            expected: d * d,
        });
    }
    if !(1..d).contains(&dx) {
        return Err(Error::Config {
            field: "dx",
            value: dx.to_string(),
            allowed: "1 to the dimensions less 1",
        });
    }
    let dy = d - dx;
    let block = |rows: std::ops::Range<usize>, columns: std::ops::Range<usize>| -> Vec<f64> {
        rows.flat_map(|i| sigma[i * d..][columns.clone()].iter().copied()).collect()
    };
    let (lx, ly) = (factor(block(0..dx, 0..dx), dx), factor(block(dx..d, dx..d), dy));
    // M = Lx⁻¹ Σxy Ly⁻ᵀ has the correlations as its singular values.
    let mut half = block(dx..d, 0..dx); // Σyx, (dy, dx)
    half.chunks_exact_mut(dx).for_each(|row| lx.solve_lower(row)); // (Lx⁻¹ Σxy)ᵀ
    let mut m = transposed(&half, dx); // (dx, dy)
    m.chunks_exact_mut(dy).for_each(|row| ly.solve_lower(row));
    let m = if dx <= dy { m } else { transposed(&m, dy) };
    let (size, width) = (dx.min(dy), dx.max(dy));
    let row = |i: usize| &m[i * width..(i + 1) * width];
    let gram = (0..size * size).map(|at| crate::cholesky::dot(row(at / size), row(at % size)));
    let squares = eigenvalues(&gram.collect::<Vec<_>>(), size)?;
    Ok(squares.into_iter().map(|square| square.clamp(0.0, 1.0).sqrt()).collect())
}

/// The covariance `(D, D)` of the rows with its shrinkage, and `D`.
fn covariance(rows: &Tensor, shrinkage: Shrinkage) -> Result<(Vec<f64>, usize)> {
    let rows = finite_rows(rows, 2)?;
    let (n, d) = rows.dims2()?;
    let x = centred(&rows)?;
    let mut sigma = products(&x, &x, n as f64 - 1.0)?;
    let share = match shrinkage {
        Shrinkage::None => 0.0,
        Shrinkage::Fixed(share) if (0.0..=1.0).contains(&share) => share,
        Shrinkage::Fixed(share) => {
            return Err(Error::Config { field: "shrinkage", value: share.to_string(), allowed: "0 to 1" });
        }
        Shrinkage::LedoitWolf => ledoit_wolf(&x, &sigma)?,
    };
    let mean = (0..d).map(|j| sigma[j * d + j]).sum::<f64>() / d as f64;
    sigma.iter_mut().for_each(|value| *value *= 1.0 - share);
    sigma.iter_mut().step_by(d + 1).for_each(|value| *value += share * mean);
    Ok((sigma, d))
}

/// Their estimate of the share, for centred rows with the unbiased covariance `sigma`.
fn ledoit_wolf(x: &Tensor, sigma: &[f64]) -> Result<f64> {
    let (n, d) = x.dims2()?;
    let n_f = n as f64;
    // With the biased covariance S: δ² = ‖S − μI‖², β² = (Σᵢ ‖xᵢ‖⁴ / n − ‖S‖²) / n.
    let biased = (n_f - 1.0) / n_f;
    let squares: f64 = sigma.iter().map(|value| (value * biased).powi(2)).sum();
    let mu = (0..d).map(|j| sigma[j * d + j] * biased).sum::<f64>() / d as f64;
    let delta = squares - d as f64 * mu * mu;
    let fourth = x.sqr()?.sum(1)?.sqr()?.mean_all()?.to_scalar::<f64>()?;
    let beta = (fourth - squares) / n_f;
    Ok(if delta > 0.0 { (beta / delta).clamp(0.0, 1.0) } else { 1.0 })
}

/// `L` with `L Lᵀ` equal to `matrix`, whose smallest pivots are kept above rounding.
fn factor(matrix: Vec<f64>, size: usize) -> Cholesky {
    let largest = (0..size).map(|j| matrix[j * size + j]).fold(0.0, f64::max);
    Cholesky::factor(matrix, size, largest * 1e-14 + f64::MIN_POSITIVE)
}

fn log_det(matrix: Vec<f64>, size: usize) -> f64 {
    factor(matrix, size).log_det()
}

/// `(rows, columns)` row-major to `(columns, rows)`.
fn transposed(matrix: &[f64], columns: usize) -> Vec<f64> {
    (0..columns).flat_map(|j| matrix.iter().skip(j).step_by(columns).copied()).collect()
}
