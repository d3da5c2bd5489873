//! Layer norm (Ba et al., 2016, <https://arxiv.org/abs/1607.06450>) over the last dimension.

use candle_core::{D, Result, Tensor, WithDType, bail};
use rayon::prelude::*;

use crate::graph::{gradient, node};
use crate::init::Init;
use crate::kernel::vectorised;
use crate::params::Scope;
use crate::real::{Real, sum_by};
use crate::storage::{dispatch, reader};

/// Rows whose sums make one part; the parts are added in order.
const ROWS: usize = 256;

/// `(x - mean) / sqrt(variance + eps) · weight + bias` for each row.
#[derive(Clone, Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// A norm of rows of `dim` values; creates `weight`, all 1, and `bias`, all 0. PyTorch's `eps` is 1e-5, that of
    /// timm's vision transformers 1e-6.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn new(dim: usize, eps: f64, scope: &Scope) -> Result<Self> {
        let weight = scope.trainable("weight", dim, Init::Const(1.0))?;
        let bias = scope.trainable("bias", dim, Init::Const(0.0))?;
        Ok(Self { weight, bias, eps })
    }

    /// The same norm with parameters that get no gradient. They stay those of the store.
    pub fn frozen(&self) -> Self {
        Self { weight: self.weight.detach(), bias: self.bias.detach(), eps: self.eps }
    }

    pub(crate) fn dim(&self) -> usize {
        self.weight.elem_count()
    }

    pub(crate) fn eps(&self) -> f64 {
        self.eps
    }

    pub(crate) fn tensors(&self) -> (&Tensor, &Tensor) {
        (&self.weight, &self.bias)
    }

    /// `(…, dim)` to the same shape.
    ///
    /// # Errors
    /// If the last dimension differs.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}

/// Layer norm of `x` `(…, D)` with `weight` and `bias` `(D)`.
///
/// # Errors
/// If the shapes do not fit, or the type is not `f32` or `f64`.
pub fn layer_norm(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let dim = x.dims().last().copied().unwrap_or(0);
    if dim == 0 || weight.dims() != [dim] || bias.dims() != [dim] {
        bail!(
            "layer norm: x {:?} needs weight and bias ({dim}) with at least one value, got {:?} and {:?}",
            x.dims(),
            weight.dims(),
            bias.dims()
        );
    }
    if !x.device().is_cpu() {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let std = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
        return centred.broadcast_div(&std)?.broadcast_mul(weight)?.broadcast_add(bias);
    }
    dispatch!(x.dtype(), "layer norm", T => on_cpu::<T>(x, weight, bias, T::from_f64(eps)))
}

fn on_cpu<T: Real>(x: &Tensor, weight: &Tensor, bias: &Tensor, eps: T) -> Result<Tensor> {
    let (x, weight, bias) = (x.contiguous()?, weight.contiguous()?, bias.contiguous()?);
    let dim = weight.elem_count();
    let mut y = vec![T::ZERO; x.elem_count()];
    let mut stats = vec![[T::ZERO; 2]; y.len() / dim];
    {
        let (x, weight, bias) = (reader(&x), reader(&weight), reader(&bias));
        let (x, weight, bias) = (x.slice::<T>()?, weight.slice::<T>()?, bias.slice::<T>()?);
        y.par_chunks_mut(ROWS * dim)
            .zip(x.par_chunks(ROWS * dim))
            .zip(stats.par_chunks_mut(ROWS))
            .for_each(|((y, x), stats)| vectorised!(forward_rows(x, (weight, bias), eps, y, stats)));
    }
    let (kept, kept_weight, kept_bias, shape) = (x.clone(), weight.clone(), bias.clone(), x.shape());
    node("layer-norm", &[&x, &weight, &bias], (y, shape), move |_, dy| {
        let mut dx = vec![T::ZERO; kept.elem_count()];
        let (x, weight, dy) = (reader(&kept), reader(&kept_weight), reader(dy));
        let (x, weight, dy) = (x.slice::<T>()?, weight.slice::<T>()?, dy.slice::<T>()?);
        let parts: Vec<_> = dx
            .par_chunks_mut(ROWS * dim)
            .zip(x.par_chunks(ROWS * dim))
            .zip(dy.par_chunks(ROWS * dim))
            .zip(stats.par_chunks(ROWS))
            .map(|(((dx, x), dy), stats)| {
                let (mut dw, mut db) = (vec![T::ZERO; dim], vec![T::ZERO; dim]);
                vectorised!(backward_rows((x, weight, stats), dy, dx, (&mut dw, &mut db)));
                (dw, db)
            })
            .collect();
        let (mut dw, mut db) = (vec![T::ZERO; dim], vec![T::ZERO; dim]);
        for (part_w, part_b) in &parts {
            dw.iter_mut().zip(part_w).for_each(|(sum, part)| *sum += *part);
            db.iter_mut().zip(part_b).for_each(|(sum, part)| *sum += *part);
        }
        Ok(vec![gradient(dx, &kept)?, gradient(dw, &kept_weight)?, gradient(db, &kept_bias)?])
    })
}

/// Norms rows one by one and keeps mean and inverse standard deviation of each.
#[inline(always)]
pub(crate) fn forward_rows<T: Real>(
    x: &[T],
    (weight, bias): (&[T], &[T]),
    eps: T,
    y: &mut [T],
    stats: &mut [[T; 2]],
) {
    let dim = weight.len();
    let n = T::from_f64(dim as f64);
    for ((x, y), stats) in x.chunks_exact(dim).zip(y.chunks_exact_mut(dim)).zip(stats) {
        let mean = sum_by(x, x, |x, _| x) / n;
        let variance = sum_by(x, x, |x, _| (x - mean) * (x - mean)) / n;
        let scale = T::ONE / (variance + eps).sqrt();
        *stats = [mean, scale];
        for (((y, x), w), b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
            *y = (*x - mean) * scale * *w + *b;
        }
    }
}

/// Writes the gradient of the rows and adds to those of weight and bias.
#[inline(always)]
pub(crate) fn backward_rows<T: Real>(
    (x, weight, stats): (&[T], &[T], &[[T; 2]]),
    dy: &[T],
    dx: &mut [T],
    (dw, db): (&mut [T], &mut [T]),
) {
    let dim = weight.len();
    let n = T::from_f64(dim as f64);
    let rows = x.chunks_exact(dim).zip(dy.chunks_exact(dim)).zip(dx.chunks_exact_mut(dim)).zip(stats);
    for (((x, dy), dx), &[mean, scale]) in rows {
        // The gradient of the normed row stands in `dx` until its sums are known.
        for (((dx, dy), w), ((dw, db), x)) in
            dx.iter_mut().zip(dy).zip(weight).zip(dw.iter_mut().zip(db.iter_mut()).zip(x))
        {
            *dx = *dy * *w;
            *dw += *dy * (*x - mean) * scale;
            *db += *dy;
        }
        let sum = sum_by(dx, dx, |g, _| g) / n;
        let slope = sum_by(dx, x, |g, x| g * (x - mean) * scale) / n;
        for (dx, x) in dx.iter_mut().zip(x) {
            *dx = scale * (*dx - sum - (*x - mean) * scale * slope);
        }
    }
}
