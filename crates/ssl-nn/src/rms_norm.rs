//! Root mean square norm (Zhang and Sennrich, 2019, <https://arxiv.org/abs/1910.07467>) over the last dimension.

use candle_core::{D, Result, Tensor, WithDType, bail};
use rayon::prelude::*;

use crate::graph::{gradient, node};
use crate::init::Init;
use crate::params::Scope;
use crate::real::{Real, sum_by};
use crate::storage::{dispatch, reader};

/// Rows whose sums make one part; the parts are added in order.
const ROWS: usize = 256;

/// `x / sqrt(mean(x²) + eps) · weight` for each row, as `torch.nn.RMSNorm`.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use ssl_nn::{Params, RmsNorm};
///
/// let params = Params::new(0, DType::F64, &Device::Cpu);
/// let norm = RmsNorm::new(2, 0.0, &params.root().pp("norm"))?;
/// let y = norm.forward(&Tensor::new(&[[-5f64, 5.0]], &Device::Cpu)?)?;
/// assert_eq!(y.to_vec2::<f64>()?, [[-1.0, 1.0]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// A norm of rows of `dim` values; creates `weight`, all 1. PyTorch's default `eps` is the type's machine epsilon,
    /// 1.19e-7 in `f32`; language models take 1e-6 or 1e-5.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn new(dim: usize, eps: f64, scope: &Scope) -> Result<Self> {
        Ok(Self { weight: scope.trainable("weight", dim, Init::Const(1.0))?, eps })
    }

    /// `(…, dim)` to the same shape.
    ///
    /// # Errors
    /// If the last dimension differs.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, &self.weight, self.eps)
    }
}

/// Root mean square norm of `x` `(…, D)` with `weight` `(D)`.
///
/// # Errors
/// If the shapes do not fit, or the type is not `f32` or `f64`.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let dim = x.dims().last().copied().unwrap_or(0);
    if dim == 0 || weight.dims() != [dim] {
        bail!(
            "rms norm: x {:?} needs a weight ({dim}) with at least one value, got {:?}",
            x.dims(),
            weight.dims()
        );
    }
    if !x.device().is_cpu() {
        let rms = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
        return x.broadcast_div(&rms)?.broadcast_mul(weight);
    }
    dispatch!(x.dtype(), "rms norm", T => on_cpu::<T>(x, weight, T::from_f64(eps)))
}

fn on_cpu<T: Real>(x: &Tensor, weight: &Tensor, eps: T) -> Result<Tensor> {
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    let dim = weight.elem_count();
    let mut y = vec![T::ZERO; x.elem_count()];
    let mut scales = vec![T::ZERO; y.len() / dim];
    {
        let (x, weight) = (reader(&x), reader(&weight));
        let (x, weight) = (x.slice::<T>()?, weight.slice::<T>()?);
        y.par_chunks_mut(ROWS * dim)
            .zip(x.par_chunks(ROWS * dim))
            .zip(scales.par_chunks_mut(ROWS))
            .for_each(|((y, x), scales)| forward_rows(x, weight, eps, y, scales));
    }
    let (kept, kept_weight, shape) = (x.clone(), weight.clone(), x.shape());
    node("rms-norm", &[&x, &weight], (y, shape), move |_, dy| {
        let mut dx = vec![T::ZERO; kept.elem_count()];
        let (x, weight, dy) = (reader(&kept), reader(&kept_weight), reader(dy));
        let (x, weight, dy) = (x.slice::<T>()?, weight.slice::<T>()?, dy.slice::<T>()?);
        let parts: Vec<_> = dx
            .par_chunks_mut(ROWS * dim)
            .zip(x.par_chunks(ROWS * dim))
            .zip(dy.par_chunks(ROWS * dim))
            .zip(scales.par_chunks(ROWS))
            .map(|(((dx, x), dy), scales)| {
                let mut dw = vec![T::ZERO; dim];
                backward_rows((x, weight, scales), dy, dx, &mut dw);
                dw
            })
            .collect();
        let mut dw = vec![T::ZERO; dim];
        for part in &parts {
            dw.iter_mut().zip(part).for_each(|(sum, part)| *sum += *part);
        }
        Ok(vec![gradient(dx, &kept)?, gradient(dw, &kept_weight)?])
    })
}

/// Norms rows one by one and keeps the inverse root mean square of each.
fn forward_rows<T: Real>(x: &[T], weight: &[T], eps: T, y: &mut [T], scales: &mut [T]) {
    let dim = weight.len();
    let n = T::from_f64(dim as f64);
    for ((x, y), scale) in x.chunks_exact(dim).zip(y.chunks_exact_mut(dim)).zip(scales) {
        *scale = T::ONE / (sum_by(x, x, |a, b| a * b) / n + eps).sqrt();
        for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
            *y = *x * *scale * *w;
        }
    }
}

/// Writes the gradient of the rows and adds to that of the weight.
fn backward_rows<T: Real>((x, weight, scales): (&[T], &[T], &[T]), dy: &[T], dx: &mut [T], dw: &mut [T]) {
    let dim = weight.len();
    let n = T::from_f64(dim as f64);
    let rows = x.chunks_exact(dim).zip(dy.chunks_exact(dim)).zip(dx.chunks_exact_mut(dim)).zip(scales);
    for (((x, dy), dx), &scale) in rows {
        // The gradient of the normed row stands in `dx` until its sum is known.
        for ((((dx, dy), w), dw), x) in dx.iter_mut().zip(dy).zip(weight).zip(dw.iter_mut()).zip(x) {
            *dx = *dy * *w;
            *dw += *dy * *x * scale;
        }
        let slope = sum_by(dx, x, |g, x| g * x * scale) / n;
        for (dx, x) in dx.iter_mut().zip(x) {
            *dx = scale * (*dx - *x * scale * slope);
        }
    }
}
