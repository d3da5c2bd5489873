//! ReLU, alone and after a sum, and the choice among the forms of GELU.

use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::fresh::filled;
use crate::gelu::{erf_form, gelu, gelu_tanh, quick_gelu, sigmoid_form, tanh_form};
use crate::graph::{gradient, node};
use crate::kernel::vectorised;
use crate::lanes::{LANES, for_blocks, get, put};
use crate::real::Real;
use crate::storage::{Element, dispatch, reader};

/// Elements that one task handles.
const BLOCK: usize = 1 << 14;

/// The activation between two linear layers of a transformer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// [`gelu`], as in every published vision transformer but CLIP's.
    Gelu,
    /// [`gelu_tanh`].
    GeluTanh,
    /// [`quick_gelu`], as in CLIP.
    QuickGelu,
}

impl Activation {
    /// Value by value.
    ///
    /// # Errors
    /// If the type of `x` is not `f32` or `f64`.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Activation::Gelu => gelu(x),
            Activation::GeluTanh => gelu_tanh(x),
            Activation::QuickGelu => quick_gelu(x),
        }
    }

    /// The values of `x`, on the calling thread.
    pub(crate) fn values<T: Real>(self, x: &[T], y: &mut [T]) {
        fn values<T: Real>(x: &[T], y: &mut [T], f: impl Fn(T) -> (T, T)) {
            vectorised!({
                for (y, x) in y.iter_mut().zip(x) {
                    *y = f(*x).0;
                }
            });
        }
        match self {
            Activation::Gelu => values(x, y, erf_form),
            Activation::GeluTanh => values(x, y, tanh_form),
            Activation::QuickGelu => values(x, y, sigmoid_form),
        }
    }

    /// The gradient of `x`, on the calling thread.
    pub(crate) fn gradients<T: Real>(self, x: &[T], dy: &[T], dx: &mut [T]) {
        fn slopes<T: Real>(x: &[T], dy: &[T], dx: &mut [T], f: impl Fn(T) -> (T, T)) {
            vectorised!({
                for ((dx, x), dy) in dx.iter_mut().zip(x).zip(dy) {
                    *dx = *dy * f(*x).1;
                }
            });
        }
        match self {
            Activation::Gelu => slopes(x, dy, dx, erf_form),
            Activation::GeluTanh => slopes(x, dy, dx, tanh_form),
            Activation::QuickGelu => slopes(x, dy, dx, sigmoid_form),
        }
    }

    /// The values once more, and the gradient of `x`, on the calling thread.
    pub(crate) fn values_and_gradients<T: Real>(self, x: &[T], dy: &[T], y: &mut [T], dx: &mut [T]) {
        fn both<T: Real>(x: &[T], dy: &[T], (y, dx): (&mut [T], &mut [T]), f: impl Fn(T) -> (T, T)) {
            vectorised!({
                for_blocks!(x.len(), (start, end, FULL) => {
                    let (x, dy) = (get::<FULL, _>(&x[start..end]), get::<FULL, _>(&dy[start..end]));
                    let (mut value, mut slope) = ([T::ZERO; LANES], [T::ZERO; LANES]);
                    for i in 0..LANES {
                        let (v, s) = f(x[i]);
                        value[i] = v;
                        slope[i] = dy[i] * s;
                    }
                    put::<FULL, _>(&mut y[start..end], &value);
                    put::<FULL, _>(&mut dx[start..end], &slope);
                });
            });
        }
        match self {
            Activation::Gelu => both(x, dy, (y, dx), erf_form),
            Activation::GeluTanh => both(x, dy, (y, dx), tanh_form),
            Activation::QuickGelu => both(x, dy, (y, dx), sigmoid_form),
        }
    }
}

/// `max(x, 0)`, with derivative 0 at 0 as in PyTorch. NaN stays NaN.
///
/// # Errors
/// If the type of `x` is not `f32` or `f64`.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    if !x.device().is_cpu() {
        return x.relu();
    }
    let x = x.contiguous()?;
    dispatch!(x.dtype(), "relu", T => {
        let mut y = vec![T::ZERO; x.elem_count()];
        y.par_chunks_mut(BLOCK).zip(reader(&x).slice::<T>()?.par_chunks(BLOCK)).for_each(|(y, x)| {
            y.iter_mut().zip(x).for_each(|(y, x)| *y = rectify(*x));
        });
        let input = x.clone();
        node("relu", &[&x], (y, x.shape()), move |y, dy| {
            let dx = masked(reader(dy).slice::<T>()?, reader(y).slice()?);
            Ok(vec![gradient(dx, &input)?])
        })
    })
}

/// `max(x + y, 0)`: the end of a residual block, in one pass over memory.
///
/// # Errors
/// If the shapes or types differ.
pub fn add_relu(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if x.shape() != y.shape() || !x.device().is_cpu() {
        return (x + y)?.relu();
    }
    let inputs = [x.contiguous()?, y.contiguous()?];
    dispatch!(x.dtype(), "add-relu", T => {
        let mut sum = vec![T::ZERO; x.elem_count()];
        {
            let (a, b) = (reader(&inputs[0]), reader(&inputs[1]));
            let (a, b) = (a.slice::<T>()?.par_chunks(BLOCK), b.slice::<T>()?.par_chunks(BLOCK));
            sum.par_chunks_mut(BLOCK).zip(a).zip(b).for_each(|((y, a), b)| {
                y.iter_mut().zip(a).zip(b).for_each(|((y, a), b)| *y = rectify(*a + *b));
            });
        }
        let kept = inputs.clone();
        node("add-relu", &inputs.each_ref(), (sum, x.shape()), move |y, dy| {
            let dx = masked(reader(dy).slice::<T>()?, reader(y).slice()?);
            let dx = Tensor::from_vec(dx, y.shape(), y.device())?;
            Ok(kept.iter().map(|input| input.track_op().then(|| dx.clone())).collect())
        })
    })
}

/// `max(x, 0)` that keeps NaN.
#[inline(always)]
pub(crate) fn rectify<T: Element>(x: T) -> T {
    if x <= T::ZERO { T::ZERO } else { x }
}

/// The gradient `dy` where the output `y` of a ReLU is positive.
#[inline(always)]
pub(crate) fn passed<T: Element>(dy: T, y: T) -> T {
    if y > T::ZERO { dy } else { T::ZERO }
}

/// The gradient that passes where the output `y` of a ReLU is positive.
pub(crate) fn masked<T: Element>(dy: &[T], y: &[T]) -> Vec<T> {
    filled(dy.len(), BLOCK, |i, dx: &mut [T]| {
        let [dy, y] = [dy, y].map(|all| &all[i * BLOCK..][..dx.len()]);
        vectorised!(for ((dx, dy), y) in dx.iter_mut().zip(dy).zip(y) {
            *dx = passed(*dy, *y);
        });
    })
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
