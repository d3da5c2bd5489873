//! Swin Transformers (Liu et al., 2021, <https://arxiv.org/abs/2103.14030>; official code microsoft/Swin-Transformer) under
//! timm's names. The classifier is left out.
//!
//! Tokens see each other within windows alone, which every other block shifts by half; from one stage to the next, four
//! tokens become one of twice the width. All but the attention works token by token, so that a block is that of a vision
//! transformer on windows in place of images, and between blocks tokens change their order.

use candle_core::{Device, Error, Result, Tensor};
use ssl_nn::{
    AttentionOptions, BlockOptions, DrawsAt, Init, LayerNorm, Linear, LinearConfig, RelativePositionBias,
    Scope, TransformerBlock, TransformerBlockConfig, drop_path_factors, recompute, reorder_tokens,
    transformer_blocks,
};

use crate::backbone::Backbone;
use crate::patch_projection::{MaskedPatches, PatchProjection, whole_patches};
use crate::swin_config::SwinConfig;
use crate::swin_windows::{Windows, change, quads};
use crate::vit_config::NORMAL;

/// Added to the variance in every norm.
const EPS: f64 = 1e-5;

impl SwinConfig {
    /// Creates the parameters in `scope` under timm's names.
    ///
    /// # Errors
    /// If the sizes do not fit or a name is taken.
    pub fn build(&self, scope: &Scope) -> Result<Swin> {
        self.validate().map_err(|reason| Error::Msg(format!("swin transformer: {reason}")))?;
        let Self { patch_size, dim, heads, .. } = *self;
        let default = Init::TorchDefault { fan_in: 3 * patch_size * patch_size };
        let embed = scope.pp("patch_embed");
        let projection = PatchProjection::new(patch_size, dim, (default, Some(default)), &embed.pp("proj"))?;
        let embed_norm = LayerNorm::new(dim, EPS, &embed.pp("norm"))?;
        let stages = self.depths.iter().enumerate().map(|(s, depth)| {
            let (scope, dim, heads) = (scope.pp("layers").pp(s), dim << s, heads << s);
            let joint = (s > 0).then(|| Joint::new(dim / 2, &scope.pp("downsample"))).transpose()?;
            let blocks =
                (0..*depth).map(|i| Block::new(dim, heads, self.window_of(s), &scope.pp("blocks").pp(i)));
            Ok(Stage { joint, blocks: blocks.collect::<Result<_>>()?, window: self.window_of(s) })
        });
        let stages = stages.collect::<Result<_>>()?;
        let norm = LayerNorm::new(self.embed_dim(), EPS, &scope.pp("norm"))?;
        Ok(Swin { projection, embed_norm, stages, norm, config: self.clone() })
    }
}

/// A Swin Transformer up to its last norm.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use ssl_backbones::{Backbone, SwinConfig};
/// use ssl_nn::Params;
///
/// // 8 x 8 patches, then 4 x 4 tokens, in windows of 4 x 4.
/// let config =
///     SwinConfig { image_size: 16, patch_size: 2, dim: 12, depths: vec![2, 2], window: 4, ..SwinConfig::swin_tiny() };
/// let params = Params::new(0, DType::F32, &Device::Cpu);
/// let swin = config.build(&params.root())?;
/// let images = Tensor::ones((2, 3, 16, 16), DType::F32, &Device::Cpu)?;
/// assert_eq!(swin.feature_map(&images, None, None)?.dims(), [2, 16, 24]);
/// assert_eq!(swin.forward_t(&images, false)?.dims(), [2, 24]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Swin {
    projection: PatchProjection,
    embed_norm: LayerNorm,
    stages: Vec<Stage>,
    norm: LayerNorm,
    config: SwinConfig,
}

#[derive(Clone, Debug)]
struct Stage {
    /// Between the stage before and this one.
    joint: Option<Joint>,
    blocks: Vec<Block>,
    window: usize,
}

/// From four tokens to one of twice the width.
#[derive(Clone, Debug)]
struct Joint {
    norm: LayerNorm,
    reduction: Linear,
}

impl Joint {
    fn new(dim: usize, scope: &Scope) -> Result<Self> {
        let config = LinearConfig { bias: false, init: Some(NORMAL), bias_init: None };
        Ok(Self {
            norm: LayerNorm::new(4 * dim, EPS, &scope.pp("norm"))?,
            reduction: Linear::new(4 * dim, 2 * dim, config, &scope.pp("reduction"))?,
        })
    }

