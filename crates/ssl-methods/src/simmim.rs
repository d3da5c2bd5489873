//! SimMIM (Xie et al., 2021, <https://arxiv.org/abs/2111.09886>; official code microsoft/SimMIM), with a vision
//! transformer or a Swin Transformer.
//!
//! Random cells of an image are hidden: the tokens of their patches are replaced by a learned one. The encoder `f`
//! passes all tokens, and one linear layer predicts the pixels that belong to each of its outputs: those of a patch, or
//! with Swin those of the patches that have become one token. The loss is the absolute error of the hidden pixels. There
//! is nothing to collapse to: what has to be predicted is fixed.
//!
//! The vision transformer is BEiT's, relative positions and LayerScale included: the recipes choose it by the keys
//! `backbone.vit.*`. Deviations: `mask_token` stands under the root, not within the encoder, and starts from a normal
//! that is not truncated; class token, mask token and biases' tables decay as other weights do. The term is that of MAE; the
//! embeddings that are watched are the means of an image's visible patches.

use std::ops::RangeInclusive;

use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use ssl_backbones::{Backbone, BackboneConfig, MaskedPatches, Swin};
use ssl_losses::{patchify, simmim, unpatchify};
use ssl_nn::{DrawsAt, Init, Linear, LinearConfig, Params};

use crate::checks;
use crate::config::{Settings, TrainingData};
use crate::masked_encoder::MaskedEncoder;
use crate::masks::{cell_mask, mask_tensor};
use crate::method::{Batch, Method, Reconstruction, StepContext, StepOutput};
use crate::reconstruction::{
    Noise, bits_per_dimension, completed, gain, mean_of_hidden, mean_of_visible, vision_transformer,
};
use crate::safeguard::Safeguard;

/// Settings of SimMIM; the defaults are the paper's for ImageNet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimMimConfig {
    /// Share of the cells that are hidden.
    pub mask_ratio: f64,
    /// Side of the square cells in pixels, a multiple of a token's that divides the images'. With a vision transformer a
    /// token has the pixels of a patch, with Swin those of all patches that it was joined from.
    pub mask_cell: usize,
}

impl Default for SimMimConfig {
    fn default() -> Self {
        Self { mask_ratio: 0.6, mask_cell: 32 }
    }
}

impl Settings for SimMimConfig {
    fn validate(&self) -> std::result::Result<(), String> {
        checks::number("mask_ratio", self.mask_ratio, 0.01..=0.99)?;
        checks::count("mask_cell", self.mask_cell, 1..=16_384)
    }

    fn validate_backbone(&self, backbone: &BackboneConfig) -> std::result::Result<(), String> {
        let Outputs { image_size, stride, .. } = Outputs::of(backbone)?;
        let (ratio, cell) = (self.mask_ratio, self.mask_cell);
        if cell % stride != 0 || image_size % cell != 0 {
            return Err(format!(
                "method.mask_cell = {cell} is not a multiple of the {stride} pixels of a token of {} that divides \
                 backbone.image_size = {image_size}",
                backbone.name
            ));
        }
        let cells = (image_size / cell).pow(2);
        let hidden = (ratio * cells as f64).ceil() as usize;
        if hidden == cells {
            return Err(format!(
                "method.mask_ratio = {ratio} hides {hidden} of {cells} cells, must not be all"
            ));
        }
        Ok(())
    }

    fn safeguard(&self) -> Safeguard {
        Safeguard::new(
            "targets that are pixels, which the network cannot change",
            "a learning rate that is too high or too low, or too little left to see",
            "optimizer.lr three times lower or higher, a longer warm-up, a lower method.mask_ratio or a smaller method.mask_cell",
        )
    }

    fn build(&self, backbone: &BackboneConfig, params: &Params, _: &TrainingData) -> Result<Box<dyn Method>> {
        Ok(Box::new(SimMim::new(self, backbone, params)?))
    }

    fn augmentation(&self) -> &'static str {
        "simmim"
    }
}

/// The tokens that come out of an encoder: side by side in a square grid.
#[derive(Clone, Copy, Debug)]
struct Outputs {
    image_size: usize,
    /// Pixels from one token to the next.
    stride: usize,
    width: usize,
}

impl Outputs {
    fn of(backbone: &BackboneConfig) -> std::result::Result<Self, String> {
        if let Ok(swin) = backbone.swin_transformer() {
            return Ok(Self { image_size: swin.image_size, stride: swin.stride(), width: swin.embed_dim() });
        }
        let vit = vision_transformer(backbone)?;
        Ok(Self { image_size: vit.image_size, stride: vit.patch_size, width: vit.dim })
    }

