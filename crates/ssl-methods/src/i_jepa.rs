//! I-JEPA (Assran et al., 2023, <https://arxiv.org/abs/2301.08243>; official code facebookresearch/ijepa).
//!
//! The context encoder `f` passes a part of an image's patches, the others cost it nothing. A narrow predictor `g` gets
//! these tokens and, block by block, the places of other patches, and predicts what a slow copy of the encoder, the
//! target encoder, makes of them when it sees the whole image. Nothing is reconstructed and no views are compared. That
//! the copy is slow stands against a constant answer: `momentum = 0` with `final_momentum = 0` takes that away, and
//! `normalize_targets = false` the norm of the targets.
//!
//! The target encoder follows after each step by a momentum that rises in a straight line, and is what is evaluated and
//! exported, by the mean of its patches' tokens. Deviations: the loss is that of the official code, the paper writes the
//! squared distance; weights start from normals that are not truncated, the convolution of the patches as any of
//! PyTorch's; [`MultiBlockMask`] names those of the masks. The embeddings that are watched are the targets of all
//! patches, and `prediction_gain` is the share of the loss of their mean that the prediction saves.

use std::ops::RangeInclusive;

use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use ssl_backbones::{Backbone, BackboneConfig, JepaPredictor, JepaPredictorConfig, Vit, VitPass};
use ssl_losses::smooth_l1;
use ssl_nn::{Params, Schedule};

use crate::checks;
use crate::config::{Settings, TrainingData};
use crate::masks::{MultiBlockMask, MultiBlocks};
use crate::method::{Batch, Method, StepContext, StepOutput};
use crate::reconstruction::{
    Noise, bits_per_dimension, feature_normalized, target_terms, vision_transformer,
    without_relative_positions,
};
use crate::safeguard::Safeguard;
use crate::teacher::{self, Teacher};

/// Settings of I-JEPA; the defaults are the paper's for ViT-H.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IJepaConfig {
    /// Number of blocks to predict in each image.
    pub targets: usize,
    /// Share of the patches in such a block, drawn between these for each batch.
    pub target_scale: [f64; 2],
    /// Ratio of its height to its width, drawn between these for each batch.
    pub target_aspect: [f64; 2],
    /// Share of the patches in the square from which the context is what the targets leave, drawn between these for each
    /// batch.
    pub context_scale: [f64; 2],
    /// A context has more patches than this.
    pub min_context: usize,
    /// Width of the predictor's tokens, a multiple of 4 and of the encoder's number of heads.
    pub predictor_dim: usize,
    /// Blocks of the predictor.
    pub predictor_depth: usize,
    /// Whether the targets are normalised over their features.
    pub normalize_targets: bool,
    /// The share of the old target encoder that is kept at the first step.
    pub momentum: f64,
    /// That share at the last step.
    pub final_momentum: f64,
}

impl Default for IJepaConfig {
    fn default() -> Self {
        let MultiBlockMask { targets, target_scale, target_aspect, context_scale, min_context } =
            MultiBlockMask::default();
        Self {
            targets,
            target_scale,
            target_aspect,
            context_scale,
            min_context,
            predictor_dim: 384,
            predictor_depth: 12,
            normalize_targets: true,
            momentum: 0.996,
            final_momentum: 1.0,
        }
    }
}

impl IJepaConfig {
    fn masks(&self) -> MultiBlockMask {
        MultiBlockMask {
            targets: self.targets,
            target_scale: self.target_scale,
            target_aspect: self.target_aspect,
            context_scale: self.context_scale,
            min_context: self.min_context,
        }
    }
}

