//! The smooth L1 distance of predicted features: data2vec (Baevski et al., 2022, <https://arxiv.org/abs/2202.03555>,
//! equation 2; β = 2 in the official code for images, facebookresearch/data2vec_vision) and I-JEPA (Assran et al., 2023,
//! <https://arxiv.org/abs/2301.08243>; β = 1 in the official code facebookresearch/ijepa, where the paper has the squared
//! distance).

use candle_core::{D, Result, Tensor, bail};

use crate::checks;

/// The mean over all entries of `d² / 2β` where `|d| < β`, and of `|d| − β/2` elsewhere, with `d = prediction − target`.
///
/// As `torch.nn.functional.smooth_l1_loss`. Gradients flow to both; detach the target.
///
/// # Shapes
/// `prediction`, `target`: the same, any. Returns a scalar.
///
/// # Errors
/// If the shapes differ or are empty, or β is not positive.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
///
/// let (prediction, target) = (Tensor::new(&[1f64, 5.], &Device::Cpu)?, Tensor::new(&[0f64, 0.], &Device::Cpu)?);
/// let loss = ssl_losses::smooth_l1(&prediction, &target, 2.0)?.to_scalar::<f64>()?;
/// assert_eq!(loss, (0.25 + 4.0) / 2.0);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn smooth_l1(prediction: &Tensor, target: &Tensor, beta: f64) -> Result<Tensor> {
    let error = entries(prediction, target, beta)?;
    if error.elem_count() == 0 {
        bail!("smooth_l1 needs predictions, got {:?}", prediction.dims());
    }
    error.mean_all()
}

/// [`smooth_l1`] of the masked tokens alone: the mean over all of the batch's masked tokens and their features.
///
/// # Shapes
/// `prediction`, `target`: `(N, L, D)`; `mask`: `(N, L)` of any type, 1 for masked tokens and 0 for others. Returns a
/// scalar.
///
/// # Errors
/// If the shapes do not fit, no token is masked, or β is not positive.
pub fn masked_smooth_l1(prediction: &Tensor, target: &Tensor, mask: &Tensor, beta: f64) -> Result<Tensor> {
    let error = entries(prediction, target, beta)?;
    let (mask, masked) = checks::token_mask(prediction, mask, "masked_smooth_l1")?;
    (error.mean(D::Minus1)? * mask)?.sum_all()?.div(&masked)
}

/// The distance of each entry.
fn entries(prediction: &Tensor, target: &Tensor, beta: f64) -> Result<Tensor> {
    if !(beta.is_finite() && beta > 0.0) {
        bail!("beta must be positive and finite, got {beta}");
    }
    checks::same_shape(prediction, target, "smooth_l1")?;
    let distance = (prediction - target)?.abs()?;
    // With b = min(|d|, β) both branches are b (|d| − b/2) / β, whose slope for a constant b is b/β, that of both too.
    let bounded = distance.detach().minimum(beta)?;
    (&bounded * (distance - (&bounded * 0.5)?)?)? / beta
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::testing::{assert_gradients, matrix, permuted, scalar};

    fn tokens(n: usize, l: usize, d: usize, salt: u64) -> Tensor {
        (matrix(n * l, d, salt).reshape((n, l, d)).unwrap() * 3.0).unwrap()
    }

    fn mask() -> Tensor {
        Tensor::new(&[[1u8, 0, 1, 1], [0, 0, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0]], &Device::Cpu).unwrap()
    }

    fn plain(d: f64, beta: f64) -> f64 {
        if d.abs() < beta { d * d / (2.0 * beta) } else { d.abs() - beta / 2.0 }
    }

    #[test]
    fn it_is_the_definition_on_both_sides_of_beta_and_at_it() {
        for beta in [0.5, 1.0, 2.0] {
            for d in [0.0, 0.1, -0.4, 0.5, -1.0, 2.0, 7.0, -9.0] {
                let [p, t] = [d + 1.0, 1.0].map(|v| Tensor::new(&[v], &Device::Cpu).unwrap());
                assert!((scalar(smooth_l1(&p, &t, beta)) - plain(d, beta)).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn a_prediction_of_zero_costs_the_expectation_of_a_normal_variable() {
        // 16 * 1000 quantiles, since random numbers would need a wide tolerance.
        let step = 16.0 / 16_000.0;
        let at = |i: u32| -8.0 + step * (f64::from(i) + 0.5);
        let density = |x: f64| (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
        for (beta, expected) in [(1.0, 0.4247), (2.0, 0.2471)] {
            let x: Vec<f64> = (0..16_000).map(at).collect();
            let expectation: f64 = x
                .iter()
                .map(|x| {
                    let x_t = Tensor::new(&[*x], &Device::Cpu).unwrap();
                    density(*x) * step * scalar(smooth_l1(&x_t, &x_t.zeros_like().unwrap(), beta))
                })
                .sum();
            assert!((expectation - expected).abs() < 1e-3, "{beta}: {expectation}");
        }
    }

    #[test]
    fn only_masked_tokens_count_and_each_the_same() {
        let (p, t) = (tokens(4, 4, 3, 1), tokens(4, 4, 3, 2));
        let d = (&p - &t).unwrap().to_vec3::<f64>().unwrap();
        let masked = [(0, 0), (0, 2), (0, 3), (1, 3), (2, 1), (2, 3)];
        let sum: f64 = masked.iter().flat_map(|&(n, l)| &d[n][l]).map(|d| plain(*d, 2.0)).sum();
        assert!((scalar(masked_smooth_l1(&p, &t, &mask(), 2.0)) - sum / 18.0).abs() < 1e-12);
        let all = mask().ones_like().unwrap();
        let dense = scalar(smooth_l1(&p, &t, 2.0));
        assert!((scalar(masked_smooth_l1(&p, &t, &all, 2.0)) - dense).abs() < 1e-12);
        let shuffled = masked_smooth_l1(&permuted(&p), &permuted(&t), &permuted(&mask()), 2.0);
        assert!((scalar(shuffled) - sum / 18.0).abs() < 1e-12);
    }

    #[test]
    fn gradients_equal_central_differences() {
        let (p, t) = (tokens(4, 4, 2, 1), tokens(4, 4, 2, 2));
        for beta in [0.5, 2.0] {
            assert_gradients(&p, &t, |p, t| smooth_l1(p, t, beta));
            assert_gradients(&p, &t, |p, t| masked_smooth_l1(p, t, &mask(), beta));
        }
    }

    #[test]
    fn bad_input_is_refused() {
        let refused = |x: Result<Tensor>, part: &str| {
            let error = x.unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        let p = tokens(4, 4, 3, 1);
        for beta in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            refused(smooth_l1(&p, &p, beta), "beta");
            refused(masked_smooth_l1(&p, &p, &mask(), beta), "beta");
        }
        refused(smooth_l1(&p, &tokens(4, 4, 2, 1), 1.0), "[4, 4, 2]");
        refused(masked_smooth_l1(&p, &p, &mask().narrow(1, 0, 3).unwrap(), 1.0), "got [4, 3]");
        refused(masked_smooth_l1(&p, &p, &mask().zeros_like().unwrap(), 1.0), "none is masked");
        let none = Tensor::zeros((0, 3), DType::F64, &Device::Cpu).unwrap();
        refused(smooth_l1(&none, &none, 1.0), "[0, 3]");
    }
}
