//! The head of DINO, iBOT and DINOv2: a perceptron to a narrow layer, and cosines with prototypes.

use candle_core::{Result, Tensor, bail};
use ssl_losses::normalize;
use ssl_nn::{Init, Mlp, MlpConfig, Scope};

use crate::checks;

/// Widths and parts of a [`DinoHead`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DinoHeadConfig {
    /// Width of the perceptron's hidden layers.
    pub hidden: usize,
    /// Linear layers of the perceptron, in 1..=8.
    pub layers: usize,
    /// Whether batch norms follow the hidden layers.
    pub norm: bool,
    /// Width of the perceptron's output.
    pub bottleneck: usize,
    /// Number of scores.
    pub prototypes: usize,
    /// Whether the prototypes keep the length 1.
    pub norm_last_layer: bool,
}

/// The head of DINO (Caron et al., 2021, <https://arxiv.org/abs/2104.14294>, appendix C), iBOT and DINOv2.
///
/// `last_layer(normalize(mlp(x)))`, the last layer a weight-normalised one without bias (Salimans & Kingma, 2016): row `k`
/// of its weight is `g_k v_k / ‖v_k‖`.
///
/// # Example
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use ssl_methods::{DinoHead, DinoHeadConfig};
/// use ssl_nn::Params;
///
/// let config = DinoHeadConfig {
///     hidden: 32,
///     layers: 3,
///     norm: false,
///     bottleneck: 16,
///     prototypes: 64,
///     norm_last_layer: true,
/// };
/// let params = Params::new(0, DType::F32, &Device::Cpu);
/// let head = DinoHead::new(24, config, &params.root().pp("head"))?;
/// let x = Tensor::randn(0f32, 1., (8, 24), &Device::Cpu)?;
/// let scores = head.scores(&head.project(&x)?, false)?;
/// assert_eq!(scores.dims(), [8, 64]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug)]
pub struct DinoHead {
    mlp: Mlp,
    weight_g: Tensor,
    weight_v: Tensor,
}

impl DinoHead {
    /// Creates `mlp.*`, `last_layer.weight_g` `(K, 1)` and `last_layer.weight_v` `(K, bottleneck)` for rows of width
    /// `inputs`; the former is a buffer if it is to stay 1.
    ///
    /// # Errors
    /// If a width is 0, a name is taken, or `layers` not in 1..=8.
    pub fn new(inputs: usize, config: DinoHeadConfig, scope: &Scope) -> Result<Self> {
        let DinoHeadConfig { hidden, layers, norm, bottleneck, prototypes, norm_last_layer } = config;
        if let Err(reason) = checks::count("layers", layers, checks::LAYERS) {
            bail!("{reason}");
        }
        let mut dims = vec![hidden; layers + 1];
        dims[0] = inputs;
        dims[layers] = bottleneck;
        let init = Some(Init::Normal { std: 0.02 });
        let mlp = MlpConfig { hidden_norm: norm, gelu: true, init, ..MlpConfig::PLAIN };
        let mlp = Mlp::new(&dims, mlp, &scope.pp("mlp"))?;
        let last = scope.pp("last_layer");
        let lengths = if norm_last_layer { last.frozen() } else { last.clone() };
        let weight_g = lengths.trainable("weight_g", (prototypes, 1), Init::Const(1.0))?;
        let init = Init::TorchDefault { fan_in: bottleneck };
        let weight_v = last.trainable("weight_v", (prototypes, bottleneck), init)?;
        Ok(Self { mlp, weight_g, weight_v })
    }

    /// `(B, inputs)` to rows of length 1, `(B, bottleneck)`, in training mode.
    ///
    /// # Errors
    /// If `x` is not of that shape.
    pub fn project(&self, x: &Tensor) -> Result<Tensor> {
        normalize(&self.mlp.forward_t(x, true)?)
    }

    /// `(B, bottleneck)` to the scores `(B, K)`; without gradient to the prototypes if they are `frozen`.
    ///
    /// # Errors
    /// If `z` is not of that shape.
    pub fn scores(&self, z: &Tensor, frozen: bool) -> Result<Tensor> {
        let weight = normalize(&self.weight_v)?.broadcast_mul(&self.weight_g)?;
        let weight = if frozen { weight.detach() } else { weight };
        z.matmul(&weight.t()?)
    }
}
