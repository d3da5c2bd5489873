//! The directions in which features differ most.

use candle_core::Tensor;

use crate::features::check_size;
use crate::rows::{Rows, flat};
use crate::symmetric::Eigen;
use crate::{Error, Result};

/// The principal components of rows: directions of the largest variance, orthogonal to each other.
///
/// Each component points so that the largest coordinate of a row along it is positive. Those that the rows do not have,
/// beyond their rank, are 0.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
/// use ssl_eval::PrincipalComponents;
///
/// let rows = Tensor::new(&[[1f64, 1.], [4., 5.], [7., 9.]], &Device::Cpu)?;
/// let components = PrincipalComponents::fit(&rows, 1)?;
/// assert_eq!(components.mean(), [4.0, 5.0]);
/// assert!((components.explained_variance()[0] - 25.0).abs() < 1e-9);
/// let other = Tensor::new(&[[4f64, 5.], [4. + 0.6, 5. + 0.8]], &Device::Cpu)?;
/// let along = components.project(&other)?.flatten_all()?.to_vec1::<f64>()?;
/// assert!(along[0].abs() < 1e-9 && (along[1].abs() - 1.0).abs() < 1e-9);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct PrincipalComponents {
    mean: Vec<f64>,
    /// `(k, D)`.
    components: Rows,
    explained_variance: Vec<f64>,
    explained_variance_ratio: Vec<f64>,
}

impl PrincipalComponents {
    /// The `k` components of the largest variance, from eigenvectors of the smaller Gram matrix.
    ///
    /// # Shapes
    /// `rows`: `(N, D)`, `1 <= k <= D`.
    ///
    /// # Errors
    /// If `k` is out of range, there are no rows, or a value is not finite.
    pub fn fit(rows: &Tensor, k: usize) -> Result<Self> {
        let rows = Rows::read(rows)?;
        let (n, dim) = (rows.count(), rows.dim());
        if !(1..=dim).contains(&k) {
            let allowed = "1 to the number of features";
            return Err(Error::Config { field: "k", value: k.to_string(), allowed });
        }
        let mean = rows.mean();
        let rows = rows.minus(&mean);
        let gram = rows.smaller_gram()?;
        let eigen = Eigen::of(&gram.values, gram.size)?;
        let mut components = Rows::new(eigen.vectors, gram.size)?;
        if gram.size < dim {
            // Unit vectors u of X Xᵀ become directions Xᵀ u of any length.
            components = Rows::new(flat(&components.tensor()?.matmul(&rows.tensor()?)?)?, dim)?; // (N, D)
        }
        let rounding = gram.size as f64 * f64::EPSILON * eigen.values[0].max(0.0);
        let squares = eigen.values.iter().map(|value| if *value > rounding { *value } else { 0.0 });
        let squares: Vec<f64> = squares.chain(std::iter::repeat(0.0)).take(k.max(gram.size)).collect();
        let components = orient(components.first(k), &squares, &rows)?;
        let total: f64 = squares.iter().sum();
        // A single row has no variance.
        let degrees = (n.max(2) - 1) as f64;
        let explained_variance = squares[..k].iter().map(|square| square / degrees).collect();
        let ratio = |square: &f64| if total > 0.0 { square / total } else { 0.0 };
        let explained_variance_ratio = squares[..k].iter().map(ratio).collect();
        Ok(Self { mean, components, explained_variance, explained_variance_ratio })
    }

    /// Coordinates of other rows along the components: `(M, D)` to `(M, k)` of type `f64`, on the device of the rows.
    ///
    /// # Errors
    /// If there are no rows, they have another width, or a value is not finite.
    pub fn project(&self, rows: &Tensor) -> Result<Tensor> {
        let device = rows.device();
        let rows = Rows::read(rows)?;
        check_size("feature dimension", rows.dim(), self.components.dim())?;
        let along = rows.minus(&self.mean).tensor()?.matmul(&self.components.tensor()?.t()?)?; // (M, k)
        Ok(along.to_device(device)?)
    }

    /// The mean of the rows, D values.
    pub fn mean(&self) -> &[f64] {
        &self.mean
    }

