//! The predictor of I-JEPA (Assran et al., 2023, <https://arxiv.org/abs/2301.08243>, section 3): from the tokens of some
//! patches to those that an encoder would make of others. Names and order are those of the official code.

use candle_core::{Result, Tensor, bail};
use ssl_nn::{
    BlockOptions, Init, LayerNorm, Linear, LinearConfig, Scope, TransformerBlock, TransformerBlockConfig,
    transformer_blocks,
};

use crate::vit_config::{NORMAL, VitConfig};
use crate::vit_embedding::{gather_tokens, sin_cos_positions};

/// Sizes of the predictor; the defaults are those of the paper for the largest encoder.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct JepaPredictorConfig {
    /// Width of the tokens, a multiple of 4 and of `heads`.
    pub dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Heads of each block; the paper takes as many as the encoder has.
    pub heads: usize,
}

impl Default for JepaPredictorConfig {
    fn default() -> Self {
        Self { dim: 384, depth: 12, heads: 16 }
    }
}

impl JepaPredictorConfig {
    /// The predictor for the patches of `encoder`, whose `norm_eps` it has; creates `mask_token`, `predictor_embed`,
    /// `predictor_pos_embed` (a buffer), `predictor_blocks`, `predictor_norm` and `predictor_proj`.
    ///
    /// # Errors
    /// If the sizes do not fit or a name is taken.
    pub fn build(&self, encoder: &VitConfig, scope: &Scope) -> Result<JepaPredictor> {
        let Self { dim, depth, heads } = *self;
        if depth == 0 || dim == 0 || !dim.is_multiple_of(4) {
            bail!("predictor: {depth} blocks of width {dim}, must be at least 1 and a multiple of 4");
        }
        let linear =
            LinearConfig { init: Some(NORMAL), bias_init: Some(Init::Const(0.0)), ..Default::default() };
        let grid = (encoder.grid(), encoder.grid());
        let mask_token = scope.trainable("mask_token", (1, 1, dim), NORMAL)?;
        let embed = Linear::new(encoder.dim, dim, linear, &scope.pp("predictor_embed"))?;
        let shape = (1, encoder.num_patches(), dim);
        let positions = scope.buffer("predictor_pos_embed", shape, Init::Const(0.0))?;
        positions.set(&sin_cos_positions(dim, grid, 0, positions.dtype(), positions.device())?)?;
        let norm_eps = encoder.options.norm_eps;
        let block = TransformerBlockConfig { heads, norm_eps, init: NORMAL, ..Default::default() };
        let blocks =
            (0..depth).map(|i| TransformerBlock::new(dim, block, &scope.pp("predictor_blocks").pp(i)));
        Ok(JepaPredictor {
            mask_token,
            embed,
            positions: positions.as_detached_tensor(),
            blocks: blocks.collect::<Result<_>>()?,
            norm: LayerNorm::new(dim, norm_eps, &scope.pp("predictor_norm"))?,
            project: Linear::new(dim, encoder.dim, linear, &scope.pp("predictor_proj"))?,
        })
    }
}

/// A narrow transformer from the tokens of a context to those of targets.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use ssl_backbones::{JepaPredictorConfig, Pooling, VitConfig, VitOptions, VitPass};
/// use ssl_nn::Params;
///
/// let params = Params::new(0, DType::F32, &Device::Cpu);
/// let options = VitOptions { class_token: false, pooling: Pooling::Mean, ..VitOptions::mae() };
/// let config = VitConfig { image_size: 8, patch_size: 4, dim: 12, depth: 1, options, ..VitConfig::vit_tiny() };
/// let encoder = config.build(&params.root().pp("encoder"))?;
/// let predictor = JepaPredictorConfig { dim: 8, depth: 1, heads: 2 };
/// let predictor = predictor.build(&config, &params.root().pp("predictor"))?;
///
/// // The patches of the upper row are known, that at the lower right is asked for.
/// let images = Tensor::ones((1, 3, 8, 8), DType::F32, &Device::Cpu)?;
/// let (known, wanted) = (Tensor::new(&[[0u32, 1]], &Device::Cpu)?, Tensor::new(&[[3u32]], &Device::Cpu)?);
/// let tokens = encoder.run(&encoder.embed_visible(&images, &known)?, &VitPass::default())?;
/// let predicted = predictor.forward(&encoder.norm(&tokens)?, &known, &wanted)?;
/// assert_eq!(predicted.dims(), [1, 1, 12]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct JepaPredictor {
    mask_token: Tensor,
    embed: Linear,
    positions: Tensor,
    blocks: Vec<TransformerBlock>,
    norm: LayerNorm,
    project: Linear,
}