impl Settings for IJepaConfig {
    fn validate(&self) -> std::result::Result<(), String> {
        checks::count("targets", self.targets, 1..=64)?;
        checks::interval("target_scale", self.target_scale, 0.01..=0.99)?;
        checks::interval("target_aspect", self.target_aspect, 0.1..=10.0)?;
        checks::interval("context_scale", self.context_scale, 0.01..=1.0)?;
        checks::count("min_context", self.min_context, 0..=1_000_000)?;
        checks::count("predictor_dim", self.predictor_dim, checks::WIDTH)?;
        checks::count("predictor_depth", self.predictor_depth, 1..=1000)?;
        checks::number("momentum", self.momentum, 0.0..=1.0)?;
        checks::number("final_momentum", self.final_momentum, 0.0..=1.0)
    }

    fn validate_backbone(&self, backbone: &BackboneConfig) -> std::result::Result<(), String> {
        let vit = vision_transformer(backbone)?;
        without_relative_positions(&vit)?;
        if vit.options.class_token || vit.options.registers > 0 {
            return Err(format!(
                "backbone.vit.class_token = {} and registers = {}, but I-JEPA's encoder has tokens of patches alone: \
                 class_token = false, registers = 0, pooling = mean",
                vit.options.class_token, vit.options.registers
            ));
        }
        let (dim, heads) = (self.predictor_dim, vit.heads);
        if dim % 4 != 0 || dim % heads != 0 {
            return Err(format!(
                "method.predictor_dim = {dim} is not a multiple of 4 and of the {heads} heads of the backbone"
            ));
        }
        let (side, least) = (vit.grid(), self.masks().smallest_context((vit.grid(), vit.grid())));
        match least {
            Some(least) if least > self.min_context => Ok(()),
            least => Err(format!(
                "method.context_scale = {:?} makes squares of {} patches of a grid of {side} by {side}, must be more than \
                 method.min_context = {}",
                self.context_scale,
                least.unwrap_or(0),
                self.min_context
            )),
        }
    }

    fn safeguard(&self) -> Safeguard {
        Safeguard::new(
            "targets that are normalised and come from a slowly moving teacher",
            "a teacher that follows too fast, or a learning rate that is too high",
            "method.momentum closer to 1, a lower optimizer.lr with a longer warm-up, a narrower method.predictor_dim",
        )
        .unless(!self.normalize_targets, "normalize_targets", false, true)
        .unless(self.momentum == 0.0, "momentum", 0, Self::default().momentum)
    }

    fn build(&self, backbone: &BackboneConfig, params: &Params, _: &TrainingData) -> Result<Box<dyn Method>> {
        Ok(Box::new(IJepa::new(self, backbone, params)?))
    }

    fn augmentation(&self) -> &'static str {
        "ijepa"
    }

    fn encoder_prefix(&self) -> &'static str {
        "teacher.backbone."
    }
}

/// I-JEPA with its two encoders and its predictor.
#[derive(Debug)]
pub struct IJepa {
    context_encoder: Vit,
    predictor: JepaPredictor,
    target_encoder: Vit,
    teacher: Teacher,
    config: IJepaConfig,
}

impl IJepa {
    /// Creates `backbone.*` and `predictor.*`, and `teacher.backbone.*` for the target encoder, in `params`.
    ///
    /// # Errors
    /// If the backbone is not a vision transformer, or the predictor's sizes do not fit.
    pub fn new(config: &IJepaConfig, backbone: &BackboneConfig, params: &Params) -> Result<Self> {
        let (vit, root) = (backbone.vision_transformer()?, params.root());
        let context_encoder = vit.build(&root.pp("backbone"))?;
        let predictor = JepaPredictorConfig {
            dim: config.predictor_dim,
            depth: config.predictor_depth,
            heads: vit.heads,
        };
        let predictor = predictor.build(&vit, &root.pp("predictor"))?;
        let target_encoder = vit.build(&root.pp(teacher::PREFIX).frozen().pp("backbone"))?;
        let teacher = Teacher::copy_student(params)?;
        Ok(Self { context_encoder, predictor, target_encoder, teacher, config: config.clone() })
    }

    /// What the target encoder makes of all patches of whole images, `(B, N, d)`.
    fn targets(&self, x: &Tensor) -> Result<Tensor> {
        let h = self.target_encoder.forward_features(x)?.detach();
        if self.config.normalize_targets { feature_normalized(&h) } else { Ok(h) }
    }
}

