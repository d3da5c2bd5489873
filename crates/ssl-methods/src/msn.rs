//! MSN, masked siamese networks (Assran et al., 2022, <https://arxiv.org/abs/2204.07141>; official code
//! facebookresearch/msn).
//!
//! A slow copy of the encoder sees one view of an image as it is; the encoder sees another with some of its patches dropped
//! and several small ones, and predicts for each which of `K` trainable prototypes the first is like. Nothing is
//! reconstructed. The entropy of the mean prediction is kept high, so that not all images are like one prototype:
//! `spread_weight = 0` together with `sinkhorn_iterations = 0` takes that away.
//!
//! Which patches are dropped is the same for all images of a batch, as in the official code. The copy, the target
//! encoder, runs in training mode without drop path, follows after each step by a momentum that rises in a straight
//! line, and is what is evaluated and exported. Deviation: the learning rate's warm-up begins at 0.

use std::ops::RangeInclusive;

use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use ssl_backbones::{Backbone, BackboneConfig, Vit, VitPass};
use ssl_losses::MsnLoss;
use ssl_nn::{DrawsAt, Init, Mlp, MlpConfig, Params, Schedule, Scope, permutation};

use crate::checks;
use crate::clusters;
use crate::config::{Settings, TrainingData};
use crate::crops::Crops;
use crate::masks::RandomMask;
use crate::method::{Batch, Method, ParameterRule, StepContext, StepOutput};
use crate::reconstruction::{vision_transformer, with_class_token};
use crate::safeguard::Safeguard;
use crate::teacher::{self, Teacher};

/// Settings of MSN; the defaults are the official ones of ViT-S/16.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MsnConfig {
    /// Width of the projector's hidden layers.
    pub projector_hidden: usize,
    /// Linear layers of the projector.
    pub projector_layers: usize,
    /// Width of the projections, and of the prototypes.
    pub projector_dim: usize,
    /// K, the number of prototypes.
    pub prototypes: usize,
    /// Share of the patches that is dropped from the second view; up to 0.7 for large networks.
    pub patch_drop: f64,
    /// τ, of the predictions.
    pub temperature: f64,
    /// `T`, by which the targets are sharpened, in (0, 1].
    pub sharpening: f64,
    /// Iterations of Sinkhorn-Knopp for the targets; 0 for none.
    pub sinkhorn_iterations: usize,
    /// λ, the weight of the entropy of the mean prediction.
    pub spread_weight: f64,
    /// m, the share of the old target encoder that is kept at the first step.
    pub momentum: f64,
    /// m where its line ends.
    pub final_momentum: f64,
    /// Length of the line over that of the run, at least 1.
    pub momentum_stretch: f64,
}

impl Default for MsnConfig {
    fn default() -> Self {
        Self {
            projector_hidden: 2048,
            projector_layers: 3,
            projector_dim: 256,
            prototypes: 1024,
            patch_drop: 0.15,
            temperature: 0.1,
            sharpening: 0.25,
            sinkhorn_iterations: 3,
            spread_weight: 1.0,
            momentum: 0.996,
            final_momentum: 1.0,
            momentum_stretch: 1.25,
        }
    }
}

/// As many views as anyone takes.
const MAX_VIEWS: usize = 64;

impl Settings for MsnConfig {
    fn validate(&self) -> std::result::Result<(), String> {
        checks::count("projector_hidden", self.projector_hidden, checks::WIDTH)?;
        checks::count("projector_layers", self.projector_layers, checks::LAYERS)?;
        checks::count("projector_dim", self.projector_dim, checks::WIDTH)?;
        checks::count("prototypes", self.prototypes, checks::PROTOTYPES)?;
        checks::number("patch_drop", self.patch_drop, 0.0..=0.95)?;
        checks::temperature("temperature", self.temperature)?;
        checks::number("sharpening", self.sharpening, 0.01..=1.0)?;
        checks::count("sinkhorn_iterations", self.sinkhorn_iterations, 0..=1000)?;
        checks::number("spread_weight", self.spread_weight, 0.0..=1000.0)?;
        checks::number("momentum", self.momentum, 0.0..=1.0)?;
        checks::number("final_momentum", self.final_momentum, 0.0..=1.0)?;
        checks::number("momentum_stretch", self.momentum_stretch, 1.0..=100.0)
    }

    fn validate_backbone(&self, backbone: &BackboneConfig) -> std::result::Result<(), String> {
        with_class_token(&vision_transformer(backbone)?)
    }

    fn safeguard(&self) -> Safeguard {
        Safeguard::new(
            "the part of the loss that spreads the mean prediction over all prototypes, and the equal shares of the targets",
            "too little weight on the spread, or targets that are sharpened too little",
            "method.spread_weight of 1 or more, method.sinkhorn_iterations of 3, method.sharpening of 0.25, fewer method.prototypes",
        )
        .unless(self.spread_weight == 0.0, "spread_weight", 0, Self::default().spread_weight)
        .unless(self.spread_weight == 0.0 && self.sinkhorn_iterations == 0, "sinkhorn_iterations", 0, Self::default().sinkhorn_iterations)
    }

