//! What methods with prototypes or labels report of their predictions.

use std::collections::BTreeSet;

use candle_core::{D, DType, Device, Result, Tensor};
use ssl_losses::mean_entropy;

/// The information of predictions on their sample, `H(mean p) − mean H(p)` in nats, at most `ln K`.
///
/// `log_p` are the logarithms of distributions, `(N, K)`, a row a sample.
pub(crate) fn prediction_information(log_p: &Tensor) -> Result<Tensor> {
    let p = log_p.exp()?;
    let conditional = (&p * log_p)?.sum(1)?.mean_all()?.neg()?;
    entropy(&p.mean(0)?)? - conditional
}

/// The most that [`prediction_information`] can be of `rows` distributions over `k` prototypes, in nats.
pub(crate) fn ceiling(k: usize, rows: usize) -> Result<(&'static str, Tensor)> {
    Ok(("prediction_ceiling", Tensor::new((k.min(rows).max(1) as f32).ln(), &Device::Cpu)?))
}

/// `−Σ p log p` of all elements, with `0 log 0 = 0`.
pub(crate) fn entropy(p: &Tensor) -> Result<Tensor> {
    (p * p.maximum(1e-37)?.log()?)?.sum_all()?.neg()
}

/// What a method reports whose `targets`, `(N, K)` each, come from a teacher and whose loss is their cross-entropy with
/// what a student predicts, on average `H(target) + KL(target ‖ prediction)`, all in nats: both parts, the information of
/// the targets on the image and its ceiling, and how many prototypes are a first choice and could be. Targets without entropy, and those
/// with `ln K` of it, are the two ways to collapse.
pub(crate) fn teacher_terms(loss: &Tensor, targets: &[Tensor]) -> Result<Vec<(&'static str, Tensor)>> {
    let p = Tensor::cat(targets, 0)?;
    let (rows, k) = p.dims2()?;
    let conditional = mean_entropy(&p)?;
    Ok(vec![
        ("teacher_entropy", conditional.clone()),
        ("teacher_kl", (loss.detach() - &conditional)?),
        ("prediction_information", (entropy(&p.mean(0)?)? - conditional)?),
        ("used_prototypes", used_columns(&p)?),
        ("possible_prototypes", Tensor::new(k.min(rows) as f32, p.device())?),
        ceiling(k, rows)?,
    ])
}

/// How many columns of `scores`, `(N, K)`, are the largest of some row.
pub(crate) fn used_columns(scores: &Tensor) -> Result<Tensor> {
    distinct(&scores.argmax(D::Minus1)?)
}

/// How many different values `labels`, whole numbers `(N)`, have.
pub(crate) fn distinct(labels: &Tensor) -> Result<Tensor> {
    let values = labels.to_dtype(DType::I64)?.to_vec1::<i64>()?;
    Tensor::new(values.into_iter().collect::<BTreeSet<_>>().len() as f32, labels.device())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certain_and_even_predictions_tell_all_and_equal_ones_nothing() {
        let value = |p: &[[f64; 2]; 2]| {
            let log_p = (Tensor::new(p, &Device::Cpu).unwrap() + 1e-300).unwrap().log().unwrap();
            prediction_information(&log_p).unwrap().to_scalar::<f64>().unwrap()
        };
        assert!((value(&[[1.0, 0.0], [0.0, 1.0]]) - 2f64.ln()).abs() < 1e-12);
        assert!(value(&[[0.3, 0.7], [0.3, 0.7]]).abs() < 1e-12);
        let scores =
            Tensor::new(&[[0f32, 1.0, 0.0], [0.0, 3.0, 2.0], [9.0, 3.0, 2.0]], &Device::Cpu).unwrap();
        assert_eq!(used_columns(&scores).unwrap().to_scalar::<f32>().unwrap(), 2.0);
    }
}
