//! The gradients of one optimiser step, by name.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, Result, Storage, Tensor, Var};

use crate::chunks::sum_of_squares;

/// Gradients by the names of their parameters, summed over micro-batches.
#[derive(Clone, Debug, Default)]
pub struct Gradients {
    tensors: BTreeMap<String, Tensor>,
}

impl Gradients {
    /// Gradients given by name.
    pub fn new(tensors: BTreeMap<String, Tensor>) -> Self {
        Self { tensors }
    }

    /// The gradient of the parameter `name`, if it has one.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// Adds `weight` times the gradients of `params` in `grads`, which is emptied of them.
    ///
    /// # Errors
    /// If shapes differ between calls.
    pub fn accumulate(&mut self, params: &[(String, Var)], grads: &mut GradStore, weight: f64) -> Result<()> {
        for (name, var) in params {
            // A gradient may still hold on to the graph it came from.
            let Some(grad) = grads.remove(var).map(|grad| grad.detach()) else { continue };
            let grad = if weight == 1.0 { grad } else { (grad * weight)? };
            let sum = match self.tensors.get(name) {
                Some(sum) => (sum + grad)?,
                None => grad,
            };
            self.tensors.insert(name.clone(), sum);
        }
        Ok(())
    }

    /// L2 norm over all gradients together. NaN or infinite if one of them is.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn norm(&self) -> Result<f64> {
        let squares = self.tensors.values().map(squared_norm);
        Ok(squares.sum::<Result<f64>>()?.sqrt())
    }

    /// The first parameter in the order of `params` whose gradient is not finite.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn first_non_finite(&self, params: &[(String, Var)]) -> Result<Option<String>> {
        for (name, _) in params {
            if let Some(grad) = self.tensors.get(name)
                && !is_finite(grad)?
            {
                return Ok(Some(name.clone()));
            }
        }
        Ok(None)
    }

    /// Scales all gradients so that their norm is at most `max_norm`, as `torch.nn.utils.clip_grad_norm_`.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn clip(&mut self, norm: f64, max_norm: f64) -> Result<()> {
        let factor = max_norm / (norm + 1e-6);
        if factor < 1.0 {
            for grad in self.tensors.values_mut() {
                *grad = (&*grad * factor)?;
            }
        }
        Ok(())
    }
}

/// Whether every element is a finite number. Sums carry NaN and infinity along, where candle's `max` loses NaN.
pub(crate) fn is_finite(tensor: &Tensor) -> Result<bool> {
    Ok((tensor * 0.0)?.sum_all()?.to_dtype(DType::F64)?.to_scalar::<f64>()? == 0.0)
}

fn squared_norm(tensor: &Tensor) -> Result<f64> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::F32(values)), Some((start, end))) => {
            let values = &values[start..end];
            Ok(sum_of_squares(values, values, |value, _| value))
        }
        _ => tensor.sqr()?.sum_all()?.to_dtype(DType::F64)?.to_scalar(),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn gradients(values: &[(&str, &[f32])]) -> Gradients {
        let tensor = |v: &[f32]| Tensor::new(v, &Device::Cpu).unwrap();
        Gradients::new(values.iter().map(|(name, v)| (name.to_string(), tensor(v))).collect())
    }

    #[test]
    fn clipping_keeps_the_direction_and_bounds_the_norm() {
        let mut g = gradients(&[("a", &[3.0]), ("b", &[4.0, 0.0])]);
        assert_eq!(g.norm().unwrap(), 5.0);
        g.clip(5.0, 10.0).unwrap();
        assert_eq!(g.norm().unwrap(), 5.0);
        g.clip(5.0, 1.0).unwrap();
        assert!((g.norm().unwrap() - 1.0).abs() < 1e-5);
    }

    #[test]
    fn accumulation_is_the_weighted_sum() {
        let w = Var::new(&[2f32, 3.0], &Device::Cpu).unwrap();
        let params = [("w".to_owned(), w.clone())];
        let mut sum = Gradients::default();
        for scale in [1.0, 3.0] {
            let loss = (w.sqr().unwrap() * scale).unwrap().sum_all().unwrap();
            sum.accumulate(&params, &mut loss.backward().unwrap(), 0.5).unwrap();
        }
        assert_eq!(sum.get("w").unwrap().to_vec1::<f32>().unwrap(), [8.0, 12.0]);
    }

    #[test]
    fn the_first_bad_gradient_is_named_in_the_order_of_the_network() {
        let g = gradients(&[("a", &[1.0]), ("b", &[f32::NAN, 1.0]), ("c", &[f32::INFINITY])]);
        let var = Var::new(&[0f32], &Device::Cpu).unwrap();
        let params = ["c", "a", "b"].map(|name| (name.to_owned(), var.clone()));
        assert_eq!(g.first_non_finite(&params).unwrap().as_deref(), Some("c"));
        assert!(!g.norm().unwrap().is_finite());
    }
}
