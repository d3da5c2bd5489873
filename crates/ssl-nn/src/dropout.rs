//! Dropout (Srivastava et al., 2014) and stochastic depth (Huang et al., 2016, <https://arxiv.org/abs/1603.09382>),
//! drawn from coordinates.

use candle_core::{Result, Tensor, bail};
use rand_core::RngCore;
use rayon::prelude::*;

use crate::graph::{gradient, node};
use crate::rng::{Purpose, Rng, rng};
use crate::storage::{Element, dispatch, reader};

/// Where in a run a layer draws. Equal coordinates give equal draws, so a forward pass can be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrawsAt {
    /// The seed of the run.
    pub seed: u64,
    /// The step of the run.
    pub step: u64,
    /// Number, within the step, of the first sample of the batch. Where a step is made of several forward passes, for
    /// its views or because gradients are accumulated, each begins where the last ended.
    pub first_sample: u64,
    /// Number of the layer within the network.
    pub layer: u32,
}

impl DrawsAt {
    fn sample(self, purpose: Purpose, sample: usize) -> Rng {
        rng(self.seed, purpose, self.step, self.first_sample.wrapping_add(sample as u64), self.layer)
    }
}

/// Sets each element to 0 with probability `p` and divides the others by `1 - p`, for training.
///
/// `x` is `(B, …)`; a sample's draws depend on its number and not on the batch around it. With `p = 0` the result is
/// `x` itself. Zeros and the gradient are drawn again in the backward pass, so no mask is kept.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use ssl_nn::{DrawsAt, dropout};
///
/// let at = DrawsAt { seed: 1, step: 0, first_sample: 0, layer: 0 };
/// let y = dropout(&Tensor::ones((2, 1000), DType::F32, &Device::Cpu)?, 0.5, at)?;
/// assert!(y.flatten_all()?.to_vec1::<f32>()?.iter().all(|y| *y == 0.0 || *y == 2.0));
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If `p` is not in [0, 1), `x` has no dimension, or its type is not `f32` or `f64`.
pub fn dropout(x: &Tensor, p: f64, at: DrawsAt) -> Result<Tensor> {
    check("dropout", p)?;
    let batch = batch_of("dropout", x)?;
    if p == 0.0 {
        return Ok(x.clone());
    }
    let len = x.elem_count() / batch.max(1);
    let mask = move |sample: usize| {
        let mut rng = at.sample(Purpose::Dropout, sample);
        std::iter::repeat_with(move || factor(&mut rng, p)).take(len)
    };
    if !x.device().is_cpu() {
        let mask: Vec<f64> = (0..batch).flat_map(mask).collect();
        return x * Tensor::from_vec(mask, x.shape(), x.device())?.to_dtype(x.dtype())?;
    }
    dispatch!(x.dtype(), "dropout", T => scale::<T, _>("dropout", x, len, mask))
}

/// Sets each sample to 0 with probability `p` and divides the others by `1 - p`, as timm's `DropPath`.
///
/// `x` is `(B, …)`, the output of a residual branch. With `p = 0` the result is `x` itself.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use ssl_nn::{DrawsAt, drop_path, drop_path_factors};
///
/// let at = DrawsAt { seed: 1, step: 0, first_sample: 0, layer: 3 };
/// let y = drop_path(&Tensor::ones((8, 1), DType::F64, &Device::Cpu)?, 0.25, at)?;
/// assert_eq!(y.flatten_all()?.to_vec1::<f64>()?, drop_path_factors(8, 0.25, at)?);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If `p` is not in [0, 1), `x` has no dimension, or its type is not `f32` or `f64`.
pub fn drop_path(x: &Tensor, p: f64, at: DrawsAt) -> Result<Tensor> {
    let batch = batch_of("drop path", x)?;
    let factors = drop_path_factors(batch, p, at)?;
    if p == 0.0 {
        return Ok(x.clone());
    }
    if !x.device().is_cpu() {
        let shape: Vec<usize> = (0..x.rank()).map(|dim| if dim == 0 { batch } else { 1 }).collect();
        let factors = Tensor::from_vec(factors, shape, x.device())?.to_dtype(x.dtype())?;
        return x.broadcast_mul(&factors);
    }
    let len = x.elem_count() / batch.max(1);
    let of_sample = move |sample: usize| std::iter::repeat_n(factors[sample], len);
    dispatch!(x.dtype(), "drop path", T => scale::<T, _>("drop-path", x, len, of_sample))
}

