//! Softmax and its logarithm over one dimension.

use candle_core::shape::Dim;
use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::graph::{gradient, node};
use crate::kernel::vectorised;
use crate::real::{Real, sum_by};
use crate::storage::{dispatch, reader};

/// Elements that one task handles, in whole rows.
const BLOCK: usize = 1 << 14;

/// `exp(x) / Σ exp(x)` over the dimension `dim`, shifted by the maximum so that nothing overflows.
///
/// A row of which all is `-inf`, or that has `+inf` or NaN, becomes NaN, as in PyTorch.
///
/// ```
/// use candle_core::{D, Device, Tensor};
///
/// let y = ssl_nn::softmax(&Tensor::new(&[[0f64, 0.0], [1e9, 0.0]], &Device::Cpu)?, D::Minus1)?;
/// assert_eq!(y.to_vec2::<f64>()?, [[0.5, 0.5], [1.0, 0.0]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If `x` has no such dimension, or its type is not `f32` or `f64`.
pub fn softmax(x: &Tensor, dim: impl Dim) -> Result<Tensor> {
    over_last(x, dim, "softmax", |x| {
        if !x.device().is_cpu() {
            return composite(x)?.exp();
        }
        dispatch!(x.dtype(), "softmax", T => on_cpu::<T>("softmax", x, softmax_row, softmax_gradient))
    })
}

/// `x - log Σ exp(x)` over the dimension `dim`: the logarithm of [`softmax`], accurate where that is close to 0.
///
/// # Errors
/// As [`softmax`].
pub fn log_softmax(x: &Tensor, dim: impl Dim) -> Result<Tensor> {
    over_last(x, dim, "log_softmax", |x| {
        if !x.device().is_cpu() {
            return composite(x);
        }
        dispatch!(x.dtype(), "log softmax", T => {
            on_cpu::<T>("log-softmax", x, log_softmax_row, log_softmax_gradient)
        })
    })
}

/// `f` with `dim` as the last dimension.
fn over_last(
    x: &Tensor,
    dim: impl Dim,
    name: &'static str,
    f: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    let dim = dim.to_index(x.shape(), name)?;
    let last = x.rank() - 1;
    if dim == last {
        return f(x);
    }
    f(&x.transpose(dim, last)?)?.transpose(dim, last)?.contiguous()
}

/// The logarithm in candle's operations, for devices without a kernel of ours.
fn composite(x: &Tensor) -> Result<Tensor> {
    let shifted = x.broadcast_sub(&x.max_keepdim(candle_core::D::Minus1)?.detach())?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(candle_core::D::Minus1)?.log()?)
}

/// `forward` gets a row and its value; `backward` a row's value, its gradient, and the gradient of the input.
fn on_cpu<T: Real>(
    name: &'static str,
    x: &Tensor,
    forward: fn(&[T], &mut [T]),
    backward: fn(&[T], &[T], &mut [T]),
) -> Result<Tensor> {
    let x = x.contiguous()?;
    let dim = x.dims().last().copied().unwrap_or(1).max(1);
    let block = (BLOCK / dim).max(1) * dim;
    let mut y = vec![T::ZERO; x.elem_count()];
    y.par_chunks_mut(block).zip(reader(&x).slice::<T>()?.par_chunks(block)).for_each(|(y, x)| {
        y.chunks_exact_mut(dim).zip(x.chunks_exact(dim)).for_each(|(y, x)| forward(x, y));
    });
    let input = x.clone();
    node(name, &[&x], (y, x.shape()), move |y, dy| {
        let mut dx = vec![T::ZERO; input.elem_count()];
        dx.par_chunks_mut(block)
            .zip(reader(y).slice::<T>()?.par_chunks(block))
            .zip(reader(dy).slice::<T>()?.par_chunks(block))
            .for_each(|((dx, y), dy)| {
                let rows = dx.chunks_exact_mut(dim).zip(y.chunks_exact(dim)).zip(dy.chunks_exact(dim));
                rows.for_each(|((dx, y), dy)| backward(y, dy, dx));
            });
        Ok(vec![gradient(dx, &input)?])
    })
}

fn softmax_row<T: Real>(x: &[T], y: &mut [T]) {
    vectorised!({
        let max = maximum(x);
        y.iter_mut().zip(x).for_each(|(y, x)| *y = (*x - max).exp());
        let factor = T::ONE / sum_by(y, y, |y, _| y);
        y.iter_mut().for_each(|y| *y *= factor);
    });
}

fn softmax_gradient<T: Real>(y: &[T], dy: &[T], dx: &mut [T]) {
    vectorised!({
        let mean = sum_by(y, dy, |y, dy| y * dy);
        dx.iter_mut().zip(y).zip(dy).for_each(|((dx, y), dy)| *dx = *y * (*dy - mean));
    });
}

fn log_softmax_row<T: Real>(x: &[T], y: &mut [T]) {
    let (max, log_sum) = log_sum_exp(x);
    y.iter_mut().zip(x).for_each(|(y, x)| *y = *x - max - log_sum);
}

fn log_softmax_gradient<T: Real>(y: &[T], dy: &[T], dx: &mut [T]) {
    vectorised!({
        let sum = sum_by(dy, dy, |dy, _| dy);
        dx.iter_mut().zip(y).zip(dy).for_each(|((dx, y), dy)| *dx = *dy - y.exp() * sum);
    });
}

/// The maximum `m` of a row that is not empty, and `log Σ exp(x - m)`.
pub(crate) fn log_sum_exp<T: Real>(x: &[T]) -> (T, T) {
    vectorised!({
        let max = maximum(x);
        (max, T::from_f64(sum_by(x, x, |x, _| (x - max).exp()).to_f64().ln()))
    })
}

/// The largest value; NaN beside others may be passed over, for it spoils the sum that follows.
#[inline(always)]
fn maximum<T: Real>(x: &[T]) -> T {
    x.iter().fold(x[0], |max, x| if *x > max { *x } else { max })
}

#[cfg(test)]
mod tests {
    use candle_core::{D, DType, Device};

    use super::*;
    use crate::Init;

    #[test]
    fn the_path_for_other_devices_agrees() {
        let x = Init::Normal { std: 5.0 }.sample(&[3, 40], 1, "x", DType::F64, &Device::Cpu).unwrap();
        let gap = (log_softmax(&x, D::Minus1).unwrap() - composite(&x).unwrap()).unwrap().abs().unwrap();
        assert!(gap.max_all().unwrap().to_scalar::<f64>().unwrap() < 1e-12);
    }

    #[test]
    fn infinite_logits_are_impossible_or_nothing() {
        let low = f32::NEG_INFINITY;
        let x = Tensor::new(&[[low, 0.0, 0.0], [low, low, low], [f32::INFINITY, 0.0, 0.0]], &Device::Cpu);
        let y = softmax(&x.unwrap(), 1).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(y[0], [0.0, 0.5, 0.5]);
        assert!(y[1].iter().chain(&y[2]).all(|y| y.is_nan()));
    }

    #[test]
    fn empty_tensors_stay_empty_and_a_missing_dimension_is_refused() {
        let x = Tensor::zeros((0, 3), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(softmax(&x, 1).unwrap().dims(), [0, 3]);
        let x = Tensor::zeros((3, 0), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(log_softmax(&x, 1).unwrap().dims(), [3, 0]);
        assert!(softmax(&x, 2).is_err());
    }
}
