//! The head of DINO, iBOT and DINOv2: a perceptron to a narrow layer, and cosines with prototypes.

use candle_core::{Result, Tensor};
use ssl_losses::normalize;
use ssl_nn::{Init, Mlp, MlpConfig, Scope};

/// Widths and parts of a [`DinoHead`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct DinoHeadConfig {
    pub(crate) hidden: usize,
    /// Linear layers of the perceptron.
    pub(crate) layers: usize,
    /// Whether batch norms follow the hidden layers.
    pub(crate) norm: bool,
    pub(crate) bottleneck: usize,
    pub(crate) prototypes: usize,
    /// Whether the prototypes keep the length 1.
    pub(crate) norm_last_layer: bool,
}

/// `last_layer(normalize(mlp(x)))`, the last layer a weight-normalised one without bias (Salimans & Kingma, 2016): row `k`
/// of its weight is `g_k v_k / ‖v_k‖`.
pub(crate) struct DinoHead {
    mlp: Mlp,
    weight_g: Tensor,
    weight_v: Tensor,
}

impl DinoHead {
    /// Creates `mlp.*`, `last_layer.weight_g` `(K, 1)` and `last_layer.weight_v` `(K, bottleneck)`; the former is a buffer
    /// if it is to stay 1.
    ///
    /// # Errors
    /// If a width is 0 or a name is taken.
    pub(crate) fn new(inputs: usize, config: DinoHeadConfig, scope: &Scope) -> Result<Self> {
        let DinoHeadConfig { hidden, layers, norm, bottleneck, prototypes, norm_last_layer } = config;
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

    /// `(B, d)` to rows of length 1, `(B, bottleneck)`, in training mode.
    pub(crate) fn project(&self, x: &Tensor) -> Result<Tensor> {
        normalize(&self.mlp.forward_t(x, true)?)
    }

    /// `(B, bottleneck)` to the scores `(B, K)`; without gradient to the prototypes if they are `frozen`.
    pub(crate) fn scores(&self, z: &Tensor, frozen: bool) -> Result<Tensor> {
        let weight = normalize(&self.weight_v)?.broadcast_mul(&self.weight_g)?;
        let weight = if frozen { weight.detach() } else { weight };
        z.matmul(&weight.t()?)
    }
}