    fn build(&self, backbone: &BackboneConfig, params: &Params, _: &TrainingData) -> Result<Box<dyn Method>> {
        Ok(Box::new(Msn::new(self, backbone, params)?))
    }

    fn augmentation(&self) -> &'static str {
        "msn"
    }

    fn encoder_prefix(&self) -> &'static str {
        "teacher.backbone."
    }
}

/// MSN with its two encoders and its prototypes.
pub struct Msn {
    anchor: Network,
    target: Network,
    teacher: Teacher,
    /// `(K, D)`.
    prototypes: Tensor,
    config: MsnConfig,
}

/// An encoder and its projector.
struct Network {
    vit: Vit,
    projector: Mlp,
}

impl std::fmt::Debug for Msn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Msn").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Network {
    fn new(config: &MsnConfig, backbone: &BackboneConfig, scope: &Scope) -> Result<Self> {
        let network = backbone.vision_transformer()?;
        if let Err(reason) = with_class_token(&network) {
            bail!("{reason}");
        }
        let vit = network.build(&scope.pp("backbone"))?;
        let mut dims = vec![config.projector_hidden; config.projector_layers + 1];
        dims[0] = network.dim;
        dims[config.projector_layers] = config.projector_dim;
        let mlp = MlpConfig { hidden_norm: true, gelu: true, ..MlpConfig::PLAIN };
        Ok(Self { vit, projector: Mlp::new(&dims, mlp, &scope.pp("projector"))? })
    }

    /// The class tokens of a batch of views after the last norm, `(B, d)`; of the patches `kept` alone, if given.
    fn encode(&self, x: &Tensor, kept: Option<&Tensor>, draws: Option<DrawsAt>) -> Result<Tensor> {
        let tokens = match kept {
            Some(kept) => self.vit.embed_visible(x, kept)?,
            None => self.vit.embed(x, None)?,
        };
        let pass = VitPass { draws, first: Some(1), ..VitPass::default() };
        self.vit.norm(&self.vit.run(&tokens, &pass)?.squeeze(1)?)
    }
}

impl Msn {
    /// Creates `backbone.*`, `projector.*` and `prototypes.weight`, and `teacher.*` for the target encoder, in `params`.
    ///
    /// # Errors
    /// If a width is 0 or the backbone is not a vision transformer with a class token.
    pub fn new(config: &MsnConfig, backbone: &BackboneConfig, params: &Params) -> Result<Self> {
        let root = params.root();
        let anchor = Network::new(config, backbone, &root)?;
        let target = Network::new(config, backbone, &root.pp(teacher::PREFIX).frozen())?;
        let teacher = Teacher::copy_student(params)?;
        let d = config.projector_dim;
        let init = Init::TorchDefault { fan_in: d };
        let prototypes = root.pp("prototypes").trainable("weight", (config.prototypes, d), init)?;
        Ok(Self { anchor, target, teacher, prototypes, config: config.clone() })
    }

    /// The numbers of the patches that stay in each of the images `x`, `(B, K)`; `None` for all.
    fn kept(&self, x: &Tensor, context: &StepContext) -> Result<Option<Tensor>> {
        let (batch, _, height, width) = x.dims4()?;
        let patch = self.anchor.vit.config().patch_size;
        let patches = (height / patch) * (width / patch);
        let kept = RandomMask::num_visible(patches, self.config.patch_drop).max(1);
        if kept >= patches {
            return Ok(None);
        }
        let mut order = permutation(&mut context.batch_masks(), patches as u32);
        order.truncate(kept);
        Tensor::new(order, x.device())?.unsqueeze(0)?.repeat((batch, 1)).map(Some)
    }
}

impl Method for Msn {
    fn num_views(&self) -> RangeInclusive<usize> {
        2..=MAX_VIEWS
    }

    fn loss(&self, batch: &Batch, context: &StepContext) -> Result<StepOutput> {
        let [target, anchor, focal @ ..] = &batch.views[..] else {
            bail!("msn needs {:?} views, got {}", self.num_views(), batch.views.len());
        };
        let kept = self.kept(anchor, context)?;
        let mut h = self.anchor.encode(anchor, kept.as_ref(), context.draws(0))?;
        let mut crops = None;
        if !focal.is_empty() {
            let encode = |x: &Tensor, pass| self.anchor.encode(x, None, context.draws(pass + 1));
            let (order, small) = Crops::features(focal, encode)?;
            (h, crops) = (Tensor::cat(&[h, small], 0)?, Some(order));
        }
        let z = self.anchor.projector.forward_t(&h, true)?; // (V B, D)
        let n = target.dim(0)?;
        let mut anchors = vec![z.narrow(0, 0, n)?];
        if let Some(crops) = crops {
            anchors.extend(crops.split(&z.narrow(0, n, z.dim(0)? - n)?)?);
        }
        let z_t = self.target.projector.forward_t(&self.target.encode(target, None, None)?, true)?.detach();
        let MsnConfig { temperature, sharpening, sinkhorn_iterations, spread_weight, .. } = self.config;
        let loss = MsnLoss { temperature, sharpening, sinkhorn_iterations, spread_weight };
        let (loss, parts) = loss.forward(&anchors, &z_t, &self.prototypes)?;
        let mut terms = clusters::teacher_terms(&parts.cross_entropy, &[parts.targets])?;
        terms.push(("cross_entropy", parts.cross_entropy.detach()));
        terms.push(("spread", parts.spread.detach()));
        let embeddings = vec![anchors[0].detach(), z_t];
        Ok(StepOutput { loss, terms, embeddings, memory: vec![] })
    }

