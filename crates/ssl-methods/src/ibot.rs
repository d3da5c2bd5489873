//! iBOT (Zhou et al., 2021, <https://arxiv.org/abs/2111.07832>; official code bytedance/ibot).
//!
//! DINO, with patches as well: in some of the student's global views patches are hidden, and it predicts for each of them
//! the distribution over prototypes that the teacher, which sees all, gives to that patch. Class tokens are compared
//! between different views, patches within one. Each kind has a centre of its own; without them (`center_momentum = 1`)
//! the network collapses.
//!
//! A learned vector stands for hidden patches, before positions are added. The teacher follows after each step and is what
//! is evaluated and exported. Deviations: a head of its own for patches (`shared_head = false`) shares nothing with that of
//! class tokens, where the official code shares all layers but the last.

use std::ops::RangeInclusive;

use candle_core::{Result, Tensor, Var, bail};
use serde::{Deserialize, Serialize};
use ssl_backbones::{Backbone, BackboneConfig, MaskedPatches, Vit, VitPass};
use ssl_losses::{DinoLoss, centered_targets, ibot_patches, ibot_weights, koleo, sinkhorn, updated_center};
use ssl_nn::{DrawsAt, Init, Params, Schedule, Scope};

use crate::checks;
use crate::clusters;
use crate::config::{Settings, TrainingData};
use crate::crops::Crops;
use crate::dino_head::{DinoHead, DinoHeadConfig};
use crate::ibot_parts::{LayerRates, Masks, Parts, Targets};
use crate::masks::{BlockMask, mask_tensor, uniform};
use crate::method::{Batch, Method, ParameterRule, StepContext, StepOutput};
use crate::reconstruction::{vision_transformer, with_class_token};
use crate::safeguard::Safeguard;
use crate::teacher::{self, Teacher, TeacherTemperature};

/// Settings of iBOT; the defaults are the paper's for ViT-S/16.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct IbotConfig {
    /// Width of the head's hidden layers.
    pub head_hidden: usize,
    /// Linear layers of the head before the prototypes.
    pub head_layers: usize,
    /// Whether batch norms follow the head's hidden layers.
    pub head_norm: bool,
    /// Width of the head's last hidden layer, and of the prototypes.
    pub bottleneck_dim: usize,
    /// K, the number of prototypes.
    pub prototypes: usize,
    /// Whether patches have the head of class tokens, or one of their own with as many prototypes.
    pub shared_head: bool,
    /// Whether the prototypes keep the length 1; otherwise their lengths are learned.
    pub norm_last_layer: bool,
    /// Epochs, from the first, in which the student's prototypes stay as they are.
    pub freeze_last_layer_epochs: usize,
    /// τ_s, of the student.
    pub student_temperature: f64,
    /// τ_t, of the teacher, from epoch `warmup_teacher_temperature_epochs` on.
    pub teacher_temperature: f64,
    /// τ_t in the first epoch.
    pub warmup_teacher_temperature: f64,
    /// Epochs in which τ_t rises.
    pub warmup_teacher_temperature_epochs: usize,
    /// Share of the old centres that is kept; 1 for no centres, with which the network collapses.
    pub center_momentum: f64,
    /// Probability that patches of a global view are hidden.
    pub mask_probability: f64,
    /// The smallest and the largest share of the patches that is hidden then.
    pub mask_ratio: [f64; 2],
    /// λ_2, the weight of the loss of patches; that of class tokens has weight 1.
    pub patch_weight: f64,
    /// m, the share of the old teacher that is kept at the first step.
    pub momentum: f64,
    /// m at the end of the run.
    pub final_momentum: f64,
}

impl Default for IbotConfig {
    fn default() -> Self {
        Self {
            head_hidden: 2048,
            head_layers: 3,
            head_norm: false,
            bottleneck_dim: 256,
            prototypes: 8192,
            shared_head: true,
            norm_last_layer: true,
            freeze_last_layer_epochs: 1,
            student_temperature: 0.1,
            teacher_temperature: 0.07,
            warmup_teacher_temperature: 0.04,
            warmup_teacher_temperature_epochs: 30,
            center_momentum: 0.9,
            mask_probability: 0.5,
            mask_ratio: [0.1, 0.5],
            patch_weight: 1.0,
            momentum: 0.996,
            final_momentum: 1.0,
        }
    }
}

