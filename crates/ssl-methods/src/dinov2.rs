//! DINOv2 (Oquab et al., 2023, <https://arxiv.org/abs/2304.07193>; official code facebookresearch/dinov2).
//!
//! It is [`Ibot`] with other settings: targets by Sinkhorn-Knopp or centred, heads of their own for class tokens and
//! patches, KoLeo, which keeps the class tokens of a batch apart, and rates that fall from the last block to the first.
//! Exactly a share of the global views of a batch has hidden patches, their ratios spread evenly over the range.
//!
//! As there, centres move after their use, that of patches by the mean of the hidden ones.

use candle_core::Result;
use serde::{Deserialize, Serialize};
use ssl_backbones::BackboneConfig;
use ssl_nn::Params;

use crate::checks;
use crate::config::{Settings, TrainingData};
use crate::dino_head::DinoHeadConfig;
use crate::ibot::Ibot;
use crate::ibot_parts::{LayerRates, Masks, Parts, Targets};
use crate::method::Method;
use crate::reconstruction::{vision_transformer, with_class_token};
use crate::safeguard::Safeguard;
use crate::teacher::TeacherTemperature;

/// Settings of DINOv2; the defaults are the paper's for ViT-L.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DinoV2Config {
    /// Width of the heads' hidden layers.
    pub head_hidden: usize,
    /// Linear layers of a head before the prototypes.
    pub head_layers: usize,
    /// Whether batch norms follow the heads' hidden layers.
    pub head_norm: bool,
    /// Width of the last hidden layer of the head of class tokens, and of its prototypes.
    pub bottleneck_dim: usize,
    /// K, the number of prototypes.
    pub prototypes: usize,
    /// Whether patches have the head of class tokens, as in the short recipe, or one of their own.
    pub shared_head: bool,
    /// `bottleneck_dim` of the patches' own head.
    pub patch_bottleneck_dim: usize,
    /// `prototypes` of the patches' own head.
    pub patch_prototypes: usize,
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
    /// Iterations of Sinkhorn-Knopp for the targets; 0 for targets that are centred.
    pub sinkhorn_iterations: usize,
    /// Share of the old centres that is kept, where targets are centred.
    pub center_momentum: f64,
    /// Share of the global views with hidden patches.
    pub mask_share: f64,
    /// The smallest and the largest share of the patches that is hidden in these.
    pub mask_ratio: [f64; 2],
    /// Weight of the loss of patches; that of class tokens has weight 1.
    pub patch_weight: f64,
    /// Weight of KoLeo, of each of the two global views.
    pub koleo_weight: f64,
    /// Factor on the learning rate from a block to the one before it: 0.9 in the short recipe.
    pub layer_decay: f64,
    /// Factor on the learning rate of the projection of patches, besides.
    pub patch_embed_lr_factor: f64,
    /// m, the share of the old teacher that is kept at the first step: 0.992 in the short recipe.
    pub momentum: f64,
    /// m at the end of the run.
    pub final_momentum: f64,
}

impl Default for DinoV2Config {
    fn default() -> Self {
        Self {
            head_hidden: 2048,
            head_layers: 3,
            head_norm: false,
            bottleneck_dim: 384,
            prototypes: 131_072,
            shared_head: false,
            patch_bottleneck_dim: 256,
            patch_prototypes: 131_072,
            norm_last_layer: false,
            freeze_last_layer_epochs: 1,
            student_temperature: 0.1,
            teacher_temperature: 0.07,
            warmup_teacher_temperature: 0.04,
            warmup_teacher_temperature_epochs: 30,
            sinkhorn_iterations: 3,
            center_momentum: 0.9,
            mask_share: 0.5,
            mask_ratio: [0.1, 0.5],
            patch_weight: 1.0,
            koleo_weight: 0.1,
            layer_decay: 1.0,
            patch_embed_lr_factor: 0.2,
            momentum: 0.994,
            final_momentum: 1.0,
        }
    }
}

impl DinoV2Config {
    fn parts(&self) -> Parts {
        let head = DinoHeadConfig {
            hidden: self.head_hidden,
            layers: self.head_layers,
            norm: self.head_norm,
            bottleneck: self.bottleneck_dim,
            prototypes: self.prototypes,
            norm_last_layer: self.norm_last_layer,
        };
        let of_patches = DinoHeadConfig {
            bottleneck: self.patch_bottleneck_dim,
            prototypes: self.patch_prototypes,
            ..head
        };
        Parts {
            head,
            patch_head: (!self.shared_head).then_some(of_patches),
            freeze_last_layer_epochs: self.freeze_last_layer_epochs,
            student_temperature: self.student_temperature,
            teacher_temperature: TeacherTemperature {
                start: self.warmup_teacher_temperature,
                end: self.teacher_temperature,
                epochs: self.warmup_teacher_temperature_epochs,
            },
            targets: match self.sinkhorn_iterations {
                0 => Targets::Centered { momentum: self.center_momentum, all_patches: false },
                iterations => Targets::Sinkhorn { iterations },
            },
            masks: Masks::Share { share: self.mask_share },
            mask_ratio: self.mask_ratio,
            patch_weight: self.patch_weight,
            koleo_weight: self.koleo_weight,
            layer_rates: LayerRates { decay: self.layer_decay, patch_embed: self.patch_embed_lr_factor },
            momentum: self.momentum,
            final_momentum: self.final_momentum,
        }
    }
}