    fn after_step(&mut self, context: &StepContext, _: &[Tensor]) -> Result<()> {
        let MsnConfig { momentum, final_momentum, momentum_stretch, .. } = self.config;
        let steps = momentum_stretch * context.total_steps as f64;
        let m = Schedule::Linear { start: momentum, end: final_momentum, steps, offset: 0.0 };
        self.teacher.follow(m.at(context.step))
    }

    fn parameter_rule(&self, name: &str) -> ParameterRule {
        ParameterRule { no_decay: name == "prototypes.weight", ..ParameterRule::default() }
    }

    fn encoder(&self) -> &dyn Backbone {
        &self.target.vit
    }
}

#[cfg(test)]
mod tests {
    use ssl_backbones::VitOptions;

    use super::*;
    use crate::testing::{CONTEXT, assert_gradients_reach, batch, images, params, permuted, resnet, vit};

    fn tiny() -> MsnConfig {
        MsnConfig {
            projector_hidden: 16,
            projector_dim: 6,
            prototypes: 5,
            patch_drop: 0.5,
            ..MsnConfig::default()
        }
    }

    fn built(config: &MsnConfig, params: &Params) -> Msn {
        Msn::new(config, &vit(VitOptions::default()), params).unwrap()
    }

    fn value(method: &Msn, batch: &Batch) -> f32 {
        method.loss(batch, &CONTEXT).unwrap().loss.to_scalar().unwrap()
    }

    #[test]
    fn gradients_reach_anchors_and_prototypes_and_spare_the_target_encoder() {
        for sizes in [&[8, 8, 4, 4][..], &[8, 8]] {
            let params = params();
            assert_gradients_reach(&built(&tiny(), &params), &params, &batch(sizes, 5), &[]);
        }
    }

    #[test]
    fn the_loss_does_not_change_with_the_order_of_images() {
        let method = built(&tiny(), &params());
        let plain = batch(&[8, 8, 4], 6);
        assert!((value(&method, &plain) - value(&method, &permuted(&plain))).abs() < 1e-4);
    }

    #[test]
    fn the_patches_that_are_dropped_change_with_the_step_and_are_the_same_for_all_images() {
        let method = built(&tiny(), &params());
        let x = &images(1, 3).views[0];
        let kept = |step| {
            let numbers = method.kept(x, &StepContext { step, ..CONTEXT }).unwrap().unwrap();
            numbers.to_vec2::<u32>().unwrap()
        };
        assert!(kept(0).iter().all(|row| row.len() == 8 && *row == kept(0)[0]));
        assert_ne!(kept(0), kept(1));
        let all = built(&MsnConfig { patch_drop: 0.0, ..tiny() }, &params());
        assert!(all.kept(x, &CONTEXT).unwrap().is_none());
    }

    #[test]
    fn the_target_encoder_follows_by_a_momentum_on_a_line() {
        let params = params();
        let mut method = built(&MsnConfig { momentum: 0.5, ..tiny() }, &params);
        let student = params.get("backbone.norm.weight").unwrap();
        student.set(&(student.as_tensor() + 1.0).unwrap()).unwrap();
        // 5 of 1.25 times 10 steps: 0.5 and two fifths of the other half.
        method.after_step(&StepContext { step: 5, ..CONTEXT }, &[]).unwrap();
        let teacher = params.get("teacher.backbone.norm.weight").unwrap().to_vec1::<f32>().unwrap();
        assert!(teacher.iter().all(|w| (w - 1.3).abs() < 1e-6), "{teacher:?}");
    }

    #[test]
    fn bad_settings_networks_and_batches_are_refused() {
        for (config, part) in [
            (MsnConfig { patch_drop: 1.0, ..tiny() }, "method.patch_drop = 1 is not in [0, 0.95]"),
            (MsnConfig { sharpening: 0.0, ..tiny() }, "method.sharpening = 0 is not in [0.01, 1]"),
            (
                MsnConfig { momentum_stretch: 0.5, ..tiny() },
                "method.momentum_stretch = 0.5 is not in [1, 100]",
            ),
        ] {
            let error = config.validate().unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        let error = Msn::new(&tiny(), &resnet(), &params()).unwrap_err().to_string();
        assert!(error.contains("backbone.name = resnet18 is not a vision transformer"), "{error}");
        let error = built(&tiny(), &params()).loss(&images(1, 4), &CONTEXT).unwrap_err().to_string();
        assert!(error.contains("2..=64 views, got 1"), "{error}");
    }
}