impl IbotConfig {
    fn parts(&self) -> Parts {
        let head = DinoHeadConfig {
            hidden: self.head_hidden,
            layers: self.head_layers,
            norm: self.head_norm,
            bottleneck: self.bottleneck_dim,
            prototypes: self.prototypes,
            norm_last_layer: self.norm_last_layer,
        };
        Parts {
            head,
            patch_head: (!self.shared_head).then_some(head),
            freeze_last_layer_epochs: self.freeze_last_layer_epochs,
            student_temperature: self.student_temperature,
            teacher_temperature: TeacherTemperature {
                start: self.warmup_teacher_temperature,
                end: self.teacher_temperature,
                epochs: self.warmup_teacher_temperature_epochs,
            },
            targets: Targets::Centered { momentum: self.center_momentum, all_patches: true },
            masks: Masks::Each { probability: self.mask_probability },
            mask_ratio: self.mask_ratio,
            patch_weight: self.patch_weight,
            koleo_weight: 0.0,
            layer_rates: LayerRates::EQUAL,
            momentum: self.momentum,
            final_momentum: self.final_momentum,
        }
    }
}

impl Settings for IbotConfig {
    fn validate(&self) -> std::result::Result<(), String> {
        checks::number("center_momentum", self.center_momentum, 0.0..=1.0)?;
        self.parts().validate()
    }

    fn validate_backbone(&self, backbone: &BackboneConfig) -> std::result::Result<(), String> {
        with_class_token(&vision_transformer(backbone)?)
    }

    fn safeguard(&self) -> Safeguard {
        Safeguard::new(
            "the centres that are taken from the teacher's scores, and their sharpening",
            "a teacher's temperature that does not balance the centre, or a learning rate that is too high",
            "method.teacher_temperature of 0.04, method.center_momentum of 0.9, a longer method.freeze_last_layer_epochs, a lower \
             optimizer.lr, train.clip_norm of 3",
        )
        .unless(self.center_momentum == 1.0, "center_momentum", 1, Self::default().center_momentum)
    }

    fn build(&self, backbone: &BackboneConfig, params: &Params, _: &TrainingData) -> Result<Box<dyn Method>> {
        Ok(Box::new(Ibot::new(self, backbone, params)?))
    }

    fn augmentation(&self) -> &'static str {
        "ibot"
    }

    fn encoder_prefix(&self) -> &'static str {
        "teacher.backbone."
    }
}

/// Views that the teacher sees, and in which patches are hidden, the first ones.
const GLOBAL_VIEWS: usize = 2;

/// As many views as anyone takes.
const MAX_VIEWS: usize = 64;

/// iBOT, or DINOv2, with its student, its teacher and their centres.
pub struct Ibot {
    student: Network,
    teacher: Network,
    follower: Teacher,
    /// What stands for hidden patches, `(1, d)`.
    mask_token: Tensor,
    /// `(K)`, of class tokens and of patches; unused where Sinkhorn-Knopp makes the targets.
    centers: Option<[Var; 2]>,
    parts: Parts,
}

/// An encoder and its heads.
struct Network {
    vit: Vit,
    head: DinoHead,
    patch_head: Option<DinoHead>,
}

/// The tokens of the global views after the last norm.
struct Globals {
    /// `(2B, d)`, view after view.
    class: Tensor,
    /// `(2B N, d)`, image after image.
    patches: Tensor,
}

/// The hidden patches of the global views of a batch.
struct Hidden {
    /// `(2B, N)`, 1 where a patch is hidden.
    mask: Tensor,
    /// `(M)`, their numbers among the `2B N` patches.
    rows: Tensor,
    /// `(M)`, the share of each in the loss.
    weights: Tensor,
}

impl std::fmt::Debug for Ibot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ibot").field("parts", &self.parts).finish_non_exhaustive()
    }
}

