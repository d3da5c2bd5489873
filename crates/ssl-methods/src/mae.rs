//! MAE, masked autoencoders (He et al., 2021, <https://arxiv.org/abs/2111.06377>; official code facebookresearch/mae).
//!
//! A random quarter of an image's patches passes the encoder `f`, the others cost it nothing. A small decoder `g` gets
//! these tokens at their places, one learned token at all others, and positions, and predicts the pixels of every
//! patch. The loss is the squared error of the hidden ones, whose pixels are normalised patch by patch. There is
//! nothing to collapse to: what has to be predicted is fixed.
//!
//! Names and initial values are the official code's, the decoder's under the root; positions of sines and cosines and
//! Xavier's weights are the keys `backbone.vit.positions` and `init`. The embeddings that are watched are the tokens of
//! the visible patches: their means over an image fill few dimensions in good health, too. `reconstruction_gain` is the
//! share of the loss of the mean hidden patch of the batch that the prediction saves, a lower bound of what the visible
//! patches tell of the hidden ones.

use std::ops::RangeInclusive;

use candle_core::{D, Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use ssl_backbones::{Backbone, BackboneConfig, MaeDecoder, MaeDecoderConfig, Vit, VitPass};
use ssl_losses::{mae, normalize_patches, patchify};
use ssl_nn::{DrawsAt, Params};

use crate::checks;
use crate::config::{Settings, TrainingData};
use crate::masks::{RandomMask, mask_tensor};
use crate::method::{Batch, Method, Reconstruction, StepContext, StepOutput};
use crate::reconstruction::{
    Noise, bits_per_dimension, completed, gain, mean_of_hidden, vision_transformer,
    without_relative_positions,
};
use crate::safeguard::Safeguard;

/// Settings of MAE; the defaults are the paper's for ImageNet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaeConfig {
    /// Share of the patches that are hidden.
    pub mask_ratio: f64,
    /// Whether the pixels to predict are normalised, each patch by itself.
    pub normalize_pixels: bool,
    /// Width of the decoder's tokens, a multiple of 4 and of `decoder_heads`.
    pub decoder_dim: usize,
    /// Blocks of the decoder.
    pub decoder_depth: usize,
    /// Heads of each of its blocks.
    pub decoder_heads: usize,
}

impl Default for MaeConfig {
    fn default() -> Self {
        Self {
            mask_ratio: 0.75,
            normalize_pixels: true,
            decoder_dim: 512,
            decoder_depth: 8,
            decoder_heads: 16,
        }
    }
}

impl Settings for MaeConfig {
    fn validate(&self) -> std::result::Result<(), String> {
        let Self { mask_ratio, decoder_dim: dim, decoder_depth, decoder_heads: heads, .. } = *self;
        checks::number("mask_ratio", mask_ratio, 0.01..=0.99)?;
        checks::count("decoder_dim", dim, checks::WIDTH)?;
        checks::count("decoder_depth", decoder_depth, 1..=1000)?;
        checks::count("decoder_heads", heads, 1..=dim)?;
        if dim % 4 != 0 || dim % heads != 0 {
            return Err(format!(
                "method.decoder_dim = {dim} is not a multiple of 4 and of method.decoder_heads = {heads}"
            ));
        }
        Ok(())
    }

    fn validate_backbone(&self, backbone: &BackboneConfig) -> std::result::Result<(), String> {
        let vit = vision_transformer(backbone)?;
        without_relative_positions(&vit)?;
        let (patches, ratio) = (vit.num_patches(), self.mask_ratio);
        let visible = RandomMask::num_visible(patches, ratio);
        if visible == 0 || visible == patches {
            return Err(format!(
                "method.mask_ratio = {ratio} leaves {visible} of {patches} patches visible, must be some and not all"
            ));
        }
        Ok(())
    }

    fn safeguard(&self) -> Safeguard {
        Safeguard::new(
            "targets that are pixels, which the network cannot change",
            "a learning rate that is too high or too low, or too little left to see",
            "optimizer.lr three times lower or higher, a longer warm-up, a lower method.mask_ratio",
        )
    }

