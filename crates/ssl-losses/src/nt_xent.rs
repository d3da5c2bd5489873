//! NT-Xent, the contrastive loss of SimCLR (Chen et al., 2020, <https://arxiv.org/abs/2002.05709>, equation 1).

use candle_core::{Result, Tensor, bail};

use crate::checks;
use crate::log_sum_exp::log_sum_exp;
use crate::normalize::normalize;

/// Normalised-temperature cross-entropy between two views.
///
/// With the `2N` normalised rows `z` of both views, `s_ik = z_i · z_k / τ` and `j(i)` the other view of the same image,
/// the loss is the mean over all `2N` anchors of `−s_ij(i) + log Σ_{k≠i} exp(s_ik)`: the positive counts in the
/// denominator, the anchor itself does not, and the other images count with both their views. The official code adds
/// the means of the two views instead, which is twice this value.
///
/// The bound `I(z_a; z_b) ≥ log(2N − 1) − loss` (in nats) holds for the mutual information of the two views.
///
/// # Shapes
/// `z_a`, `z_b`: `(N, D)`, row `n` of both from the same image; they need not be normalised. Returns a scalar.
///
/// # Errors
/// If the shapes differ or are not of rank 2, if `N < 2`, or if the temperature is not positive.
pub fn nt_xent(z_a: &Tensor, z_b: &Tensor, temperature: f64) -> Result<Tensor> {
    let (n, _) = checks::paired(z_a, z_b, "nt_xent")?;
    checks::temperature(temperature)?;
    if n < 2 {
        bail!("nt_xent needs at least 2 images for negatives, got {n}");
    }
    let (z_a, z_b) = (normalize(z_a)?, normalize(z_b)?);
    let z = Tensor::cat(&[&z_a, &z_b], 0)?;
    let s = (z.matmul(&z.t()?)? / temperature)?; // (2N, 2N)
    let s = (s + self_mask(2 * n, &z)?)?;
    let positive = ((z_a * z_b)?.sum(1)? / temperature)?; // (N,), the same for both directions
    log_sum_exp(&s)?.mean_all()? - positive.mean_all()?
}

/// `−∞` on the diagonal, 0 elsewhere: takes each row's similarity to itself out of a sum of exponentials.
pub(crate) fn self_mask(n: usize, like: &Tensor) -> Result<Tensor> {
    let mut mask = vec![0f32; n * n];
    mask.iter_mut().step_by(n + 1).for_each(|diagonal| *diagonal = f32::NEG_INFINITY);
    Tensor::from_vec(mask, (n, n), like.device())?.to_dtype(like.dtype())
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    fn value(z_a: &Tensor, z_b: &Tensor, temperature: f64) -> f64 {
        nt_xent(z_a, z_b, temperature).unwrap().to_scalar::<f64>().unwrap()
    }

    /// Deterministic values without a pattern that a permutation would keep.
    fn matrix(n: usize, d: usize, salt: u64) -> Tensor {
        let hash = |i: u64| {
            (i + 1).wrapping_mul(0x9e3779b97f4a7c15 ^ salt).rotate_left(29).wrapping_mul(0xbf58476d1ce4e5b9)
        };
        let data: Vec<f64> =
            (0..(n * d) as u64).map(|i| (hash(i) >> 11) as f64 / (1u64 << 52) as f64 - 1.0).collect();
        Tensor::from_vec(data, (n, d), &Device::Cpu).unwrap()
    }

    #[test]
    fn equal_embeddings_give_the_logarithm_of_the_candidates() {
        for n in [2, 5, 64] {
            let z = Tensor::ones((n, 3), candle_core::DType::F64, &Device::Cpu).unwrap();
            assert!((value(&z, &z, 0.1) - ((2 * n - 1) as f64).ln()).abs() < 1e-12);
        }
    }

    #[test]
    fn perfect_alignment_of_orthogonal_images() {
        let z = Tensor::eye(6, candle_core::DType::F64, &Device::Cpu).unwrap();
        for t in [0.1, 0.5, 1.0] {
            assert!((value(&z, &z, t) - (1.0 + 10.0 * (-1.0 / t).exp()).ln()).abs() < 1e-12);
        }
    }

    #[test]
    fn symmetric_scale_free_and_indifferent_to_the_order_of_images() {
        let (a, b) = (matrix(7, 5, 1), matrix(7, 5, 2));
        let loss = value(&a, &b, 0.2);
        assert!((value(&b, &a, 0.2) - loss).abs() < 1e-12);
        assert!((value(&(&a * 3.5).unwrap(), &b, 0.2) - loss).abs() < 1e-12);
        let order = Tensor::new(&[3u32, 0, 6, 1, 5, 2, 4], &Device::Cpu).unwrap();
        let permuted = |z: &Tensor| z.index_select(&order, 0).unwrap();
        assert!((value(&permuted(&a), &permuted(&b), 0.2) - loss).abs() < 1e-12);
        assert!(loss > 0.0);
    }

    #[test]
    fn low_temperatures_do_not_overflow() {
        let a = matrix(8, 4, 3).to_dtype(candle_core::DType::F32).unwrap();
        assert!(nt_xent(&a, &a, 0.005).unwrap().to_scalar::<f32>().unwrap().is_finite());
    }

    #[test]
    fn gradient_equals_central_differences() {
        let (a, b) =
            (Var::from_tensor(&matrix(4, 3, 5)).unwrap(), Var::from_tensor(&matrix(4, 3, 6)).unwrap());
        let grads = nt_xent(&a, &b, 0.3).unwrap().backward().unwrap();
        for z in [&a, &b] {
            let grad = grads.get(z).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
            let start = z.flatten_all().unwrap().to_vec1::<f64>().unwrap();
            for i in 0..start.len() {
                let at = |step: f64| {
                    let mut moved = start.clone();
                    moved[i] += step;
                    z.set(&Tensor::from_vec(moved, (4, 3), &Device::Cpu).unwrap()).unwrap();
                    value(&a, &b, 0.3)
                };
                let slope = (at(1e-6) - at(-1e-6)) / 2e-6;
                at(0.0);
                assert!((slope - grad[i]).abs() < 1e-8, "{i}: {} is not {slope}", grad[i]);
            }
        }
    }

    #[test]
    fn bad_input_is_refused() {
        let a = matrix(4, 3, 1);
        let error = nt_xent(&a, &matrix(4, 2, 1), 0.1).unwrap_err().to_string();
        assert!(error.contains("[4, 3]") && error.contains("[4, 2]"), "{error}");
        assert!(nt_xent(&matrix(1, 3, 1), &matrix(1, 3, 1), 0.1).unwrap_err().to_string().contains("got 1"));
        for t in [0.0, -1.0, f64::NAN] {
            assert!(nt_xent(&a, &a, t).unwrap_err().to_string().contains("temperature"));
        }
    }
}