impl Network {
    fn new(parts: &Parts, backbone: &BackboneConfig, scope: &Scope) -> Result<Self> {
        let config = backbone.vision_transformer()?;
        if let Err(reason) = with_class_token(&config) {
            bail!("{reason}");
        }
        let vit = config.build(&scope.pp("backbone"))?;
        let head = DinoHead::new(config.dim, parts.head, &scope.pp("head"))?;
        let own = |config_of_head| DinoHead::new(config.dim, config_of_head, &scope.pp("patch_head"));
        Ok(Self { vit, head, patch_head: parts.patch_head.map(own).transpose()? })
    }

    fn globals(
        &self,
        x: &Tensor,
        masked: Option<MaskedPatches<'_>>,
        draws: Option<DrawsAt>,
    ) -> Result<Globals> {
        let tokens = self.vit.run(&self.vit.embed(x, masked)?, &VitPass { draws, ..VitPass::default() })?;
        let tokens = self.vit.split(&self.vit.norm(&tokens)?)?;
        let Some(class) = tokens.class_token else { bail!("the network has no class token") };
        Ok(Globals { class, patches: tokens.patches.flatten(0, 1)? })
    }

    /// The class tokens of a batch of views, `(B, d)`.
    fn class_tokens(&self, x: &Tensor, draws: Option<DrawsAt>) -> Result<Tensor> {
        let pass = VitPass { draws, first: Some(1), ..VitPass::default() };
        self.vit.norm(&self.vit.run(&self.vit.embed(x, None)?, &pass)?.squeeze(1)?)
    }

    /// The scores of patches, `(M, d)` to `(M, K)`.
    fn patch_scores(&self, patches: &Tensor, frozen: bool) -> Result<Tensor> {
        let head = self.patch_head.as_ref().unwrap_or(&self.head);
        head.scores(&head.project(patches)?, frozen)
    }
}

impl Ibot {
    /// Creates `backbone.*`, `head.*` and `mask_token`, `teacher.*` for the teacher, and `center` and `patch_center` in
    /// `params`; without `shared_head` also `patch_head.*`.
    ///
    /// # Errors
    /// If a width is 0 or the backbone is not a vision transformer with a class token.
    pub fn new(config: &IbotConfig, backbone: &BackboneConfig, params: &Params) -> Result<Self> {
        Self::of(config.parts(), backbone, params)
    }

    pub(crate) fn of(parts: Parts, backbone: &BackboneConfig, params: &Params) -> Result<Self> {
        let root = params.root();
        let student = Network::new(&parts, backbone, &root)?;
        let teacher = Network::new(&parts, backbone, &root.pp(teacher::PREFIX).frozen())?;
        let follower = Teacher::copy_student(params)?;
        let dim = student.vit.embed_dim();
        let mask_token = root.trainable("mask_token", (1, dim), Init::Const(0.0))?;
        let centers = match parts.targets {
            Targets::Sinkhorn { .. } => None,
            Targets::Centered { .. } => {
                let patches = parts.patch_head.unwrap_or(parts.head).prototypes;
                let center = |name: &str, k: usize| root.buffer(name, k, Init::Const(0.0));
                Some([center("center", parts.head.prototypes)?, center("patch_center", patches)?])
            }
        };
        Ok(Self { student, teacher, follower, mask_token, centers, parts })
    }

    /// Hides patches in the global views of a batch; `None` if it hides none.
    fn hide(&self, batch: &Batch, x: &Tensor, context: &StepContext) -> Result<Option<Hidden>> {
        let patch = self.student.vit.config().patch_size;
        let grid = (x.dim(2)? / patch, x.dim(3)? / patch);
        let (n, patches) = (batch.index.len(), grid.0 * grid.1);
        let [low, high] = self.parts.mask_ratio;
        let masks = match self.parts.masks {
            Masks::Each { probability } => {
                let mut masks = Vec::with_capacity(GLOBAL_VIEWS * n);
                for view in 0..GLOBAL_VIEWS {
                    for image in &batch.index {
                        let rng = &mut context.masks(*image, view);
                        let hides = uniform(rng, 0.0, 1.0) < probability;
                        let ratio = uniform(rng, low, high) * f64::from(u8::from(hides));
                        masks.push(BlockMask::ibot(grid).draw(rng, grid, ratio * patches as f64)?);
                    }
                }
                masks
            }
            Masks::Share { share } => {
                let rng = &mut context.batch_masks();
                BlockMask::dinov2(grid).draw_batch(rng, grid, GLOBAL_VIEWS * n, share, [low, high])?
            }
        };
        let rows: Vec<u32> =
            (0u32..).zip(masks.iter().flatten()).filter(|(_, hidden)| **hidden).map(|(i, _)| i).collect();
        if rows.is_empty() {
            return Ok(None);
        }
        let mask = mask_tensor(&masks, x.device())?;
        let rows = Tensor::new(rows, x.device())?;
        let weights = ibot_weights(&mask, x.dtype())?.flatten_all()?.index_select(&rows, 0)?;
        Ok(Some(Hidden { mask, rows, weights }))
    }

