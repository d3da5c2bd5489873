//! The directions in which features differ most.

use candle_core::Tensor;

use crate::rows::{centred, finite_rows, products};
use crate::symmetric::Eigen;
use crate::{Error, Result};

/// A variance below this share of the largest is rounding.
const ROUNDING: f64 = 1e-12;

/// The principal components of a set of rows.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use ssl_eval::PrincipalComponents;
///
/// let on_a_line = Tensor::new(&[[0f64, 0.], [3., 4.], [6., 8.]], &Device::Cpu)?;
/// let pca = PrincipalComponents::fit(&on_a_line, 2)?;
/// assert!((pca.variances()[0] - 25.0).abs() < 1e-9 && pca.variance_shares()[0] > 0.999);
/// let along = pca.project(&Tensor::new(&[[9f64, 12.]], &Device::Cpu)?)?.to_vec2::<f64>()?;
/// assert!((along[0][0].abs() - 10.0).abs() < 1e-9);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct PrincipalComponents {
    mean: Tensor,
    components: Tensor,
    variances: Vec<f64>,
    total: f64,
}

impl PrincipalComponents {
    /// The `k` components of the largest variance, from the eigenvectors of the unbiased covariance. Components that the data
    /// does not have, beyond its rank, are 0.
    ///
    /// # Shapes
    /// `(N, D)`, `1 <= k <= D`.
    ///
    /// # Errors
    /// If `k` is out of range, there are no rows, or a value is not finite.
    pub fn fit(rows: &Tensor, k: usize) -> Result<Self> {
        let rows = finite_rows(rows, 1)?;
        let (n, d) = rows.dims2()?;
        if !(1..=d).contains(&k) {
            let allowed = "1 to the number of features";
            return Err(Error::Config { field: "k", value: k.to_string(), allowed });
        }
        let x = centred(&rows)?;
        let covariance = products(&x, &x, (n as f64 - 1.0).max(1.0))?;
        let total = covariance.iter().step_by(d + 1).sum();
        let Eigen { values, mut vectors } = Eigen::of(&covariance, d)?;
        let floor = ROUNDING * values[0];
        let variances: Vec<f64> = values[..k].iter().map(|v| if *v > floor { *v } else { 0.0 }).collect();
        for (vector, variance) in vectors.chunks_exact_mut(d).zip(&variances) {
            if *variance == 0.0 {
                vector.fill(0.0);
            }
        }
        vectors.truncate(k * d);
        let components = Tensor::from_vec(vectors, (k, d), rows.device())?;
        Ok(Self { mean: rows.mean_keepdim(0)?, components, variances, total })
    }

    /// The mean of the rows, `(1, D)`.
    pub fn mean(&self) -> &Tensor {
        &self.mean
    }

    /// Unit vectors, or 0, `(k, D)`.
    pub fn components(&self) -> &Tensor {
        &self.components
    }

    /// The variance along each component, unbiased, the largest first.
    pub fn variances(&self) -> &[f64] {
        &self.variances
    }

    /// Of all the variance of the rows, the share along each component.
    pub fn variance_shares(&self) -> Vec<f64> {
        self.variances.iter().map(|v| if self.total > 0.0 { v / self.total } else { 0.0 }).collect()
    }

    /// Coordinates of rows along the components, `(N, D)` to `(N, k)` in `f64`.
    ///
    /// # Errors
    /// If there are no rows, `D` differs, or a value is not finite.
    pub fn project(&self, rows: &Tensor) -> Result<Tensor> {
        Ok(finite_rows(rows, 1)?.broadcast_sub(&self.mean)?.matmul(&self.components.t()?)?)
    }
}

/// Coordinates of rows along their `k` principal components, those of the largest variance first; each component points so
/// that its largest coordinate is positive. Those that the data does not have, beyond its rank, are 0.
///
/// # Shapes
/// `(N, D)` to `(N, k)` of type `f64`, `1 <= k <= D`.
///
/// # Errors
/// As [`PrincipalComponents::fit`].
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
///
/// let on_a_line = Tensor::new(&[[0f64, 0.], [3., 4.], [6., 8.]], &Device::Cpu)?;
/// let along = ssl_eval::principal_components(&on_a_line, 1)?.flatten_all()?.to_vec1::<f64>()?;
/// assert!(along.iter().zip([-5.0, 0.0, 5.0]).all(|(a, b)| (a.abs() - f64::abs(b)).abs() < 1e-9));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn principal_components(rows: &Tensor, k: usize) -> Result<Tensor> {
    let along = PrincipalComponents::fit(rows, k)?.project(rows)?;
    let columns = along.t()?.to_vec2::<f64>()?;
    let largest =
        |column: &Vec<f64>| column.iter().fold(0.0, |a: f64, b| if b.abs() > a.abs() { *b } else { a });
    let signs: Vec<f64> =
        columns.iter().map(|column| if largest(column) < 0.0 { -1.0 } else { 1.0 }).collect();
    Ok(along.broadcast_mul(&Tensor::new(signs, rows.device())?)?)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn components_of_a_box_are_its_axes_by_length() {
        // Corners of a box with edges of 2, 6 and 4, moved and turned in the plane of the first two axes.
        let corners = (0..8).flat_map(|i| {
            let [x, y, z] = [1.0, 3.0, 2.0].map(|half: f64| half);
            let sign = |bit: usize| if i >> bit & 1 == 1 { 1.0 } else { -1.0 };
            let (x, y, z) = (x * sign(0), y * sign(1), z * sign(2));
            [0.6 * x - 0.8 * y + 5.0, 0.8 * x + 0.6 * y - 7.0, z + 1.0]
        });
        let rows = Tensor::from_vec(corners.collect::<Vec<f64>>(), (8, 3), &Device::Cpu).unwrap();
        let along = principal_components(&rows, 3).unwrap().abs().unwrap().to_vec2::<f64>().unwrap();
        for row in along {
            assert!(row.iter().zip([3.0, 2.0, 1.0]).all(|(a, b)| (a - b).abs() < 1e-9), "{row:?}");
        }
    }

    #[test]
    fn what_the_data_does_not_have_is_zero_and_bad_input_is_refused() {
        let line = Tensor::new(&[[1f32, 1., 0.], [2., 2., 0.], [4., 4., 0.]], &Device::Cpu).unwrap();
        let along = principal_components(&line, 2).unwrap().to_vec2::<f64>().unwrap();
        assert!(along.iter().all(|row| row[1].abs() < 1e-9) && along[2][0] > 1.0, "{along:?}");
        for k in [0, 4] {
            assert!(
                principal_components(&line, k)
                    .unwrap_err()
                    .to_string()
                    .contains("allowed is 1 to the number of features")
            );
        }
        let nan = Tensor::new(&[[f32::NAN, 1.]], &Device::Cpu).unwrap();
        assert!(principal_components(&nan, 1).unwrap_err().to_string().contains("expected a finite number"));
    }
}
