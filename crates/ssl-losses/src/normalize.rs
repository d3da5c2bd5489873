//! Projection onto the unit sphere.

use candle_core::{D, Result, Tensor};

/// `x / max(‖x‖₂, 1e-12)` along the last dimension, as `torch.nn.functional.normalize`.
///
/// # Shapes
/// `(…, D)` to `(…, D)`; rows of zeros stay zero and have a finite gradient.
///
/// # Errors
/// If `x` is a scalar or not of a floating type.
pub fn normalize(x: &Tensor) -> Result<Tensor> {
    // The bound stands under the root, where the gradient of a zero row would otherwise be infinite.
    let norm = x.sqr()?.sum_keepdim(D::Minus1)?.maximum(1e-24)?.sqrt()?;
    x.broadcast_div(&norm)
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    #[test]
    fn rows_have_length_one_and_zero_rows_a_finite_gradient() {
        let x = Var::new(&[[3f32, 4.], [0., 0.]], &Device::Cpu).unwrap();
        let y = normalize(&x).unwrap();
        assert_eq!(y.to_vec2::<f32>().unwrap(), [[0.6, 0.8], [0.0, 0.0]]);
        let grads = y.sum_all().unwrap().backward().unwrap();
        let dx = grads.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(dx.iter().all(|d| d.is_finite()), "{dx:?}");
    }
}