    /// The teacher's distributions of class tokens or patches from their scores.
    fn targets(&self, scores: &Tensor, kind: usize, epoch: usize) -> Result<Tensor> {
        let temperature = self.parts.teacher_temperature.at(epoch);
        match (&self.parts.targets, &self.centers) {
            (Targets::Centered { .. }, Some(centers)) => {
                centered_targets(scores, &centers[kind].as_detached_tensor(), temperature)
            }
            (Targets::Sinkhorn { iterations }, _) => sinkhorn(scores, temperature, *iterations),
            (Targets::Centered { .. }, None) => bail!("there are no centers"),
        }
    }
}

/// Places of the centres.
const CLASS: usize = 0;
const PATCH: usize = 1;

impl Method for Ibot {
    fn num_views(&self) -> RangeInclusive<usize> {
        GLOBAL_VIEWS..=MAX_VIEWS
    }

    fn loss(&self, batch: &Batch, context: &StepContext) -> Result<StepOutput> {
        let (views, parts) = (&batch.views, &self.parts);
        if !self.num_views().contains(&views.len()) {
            bail!("ibot needs {:?} views, got {}", self.num_views(), views.len());
        }
        let (n, epoch) = (views[0].dim(0)?, context.epoch());
        let frozen = epoch < parts.freeze_last_layer_epochs;
        let x = Tensor::cat(&views[..GLOBAL_VIEWS], 0)?; // (2B, 3, H, W)
        let hidden = self.hide(batch, &x, context)?;

        let masked =
            hidden.as_ref().map(|hidden| MaskedPatches { mask: &hidden.mask, token: &self.mask_token });
        let student = self.student.globals(&x, masked, context.draws(0))?;
        let mut class_tokens = student.class.clone();
        let mut locals = None;
        if views.len() > GLOBAL_VIEWS {
            let encode = |x: &Tensor, pass| self.student.class_tokens(x, context.draws(pass + 1));
            let (crops, h) = Crops::features(&views[GLOBAL_VIEWS..], encode)?;
            class_tokens = Tensor::cat(&[class_tokens, h], 0)?;
            locals = Some(crops);
        }
        let z = self.student.head.project(&class_tokens)?; // (V B, bottleneck)
        let scores = self.student.head.scores(&z, frozen)?;
        let mut student_scores = scores.narrow(0, 0, GLOBAL_VIEWS * n)?.chunk(GLOBAL_VIEWS, 0)?;
        if let Some(crops) = locals {
            let rest = scores.dim(0)? - GLOBAL_VIEWS * n;
            student_scores.extend(crops.split(&scores.narrow(0, GLOBAL_VIEWS * n, rest)?)?);
        }

        let teacher = self.teacher.globals(&x, None, None)?;
        let class_scores = self.teacher.head.scores(&self.teacher.head.project(&teacher.class)?, true)?;
        let targets = self.targets(&class_scores, CLASS, epoch)?.chunk(GLOBAL_VIEWS, 0)?;
        let class_loss = DinoLoss {
            student_temperature: parts.student_temperature,
            teacher_temperature: parts.teacher_temperature.at(epoch),
        };
        let class_loss = class_loss.predict(&student_scores, &targets)?;
        let mut terms = clusters::teacher_terms(&class_loss, &targets)?;
        terms.push(("class_loss", class_loss.detach()));
        let mut loss = class_loss;

        // The centre of patches is the mean over all of them or the hidden ones.
        let all_patches = match parts.targets {
            Targets::Centered { all_patches: true, .. } => {
                Some(self.teacher.patch_scores(&teacher.patches, true)?)
            }
            _ => None,
        };
        let mut patch_mean = all_patches.as_ref().map(|scores| scores.mean_keepdim(0)).transpose()?;
        let mut patch_loss = loss.zeros_like()?;
        if let Some(hidden) = &hidden {
            let teacher_scores = match &all_patches {
                Some(scores) => scores.index_select(&hidden.rows, 0)?,
                None => self.teacher.patch_scores(&teacher.patches.index_select(&hidden.rows, 0)?, true)?,
            };
            if patch_mean.is_none() {
                patch_mean = Some(teacher_scores.mean_keepdim(0)?);
            }
            let patch_targets = self.targets(&teacher_scores, PATCH, epoch)?; // (M, K)
            let patches = student.patches.index_select(&hidden.rows, 0)?;
            let scores = self.student.patch_scores(&patches, frozen)?;
            patch_loss = ibot_patches(&scores, &patch_targets, &hidden.weights, parts.student_temperature)?;
            loss = (loss + (&patch_loss * parts.patch_weight)?)?;
        }
        terms.push(("patch_loss", patch_loss.detach()));
        if parts.koleo_weight > 0.0 {
            let [a, b] = [0, n].map(|start| koleo(&student.class.narrow(0, start, n)?));
            let koleo = (a? + b?)?;
            terms.push(("koleo", koleo.detach()));
            loss = (loss + (koleo * parts.koleo_weight)?)?;
        }
        let embeddings = z.detach().narrow(0, 0, GLOBAL_VIEWS * n)?.chunk(GLOBAL_VIEWS, 0)?;
        let memory = match &self.centers {
            // Without hidden patches their centre stays where it is.
            Some([_, patches]) => {
                let patch_mean = match patch_mean {
                    Some(mean) => mean,
                    None => patches.as_detached_tensor().unsqueeze(0)?,
                };
                vec![class_scores.mean_keepdim(0)?, patch_mean]
            }
            None => vec![],
        };
        Ok(StepOutput { loss, terms, embeddings, memory })
    }

