//! Statistics of embeddings over a batch.

use candle_core::{Result, Tensor};

/// `z` less its mean over the rows: what variances and covariances are taken of, so that a large mean costs no digits.
pub(crate) fn centre(z: &Tensor) -> Result<Tensor> {
    z.broadcast_sub(&z.mean_keepdim(0)?)
}

/// Every column with mean 0 and variance 1 over the rows, as a batch norm without parameters in training: the variance
/// is the biased one and gets 1e-5 added. A constant column becomes 0.
///
/// # Shapes
/// `(N, D)` to `(N, D)`.
///
/// # Errors
/// If `z` is not of rank 2, or has no rows.
pub fn standardize(z: &Tensor) -> Result<Tensor> {
    z.dims2()?;
    let z = centre(z)?;
    let deviation = (z.sqr()?.mean_keepdim(0)? + 1e-5)?.sqrt()?;
    z.broadcast_div(&deviation)
}

/// The sum of the squares of a `(D, D)` matrix without its diagonal.
pub(crate) fn off_diagonal_squares(c: &Tensor) -> Result<Tensor> {
    let d = c.dim(0)?;
    let mut mask = vec![1f32; d * d];
    mask.iter_mut().step_by(d + 1).for_each(|diagonal| *diagonal = 0.0);
    let mask = Tensor::from_vec(mask, (d, d), c.device())?.to_dtype(c.dtype())?;
    (c * mask)?.sqr()?.sum_all()
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::testing::matrix;

    #[test]
    fn columns_have_mean_0_and_variance_1_and_constant_ones_are_0() {
        let z = Tensor::cat(&[matrix(50, 2, 1), Tensor::full(3.0, (50, 1), &Device::Cpu).unwrap()], 1);
        let z = standardize(&z.unwrap()).unwrap();
        let mean = z.mean(0).unwrap().to_vec1::<f64>().unwrap();
        let square = z.sqr().unwrap().mean(0).unwrap().to_vec1::<f64>().unwrap();
        assert!(mean.iter().all(|m| m.abs() < 1e-12), "{mean:?}");
        assert!((square[0] - 1.0).abs() < 1e-4 && (square[1] - 1.0).abs() < 1e-4, "{square:?}");
        assert_eq!(square[2], 0.0);
    }

    #[test]
    fn a_large_mean_costs_few_digits() {
        let far = (matrix(64, 3, 2) + 1000.0).unwrap();
        let exact = standardize(&far).unwrap();
        let single = standardize(&far.to_dtype(DType::F32).unwrap()).unwrap().to_dtype(DType::F64).unwrap();
        let worst = (exact - single).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f64>().unwrap();
        // The input itself is rounded to 3e-5; the mean of the squares less the square of the mean would be off by 0.1.
        assert!(worst < 5e-4, "{worst}");
    }

    #[test]
    fn the_diagonal_does_not_count() {
        let c = Tensor::new(&[[100f64, 2., 3.], [4., 100., 5.], [6., 7., 100.]], &Device::Cpu).unwrap();
        assert_eq!(off_diagonal_squares(&c).unwrap().to_scalar::<f64>().unwrap(), 139.0);
    }
}