    fn build(&self, backbone: &BackboneConfig, params: &Params, _: &TrainingData) -> Result<Box<dyn Method>> {
        Ok(Box::new(Mae::new(self, backbone, params)?))
    }

    fn augmentation(&self) -> &'static str {
        "mae"
    }
}

/// MAE with its encoder and decoder.
#[derive(Debug)]
pub struct Mae {
    encoder: Vit,
    decoder: MaeDecoder,
    config: MaeConfig,
}

impl Mae {
    /// Creates `backbone.*`, `mask_token` and `decoder_*` in `params`.
    ///
    /// # Errors
    /// If the backbone is not a vision transformer, or the decoder's sizes do not fit.
    pub fn new(config: &MaeConfig, backbone: &BackboneConfig, params: &Params) -> Result<Self> {
        let (vit, root) = (backbone.vision_transformer()?, params.root());
        let encoder = vit.build(&root.pp("backbone"))?;
        let MaeConfig { decoder_dim: dim, decoder_depth: depth, decoder_heads: heads, .. } = *config;
        let decoder = MaeDecoderConfig { dim, depth, heads, ..Default::default() }.build(&vit, &root)?;
        Ok(Self { encoder, decoder, config: config.clone() })
    }
}

/// What the network makes of a batch.
struct Pass {
    /// Tokens of the visible patches after the last norm, class token and registers first, `(B, prefix + K, d)`.
    h: Tensor,
    /// `(B, N, 3 p²)`.
    prediction: Tensor,
    /// `(B, N, 3 p²)`, before a normalisation.
    pixels: Tensor,
    /// `(B, N)`, 1 where a patch is hidden.
    mask: Tensor,
}

impl Mae {
    fn pass(&self, batch: &Batch, context: &StepContext, draws: Option<DrawsAt>) -> Result<Pass> {
        let [x] = &batch.views[..] else { bail!("mae needs 1 view, got {}", batch.views.len()) };
        let vit = self.encoder.config();
        let draw = |image: &usize| {
            RandomMask::draw(&mut context.masks(*image, 0), vit.num_patches(), self.config.mask_ratio)
        };
        let masks = batch.index.iter().map(draw).collect::<Result<Vec<_>>>()?;
        let numbers = |of: fn(&RandomMask) -> Vec<u32>| {
            Tensor::new(masks.iter().map(of).collect::<Vec<_>>(), x.device())
        };
        let visible = numbers(|mask| mask.visible().to_vec())?; // (B, K)
        let restore = numbers(RandomMask::restore)?; // (B, N)
        let mask = mask_tensor(&masks.iter().map(RandomMask::flags).collect::<Vec<_>>(), x.device())?;
        let pass = VitPass { draws, ..VitPass::default() };
        let h = self.encoder.run(&self.encoder.embed_visible(x, &visible)?, &pass)?;
        let h = self.encoder.norm(&h)?;
        let prediction = self.decoder.forward(&h, &restore)?;
        Ok(Pass { h, prediction, pixels: patchify(x, vit.patch_size)?, mask })
    }
}

impl Method for Mae {
    fn num_views(&self) -> RangeInclusive<usize> {
        1..=1
    }

    fn loss(&self, batch: &Batch, context: &StepContext) -> Result<StepOutput> {
        let Pass { h, prediction, pixels, mask } = self.pass(batch, context, context.draws(0))?;
        let target = if self.config.normalize_pixels { normalize_patches(&pixels)? } else { pixels };
        let loss = mae(&prediction, &target, &mask)?;
        let of_mean = mae(&mean_of_hidden(&target, &mask)?, &target, &mask)?;
        let patches = self.encoder.split(&h)?.patches.contiguous()?; // (B, K, d)
        Ok(StepOutput {
            terms: vec![
                ("reconstruction_gain", gain(&loss, &of_mean)?),
                ("bits_per_dimension", bits_per_dimension(&loss, &of_mean, Noise::Gaussian)?),
            ],
            loss,
            embeddings: vec![patches.flatten_to(1)?.detach()], // (B K, d)
            memory: vec![],
        })
    }

