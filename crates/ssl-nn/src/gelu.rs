//! GELU (Hendrycks and Gimpel, 2016, <https://arxiv.org/abs/1606.08415>) and its approximations.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::graph::{gradient, node};
use crate::kernel::vectorised;
use crate::real::Real;
use crate::storage::{dispatch, reader};

/// Elements that one task handles.
const BLOCK: usize = 1 << 14;

/// `x Φ(x)` with the exact normal distribution function.
///
/// # Errors
/// If the type of `x` is not `f32` or `f64`.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return x.gelu_erf();
    }
    dispatch!(x.dtype(), "gelu", T => apply::<T>("gelu", x, erf_form))
}

/// `x / 2 (1 + tanh(√(2/π) (x + 0.044715 x³)))`.
///
/// # Errors
/// If the type of `x` is not `f32` or `f64`.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return x.gelu();
    }
    dispatch!(x.dtype(), "gelu tanh", T => apply::<T>("gelu-tanh", x, tanh_form))
}

/// `x σ(1.702 x)`, CLIP's activation.
///
/// # Errors
/// If the type of `x` is not `f32` or `f64`.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return x * (((x * -1.702)?.exp()? + 1.0)?.recip())?;
    }
    dispatch!(x.dtype(), "quick gelu", T => apply::<T>("quick-gelu", x, sigmoid_form))
}

/// Value and slope of the exact form; in `f32` to a few units in the last place, in the left tail as well.
#[inline(always)]
pub(crate) fn erf_form<T: Real>(x: T) -> (T, T) {
    let (cdf, density) = x.normal();
    (x * cdf, cdf + x * density)
}

#[inline(always)]
pub(crate) fn tanh_form<T: Real>(x: T) -> (T, T) {
    // (1 + tanh(u)) / 2 is the sigmoid of 2u.
    let (a, b) = (T::from_f64(1.595_769_121_605_730_7), T::from_f64(0.071_354_816_272_600_3));
    let s = sigmoid(a * x + b * x * x * x);
    (x * s, s + x * s * (T::ONE - s) * (a + b * x * x * T::from_f64(3.0)))
}

#[inline(always)]
pub(crate) fn sigmoid_form<T: Real>(x: T) -> (T, T) {
    let a = T::from_f64(1.702);
    let s = sigmoid(a * x);
    (x * s, s + a * x * s * (T::ONE - s))
}

/// Value and slope of `x σ(x)`.
#[inline(always)]
pub(crate) fn silu_form<T: Real>(x: T) -> (T, T) {
    let s = sigmoid(x);
    (x * s, s + x * s * (T::ONE - s))
}

#[inline(always)]
fn sigmoid<T: Real>(x: T) -> T {
    T::ONE / (T::ONE + (T::ZERO - x).exp())
}

/// `f` returns value and slope; the backward pass computes them again from `x`.
fn apply<T: Real>(
    name: &'static str,
    x: &Tensor,
    f: impl Fn(T) -> (T, T) + Send + Sync + Copy + 'static,
) -> Result<Tensor> {
    let x = x.contiguous()?;
    let mut y = vec![T::ZERO; x.elem_count()];
    y.par_chunks_mut(BLOCK)
        .zip(reader(&x).slice::<T>()?.par_chunks(BLOCK))
        .for_each(|(y, x)| vectorised!(y.iter_mut().zip(x).for_each(|(y, x)| *y = f(*x).0)));
    let (kept, shape) = (x.clone(), x.shape().clone());
    node(name, &[&x], (y, shape), move |_, dy| {
        let mut dx = vec![T::ZERO; kept.elem_count()];
        dx.par_chunks_mut(BLOCK)
            .zip(reader(&kept).slice::<T>()?.par_chunks(BLOCK))
            .zip(reader(dy).slice::<T>()?.par_chunks(BLOCK))
            .for_each(|((dx, x), dy)| {
                vectorised!(dx.iter_mut().zip(x).zip(dy).for_each(|((dx, x), dy)| *dx = *dy * f(*x).1));
            });
        Ok(vec![gradient(dx, &kept)?])
    })
}