    /// Rows, and columns, of tokens.
    fn side(self) -> usize {
        self.image_size / self.stride
    }
}

/// The encoders that pass hidden patches as one learned token.
#[derive(Debug)]
enum Encoder {
    Vit(Box<MaskedEncoder>),
    Swin { swin: Swin, mask_token: Tensor },
}

impl Encoder {
    fn new(backbone: &BackboneConfig, params: &Params) -> Result<Self> {
        let Ok(config) = backbone.swin_transformer() else {
            return Ok(Self::Vit(Box::new(MaskedEncoder::new(backbone, params)?)));
        };
        let root = params.root();
        let swin = config.build(&root.pp("backbone"))?;
        let mask_token = root.trainable("mask_token", (1, 1, config.dim), Init::Normal { std: 0.02 })?;
        Ok(Self::Swin { swin, mask_token })
    }

    /// The tokens after the last norm, `(B, N, d)`; `mask` is `(B, N)`, 1 where all that a token stands for is hidden.
    fn tokens(&self, x: &Tensor, mask: &Tensor, draws: Option<DrawsAt>) -> Result<Tensor> {
        match self {
            Self::Vit(encoder) => encoder.patches(x, mask, draws),
            Self::Swin { swin, mask_token } => {
                // From the last stage's tokens to the patches that they were joined from.
                let (b, tokens) = mask.dims2()?;
                let (side, each) = (tokens.isqrt(), swin.config().stride() / swin.config().patch_size);
                let mask = mask.reshape((b, side, 1, side, 1))?;
                let mask = mask.broadcast_as((b, side, each, side, each))?.reshape((b, ()))?;
                swin.feature_map(x, Some(MaskedPatches { mask: &mask, token: mask_token }), draws)
            }
        }
    }
}

/// SimMIM with its encoder and its linear decoder.
#[derive(Debug)]
pub struct SimMim {
    encoder: Encoder,
    outputs: Outputs,
    /// From a token to its pixels, channel by channel, as the official convolution before a pixel shuffle.
    decoder: Linear,
    config: SimMimConfig,
}

impl SimMim {
    /// Creates `backbone.*`, `mask_token` and `decoder.0.*` in `params`.
    ///
    /// # Errors
    /// If the backbone is neither a vision transformer nor a Swin Transformer.
    pub fn new(config: &SimMimConfig, backbone: &BackboneConfig, params: &Params) -> Result<Self> {
        let outputs = Outputs::of(backbone).map_err(candle_core::Error::Msg)?;
        let encoder = Encoder::new(backbone, params)?;
        let (d, pixels) = (outputs.width, 3 * outputs.stride * outputs.stride);
        let decoder = Linear::new(d, pixels, LinearConfig::default(), &params.root().pp("decoder.0"))?;
        Ok(Self { encoder, outputs, decoder, config: config.clone() })
    }
}

/// What the network makes of a batch.
struct Pass {
    /// The tokens after the last norm, `(B, N, d)`.
    h: Tensor,
    /// `(B, 3, H, W)`.
    prediction: Tensor,
    /// `(B, N)`, 1 where a token's pixels are hidden.
    mask: Tensor,
}

impl SimMim {
    fn pass(&self, batch: &Batch, context: &StepContext, draws: Option<DrawsAt>) -> Result<Pass> {
        let [x] = &batch.views[..] else { bail!("simmim needs 1 view, got {}", batch.views.len()) };
        let (stride, side) = (self.outputs.stride, self.outputs.side());
        let (grid, cell) = ((side, side), self.config.mask_cell / stride);
        let ratio = self.config.mask_ratio;
        let draw = |image: &usize| cell_mask(&mut context.masks(*image, 0), grid, cell, ratio);
        let mask = mask_tensor(&batch.index.iter().map(draw).collect::<Result<Vec<_>>>()?, x.device())?;
        let h = self.encoder.tokens(x, &mask, draws)?;
        let prediction = shuffled(&self.decoder.forward(&h)?, stride, grid)?;
        Ok(Pass { h, prediction, mask })
    }
}

impl Method for SimMim {
    fn num_views(&self) -> RangeInclusive<usize> {
        1..=1
    }