    /// With pixels that were normalised for the loss, a hidden patch gets its own mean and deviation back, which the
    /// network does not know.
    fn reconstruct(&self, batch: &Batch, context: &StepContext) -> Result<Option<Reconstruction>> {
        let Pass { prediction, pixels, mask, .. } = self.pass(batch, context, None)?;
        let vit = self.encoder.config();
        let prediction = match self.config.normalize_pixels {
            true => denormalized(&prediction, &pixels)?,
            false => prediction,
        };
        completed(&prediction, &pixels, mask, (vit.patch_size, vit.grid())).map(Some)
    }

    fn encoder(&self) -> &dyn Backbone {
        &self.encoder
    }
}

/// The way back from [`normalize_patches`] of `pixels`.
fn denormalized(patches: &Tensor, pixels: &Tensor) -> Result<Tensor> {
    let mean = pixels.mean_keepdim(D::Minus1)?;
    let deviation = (pixels.var_keepdim(D::Minus1)? + 1e-6)?.sqrt()?;
    patches.broadcast_mul(&deviation)?.broadcast_add(&mean)
}

#[cfg(test)]
mod tests {
    use ssl_backbones::{RelativePositions, VitOptions};

    use super::*;
    use crate::testing::{CONTEXT, assert_gradients_reach, images, params, permuted, resnet, vit};

    const TINY: MaeConfig = MaeConfig {
        mask_ratio: 0.75,
        normalize_pixels: true,
        decoder_dim: 16,
        decoder_depth: 1,
        decoder_heads: 2,
    };

    fn tiny(params: &Params) -> Mae {
        Mae::new(&TINY, &vit(VitOptions::mae()), params).unwrap()
    }

    fn scalar(x: &Tensor) -> f32 {
        x.to_dtype(candle_core::DType::F32).unwrap().to_scalar().unwrap()
    }

    #[test]
    fn gradients_reach_encoder_and_decoder_and_not_the_positions() {
        let params = params();
        let method = tiny(&params);
        assert_gradients_reach(&method, &params, &images(1, 5), &[]);
        let buffers: Vec<_> = params.buffers().into_iter().map(|(name, _)| name).collect();
        assert_eq!(buffers, ["backbone.pos_embed", "decoder_pos_embed"]);
        for options in [
            VitOptions { class_token: false, pooling: ssl_backbones::Pooling::Mean, ..VitOptions::mae() },
            VitOptions { registers: 2, ..VitOptions::mae() },
        ] {
            let params = crate::testing::params();
            let method = Mae::new(&TINY, &vit(options), &params).unwrap();
            assert_gradients_reach(&method, &params, &images(1, 3), &[]);
        }
    }

    #[test]
    fn a_reconstruction_keeps_visible_patches_and_gives_normalised_ones_their_scale_back() {
        let (method, batch) = (tiny(&params()), images(1, 3));
        let Reconstruction { images, mask } = method.reconstruct(&batch, &CONTEXT).unwrap().unwrap();
        let rows = |x: &Tensor| patchify(x, 2).unwrap().flatten(0, 1).unwrap().to_vec2::<f32>().unwrap();
        let hidden = mask.flatten_all().unwrap().to_vec1::<u8>().unwrap();
        for ((ours, own), hidden) in rows(&images).into_iter().zip(rows(&batch.views[0])).zip(hidden) {
            assert_eq!(ours != own, hidden == 1, "{ours:?} {own:?}");
        }
        let pixels = patchify(&batch.views[0], 2).unwrap();
        let back = denormalized(&normalize_patches(&pixels).unwrap(), &pixels).unwrap();
        let error = (back - pixels).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(error < 1e-5, "{error}");
    }

    #[test]
    fn masks_follow_the_images_and_change_with_the_step() {
        let method = tiny(&params());
        let batch = images(1, 6);
        let loss =
            |batch: &Batch, step| scalar(&method.loss(batch, &StepContext { step, ..CONTEXT }).unwrap().loss);
        let value = loss(&batch, 0);
        assert!((value - loss(&permuted(&batch), 0)).abs() < 1e-5 * (1.0 + value));
        assert!((value - loss(&batch, 1)).abs() > 1e-4);
        let others = Batch { index: (6..12).collect(), ..batch.clone() };
        assert!((value - loss(&others, 0)).abs() > 1e-4);
    }