    /// `(B, N, dim)`, four and four that belong together, to `(B, N / 4, 2 dim)`.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, tokens, dim) = x.dims3()?;
        let four = x.reshape((batch, tokens / 4, 4 * dim))?;
        self.reduction.forward(&self.norm.forward(&four)?)
    }
}

#[derive(Clone, Debug)]
struct Block {
    transformer: TransformerBlock,
    positions: RelativePositionBias,
}

impl Block {
    fn new(dim: usize, heads: usize, window: usize, scope: &Scope) -> Result<Self> {
        let config = TransformerBlockConfig { heads, norm_eps: EPS, init: NORMAL, ..Default::default() };
        Ok(Self {
            transformer: TransformerBlock::new(dim, config, scope)?,
            positions: RelativePositionBias::of_window(window, heads, &scope.pp("attn"))?,
        })
    }

    /// Windows `(B · count, tokens, dim)` to the same shape.
    fn forward(&self, x: &Tensor, mask: Option<&Tensor>, factors: Option<&[Tensor; 2]>) -> Result<Tensor> {
        let mut bias = self.positions.bias()?; // (heads, tokens, tokens)
        if let Some(mask) = mask {
            bias = bias.unsqueeze(0)?.broadcast_add(mask)?; // (count, heads, tokens, tokens)
        }
        let options = BlockOptions {
            attention: AttentionOptions { bias: Some(&bias), keys: None },
            drop_path: factors.map(|[attention, mlp]| [attention, mlp]),
        };
        transformer_blocks(x, &[(&self.transformer, options)], None)
    }
}

impl Swin {
    /// What it was built from.
    pub fn config(&self) -> &SwinConfig {
        &self.config
    }

    /// The last stage's tokens after the last norm, row by row: `(B, 3, H, W)` to `(B, N, embed_dim)`, where each side of
    /// `N` is that of the images over [`SwinConfig::stride`].
    ///
    /// Some patches may be replaced by one vector, as SimMIM does. With `draws`, branches are left out for some images as
    /// `drop_path` says; blocks draw for the layers `layer`, `layer + 1`, …, two each. Images may have another size than
    /// the network was built for, of whole windows in every stage.
    ///
    /// # Errors
    /// If the images are not of such a size, or mask and token are not of their shapes.
    pub fn feature_map(
        &self,
        images: &Tensor,
        masked: Option<MaskedPatches<'_>>,
        draws: Option<DrawsAt>,
    ) -> Result<Tensor> {
        let (batch, mut grid) = whole_patches(images, self.config.patch_size)?;
        let patches = self.projection.project(&self.projection.pixels(images)?)?;
        let mut x = self.embed_norm.forward(&patches)?;
        if let Some(masked) = masked {
            x = masked.replace(&x)?;
        }
        // The number, counted row by row, of each token of `x`.
        let row_by_row =
            |(rows, columns): (usize, usize)| -> Vec<u32> { (0..(rows * columns) as u32).collect() };
        let mut order = row_by_row(grid);
        let mut number = 0;
        for stage in &self.stages {
            if let Some(joint) = &stage.joint {
                x = joint.forward(&reorder_tokens(&x, &change(&order, &quads(grid)?))?)?;
                grid = (grid.0 / 2, grid.1 / 2);
                order = row_by_row(grid);
            }
            let plain = Windows::new(grid, stage.window, false)?;
            let shifted = Windows::new(grid, stage.window, true)?;
            let mask = shifted.mask(x.dtype(), x.device())?;
            for (block, (windows, mask)) in
                stage.blocks.iter().zip([(&plain, None), (&shifted, mask)].iter().cycle())
            {
                x = reorder_tokens(&x, &change(&order, &windows.order))?;
                order.clone_from(&windows.order);
                let factors = self.drop_path(number, (batch, windows.count), x.device(), draws)?;
                x = self.run(block, &x, windows, (mask.clone(), factors))?;
                number += 1;
            }
        }
        self.norm.forward(&reorder_tokens(&x, &change(&order, &row_by_row(grid)))?)
    }

