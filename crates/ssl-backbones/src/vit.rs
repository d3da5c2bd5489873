//! Vision transformers (Dosovitskiy et al., 2020, <https://arxiv.org/abs/2010.11929>) under timm's names, whole or token
//! by token. The classifier is left out.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};
use ssl_nn::{
    AttentionOptions, BlockOptions, DrawsAt, LayerNorm, RelativePositionBias, Scope, TransformerBlock,
    drop_path_factors, recompute, transformer_blocks,
};

use crate::backbone::Backbone;
use crate::patch_projection::MaskedPatches;
use crate::vit_config::{Pooling, RelativePositions, VitConfig};
use crate::vit_embedding::Embedding;

impl VitConfig {
    /// Creates the parameters in `scope` under timm's names.
    ///
    /// # Errors
    /// If the sizes do not fit or a name is taken.
    pub fn build(&self, scope: &Scope) -> Result<Vit> {
        if let Err(reason) = self.validate() {
            bail!("vision transformer: {reason}");
        }
        let Self { dim, depth, heads, options, .. } = *self;
        let embedding = Embedding::new(*self, scope)?;
        let of_block = |i: usize| scope.pp("blocks").pp(i);
        let relative = |scope: &Scope| RelativePositionBias::new((self.grid(), self.grid()), heads, scope);
        let mut relative_positions = match options.relative_positions {
            RelativePositions::Shared => vec![relative(&scope.pp("rel_pos_bias"))?],
            RelativePositions::None | RelativePositions::Each => Vec::new(),
        };
        let mut blocks = Vec::with_capacity(depth);
        for i in 0..depth {
            blocks.push(TransformerBlock::new(dim, options.block(heads, i), &of_block(i))?);
            if options.relative_positions == RelativePositions::Each {
                relative_positions.push(relative(&of_block(i).pp("attn"))?);
            }
        }
        let norm = |name: &str| LayerNorm::new(dim, options.norm_eps, &scope.pp(name));
        let (norm, pooled_norm) = match options.pooling {
            Pooling::Token | Pooling::Mean => (Some(norm("norm")?), None),
            Pooling::MeanNorm => (None, Some(norm("fc_norm")?)),
        };
        Ok(Vit { embedding, blocks, relative_positions, norm, pooled_norm, config: *self })
    }
}

/// A vision transformer up to its last norm.
///
/// A batch goes through it as a whole ([`Backbone::forward_t`], [`Vit::forward_features`]), or in three steps, between
/// which a method for masked images has its say: [`Vit::embed`] with a token in place of some patches, or
/// [`Vit::embed_visible`] for some of them alone; [`Vit::run`] or [`Vit::run_through`] for the blocks; [`Vit::norm`].
/// None of the steps has a state, and none draws anything that its arguments do not decide.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use ssl_backbones::{VitConfig, VitOptions, VitPass};
/// use ssl_nn::Params;
///
/// let params = Params::new(0, DType::F32, &Device::Cpu);
/// let config = VitConfig { image_size: 8, patch_size: 4, dim: 12, depth: 2, ..VitConfig::vit_tiny() };
/// let vit = config.build(&params.root())?;
/// let images = Tensor::ones((2, 3, 8, 8), DType::F32, &Device::Cpu)?;
///
/// // The encoder of a masked autoencoder: one patch of the first image, another of the second.
/// let kept = Tensor::new(&[[2u32], [0]], &Device::Cpu)?;
/// let tokens = vit.run(&vit.embed_visible(&images, &kept)?, &VitPass::default())?;
/// let parts = vit.split(&vit.norm(&tokens)?)?;
/// assert_eq!(parts.class_token.map(|token| token.dims().to_vec()), Some(vec![2, 12]));
/// assert_eq!(parts.patches.dims(), [2, 1, 12]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Vit {
    embedding: Embedding,
    blocks: Vec<TransformerBlock>,
    /// None, one for all blocks, or one for each.
    relative_positions: Vec<RelativePositionBias>,
    /// Of the tokens.
    norm: Option<LayerNorm>,
    /// Of their mean, in place of the other.
    pooled_norm: Option<LayerNorm>,
    config: VitConfig,
}

/// What a pass through the blocks does besides.
#[derive(Clone, Copy, Debug, Default)]
pub struct VitPass<'a> {
    /// Where drop path draws, in training. Blocks draw for the layers `layer`, `layer + 1`, …, two each; without it
    /// nothing is left out.
    pub draws: Option<DrawsAt>,
    /// `(B, N)` of type `U8`: where it is 0, no token looks at this one.
    pub keys: Option<&'a Tensor>,
    /// The number of first tokens that are wanted, such as 1 for the class token, or all.
    pub first: Option<usize>,
}

/// The tokens by their kinds.
#[derive(Clone, Debug)]
pub struct VitTokens {
    /// `(B, dim)`.
    pub class_token: Option<Tensor>,
    /// `(B, registers, dim)`.
    pub registers: Option<Tensor>,
    /// `(B, N, dim)`, in the order in which they were embedded: all of them row by row.
    pub patches: Tensor,
}

