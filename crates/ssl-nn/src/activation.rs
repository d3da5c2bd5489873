//! ReLU, alone and after a sum.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, WithDType};
use rayon::prelude::*;

use crate::storage::{Element, dispatch, reader, slice};

/// Elements that one task handles.
const BLOCK: usize = 1 << 14;

/// `max(x, 0)`, with derivative 0 at 0 as in PyTorch. NaN stays NaN.
///
/// # Errors
/// If the type of `x` is not `f32` or `f64`.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return x.relu();
    }
    x.contiguous()?.apply_op1(Relu)
}

/// `max(x + y, 0)`: the end of a residual block, in one pass over memory.
///
/// # Errors
/// If the shapes or types differ.
pub fn add_relu(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if x.shape() != y.shape() || !x.device().is_cpu() {
        return (x + y)?.relu();
    }
    x.contiguous()?.apply_op2(&y.contiguous()?, AddRelu)
}

/// `max(x, 0)` that keeps NaN.
pub(crate) fn rectify<T: Element>(x: T) -> T {
    if x <= T::ZERO { T::ZERO } else { x }
}

/// The gradient that passes where the output `y` of a ReLU is positive.
fn masked(y: &Tensor, grad: &Tensor) -> Result<Tensor> {
    let grad = grad.contiguous()?;
    dispatch!(y.dtype(), "relu", T => {
        let (ys, dy) = (reader(y), reader(&grad));
        let mut dx = vec![T::ZERO; y.elem_count()];
        dx.par_chunks_mut(BLOCK)
            .zip(ys.slice::<T>()?.par_chunks(BLOCK))
            .zip(dy.slice::<T>()?.par_chunks(BLOCK))
            .for_each(|((dx, y), dy)| {
                for ((dx, y), dy) in dx.iter_mut().zip(y).zip(dy) {
                    *dx = if *y > T::ZERO { *dy } else { T::ZERO };
                }
            });
        Tensor::from_vec(dx, y.shape(), y.device())
    })
}

struct Relu;

impl CustomOp1 for Relu {
    fn name(&self) -> &'static str {
        "ssl-relu"
    }

    fn cpu_fwd(&self, x: &CpuStorage, at: &Layout) -> Result<(CpuStorage, Shape)> {
        dispatch!(x.dtype(), "relu", T => {
            let x = slice::<T>(x, at)?;
            let mut y = vec![T::ZERO; x.len()];
            y.par_chunks_mut(BLOCK).zip(x.par_chunks(BLOCK)).for_each(|(y, x)| {
                y.iter_mut().zip(x).for_each(|(y, x)| *y = rectify(*x));
            });
            Ok((T::to_cpu_storage_owned(y), at.shape().clone()))
        })
    }

    fn bwd(&self, _: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        masked(y, grad).map(Some)
    }
}

struct AddRelu;

impl CustomOp2 for AddRelu {
    fn name(&self) -> &'static str {
        "ssl-add-relu"
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_at: &Layout,
        b: &CpuStorage,
        b_at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        dispatch!(a.dtype(), "add-relu", T => {
            let (a, b) = (slice::<T>(a, a_at)?, slice::<T>(b, b_at)?);
            let mut y = vec![T::ZERO; a.len()];
            y.par_chunks_mut(BLOCK).zip(a.par_chunks(BLOCK)).zip(b.par_chunks(BLOCK)).for_each(
                |((y, a), b)| y.iter_mut().zip(a).zip(b).for_each(|((y, a), b)| *y = rectify(*a + *b)),
            );
            Ok((T::to_cpu_storage_owned(y), a_at.shape().clone()))
        })
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let dx = masked(y, grad)?;
        Ok((Some(dx.clone()), Some(dx)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn nan_passes_and_the_derivative_at_zero_is_zero() {
        let x = Var::new(&[-1f32, 0., 2., f32::NAN], &Device::Cpu).unwrap();
        let y = relu(&x).unwrap();
        let values = y.to_vec1::<f32>().unwrap();
        assert_eq!(values[..3], [0., 0., 2.]);
        assert!(values[3].is_nan());
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert_eq!(grads.get(&x).unwrap().to_vec1::<f32>().unwrap()[..3], [0., 0., 1.]);
    }

    #[test]
    fn both_summands_get_the_gradient() {
        let a = Var::new(&[1f64, -3.], &Device::Cpu).unwrap();
        let b = Var::new(&[1f64, 1.], &Device::Cpu).unwrap();
        let y = add_relu(&a, &b).unwrap();
        assert_eq!(y.to_vec1::<f64>().unwrap(), [2., 0.]);
        let grads = y.sum_all().unwrap().backward().unwrap();
        for x in [&a, &b] {
            assert_eq!(grads.get(x).unwrap().to_vec1::<f64>().unwrap(), [1., 0.]);
        }
    }
}
