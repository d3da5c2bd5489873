//! The decoder of masked autoencoders (He et al., 2021, <https://arxiv.org/abs/2111.06377>): from the tokens of the
//! patches that an encoder saw to the pixels of all. Names and order are those of the official code.

use candle_core::{Result, Tensor, bail};
use ssl_nn::{
    BlockOptions, Init, LayerNorm, Linear, LinearConfig, Scope, TransformerBlock, TransformerBlockConfig,
    transformer_blocks,
};

use crate::vit_config::{NORMAL, VitConfig};
use crate::vit_embedding::{gather_tokens, sin_cos_positions};

/// Sizes of the decoder; the defaults are those of the paper for every encoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MaeDecoderConfig {
    /// Width of the tokens, a multiple of 4 and of `heads`.
    pub dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Heads of each block.
    pub heads: usize,
    /// Width of the perceptron's hidden layer over `dim`.
    pub mlp_ratio: f64,
}

impl Default for MaeDecoderConfig {
    fn default() -> Self {
        Self { dim: 512, depth: 8, heads: 16, mlp_ratio: 4.0 }
    }
}

impl MaeDecoderConfig {
    /// The decoder for the patches of `encoder`, whose `norm_eps` it has; creates `mask_token`, `decoder_embed`,
    /// `decoder_pos_embed` (a buffer), `decoder_blocks`, `decoder_norm` and `decoder_pred`.
    ///
    /// # Errors
    /// If the sizes do not fit or a name is taken.
    pub fn build(&self, encoder: &VitConfig, scope: &Scope) -> Result<MaeDecoder> {
        let Self { dim, depth, heads, mlp_ratio } = *self;
        if depth == 0 || dim == 0 || !dim.is_multiple_of(4) {
            bail!("decoder: {depth} blocks of width {dim}, must be at least 1 and a multiple of 4");
        }
        let linear = LinearConfig {
            init: Some(Init::XavierUniform),
            bias_init: Some(Init::Const(0.0)),
            ..Default::default()
        };
        let (prefix, grid) = (encoder.prefix_tokens(), (encoder.grid(), encoder.grid()));
        let mask_token = scope.trainable("mask_token", (1, 1, dim), NORMAL)?;
        let embed = Linear::new(encoder.dim, dim, linear, &scope.pp("decoder_embed"))?;
        let tokens = prefix + encoder.num_patches();
        let positions = scope.buffer("decoder_pos_embed", (1, tokens, dim), Init::Const(0.0))?;
        positions.set(&sin_cos_positions(dim, grid, prefix, positions.dtype(), positions.device())?)?;
        let norm_eps = encoder.options.norm_eps;
        let block = TransformerBlockConfig {
            heads,
            mlp_ratio,
            norm_eps,
            init: Init::XavierUniform,
            ..Default::default()
        };
        let blocks = (0..depth).map(|i| TransformerBlock::new(dim, block, &scope.pp("decoder_blocks").pp(i)));
        let pixels = 3 * encoder.patch_size * encoder.patch_size;
        Ok(MaeDecoder {
            mask_token,
            embed,
            positions: positions.as_detached_tensor(),
            blocks: blocks.collect::<Result<_>>()?,
            norm: LayerNorm::new(dim, norm_eps, &scope.pp("decoder_norm"))?,
            predict: Linear::new(dim, pixels, linear, &scope.pp("decoder_pred"))?,
            prefix,
        })
    }
}

/// A decoder from tokens to pixels.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use ssl_backbones::{MaeDecoderConfig, VitConfig, VitOptions, VitPass, patch_pixels};
/// use ssl_nn::Params;
///
/// let params = Params::new(0, DType::F32, &Device::Cpu);
/// let options = VitOptions::mae();
/// let config = VitConfig { image_size: 8, patch_size: 4, dim: 12, depth: 1, options, ..VitConfig::vit_tiny() };
/// let encoder = config.build(&params.root().pp("encoder"))?;
/// let decoder = MaeDecoderConfig { dim: 8, depth: 1, heads: 2, ..Default::default() };
/// let decoder = decoder.build(&config, &params.root().pp("decoder"))?;
///
/// let images = Tensor::ones((1, 3, 8, 8), DType::F32, &Device::Cpu)?;
/// let kept = Tensor::new(&[[2u32]], &Device::Cpu)?;
/// // Patch 2 is the first of those embedded; the others follow in their order.
/// let restore = Tensor::new(&[[1u32, 2, 0, 3]], &Device::Cpu)?;
/// let tokens = encoder.run(&encoder.embed_visible(&images, &kept)?, &VitPass::default())?;
/// let pixels = decoder.forward(&encoder.norm(&tokens)?, &restore)?;
/// assert_eq!(pixels.dims(), patch_pixels(&images, 4)?.dims());
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct MaeDecoder {
    mask_token: Tensor,
    embed: Linear,
    positions: Tensor,
    blocks: Vec<TransformerBlock>,
    norm: LayerNorm,
    predict: Linear,
    /// Tokens that are not patches.
    prefix: usize,
}