impl Method for IJepa {
    fn num_views(&self) -> RangeInclusive<usize> {
        1..=1
    }

    fn loss(&self, batch: &Batch, context: &StepContext) -> Result<StepOutput> {
        let [x] = &batch.views[..] else { bail!("i-jepa needs 1 view, got {}", batch.views.len()) };
        let side = self.context_encoder.config().grid();
        let images = batch.index.iter().map(|image| context.masks(*image, 0));
        let MultiBlocks { context: known, targets } =
            self.config.masks().draw(&mut context.batch_masks(), images, (side, side))?;
        let known = Tensor::new(known, x.device())?; // (B, K)
        let pass = VitPass { draws: context.draws(0), ..VitPass::default() };
        let z = self.context_encoder.run(&self.context_encoder.embed_visible(x, &known)?, &pass)?;
        let z = self.context_encoder.norm(&z)?; // (B, K, d)
        let h = self.targets(x)?; // (B, N, d)

        // Block by block, all images of one after the other.
        let blocks: Vec<Vec<u32>> = (0..self.config.targets)
            .flat_map(|t| targets.iter().map(move |image| image[t].clone()))
            .collect();
        let wanted = Tensor::new(blocks.clone(), x.device())?; // (T B, M)
        let each = self.config.targets;
        let predicted =
            self.predictor.forward(&z.repeat((each, 1, 1))?, &known.repeat((each, 1))?, &wanted)?;

        let (b, n, d) = h.dims3()?;
        let tokens = h.reshape((b * n, d))?;
        let rows = blocks.iter().enumerate();
        let rows = rows.flat_map(|(i, block)| block.iter().map(move |patch| (i % b * n) as u32 + patch));
        let rows = Tensor::new(rows.collect::<Vec<_>>(), x.device())?;
        let h_wanted = tokens.index_select(&rows, 0)?.reshape(predicted.shape())?; // (T B, M, d)
        let loss = smooth_l1(&predicted, &h_wanted, 1.0)?;
        let mean = tokens.mean_keepdim(0)?.unsqueeze(0)?.broadcast_as(h_wanted.shape())?;
        let mut terms = target_terms(&loss, &smooth_l1(&mean, &h_wanted, 1.0)?, &tokens)?;
        let squares = |guess: &Tensor| (guess - &h_wanted)?.sqr()?.mean_all();
        let bits = bits_per_dimension(&squares(&predicted.detach())?, &squares(&mean)?, Noise::Gaussian)?;
        terms.push(("bits_per_dimension", bits));
        Ok(StepOutput { terms, loss, embeddings: vec![tokens], memory: vec![] })
    }

    fn after_step(&mut self, context: &StepContext, _: &[Tensor]) -> Result<()> {
        let IJepaConfig { momentum, final_momentum, .. } = self.config;
        let steps = context.total_steps as f64;
        let m = Schedule::Linear { start: momentum, end: final_momentum, steps, offset: 0.0 };
        self.teacher.follow(m.at(context.step))
    }

    fn encoder(&self) -> &dyn Backbone {
        &self.target_encoder
    }
}

#[cfg(test)]
mod tests {
    use ssl_backbones::{Pooling, Positions, VitOptions};

    use super::*;
    use crate::testing::{CONTEXT, assert_gradients_reach, images, params, permuted, resnet, vit};

    const OPTIONS: VitOptions = VitOptions {
        class_token: false,
        pooling: Pooling::Mean,
        positions: Positions::SinCos,
        init: ssl_backbones::VitInit::Timm,
        ..VitOptions::mae()
    };

    fn tiny() -> IJepaConfig {
        IJepaConfig { min_context: 2, predictor_dim: 16, predictor_depth: 1, ..IJepaConfig::default() }
    }

    fn built(config: &IJepaConfig, params: &Params) -> IJepa {
        IJepa::new(config, &vit(OPTIONS), params).unwrap()
    }

