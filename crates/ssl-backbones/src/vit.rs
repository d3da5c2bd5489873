//! Vision transformers (Dosovitskiy et al., 2020, <https://arxiv.org/abs/2010.11929>) as timm builds them: class token,
//! learned positions, norms before the branches with `eps` 1e-6, exact GELU. The classifier is left out.

use candle_core::{Result, Tensor, bail};
use ssl_nn::{
    AttentionOptions, BicubicConfig, BlockOptions, Init, LayerNorm, Scope, TransformerBlock,
    TransformerBlockConfig, interpolate_positions, linear, recompute, transformer_blocks,
};

use crate::backbone::Backbone;

/// Sizes of a vision transformer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Compute each block again in the backward pass ([`recompute`]): equal results in less memory and more time.
    pub recompute: bool,
}

impl VitConfig {
    const fn new(dim: usize, depth: usize, heads: usize) -> Self {
        Self { image_size: 224, patch_size: 16, dim, depth, heads, recompute: false }
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

    /// Patches of an image.
    pub fn num_patches(&self) -> usize {
        (self.image_size / self.patch_size.max(1)).pow(2)
    }

    /// Checks the sizes against each other.
    ///
    /// # Errors
    /// Names the size, its value and what is allowed.
    pub fn validate(&self) -> std::result::Result<(), String> {
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
        Ok(())
    }

    /// Creates the parameters in `scope` under timm's names.
    ///
    /// # Errors
    /// If the sizes do not fit or a name is taken.
    pub fn build(&self, scope: &Scope) -> Result<Vit> {
        if let Err(reason) = self.validate() {
            bail!("vision transformer: {reason}");
        }
        let Self { patch_size, dim, heads, .. } = *self;
        let cls_token = scope.trainable("cls_token", (1, 1, dim), Init::Normal { std: 1e-6 })?;
        let tokens = 1 + self.num_patches();
        let pos_embed = scope.trainable("pos_embed", (1, tokens, dim), Init::Normal { std: 0.02 })?;
        let proj = scope.pp("patch_embed.proj");
        let init = Init::TorchDefault { fan_in: 3 * patch_size * patch_size };
        let patch_weight = proj.trainable("weight", (dim, 3, patch_size, patch_size), init)?;
        let patch_bias = proj.trainable("bias", dim, init)?;
        let block = TransformerBlockConfig { heads, ..Default::default() };
        let blocks = (0..self.depth)
            .map(|i| TransformerBlock::new(dim, block, &scope.pp("blocks").pp(i)))
            .collect::<Result<_>>()?;
        let norm = LayerNorm::new(dim, block.norm_eps, &scope.pp("norm"))?;
        Ok(Vit { cls_token, pos_embed, patch_weight, patch_bias, blocks, norm, config: *self })
    }
}

/// A vision transformer up to its last norm.
#[derive(Clone, Debug)]
pub struct Vit {
    cls_token: Tensor,
    pos_embed: Tensor,
    patch_weight: Tensor,
    patch_bias: Tensor,
    blocks: Vec<TransformerBlock>,
    norm: LayerNorm,
    config: VitConfig,
}

impl Vit {
    /// The tokens after the last norm: `(B, 3, H, W)` to `(B, 1 + patches, dim)`, the class token first.
    ///
    /// Images may have another size than the network was built for: the position embeddings are then interpolated, as
    /// `torch.nn.functional.interpolate` does in mode `bicubic`.
    ///
    /// # Errors
    /// If the images do not consist of whole patches.
    pub fn forward_features(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.forward(&self.forward_blocks(x, None)?)
    }

    /// How much each token looks at each other in the last block: `(B, heads, 1 + patches, 1 + patches)`, rows summing
    /// to 1; without gradient.
    ///
    /// # Errors
    /// As [`Vit::forward_features`].
    pub fn last_attention(&self, x: &Tensor) -> Result<Tensor> {
        let Some((last, blocks)) = self.blocks.split_last() else { bail!("vision transformer: no blocks") };
        let blocks: Vec<_> = blocks.iter().map(|block| (block, BlockOptions::default())).collect();
        last.attention_map(&transformer_blocks(&self.embed(x)?, &blocks, None)?, &AttentionOptions::default())
    }

    /// The tokens before the last norm, or the `first` of them.
    fn forward_blocks(&self, x: &Tensor, first: Option<usize>) -> Result<Tensor> {
        let x = self.embed(x)?;
        if self.config.recompute {
            return self.recompute_blocks(x, first);
        }
        let blocks: Vec<_> = self.blocks.iter().map(|block| (block, BlockOptions::default())).collect();
        transformer_blocks(&x, &blocks, first)
    }

    /// The blocks one by one, each computed again in the backward pass.
    fn recompute_blocks(&self, x: Tensor, first: Option<usize>) -> Result<Tensor> {
        self.blocks.iter().enumerate().try_fold(x, |x, (i, block)| {
            let first = first.filter(|_| i + 1 == self.blocks.len());
            let block = block.clone();
            recompute(&x, &[], move |x| transformer_blocks(x, &[(&block, BlockOptions::default())], first))
        })
    }

