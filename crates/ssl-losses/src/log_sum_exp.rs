//! The logarithm of a sum of exponentials, the denominator of every contrastive loss.

use candle_core::{D, Result, Tensor};

/// `log Σ exp` over the last dimension, shifted by the maximum so that it cannot overflow: `(…, C)` to `(…)`.
pub(crate) fn log_sum_exp(s: &Tensor) -> Result<Tensor> {
    let max = s.detach().max_keepdim(D::Minus1)?;
    let sum = s.broadcast_sub(&max)?.exp()?.sum_keepdim(D::Minus1)?;
    (sum.log()? + max)?.squeeze(D::Minus1)
}
