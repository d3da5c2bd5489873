//! Decoupled contrastive learning (Yeh et al., 2021, <https://arxiv.org/abs/2110.06848>, equations 5 and 6): NT-Xent
//! without the positive in the denominator, so that easy images keep their gradient in small batches.

use candle_core::{Result, Tensor, bail};

use crate::checks;
use crate::log_sum_exp::log_sum_exp;
use crate::normalize::normalize;
use crate::nt_xent::self_mask;

/// The mean over all `2N` anchors of `−s_ij(i) + log Σ_k exp(s_ik)`, where `k` goes over both views of the other images.
///
/// `s_ik = z_i · z_k / τ` of the normalised rows, and `j(i)` is the other view of the same image. The loss can be negative.
///
/// # Shapes
/// `z_a`, `z_b`: `(N, D)`, row `n` of both from the same image; they need not be normalised. Returns a scalar.
///
/// # Errors
/// If the shapes differ or are not of rank 2, if `N < 2`, or if the temperature is not positive.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
///
/// // Positives agree, the two negatives of each anchor are orthogonal: ln 2 - 1 / 0.5.
/// let z = Tensor::new(&[[1f64, 0.], [0., 1.]], &Device::Cpu)?;
/// let loss = ssl_losses::dcl(&z, &z, 0.5)?.to_scalar::<f64>()?;
/// assert!((loss - (2f64.ln() - 2.0)).abs() < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn dcl(z_a: &Tensor, z_b: &Tensor, temperature: f64) -> Result<Tensor> {
    let (negative, cosine) = parts(z_a, z_b, temperature)?;
    negative - (cosine.mean_all()? / temperature)?
}

/// [`dcl`] with weights for the positives, `w_i = 2 − N softmax(z_ai · z_bi / σ)_i` over the batch: images whose views
/// differ count more.
///
/// The mean weight is 1. The weights get no gradient. The paper has σ = 0.5.
///
/// # Shapes
/// As [`dcl`].
///
/// # Errors
/// As [`dcl`], and if σ is not positive.
pub fn dclw(z_a: &Tensor, z_b: &Tensor, temperature: f64, sigma: f64) -> Result<Tensor> {
    if !(sigma.is_finite() && sigma > 0.0) {
        bail!("sigma must be positive and finite, got {sigma}");
    }
    let (negative, cosine) = parts(z_a, z_b, temperature)?;
    let s = (cosine.detach() / sigma)?;
    let share = s.broadcast_sub(&log_sum_exp(&s)?)?.exp()?; // (N,)
    let weights = (2.0 - (share * cosine.elem_count() as f64)?)?;
    negative - ((weights * cosine)?.mean_all()? / temperature)?
}

