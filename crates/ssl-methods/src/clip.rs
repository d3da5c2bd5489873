//! CLIP (Radford et al., 2021, <https://arxiv.org/abs/2103.00020>; official code openai/CLIP).
//!
//! An image encoder and a text encoder, each with a linear projection into one space: an image finds its text among
//! those of the batch, and a text its image, by cosines times a learned scale. Negatives prevent collapse.
//!
//! With `second_tower = "image"` the place of texts is taken by images of another kind of the same things, such as depth or
//! another spectrum, and that of the text encoder by a second image encoder.
//!
//! One view of each image, a large crop. The logarithm of the scale starts at `ln(1 / 0.07)` and is held in `[0, ln 100]`
//! after each optimiser step. The text side has OpenAI's names and initial weights; the image side is any encoder of this
//! project under its own names, with OpenAI's `visual.proj` behind it. Two images of a batch with equal texts are
//! negatives of each other, as in the paper: where texts are names of `C` classes the loss cannot fall below about the
//! logarithm of the images of a class in the batch. Deviations: training is in `f32`, and the loss is that of one
//! machine's batch or, with `train.accumulate`, of each part.

use std::ops::RangeInclusive;

use candle_core::{Result, Tensor, Var, bail};
use serde::{Deserialize, Serialize};
use ssl_backbones::{Backbone, BackboneConfig};
use ssl_losses::clip;
use ssl_nn::{Init, Params, Scope};

use crate::checks;
use crate::config::{Settings, TrainingData};
use crate::contrast::{ceiling, cosines};
use crate::method::{Batch, DualEncoder, Method, StepContext, StepOutput};
use crate::safeguard::Safeguard;
use crate::text_tower::{TextTower, TextTowerConfig};

/// The greatest scale of the cosines.
const MAX_SCALE: f64 = 100.0;

/// Settings of CLIP; the defaults are the paper's for ViT-B/32.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClipConfig {
    /// Width of the common space of images and texts.
    pub embed_dim: usize,
    /// Width of the text transformer.
    pub text_width: usize,
    /// Blocks of the text transformer.
    pub text_layers: usize,
    /// Heads of each block; must divide `text_width`.
    pub text_heads: usize,
    /// What images are compared with.
    #[serde(skip_serializing_if = "SecondTower::is_text")]
    pub second_tower: SecondTower,
    /// τ at the start, the divisor of the similarities, whose inverse is learned as the scale; in [0.01, 1].
    pub temperature: f64,
}

/// What CLIP compares images with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecondTower {
    /// Texts, by a text transformer.
    #[default]
    Text,
    /// Images of another kind of the same things, by a second encoder of the same architecture.
    Image,
}

impl SecondTower {
    fn is_text(&self) -> bool {
        *self == Self::Text
    }
}

impl Default for ClipConfig {
    fn default() -> Self {
        let TextTowerConfig { width, layers, heads, embed_dim, .. } = TextTowerConfig::default();
        Self {
            embed_dim,
            text_width: width,
            text_layers: layers,
            text_heads: heads,
            second_tower: SecondTower::Text,
            temperature: 0.07,
        }
    }
}

impl Settings for ClipConfig {
    fn validate(&self) -> std::result::Result<(), String> {
        checks::count("embed_dim", self.embed_dim, checks::WIDTH)?;
        checks::count("text_width", self.text_width, checks::WIDTH)?;
        checks::count("text_layers", self.text_layers, 1..=64)?;
        checks::count("text_heads", self.text_heads, 1..=self.text_width)?;
        if !self.text_width.is_multiple_of(self.text_heads) {
            return Err(format!(
                "method.text_heads = {} does not divide method.text_width = {}",
                self.text_heads, self.text_width
            ));
        }
        checks::number("temperature", self.temperature, 1.0 / MAX_SCALE..=1.0)
    }

    fn safeguard(&self) -> Safeguard {
        Safeguard::new(
            "the other pairs of the batch, from which the loss drives each pair away",
            "texts that do not tell images apart, or a learning rate that is too high",
            "more telling captions (text.templates), a lower optimizer.lr with a longer warm-up, a larger train.batch_size",
        )
    }

