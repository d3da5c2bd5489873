//! data2vec for images (Baevski et al., 2022, <https://arxiv.org/abs/2202.03555>; official code
//! facebookresearch/data2vec_vision).
//!
//! Blocks of an image's patches are hidden behind a learned token. The encoder, the student, predicts at their places
//! what its slow copy, the teacher, makes of the whole image: the mean of the tokens that leave its last `target_layers`
//! blocks, each normalised. What has to be predicted is contextual and changes with the teacher, so that it could become
//! constant. The normalisation of the targets stands against that: `normalize_targets = false` takes it away.
//!
//! The teacher leaves nothing out and follows after each step, by a constant momentum in the paper. The student, without
//! its linear head, is what is evaluated and exported, as in the official code. Deviations: `mask_token` stands under the
//! root, not within the encoder; weights start from normals that are not truncated; there is no dropout in the attention.
//! The embeddings that are watched are the targets of all patches, and `prediction_gain` is the share of the loss of
//! their mean that the prediction saves.

use std::ops::RangeInclusive;

use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use ssl_backbones::{Backbone, BackboneConfig, Vit, VitPass};
use ssl_losses::{mae, masked_smooth_l1};
use ssl_nn::{Init, Linear, LinearConfig, Params, Schedule};

use crate::checks;
use crate::config::{Settings, TrainingData};
use crate::masked_encoder::{HiddenBlocks, MaskedEncoder};
use crate::method::{Batch, Method, StepContext, StepOutput};
use crate::reconstruction::{
    Noise, bits_per_dimension, feature_normalized, mean_of_hidden, target_terms, vision_transformer,
};
use crate::safeguard::Safeguard;
use crate::teacher::{self, Teacher};

/// Settings of data2vec; the defaults are the official ones of ViT-B.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Data2VecConfig {
    /// Share of the patches that is hidden at most.
    pub mask_ratio: f64,
    /// Patches of the smallest hidden block.
    pub min_block: usize,
    /// K, the number of the teacher's last blocks whose outputs are the target.
    pub target_layers: usize,
    /// Whether each of these outputs, and their mean, is normalised.
    pub normalize_targets: bool,
    /// β, where the loss turns from squared to linear.
    pub beta: f64,
    /// τ, the share of the old teacher that is kept at the first step.
    pub momentum: f64,
    /// τ at the last step, reached in a straight line.
    pub final_momentum: f64,
}

impl Default for Data2VecConfig {
    fn default() -> Self {
        Self {
            mask_ratio: 0.612, // 120 of 196
            min_block: 16,
            target_layers: 6,
            normalize_targets: true,
            beta: 2.0,
            momentum: 0.9998,
            final_momentum: 0.9998,
        }
    }
}

impl Data2VecConfig {
    fn blocks(&self) -> HiddenBlocks {
        HiddenBlocks { ratio: self.mask_ratio, min_block: self.min_block }
    }
}

impl Settings for Data2VecConfig {
    fn validate(&self) -> std::result::Result<(), String> {
        self.blocks().validate()?;
        checks::count("target_layers", self.target_layers, 1..=1000)?;
        checks::number("beta", self.beta, 1e-3..=1000.0)?;
        checks::number("momentum", self.momentum, 0.0..=1.0)?;
        checks::number("final_momentum", self.final_momentum, 0.0..=1.0)
    }

    fn validate_backbone(&self, backbone: &BackboneConfig) -> std::result::Result<(), String> {
        let vit = vision_transformer(backbone)?;
        if self.target_layers > vit.depth {
            return Err(format!(
                "method.target_layers = {} is more than the {} blocks of the backbone",
                self.target_layers, vit.depth
            ));
        }
        self.blocks().validate_grid(&vit)
    }

    fn safeguard(&self) -> Safeguard {
        Safeguard::new(
            "targets that are normalised and come from a slowly moving teacher",
            "a teacher that follows too fast, or a learning rate that is too high",
            "method.momentum closer to 1, a lower optimizer.lr with a longer warm-up, more method.target_layers",
        )
        .unless(!self.normalize_targets, "normalize_targets", false, true)
        .unless(self.momentum == 0.0, "momentum", 0, Self::default().momentum)
    }

    fn build(&self, backbone: &BackboneConfig, params: &Params, _: &TrainingData) -> Result<Box<dyn Method>> {
        Ok(Box::new(Data2Vec::new(self, backbone, params)?))
    }

    fn augmentation(&self) -> &'static str {
        "beit"
    }
}

