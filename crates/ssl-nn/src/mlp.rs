//! The multi-layer perceptron of projectors and predictors.

use candle_core::{Result, Tensor, bail};

use crate::activation::{Activation, relu};
use crate::batch_norm::{Affine, BatchNorm, BatchNormConfig};
use crate::gelu::gelu;
use crate::init::Init;
use crate::linear::{Linear, LinearConfig};
use crate::params::Scope;

/// What stands in, between and after the linear layers; the default is [`MlpConfig::PLAIN`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MlpConfig {
    /// Whether the linear layers but the last have a bias.
    pub hidden_bias: bool,
    /// Whether the last linear layer has a bias.
    pub last_bias: bool,
    /// Batch norm after every layer but the last.
    pub hidden_norm: bool,
    /// Batch norm after the last layer, with these learned parameters.
    pub last_norm: Option<Affine>,
    /// GELU in place of ReLU after every layer but the last.
    pub gelu: bool,
    /// Initial weights, with biases of 0; `None` for PyTorch's of both.
    pub init: Option<Init>,
}

impl MlpConfig {
    /// Biases and ReLU, no norms, PyTorch's initial values.
    pub const PLAIN: Self = Self {
        hidden_bias: true,
        last_bias: true,
        hidden_norm: false,
        last_norm: None,
        gelu: false,
        init: None,
    };
}

impl Default for MlpConfig {
    fn default() -> Self {
        Self::PLAIN
    }
}

/// `linear (norm) relu … linear (norm)`, or with GELU.
///
/// Tensors are named by their place in the equivalent `torch.nn.Sequential`: `0.weight`, `1.weight` for the first
/// linear layer and its norm, `3.weight` for the second linear layer.
#[derive(Clone, Debug)]
pub struct Mlp {
    layers: Vec<(Linear, Option<BatchNorm>)>,
    gelu: bool,
}

impl Mlp {
    /// A perceptron through the widths `dims`: the inputs, the hidden layers, the outputs.
    ///
    /// # Errors
    /// If `dims` has fewer than two entries, or a name is taken.
    pub fn new(dims: &[usize], config: MlpConfig, scope: &Scope) -> Result<Self> {
        if dims.len() < 2 {
            bail!("an mlp needs at least an input and an output width, got {dims:?}");
        }
        let mut place = 0..;
        let mut next = || scope.pp(place.next().unwrap_or_default());
        let last = dims.len() - 2;
        let layers = dims.windows(2).enumerate().map(|(i, width)| {
            let bias = if i == last { config.last_bias } else { config.hidden_bias };
            let bias_init = config.init.map(|_| Init::Const(0.0));
            let linear = LinearConfig { bias, init: config.init, bias_init };
            let linear = Linear::new(width[0], width[1], linear, &next())?;
            let norm = match (i == last, config.hidden_norm) {
                (true, _) => config.last_norm,
                (false, hidden) => hidden.then_some(Affine::ScaleAndShift),
            };
            let norm = norm.map(|affine| {
                BatchNorm::new(width[1], BatchNormConfig { affine, ..Default::default() }, &next())
            });
            // The place of the activation.
            next();
            Ok((linear, norm.transpose()?))
        });
        Ok(Self { layers: layers.collect::<Result<_>>()?, gelu: config.gelu })
    }

    /// `(B, dims[0])` to `(B, dims[last])`.
    ///
    /// # Errors
    /// If the number of features differs, or a batch norm in training meets a batch of one.
    pub fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let last = self.layers.len() - 1;
        let mut x = x.clone();
        for (i, (linear, norm)) in self.layers.iter().enumerate() {
            let hidden = i < last;
            x = match norm {
                None if hidden && self.gelu => linear.forward_activated(&x, Activation::Gelu)?,
                None if hidden => relu(&linear.forward(&x)?)?,
                None => linear.forward(&x)?,
                Some(norm) if hidden && !self.gelu => norm.forward_relu_t(&linear.forward(&x)?, train)?,
                Some(norm) => norm.forward_t(&linear.forward(&x)?, train)?,
            };
            if norm.is_some() && hidden && self.gelu {
                x = gelu(&x)?;
            }
        }
        Ok(x)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::Params;

    #[test]
    fn names_follow_the_sequential_numbering() {
        let params = Params::new(0, DType::F32, &Device::Cpu);
        let config = MlpConfig {
            hidden_bias: true,
            last_bias: false,
            hidden_norm: true,
            last_norm: Some(Affine::Scale),
            ..MlpConfig::PLAIN
        };
        let mlp = Mlp::new(&[4, 6, 3], config, &params.root()).unwrap();
        let trainable: Vec<_> = params.trainable().into_iter().map(|(n, _)| n).collect();
        assert_eq!(trainable, ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "4.weight"]);
        let x = Tensor::ones((2, 4), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(mlp.forward_t(&x, true).unwrap().dims(), [2, 3]);
        assert!(Mlp::new(&[4], config, &params.root().pp("other")).is_err());
    }
}