    fn after_step(&mut self, context: &StepContext, memory: &[Tensor]) -> Result<()> {
        let m = Schedule::cosine(self.parts.momentum, self.parts.final_momentum, context.total_steps);
        self.follower.follow(m.at(context.step))?;
        let (Some(centers), Targets::Centered { momentum, .. }) = (&self.centers, self.parts.targets) else {
            return Ok(());
        };
        if memory.len() != centers.len() {
            bail!("ibot moves its {} centers by as many means, got {}", centers.len(), memory.len());
        }
        for (center, mean) in centers.iter().zip(memory) {
            center.set(&updated_center(&center.as_detached_tensor(), mean, momentum)?)?;
        }
        Ok(())
    }

    fn parameter_rule(&self, name: &str) -> ParameterRule {
        let lr_factor = self.parts.layer_rates.of(name, self.student.vit.config().depth);
        ParameterRule { lr_factor, ..ParameterRule::default() }
    }

    fn encoder(&self) -> &dyn Backbone {
        &self.teacher.vit
    }
}

#[cfg(test)]
mod tests {
    use ssl_backbones::VitOptions;

    use super::*;
    use crate::testing::{CONTEXT, assert_gradients_reach, batch, images, params, resnet, vit};

    fn tiny() -> IbotConfig {
        IbotConfig {
            head_hidden: 16,
            bottleneck_dim: 6,
            prototypes: 5,
            freeze_last_layer_epochs: 0,
            mask_probability: 1.0,
            ..IbotConfig::default()
        }
    }

    fn built(config: &IbotConfig, params: &Params) -> Ibot {
        Ibot::new(config, &vit(VitOptions::default()), params).unwrap()
    }

    fn value(method: &Ibot, batch: &Batch) -> f32 {
        method.loss(batch, &CONTEXT).unwrap().loss.to_scalar().unwrap()
    }