    fn value(method: &IJepa, batch: &Batch, step: usize) -> f32 {
        method.loss(batch, &StepContext { step, ..CONTEXT }).unwrap().loss.to_scalar().unwrap()
    }

    #[test]
    fn gradients_reach_context_encoder_and_predictor_and_spare_the_target_encoder() {
        let params = params();
        let method = built(&tiny(), &params);
        assert_gradients_reach(&method, &params, &images(1, 5), &[]);
        let positions = ["backbone.pos_embed", "predictor.predictor_pos_embed", "teacher.backbone.pos_embed"];
        assert!(positions.iter().all(|name| params.buffers().iter().any(|(own, _)| own == name)));
    }

    #[test]
    fn masks_follow_the_images_and_change_with_the_step() {
        let method = built(&tiny(), &params());
        let batch = images(1, 6);
        assert!((value(&method, &batch, 0) - value(&method, &permuted(&batch), 0)).abs() < 1e-5);
        assert!((value(&method, &batch, 0) - value(&method, &batch, 1)).abs() > 1e-5);
    }

    #[test]
    fn a_prediction_of_zero_costs_what_the_normalised_targets_are() {
        let params = params();
        let method = built(&tiny(), &params);
        for name in ["predictor.predictor_proj.weight", "predictor.predictor_proj.bias"] {
            let var = params.get(name).unwrap();
            var.set(&var.zeros_like().unwrap()).unwrap();
        }
        // A mean of squares of 1 costs between 0 and 1/2, and the smooth distance less than the square.
        let loss = value(&method, &images(1, 6), 0);
        assert!((0.3..0.5).contains(&loss), "{loss}");
    }

    #[test]
    fn the_target_encoder_follows_by_a_momentum_on_a_line() {
        let params = params();
        let mut method = built(&IJepaConfig { momentum: 0.5, ..tiny() }, &params);
        let student = params.get("backbone.norm.weight").unwrap();
        student.set(&(student.as_tensor() + 1.0).unwrap()).unwrap();
        method.after_step(&StepContext { step: 5, ..CONTEXT }, &[]).unwrap();
        let teacher = params.get("teacher.backbone.norm.weight").unwrap().to_vec1::<f32>().unwrap();
        assert!(teacher.iter().all(|w| (w - 1.25).abs() < 1e-6), "{teacher:?}");
    }

    #[test]
    fn bad_settings_networks_and_batches_are_refused() {
        for (config, part) in [
            (IJepaConfig { targets: 0, ..tiny() }, "method.targets = 0 is not in 1..=64"),
            (
                IJepaConfig { target_scale: [0.2, 0.1], ..tiny() },
                "method.target_scale = [0.2, 0.1] must rise within [0.01, 0.99]",
            ),
            (IJepaConfig { predictor_depth: 0, ..tiny() }, "method.predictor_depth = 0 is not in 1..=1000"),
        ] {
            let error = config.validate().unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        assert!(tiny().validate_backbone(&vit(OPTIONS)).is_ok());
        let error = |config: IJepaConfig| config.validate_backbone(&vit(OPTIONS)).unwrap_err();
        let wide = error(IJepaConfig { predictor_dim: 6, ..tiny() });
        assert!(wide.contains("method.predictor_dim = 6 is not a multiple of 4"), "{wide}");
        let large = error(IJepaConfig { min_context: 10, ..tiny() });
        assert!(large.contains("makes squares of 9 patches of a grid of 4 by 4"), "{large}");
        let error = tiny().validate_backbone(&vit(VitOptions::mae())).unwrap_err();
        assert!(error.contains("backbone.vit.class_token = true"), "{error}");
        assert!(tiny().validate_backbone(&resnet()).unwrap_err().contains("not a vision transformer"));
        let error = built(&tiny(), &params()).loss(&images(2, 3), &CONTEXT).unwrap_err().to_string();
        assert!(error.contains("1 view, got 2"), "{error}");
    }
}
