//! The entropy of distributions, with which DINO and MSN tell sharp targets from collapsed ones.

use candle_core::{D, Result, Tensor};

/// `−Σ_k p_k ln p_k` of each row, averaged over the rows, in nats: 0 for one-hot rows, `ln K` for uniform ones.
///
/// A share of 0 adds 0 and has a finite gradient.
///
/// # Shapes
/// `(N, K)`, every row a distribution. Returns a scalar.
///
/// # Errors
/// If `p` is not of rank 2.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
///
/// let p = Tensor::new(&[[0.5f64, 0.5], [1.0, 0.0]], &Device::Cpu)?;
/// let entropy = ssl_losses::mean_entropy(&p)?.to_scalar::<f64>()?;
/// assert!((entropy - 2f64.ln() / 2.0).abs() < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn mean_entropy(p: &Tensor) -> Result<Tensor> {
    p.dims2()?;
    // The floor is a normal number of f32, whose logarithm is finite.
    (p * p.maximum(1e-37)?.log()?)?.sum(D::Minus1)?.mean_all()?.neg()
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::testing::{assert_gradients, matrix, scalar};

    #[test]
    fn uniform_rows_have_the_logarithm_of_their_length_and_one_hot_rows_nothing() {
        let uniform = Tensor::full(0.25f64, (3, 4), &Device::Cpu).unwrap();
        assert!((scalar(mean_entropy(&uniform)) - 4f64.ln()).abs() < 1e-12);
        let one_hot = Var::new(&[[0f32, 1., 0.]], &Device::Cpu).unwrap();
        let entropy = mean_entropy(&one_hot).unwrap();
        assert_eq!(entropy.to_scalar::<f32>().unwrap(), 0.0);
        let grads = entropy.backward().unwrap();
        let grad = grads.get(&one_hot).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(grad.iter().all(|g| g.is_finite()), "{grad:?}");
    }

    #[test]
    fn gradient_equals_central_differences() {
        let p = (matrix(3, 4, 1).abs().unwrap() + 0.1).unwrap();
        assert_gradients(&p, &p, |p, q| mean_entropy(p)? + mean_entropy(q)?);
    }

    #[test]
    fn a_vector_is_refused() {
        assert!(mean_entropy(&Tensor::ones(3, candle_core::DType::F64, &Device::Cpu).unwrap()).is_err());
    }
}