    /// The tokens before the first block.
    fn embed(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, channels, h, w) = x.dims4()?;
        let VitConfig { image_size, patch_size: p, dim, .. } = self.config;
        let (rows, columns) = (h / p, w / p);
        if channels != 3 || rows * columns == 0 || h % p != 0 || w % p != 0 {
            bail!(
                "vision transformer: expected images (B, 3, H, W) in whole patches of {p}, got {:?}",
                x.dims()
            );
        }
        let grid = image_size / p;
        let positions =
            interpolate_positions(&self.pos_embed, (grid, grid), (rows, columns), BicubicConfig::default())?;
        let patches = x.reshape((batch, 3, rows, p, columns, p))?.permute((0, 2, 4, 1, 3, 5))?;
        let patches = patches.reshape((batch, rows * columns, 3 * p * p))?;
        let weight = self.patch_weight.reshape((dim, 3 * p * p))?;
        let patches = linear(&patches, &weight, Some(&self.patch_bias), None)?;
        let tokens = Tensor::cat(&[&self.cls_token.broadcast_as((batch, 1, dim))?, &patches], 1)?;
        tokens.broadcast_add(&positions)
    }
}

impl Backbone for Vit {
    fn embed_dim(&self) -> usize {
        self.config.dim
    }

    /// The class token after the last norm.
    fn forward_t(&self, x: &Tensor, _: bool) -> Result<Tensor> {
        // The norm is one of rows: that of the class token needs no other.
        self.norm.forward(&self.forward_blocks(x, Some(1))?.squeeze(1)?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use ssl_nn::Params;

    use super::*;

    fn small() -> VitConfig {
        VitConfig { image_size: 8, patch_size: 4, dim: 12, depth: 2, heads: 3, recompute: false }
    }

    fn images(n: usize, size: usize) -> Tensor {
        let values: Vec<f32> =
            (0..n * 3 * size * size).map(|i| ((i * 7919) % 101) as f32 / 50.0 - 1.0).collect();
        Tensor::from_vec(values, (n, 3, size, size), &Device::Cpu).unwrap()
    }

    #[test]
    fn parameter_counts_are_timms_without_the_classifier() {
        for (config, expected) in [
            (VitConfig::vit_tiny(), 5_524_416),
            (VitConfig::vit_small(), 21_665_664),
            (VitConfig { image_size: 32, patch_size: 4, ..VitConfig::vit_tiny() }, 5_360_832),
        ] {
            let params = Params::new(0, DType::F32, &Device::Cpu);
            config.build(&params.root()).unwrap();
            assert_eq!(params.num_trainable(), expected, "{config:?}");
        }
    }

    #[test]
    fn every_parameter_gets_a_gradient() {
        let params = Params::new(1, DType::F32, &Device::Cpu);
        let vit = small().build(&params.root()).unwrap();
        let grads = vit.forward_t(&images(3, 8), true).unwrap().powf(3.0).unwrap().sum_all().unwrap();
        let grads = grads.backward().unwrap();
        for (name, var) in params.trainable() {
            let grad = grads.get(&var).unwrap_or_else(|| panic!("{name} has no gradient"));
            let norm = grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(norm.is_finite() && norm > 0.0, "{name}: squared norm {norm}");
        }
    }

    #[test]
    fn the_class_token_is_the_first_and_attention_sums_to_one() {
        let params = Params::new(1, DType::F32, &Device::Cpu);
        let vit = small().build(&params.root()).unwrap();
        let x = images(2, 8);
        let tokens = vit.forward_features(&x).unwrap();
        assert_eq!(tokens.dims(), [2, 5, 12]);
        let first = tokens.narrow(1, 0, 1).unwrap().squeeze(1).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(first, vit.forward_t(&x, false).unwrap().to_vec2::<f32>().unwrap());
        let map = vit.last_attention(&x).unwrap();
        assert_eq!(map.dims(), [2, 3, 5, 5]);
        let sums = map.sum(3).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-6));
    }

    #[test]
    fn images_of_another_size_have_interpolated_positions_that_learn() {
        let params = Params::new(1, DType::F32, &Device::Cpu);
        let vit = small().build(&params.root()).unwrap();
        let tokens = vit.forward_features(&images(2, 12)).unwrap();
        assert_eq!(tokens.dims(), [2, 10, 12]);
        let grads = tokens.powf(3.0).unwrap().sum_all().unwrap().backward().unwrap();
        let grad = grads.get(&params.get("pos_embed").unwrap()).unwrap();
        assert_eq!(grad.dims(), [1, 5, 12]);
        assert!(grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap() > 0.0);
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let params = Params::new(1, DType::F32, &Device::Cpu);
        let vit = small().build(&params.root()).unwrap();
        let error = vit.forward_t(&images(1, 10), false).unwrap_err().to_string();
        assert!(error.contains("whole patches of 4, got [1, 3, 10, 10]"), "{error}");
        for (config, part) in [
            (VitConfig { patch_size: 0, ..small() }, "patch_size = 0 is not in 1..=1024"),
            (VitConfig { patch_size: 3, ..small() }, "image_size = 8 is not a multiple of patch_size = 3"),
            (VitConfig { heads: 5, ..small() }, "5 heads must divide the width 12"),
        ] {
            let error = config.build(&params.root().pp("other")).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
