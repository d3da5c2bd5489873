//! InfoNCE (van den Oord et al., 2018, <https://arxiv.org/abs/1807.03748>): a query finds its key among others. With a
//! queue of older keys it is the loss of MoCo (He et al., 2019, <https://arxiv.org/abs/1911.05722>, equation 1), with the
//! keys of the batch that of MoCo v3 (Chen et al., 2021, <https://arxiv.org/abs/2104.02057>, equation 1).

use candle_core::{Result, Tensor, bail};

use crate::checks;
use crate::log_sum_exp::log_sum_exp;
use crate::normalize::normalize;

/// InfoNCE with a queue: the mean over the queries of `−log softmax` of their own key among it and the whole queue.
///
/// `q` and `k` are normalised here; the rows of `queue` are taken as they are and should have length 1. The batch's other
/// keys are no negatives. The bound `I(q; k) ≥ log(1 + K) − loss` (in nats) holds for the mutual information of the views,
/// where the queue's keys come from other images.
///
/// Gradients flow to all three; detach keys and queue, as MoCo does.
///
/// # Shapes
/// `q`, `k`: `(N, D)`, row `n` of both from the same image; `queue`: `(K, D)`. Returns a scalar.
///
/// # Errors
/// If the shapes do not fit or are empty, or if the temperature is not positive.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
///
/// let q = Tensor::new(&[[2f64, 0.]], &Device::Cpu)?;
/// let queue = Tensor::new(&[[0f64, 1.], [0., -1.]], &Device::Cpu)?;
/// let loss = ssl_losses::info_nce(&q, &q, &queue, 0.5)?.to_scalar::<f64>()?;
/// // The key agrees and both of the queue are orthogonal: ln(1 + 2 exp(-1 / 0.5)).
/// assert!((loss - (1.0 + 2.0 * (-2f64).exp()).ln()).abs() < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn info_nce(q: &Tensor, k: &Tensor, queue: &Tensor, temperature: f64) -> Result<Tensor> {
    let logits = info_nce_logits(q, k, queue, temperature)?;
    let positive = logits.narrow(1, 0, 1)?.squeeze(1)?;
    (log_sum_exp(&logits)? - positive)?.mean_all()
}

/// The logits of [`info_nce`], `(N, 1 + K)`: the cosine of each query with its own key in column 0, then those with the
/// queue, all over the temperature.
///
/// # Errors
/// As [`info_nce`].
pub fn info_nce_logits(q: &Tensor, k: &Tensor, queue: &Tensor, temperature: f64) -> Result<Tensor> {
    let (n, d) = checks::paired(q, k, "info_nce")?;
    checks::temperature(temperature)?;
    let (size, width) = queue.dims2()?;
    if n == 0 || size == 0 || width != d {
        bail!("info_nce needs queries (N, D) and a queue (K, D), got {:?} and {:?}", q.dims(), queue.dims());
    }
    let q = normalize(q)?;
    let positive = (&q * normalize(k)?)?.sum_keepdim(1)?;
    let negative = q.matmul(&queue.t()?)?;
    Tensor::cat(&[positive, negative], 1)? / temperature
}

