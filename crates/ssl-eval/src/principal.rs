//! The directions in which features differ most.

use candle_core::{DType, Tensor};

use crate::{Error, Result};

/// Rounds of the iteration; each shrinks what is left of other directions by the ratio of their variances.
const ROUNDS: usize = 200;

/// Coordinates of rows along their `k` principal components, those of the largest variance first.
///
/// Orthogonal iteration in `f64` on the covariance, from a fixed start; each component points so that its largest coordinate
/// is positive. Components that the data does not have, beyond its rank, are 0.
///
/// # Shapes
/// `(N, D)` to `(N, k)` of type `f64`, `1 <= k <= D`.
///
/// # Errors
/// If `k` is out of range, there are no rows, or a covariance is not finite.
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
    let (n, d) = rows.dims2()?;
    if n == 0 {
        return Err(Error::Empty);
    }
    if !(1..=d).contains(&k) {
        let allowed = "1 to the number of features";
        return Err(Error::Config { field: "k", value: k.to_string(), allowed });
    }
    let x = rows.to_dtype(DType::F64)?;
    let x = x.broadcast_sub(&x.mean_keepdim(0)?)?;
    let covariance = x.t()?.matmul(&x)?.to_vec2::<f64>()?;
    for (row, values) in covariance.iter().enumerate() {
        if let Some(column) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::NonFinite { row, column, value: values[column] });
        }
    }
    // A start that is orthogonal to no axis.
    let mut basis: Vec<Vec<f64>> =
        (0..k).map(|i| (0..d).map(|j| ((1 + i) as f64 * (1.0 + j as f64).sqrt()).sin()).collect()).collect();
    orthonormalize(&mut basis);
    for _ in 0..ROUNDS {
        basis = basis.iter().map(|v| covariance.iter().map(|row| dot(row, v)).collect()).collect();
        orthonormalize(&mut basis);
    }
    let basis = Tensor::new(basis, rows.device())?; // (k, D)
    let along = x.matmul(&basis.t()?)?.to_vec2::<f64>()?;
    let sign = |i: usize| {
        let largest =
            along.iter().map(|row| row[i]).fold(0.0, |a: f64, b| if b.abs() > a.abs() { b } else { a });
        if largest < 0.0 { -1.0 } else { 1.0 }
    };
    let signs: Vec<f64> = (0..k).map(sign).collect();
    Ok(Tensor::new(along, rows.device())?.broadcast_mul(&Tensor::new(signs, rows.device())?)?)
}

/// Gram and Schmidt's; a vector that lies in the span of those before it becomes 0.
fn orthonormalize(basis: &mut [Vec<f64>]) {
    for i in 0..basis.len() {
        let (before, rest) = basis.split_at_mut(i);
        let v = &mut rest[0];
        let length = dot(v, v).sqrt();
        // Twice, for what rounding leaves.
        for other in before.iter().chain(before.iter()) {
            let share = dot(v, other);
            v.iter_mut().zip(other).for_each(|(a, b)| *a -= share * b);
        }
        let rest = dot(v, v).sqrt();
        let scale = if rest > 1e-10 * length && rest > 0.0 { 1.0 / rest } else { 0.0 };
        v.iter_mut().for_each(|a| *a *= scale);
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
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