impl MaeDecoder {
    /// The pixels `(B, N, 3·patch²)` of all patches, in the order of [`crate::patch_pixels`], from the encoder's tokens
    /// `(B, prefix + K, dim)` after its last norm.
    ///
    /// `restore` `(B, N)` says where each patch is found if the `K` that were seen come first and those that were not
    /// follow: MAE's `ids_restore`.
    ///
    /// # Errors
    /// If the shapes do not fit each other or the encoder.
    pub fn forward(&self, tokens: &Tensor, restore: &Tensor) -> Result<Tensor> {
        let x = self.embed.forward(tokens)?;
        let (batch, all, dim) = x.dims3()?;
        let (_, patches) = restore.dims2()?;
        let seen = all.checked_sub(self.prefix).filter(|seen| *seen > 0 && *seen <= patches);
        let known = self.positions.dim(1)? - self.prefix;
        let (Some(seen), true) = (seen, patches == known) else {
            bail!(
                "decoder: {all} tokens, the first {} of which are no patches, and places {:?} do not fit an image of \
                 {known} patches",
                self.prefix,
                restore.dims()
            );
        };
        let mut ordered = x.narrow(1, self.prefix, seen)?;
        if seen < patches {
            let unseen = self.mask_token.broadcast_as((batch, patches - seen, dim))?;
            ordered = Tensor::cat(&[&ordered, &unseen], 1)?;
        }
        let mut ordered = gather_tokens(&ordered.contiguous()?, restore)?;
        if self.prefix > 0 {
            ordered = Tensor::cat(&[&x.narrow(1, 0, self.prefix)?, &ordered], 1)?;
        }
        let x = ordered.broadcast_add(&self.positions)?;
        let blocks: Vec<_> = self.blocks.iter().map(|block| (block, BlockOptions::default())).collect();
        let x = transformer_blocks(&x, &blocks, None)?.narrow(1, self.prefix, patches)?;
        self.predict.forward(&self.norm.forward(&x.contiguous()?)?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use ssl_nn::Params;

    use super::*;
    use crate::vit_config::VitOptions;

    fn encoder() -> VitConfig {
        let options = VitOptions::mae();
        VitConfig { image_size: 8, patch_size: 4, dim: 12, depth: 1, options, ..VitConfig::vit_tiny() }
    }

    const SMALL: MaeDecoderConfig = MaeDecoderConfig { dim: 8, depth: 2, heads: 2, mlp_ratio: 2.0 };

    #[test]
    fn every_parameter_gets_a_gradient_and_the_positions_none() {
        let params = Params::new(1, DType::F64, &Device::Cpu);
        let decoder = SMALL.build(&encoder(), &params.root()).unwrap();
        let tokens =
            Tensor::arange(0f64, 72.0, &Device::Cpu).unwrap().reshape((2, 3, 12)).unwrap().sin().unwrap();
        let restore = Tensor::new(&[[1u32, 2, 0, 3], [3, 0, 2, 1]], &Device::Cpu).unwrap();
        let grads = decoder.forward(&tokens, &restore).unwrap().sqr().unwrap().sum_all().unwrap();
        let grads = grads.backward().unwrap();
        for (name, var) in params.trainable() {
            let grad = grads.get(&var).unwrap_or_else(|| panic!("{name} has no gradient"));
            assert!(grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap() > 0.0, "{name}");
        }
        assert_eq!(params.buffers().len(), 1);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let params = Params::new(1, DType::F32, &Device::Cpu);
        let odd = MaeDecoderConfig { dim: 6, ..SMALL };
        assert!(odd.build(&encoder(), &params.root().pp("odd")).unwrap_err().to_string().contains("width 6"));
        let decoder = SMALL.build(&encoder(), &params.root()).unwrap();
        let zeros = |n, d| Tensor::zeros((1, n, d), DType::F32, &Device::Cpu).unwrap();
        let restore = Tensor::zeros((1, 4), DType::U32, &Device::Cpu).unwrap();
        let error = |tokens| decoder.forward(&tokens, &restore).unwrap_err().to_string();
        assert!(error(zeros(1, 12)).contains("1 tokens, the first 1 of which are no patches"));
        assert!(error(zeros(7, 12)).contains("an image of 4 patches"));
    }
}