/// data2vec with its student and its teacher.
#[derive(Debug)]
pub struct Data2Vec {
    student: MaskedEncoder,
    /// From a token of the student to a target.
    head: Linear,
    network: Vit,
    teacher: Teacher,
    config: Data2VecConfig,
}

impl Data2Vec {
    /// Creates `backbone.*`, `mask_token` and `head.*`, and `teacher.backbone.*`, in `params`.
    ///
    /// # Errors
    /// If the backbone is not a vision transformer.
    pub fn new(config: &Data2VecConfig, backbone: &BackboneConfig, params: &Params) -> Result<Self> {
        let student = MaskedEncoder::new(backbone, params)?;
        let (vit, root) = (*student.vit.config(), params.root());
        let linear = LinearConfig {
            init: Some(Init::Normal { std: 0.02 }),
            bias_init: Some(Init::Const(0.0)),
            ..Default::default()
        };
        let head = Linear::new(vit.dim, vit.dim, linear, &root.pp("head"))?;
        let network = vit.build(&root.pp(teacher::PREFIX).frozen().pp("backbone"))?;
        let teacher = Teacher::copy_student(params)?;
        Ok(Self { student, head, network, teacher, config: config.clone() })
    }

    /// The targets of all patches of whole images, `(B, N, d)`.
    fn targets(&self, x: &Tensor) -> Result<Tensor> {
        let (depth, k) = (self.network.config().depth, self.config.target_layers);
        let Some(first) = depth.checked_sub(k) else {
            bail!("data2vec: {k} target layers of {depth} blocks");
        };
        let blocks: Vec<usize> = (first..depth).collect();
        let normalized = |x: &Tensor| match self.config.normalize_targets {
            true => feature_normalized(x),
            false => Ok(x.clone()),
        };
        let outputs =
            self.network.run_through(&self.network.embed(x, None)?, &blocks, &VitPass::default())?;
        let outputs: Vec<Tensor> = outputs
            .iter()
            .map(|h| normalized(&self.network.split(&h.detach())?.patches.contiguous()?))
            .collect::<Result<_>>()?;
        normalized(&(outputs.iter().skip(1).try_fold(outputs[0].clone(), |sum, h| sum + h)? / k as f64)?)
    }
}

impl Method for Data2Vec {
    fn num_views(&self) -> RangeInclusive<usize> {
        1..=1
    }

    fn loss(&self, batch: &Batch, context: &StepContext) -> Result<StepOutput> {
        let [x] = &batch.views[..] else { bail!("data2vec needs 1 view, got {}", batch.views.len()) };
        let mask = self.config.blocks().draw(batch, context, self.student.vit.config())?;
        let y = self.targets(x)?;
        let prediction = self.head.forward(&self.student.patches(x, &mask, context.draws(0))?)?;
        let beta = self.config.beta;
        let loss = masked_smooth_l1(&prediction, &y, &mask, beta)?;
        let of_mean = masked_smooth_l1(&mean_of_hidden(&y, &mask)?, &y, &mask, beta)?;
        let tokens = y.flatten_to(1)?; // (B N, d)
        let mut terms = target_terms(&loss, &of_mean, &tokens)?;
        let squares = |guess: &Tensor| mae(guess, &y, &mask);
        let bits = bits_per_dimension(
            &squares(&prediction.detach())?,
            &squares(&mean_of_hidden(&y, &mask)?)?,
            Noise::Gaussian,
        )?;
        terms.push(("bits_per_dimension", bits));
        Ok(StepOutput { terms, loss, embeddings: vec![tokens], memory: vec![] })
    }

    fn after_step(&mut self, context: &StepContext, _: &[Tensor]) -> Result<()> {
        let Data2VecConfig { momentum, final_momentum, .. } = self.config;
        let steps = context.total_steps as f64;
        let tau = Schedule::Linear { start: momentum, end: final_momentum, steps, offset: 0.0 };
        self.teacher.follow(tau.at(context.step))
    }

    fn encoder(&self) -> &dyn Backbone {
        &self.student.vit
    }
}

#[cfg(test)]
mod tests {
    use ssl_backbones::VitOptions;

    use super::*;
    use crate::testing::{CONTEXT, assert_gradients_reach, images, params, permuted, resnet, vit};

    fn tiny() -> Data2VecConfig {
        Data2VecConfig { min_block: 2, target_layers: 2, momentum: 0.5, ..Data2VecConfig::default() }
    }

    fn built(config: &Data2VecConfig, params: &Params) -> Data2Vec {
        Data2Vec::new(config, &vit(VitOptions::beit()), params).unwrap()
    }

