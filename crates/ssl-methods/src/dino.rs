//! DINO (Caron et al., 2021, <https://arxiv.org/abs/2104.14294>; official code facebookresearch/dino).
//!
//! A student, encoder and head, sees all views and predicts for each the distribution over prototypes that a slow copy of
//! it, the teacher, gives to another one, a global view. The teacher's distributions are centred, so that no prototype
//! wins everywhere, and sharpened by a low temperature, so that not all win equally: `center_momentum = 1` takes the
//! first away, and the network collapses.
//!
//! Views of one size pass the encoder in one batch. The teacher runs in training mode without drop path, follows after
//! each step by a momentum that rises to 1 along a cosine, and is what is evaluated and exported.

use std::ops::RangeInclusive;

use candle_core::{Result, Tensor, Var, bail};
use serde::{Deserialize, Serialize};
use ssl_backbones::{Backbone, BackboneConfig};
use ssl_losses::{DinoLoss, updated_center};
use ssl_nn::{Init, Params, Schedule, Scope};

use crate::checks;
use crate::clusters;
use crate::config::{Settings, TrainingData};
use crate::crops::Crops;
use crate::dino_head::{DinoHead, DinoHeadConfig};
use crate::method::{Batch, Method, StepContext, StepOutput};
use crate::safeguard::Safeguard;
use crate::teacher::{self, Teacher, TeacherTemperature};

/// Settings of DINO; the defaults are the paper's for ViT-S/16.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DinoConfig {
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
    /// Share of the old centre that is kept; 1 for no centre, with which the network collapses.
    pub center_momentum: f64,
    /// m, the share of the old teacher that is kept at the first step; 0.9995 for batches of 256.
    pub momentum: f64,
    /// m at the end of the run.
    pub final_momentum: f64,
}

impl Default for DinoConfig {
    fn default() -> Self {
        Self {
            head_hidden: 2048,
            head_layers: 3,
            head_norm: false,
            bottleneck_dim: 256,
            prototypes: 65_536,
            norm_last_layer: true,
            freeze_last_layer_epochs: 1,
            student_temperature: 0.1,
            teacher_temperature: 0.04,
            warmup_teacher_temperature: 0.04,
            warmup_teacher_temperature_epochs: 0,
            center_momentum: 0.9,
            momentum: 0.996,
            final_momentum: 1.0,
        }
    }
}

/// Views that the teacher sees, the first ones.
const GLOBAL_VIEWS: usize = 2;

/// As many views as anyone takes.
const MAX_VIEWS: usize = 64;

impl DinoConfig {
    fn head(&self) -> DinoHeadConfig {
        DinoHeadConfig {
            hidden: self.head_hidden,
            layers: self.head_layers,
            norm: self.head_norm,
            bottleneck: self.bottleneck_dim,
            prototypes: self.prototypes,
            norm_last_layer: self.norm_last_layer,
        }
    }

    fn temperature(&self) -> TeacherTemperature {
        TeacherTemperature {
            start: self.warmup_teacher_temperature,
            end: self.teacher_temperature,
            epochs: self.warmup_teacher_temperature_epochs,
        }
    }
}

impl Settings for DinoConfig {
    fn validate(&self) -> std::result::Result<(), String> {
        checks::count("head_hidden", self.head_hidden, checks::WIDTH)?;
        checks::count("head_layers", self.head_layers, checks::LAYERS)?;
        checks::count("bottleneck_dim", self.bottleneck_dim, checks::WIDTH)?;
        checks::count("prototypes", self.prototypes, checks::PROTOTYPES)?;
        checks::count("freeze_last_layer_epochs", self.freeze_last_layer_epochs, checks::EPOCHS)?;
        checks::temperature("student_temperature", self.student_temperature)?;
        checks::temperature("teacher_temperature", self.teacher_temperature)?;
        checks::temperature("warmup_teacher_temperature", self.warmup_teacher_temperature)?;
        let key = "warmup_teacher_temperature_epochs";
        checks::count(key, self.warmup_teacher_temperature_epochs, checks::EPOCHS)?;
        checks::number("center_momentum", self.center_momentum, 0.0..=1.0)?;
        checks::number("momentum", self.momentum, 0.0..=1.0)?;
        checks::number("final_momentum", self.final_momentum, 0.0..=1.0)
    }

    fn safeguard(&self) -> Safeguard {
        Safeguard::new(
            "the centre that is taken from the teacher's scores, and their sharpening",
            "a teacher's temperature that does not balance the centre (too high leaves the targets even, too low gives all images \
             one prototype), or a learning rate that is too high",
            "method.teacher_temperature of 0.04, method.center_momentum of 0.9, a longer method.freeze_last_layer_epochs, a lower \
             optimizer.lr, train.clip_norm of 3",
        )
        .unless(self.center_momentum == 1.0, "center_momentum", 1, Self::default().center_momentum)
    }

