//! Negative cosine similarity, the loss of SimSiam (Chen & He, 2021, <https://arxiv.org/abs/2011.10566>, equation 1) and,
//! scaled, of BYOL.

use candle_core::{Result, Tensor};

use crate::checks;
use crate::normalize::normalize;

/// `−mean_n p_n · z_n` of the normalised rows: −1 for equal directions, 0 for orthogonal and 1 for opposite ones.
///
/// Which of the two is a target without gradient is the caller's business: detach it.
///
/// # Shapes
/// `p`, `z`: `(N, D)`, row `n` of both from the same image. Returns a scalar.
///
/// # Errors
/// If the shapes differ or are not of rank 2.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
///
/// let p = Tensor::new(&[[2f32, 0.], [0., 1.]], &Device::Cpu)?;
/// let z = Tensor::new(&[[3f32, 0.], [1., 0.]], &Device::Cpu)?;
/// assert_eq!(ssl_losses::negative_cosine(&p, &z)?.to_scalar::<f32>()?, -0.5);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn negative_cosine(p: &Tensor, z: &Tensor) -> Result<Tensor> {
    checks::paired(p, z, "negative_cosine")?;
    (normalize(p)? * normalize(z)?)?.sum(1)?.mean_all()?.neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradients, matrix, permuted, scalar};

    fn value(p: &Tensor, z: &Tensor) -> f64 {
        scalar(negative_cosine(p, z))
    }

    #[test]
    fn equal_orthogonal_and_opposite_rows() {
        let z = matrix(6, 4, 1);
        assert!((value(&z, &(&z * 7.0).unwrap()) + 1.0).abs() < 1e-12);
        assert!((value(&z, &(&z * -0.1).unwrap()) - 1.0).abs() < 1e-12);
        // (a, b, c, d) and (-b, a, -d, c).
        let turn = [(1, -1.0), (0, 1.0), (3, -1.0), (2, 1.0)];
        let columns = turn.map(|(column, sign)| (z.narrow(1, column, 1).unwrap() * sign).unwrap());
        assert!(value(&z, &Tensor::cat(&columns, 1).unwrap()).abs() < 1e-12);
    }

    #[test]
    fn symmetric_scale_free_and_indifferent_to_the_order_of_images() {
        let (p, z) = (matrix(7, 5, 2), matrix(7, 5, 3));
        let loss = value(&p, &z);
        assert!((value(&z, &p) - loss).abs() < 1e-12);
        assert!((value(&(&p * 20.0).unwrap(), &z) - loss).abs() < 1e-12);
        assert!((value(&permuted(&p), &permuted(&z)) - loss).abs() < 1e-12);
        assert!(loss.abs() < 1.0);
    }

    #[test]
    fn gradient_equals_central_differences() {
        assert_gradients(&matrix(4, 3, 4), &matrix(4, 3, 5), negative_cosine);
    }

    #[test]
    fn a_row_of_zeros_counts_as_orthogonal() {
        let (p, z) = (matrix(2, 3, 6).zeros_like().unwrap(), matrix(2, 3, 7));
        assert_eq!(value(&p, &z), 0.0);
    }

    #[test]
    fn bad_input_is_refused() {
        let error = negative_cosine(&matrix(4, 3, 1), &matrix(4, 2, 1)).unwrap_err().to_string();
        assert!(error.contains("[4, 3]") && error.contains("[4, 2]"), "{error}");
        assert!(negative_cosine(&matrix(4, 3, 1), &matrix(3, 3, 1)).is_err());
        let cube = matrix(4, 3, 1).reshape((2, 2, 3)).unwrap();
        assert!(negative_cosine(&cube, &cube).is_err());
    }
}
