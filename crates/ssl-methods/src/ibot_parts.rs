//! What iBOT and DINOv2 consist of, as the settings of both say: one method, two tables of a recipe.

use ssl_backbones::layers_after_token;

use crate::checks;
use crate::dino_head::DinoHeadConfig;
use crate::teacher::TeacherTemperature;

/// What iBOT and DINOv2 consist of, as their settings say.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    pub(crate) head: DinoHeadConfig,
    /// Of patches, where they do not share that of class tokens.
    pub(crate) patch_head: Option<DinoHeadConfig>,
    pub(crate) freeze_last_layer_epochs: usize,
    pub(crate) student_temperature: f64,
    pub(crate) teacher_temperature: TeacherTemperature,
    pub(crate) targets: Targets,
    pub(crate) masks: Masks,
    pub(crate) mask_ratio: [f64; 2],
    pub(crate) patch_weight: f64,
    pub(crate) koleo_weight: f64,
    pub(crate) layer_rates: LayerRates,
    pub(crate) momentum: f64,
    pub(crate) final_momentum: f64,
}

/// How the teacher's scores become distributions.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Targets {
    /// By centres, that of patches the mean of all of them or of the hidden ones.
    Centered { momentum: f64, all_patches: bool },
    /// By Sinkhorn-Knopp.
    Sinkhorn { iterations: usize },
}

/// Which global views have hidden patches.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Masks {
    /// Each by itself.
    Each { probability: f64 },
    /// A fixed share of the batch, their ratios spread evenly.
    Share { share: f64 },
}

/// How the learning rate falls from the last layers to the first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerRates {
    /// Factor from a block to the one before it.
    pub(crate) decay: f64,
    /// Factor of the projection of patches besides.
    pub(crate) patch_embed: f64,
}

impl LayerRates {
    /// The same rate everywhere.
    pub(crate) const EQUAL: Self = Self { decay: 1.0, patch_embed: 1.0 };

    /// The factor of the parameter `name`, in an encoder of `depth` blocks.
    pub(crate) fn of(self, name: &str, depth: usize) -> f64 {
        let above = match name.strip_prefix("backbone.") {
            Some(name) => layers_after_token(name, depth),
            None if name == "mask_token" => depth + 1,
            None => 0,
        };
        let patches = if name.starts_with("backbone.patch_embed.") { self.patch_embed } else { 1.0 };
        self.decay.powi(above as i32) * patches
    }
}

impl Parts {
    /// Checks what both methods call by the same name.
    pub(crate) fn validate(&self) -> std::result::Result<(), String> {
        for head in [Some(self.head), self.patch_head].into_iter().flatten() {
            checks::count("head_hidden", head.hidden, checks::WIDTH)?;
            checks::count("head_layers", head.layers, checks::LAYERS)?;
            checks::count("bottleneck_dim", head.bottleneck, checks::WIDTH)?;
            checks::count("prototypes", head.prototypes, checks::PROTOTYPES)?;
        }
        checks::count("freeze_last_layer_epochs", self.freeze_last_layer_epochs, checks::EPOCHS)?;
        checks::temperature("student_temperature", self.student_temperature)?;
        let TeacherTemperature { start, end, epochs } = self.teacher_temperature;
        checks::temperature("teacher_temperature", end)?;
        checks::temperature("warmup_teacher_temperature", start)?;
        checks::count("warmup_teacher_temperature_epochs", epochs, checks::EPOCHS)?;
        let (key, share) = match self.masks {
            Masks::Each { probability } => ("mask_probability", probability),
            Masks::Share { share } => ("mask_share", share),
        };
        checks::number(key, share, 0.0..=1.0)?;
        let [low, high] = self.mask_ratio;
        if !(low > 0.0 && low <= high && high < 1.0) {
            return Err(format!("method.mask_ratio = [{low}, {high}] does not rise within (0, 1)"));
        }
        checks::number("patch_weight", self.patch_weight, 0.0..=1000.0)?;
        checks::number("koleo_weight", self.koleo_weight, 0.0..=1000.0)?;
        checks::number("momentum", self.momentum, 0.0..=1.0)?;
        checks::number("final_momentum", self.final_momentum, 0.0..=1.0)
    }
}
