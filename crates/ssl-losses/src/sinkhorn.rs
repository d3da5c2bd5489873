//! Codes of equal size: the Sinkhorn-Knopp iteration of SwAV (Caron et al., 2020, <https://arxiv.org/abs/2006.09882>,
//! section 3.1 and the appendix's pseudo-code).

use candle_core::{D, Result, Tensor, bail};

/// Assigns samples to prototypes so that all prototypes get about the same share.
///
/// Starts from `exp(s / ε)` and divides in turns by the sums over the samples and over the prototypes. The last division
/// is over the prototypes: every row is a distribution. With 0 iterations that is all, a softmax of each row, without
/// equal shares. `s / ε` is shifted by its global maximum, which does not change the result.
///
/// In `f32` the scores may span `87 ε`, beyond which exponentials vanish; cosines do not for `ε ≥ 0.025`.
///
/// # Shapes
/// `scores`: `(N, K)`, a row a sample. Returns `(N, K)`, detached, of the same type.
///
/// # Errors
/// If the scores are not of rank 2 or are empty, or if ε is not positive.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
///
/// // Both samples prefer the first prototype, the second of them less.
/// let scores = Tensor::new(&[[1f64, 0.0], [1.0, 0.5]], &Device::Cpu)?;
/// let codes = ssl_losses::sinkhorn(&scores, 0.5, 50)?.to_vec2::<f64>()?;
/// assert!(codes[0][0] > 0.6 && codes[1][1] > 0.6);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn sinkhorn(scores: &Tensor, epsilon: f64, iterations: usize) -> Result<Tensor> {
    let (n, k) = scores.dims2()?;
    if n == 0 || k == 0 {
        bail!("sinkhorn needs samples and prototypes, got {n} and {k}");
    }
    if !(epsilon.is_finite() && epsilon > 0.0) {
        bail!("sinkhorn's epsilon must be positive and finite, got {epsilon}");
    }
    let s = (scores.detach() / epsilon)?;
    let mut q = s.broadcast_sub(&s.max_all()?)?.exp()?;
    for _ in 0..iterations {
        q = (share(&q, 0)? / k as f64)?;
        q = (share(&q, 1)? / n as f64)?;
    }
    share(&q, 1)
}

/// `q` divided by its sums over a dimension; a sum of 0 stays 0.
fn share(q: &Tensor, dim: usize) -> Result<Tensor> {
    q.broadcast_div(&q.sum_keepdim(dim)?.maximum(1e-37)?)
}

/// `log softmax` of each row.
pub(crate) fn log_softmax(s: &Tensor) -> Result<Tensor> {
    let s = s.broadcast_sub(&s.detach().max_keepdim(D::Minus1)?)?;
    s.broadcast_sub(&s.exp()?.sum_keepdim(D::Minus1)?.log()?)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;

    fn scores(n: usize, k: usize) -> Tensor {
        let data = (0..n * k).map(|i| ((i * 7919 + 31) % 257) as f64 / 128.0 - 1.0).collect();
        Tensor::from_vec(data, (n, k), &Device::Cpu).unwrap()
    }

    fn sums(q: &Tensor, dim: usize) -> Vec<f64> {
        q.sum(dim).unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
    }

    #[test]
    fn constant_scores_give_equal_codes() {
        for iterations in [0, 3] {
            let s = Tensor::full(0.7f64, (6, 4), &Device::Cpu).unwrap();
            let q = sinkhorn(&s, 0.05, iterations).unwrap();
            let q = q.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            assert!(q.iter().all(|q| (q - 0.25).abs() < 1e-12));
        }
    }

    #[test]
    fn rows_are_distributions_and_columns_become_equal() {
        let s = scores(12, 5);
        for iterations in [0, 1, 3] {
            let q = sinkhorn(&s, 0.05, iterations).unwrap();
            assert!(sums(&q, 1).iter().all(|sum| (sum - 1.0).abs() < 1e-12));
        }
        let q = sinkhorn(&s, 0.5, 200).unwrap();
        assert!(sums(&q, 0).iter().all(|sum| (sum - 12.0 / 5.0).abs() < 1e-9), "{q}");
        let single = sinkhorn(&(s.to_dtype(DType::F32).unwrap() * 1.0).unwrap(), 0.025, 3).unwrap();
        assert!(sums(&single, 1).iter().all(|sum| (sum - 1.0).abs() < 1e-5));
    }

    #[test]
    fn without_iterations_it_is_a_softmax() {
        let s = scores(4, 3);
        let expected = log_softmax(&(&s / 0.1).unwrap()).unwrap().exp().unwrap();
        let difference =
            (sinkhorn(&s, 0.1, 0).unwrap() - expected).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f64>().unwrap() < 1e-12);
    }

    #[test]
    fn a_shift_of_all_scores_changes_nothing_and_no_gradient_flows() {
        let s = Var::from_tensor(&scores(5, 4)).unwrap();
        let (q, shifted) =
            (sinkhorn(&s, 0.05, 3).unwrap(), sinkhorn(&(&*s + 1e4).unwrap(), 0.05, 3).unwrap());
        let difference = (&q - shifted).unwrap().abs().unwrap().max_all().unwrap();
        assert!(difference.to_scalar::<f64>().unwrap() < 1e-9);
        assert!(q.sum_all().unwrap().backward().unwrap().get(&s).is_none());
    }

    #[test]
    fn bad_input_is_refused() {
        for epsilon in [0.0, -1.0, f64::NAN] {
            let error = sinkhorn(&scores(2, 2), epsilon, 3).unwrap_err().to_string();
            assert!(error.contains("epsilon") && error.contains(&epsilon.to_string()), "{error}");
        }
        assert!(sinkhorn(&scores(2, 2).flatten_all().unwrap(), 0.1, 3).is_err());
    }
}