    fn build(&self, backbone: &BackboneConfig, params: &Params, _: &TrainingData) -> Result<Box<dyn Method>> {
        Ok(Box::new(Clip::new(self, backbone, params)?))
    }

    fn augmentation(&self) -> &'static str {
        "clip"
    }

    fn needs_text(&self) -> bool {
        self.second_tower == SecondTower::Text
    }

    fn needs_pairs(&self) -> bool {
        self.second_tower == SecondTower::Image
    }

    fn unwritten(&self) -> &'static [(&'static str, &'static str)] {
        &[("second_tower", "text")]
    }
}

/// CLIP with its two encoders.
pub struct Clip {
    backbone: Box<dyn Backbone>,
    projection: Tensor,
    second: Second,
    log_scale: Var,
}

/// The other encoder with its projection.
enum Second {
    Text(TextTower),
    Image(Box<dyn Backbone>, Tensor),
}

impl std::fmt::Debug for Clip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clip").finish_non_exhaustive()
    }
}

impl Clip {
    /// Creates `backbone.*` and `visual.proj`, the tensors of a [`TextTower`] or `second.backbone.*` and `second.proj`, and
    /// `logit_scale` in `params`.
    ///
    /// # Errors
    /// If a width is 0 or the backbone is unknown.
    pub fn new(config: &ClipConfig, backbone: &BackboneConfig, params: &Params) -> Result<Self> {
        let ClipConfig { embed_dim, text_width: width, text_layers: layers, text_heads: heads, .. } = *config;
        let root = params.root();
        let d = backbone.embed_dim()?;
        let init = Init::Normal { std: (d as f64).powf(-0.5) };
        let image_tower = |scope: &Scope, projection: &Scope| -> Result<(Box<dyn Backbone>, Tensor)> {
            let encoder = backbone.build(&scope.pp("backbone"))?;
            Ok((encoder, projection.trainable("proj", (d, embed_dim), init)?))
        };
        let (encoder, projection) = image_tower(&root, &root.pp("visual"))?;
        let second = match config.second_tower {
            SecondTower::Text => {
                let text = TextTowerConfig { width, layers, heads, embed_dim, ..TextTowerConfig::default() };
                Second::Text(TextTower::new(&text, &root)?)
            }
            SecondTower::Image => {
                let scope = root.pp("second");
                let (encoder, projection) = image_tower(&scope, &scope)?;
                Second::Image(encoder, projection)
            }
        };
        root.trainable("logit_scale", (), Init::Const(-config.temperature.ln()))?;
        let Some(log_scale) = params.get("logit_scale") else {
            bail!("clip: `logit_scale` is not in the store");
        };
        Ok(Self { backbone: encoder, projection, second, log_scale })
    }
}

impl Method for Clip {
    fn num_views(&self) -> RangeInclusive<usize> {
        match self.second {
            Second::Text(_) => 1..=1,
            Second::Image(..) => 2..=2,
        }
    }

    fn loss(&self, batch: &Batch, context: &StepContext) -> Result<StepOutput> {
        let (x, text) = match (&self.second, batch.views.as_slice()) {
            (Second::Text(tower), [x]) => {
                let Some(ids) = &batch.text else { bail!("clip needs a text for every image, got none") };
                (x, tower.forward(ids)?)
            }
            (Second::Image(encoder, projection), [x, partner]) => {
                (x, encoder.forward_train(partner, context.draws(1))?.matmul(projection)?)
            }
            (Second::Text(_), views) => bail!("clip needs 1 view, got {}", views.len()),
            (Second::Image(..), views) => bail!("clip needs 2 views, got {}", views.len()),
        }; // (N, e)
        let image = self.backbone.forward_train(x, context.draws(0))?.matmul(&self.projection)?; // (N, e)
        let s = self.log_scale.as_tensor();
        let loss = clip(&image, &text, s)?;
        // I(image; text) >= log N - loss, in nats.
        let mi_bound = (loss.detach().neg()? + (x.dim(0)? as f64).ln())?;
        let (image, text) = (image.detach(), text.detach());
        let [positive, negative] = cosines(&image, &text)?;
        let terms = vec![
            ("mi_lower_bound", mi_bound),
            ("positive_cosine", positive),
            ("negative_cosine", negative),
            ("logit_scale", s.detach().exp()?),
            ceiling(x.dim(0)?)?,
        ];
        Ok(StepOutput { loss, terms, embeddings: vec![image, text], memory: vec![] })
    }