/// InfoNCE within a batch: the mean over the queries of `−log softmax` of their own key among all keys of the batch.
///
/// Rows are normalised here. Queries are compared with keys only, so that `N − 1` negatives remain. MoCo v3 adds two of
/// these, view by view, and multiplies them by `2τ`, which is the method's business. The bound
/// `I(q; k) ≥ log N − loss` (in nats) holds for the mutual information of the views.
///
/// Gradients flow to both; detach the keys, as MoCo v3 does.
///
/// # Shapes
/// `q`, `k`: `(N, D)`, row `n` of both from the same image. Returns a scalar.
///
/// # Errors
/// If the shapes differ or are not of rank 2, if `N < 2`, or if the temperature is not positive.
///
/// # Example
/// ```
/// use candle_core::{Device, Tensor};
///
/// let z = Tensor::new(&[[1f64, 0.], [0., 3.]], &Device::Cpu)?;
/// let loss = ssl_losses::in_batch_info_nce(&z, &z, 0.5)?.to_scalar::<f64>()?;
/// assert!((loss - (1.0 + (-2f64).exp()).ln()).abs() < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn in_batch_info_nce(q: &Tensor, k: &Tensor, temperature: f64) -> Result<Tensor> {
    let (n, _) = checks::paired(q, k, "in_batch_info_nce")?;
    checks::temperature(temperature)?;
    if n < 2 {
        bail!("in_batch_info_nce needs at least 2 images for negatives, got {n}");
    }
    let (q, k) = (normalize(q)?, normalize(k)?);
    let s = (q.matmul(&k.t()?)? / temperature)?; // (N, N), positives on the diagonal
    let positive = ((q * k)?.sum(1)? / temperature)?;
    (log_sum_exp(&s)? - positive)?.mean_all()
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;

    fn scalar(x: Result<Tensor>) -> f64 {
        x.unwrap().to_scalar().unwrap()
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

    fn rows(z: &Tensor, order: &[u32]) -> Tensor {
        z.index_select(&Tensor::new(order, &Device::Cpu).unwrap(), 0).unwrap()
    }

    #[test]
    fn equal_embeddings_give_the_logarithm_of_the_candidates() {
        let ones = |n| normalize(&Tensor::ones((n, 3), DType::F64, &Device::Cpu).unwrap()).unwrap();
        for (n, size) in [(1, 1), (2, 7), (5, 64)] {
            let loss = scalar(info_nce(&ones(n), &ones(n), &ones(size), 0.07));
            assert!((loss - ((1 + size) as f64).ln()).abs() < 1e-12);
        }
        for n in [2, 9] {
            assert!((scalar(in_batch_info_nce(&ones(n), &ones(n), 0.2)) - (n as f64).ln()).abs() < 1e-12);
        }
    }

    #[test]
    fn aligned_and_orthogonal_directions_have_the_closed_form() {
        let eye = Tensor::eye(6, DType::F64, &Device::Cpu).unwrap();
        let (z, queue) = (eye.narrow(0, 0, 2).unwrap(), eye.narrow(0, 2, 4).unwrap());
        for t in [0.07, 0.2, 1.0] {
            let closed = |negatives: f64| (1.0 + negatives * f64::exp(-1.0 / t)).ln();
            assert!((scalar(info_nce(&z, &z, &queue, t)) - closed(4.0)).abs() < 1e-12);
            assert!((scalar(in_batch_info_nce(&eye, &eye, t)) - closed(5.0)).abs() < 1e-12);
        }
    }

    #[test]
    fn scale_and_order_do_not_matter_and_the_other_keys_are_no_negatives() {
        let (q, k, queue) = (matrix(5, 4, 1), matrix(5, 4, 2), normalize(&matrix(7, 4, 3)).unwrap());
        let loss = scalar(info_nce(&q, &k, &queue, 0.2));
        let scaled = scalar(info_nce(&(&q * 3.5).unwrap(), &(&k * 0.1).unwrap(), &queue, 0.2));
        assert!((scaled - loss).abs() < 1e-12);
        let (images, keys) = ([3, 0, 2, 4, 1], [6, 2, 0, 5, 1, 4, 3]);
        let shuffled = info_nce(&rows(&q, &images), &rows(&k, &images), &rows(&queue, &keys), 0.2);
        assert!((scalar(shuffled) - loss).abs() < 1e-12);
        // The mean of each image by itself.
        let alone = |i: u32| scalar(info_nce(&rows(&q, &[i]), &rows(&k, &[i]), &queue, 0.2));
        assert!(((0..5).map(alone).sum::<f64>() / 5.0 - loss).abs() < 1e-12);

        let loss = scalar(in_batch_info_nce(&q, &k, 0.2));
        let shuffled = in_batch_info_nce(&rows(&q, &images), &rows(&(&k * 9.0).unwrap(), &images), 0.2);
        assert!((scalar(shuffled) - loss).abs() < 1e-12);
        assert!((scalar(in_batch_info_nce(&k, &q, 0.2)) - loss).abs() > 1e-3, "no symmetry");
    }

    #[test]
    fn within_a_batch_the_other_keys_are_the_queue() {
        let (q, k) = (matrix(5, 4, 1), normalize(&matrix(5, 4, 2)).unwrap());
        let others = |i: u32| rows(&k, &(0..5).filter(|j| *j != i).collect::<Vec<_>>());
        let one = |i: u32| scalar(info_nce(&rows(&q, &[i]), &rows(&k, &[i]), &others(i), 0.3));
        let mean = (0..5).map(one).sum::<f64>() / 5.0;
        assert!((scalar(in_batch_info_nce(&q, &k, 0.3)) - mean).abs() < 1e-12);
    }

    #[test]
    fn low_temperatures_do_not_overflow() {
        let [q, queue] =
            [3, 4].map(|salt| normalize(&matrix(8, 4, salt).to_dtype(DType::F32).unwrap()).unwrap());
        for loss in [info_nce(&q, &q, &queue, 0.005), in_batch_info_nce(&q, &q, 0.005)] {
            assert!(loss.unwrap().to_scalar::<f32>().unwrap().is_finite());
        }
    }

    #[test]
    fn gradients_equal_central_differences() {
        let vars = [(4, 5), (4, 6), (6, 7)].map(|(n, salt)| Var::from_tensor(&matrix(n, 3, salt)).unwrap());
        let [q, k, queue] = &vars;
        let check = |loss: &dyn Fn() -> Tensor, vars: &[Var]| {
            let grads = loss().backward().unwrap();
            for z in vars {
                let grad = grads.get(z).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
                let start = z.flatten_all().unwrap().to_vec1::<f64>().unwrap();
                for i in 0..start.len() {
                    let at = |step: f64| {
                        let mut moved = start.clone();
                        moved[i] += step;
                        z.set(&Tensor::from_vec(moved, z.shape(), &Device::Cpu).unwrap()).unwrap();
                        loss().to_scalar::<f64>().unwrap()
                    };
                    let slope = (at(1e-6) - at(-1e-6)) / 2e-6;
                    at(0.0);
                    assert!((slope - grad[i]).abs() < 1e-8, "{i}: {} is not {slope}", grad[i]);
                }
            }
        };
        check(&|| info_nce(q, k, queue, 0.3).unwrap(), &vars);
        check(&|| in_batch_info_nce(q, k, 0.3).unwrap(), &vars[..2]);
    }

    #[test]
    fn bad_input_is_refused() {
        let (a, queue) = (matrix(4, 3, 1), matrix(6, 3, 2));
        let refused = |x: Result<Tensor>, part: &str| {
            let error = x.unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        refused(info_nce(&a, &matrix(4, 2, 1), &queue, 0.1), "[4, 2]");
        refused(info_nce(&a, &a, &matrix(6, 2, 1), 0.1), "got [4, 3] and [6, 2]");
        refused(info_nce(&a, &a, &matrix(0, 3, 1), 0.1), "got [4, 3] and [0, 3]");
        refused(info_nce(&matrix(0, 3, 1), &matrix(0, 3, 1), &queue, 0.1), "got [0, 3]");
        refused(in_batch_info_nce(&a, &queue, 0.1), "[6, 3]");
        refused(in_batch_info_nce(&matrix(1, 3, 1), &matrix(1, 3, 1), 0.1), "got 1");
        for t in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            refused(info_nce(&a, &a, &queue, t), "temperature");
            refused(in_batch_info_nce(&a, &a, t), "temperature");
        }
    }
}