    fn value(method: &Data2Vec, batch: &Batch, step: usize) -> f32 {
        method.loss(batch, &StepContext { step, ..CONTEXT }).unwrap().loss.to_scalar().unwrap()
    }

    #[test]
    fn gradients_reach_student_and_head_and_spare_the_teacher() {
        for options in [VitOptions::beit(), VitOptions::default()] {
            let params = params();
            let method = Data2Vec::new(&tiny(), &vit(options), &params).unwrap();
            assert_gradients_reach(&method, &params, &images(1, 5), &[]);
        }
    }

    #[test]
    fn masks_follow_the_images_and_change_with_the_step() {
        let method = built(&tiny(), &params());
        let batch = images(1, 6);
        assert!((value(&method, &batch, 0) - value(&method, &permuted(&batch), 0)).abs() < 1e-5);
        assert!((value(&method, &batch, 0) - value(&method, &batch, 1)).abs() > 1e-5);
    }

    #[test]
    fn targets_are_those_of_whole_images_normalised_over_their_features() {
        let params = params();
        let method = built(&tiny(), &params);
        let x = &images(1, 3).views[0];
        let y = method.targets(x).unwrap();
        assert_eq!(y.dims(), [3, 16, 64]);
        let mean = y.mean(2).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        let square = y.sqr().unwrap().mean(2).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(mean < 1e-5 && square.iter().all(|square| (square - 1.0).abs() < 1e-2), "{mean} {square:?}");
        // They are the teacher's, whatever the student is.
        let weight = params.get("backbone.norm.weight").unwrap();
        weight.set(&(weight.as_tensor() * 3.0).unwrap()).unwrap();
        let same = (method.targets(x).unwrap() - &y).unwrap().abs().unwrap().max_all().unwrap();
        assert_eq!(same.to_scalar::<f32>().unwrap(), 0.0);
        let plain = Data2Vec { config: Data2VecConfig { normalize_targets: false, ..tiny() }, ..method };
        let mean = plain.targets(x).unwrap().mean(2).unwrap().abs().unwrap().max_all().unwrap();
        assert!(mean.to_scalar::<f32>().unwrap() > 1e-4);
    }

    #[test]
    fn the_teacher_follows_by_a_momentum_on_a_line() {
        let params = params();
        let mut method = built(&tiny(), &params);
        let student = params.get("backbone.blocks.0.norm1.weight").unwrap();
        student.set(&(student.as_tensor() + 1.0).unwrap()).unwrap();
        // Half of the way from 0.5 to 0.9998.
        method.after_step(&StepContext { step: 5, ..CONTEXT }, &[]).unwrap();
        let teacher = params.get("teacher.backbone.blocks.0.norm1.weight").unwrap().to_vec1::<f32>().unwrap();
        assert!(teacher.iter().all(|w| (w - (2.0 - 0.7499)).abs() < 1e-4), "{teacher:?}");
    }

    #[test]
    fn bad_settings_networks_and_batches_are_refused() {
        for (config, part) in [
            (Data2VecConfig { mask_ratio: 1.0, ..tiny() }, "method.mask_ratio = 1 is not in [0.01, 0.99]"),
            (Data2VecConfig { min_block: 0, ..tiny() }, "method.min_block = 0 is not in 1..=1000000"),
            (Data2VecConfig { target_layers: 0, ..tiny() }, "method.target_layers = 0 is not in 1..=1000"),
            (Data2VecConfig { beta: 0.0, ..tiny() }, "method.beta = 0 is not in [0.001, 1000]"),
        ] {
            let error = config.validate().unwrap_err();
            assert!(error.contains(part), "{error}");
        }
        let error = |config: Data2VecConfig| config.validate_backbone(&vit(VitOptions::beit())).unwrap_err();
        assert!(error(Data2VecConfig { target_layers: 3, ..tiny() }).contains("more than the 2 blocks"));
        let large = Data2VecConfig { min_block: 10, ..tiny() };
        assert!(
            error(large.clone())
                .contains("min_block = 10 patches do not fit a grid of 4 by 4, must be at most 9")
        );
        let few = Data2VecConfig { mask_ratio: 0.1, min_block: 3, ..tiny() };
        assert!(
            error(few).contains("mask_ratio = 0.1 hides 2 of 16 patches, less than method.min_block = 3")
        );
        assert!(tiny().validate_backbone(&resnet()).unwrap_err().contains("not a vision transformer"));
        let error = built(&tiny(), &params()).loss(&images(2, 3), &CONTEXT).unwrap_err().to_string();
        assert!(error.contains("1 view, got 2"), "{error}");
    }
}
