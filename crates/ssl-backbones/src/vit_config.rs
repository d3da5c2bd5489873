//! What a vision transformer is made of.

use serde::{Deserialize, Serialize};
use ssl_nn::{Activation, Init, Perceptron, QkvBias, TransformerBlockConfig};

/// Sizes and parts of a vision transformer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VitConfig {
    /// Side of the square images in pixels, a multiple of `patch_size`.
    pub image_size: usize,
    /// Side of the square patches in pixels.
    pub patch_size: usize,
    /// Width of the tokens and of the embedding.
    pub dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Heads of each block; must divide `dim`.
    pub heads: usize,
    /// Its parts.
    pub options: VitOptions,
    /// Compute each block again in the backward pass ([`ssl_nn::recompute`]): equal results in less memory and more
    /// time.
    pub recompute: bool,
}

/// The parts of a vision transformer besides its sizes; the defaults are those of timm's `vit_base_patch16_224`.
///
/// ```
/// use ssl_backbones::{Positions, VitConfig, VitOptions};
///
/// // The encoder of MAE's ViT-B, and one with the registers of DINOv2.
/// let mae = VitConfig { options: VitOptions::mae(), ..VitConfig::vit_base() };
/// let options = VitOptions { registers: 4, positions: Positions::LearnedPatches, ..VitOptions::dinov2() };
/// let with_registers = VitConfig { patch_size: 14, options, ..VitConfig::vit_small() };
/// assert_eq!((mae.prefix_tokens(), with_registers.prefix_tokens()), (1, 5));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VitOptions {
    /// How the tokens become one vector.
    pub pooling: Pooling,
    /// Whether there is a class token.
    pub class_token: bool,
    /// Register tokens (Darcet et al., 2023, <https://arxiv.org/abs/2309.16588>) behind the class token, in 0..=64.
    pub registers: usize,
    /// What tells the tokens where they are.
    pub positions: Positions,
    /// Added to the number of rows and columns when positions are interpolated, in 0..1. 0.1 in DINO and DINOv2 and 0
    /// elsewhere, DINOv2 with registers included.
    pub position_offset: f64,
    /// Whether a smaller grid of positions averages over all of the larger one, as in timm and DINOv2 with registers.
    pub position_antialias: bool,
    /// Learned biases of the attention that depend on the distance of two patches, as in BEiT.
    pub relative_positions: RelativePositions,
    /// The perceptron of each block.
    pub mlp: VitMlp,
    /// Width of the perceptron's hidden layer over `dim`, above 0; SwiGLU takes two thirds of it.
    pub mlp_ratio: f64,
    /// Start of the factor of each channel on what a branch adds (LayerScale), at least 0; 0 for no such factors.
    pub layer_scale: f64,
    /// The biases of queries, keys and values.
    pub qkv_bias: VitQkvBias,
    /// Norm queries and keys of each head; slower.
    pub qk_norm: bool,
    /// Added to the variance in every norm, above 0.
    pub norm_eps: f64,
    /// A norm before the first block and no bias of the patches, as in CLIP.
    pub norm_first: bool,
    /// Probability that training leaves the last block's branches out for a sample, in 0..1. It grows linearly from 0
    /// at the first block.
    pub drop_path: f64,
    /// Whether all blocks have the same such probability, as in DINOv2.
    pub uniform_drop_path: bool,
    /// How the parameters start.
    pub init: VitInit,
}

/// How the tokens become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The class token after the last norm.
    Token,
    /// The mean of the patches' tokens after the last norm: timm's `global_pool="avg"` with `fc_norm=False`.
    Mean,
    /// The mean of the patches' tokens, then a norm, and none before: timm's `fc_norm`, with which BEiT, data2vec and MAE
    /// are fine-tuned. For networks whose tokens nobody looks at.
    MeanNorm,
}

/// What is added to the tokens before the first block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// A learned vector for each token, class token and registers included.
    Learned,
    /// A learned vector for each patch alone: timm's `no_embed_class`.
    LearnedPatches,
    /// Fixed vectors of sines and cosines for the patches ([`crate::sin_cos_positions`]) and zeros for the others, as in
    /// MAE and I-JEPA. They are a buffer of the store.
    SinCos,
    /// Nothing.
    None,
}

/// Which blocks share a table of relative position biases. A network with such biases has a class token, no registers
/// and one size of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RelativePositions {
    /// There is none.
    None,
    /// One for all blocks, as in the pre-training of BEiT.
    Shared,
    /// One for each block, as in the fine-tuning of BEiT.
    Each,
}

/// The perceptron of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VitMlp {
    /// With exact GELU.
    Gelu,
    /// With the approximation of GELU by a hyperbolic tangent.
    GeluTanh,
    /// With CLIP's `x σ(1.702 x)`.
    QuickGelu,
    /// With a gate, as in the largest DINOv2 ([`ssl_nn::swiglu`]).
    #[serde(rename = "swiglu")]
    SwiGlu,
}

/// Which of queries, keys and values have a bias ([`ssl_nn::QkvBias`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VitQkvBias {
    /// None of them.
    None,
    /// All of them.
    All,
    /// Queries and values, under the names of timm's BEiT.
    QueryValue,
}