impl Vit {
    /// What it was built from.
    pub fn config(&self) -> &VitConfig {
        &self.config
    }

    /// The tokens before the first block: `(B, 3, H, W)` to `(B, prefix + N, dim)`, class token and registers first.
    ///
    /// Images may have another size than the network was built for: the position embeddings are then interpolated, as
    /// `torch.nn.functional.interpolate` does in mode `bicubic`.
    ///
    /// # Errors
    /// If the images do not consist of whole patches, or mask and token are not of their shapes.
    pub fn embed(&self, images: &Tensor, masked: Option<MaskedPatches<'_>>) -> Result<Tensor> {
        self.embedding.all(images, masked)
    }

    /// The tokens of the patches `numbers` `(B, K)` alone, each with its own position: `(B, prefix + K, dim)`.
    ///
    /// A number is `column + row · columns`. Patches that are not asked for cost nothing.
    ///
    /// # Errors
    /// If the images do not consist of whole patches or have no patch of that number.
    pub fn embed_visible(&self, images: &Tensor, numbers: &Tensor) -> Result<Tensor> {
        self.embedding.visible(images, numbers)
    }

    /// The positions `(1, N, dim)` of a grid (rows, columns) of patches, interpolated if it is another one, or `None` if
    /// the network has none.
    ///
    /// # Errors
    /// If a tensor operation fails.
    pub fn patch_positions(&self, grid: (usize, usize)) -> Result<Option<Tensor>> {
        self.embedding.of_patches(grid)
    }

    /// All blocks, for any set of tokens `(B, M, dim)` or, with relative positions, all of them. The last norm is left
    /// to [`Vit::norm`].
    ///
    /// # Errors
    /// If `tokens` or one of `pass` is not of its shape.
    pub fn run(&self, tokens: &Tensor, pass: &VitPass<'_>) -> Result<Tensor> {
        self.run_range(tokens, 0..self.blocks.len(), pass)
    }

    /// What comes out of the blocks with the numbers `outputs`, counted from 0 and rising; the last one ends the pass.
    ///
    /// # Errors
    /// If a number is not below the depth or not above the one before it, or as [`Vit::run`].
    pub fn run_through(&self, tokens: &Tensor, outputs: &[usize], pass: &VitPass<'_>) -> Result<Vec<Tensor>> {
        let mut found = Vec::with_capacity(outputs.len());
        let (mut x, mut next) = (tokens.clone(), 0);
        for (i, &output) in outputs.iter().enumerate() {
            if output < next || output >= self.blocks.len() {
                bail!(
                    "vision transformer: outputs {outputs:?} must rise and lie below the depth {}",
                    self.blocks.len()
                );
            }
            let first = pass.first.filter(|_| i + 1 == outputs.len());
            x = self.run_range(&x, next..output + 1, &VitPass { first, ..*pass })?;
            found.push(x.clone());
            next = output + 1;
        }
        Ok(found)
    }

    /// The last norm; with [`Pooling::MeanNorm`] the tokens as they are.
    ///
    /// # Errors
    /// If the last dimension is not `dim`.
    pub fn norm(&self, tokens: &Tensor) -> Result<Tensor> {
        self.norm.as_ref().map_or_else(|| Ok(tokens.clone()), |norm| norm.forward(tokens))
    }

    /// Takes tokens that this network made apart.
    ///
    /// # Errors
    /// If there are no patches among `tokens` `(B, prefix + N, dim)`.
    pub fn split(&self, tokens: &Tensor) -> Result<VitTokens> {
        let (_, all, _) = tokens.dims3()?;
        let (prefix, registers) = (self.config.prefix_tokens(), self.config.options.registers);
        if all <= prefix {
            bail!("vision transformer: no patch among {all} tokens, the first {prefix} of which are others");
        }
        let class_token = prefix > registers;
        let class_token = class_token.then(|| tokens.narrow(1, 0, 1)?.squeeze(1)).transpose()?;
        let registers =
            (registers > 0).then(|| tokens.narrow(1, prefix - registers, registers)).transpose()?;
        Ok(VitTokens { class_token, registers, patches: tokens.narrow(1, prefix, all - prefix)? })
    }

    /// The tokens after the last norm: `(B, 3, H, W)` to `(B, prefix + N, dim)`.
    ///
    /// # Errors
    /// As [`Vit::embed`].
    pub fn forward_features(&self, images: &Tensor) -> Result<Tensor> {
        self.norm(&self.run(&self.embed(images, None)?, &VitPass::default())?)
    }

    /// How much each token looks at each other in block `i`, counted from 0: `(B, heads, M, M)` for `tokens`
    /// `(B, M, dim)` that enter the first block; rows sum to 1; without gradient.
    ///
    /// # Errors
    /// If `i` is not below the depth, or as [`Vit::run`].
    pub fn attention_map(&self, tokens: &Tensor, i: usize) -> Result<Tensor> {
        let Some(block) = self.blocks.get(i) else {
            bail!("vision transformer: block {i} of {} was asked for", self.blocks.len());
        };
        let x = self.run_range(&tokens.detach(), 0..i, &VitPass::default())?;
        let bias = self.relative_position_bias(i)?;
        block.attention_map(&x, &AttentionOptions { bias: bias.as_ref(), keys: None })
    }