impl JepaPredictor {
    /// The tokens `(B, M, dim)` that the encoder would make of the patches `wanted` `(B, M)`, from those it makes of the
    /// patches `known` `(B, K)`: `tokens` `(B, K, dim)` after its last norm. Patches are numbered row by row.
    ///
    /// # Errors
    /// If the shapes do not fit each other, or there is no patch of a number.
    pub fn forward(&self, tokens: &Tensor, known: &Tensor, wanted: &Tensor) -> Result<Tensor> {
        let x = self.embed.forward(tokens)?;
        let (batch, context, dim) = x.dims3()?;
        if known.dims() != [batch, context] {
            bail!(
                "predictor: {:?} tokens need the numbers of their patches, got {:?}",
                x.dims(),
                known.dims()
            );
        }
        let (_, patches, _) = self.positions.dims3()?;
        let positions = self.positions.broadcast_as((batch, patches, dim))?.contiguous()?;
        let x = (x + gather_tokens(&positions, known)?)?;
        let asked = gather_tokens(&positions, wanted)?.broadcast_add(&self.mask_token)?; // (B, M, dim)
        let (_, targets, _) = asked.dims3()?;
        let x = Tensor::cat(&[&x, &asked], 1)?;
        let blocks: Vec<_> = self.blocks.iter().map(|block| (block, BlockOptions::default())).collect();
        let x = transformer_blocks(&x, &blocks, None)?.narrow(1, context, targets)?;
        self.project.forward(&self.norm.forward(&x.contiguous()?)?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use ssl_nn::Params;

    use super::*;
    use crate::vit_config::{Pooling, VitOptions};

    const SMALL: JepaPredictorConfig = JepaPredictorConfig { dim: 8, depth: 2, heads: 2 };

    fn encoder() -> VitConfig {
        let options = VitOptions { class_token: false, pooling: Pooling::Mean, ..VitOptions::mae() };
        VitConfig { image_size: 8, patch_size: 4, dim: 12, depth: 1, options, ..VitConfig::vit_tiny() }
    }

    fn numbers<const N: usize>(rows: &[[u32; 2]; N]) -> Tensor {
        Tensor::new(rows, &Device::Cpu).unwrap()
    }

    fn tokens(batch: usize) -> Tensor {
        let values = Tensor::arange(0f64, (batch * 24) as f64, &Device::Cpu).unwrap();
        values.reshape((batch, 2, 12)).unwrap().sin().unwrap()
    }

    #[test]
    fn every_parameter_gets_a_gradient_and_the_positions_none() {
        let params = Params::new(1, DType::F64, &Device::Cpu);
        let predictor = SMALL.build(&encoder(), &params.root()).unwrap();
        let (known, wanted) = (numbers(&[[0, 1], [1, 3]]), numbers(&[[2, 3], [0, 2]]));
        let loss = predictor.forward(&tokens(2), &known, &wanted).unwrap().sqr().unwrap().sum_all().unwrap();
        let grads = loss.backward().unwrap();
        for (name, var) in params.trainable() {
            let grad = grads.get(&var).unwrap_or_else(|| panic!("{name} has no gradient"));
            assert!(grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap() > 0.0, "{name}");
        }
        assert_eq!(params.buffers().len(), 1);
    }

    #[test]
    fn what_is_predicted_depends_on_the_places_and_not_on_their_order() {
        let params = Params::new(1, DType::F64, &Device::Cpu);
        let predictor = SMALL.build(&encoder(), &params.root()).unwrap();
        let predicted = |known: [u32; 2], wanted: [u32; 2], x: &Tensor| {
            let y = predictor.forward(x, &numbers(&[known]), &numbers(&[wanted])).unwrap();
            y.squeeze(0).unwrap().to_vec2::<f64>().unwrap()
        };
        let x = tokens(1);
        let turned = x.index_select(&Tensor::new(&[1u32, 0], &Device::Cpu).unwrap(), 1).unwrap();
        let [a, b] = [predicted([0, 1], [2, 3], &x), predicted([1, 0], [3, 2], &turned)];
        let far = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(far(&a[0], &b[1]) < 1e-12 && far(&a[1], &b[0]) < 1e-12);
        assert!(far(&a[0], &predicted([1, 0], [2, 3], &x)[0]) > 1e-6);
        assert!(far(&a[0], &a[1]) > 1e-6);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let params = Params::new(1, DType::F64, &Device::Cpu);
        let odd = JepaPredictorConfig { dim: 6, ..SMALL };
        let error = odd.build(&encoder(), &params.root().pp("odd")).unwrap_err().to_string();
        assert!(error.contains("width 6"), "{error}");
        let predictor = SMALL.build(&encoder(), &params.root()).unwrap();
        let error = |known: &Tensor, wanted: &Tensor| {
            predictor.forward(&tokens(2), known, wanted).unwrap_err().to_string()
        };
        let two = numbers(&[[0, 1], [0, 1]]);
        assert!(error(&numbers(&[[0, 1]]), &two).contains("got [1, 2]"));
        assert!(error(&two, &numbers(&[[0, 4], [0, 1]])).contains("token 4 of 4"));
    }
}