/// How the parameters of a vision transformer start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VitInit {
    /// Weights and positions normal with deviation 0.02, class token with 1e-6, patches as any convolution of PyTorch.
    Timm,
    /// Weights uniform after Glorot and Bengio, class token normal with deviation 0.02, as in MAE.
    Xavier,
    /// As timm, but class token and patches with deviation 0.02, and the layers that end a branch of block `l = 1, 2, …`
    /// divided by `√(2 l)`, as in BEiT.
    Beit,
}

impl Default for VitOptions {
    fn default() -> Self {
        Self::TIMM
    }
}

impl VitOptions {
    const TIMM: Self = Self {
        pooling: Pooling::Token,
        class_token: true,
        registers: 0,
        positions: Positions::Learned,
        position_offset: 0.0,
        position_antialias: false,
        relative_positions: RelativePositions::None,
        mlp: VitMlp::Gelu,
        mlp_ratio: 4.0,
        layer_scale: 0.0,
        qkv_bias: VitQkvBias::All,
        qk_norm: false,
        norm_eps: 1e-6,
        norm_first: false,
        drop_path: 0.0,
        uniform_drop_path: false,
        init: VitInit::Timm,
    };

    /// DINOv2 without registers: LayerScale from 1e-5, positions interpolated with an offset of 0.1.
    pub const fn dinov2() -> Self {
        Self { layer_scale: 1e-5, position_offset: 0.1, ..Self::TIMM }
    }

    /// The encoder of MAE: fixed positions and its initial values.
    pub const fn mae() -> Self {
        Self { positions: Positions::SinCos, init: VitInit::Xavier, ..Self::TIMM }
    }

    /// BEiT in pre-training: shared relative positions and no others, LayerScale from 0.1 (ViT-L: 1e-5), no bias of the
    /// keys.
    pub const fn beit() -> Self {
        Self {
            positions: Positions::None,
            relative_positions: RelativePositions::Shared,
            layer_scale: 0.1,
            qkv_bias: VitQkvBias::QueryValue,
            init: VitInit::Beit,
            ..Self::TIMM
        }
    }

    /// The images' side of CLIP.
    pub const fn clip() -> Self {
        Self { mlp: VitMlp::QuickGelu, norm_eps: 1e-5, norm_first: true, ..Self::TIMM }
    }

    /// Checks every part.
    fn validate(&self) -> Result<(), String> {
        let within = |key: &str, value: f64, ok: bool, range: &str| match ok {
            true => Ok(()),
            false => Err(format!("{key} = {value} is not {range}")),
        };
        let Self { registers, position_offset, mlp_ratio, layer_scale, norm_eps, drop_path, .. } = *self;
        within("registers", registers as f64, registers <= 64, "in 0..=64")?;
        within("position_offset", position_offset, (0.0..1.0).contains(&position_offset), "in [0, 1)")?;
        within("mlp_ratio", mlp_ratio, mlp_ratio > 0.0 && mlp_ratio <= 64.0, "in (0, 64]")?;
        within("layer_scale", layer_scale, layer_scale >= 0.0 && layer_scale.is_finite(), "at least 0")?;
        within("norm_eps", norm_eps, norm_eps > 0.0 && norm_eps.is_finite(), "above 0")?;
        within("drop_path", drop_path, (0.0..1.0).contains(&drop_path), "in [0, 1)")?;
        if !self.class_token && self.pooling == Pooling::Token {
            return Err("pooling = token needs class_token = true".to_owned());
        }
        let relative = self.relative_positions != RelativePositions::None;
        if relative && (!self.class_token || registers > 0) {
            return Err(format!(
                "relative_positions need class_token = true and registers = 0, got {} and {registers}",
                self.class_token
            ));
        }
        Ok(())
    }

    /// The settings of block `i`.
    pub(crate) fn block(&self, heads: usize, i: usize) -> TransformerBlockConfig {
        let (init, last) = match self.init {
            VitInit::Timm => (NORMAL, None),
            VitInit::Xavier => (Init::XavierUniform, None),
            VitInit::Beit => (NORMAL, Some(Init::Normal { std: 0.02 / (2.0 * (i + 1) as f64).sqrt() })),
        };
        TransformerBlockConfig {
            heads,
            mlp_ratio: self.mlp_ratio,
            norm_eps: self.norm_eps,
            qkv_bias: match self.qkv_bias {
                VitQkvBias::None => QkvBias::None,
                VitQkvBias::All => QkvBias::All,
                VitQkvBias::QueryValue => QkvBias::QueryValue,
            },
            qk_norm: self.qk_norm,
            layer_scale: (self.layer_scale > 0.0).then_some(self.layer_scale),
            perceptron: match self.mlp {
                VitMlp::Gelu => Perceptron::Plain(Activation::Gelu),
                VitMlp::GeluTanh => Perceptron::Plain(Activation::GeluTanh),
                VitMlp::QuickGelu => Perceptron::Plain(Activation::QuickGelu),
                VitMlp::SwiGlu => Perceptron::SwiGlu,
            },
            init,
            last_init: last,
            ..TransformerBlockConfig::default()
        }
    }