    /// One block on tokens that lie window by window.
    fn run(
        &self,
        block: &Block,
        x: &Tensor,
        windows: &Windows,
        (mask, factors): (Option<Tensor>, Option<[Tensor; 2]>),
    ) -> Result<Tensor> {
        let (batch, _, dim) = x.dims3()?;
        let cut = x.reshape((batch * windows.count, windows.tokens, dim))?;
        let y = if self.config.recompute {
            let block = block.clone();
            recompute(&[&cut], &[], move |inputs| block.forward(&inputs[0], mask.as_ref(), factors.as_ref()))?
        } else {
            block.forward(&cut, mask.as_ref(), factors.as_ref())?
        };
        y.reshape(x.shape())
    }

    /// The factors of the two branches of block `number`, one for each window and the same for all of an image.
    fn drop_path(
        &self,
        number: usize,
        (batch, windows): (usize, usize),
        device: &Device,
        draws: Option<DrawsAt>,
    ) -> Result<Option<[Tensor; 2]>> {
        let p = self.config.drop_path_of(number);
        let Some(draws) = draws.filter(|_| p > 0.0) else { return Ok(None) };
        let factors = |branch: u32| {
            let layer = draws.layer + 2 * number as u32 + branch;
            let of_images = drop_path_factors(batch, p, DrawsAt { layer, ..draws })?;
            let of_windows = of_images.into_iter().flat_map(|factor| std::iter::repeat_n(factor, windows));
            Tensor::new(of_windows.collect::<Vec<f64>>(), device)
        };
        Ok(Some([factors(0)?, factors(1)?]))
    }
}

impl Backbone for Swin {
    fn embed_dim(&self) -> usize {
        self.config.embed_dim()
    }

    /// The mean of the last stage's tokens after the last norm.
    fn forward_t(&self, x: &Tensor, _: bool) -> Result<Tensor> {
        self.feature_map(x, None, None)?.mean(1)
    }