    fn loss(&self, batch: &Batch, context: &StepContext) -> Result<StepOutput> {
        let Pass { h, prediction, mask } = self.pass(batch, context, context.draws(0))?;
        let (stride, side) = (self.outputs.stride, self.outputs.side());
        let (x, of_cells) = (&batch.views[0], mask.reshape(((), side, side))?);
        let loss = simmim(&prediction, x, &of_cells)?;
        let mean = mean_of_hidden(&patchify(x, stride)?, &mask)?;
        let mean = unpatchify(&mean, stride, (side, side))?;
        let of_mean = simmim(&mean, x, &of_cells)?;
        Ok(StepOutput {
            terms: vec![
                ("reconstruction_gain", gain(&loss, &of_mean)?),
                ("bits_per_dimension", bits_per_dimension(&loss, &of_mean, Noise::Laplace)?),
            ],
            loss,
            embeddings: vec![mean_of_visible(&h, &mask)?],
            memory: vec![],
        })
    }

    fn reconstruct(&self, batch: &Batch, context: &StepContext) -> Result<Option<Reconstruction>> {
        let Pass { prediction, mask, .. } = self.pass(batch, context, None)?;
        let (stride, side) = (self.outputs.stride, self.outputs.side());
        let [prediction, pixels] = [&prediction, &batch.views[0]].map(|images| patchify(images, stride));
        completed(&prediction?, &pixels?, mask, (stride, side)).map(Some)
    }

    fn encoder(&self) -> &dyn Backbone {
        match &self.encoder {
            Encoder::Vit(encoder) => &encoder.vit,
            Encoder::Swin { swin, .. } => swin,
        }
    }
}