    #[test]
    fn the_encoder_sees_the_visible_patches_alone() {
        let method = tiny(&params());
        let batch = images(1, 3);
        // Every hidden patch of the views turned around.
        let masks: Vec<_> =
            (0..3).map(|i| RandomMask::draw(&mut CONTEXT.masks(i, 0), 16, 0.75).unwrap().flags()).collect();
        let mask = mask_tensor(&masks, &candle_core::Device::Cpu).unwrap();
        let hidden = mask.reshape((3, 1, 4, 1, 4, 1)).unwrap().broadcast_as((3, 3, 4, 2, 4, 2)).unwrap();
        let hidden = hidden.reshape((3, 3, 8, 8)).unwrap();
        let view = hidden.where_cond(&batch.views[0].neg().unwrap(), &batch.views[0]).unwrap();
        let [a, b] = [batch.clone(), Batch { views: vec![view], ..batch }]
            .map(|batch| method.loss(&batch, &CONTEXT).unwrap());
        let rows = |output: &StepOutput| output.embeddings[0].to_vec2::<f32>().unwrap();
        assert_eq!(rows(&a), rows(&b));
        assert_ne!(scalar(&a.loss), scalar(&b.loss));
    }

    #[test]
    fn predicting_nothing_costs_the_variance_and_gains_nothing() {
        let params = params();
        let method = tiny(&params);
        for name in ["decoder_pred.weight", "decoder_pred.bias"] {
            let var = params.get(name).unwrap();
            var.set(&var.zeros_like().unwrap()).unwrap();
        }
        let output = method.loss(&images(1, 6), &CONTEXT).unwrap();
        // (n - 1) / n of n = 12 values, less what the 1e-6 takes.
        assert!((scalar(&output.loss) - 11.0 / 12.0).abs() < 1e-3, "{}", scalar(&output.loss));
        let gain = scalar(&output.terms[0].1);
        assert!((-0.2..1e-4).contains(&gain), "{gain}");
    }

    #[test]
    fn bad_settings_networks_and_batches_are_refused() {
        for (bad, message) in [
            (MaeConfig { mask_ratio: 1.0, ..TINY }, "method.mask_ratio = 1 is not in [0.01, 0.99]"),
            (MaeConfig { decoder_depth: 0, ..TINY }, "method.decoder_depth = 0 is not in 1..=1000"),
            (
                MaeConfig { decoder_dim: 18, ..TINY },
                "method.decoder_dim = 18 is not a multiple of 4 and of method.decoder_heads = 2",
            ),
            (MaeConfig { decoder_heads: 0, ..TINY }, "method.decoder_heads = 0 is not in 1..=16"),
        ] {
            assert_eq!(bad.validate().unwrap_err(), message);
        }
        let error = TINY.validate_backbone(&resnet()).unwrap_err();
        assert_eq!(error, "backbone.name = resnet18 is not a vision transformer, which the method needs");
        let relative = VitOptions { relative_positions: RelativePositions::Shared, ..VitOptions::mae() };
        assert!(TINY.validate_backbone(&vit(relative)).unwrap_err().contains("leaves tokens out"));
        let pooled = VitOptions { pooling: ssl_backbones::Pooling::MeanNorm, ..VitOptions::mae() };
        assert!(TINY.validate_backbone(&vit(pooled)).unwrap_err().contains("pooling = mean_norm leaves"));
        let all = MaeConfig { mask_ratio: 0.95, ..TINY };
        let error = all.validate_backbone(&vit(VitOptions::mae())).unwrap_err();
        assert!(error.contains("method.mask_ratio = 0.95 leaves 0 of 16 patches visible"), "{error}");
        let error = tiny(&params()).loss(&images(2, 3), &CONTEXT).unwrap_err().to_string();
        assert!(error.contains("1 view, got 2"), "{error}");
    }
}
