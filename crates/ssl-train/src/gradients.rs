//! The gradients of one optimiser step, by name.

use std::collections::BTreeMap;

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, DType, Result, Storage, Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::chunks::sum_of_squares;

/// Over which gradients a norm is taken that must not grow too large.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClipScope {
    /// Over all of them.
    #[default]
    All,
    /// Over those of each part of a method, which the first word of a parameter's name tells, as in DINOv2: `backbone`,
    /// `head`, `projector`.
    Module,
    /// Over each by itself, as in DINO.
    Tensor,
}

impl ClipScope {
    /// The part that the parameter `name` belongs to.
    fn part(self, name: &str) -> &str {
        match self {
            Self::All => "",
            Self::Module => name.split('.').next().unwrap_or(name),
            Self::Tensor => name,
        }
    }

    /// Whether it is the default.
    pub(crate) fn is_all(&self) -> bool {
        *self == Self::All
    }
}

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
        Ok(self.squared_norms()?.iter().map(|(_, square)| square).sum::<f64>().sqrt())
    }

    /// Squares of the L2 norms of all gradients, with the names of their parameters in alphabetical order.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn squared_norms(&self) -> Result<Vec<(&str, f64)>> {
        self.tensors.iter().map(|(name, gradient)| Ok((name.as_str(), squared_norm(gradient)?))).collect()
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

    /// Scales the gradients of each part that `scope` names so that their norm together is at most `max_norm`, as
    /// `torch.nn.utils.clip_grad_norm_` does for the parameters it is given.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn clip(&mut self, max_norm: f64, scope: ClipScope) -> Result<()> {
        let mut squares: BTreeMap<String, f64> = BTreeMap::new();
        for (name, grad) in &self.tensors {
            *squares.entry(scope.part(name).to_owned()).or_default() += squared_norm(grad)?;
        }
        for (name, grad) in &mut self.tensors {
            let norm = squares.get(scope.part(name)).copied().unwrap_or_default().sqrt();
            let factor = max_norm / (norm + 1e-6);
            if factor < 1.0 {
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
        g.clip(10.0, ClipScope::All).unwrap();
        assert_eq!(g.norm().unwrap(), 5.0);
        g.clip(1.0, ClipScope::All).unwrap();
        assert!((g.norm().unwrap() - 1.0).abs() < 1e-5);
    }

    #[test]
    fn each_part_of_a_scope_is_clipped_by_its_own_norm() {
        let clipped = |scope| {
            let mut g = gradients(&[("backbone.a", &[3.0]), ("backbone.b", &[4.0]), ("head.a", &[0.5])]);
            g.clip(2.0, scope).unwrap();
            ["backbone.a", "backbone.b", "head.a"]
                .map(|name| g.get(name).unwrap().to_vec1::<f32>().unwrap()[0])
        };
        let close = |scope, expected: [f32; 3]| {
            let found = clipped(scope);
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-5), "{scope:?}: {found:?}");
        };
        let all = 2.0 / 25.25f32.sqrt();
        close(ClipScope::All, [3.0 * all, 4.0 * all, 0.5 * all]);
        close(ClipScope::Module, [1.2, 1.6, 0.5]);
        close(ClipScope::Tensor, [2.0, 2.0, 0.5]);
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
