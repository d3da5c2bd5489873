//! Mean cosines of a batch, for the log.

use candle_core::{Result, Tensor};
use ssl_losses::normalize;

/// The mean cosines of queries with their own keys and with those of other images.
pub(crate) fn cosines(q: &Tensor, k: &Tensor) -> Result<[Tensor; 2]> {
    let n = q.dim(0)? as f64;
    let (q, k) = (normalize(q)?, normalize(k)?);
    let positives = (&q * &k)?.sum_all()?;
    // The sum of all products is the product of the sums.
    let all = (q.sum(0)? * k.sum(0)?)?.sum_all()?;
    Ok([(&positives / n)?, ((all - positives)? / (n * (n - 1.0)))?])
}