/// The mean logarithm of the sum over the negatives, and the cosines of the positives, `(N)`.
fn parts(z_a: &Tensor, z_b: &Tensor, temperature: f64) -> Result<(Tensor, Tensor)> {
    let (n, _) = checks::paired(z_a, z_b, "dcl")?;
    checks::temperature(temperature)?;
    if n < 2 {
        bail!("dcl needs at least 2 images for negatives, got {n}");
    }
    let (z_a, z_b) = (normalize(z_a)?, normalize(z_b)?);
    let z = Tensor::cat(&[&z_a, &z_b], 0)?;
    let s = (z.matmul(&z.t()?)? / temperature)?; // (2N, 2N)
    // Neither the anchor itself nor its other view.
    let mask = self_mask(n, &z)?.repeat((2, 2))?;
    Ok((log_sum_exp(&(s + mask)?)?.mean_all()?, (z_a * z_b)?.sum(1)?))
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::testing::{assert_gradients, matrix, permuted, scalar};

    #[test]
    fn equal_embeddings_give_the_logarithm_of_the_negatives() {
        for n in [2, 5] {
            let ones = Tensor::ones((n, 3), DType::F64, &Device::Cpu).unwrap();
            let expected = ((2 * n - 2) as f64).ln();
            assert!((scalar(dcl(&ones, &ones, 0.1)) - expected).abs() < 1e-12);
            assert!((scalar(dclw(&ones, &ones, 0.1, 0.5)) - expected).abs() < 1e-12);
        }
    }

    /// The definition with plain numbers; without `sigma` all weights are 1.
    fn plain(z_a: &Tensor, z_b: &Tensor, tau: f64, sigma: Option<f64>) -> f64 {
        let rows = |z: &Tensor| normalize(z).unwrap().to_vec2::<f64>().unwrap();
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let views = [rows(z_a), rows(z_b)];
        let n = views[0].len();
        let exps: Vec<f64> =
            (0..n).map(|i| (dot(&views[0][i], &views[1][i]) / sigma.unwrap_or(1.0)).exp()).collect();
        let total: f64 = exps.iter().sum();
        let mut sum = 0.0;
        for (v, view) in views.iter().enumerate() {
            for i in 0..n {
                let weight = sigma.map_or(1.0, |_| 2.0 - n as f64 * exps[i] / total);
                let others = views.iter().flat_map(|view| view.iter().enumerate().filter(|(k, _)| *k != i));
                let negatives: f64 = others.map(|(_, z)| (dot(&view[i], z) / tau).exp()).sum();
                sum += negatives.ln() - weight * dot(&view[i], &views[1 - v][i]) / tau;
            }
        }
        sum / (2 * n) as f64
    }

    #[test]
    fn both_are_the_mean_over_all_anchors() {
        let (a, b) = (matrix(5, 4, 1), matrix(5, 4, 2));
        assert!((scalar(dcl(&a, &b, 0.2)) - plain(&a, &b, 0.2, None)).abs() < 1e-12);
        assert!((scalar(dclw(&a, &b, 0.2, 0.5)) - plain(&a, &b, 0.2, Some(0.5))).abs() < 1e-12);
    }

    #[test]
    fn symmetric_and_indifferent_to_length_and_the_order_of_images() {
        let (a, b) = (matrix(5, 4, 1), matrix(5, 4, 2));
        for sigma in [None, Some(0.5)] {
            let loss = |a: &Tensor, b: &Tensor| {
                scalar(sigma.map_or_else(|| dcl(a, b, 0.2), |sigma| dclw(a, b, 0.2, sigma)))
            };
            let value = loss(&a, &b);
            assert!((loss(&b, &a) - value).abs() < 1e-12);
            assert!((loss(&permuted(&a), &permuted(&b)) - value).abs() < 1e-12);
            assert!((loss(&(&a * 3.0).unwrap(), &(&b * 0.2).unwrap()) - value).abs() < 1e-12);
        }
    }

    #[test]
    fn low_temperatures_do_not_overflow() {
        let [a, b] = [1, 2].map(|salt| matrix(8, 4, salt).to_dtype(DType::F32).unwrap());
        for loss in [dcl(&a, &b, 0.005), dclw(&a, &b, 0.005, 0.005)] {
            assert!(loss.unwrap().to_scalar::<f32>().unwrap().is_finite());
        }
    }

    #[test]
    fn gradients_equal_central_differences() {
        assert_gradients(&matrix(4, 3, 1), &matrix(4, 3, 2), |a, b| dcl(a, b, 0.2));
        // So wide a sigma that the weights, which get no gradient, hardly move.
        assert_gradients(&matrix(4, 3, 1), &matrix(4, 3, 2), |a, b| dclw(a, b, 0.2, 1e9));
    }

    #[test]
    fn bad_input_is_refused() {
        let a = matrix(4, 3, 1);
        let refused = |x: Result<Tensor>, part: &str| {
            let error = x.unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        refused(dcl(&a, &matrix(4, 2, 1), 0.1), "[4, 2]");
        refused(dcl(&matrix(1, 3, 1), &matrix(1, 3, 1), 0.1), "got 1");
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            refused(dcl(&a, &a, bad), "temperature");
            refused(dclw(&a, &a, 0.1, bad), "sigma");
        }
    }
}