/// What [`drop_path`] multiplies each of `batch` samples by: 0 with probability `p`, otherwise `1 / (1 - p)`.
///
/// # Errors
/// If `p` is not in [0, 1).
pub fn drop_path_factors(batch: usize, p: f64, at: DrawsAt) -> Result<Vec<f64>> {
    check("drop path", p)?;
    Ok((0..batch).map(|sample| factor(&mut at.sample(Purpose::DropPath, sample), p)).collect())
}

fn check(name: &str, p: f64) -> Result<()> {
    if !(0.0..1.0).contains(&p) {
        bail!("{name}: p is {p}, must be in [0, 1)");
    }
    Ok(())
}

fn batch_of(name: &str, x: &Tensor) -> Result<usize> {
    match x.dims() {
        [batch, ..] => Ok(*batch),
        [] => bail!("{name}: expected (B, …), got a scalar"),
    }
}

/// 0 with probability `p`, otherwise `1 / (1 - p)`.
fn factor(rng: &mut Rng, p: f64) -> f64 {
    let drawn = f64::from(rng.next_u32()) / (1u64 << 32) as f64;
    if drawn < p { 0.0 } else { 1.0 / (1.0 - p) }
}

/// Each sample, of `len` elements, times its factors.
fn scale<T: Element, I: Iterator<Item = f64>>(
    name: &'static str,
    x: &Tensor,
    len: usize,
    factors: impl Fn(usize) -> I + Send + Sync + 'static,
) -> Result<Tensor> {
    let x = x.contiguous()?;
    let times = move |x: &[T]| {
        let mut y = x.to_vec();
        y.par_chunks_mut(len.max(1)).enumerate().for_each(|(sample, y)| {
            y.iter_mut().zip(factors(sample)).for_each(|(y, factor)| *y *= T::from_f64(factor));
        });
        y
    };
    let y = times(reader(&x).slice::<T>()?);
    let input = x.clone();
    node(name, &[&x], (y, x.shape()), move |_, dy| {
        Ok(vec![gradient(times(reader(dy).slice::<T>()?), &input)?])
    })
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    const AT: DrawsAt = DrawsAt { seed: 3, step: 5, first_sample: 7, layer: 11 };

    #[test]
    fn shares_and_means_are_as_asked_for() {
        for p in [0.1, 0.5, 0.9] {
            let factors = drop_path_factors(20_000, p, AT).unwrap();
            let dropped = factors.iter().filter(|f| **f == 0.0).count() as f64 / factors.len() as f64;
            // Four standard deviations of a share of 20,000.
            assert!((dropped - p).abs() < 4.0 * (p * (1.0 - p) / 20_000.0).sqrt(), "{dropped} for {p}");
            let x = Tensor::ones((4, 5_000), DType::F64, &Device::Cpu).unwrap();
            let mean = dropout(&x, p, AT).unwrap().mean_all().unwrap().to_scalar::<f64>().unwrap();
            assert!((mean - 1.0).abs() < 4.0 * (p / (1.0 - p) / 20_000.0).sqrt(), "{mean} for {p}");
        }
    }

    #[test]
    fn a_sample_has_its_draws_whatever_batch_it_is_in() {
        let all = drop_path_factors(40, 0.5, AT).unwrap();
        let later = DrawsAt { first_sample: AT.first_sample + 10, ..AT };
        assert_eq!(all[10..], drop_path_factors(30, 0.5, later).unwrap());
        let x = Tensor::ones((40, 6), DType::F32, &Device::Cpu).unwrap();
        let values = |x: Tensor, at| dropout(&x, 0.5, at).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(values(x.clone(), AT)[10..], values(x.narrow(0, 10, 30).unwrap(), later));
        for other in [DrawsAt { seed: 4, ..AT }, DrawsAt { step: 6, ..AT }, DrawsAt { layer: 12, ..AT }] {
            assert_ne!(all, drop_path_factors(40, 0.5, other).unwrap());
        }
    }

    #[test]
    fn probability_zero_is_no_operation_and_others_must_be_below_one() {
        let x = Tensor::ones((2, 3), DType::F32, &Device::Cpu).unwrap();
        for f in [dropout, drop_path] {
            assert_eq!(f(&x, 0.0, AT).unwrap().id(), x.id());
            for p in [-0.1, 1.0, f64::NAN] {
                let error = f(&x, p, AT).unwrap_err().to_string();
                assert!(error.contains(&format!("p is {p}, must be in [0, 1)")), "{error}");
            }
        }
        assert_eq!(drop_path_factors(3, 0.0, AT).unwrap(), [1.0; 3]);
    }
}
