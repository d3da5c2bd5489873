//! The loss of iBOT on patches (Zhou et al., 2021, <https://arxiv.org/abs/2111.07832>, equation 2; official code
//! bytedance/ibot): the student predicts, from what it sees around them, the teacher's distributions of masked patches.
//!
//! Both crops are compared with themselves, the student's masked and the teacher's whole. The loss on class tokens, between
//! different views, is [`DinoLoss`](crate::DinoLoss), with a centre of its own.

use candle_core::{D, DType, Result, Tensor, bail};

use crate::checks;
use crate::sinkhorn::log_softmax;

/// `Σ_i w_i · −Σ_k P_ik log softmax(g_i / τ_s)_k` over the masked patches `i` of all images.
///
/// With the weights of [`ibot_weights`] it is the mean over the images of the mean over their masked patches, where
/// images without any count as 0. The targets are [`centered_targets`](crate::centered_targets) with the centre of the
/// patches, or [`sinkhorn`](crate::sinkhorn()) as in DINOv2. No gradient flows to targets and weights.
///
/// # Shapes
/// `student`: `(M, K)` logits, a row a masked patch; `targets`: `(M, K)`, of the same patches; `weights`: `(M)`. Without
/// any masked patch the loss is 0. Returns a scalar.
///
/// # Errors
/// If the shapes do not fit, or the temperature is not positive.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Tensor};
///
/// // Two images of four patches; one patch of the first is masked.
/// let mask = Tensor::new(&[[0u8, 1, 0, 0], [0, 0, 0, 0]], &Device::Cpu)?;
/// let weights = ssl_losses::ibot_weights(&mask, DType::F64)?.flatten_all()?;
/// let masked = Tensor::new(&[1u32], &Device::Cpu)?;
/// let weights = weights.index_select(&masked, 0)?;
/// let (logits, targets) = (Tensor::zeros((1, 2), DType::F64, &Device::Cpu)?, Tensor::new(&[[0.9, 0.1]], &Device::Cpu)?);
/// let loss = ssl_losses::ibot_patches(&logits, &targets, &weights, 0.1)?.to_scalar::<f64>()?;
/// assert!((loss - 2f64.ln() / 2.0).abs() < 1e-12);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn ibot_patches(
    student: &Tensor,
    targets: &Tensor,
    weights: &Tensor,
    student_temperature: f64,
) -> Result<Tensor> {
    checks::temperature(student_temperature)?;
    let (m, _) = checks::paired(student, targets, "ibot_patches")?;
    if weights.dims() != [m] {
        bail!("ibot_patches needs a weight for each of {m} masked patches, got {:?}", weights.dims());
    }
    if m == 0 {
        return Tensor::zeros((), student.dtype(), student.device());
    }
    let log_p = log_softmax(&(student / student_temperature)?)?;
    let weighted = targets.detach().broadcast_mul(&weights.detach().unsqueeze(1)?)?; // (M, K)
    (weighted * log_p)?.sum_all()?.neg()
}

