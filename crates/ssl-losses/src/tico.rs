//! Transformation invariance and covariance contrast (Zhu et al., 2022, <https://arxiv.org/abs/2206.10698>): views agree
//! while embeddings avoid the directions in which earlier ones lie.

use candle_core::{Result, Tensor, bail};

use crate::checks;
use crate::normalize::normalize;

/// Settings of TiCo's loss.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TicoLoss {
    /// β, the part of the running matrix that stays, in [0, 1].
    pub momentum: f64,
    /// ρ, the factor of the covariance contrast.
    pub contrast_weight: f64,
}

/// The parts of [`TicoLoss::forward`], scalars without their factors, and the new matrix.
#[derive(Clone, Debug)]
pub struct TicoTerms {
    /// `1 − mean_n z_a · z_b`, in [0, 2].
    pub invariance: Tensor,
    /// `mean_n z_aᵀ C z_a`, in [0, 1].
    pub contrast: Tensor,
    /// `C`, `(D, D)` and detached: that of the next step begins with it.
    pub covariance: Tensor,
}

impl TicoLoss {
    /// The loss `invariance + ρ · contrast`, a scalar, and its parts.
    ///
    /// Rows are normalised here. `C = β C' + (1 − β) z_aᵀ z_a / N` moves before it is used; it has no gradient.
    ///
    /// # Shapes
    /// `z_a`, `z_b`: `(N, D)`, row `n` of both from the same image; `covariance`: `C'`, `(D, D)`, zeros at first.
    ///
    /// # Errors
    /// If the shapes do not fit, there are no rows, β is not in [0, 1], or ρ is negative or not finite.
    ///
    /// # Example
    /// ```
    /// use candle_core::{DType, Device, Tensor};
    /// use ssl_losses::TicoLoss;
    ///
    /// // Views agree; the embeddings take both directions with half of the variance.
    /// let z = Tensor::eye(2, DType::F64, &Device::Cpu)?;
    /// let loss = TicoLoss { momentum: 0.0, contrast_weight: 8.0 };
    /// let (value, terms) = loss.forward(&z, &z, &z.zeros_like()?)?;
    /// assert!((value.to_scalar::<f64>()? - 8.0 / 2.0).abs() < 1e-12);
    /// # Ok::<(), candle_core::Error>(())
    /// ```
    pub fn forward(&self, z_a: &Tensor, z_b: &Tensor, covariance: &Tensor) -> Result<(Tensor, TicoTerms)> {
        checks::momentum(self.momentum)?;
        checks::weight("the weight of the contrast", self.contrast_weight)?;
        let (n, d) = checks::paired(z_a, z_b, "tico")?;
        checks::some_rows(z_a, "tico")?;
        if covariance.dims() != [d, d] {
            bail!("tico needs a matrix of {d} by {d} values, got {:?}", covariance.dims());
        }
        let (z_a, z_b) = (normalize(z_a)?, normalize(z_b)?);
        let fixed = z_a.detach();
        let own = (fixed.t()?.matmul(&fixed)? / n as f64)?; // (D, D)
        let covariance = ((covariance.detach() * self.momentum)? + (own * (1.0 - self.momentum))?)?;
        let invariance = (1.0 - (&z_a * z_b)?.sum(1)?.mean_all()?)?;
        let contrast = (z_a.matmul(&covariance)? * z_a)?.sum(1)?.mean_all()?;
        let loss = (&invariance + (&contrast * self.contrast_weight)?)?;
        Ok((loss, TicoTerms { invariance, contrast, covariance }))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::testing::{assert_gradients, matrix, permuted, scalar};

    const LOSS: TicoLoss = TicoLoss { momentum: 0.9, contrast_weight: 8.0 };

    fn value(loss: TicoLoss, z_a: &Tensor, z_b: &Tensor, covariance: &Tensor) -> f64 {
        scalar(loss.forward(z_a, z_b, covariance).map(|(loss, _)| loss))
    }

    fn earlier(d: usize) -> Tensor {
        let z = normalize(&matrix(7, d, 9)).unwrap();
        (z.t().unwrap().matmul(&z).unwrap() / 7.0).unwrap()
    }

    #[test]
    fn one_point_costs_the_whole_contrast_and_opposite_views_the_whole_invariance() {
        let ones = Tensor::ones((4, 3), DType::F64, &Device::Cpu).unwrap();
        let zeros = Tensor::zeros((3, 3), DType::F64, &Device::Cpu).unwrap();
        let fresh = TicoLoss { momentum: 0.0, ..LOSS };
        assert!((value(fresh, &ones, &ones, &zeros) - 8.0).abs() < 1e-12);
        assert!((value(LOSS, &ones, &ones, &zeros) - 0.8).abs() < 1e-12);
        assert!((value(fresh, &ones, &ones.neg().unwrap(), &zeros) - 10.0).abs() < 1e-12);
    }

    #[test]
    fn the_contrast_is_the_mean_square_of_cosines_with_those_that_made_the_matrix() {
        let z = normalize(&matrix(5, 3, 1)).unwrap();
        let (_, terms) = TicoLoss { momentum: 1.0, ..LOSS }.forward(&z, &z, &earlier(3)).unwrap();
        let cosines = z.matmul(&normalize(&matrix(7, 3, 9)).unwrap().t().unwrap()).unwrap();
        let expected = scalar(cosines.sqr().unwrap().mean_all());
        assert!((scalar(Ok(terms.contrast)) - expected).abs() < 1e-12);
        assert_eq!(terms.covariance.to_vec2::<f64>().unwrap(), earlier(3).to_vec2::<f64>().unwrap());
    }

    #[test]
    fn length_and_the_order_of_images_do_not_matter() {
        let (a, b, c) = (matrix(5, 3, 1), matrix(5, 3, 2), earlier(3));
        let loss = value(LOSS, &a, &b, &c);
        assert!((value(LOSS, &permuted(&a), &permuted(&b), &c) - loss).abs() < 1e-12);
        assert!((value(LOSS, &(&a * 3.0).unwrap(), &(&b * 0.1).unwrap(), &c) - loss).abs() < 1e-12);
    }

    #[test]
    fn gradients_equal_central_differences_with_the_matrix_held() {
        let held = TicoLoss { momentum: 1.0, ..LOSS };
        let (a, b, c) = (matrix(5, 3, 1), matrix(5, 3, 2), earlier(3));
        assert_gradients(&a, &b, |a, b| Ok(held.forward(a, b, &c)?.0));
        // What moves is held as well: the gradient is that for the moved matrix as a constant.
        let (a, c) = (Var::from_tensor(&a).unwrap(), Var::from_tensor(&c).unwrap());
        let (loss, terms) = LOSS.forward(&a, &b, &c).unwrap();
        let (constant, _) = held.forward(&a, &b, &terms.covariance).unwrap();
        let (moving, fixed) = (loss.backward().unwrap(), constant.backward().unwrap());
        let values = |grad: Option<&Tensor>| grad.unwrap().to_vec2::<f64>().unwrap();
        assert_eq!(values(moving.get(&a)), values(fixed.get(&a)));
        assert!(moving.get(&c).is_none());
    }

    #[test]
    fn bad_input_is_refused() {
        let (a, c) = (matrix(4, 3, 1), earlier(3));
        let error = |loss: TicoLoss, a: &Tensor, b: &Tensor, c: &Tensor| {
            loss.forward(a, b, c).unwrap_err().to_string()
        };
        assert!(error(LOSS, &a, &matrix(4, 2, 1), &c).contains("[4, 2]"));
        assert!(error(LOSS, &a, &a, &earlier(2)).contains("3 by 3 values, got [2, 2]"));
        assert!(error(LOSS, &matrix(0, 3, 1), &matrix(0, 3, 1), &c).contains("0 rows"));
        assert!(error(TicoLoss { momentum: 1.1, ..LOSS }, &a, &a, &c).contains("[0, 1]"));
        assert!(error(TicoLoss { contrast_weight: -1.0, ..LOSS }, &a, &a, &c).contains("contrast must be"));
    }
}
