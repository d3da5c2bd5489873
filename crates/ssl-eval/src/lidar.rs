//! LiDAR: how many directions tell images apart, beside those in which views of an image differ.

use candle_core::{DType, Tensor};

use crate::rows::{centred, finite_rows, products};
use crate::spectrum::exponential_entropy;
use crate::symmetric::{Eigen, eigenvalues};
use crate::{Error, Result};

/// What is added to the variance within images in every direction.
const DELTA: f64 = 1e-4;
/// What is added to every share.
const EPSILON: f64 = 1e-7;

/// LiDAR: the exponential of the entropy of the eigenvalues of `Σ_w^(−½) Σ_b Σ_w^(−½)`, from 1 to `min(D, n − 1)`.
///
/// `Σ_b` is the covariance of the means of images, `Σ_w` the mean covariance of the views of an image, with 1e-4 on its
/// diagonal; means, not sums. A representation of few directions that are stable under augmentation has a low one, and so
/// has one with many directions in which views of an image differ as much as images. Thilak et al., "LiDAR: Sensing linear
/// probing performance in joint embedding SSL architectures", 2024, section 4 (<https://arxiv.org/abs/2312.04000>). The paper
/// takes about a thousand images with 50 views; 10 are usable.
///
/// # Shapes
/// `(n, q, D)`: `q` views of `n` images.
///
/// # Errors
/// If there are fewer than two images or views, or a value is not finite.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Tensor};
///
/// // Views that do not differ, of images that differ evenly in 8 directions.
/// let images = Tensor::cat(&[Tensor::eye(8, DType::F64, &Device::Cpu)?, Tensor::zeros((1, 8), DType::F64, &Device::Cpu)?], 0)?;
/// let views = Tensor::stack(&[&images, &images], 1)?; // (9, 2, 8)
/// assert!(ssl_eval::lidar(&views)? > 7.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn lidar(features: &Tensor) -> Result<f64> {
    let (n, q, d) = features.dims3()?;
    for (what, found) in [("images", n), ("views", q)] {
        if found < 2 {
            return Err(Error::TooFew { what, found, least: 2 });
        }
    }
    let e = finite_rows(&features.reshape((n * q, d))?, 1)?.reshape((n, q, d))?;
    let means = e.mean(1)?; // (n, D)
    let within = e.broadcast_sub(&means.unsqueeze(1)?)?.reshape((n * q, d))?;
    let mut sigma_w = products(&within, &within, (n * q) as f64)?;
    sigma_w.iter_mut().step_by(d + 1).for_each(|variance| *variance += DELTA);
    let Eigen { values, vectors } = Eigen::of(&sigma_w, d)?;
    // The means along the eigenvectors of Σ_w, each over its deviation, have the covariance that is asked for, turned.
    let vectors = Tensor::from_vec(vectors, (d, d), e.device())?;
    let scales: Vec<f64> = values.iter().map(|value| 1.0 / value.max(DELTA).sqrt()).collect();
    let whitened =
        centred(&means)?.matmul(&vectors.t()?)?.broadcast_mul(&Tensor::new(scales, e.device())?)?;
    let whitened = whitened.to_dtype(DType::F64)?;
    let transposed = whitened.t()?.contiguous()?;
    let gram =
        if n < d { products(&transposed, &transposed, 1.0)? } else { products(&whitened, &whitened, 1.0)? };
    let values: Vec<f64> = eigenvalues(&gram, n.min(d))?.into_iter().map(|value| value.max(0.0)).collect();
    Ok(exponential_entropy(&values, EPSILON))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn identical_views_of_even_images_reach_the_most_there_is() {
        // Rows ±e_j: an isotropic covariance in 6 dimensions.
        let rows: Vec<f64> = (0..12)
            .flat_map(|row| {
                (0..6).map(move |j| if j == row / 2 { 1.0 - 2.0 * (row % 2) as f64 } else { 0.0 })
            })
            .collect();
        let images = Tensor::from_vec(rows, (12, 6), &Device::Cpu).unwrap();
        let found = lidar(&Tensor::stack(&[&images, &images, &images], 1).unwrap()).unwrap();
        assert!((found - 6.0).abs() < 1e-3, "{found}");
    }

    #[test]
    fn directions_in_which_views_differ_count_for_less() {
        let image = |i: usize| [((i * 7 % 16) as f64 - 7.5) / 4.0, ((i * 5 % 16) as f64 - 7.5) / 4.0];
        let features = |noise: f64| {
            let values = (0..16).flat_map(|i| {
                let [x, y] = image(i);
                [[x, y + noise], [x, y - noise]].concat()
            });
            Tensor::from_vec(values.collect::<Vec<_>>(), (16, 2, 2), &Device::Cpu).unwrap()
        };
        let (still, moved) = (lidar(&features(0.0)).unwrap(), lidar(&features(3.0)).unwrap());
        assert!(still > 1.9 && moved < 1.1, "{still} {moved}");
        let one = features(0.0).narrow(1, 0, 1).unwrap();
        assert!(lidar(&one).unwrap_err().to_string().contains("1 views"));
    }
}