    #[test]
    fn gradients_reach_the_student_and_spare_teacher_centers_and_frozen_prototypes() {
        for (shared_head, freeze_last_layer_epochs) in [(true, 0), (false, 0), (true, 1)] {
            let params = params();
            let config =
                IbotConfig { shared_head, freeze_last_layer_epochs, norm_last_layer: false, ..tiny() };
            let method = built(&config, &params);
            let without: &[&str] = if freeze_last_layer_epochs > 0 { &["head.last_layer"] } else { &[] };
            assert_gradients_reach(&method, &params, &batch(&[8, 8, 4, 4], 5), without);
        }
    }

    #[test]
    fn without_hidden_patches_the_loss_is_that_of_dino() {
        let params = params();
        let config = IbotConfig { mask_probability: 0.0, ..tiny() };
        let method = built(&config, &params);
        let output = method.loss(&batch(&[8, 8, 4], 5), &CONTEXT).unwrap();
        let term =
            |name| output.terms.iter().find(|(own, _)| *own == name).unwrap().1.to_scalar::<f32>().unwrap();
        assert_eq!(term("patch_loss"), 0.0);
        assert_eq!(output.loss.to_scalar::<f32>().unwrap(), term("class_loss"));
        let gradients = output.loss.backward().unwrap();
        assert!(gradients.get(&params.get("mask_token").unwrap()).is_none());
    }

    #[test]
    fn masks_belong_to_images_so_their_order_does_not_matter() {
        let method = built(&tiny(), &params());
        let plain = batch(&[8, 8, 4], 6);
        let moved = crate::testing::permuted(&plain);
        assert!((value(&method, &plain) - value(&method, &moved)).abs() < 1e-4);
        let other = Batch { index: vec![10, 11, 12, 13, 14, 15], ..plain.clone() };
        assert!(value(&method, &plain) != value(&method, &other));
    }

    #[test]
    fn both_centers_move_after_a_step() {
        let params = params();
        let mut method = built(&tiny(), &params);
        let output = method.loss(&images(2, 4), &CONTEXT).unwrap();
        method.after_step(&CONTEXT, &output.memory).unwrap();
        for (name, mean) in ["center", "patch_center"].into_iter().zip(&output.memory) {
            let center = params.get(name).unwrap().to_vec1::<f32>().unwrap();
            let mean = mean.squeeze(0).unwrap().to_vec1::<f32>().unwrap();
            assert!(center.iter().zip(&mean).all(|(c, m)| (c - 0.1 * m).abs() < 1e-6), "{center:?} {mean:?}");
        }
        assert!(method.after_step(&CONTEXT, &[]).is_err());
    }

    #[test]
    fn bad_settings_networks_and_batches_are_refused() {
        let refused = |config: IbotConfig, part: &str| {
            let error = config.validate().unwrap_err();
            assert!(error.contains(part), "{error}");
        };
        refused(IbotConfig { prototypes: 1, ..tiny() }, "method.prototypes = 1 is not in 2..=1000000");
        refused(
            IbotConfig { mask_ratio: [0.5, 0.1], ..tiny() },
            "method.mask_ratio = [0.5, 0.1] does not rise within (0, 1)",
        );
        refused(
            IbotConfig { mask_probability: 2.0, ..tiny() },
            "method.mask_probability = 2 is not in [0, 1]",
        );
        refused(IbotConfig { patch_weight: -1.0, ..tiny() }, "method.patch_weight = -1 is not in [0, 1000]");
        let error = Ibot::new(&tiny(), &resnet(), &params()).unwrap_err().to_string();
        assert!(error.contains("backbone.name = resnet18 is not a vision transformer"), "{error}");
        let options =
            VitOptions { class_token: false, pooling: ssl_backbones::Pooling::Mean, ..VitOptions::default() };
        let error = Ibot::new(&tiny(), &vit(options), &params()).unwrap_err().to_string();
        assert!(error.contains("backbone.vit.class_token = false"), "{error}");
        let error = built(&tiny(), &params()).loss(&images(1, 4), &CONTEXT).unwrap_err().to_string();
        assert!(error.contains("2..=64 views, got 1"), "{error}");
    }
}
