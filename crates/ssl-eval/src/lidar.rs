//! LiDAR: the rank of what tells images apart beyond what tells their views apart.
//!
//! Thilak et al., "LiDAR: Sensing Linear Probing Performance in Joint Embedding SSL Architectures", 2023,
//! <https://arxiv.org/abs/2312.04000>.

use candle_core::Tensor;
use rayon::prelude::*;

use crate::cholesky::Cholesky;
use crate::logistic_regression::check_positive;
use crate::rows::{Rows, flat};
use crate::spectrum::exp_entropy;
use crate::symmetric::eigenvalues;
use crate::{Error, Result};

/// Settings of LiDAR.
#[derive(Clone, Debug, PartialEq)]
pub struct LidarConfig {
    /// Added to the diagonal of the covariance within images, above 0. It matters relative to their scale.
    pub delta: f64,
    /// Added to every share of the eigenvalues, at least 0.
    pub epsilon: f64,
}

impl Default for LidarConfig {
    fn default() -> Self {
        Self { delta: 1e-4, epsilon: 1e-7 }
    }
}

/// LiDAR of `n` images with `q` views each: the effective rank of `S = Σ_w^{-1/2} Σ_b Σ_w^{-1/2}`, from 1 to
/// `min(D, n − 1)`.
///
/// `Σ_b` is the mean over images of `(μₓ − μ)(μₓ − μ)ᵀ`, `Σ_w` that over images and views of `(e − μₓ)(e − μₓ)ᵀ`, plus
/// `delta` on its diagonal. With `pₖ = λₖ / Σ λ + epsilon` of the D eigenvalues of `S` it is `exp(−Σ pₖ log pₖ)`.
/// The number of images should be well above D; ten views are usable, the paper has fifty.
///
/// # Shapes
/// `groups`: `(n, q, D)`, the views of an image side by side.
///
/// # Errors
/// If there are less than two images or views, a value is not finite, all images have the same mean, or a setting is out
/// of range.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use ssl_eval::{LidarConfig, lidar};
///
/// // Four images, whose two views are equal, at the corners of a square.
/// let square = [[[1f32, 1.]; 2], [[1., -1.]; 2], [[-1., 1.]; 2], [[-1., -1.]; 2]];
/// let rank = lidar(&Tensor::new(&square, &Device::Cpu)?, &LidarConfig::default())?;
/// assert!((rank - 2.0).abs() < 1e-5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn lidar(groups: &Tensor, config: &LidarConfig) -> Result<f64> {
    check_positive("delta", config.delta)?;
    if !(config.epsilon >= 0.0 && config.epsilon.is_finite()) {
        let value = config.epsilon.to_string();
        return Err(Error::Config { field: "epsilon", value, allowed: "at least 0 and finite" });
    }
    let (n, q, dim) = groups.dims3()?;
    for (field, count) in [("number of images", n), ("number of views of an image", q)] {
        if count < 2 {
            return Err(Error::Config { field, value: count.to_string(), allowed: "at least 2" });
        }
    }
    let mut views = Rows::new(flat(groups)?, dim)?;
    let means = views.group_means(q);
    for (at, view) in views.iter_mut().enumerate() {
        view.iter_mut().zip(means.row(at / q)).for_each(|(value, mean)| *value -= mean);
    }
    let within = covariance_within(&views, config.delta)?;
    let factor = Cholesky::factor(within, dim, config.delta);
    let mut spectrum = whitened_spectrum(means.centred(), &factor)?;
    spectrum.iter_mut().for_each(|value| *value = value.max(0.0));
    spectrum.resize(dim, 0.0);
    exp_entropy(&spectrum, config.epsilon)
}

/// The eigenvalues of `L⁻¹ Σ_b L⁻ᵀ`, to which `S` is similar, times the number of images: those of the smaller Gram matrix
/// of the whitened means.
fn whitened_spectrum(means: Rows, factor: &Cholesky) -> Result<Vec<f64>> {
    if means.count() <= means.dim() {
        let mut means = means;
        means.par_rows_mut().for_each(|mean| factor.whiten(mean));
        let gram = means.smaller_gram()?;
        return eigenvalues(&gram.values, gram.size);
    }
    // With many images it is less work to whiten the columns and the rows of their Gram matrix.
    let dim = means.dim();
    let mut gram = Rows::new(means.products()?, dim)?;
    gram.par_rows_mut().for_each(|row| factor.whiten(row));
    let mut gram = gram.transposed()?;
    gram.par_rows_mut().for_each(|row| factor.whiten(row));
    eigenvalues(&gram.into_values(), dim)
}

/// `Σ_w`, `(D, D)` row-major, of the deviations of views from the mean of their image.
fn covariance_within(deviations: &Rows, delta: f64) -> Result<Vec<f64>> {
    let (count, dim) = (deviations.count() as f64, deviations.dim());
    let mut within = deviations.products()?;
    within.iter_mut().for_each(|value| *value /= count);
    within.iter_mut().step_by(dim + 1).for_each(|value| *value += delta);
    Ok(within)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn two_dimensions_by_hand() {
        // Means (±2, ±1), views beside them by ±1 along the first axis and ±3 along the second: Σ_b = diag(4, 1),
        // Σ_w = diag(1 + δ, 9 + δ), eigenvalues 4 / (1 + δ) and 1 / (9 + δ).
        let corners = [[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]];
        let view = |image: [f64; 2], side: [f64; 2]| [2.0 * image[0] + side[0], image[1] + 3.0 * side[1]];
        let values: Vec<f64> =
            corners.iter().flat_map(|&image| corners.map(|side| view(image, side)).concat()).collect();
        let groups = Tensor::from_vec(values, (4, 4, 2), &Device::Cpu).unwrap();
        let delta = 0.5;
        let (a, b): (f64, f64) = (4.0 / (1.0 + delta), 1.0 / (9.0 + delta));
        let (p, q) = (a / (a + b), b / (a + b));
        let expected = (-p * p.ln() - q * q.ln()).exp();
        let found = lidar(&groups, &LidarConfig { delta, epsilon: 0.0 }).unwrap();
        assert!((found - expected).abs() < 1e-12, "{found} is not {expected}");
    }

    #[test]
    fn bad_input_is_refused() {
        let check = |groups: &Tensor, config: LidarConfig| lidar(groups, &config).unwrap_err().to_string();
        let zeros =
            |shape: (usize, usize, usize)| Tensor::zeros(shape, candle_core::DType::F32, &Device::Cpu);
        let default = LidarConfig::default;
        assert!(check(&zeros((1, 2, 3)).unwrap(), default()).contains("number of images is 1"));
        assert!(check(&zeros((2, 1, 3)).unwrap(), default()).contains("number of views of an image is 1"));
        let groups = zeros((2, 2, 3)).unwrap();
        assert!(check(&groups, default()).contains("spectrum is 0"));
        assert!(check(&groups, LidarConfig { delta: 0.0, ..default() }).contains("delta is 0"));
        assert!(check(&groups, LidarConfig { epsilon: -1.0, ..default() }).contains("epsilon is -1"));
        assert!(check(&(groups / 0.0).unwrap(), default()).contains("NaN"));
    }
}
