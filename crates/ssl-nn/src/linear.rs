//! Fully connected layer.

use candle_core::{Result, Tensor};

use crate::init::Init;
use crate::params::Scope;

/// Settings of a linear layer; the defaults are PyTorch's.
#[derive(Clone, Copy, Debug)]
pub struct LinearConfig {
    /// Whether there is a bias.
    pub bias: bool,
    /// Initial weight; `None` is PyTorch's uniform `±1/sqrt(inputs)`, which the bias has too.
    pub init: Option<Init>,
}

impl Default for LinearConfig {
    fn default() -> Self {
        Self { bias: true, init: None }
    }
}

/// `y = x Wᵀ + b`.
#[derive(Clone, Debug)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// A layer from `inputs` to `outputs` features; creates `weight` `(outputs, inputs)` and perhaps `bias`.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn new(inputs: usize, outputs: usize, config: LinearConfig, scope: &Scope) -> Result<Self> {
        let default = Init::TorchDefault { fan_in: inputs };
        let weight = scope.trainable("weight", (outputs, inputs), config.init.unwrap_or(default))?;
        let bias = config.bias.then(|| scope.trainable("bias", outputs, default)).transpose()?;
        Ok(Self { weight, bias })
    }

    /// `(B, inputs)` to `(B, outputs)`.
    ///
    /// # Errors
    /// If the number of features differs.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = x.matmul(&self.weight.t()?)?;
        match &self.bias {
            Some(bias) => y.broadcast_add(bias),
            None => Ok(y),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::Params;

    #[test]
    fn forward_is_the_affine_map() {
        let params = Params::new(0, DType::F32, &Device::Cpu);
        let linear = Linear::new(2, 1, LinearConfig::default(), &params.root()).unwrap();
        let w = params.get("weight").unwrap().to_vec2::<f32>().unwrap()[0].clone();
        let b = params.get("bias").unwrap().to_vec1::<f32>().unwrap()[0];
        let y = linear.forward(&Tensor::new(&[[2f32, -1.]], &Device::Cpu).unwrap()).unwrap();
        let expected = 2.0 * w[0] - w[1] + b;
        assert!((y.to_vec2::<f32>().unwrap()[0][0] - expected).abs() < 1e-6);
    }
}