/// The weight of every patch in [`ibot_patches`]: `mask / (max(1, masked patches of the image) · N)`.
///
/// Images without masked patches have no weight and yet count in `N`.
///
/// # Shapes
/// `mask`: `(N, L)` of any type, 1 for masked patches and 0 for others. Returns `(N, L)` of the type `dtype`.
///
/// # Errors
/// If the mask is not of rank 2 or has no images, or if `dtype` is not a floating type.
pub fn ibot_weights(mask: &Tensor, dtype: DType) -> Result<Tensor> {
    let (n, _) = mask.dims2()?;
    checks::some_rows(mask, "ibot_weights")?;
    if !dtype.is_float() {
        bail!("the weights must have a floating type, got {dtype:?}");
    }
    let mask = mask.to_dtype(dtype)?;
    let masked = mask.sum_keepdim(D::Minus1)?.maximum(1.0)?; // (N, 1)
    mask.broadcast_div(&masked)? / n as f64
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::centered_targets;
    use crate::testing::{assert_gradients, matrix, permuted, scalar};

    fn targets(n: usize, k: usize) -> Tensor {
        let center = matrix(1, k, 9).squeeze(0).unwrap();
        centered_targets(&matrix(n, k, 8), &center, 0.04).unwrap()
    }

    fn weights(n: usize) -> Tensor {
        matrix(n, 1, 7).squeeze(1).unwrap().abs().unwrap()
    }

    #[test]
    fn logits_of_zero_give_the_logarithm_of_the_prototypes_for_each_image_with_a_mask() {
        let mask = Tensor::new(&[[1u8, 1, 0], [0, 1, 0], [0, 0, 0], [1, 1, 1]], &Device::Cpu).unwrap();
        let weights = ibot_weights(&mask, DType::F64).unwrap().flatten_all().unwrap();
        let zeros = Tensor::zeros((12, 5), DType::F64, &Device::Cpu).unwrap();
        let loss = scalar(ibot_patches(&zeros, &targets(12, 5), &weights, 0.1));
        assert!((loss - 0.75 * 5f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn every_image_weighs_the_same_however_many_patches_it_has() {
        let mask = Tensor::new(&[[1f32, 1., 0., 0.], [0., 0., 0., 1.], [0., 0., 0., 0.]], &Device::Cpu);
        let weights = ibot_weights(&mask.unwrap(), DType::F32).unwrap().to_vec2::<f32>().unwrap();
        let third = 1.0 / 3.0;
        assert_eq!(weights, [[0.5 * third, 0.5 * third, 0., 0.], [0., 0., 0., third], [0.; 4]]);
    }

    #[test]
    fn it_is_the_weighted_sum_of_single_patches_in_any_order() {
        let (s, t, w) = (matrix(7, 4, 1), targets(7, 4), weights(7));
        let loss = scalar(ibot_patches(&s, &t, &w, 0.1));
        let row = |x: &Tensor, i| x.narrow(0, i, 1).unwrap();
        let alone = |i| scalar(ibot_patches(&row(&s, i), &row(&t, i), &row(&w, i), 0.1));
        assert!(((0..7).map(alone).sum::<f64>() - loss).abs() < 1e-12 * loss);
        let shuffled = ibot_patches(&permuted(&s), &permuted(&t), &permuted(&w), 0.1);
        assert!((scalar(shuffled) - loss).abs() < 1e-12 * loss);
    }

    #[test]
    fn without_masked_patches_the_loss_is_zero() {
        let none = Tensor::zeros((0, 4), DType::F64, &Device::Cpu).unwrap();
        let no_weights = Tensor::zeros(0, DType::F64, &Device::Cpu).unwrap();
        let targets = centered_targets(&none, &Tensor::zeros(4, DType::F64, &Device::Cpu).unwrap(), 0.04);
        assert_eq!(scalar(ibot_patches(&none, &targets.unwrap(), &no_weights, 0.1)), 0.0);
    }

    #[test]
    fn gradient_equals_central_differences_and_none_flows_to_targets_and_weights() {
        let (t, w) = (targets(3, 4), weights(3));
        assert_gradients(&matrix(3, 4, 1), &matrix(3, 4, 2), |a, b| {
            ibot_patches(a, &t, &w, 0.1)? + ibot_patches(b, &t, &w, 0.1)?
        });
        let [s, t, w] = [matrix(3, 4, 1), t, w].map(|x| Var::from_tensor(&x).unwrap());
        let grads = ibot_patches(&s, &t, &w, 0.1).unwrap().backward().unwrap();
        assert!(grads.get(&s).is_some() && grads.get(&t).is_none() && grads.get(&w).is_none());
    }

    #[test]
    fn bad_input_is_refused() {
        let (s, t, w) = (matrix(4, 5, 1), targets(4, 5), weights(4));
        let refused = |x: Result<Tensor>, part: &str| {
            let error = x.unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        refused(ibot_patches(&s, &targets(3, 5), &w, 0.1), "[3, 5]");
        refused(ibot_patches(&s, &t, &weights(5), 0.1), "4 masked patches, got [5]");
        refused(ibot_patches(&s, &t, &w, 0.0), "temperature");
        refused(ibot_weights(&w, DType::F32), "rank");
        refused(ibot_weights(&matrix(0, 4, 1), DType::F32), "0 rows");
        refused(ibot_weights(&s, DType::U8), "U8");
    }
}