    fn build(&self, backbone: &BackboneConfig, params: &Params, _: &TrainingData) -> Result<Box<dyn Method>> {
        Ok(Box::new(Dino::new(self, backbone, params)?))
    }

    fn augmentation(&self) -> &'static str {
        "dino"
    }

    fn encoder_prefix(&self) -> &'static str {
        "teacher.backbone."
    }
}

/// DINO with its student, its teacher and its centre.
pub struct Dino {
    student: Network,
    teacher: Network,
    follower: Teacher,
    /// `(K)`.
    center: Var,
    config: DinoConfig,
}

/// An encoder and its head.
struct Network {
    backbone: Box<dyn Backbone>,
    head: DinoHead,
}

/// What a network makes of each view.
struct Outputs {
    /// `(B, bottleneck)`, of length 1.
    z: Vec<Tensor>,
    /// `(B, K)`.
    scores: Vec<Tensor>,
}

impl std::fmt::Debug for Dino {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dino").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Network {
    fn new(config: &DinoConfig, backbone: &BackboneConfig, scope: &Scope) -> Result<Self> {
        let backbone = backbone.build(&scope.pp("backbone"))?;
        let head = DinoHead::new(backbone.embed_dim(), config.head(), &scope.pp("head"))?;
        Ok(Self { backbone, head })
    }

    /// One pass of the encoder a size, one of the head; with `context`, of the student, it leaves out branches.
    fn forward(&self, views: &[Tensor], context: Option<&StepContext>, frozen: bool) -> Result<Outputs> {
        let encode = |x: &Tensor, pass| self.backbone.forward_train(x, context.and_then(|at| at.draws(pass)));
        let (crops, h) = Crops::features(views, encode)?;
        let z = self.head.project(&h)?; // (V B, bottleneck)
        Ok(Outputs { scores: crops.split(&self.head.scores(&z, frozen)?)?, z: crops.split(&z)? })
    }
}

impl Dino {
    /// Creates `backbone.*` and `head.*`, `teacher.*` for the teacher, and `center` in `params`.
    ///
    /// # Errors
    /// If a width is 0 or the backbone is unknown.
    pub fn new(config: &DinoConfig, backbone: &BackboneConfig, params: &Params) -> Result<Self> {
        let root = params.root();
        let student = Network::new(config, backbone, &root)?;
        let teacher = Network::new(config, backbone, &root.pp(teacher::PREFIX).frozen())?;
        let follower = Teacher::copy_student(params)?;
        let center = root.buffer("center", config.prototypes, Init::Const(0.0))?;
        Ok(Self { student, teacher, follower, center, config: config.clone() })
    }
}

impl Method for Dino {
    fn num_views(&self) -> RangeInclusive<usize> {
        GLOBAL_VIEWS..=MAX_VIEWS
    }

    fn loss(&self, batch: &Batch, context: &StepContext) -> Result<StepOutput> {
        let (views, config) = (&batch.views, &self.config);
        if !self.num_views().contains(&views.len()) {
            bail!("dino needs {:?} views, got {}", self.num_views(), views.len());
        }
        let epoch = context.epoch();
        let student = self.student.forward(views, Some(context), epoch < config.freeze_last_layer_epochs)?;
        let teacher = self.teacher.forward(&views[..GLOBAL_VIEWS], None, true)?.scores;
        let loss = DinoLoss {
            student_temperature: config.student_temperature,
            teacher_temperature: config.temperature().at(epoch),
        };
        let (loss, targets) = loss.forward(&student.scores, &teacher, &self.center.as_detached_tensor())?;
        let terms = clusters::teacher_terms(&loss, &targets)?;
        let embeddings = student.z[..GLOBAL_VIEWS].iter().map(Tensor::detach).collect();
        Ok(StepOutput { loss, terms, embeddings, memory: vec![Tensor::cat(&teacher, 0)?.mean_keepdim(0)?] })
    }

    fn after_step(&mut self, context: &StepContext, memory: &[Tensor]) -> Result<()> {
        let DinoConfig { momentum, final_momentum, center_momentum, .. } = self.config;
        let m = Schedule::cosine(momentum, final_momentum, context.total_steps);
        self.follower.follow(m.at(context.step))?;
        let [scores] = memory else { bail!("dino moves its center by the teacher's scores of a step") };
        self.center.set(&updated_center(&self.center.as_detached_tensor(), scores, center_momentum)?)
    }