    /// [`Vit::attention_map`] of the last block for images.
    ///
    /// # Errors
    /// As [`Vit::embed`].
    pub fn last_attention(&self, images: &Tensor) -> Result<Tensor> {
        self.attention_map(&self.embed(images, None)?, self.blocks.len() - 1)
    }

    fn forward(&self, images: &Tensor, draws: Option<DrawsAt>) -> Result<Tensor> {
        let x = self.embed(images, None)?;
        match self.config.options.pooling {
            Pooling::Token => {
                let x = self.run(&x, &VitPass { draws, first: Some(1), ..Default::default() })?;
                // The norm is one of rows: that of the class token needs no other.
                self.norm(&x.squeeze(1)?)
            }
            Pooling::Mean | Pooling::MeanNorm => {
                let x = self.run(&x, &VitPass { draws, ..Default::default() })?;
                let mean = self.split(&self.norm(&x)?)?.patches.mean(1)?;
                self.pooled_norm.as_ref().map_or(Ok(mean.clone()), |norm| norm.forward(&mean))
            }
        }
    }

    fn run_range(&self, x: &Tensor, range: Range<usize>, pass: &VitPass<'_>) -> Result<Tensor> {
        let factors: Vec<_> =
            range.clone().map(|i| self.drop_path(i, x, pass.draws)).collect::<Result<_>>()?;
        let biases: Vec<Option<Tensor>> = match self.config.options.relative_positions {
            RelativePositions::Shared => vec![self.relative_position_bias(0)?; range.len()],
            _ => range.clone().map(|i| self.relative_position_bias(i)).collect::<Result<_>>()?,
        };
        if self.config.recompute && !range.is_empty() {
            return self.recompute_range(x, range, (&factors, &biases), pass);
        }
        let options = biases.iter().zip(&factors).map(|(bias, factors)| BlockOptions {
            attention: AttentionOptions { bias: bias.as_ref(), keys: pass.keys },
            drop_path: factors.as_ref().map(|[attention, mlp]| [attention, mlp]),
        });
        let chain: Vec<_> = self.blocks[range].iter().zip(options).collect();
        transformer_blocks(x, &chain, pass.first)
    }

    /// The blocks one by one, each computed again in the backward pass.
    fn recompute_range(
        &self,
        x: &Tensor,
        range: Range<usize>,
        (factors, biases): (&[Option<[Tensor; 2]>], &[Option<Tensor>]),
        pass: &VitPass<'_>,
    ) -> Result<Tensor> {
        range.clone().zip(factors.iter().zip(biases)).try_fold(x.clone(), |x, (i, (factors, bias))| {
            let first = pass.first.filter(|_| i + 1 == range.end);
            let (block, factors, keys) = (self.blocks[i].clone(), factors.clone(), pass.keys.cloned());
            let inputs: Vec<&Tensor> = std::iter::once(&x).chain(bias).collect();
            recompute(&inputs, &[], move |inputs| {
                let attention = AttentionOptions { bias: inputs.get(1), keys: keys.as_ref() };
                let drop_path = factors.as_ref().map(|[attention, mlp]| [attention, mlp]);
                transformer_blocks(&inputs[0], &[(&block, BlockOptions { attention, drop_path })], first)
            })
        })
    }

    /// The factors of the two branches of block `i`.
    fn drop_path(&self, i: usize, x: &Tensor, draws: Option<DrawsAt>) -> Result<Option<[Tensor; 2]>> {
        let p = self.config.options.drop_path_of(i, self.blocks.len());
        let Some(draws) = draws.filter(|_| p > 0.0) else { return Ok(None) };
        let (batch, _, _) = x.dims3()?;
        let factors = |branch: u32| {
            let layer = draws.layer + 2 * i as u32 + branch;
            Tensor::new(drop_path_factors(batch, p, DrawsAt { layer, ..draws })?, x.device())
        };
        Ok(Some([factors(0)?, factors(1)?]))
    }

    fn relative_position_bias(&self, i: usize) -> Result<Option<Tensor>> {
        let of_block = match self.config.options.relative_positions {
            RelativePositions::Shared => self.relative_positions.first(),
            RelativePositions::None | RelativePositions::Each => self.relative_positions.get(i),
        };
        of_block.map(RelativePositionBias::bias).transpose()
    }
}

impl Backbone for Vit {
    fn embed_dim(&self) -> usize {
        self.config.dim
    }

    /// The class token after the last norm, or the mean of the patches.
    fn forward_t(&self, x: &Tensor, _: bool) -> Result<Tensor> {
        self.forward(x, None)
    }

    fn forward_train(&self, x: &Tensor, draws: Option<DrawsAt>) -> Result<Tensor> {
        self.forward(x, draws)
    }

    fn vision_transformer(&self) -> Option<&Vit> {
        Some(self)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use ssl_nn::Params;

    use super::*;

    fn small() -> VitConfig {
        VitConfig { image_size: 8, patch_size: 4, dim: 12, depth: 2, ..VitConfig::vit_tiny() }
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