    fn forward_train(&self, x: &Tensor, draws: Option<DrawsAt>) -> Result<Tensor> {
        self.feature_map(x, None, draws)?.mean(1)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;
    use ssl_nn::Params;

    use super::*;

    /// 8 x 8 patches in windows of 4 x 4, then 4 x 4 tokens in one window.
    fn small() -> SwinConfig {
        SwinConfig {
            image_size: 16,
            patch_size: 2,
            dim: 6,
            depths: vec![2, 1],
            window: 4,
            ..SwinConfig::swin_tiny()
        }
    }

    fn images(n: usize, (height, width): (usize, usize)) -> Tensor {
        let values = (0..n * 3 * height * width).map(|i| ((i * 7919) % 101) as f32 / 50.0 - 1.0);
        Tensor::from_vec(values.collect(), (n, 3, height, width), &Device::Cpu).unwrap()
    }

    fn built(config: &SwinConfig) -> (Params, Swin) {
        let params = Params::new(1, DType::F32, &Device::Cpu);
        let swin = config.build(&params.root()).unwrap();
        (params, swin)
    }

    #[test]
    fn counts_and_names_are_timms_without_the_classifier() {
        for (config, parameters) in
            [(SwinConfig::swin_tiny(), 27_519_354), (SwinConfig::swin_small(), 48_837_258)]
        {
            let (params, swin) = built(&config);
            assert_eq!((params.num_trainable(), swin.embed_dim()), (parameters, 768));
        }
        let (params, _) = built(&small());
        let names = params.names();
        for (name, shape) in [
            ("patch_embed.proj.weight", &[6, 3, 2, 2][..]),
            ("patch_embed.norm.bias", &[6]),
            ("layers.0.blocks.1.attn.relative_position_bias_table", &[49, 3]),
            ("layers.1.downsample.norm.weight", &[24]),
            ("layers.1.downsample.reduction.weight", &[12, 24]),
            ("layers.1.blocks.0.attn.qkv.bias", &[36]),
            ("layers.1.blocks.0.mlp.fc1.weight", &[48, 12]),
            ("norm.weight", &[12]),
        ] {
            assert!(names.contains(&name.to_owned()), "{name}");
            assert_eq!(params.get(name).unwrap().dims(), shape, "{name}");
        }
        assert!(!names.contains(&"layers.1.downsample.reduction.bias".to_owned()));
    }

    #[test]
    fn every_parameter_gets_a_gradient() {
        let (params, swin) = built(&small());
        let y = swin.forward_t(&images(3, (16, 16)), true).unwrap();
        let grads = y.sin().unwrap().sum_all().unwrap().backward().unwrap();
        for (name, var) in params.trainable() {
            let grad = grads.get(&var).unwrap_or_else(|| panic!("{name} has no gradient"));
            let norm = grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
            assert!(norm.is_finite() && norm > 0.0, "{name}: squared norm {norm}");
        }
    }

    /// Which of the 8 x 8 tokens change with the pixel at the top left, row by row.
    fn reached(depths: Vec<usize>) -> Vec<bool> {
        // In float32 some change by less than can be seen.
        let params = Params::new(1, DType::F64, &Device::Cpu);
        let swin = SwinConfig { depths, ..small() }.build(&params.root()).unwrap();
        let x = images(1, (16, 16)).to_dtype(DType::F64).unwrap();
        let mut values = x.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        values[0] += 1.0;
        let other = Tensor::from_vec(values, x.shape(), &Device::Cpu).unwrap();
        let [a, b] = [x, other].map(|x| swin.feature_map(&x, None, None).unwrap());
        let change = (a - b).unwrap().abs().unwrap().sum(2).unwrap().flatten_all().unwrap();
        change.to_vec1::<f64>().unwrap().into_iter().map(|change| change > 0.0).collect()
    }

    #[test]
    fn a_block_mixes_its_windows_and_the_next_one_its_shifted_windows() {
        let one = reached(vec![1]);
        assert!((0..64).all(|i| one[i] == (i / 8 < 4 && i % 8 < 4)), "{one:?}");
        // The shifted windows begin at 2 and at 6; those at 6 wrap around, and what has wrapped is seen by itself.
        let two = reached(vec![2]);
        assert!((0..64).all(|i| two[i] == (i / 8 < 6 && i % 8 < 6)), "{two:?}");
    }

    #[test]
    fn images_of_other_sizes_pass_if_they_have_whole_windows() {
        let (_, swin) = built(&small());
        assert_eq!(swin.feature_map(&images(2, (16, 32)), None, None).unwrap().dims(), [2, 32, 12]);
        for (size, part) in [
            ((16, 24), "windows of 4 by 4 do not divide 4 by 6 tokens"),
            ((16, 18), "windows of 4 by 4 do not divide 8 by 9 tokens"),
            ((16, 17), "in whole patches of 2, got [2, 3, 16, 17]"),
        ] {
            let error = swin.feature_map(&images(2, size), None, None).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn drop_path_is_drawn_for_whole_images_and_an_image_does_not_depend_on_its_batch() {
        let (_, swin) = built(&SwinConfig { drop_path: 0.5, ..small() });
        let draws = DrawsAt { seed: 1, step: 0, first_sample: 0, layer: 0 };
        let rows = |x: &Tensor, draws| swin.forward_train(x, draws).unwrap().to_vec2::<f32>().unwrap();
        let x = images(4, (16, 16));
        let (all, first) = (rows(&x, Some(draws)), rows(&x.narrow(0, 0, 1).unwrap(), Some(draws)));
        assert_eq!(all[0], first[0]);
        assert_ne!(all, rows(&x, None));
        assert_eq!(rows(&x, None), swin.forward_t(&x, true).unwrap().to_vec2::<f32>().unwrap());
    }

    #[test]
    fn settings_that_do_not_fit_are_refused_by_name() {
        let base = small();
        for (config, part) in [
            (SwinConfig { depths: vec![], ..base.clone() }, "depths = [] are not 1 to 8 numbers"),
            (SwinConfig { depths: vec![2, 0], ..base.clone() }, "depths = [2, 0] are not"),
            (SwinConfig { window: 0, ..base.clone() }, "window = 0 is not in 1..=64"),
            (SwinConfig { patch_size: 0, ..base.clone() }, "patch_size = 0 is not in 1..=1024"),
            (SwinConfig { drop_path: 1.0, ..base.clone() }, "drop_path = 1 is not in [0, 1)"),
            (SwinConfig { dim: 7, ..base.clone() }, "3 heads must divide the width 7"),
            (SwinConfig { image_size: 18, ..base.clone() }, "image_size = 18 is not a multiple of 4 in"),
            (
                SwinConfig { window: 3, ..base.clone() },
                "window = 3 does not divide the 8 by 8 tokens of stage 0",
            ),
        ] {
            let params = Params::new(0, DType::F32, &Device::Cpu);
            let error = config.build(&params.root()).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