    fn encoder(&self) -> &dyn Backbone {
        &*self.teacher.backbone
    }
}

#[cfg(test)]
mod tests {
    use ssl_backbones::VitOptions;

    use super::*;
    use crate::testing::{CONTEXT, assert_gradients_reach, batch, images, params, permuted, resnet, vit};

    fn tiny() -> DinoConfig {
        DinoConfig {
            head_hidden: 16,
            bottleneck_dim: 6,
            prototypes: 5,
            freeze_last_layer_epochs: 0,
            ..DinoConfig::default()
        }
    }

    fn value(method: &Dino, batch: &Batch) -> f32 {
        method.loss(batch, &CONTEXT).unwrap().loss.to_scalar().unwrap()
    }

    #[test]
    fn gradients_reach_the_student_and_spare_teacher_center_and_frozen_prototypes() {
        for (network, views) in [(resnet(), [8, 8, 6, 6]), (vit(VitOptions::default()), [8, 8, 4, 4])] {
            for freeze_last_layer_epochs in [0, 1] {
                let params = params();
                let config = DinoConfig { freeze_last_layer_epochs, norm_last_layer: false, ..tiny() };
                let method = Dino::new(&config, &network, &params).unwrap();
                let without: &[&str] = if freeze_last_layer_epochs > 0 { &["head.last_layer"] } else { &[] };
                assert_gradients_reach(&method, &params, &batch(&views, 5), without);
            }
        }
    }

    #[test]
    fn lengths_of_prototypes_are_learned_only_if_asked_for() {
        for norm_last_layer in [true, false] {
            let params = params();
            Dino::new(&DinoConfig { norm_last_layer, ..tiny() }, &resnet(), &params).unwrap();
            let learned = params.trainable().iter().any(|(name, _)| name == "head.last_layer.weight_g");
            assert_eq!(learned, !norm_last_layer);
        }
    }

    #[test]
    fn the_loss_does_not_change_with_the_order_of_images() {
        let method = Dino::new(&tiny(), &resnet(), &params()).unwrap();
        let plain = batch(&[8, 8, 6], 6);
        assert!((value(&method, &plain) - value(&method, &permuted(&plain))).abs() < 1e-4);
    }

    #[test]
    fn the_center_and_the_teacher_move_after_a_step() {
        let params = params();
        let mut method = Dino::new(&DinoConfig { momentum: 0.9, ..tiny() }, &resnet(), &params).unwrap();
        let output = method.loss(&images(2, 4), &CONTEXT).unwrap();
        let mean = output.memory[0].mean(0).unwrap().to_vec1::<f32>().unwrap();
        let weight = params.get("backbone.conv1.weight").unwrap();
        let before = weight.sum_all().unwrap().to_scalar::<f32>().unwrap();
        weight.set(&(weight.as_tensor() + 1.0).unwrap()).unwrap();
        method.after_step(&CONTEXT, &output.memory).unwrap();
        let center = params.get("center").unwrap().to_vec1::<f32>().unwrap();
        assert!(center.iter().zip(&mean).all(|(c, m)| (c - 0.1 * m).abs() < 1e-6), "{center:?} {mean:?}");
        let teacher = params.get("teacher.backbone.conv1.weight").unwrap();
        let moved = teacher.sum_all().unwrap().to_scalar::<f32>().unwrap() - before;
        let expected = 0.1 * weight.elem_count() as f32;
        assert!((moved - expected).abs() < 1e-3 * expected, "{moved}, expected {expected}");
        assert!(method.after_step(&CONTEXT, &[]).is_err());
    }

    #[test]
    fn bad_settings_and_batches_are_refused() {
        let refused = |config: DinoConfig, part: &str| {
            let error = config.validate().unwrap_err();
            assert!(error.contains(part), "{error}");
        };
        refused(DinoConfig { prototypes: 1, ..tiny() }, "method.prototypes = 1 is not in 2..=1000000");
        refused(DinoConfig { head_layers: 0, ..tiny() }, "method.head_layers = 0 is not in 1..=8");
        refused(
            DinoConfig { teacher_temperature: 0.0, ..tiny() },
            "method.teacher_temperature = 0 is not in (0, 10]",
        );
        refused(
            DinoConfig { center_momentum: 1.5, ..tiny() },
            "method.center_momentum = 1.5 is not in [0, 1]",
        );
        let method = Dino::new(&tiny(), &resnet(), &params()).unwrap();
        let error = method.loss(&images(1, 4), &CONTEXT).unwrap_err().to_string();
        assert!(error.contains("2..=64 views, got 1"), "{error}");
    }
}
