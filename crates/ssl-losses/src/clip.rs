//! The loss of CLIP (Radford et al., 2021, <https://arxiv.org/abs/2103.00020>, figure 3; official code openai/CLIP): an
//! image finds its text among those of the batch, and a text its image.

use candle_core::{Result, Tensor, bail};

use crate::checks;
use crate::log_sum_exp::log_sum_exp;
use crate::normalize::normalize;

/// The mean of the cross-entropies of rows and of columns of [`clip_logits`], where row `n` belongs to column `n`.
///
/// The bound `I(image; text) ≥ log N − loss` (in nats) holds for the mutual information of both. Two equal texts in a batch
/// are negatives of each other. Gradients flow to all three. CLIP keeps the logarithm of the scale within [0, ln 100]
/// after each step, which is the method's business; it starts from ln(1 / 0.07).
///
/// # Shapes
/// `image`, `text`: `(N, D)`, row `n` of both belong together; `log_scale`: a scalar. Returns a scalar.
///
/// # Errors
/// If the shapes do not fit, or if `N < 2`.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Tensor};
///
/// // Pairs agree and are orthogonal to others: ln(1 + exp(-scale)).
/// let z = Tensor::eye(2, DType::F64, &Device::Cpu)?;
/// let log_scale = Tensor::new(2f64.ln(), &Device::Cpu)?;
/// let loss = ssl_losses::clip(&z, &z, &log_scale)?.to_scalar::<f64>()?;
/// assert!((loss - (1.0 + (-2f64).exp()).ln()).abs() < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn clip(image: &Tensor, text: &Tensor, log_scale: &Tensor) -> Result<Tensor> {
    let logits = clip_logits(image, text, log_scale)?;
    let n = logits.dim(0)?;
    if n < 2 {
        bail!("clip needs at least 2 pairs for negatives, got {n}");
    }
    let eye = Tensor::eye(n, logits.dtype(), logits.device())?;
    let positive = ((&logits * eye)?.sum_all()? / n as f64)?;
    let rows = log_sum_exp(&logits)?.mean_all()?;
    let columns = log_sum_exp(&logits.t()?.contiguous()?)?.mean_all()?;
    ((rows + columns)? * 0.5)? - positive
}

/// The cosines of every image with every text, times `exp(log_scale)`: `(N, N)`, a row an image.
///
/// # Errors
/// If the shapes do not fit.
pub fn clip_logits(image: &Tensor, text: &Tensor, log_scale: &Tensor) -> Result<Tensor> {
    checks::paired(image, text, "clip")?;
    if log_scale.rank() != 0 {
        bail!("the logarithm of the scale must be a scalar, got {:?}", log_scale.dims());
    }
    let cosines = normalize(image)?.matmul(&normalize(text)?.t()?)?; // (N, N)
    cosines.broadcast_mul(&log_scale.exp()?)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::in_batch_info_nce;
    use crate::testing::{assert_gradients, matrix, permuted, scalar};

    fn log_scale(value: f64) -> Tensor {
        Tensor::new(value, &Device::Cpu).unwrap()
    }

    #[test]
    fn equal_embeddings_give_the_logarithm_of_the_pairs() {
        let ones = Tensor::ones((7, 3), DType::F64, &Device::Cpu).unwrap();
        assert!((scalar(clip(&ones, &ones, &log_scale(2.6593))) - 7f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn it_is_the_mean_of_both_directions() {
        let (a, b) = (matrix(7, 4, 1), matrix(7, 4, 2));
        let loss = scalar(clip(&a, &b, &log_scale(5f64.ln())));
        let (there, back) = (in_batch_info_nce(&a, &b, 0.2), in_batch_info_nce(&b, &a, 0.2));
        assert!((loss - (scalar(there) + scalar(back)) / 2.0).abs() < 1e-12);
    }

    #[test]
    fn symmetric_and_indifferent_to_length_and_the_order_of_pairs() {
        let (a, b, s) = (matrix(7, 4, 1), matrix(7, 4, 2), log_scale(2.0));
        let loss = scalar(clip(&a, &b, &s));
        assert!((scalar(clip(&b, &a, &s)) - loss).abs() < 1e-12);
        assert!((scalar(clip(&permuted(&a), &permuted(&b), &s)) - loss).abs() < 1e-12);
        assert!((scalar(clip(&(&a * 9.0).unwrap(), &(&b * 0.1).unwrap(), &s)) - loss).abs() < 1e-12);
    }

    #[test]
    fn the_greatest_scale_does_not_overflow() {
        let [a, b] = [1, 2].map(|salt| matrix(8, 4, salt).to_dtype(DType::F32).unwrap());
        let loss = clip(&a, &b, &Tensor::new(100f32.ln(), &Device::Cpu).unwrap()).unwrap();
        assert!(loss.to_scalar::<f32>().unwrap().is_finite());
    }

    #[test]
    fn gradients_equal_central_differences_that_of_the_scale_too() {
        let (a, b) = (matrix(4, 3, 1), matrix(4, 3, 2));
        assert_gradients(&a, &b, |a, b| clip(a, b, &log_scale(1.5)));
        assert_gradients(&log_scale(0.5), &log_scale(2.5), |s, t| clip(&a, &b, s)? + clip(&b, &a, t)?);
    }

    #[test]
    fn bad_input_is_refused() {
        let (a, s) = (matrix(4, 3, 1), log_scale(1.0));
        let refused = |x: Result<Tensor>, part: &str| {
            let error = x.unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        refused(clip(&a, &matrix(4, 2, 1), &s), "[4, 2]");
        refused(clip(&matrix(1, 3, 1), &matrix(1, 3, 1), &s), "got 1");
        refused(clip(&a, &a, &matrix(1, 1, 1)), "scalar, got [1, 1]");
    }
}