/// PyTorch's `pixel_shuffle`: the values `(B, N, 3 p²)` of each token, channel by channel and row by row, as images.
fn shuffled(patches: &Tensor, p: usize, (rows, columns): (usize, usize)) -> Result<Tensor> {
    let b = patches.dim(0)?;
    let cut = patches.reshape((b, rows, columns, 3, p, p))?.permute((0, 3, 1, 4, 2, 5))?; // (B, 3, h, p, w, p)
    cut.reshape((b, 3, rows * p, columns * p))
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use ssl_backbones::VitOptions;

    use super::*;
    use crate::testing::{CONTEXT, assert_gradients_reach, images, params, permuted, resnet, swin, vit};

    /// Cells of 2 by 2 patches in a grid of 4 by 4.
    const TINY: SimMimConfig = SimMimConfig { mask_ratio: 0.6, mask_cell: 4 };

    fn tiny(params: &Params) -> SimMim {
        SimMim::new(&TINY, &vit(VitOptions::beit()), params).unwrap()
    }

    fn loss(method: &SimMim, batch: &Batch, step: usize) -> f32 {
        method.loss(batch, &StepContext { step, ..CONTEXT }).unwrap().loss.to_scalar().unwrap()
    }

    #[test]
    fn a_reconstruction_keeps_visible_patches() {
        let (method, batch) = (tiny(&params()), images(1, 3));
        let Reconstruction { images, mask } = method.reconstruct(&batch, &CONTEXT).unwrap().unwrap();
        let rows = |x: &Tensor| patchify(x, 2).unwrap().flatten(0, 1).unwrap().to_vec2::<f32>().unwrap();
        let hidden = mask.flatten_all().unwrap().to_vec1::<u8>().unwrap();
        for ((ours, own), hidden) in rows(&images).into_iter().zip(rows(&batch.views[0])).zip(hidden) {
            assert_eq!(ours != own, hidden == 1, "{ours:?} {own:?}");
        }
    }

    #[test]
    fn gradients_reach_everything_with_and_without_relative_positions() {
        for options in [VitOptions::beit(), VitOptions::mae()] {
            let params = params();
            let method = SimMim::new(&TINY, &vit(options), &params).unwrap();
            assert_gradients_reach(&method, &params, &images(1, 5), &[]);
        }
        let params = params();
        let method = SimMim::new(&TINY, &swin(), &params).unwrap();
        assert_gradients_reach(&method, &params, &images(1, 5), &[]);
    }

    #[test]
    fn masks_follow_the_images_and_change_with_the_step() {
        let method = tiny(&params());
        let batch = images(1, 6);
        let value = loss(&method, &batch, 0);
        assert!((value - loss(&method, &permuted(&batch), 0)).abs() < 1e-5 * (1.0 + value));
        assert!((value - loss(&method, &batch, 1)).abs() > 1e-5);
        let others = Batch { index: (6..12).collect(), ..batch.clone() };
        assert!((value - loss(&method, &others, 0)).abs() > 1e-5);
    }

    #[test]
    fn hidden_pixels_do_not_enter_and_visible_ones_are_not_judged() {
        for backbone in [vit(VitOptions::beit()), swin()] {
            assert_hidden_pixels_do_not_enter(&SimMim::new(&TINY, &backbone, &params()).unwrap());
        }
    }

    fn assert_hidden_pixels_do_not_enter(method: &SimMim) {
        let batch = images(1, 3);
        let masks: Vec<_> =
            (0..3).map(|image| cell_mask(&mut CONTEXT.masks(image, 0), (4, 4), 2, 0.6).unwrap()).collect();
        let mask = mask_tensor(&masks, &Device::Cpu).unwrap();
        let hidden = mask.reshape((3, 1, 4, 1, 4, 1)).unwrap().broadcast_as((3, 3, 4, 2, 4, 2)).unwrap();
        let hidden = hidden.reshape((3, 3, 8, 8)).unwrap();
        let view = hidden.where_cond(&batch.views[0].neg().unwrap(), &batch.views[0]).unwrap();
        let [a, b] = [batch.clone(), Batch { views: vec![view], ..batch }]
            .map(|batch| method.loss(&batch, &CONTEXT).unwrap());
        let rows = |output: &StepOutput| output.embeddings[0].to_vec2::<f32>().unwrap();
        assert_eq!(rows(&a), rows(&b));
        assert_ne!(a.loss.to_scalar::<f32>().unwrap(), b.loss.to_scalar::<f32>().unwrap());
    }

    #[test]
    fn a_prediction_of_zero_costs_the_mean_of_hidden_pixels() {
        let params = params();
        let method = tiny(&params);
        for name in ["decoder.0.weight", "decoder.0.bias"] {
            let var = params.get(name).unwrap();
            var.set(&var.zeros_like().unwrap()).unwrap();
        }
        let batch = images(1, 4);
        let constant = Batch { views: vec![batch.views[0].ones_like().unwrap()], ..batch };
        assert!((loss(&method, &constant, 0) - 1.0).abs() < 1e-5);
    }

    #[test]
    fn pixels_of_a_token_stand_channel_by_channel() {
        let tokens = Tensor::arange(0f32, 48.0, &Device::Cpu).unwrap().reshape((1, 4, 12)).unwrap();
        let images = shuffled(&tokens, 2, (2, 2)).unwrap();
        let red = images.get(0).unwrap().get(0).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(red, [[0., 1., 12., 13.], [2., 3., 14., 15.], [24., 25., 36., 37.], [26., 27., 38., 39.]]);
        let blue = images.get(0).unwrap().get(2).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(blue[0], [8., 9., 20., 21.]);
    }

    #[test]
    fn bad_settings_networks_and_batches_are_refused() {
        for (bad, message) in [
            (SimMimConfig { mask_ratio: 0.0, ..TINY }, "method.mask_ratio = 0 is not in [0.01, 0.99]"),
            (SimMimConfig { mask_cell: 0, ..TINY }, "method.mask_cell = 0 is not in 1..=16384"),
        ] {
            assert_eq!(bad.validate().unwrap_err(), message);
        }
        assert!(TINY.validate_backbone(&resnet()).unwrap_err().contains("not a vision transformer"));
        let error = |config: SimMimConfig| config.validate_backbone(&vit(VitOptions::beit())).unwrap_err();
        for mask_cell in [3, 6, 16] {
            let error = error(SimMimConfig { mask_cell, ..TINY });
            assert!(
                error.contains("is not a multiple of the 2 pixels of a token of vit_tiny that"),
                "{error}"
            );
        }
        let error_of_swin = SimMimConfig { mask_cell: 2, ..TINY }.validate_backbone(&swin()).unwrap_err();
        assert!(error_of_swin.contains("mask_cell = 2 is not a multiple of the 4 pixels"), "{error_of_swin}");
        let error = error(SimMimConfig { mask_ratio: 0.8, ..TINY });
        assert!(error.contains("method.mask_ratio = 0.8 hides 4 of 4 cells"), "{error}");
        let error = tiny(&params()).loss(&images(2, 3), &CONTEXT).unwrap_err().to_string();
        assert!(error.contains("1 view, got 2"), "{error}");
    }
}
