//! What contrastive methods report of a batch: mean cosines, and bounds on the information that views share.

use candle_core::{Device, Result, Tensor};
use ssl_losses::{in_batch_info_nce, normalize};

/// What a lower bound on the mutual information of two views cannot exceed, in nats: the logarithm of the `candidates`
/// among which each view's partner was to be found.
pub(crate) fn ceiling(candidates: usize) -> Result<(&'static str, Tensor)> {
    Ok(("mi_ceiling", Tensor::new((candidates as f64).ln() as f32, &Device::Cpu)?))
}

/// The bound `I(z_a; z_b) ≥ log N − InfoNCE` with the other view's embeddings as the only candidates. That of NT-Xent counts
/// the image's own view among the candidates, whose distribution is not that of the partners, so that it is not quite one.
pub(crate) fn cross_view_terms(z_a: &Tensor, z_b: &Tensor, tau: f64) -> Result<Vec<(&'static str, Tensor)>> {
    let n = (z_a.dim(0)? as f64).ln();
    let directions = (in_batch_info_nce(z_a, z_b, tau)? + in_batch_info_nce(z_b, z_a, tau)?)?;
    let ceiling = Tensor::new(n as f32, &Device::Cpu)?;
    Ok(vec![("cross_view_bound", ((directions * -0.5)? + n)?), ("cross_view_ceiling", ceiling)])
}

/// The mean cosines of queries with their own keys and with those of other images.
pub(crate) fn cosines(q: &Tensor, k: &Tensor) -> Result<[Tensor; 2]> {
    let n = q.dim(0)? as f64;
    let (q, k) = (normalize(q)?, normalize(k)?);
    let positives = (&q * &k)?.sum_all()?;
    // The sum of all products is the product of the sums.
    let all = (q.sum(0)? * k.sum(0)?)?.sum_all()?;
    Ok([(&positives / n)?, ((all - positives)? / (n * (n - 1.0)))?])
}