impl Settings for DinoV2Config {
    fn validate(&self) -> std::result::Result<(), String> {
        checks::count("patch_bottleneck_dim", self.patch_bottleneck_dim, checks::WIDTH)?;
        checks::count("patch_prototypes", self.patch_prototypes, checks::PROTOTYPES)?;
        checks::count("sinkhorn_iterations", self.sinkhorn_iterations, 0..=1000)?;
        checks::number("center_momentum", self.center_momentum, 0.0..=1.0)?;
        checks::number("layer_decay", self.layer_decay, 0.01..=1.0)?;
        checks::number("patch_embed_lr_factor", self.patch_embed_lr_factor, 0.0..=10.0)?;
        self.parts().validate()
    }

    fn validate_backbone(&self, backbone: &BackboneConfig) -> std::result::Result<(), String> {
        with_class_token(&vision_transformer(backbone)?)
    }

    fn safeguard(&self) -> Safeguard {
        Safeguard::new(
            "the equal shares of images that Sinkhorn and Knopp's iterations give to prototypes, and the part of the loss that \
             spreads class tokens",
            "a teacher's temperature that is too high, or a learning rate that is too high",
            "method.sinkhorn_iterations of 3, method.koleo_weight of 0.1, a lower optimizer.lr, train.clip_norm of 3",
        )
        .unless(
            self.sinkhorn_iterations == 0 && self.center_momentum == 1.0,
            "sinkhorn_iterations",
            0,
            Self::default().sinkhorn_iterations,
        )
    }

    fn build(&self, backbone: &BackboneConfig, params: &Params, _: &TrainingData) -> Result<Box<dyn Method>> {
        Ok(Box::new(Ibot::of(self.parts(), backbone, params)?))
    }

    fn augmentation(&self) -> &'static str {
        "dinov2"
    }

    fn encoder_prefix(&self) -> &'static str {
        "teacher.backbone."
    }
}

#[cfg(test)]
mod tests {
    use ssl_backbones::VitOptions;

    use super::*;
    use crate::testing::{CONTEXT, assert_gradients_reach, batch, data, params, vit};

    fn tiny() -> DinoV2Config {
        DinoV2Config {
            head_hidden: 16,
            bottleneck_dim: 6,
            prototypes: 5,
            patch_bottleneck_dim: 7,
            patch_prototypes: 4,
            freeze_last_layer_epochs: 0,
            ..DinoV2Config::default()
        }
    }

    fn built(config: &DinoV2Config, params: &Params) -> Box<dyn Method> {
        config.build(&vit(VitOptions::dinov2()), params, &data(10)).unwrap()
    }

    #[test]
    fn gradients_reach_the_student_with_either_kind_of_targets_and_heads() {
        for (sinkhorn_iterations, shared_head) in [(3, false), (0, false), (0, true)] {
            let params = params();
            let method = built(&DinoV2Config { sinkhorn_iterations, shared_head, ..tiny() }, &params);
            assert_gradients_reach(&*method, &params, &batch(&[8, 8, 4, 4], 5), &[]);
            assert_eq!(params.get("center").is_some(), sinkhorn_iterations == 0);
            assert_eq!(params.get("patch_head.mlp.0.weight").is_some(), !shared_head);
        }
    }

    #[test]
    fn koleo_is_the_sum_of_both_global_views() {
        let value = |koleo_weight| {
            let method = built(&DinoV2Config { koleo_weight, ..tiny() }, &params());
            let output = method.loss(&batch(&[8, 8, 4], 5), &CONTEXT).unwrap();
            let koleo = output.terms.iter().find(|(name, _)| *name == "koleo");
            (output.loss.to_scalar::<f32>().unwrap(), koleo.map(|(_, k)| k.to_scalar::<f32>().unwrap()))
        };
        let ((plain, none), (with, Some(koleo))) = (value(0.0), value(0.1)) else { panic!() };
        assert!(none.is_none() && (with - plain - 0.1 * koleo).abs() < 1e-4, "{plain} {with} {koleo}");
    }

    #[test]
    fn rates_fall_from_the_head_to_the_patches() {
        let params = params();
        let method = built(&DinoV2Config { layer_decay: 0.5, ..tiny() }, &params);
        let factor = |name: &str| method.parameter_rule(name).lr_factor;
        assert_eq!([factor("head.mlp.0.weight"), factor("backbone.norm.weight")], [1.0, 1.0]);
        assert_eq!(
            [factor("backbone.blocks.1.norm1.bias"), factor("backbone.blocks.0.ls1.gamma")],
            [0.5, 0.25]
        );
        assert_eq!([factor("mask_token"), factor("backbone.cls_token")], [0.125, 0.125]);
        assert!((factor("backbone.patch_embed.proj.weight") - 0.025).abs() < 1e-12);
    }

    #[test]
    fn bad_settings_are_refused() {
        for (config, part) in [
            (DinoV2Config { layer_decay: 0.0, ..tiny() }, "method.layer_decay = 0 is not in [0.01, 1]"),
            (DinoV2Config { mask_share: 1.5, ..tiny() }, "method.mask_share = 1.5 is not in [0, 1]"),
            (
                DinoV2Config { patch_prototypes: 1, ..tiny() },
                "method.patch_prototypes = 1 is not in 2..=1000000",
            ),
            (DinoV2Config { koleo_weight: -1.0, ..tiny() }, "method.koleo_weight = -1 is not in [0, 1000]"),
        ] {
            let error = config.validate().unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