    /// Holds the scale in `[1, 100]`.
    fn after_step(&mut self, _: &StepContext, _: &[Tensor]) -> Result<()> {
        self.log_scale.set(&self.log_scale.as_detached_tensor().clamp(0.0, MAX_SCALE.ln())?)
    }

    fn encoder(&self) -> &dyn Backbone {
        &*self.backbone
    }

    fn dual_encoder(&self) -> Option<&dyn DualEncoder> {
        match self.second {
            Second::Text(_) => Some(self),
            Second::Image(..) => None,
        }
    }
}

impl DualEncoder for Clip {
    fn project_images(&self, h: &Tensor) -> Result<Tensor> {
        Ok(h.matmul(&self.projection)?.detach())
    }

    fn embed_texts(&self, tokens: &Tensor) -> Result<Tensor> {
        match &self.second {
            Second::Text(tower) => Ok(tower.forward(tokens)?.detach()),
            Second::Image(..) => bail!("clip: the second tower reads images and no texts"),
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;
    use ssl_backbones::BackboneConfig;

    use super::*;
    use crate::testing::{CONTEXT, assert_gradients_reach, images, params, resnet};

    const TINY: ClipConfig = ClipConfig {
        embed_dim: 6,
        text_width: 8,
        text_layers: 2,
        text_heads: 2,
        second_tower: SecondTower::Text,
        temperature: 0.07,
    };

    /// A batch of `n` images, each with a text of its own, of several lengths.
    fn pairs(n: usize) -> Batch {
        let ids = |row: usize| {
            let mut ids = [0u32; 77];
            ids[0] = 49_406;
            let words = 1 + row % 3;
            (1..=words).for_each(|i| ids[i] = (100 * row + i) as u32);
            ids[words + 1] = 49_407;
            ids
        };
        let text: Vec<u32> = (0..n).flat_map(ids).collect();
        Batch { text: Some(Tensor::from_vec(text, (n, 77), &Device::Cpu).unwrap()), ..images(1, n) }
    }

    fn scalar(x: &Tensor) -> f32 {
        x.to_scalar().unwrap()
    }

    #[test]
    fn every_parameter_gets_a_gradient() {
        let vit = BackboneConfig {
            image_size: Some(8),
            patch_size: Some(4),
            ..BackboneConfig::named("vit_tiny").unwrap()
        };
        for backbone in [resnet(), vit] {
            let params = params();
            let method = Clip::new(&TINY, &backbone, &params).unwrap();
            assert_gradients_reach(&method, &params, &pairs(5), &[]);
        }
    }

    #[test]
    fn pairs_of_images_have_an_encoder_each_and_no_texts() {
        let params = params();
        let config = ClipConfig { second_tower: SecondTower::Image, ..TINY };
        let method = Clip::new(&config, &resnet(), &params).unwrap();
        assert!(config.needs_pairs() && !config.needs_text() && method.dual_encoder().is_none());
        assert_gradients_reach(&method, &params, &images(2, 5), &[]);
        let names = params.names();
        assert!(names.iter().any(|name| name == "second.proj") && !names.iter().any(|n| n.contains("token")));
        // An image and its partner go through encoders of their own.
        let batch = images(2, 4);
        let swapped = Batch { views: batch.views.iter().rev().cloned().collect(), ..batch.clone() };
        let loss = |batch: &Batch| scalar(&method.loss(batch, &CONTEXT).unwrap().loss);
        assert!((loss(&batch) - loss(&swapped)).abs() > 1e-5);
        let error = method.loss(&images(1, 4), &CONTEXT).unwrap_err().to_string();
        assert!(error.contains("2 views, got 1"), "{error}");
    }

    #[test]
    fn the_scale_starts_at_the_inverse_temperature_and_stays_within_its_bounds() {
        let params = params();
        let mut method = Clip::new(&TINY, &resnet(), &params).unwrap();
        let scale = params.get("logit_scale").unwrap();
        assert_eq!(scale.rank(), 0);
        assert!((scalar(&scale) - 2.6593).abs() < 1e-4);
        for (set, expected) in [(7.0, 100f32.ln()), (-0.5, 0.0), (3.0, 3.0)] {
            scale.set(&Tensor::new(set as f32, &Device::Cpu).unwrap()).unwrap();
            method.after_step(&CONTEXT, &[]).unwrap();
            assert_eq!(scalar(&scale), expected);
        }
    }

    #[test]
    fn the_order_of_pairs_does_not_matter_and_pairing_does() {
        let params = params();
        let method = Clip::new(&TINY, &resnet(), &params).unwrap();
        let (batch, order) = (pairs(5), Tensor::new(&[3u32, 0, 4, 1, 2], &Device::Cpu).unwrap());
        let permuted = |x: &Tensor| x.index_select(&order, 0).unwrap();
        let views = vec![permuted(&batch.views[0])];
        let text = batch.text.as_ref().map(permuted);
        let value = |batch: &Batch| scalar(&method.loss(batch, &CONTEXT).unwrap().loss);
        let loss = value(&batch);
        assert!((value(&Batch { views: views.clone(), text, ..batch.clone() }) - loss).abs() < 1e-5);
        assert!((value(&Batch { views, ..batch }) - loss).abs() > 1e-4);
    }

    #[test]
    fn equal_texts_leave_no_more_than_chance() {
        let params = params();
        let method = Clip::new(&TINY, &resnet(), &params).unwrap();
        let batch = pairs(6);
        let first = batch.text.as_ref().unwrap().narrow(0, 0, 1).unwrap();
        let text = Some(Tensor::cat(&[&first; 6], 0).unwrap());
        let output = method.loss(&Batch { text, ..batch }, &CONTEXT).unwrap();
        // Rows find six equal texts: log 6. Columns are at least that.
        assert!(scalar(&output.loss) >= 6f32.ln() - 1e-5);
        assert!((scalar(&output.terms[1].1) - scalar(&output.terms[2].1)).abs() < 1e-5);
    }

    #[test]
    fn both_ways_into_the_common_space_are_those_of_the_loss() {
        let params = params();
        let method = Clip::new(&TINY, &resnet(), &params).unwrap();
        let batch = pairs(4);
        let output = method.loss(&batch, &CONTEXT).unwrap();
        let towers = method.dual_encoder().unwrap();
        let h = method.backbone.forward_t(&batch.views[0], true).unwrap();
        let ours =
            [towers.project_images(&h).unwrap(), towers.embed_texts(batch.text.as_ref().unwrap()).unwrap()];
        for (ours, theirs) in ours.iter().zip(&output.embeddings) {
            assert_eq!(ours.to_vec2::<f32>().unwrap(), theirs.to_vec2::<f32>().unwrap());
        }
    }

    #[test]
    fn wrong_batches_and_settings_are_refused() {
        let params = params();
        let method = Clip::new(&TINY, &resnet(), &params).unwrap();
        let refused = |batch: &Batch| method.loss(batch, &CONTEXT).unwrap_err().to_string();
        assert!(refused(&Batch { text: pairs(3).text, ..images(2, 3) }).contains("1 view, got 2"));
        assert!(refused(&images(1, 3)).contains("a text for every image"));
        assert!(refused(&Batch { text: pairs(2).text, ..images(1, 3) }).contains("[2, 6]"));
        for (config, message) in [
            (ClipConfig { embed_dim: 0, ..TINY }, "method.embed_dim = 0 is not in 1..=65536"),
            (ClipConfig { text_layers: 65, ..TINY }, "method.text_layers = 65 is not in 1..=64"),
            (
                ClipConfig { text_heads: 3, ..TINY },
                "method.text_heads = 3 does not divide method.text_width = 8",
            ),
            (ClipConfig { temperature: 0.001, ..TINY }, "method.temperature = 0.001 is not in [0.01, 1]"),
        ] {
            assert_eq!(config.validate().unwrap_err(), message);
        }
    }
}
