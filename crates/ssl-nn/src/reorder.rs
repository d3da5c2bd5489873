//! Tokens in another order, as the windows of a Swin Transformer have them.

use candle_core::{Result, Tensor, bail};

use crate::fresh::filled;
use crate::graph::{gradient, node};
use crate::real::Real;
use crate::storage::{dispatch, reader};

/// The tokens of each sample in another order: token `k` of the result is token `order[k]` of `x`.
///
/// `x` is `(B, N, D)`, and `order` has each of the numbers `0..N` once.
///
/// # Errors
/// If `order` is not such an order, or the type is not `f32` or `f64`.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use ssl_nn::reorder_tokens;
///
/// let x = Tensor::new(&[[[1f32, 2.], [3., 4.], [5., 6.]]], &Device::Cpu)?;
/// let y = reorder_tokens(&x, &[2, 0, 1])?;
/// assert_eq!(y.to_vec3::<f32>()?, [[[5., 6.], [1., 2.], [3., 4.]]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
pub fn reorder_tokens(x: &Tensor, order: &[u32]) -> Result<Tensor> {
    let (_, tokens, _) = x.dims3()?;
    let Some(inverse) = inverse(order).filter(|inverse| inverse.len() == tokens) else {
        bail!(
            "reorder tokens: {} numbers are no order of the {tokens} tokens of {:?}",
            order.len(),
            x.dims()
        );
    };
    if !x.device().is_cpu() {
        return x.contiguous()?.index_select(&Tensor::new(order, x.device())?, 1);
    }
    dispatch!(x.dtype(), "reorder tokens", T => on_cpu::<T>(x, order, inverse))
}

fn on_cpu<T: Real>(x: &Tensor, order: &[u32], inverse: Vec<u32>) -> Result<Tensor> {
    let x = x.contiguous()?;
    let (_, _, dim) = x.dims3()?;
    let y = moved(reader(&x).slice::<T>()?, order, dim);
    let kept = x.clone();
    node("reorder tokens", &[&x], (y, x.shape().clone()), move |_, dy| {
        Ok(vec![gradient(moved(reader(dy).slice::<T>()?, &inverse, dim), &kept)?])
    })
}

/// The tokens of all samples in the order `order`.
fn moved<T: Real>(x: &[T], order: &[u32], dim: usize) -> Vec<T> {
    let sample = order.len() * dim;
    filled(x.len(), sample, |i, part| {
        for (token, from) in part.chunks_exact_mut(dim.max(1)).zip(order) {
            token.copy_from_slice(&x[i * sample + *from as usize * dim..][..dim]);
        }
    })
}

/// Where each token of the old order is in the new one; `None` if it is no order.
fn inverse(order: &[u32]) -> Option<Vec<u32>> {
    let mut inverse = vec![u32::MAX; order.len()];
    for (to, from) in order.iter().enumerate() {
        let place = inverse.get_mut(*from as usize)?;
        if *place != u32::MAX {
            return None;
        }
        *place = to as u32;
    }
    Some(inverse)
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;

    #[test]
    fn the_gradient_goes_back_to_where_the_tokens_were() {
        let x = Tensor::arange(0f64, 24.0, &Device::Cpu).unwrap().reshape((2, 3, 4)).unwrap();
        // Tokens that lie side by side and not one after the other.
        let x = Var::from_tensor(&x.transpose(1, 2).unwrap()).unwrap();
        let order = [3u32, 0, 2, 1];
        let y = reorder_tokens(&x, &order).unwrap();
        let expected = x.contiguous().unwrap().index_select(&Tensor::new(&order, &Device::Cpu).unwrap(), 1);
        assert_eq!(y.to_vec3::<f64>().unwrap(), expected.unwrap().to_vec3::<f64>().unwrap());
        let weights = Tensor::arange(0f64, 24.0, &Device::Cpu).unwrap().reshape((2, 4, 3)).unwrap();
        let grads = (&y * &weights).unwrap().sum_all().unwrap().backward().unwrap();
        let expected = weights.index_select(&Tensor::new(&[1u32, 3, 2, 0], &Device::Cpu).unwrap(), 1);
        let found = grads.get(&x).unwrap().to_vec3::<f64>().unwrap();
        assert_eq!(found, expected.unwrap().to_vec3::<f64>().unwrap());
    }

    #[test]
    fn what_is_no_order_is_refused() {
        let x = Tensor::zeros((2, 3, 4), DType::F32, &Device::Cpu).unwrap();
        for order in [&[0u32, 1][..], &[0, 1, 1], &[0, 1, 3], &[0, 1, 2, 3]] {
            let error = reorder_tokens(&x, order).unwrap_err().to_string();
            assert!(error.contains("no order of the 3 tokens"), "{error}");
        }
        let empty = Tensor::zeros((0, 3, 4), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(reorder_tokens(&empty, &[2, 1, 0]).unwrap().dims(), [0, 3, 4]);
    }
}