    /// Probability that block `i` of `depth` leaves a branch out.
    pub(crate) fn drop_path_of(&self, i: usize, depth: usize) -> f64 {
        match self.uniform_drop_path {
            true => self.drop_path,
            false => self.drop_path * i as f64 / (depth.max(2) - 1) as f64,
        }
    }
}

/// The initial weights of most vision transformers.
pub(crate) const NORMAL: Init = Init::Normal { std: 0.02 };

impl VitConfig {
    const fn new(dim: usize, depth: usize, heads: usize) -> Self {
        Self {
            image_size: 224,
            patch_size: 16,
            dim,
            depth,
            heads,
            options: VitOptions::TIMM,
            recompute: false,
        }
    }

    /// ViT-Ti: 5.5 million parameters, 192 features.
    pub const fn vit_tiny() -> Self {
        Self::new(192, 12, 3)
    }

    /// ViT-S: 21.7 million parameters, 384 features.
    pub const fn vit_small() -> Self {
        Self::new(384, 12, 6)
    }

    /// ViT-B: 85.8 million parameters, 768 features.
    pub const fn vit_base() -> Self {
        Self::new(768, 12, 12)
    }

    /// ViT-L: 303 million parameters, 1024 features.
    pub const fn vit_large() -> Self {
        Self::new(1024, 24, 16)
    }

    /// Rows, and columns, of patches.
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size.max(1)
    }

    /// Patches of an image.
    pub fn num_patches(&self) -> usize {
        self.grid().pow(2)
    }

    /// Tokens before those of the patches: the class token and the registers.
    pub fn prefix_tokens(&self) -> usize {
        usize::from(self.options.class_token) + self.options.registers
    }

    /// Checks the sizes against each other, and the parts.
    ///
    /// # Errors
    /// Names the setting, its value and what is allowed.
    pub fn validate(&self) -> Result<(), String> {
        let Self { image_size, patch_size, dim, depth, heads, .. } = *self;
        if !(1..=1024).contains(&patch_size) {
            return Err(format!("patch_size = {patch_size} is not in 1..=1024"));
        }
        if !(patch_size..=16_384).contains(&image_size) || image_size % patch_size != 0 {
            return Err(format!(
                "image_size = {image_size} is not a multiple of patch_size = {patch_size} in {patch_size}..=16384"
            ));
        }
        if dim == 0 || depth == 0 || heads == 0 || dim % heads != 0 {
            return Err(format!(
                "{heads} heads must divide the width {dim} of {depth} blocks, at least one each"
            ));
        }
        if self.options.positions == Positions::SinCos && dim % 4 != 0 {
            return Err(format!("positions = sin_cos need a width that is a multiple of 4, not {dim}"));
        }
        self.options.validate().map_err(|reason| format!("vit.{reason}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drop_path_grows_to_its_rate_or_is_the_same_everywhere() {
        let options = VitOptions { drop_path: 0.3, ..Default::default() };
        let rates = |options: VitOptions| (0..4).map(|i| options.drop_path_of(i, 4)).collect::<Vec<_>>();
        for (rate, expected) in rates(options).into_iter().zip([0.0, 0.1, 0.2, 0.3]) {
            assert!((rate - expected).abs() < 1e-12, "{rate}");
        }
        assert_eq!(rates(VitOptions { uniform_drop_path: true, ..options }), [0.3; 4]);
        assert_eq!(options.drop_path_of(0, 1), 0.0);
    }

    #[test]
    fn parts_that_do_not_fit_are_refused_by_name() {
        let error = |options| VitConfig { options, ..VitConfig::vit_tiny() }.validate().unwrap_err();
        let plain = VitOptions::default();
        for (options, part) in [
            (VitOptions { registers: 65, ..plain }, "vit.registers = 65 is not in 0..=64"),
            (VitOptions { mlp_ratio: 0.0, ..plain }, "vit.mlp_ratio = 0 is not in (0, 64]"),
            (VitOptions { layer_scale: f64::NAN, ..plain }, "vit.layer_scale = NaN is not at least 0"),
            (VitOptions { norm_eps: 0.0, ..plain }, "vit.norm_eps = 0 is not above 0"),
            (VitOptions { drop_path: 1.0, ..plain }, "vit.drop_path = 1 is not in [0, 1)"),
            (VitOptions { position_offset: -0.1, ..plain }, "vit.position_offset = -0.1 is not in [0, 1)"),
            (VitOptions { class_token: false, ..plain }, "pooling = token needs class_token"),
            (VitOptions { registers: 1, ..VitOptions::beit() }, "and registers = 0, got true and 1"),
        ] {
            let error = error(options);
            assert!(error.contains(part), "{error}");
        }
        let odd = VitConfig { dim: 6, heads: 3, options: VitOptions::mae(), ..VitConfig::vit_tiny() };
        assert!(odd.validate().unwrap_err().contains("a multiple of 4, not 6"));
    }
}
