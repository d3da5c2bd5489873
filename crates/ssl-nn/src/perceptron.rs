//! The middle of a transformer's perceptron: an activation, or the gate of SwiGLU.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::activation::Activation;
use crate::attention::Scratch;
use crate::branch::{Middle, ROWS};
use crate::fresh::Fresh;
use crate::gelu::silu_form;
use crate::graph::{gradient, node};
use crate::kernel::vectorised;
use crate::real::Real;
use crate::storage::{dispatch, reader};

/// What stands between the two layers of a transformer's perceptron.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Perceptron {
    /// An activation of each value.
    Plain(Activation),
    /// [`swiglu`], as in the largest DINOv2: the first layer makes gates and values, so it is twice as wide.
    SwiGlu,
}

impl Perceptron {
    /// Inputs of the second layer at the width `dim`: `dim · ratio`, and of SwiGLU two thirds of that, rounded up to a
    /// multiple of 8, which costs about as many parameters.
    pub fn hidden(self, dim: usize, ratio: f64) -> usize {
        let hidden = (dim as f64 * ratio) as usize;
        match self {
            Perceptron::Plain(_) => hidden,
            Perceptron::SwiGlu => (hidden * 2 / 3).next_multiple_of(8),
        }
    }

    /// Outputs of the first layer for so many inputs of the second.
    pub(crate) fn first(self, hidden: usize) -> usize {
        match self {
            Perceptron::Plain(_) => hidden,
            Perceptron::SwiGlu => 2 * hidden,
        }
    }

    /// From the output of the first layer to the input of the second.
    ///
    /// # Errors
    /// If the type of `x` is not `f32` or `f64`, or as [`swiglu`].
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Perceptron::Plain(activation) => activation.apply(x),
            Perceptron::SwiGlu => swiglu(x),
        }
    }
}

/// `silu(gate) · value` (Shazeer, 2020, <https://arxiv.org/abs/2002.05202>) with `silu(x) = x σ(x)`: the first half of
/// the last dimension are gates, the second half values, as in DINOv2's official code and timm's `SwiGLUPacked`.
///
/// # Shapes
/// `x`: `(…, 2H)`; result: `(…, H)`. `f32` or `f64`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use ssl_nn::swiglu;
///
/// let y = swiglu(&Tensor::new(&[[0f64, 100., 7., 2.]], &Device::Cpu)?)?;
/// assert_eq!(y.to_vec2::<f64>()?, [[0., 200.]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If the last dimension cannot be halved.
pub fn swiglu(x: &Tensor) -> Result<Tensor> {
    let half = match x.dims().last() {
        Some(&width) if width > 0 && width % 2 == 0 => width / 2,
        _ => bail!("swiglu: expected a last dimension of gates and as many values, got {:?}", x.dims()),
    };
    if !x.device().is_cpu() {
        let dim = x.rank() - 1;
        let (gate, value) = (x.narrow(dim, 0, half)?, x.narrow(dim, half, half)?);
        return gate.silu()? * value;
    }
    dispatch!(x.dtype(), "swiglu", T => on_cpu::<T>(x, half))
}

fn on_cpu<T: Real>(x: &Tensor, half: usize) -> Result<Tensor> {
    let x = x.contiguous()?;
    let mut y = Fresh::new(x.elem_count() / 2);
    y.par_parts(ROWS * half)
        .zip(reader(&x).slice::<T>()?.par_chunks(2 * ROWS * half))
        .for_each(|(y, x)| values(half, x, y.clear()));
    let mut shape = x.dims().to_vec();
    shape[x.rank() - 1] = half;
    let kept = x.clone();
    node("swiglu", &[&x], (y.into_vec(), shape), move |_, dy| {
        let (x, dy) = (reader(&kept), reader(dy));
        let mut dx = Fresh::new(kept.elem_count());
        dx.par_parts(2 * ROWS * half)
            .zip(x.slice::<T>()?.par_chunks(2 * ROWS * half))
            .zip(dy.slice::<T>()?.par_chunks(ROWS * half))
            .for_each(|((dx, x), dy)| gradients(half, x, dy, None, dx.clear()));
        Ok(vec![gradient(dx.into_vec(), &kept)?])
    })
}

fn values<T: Real>(half: usize, x: &[T], y: &mut [T]) {
    vectorised!({
        for (x, y) in x.chunks_exact(2 * half).zip(y.chunks_exact_mut(half)) {
            let (gate, value) = x.split_at(half);
            for ((y, gate), value) in y.iter_mut().zip(gate).zip(value) {
                *y = silu_form(*gate).0 * *value;
            }
        }
    });
}

/// The gradient of `x`, and if there is room for them the values once more.
fn gradients<T: Real>(half: usize, x: &[T], dy: &[T], y: Option<&mut [T]>, dx: &mut [T]) {
    vectorised!({
        for ((x, dy), dx) in
            x.chunks_exact(2 * half).zip(dy.chunks_exact(half)).zip(dx.chunks_exact_mut(2 * half))
        {
            let ((gate, value), (d_gate, d_value)) = (x.split_at(half), dx.split_at_mut(half));
            let inputs = gate.iter().zip(value).zip(dy);
            for ((d_gate, d_value), ((gate, value), dy)) in d_gate.iter_mut().zip(d_value).zip(inputs) {
                let (silu, slope) = silu_form(*gate);
                *d_gate = *dy * *value * slope;
                *d_value = *dy * silu;
            }
        }
    });
    if let Some(y) = y {
        values(half, x, y);
    }
}

/// A perceptron's middle with the outputs of its first layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Between {
    pub(crate) perceptron: Perceptron,
    pub(crate) first: usize,
}

impl<T: Real> Middle<T> for Between {
    fn rows(&self) -> usize {
        ROWS
    }

    fn width(&self, first: usize) -> usize {
        match self.perceptron {
            Perceptron::Plain(_) => first,
            Perceptron::SwiGlu => first / 2,
        }
    }

    fn forward(&self, _: usize, first: &[T], middle: &mut [T], _: &mut Scratch<T>) {
        match self.perceptron {
            Perceptron::Plain(activation) => activation.values(first, middle),
            Perceptron::SwiGlu => values(self.first / 2, first, middle),
        }
    }

    fn backward(
        &self,
        _: usize,
        first: &[T],
        d_middle: &[T],
        (middle, d_first): (&mut [T], &mut [T]),
        _: &mut [T],
        _: &mut Scratch<T>,
    ) {
        match self.perceptron {
            Perceptron::Plain(activation) => {
                activation.values_and_gradients(first, d_middle, middle, d_first);
            }
            Perceptron::SwiGlu => gradients(self.first / 2, first, d_middle, Some(middle), d_first),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn widths_are_those_of_dinov2() {
        assert_eq!(Perceptron::SwiGlu.hidden(1536, 4.0), 4096);
        assert_eq!(Perceptron::SwiGlu.hidden(48, 4.0), 128);
        assert_eq!(Perceptron::Plain(Activation::Gelu).hidden(48, 4.0), 192);
    }

    #[test]
    fn an_odd_width_is_refused() {
        let error =
            swiglu(&Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap()).unwrap_err().to_string();
        assert!(error.contains("as many values, got [2, 3]"), "{error}");
    }
}