    /// The components as rows of length 1: `(k, D)` of type `f64` on the CPU.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn components(&self) -> Result<Tensor> {
        self.components.tensor()
    }

    /// The variance along each component, with the divisor `N − 1`.
    pub fn explained_variance(&self) -> &[f64] {
        &self.explained_variance
    }

    /// The variance along each component as a part of that of all features.
    pub fn explained_variance_ratio(&self) -> &[f64] {
        &self.explained_variance_ratio
    }
}

/// Coordinates of rows along their `k` principal components, those of the largest variance first.
///
/// They are those of [`PrincipalComponents`]: the largest coordinate along each is positive, and what the rows do not have,
/// beyond their rank, is 0.
///
/// # Shapes
/// `(N, D)` to `(N, k)` of type `f64`, `1 <= k <= D`.
///
/// # Errors
/// If `k` is out of range, there are no rows, or a value is not finite.
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
    PrincipalComponents::fit(rows, k)?.project(rows)
}

/// Directions of length 1 that point where the row farthest along them lies; 0 where the square of all coordinates is.
fn orient(mut directions: Rows, squares: &[f64], rows: &Rows) -> Result<Rows> {
    let n = rows.count();
    let along = directions.tensor()?.matmul(&rows.tensor()?.t()?)?; // (k, N)
    let along = Rows::new(flat(&along)?, n)?;
    for ((direction, along), square) in directions.iter_mut().zip(along.iter()).zip(squares) {
        let farthest = along.iter().fold(0.0, |a: f64, b| if b.abs() > a.abs() { *b } else { a });
        let length = direction.iter().map(|value| value * value).sum::<f64>().sqrt();
        let scale = if *square > 0.0 { farthest.signum() / length } else { 0.0 };
        direction.iter_mut().for_each(|value| *value *= scale);
    }
    Ok(directions)
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn values(tensor: &Tensor) -> Vec<Vec<f64>> {
        tensor.to_vec2().unwrap()
    }

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
        let along = principal_components(&rows, 3).unwrap().abs().unwrap();
        for row in values(&along) {
            assert!(row.iter().zip([3.0, 2.0, 1.0]).all(|(a, b)| (a - b).abs() < 1e-9), "{row:?}");
        }
    }

    #[test]
    fn fewer_rows_than_features_have_the_same_components() {
        let rows = Tensor::new(&[[0f64, 0., 1., 5.], [3., 4., 1., 5.], [9., 12., 1., 6.]], &Device::Cpu);
        let rows = rows.unwrap();
        let wide = PrincipalComponents::fit(&rows, 4).unwrap();
        // Each row twice has the same directions, from the covariance of the features.
        let tall = PrincipalComponents::fit(&Tensor::cat(&[&rows, &rows], 0).unwrap(), 4).unwrap();
        let [wide_rows, tall_rows] = [&wide, &tall].map(|fit| values(&fit.components().unwrap()).concat());
        assert!(wide_rows.iter().zip(&tall_rows).all(|(a, b)| (a - b).abs() < 1e-9), "{wide_rows:?}");
        for (a, b) in wide.explained_variance_ratio().iter().zip(tall.explained_variance_ratio()) {
            assert!((a - b).abs() < 1e-12, "{a} {b}");
        }
        assert!(wide_rows[8..].iter().all(|value| *value == 0.0), "{wide_rows:?}");
    }

    #[test]
    fn what_the_data_does_not_have_is_zero_and_bad_input_is_refused() {
        let line = Tensor::new(&[[1f32, 1., 0.], [2., 2., 0.], [4., 4., 0.]], &Device::Cpu).unwrap();
        let along = values(&principal_components(&line, 2).unwrap());
        assert!(along.iter().all(|row| row[1].abs() < 1e-9) && along[2][0] > 1.0, "{along:?}");
        let single = principal_components(&line.narrow(0, 0, 1).unwrap(), 2).unwrap();
        assert_eq!(values(&single), [[0.0, 0.0]]);
        for k in [0, 4] {
            assert!(
                principal_components(&line, k)
                    .unwrap_err()
                    .to_string()
                    .contains("allowed is 1 to the number of features")
            );
        }
        let fit = PrincipalComponents::fit(&line, 1).unwrap();
        assert!(matches!(fit.project(&line.narrow(1, 0, 2).unwrap()), Err(Error::Size { .. })));
        let nan = Tensor::new(&[[f32::NAN, 1.]], &Device::Cpu).unwrap();
        assert!(principal_components(&nan, 1).unwrap_err().to_string().contains("expected a finite number"));
    }
}
