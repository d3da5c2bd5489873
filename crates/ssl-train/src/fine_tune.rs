//! Training on with labels: the whole encoder with a classifier on top, or the classifier alone, on augmented images.

use std::sync::Arc;

use candle_core::{DType, Device, Result as CandleResult, Tensor};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use ssl_augment::{Interpolation, MultiView, Normalize, ViewConfig};
use ssl_backbones::Backbone;
use ssl_data::Dataset;
use ssl_eval::{BootstrapConfig, ConfidenceInterval, accuracy_interval};
use ssl_methods::ParameterRule;
use ssl_nn::{
    Affine, BatchNorm, BatchNormConfig, DrawsAt, Init, Linear, LinearConfig, Params, Purpose, Schedule,
    cross_entropy, rng,
};
use toml::Table;

use crate::error::{Error, Result};
use crate::evaluate::{Protocol, embed, labelled_test};
use crate::gradients::Gradients;
use crate::images::Images;
use crate::layers::{self, from_table, to_table};
use crate::loader::Loader;
use crate::optimizer::{AdamConfig, Optimizer, OptimizerConfig, Rates, SgdConfig};
use crate::sampler::Sampler;

/// How a classifier is trained on an encoder with augmented images.
///
/// The defaults are those of MAE's fine-tuning (He et al., 2021, <https://arxiv.org/abs/2111.06377>, table 9) for few
/// images: a shorter training in smaller batches, and without RandAugment, mixup and cutmix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FineTuneConfig {
    /// Whether the encoder stays as it is, in eval mode. Then a batch norm without parameters stands before the classifier.
    pub frozen: bool,
    /// Passes over the training images.
    pub epochs: usize,
    /// Images of a step.
    pub batch_size: usize,
    /// The update rule, with the highest learning rate.
    pub optimizer: OptimizerConfig,
    /// Factor on the learning rate from a layer to the one before it.
    pub layer_decay: f64,
    /// Epochs of linear rise of the learning rate, of which half a cosine follows; may be a fraction.
    pub warmup_epochs: f64,
    /// Share of each target that is spread over all classes.
    pub label_smoothing: f64,
    /// Least and largest share of an image's area that a crop has.
    pub crop_scale: [f64; 2],
    /// Probability of a flip from left to right.
    pub flip_p: f64,
    /// Seed of the classifier, of the order of images and of their crops.
    pub seed: u64,
}

impl FineTuneConfig {
    /// The whole network.
    pub fn whole() -> Self {
        Self {
            frozen: false,
            epochs: 20,
            batch_size: 64,
            optimizer: OptimizerConfig::AdamW(AdamConfig {
                lr: 1e-3,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.05,
                exclude_bias_and_norm: true,
            }),
            layer_decay: 0.75,
            warmup_epochs: 0.5,
            label_smoothing: 0.1,
            crop_scale: [0.08, 1.0],
            flip_p: 0.5,
            seed: 0,
        }
    }

    /// The linear classifier alone, by SGD.
    pub fn probe() -> Self {
        Self {
            frozen: true,
            optimizer: OptimizerConfig::Sgd(SgdConfig {
                lr: 0.1,
                momentum: 0.9,
                nesterov: false,
                weight_decay: 0.0,
                exclude_bias_and_norm: true,
            }),
            warmup_epochs: 0.0,
            label_smoothing: 0.0,
            ..Self::whole()
        }
    }

    /// The same with `settings`, each a key and a value as text; `section` stands before the keys in errors.
    ///
    /// # Errors
    /// If a key is unknown, or a value of another type or out of its range.
    pub fn with(&self, section: &str, settings: &[(String, String)]) -> Result<Self> {
        let mut layer = Table::new();
        layers::apply(&mut layer, settings)?;
        let chosen = layer.get("optimizer").and_then(|table| table.get("name")?.as_str());
        let optimizer = match chosen {
            None => self.optimizer.clone(),
            Some(name) => OptimizerConfig::named(name).ok_or_else(|| {
                let names = OptimizerConfig::NAMES.join(", ");
                Error::Recipe(format!("{section}.optimizer.name = \"{name}\" is unknown; available: {names}"))
            })?,
        };
        let mut table = to_table(&Self { optimizer, ..self.clone() })?;
        layers::merge_at(section, &mut table, layer)?;
        let config: Self = from_table(table, section)?;
        config.validate(section)?;
        Ok(config)
    }

    /// As JSON, every key spelled out.
    pub fn to_json(&self) -> Value {
        json!(self)
    }

    fn validate(&self, section: &str) -> Result<()> {
        let refuse = |key: &str, value: String, allowed: &str| {
            Err(Error::Recipe(format!("{section}.{key} = {value} is not in {allowed}")))
        };
        let [least, most] = self.crop_scale;
        if !(1..=100_000).contains(&self.epochs) {
            return refuse("epochs", self.epochs.to_string(), "1..=100000");
        }
        if !(2..=1_000_000).contains(&self.batch_size) {
            return refuse("batch_size", self.batch_size.to_string(), "2..=1000000");
        }
        if !(self.layer_decay > 0.0 && self.layer_decay <= 1.0) {
            return refuse("layer_decay", self.layer_decay.to_string(), "(0, 1]");
        }
        if !(0.0..self.epochs as f64).contains(&self.warmup_epochs) {
            let allowed = format!("[0, {}), the epochs", self.epochs);
            return refuse("warmup_epochs", self.warmup_epochs.to_string(), &allowed);
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return refuse("label_smoothing", self.label_smoothing.to_string(), "[0, 1)");
        }
        if !(0.0 < least && least <= most && most <= 1.0) {
            return refuse("crop_scale", format!("[{least}, {most}]"), "(0, 1], the least first");
        }
        if !(0.0..=1.0).contains(&self.flip_p) {
            return refuse("flip_p", self.flip_p.to_string(), "[0, 1]");
        }
        self.optimizer.validate().map_err(|reason| Error::Recipe(format!("{section}.{reason}")))
    }
}

/// A step of a training with labels.
#[derive(Clone, Copy, Debug)]
pub struct FineTuneStep {
    /// Optimiser steps done.
    pub step: usize,
    /// Steps of the whole training.
    pub steps: usize,
    /// Its loss, in nats.
    pub loss: f64,
}

/// What a training with labels reached.
#[derive(Clone, Debug)]
pub struct FineTuned {
    /// Share of test images that the classifier gets right, after the last step.
    pub top1: f64,
    /// Its 95 % interval over the choice of test images, by bootstrap.
    pub interval: ConfidenceInterval,
    /// Mean loss of each epoch, in nats.
    pub losses: Vec<f64>,
    /// The encoder after the last step; as it was if it is frozen.
    pub encoder: Params,
}

impl FineTuned {
    /// Accuracy and losses as an object.
    pub fn to_json(&self) -> Value {
        json!({ "top1": self.top1, "interval": [self.interval.low, self.interval.high], "losses": self.losses })
    }
}

/// An encoder with a linear classifier, from images to scores of classes.
struct Classifier {
    encoder: Box<dyn Backbone>,
    of_encoder: Params,
    norm: Option<BatchNorm>,
    linear: Linear,
    of_head: Params,
    classes: usize,
}

impl Classifier {
    /// With the weights `encoder`, or as it is initialised.
    fn new(
        protocol: &Protocol,
        encoder: Option<&Params>,
        classes: usize,
        config: &FineTuneConfig,
        device: &Device,
    ) -> Result<Self> {
        let of_encoder = Params::new(protocol.seed, DType::F32, device);
        let network = protocol.backbone.build(&of_encoder.root())?;
        if let Some(weights) = encoder {
            let weights = weights.all().into_iter().map(|(name, var)| (name, var.as_tensor().clone()));
            of_encoder.load(&weights.collect())?;
        }
        let of_head = Params::new(config.seed, DType::F32, device);
        let (scope, dim) = (of_head.root(), network.embed_dim());
        let plain = BatchNormConfig { affine: Affine::None, eps: 1e-6, ..BatchNormConfig::default() };
        let norm = config.frozen.then(|| BatchNorm::new(dim, plain, &scope.pp("norm"))).transpose()?;
        let init = LinearConfig {
            init: Some(Init::Normal { std: 0.01 }),
            bias_init: Some(Init::Const(0.0)),
            ..LinearConfig::default()
        };
        let linear = Linear::new(dim, classes, init, &scope.pp("linear"))?;
        Ok(Self { encoder: network, of_encoder, norm, linear, of_head, classes })
    }

    /// Scores `(B, C)` in training; only the classifier trains if there is a norm before it.
    fn train(&self, x: &Tensor, draws: DrawsAt) -> CandleResult<Tensor> {
        match &self.norm {
            None => self.linear.forward(&self.encoder.forward_train(x, Some(draws))?),
            Some(norm) => {
                let h = self.encoder.forward_t(x, false)?.detach();
                self.linear.forward(&norm.forward_t(&h, true)?)
            }
        }
    }
}

impl Backbone for Classifier {
    fn embed_dim(&self) -> usize {
        self.classes
    }

    fn forward_t(&self, x: &Tensor, train: bool) -> CandleResult<Tensor> {
        let h = self.encoder.forward_t(x, train)?;
        let h = self.norm.as_ref().map(|norm| norm.forward_t(&h, train)).transpose()?.unwrap_or(h);
        self.linear.forward(&h)
    }
}

/// Trains a classifier on labelled images, together with the encoder or on it as it is, and judges it on the test images,
/// which are not looked at before. Starts from the weights `encoder`, or without them from those that the network of
/// `protocol` is initialised with: the baseline that an encoder must beat. `encoder` itself is not changed.
///
/// A batch has at most as many images as there are. The result is the same on any number of threads. `progress` is told
/// every step.
///
/// # Errors
/// If the images have no labels, one cannot be decoded, or a number is not finite.
pub fn fine_tune(
    encoder: Option<&Params>,
    protocol: &Protocol,
    images: &Images,
    config: &FineTuneConfig,
    threads: usize,
    device: &Device,
    mut progress: impl FnMut(&FineTuneStep),
) -> Result<FineTuned> {
    let test = labelled_test(images)?;
    let (n, batch_size) = (images.train.len(), config.batch_size.min(images.train.len()));
    let sampler = Sampler { seed: config.seed, images: n, batch_size };
    let per_epoch = sampler.steps_per_epoch();
    let steps = config.epochs * per_epoch;
    let view = MultiView::new(&[ViewConfig {
        size: protocol.input_size,
        copies: 1,
        crop_scale: config.crop_scale,
        interpolation: Interpolation::Bicubic,
        flip_p: config.flip_p,
        ..ViewConfig::default()
    }])?;
    let normalize = Normalize::new(protocol.mean, protocol.std)?;
    let mut loader =
        Loader::labelled(sampler, Arc::clone(&images.train), view, normalize, steps, threads, device)?;

    let classifier = Classifier::new(protocol, encoder, images.class_names().len(), config, device)?;
    let mut trainable = classifier.of_head.trainable();
    let mut factors = Vec::new();
    if !config.frozen {
        for (name, var) in classifier.of_encoder.trainable() {
            let layers = protocol.backbone.layers_after(&name)?;
            factors.push((format!("backbone.{name}"), config.layer_decay.powi(layers as i32)));
            trainable.push((format!("backbone.{name}"), var));
        }
    }
    let rule = |name: &str| {
        let of_layer = factors.iter().find(|(own, _)| own == name);
        ParameterRule { lr_factor: of_layer.map_or(1.0, |(_, factor)| *factor), ..ParameterRule::default() }
    };
    let groups = config.optimizer.groups(&trainable, rule);
    let mut optimizer = Optimizer::with_groups(&config.optimizer, &trainable, groups)?;
    let warmup = (config.warmup_epochs * per_epoch as f64).round() as usize;
    let schedule = Schedule::warmup_cosine(config.optimizer.lr(), 0.0, warmup, steps);

    let mut losses = vec![0.0; config.epochs];
    for step in 0..steps {
        let (batch, labels) = loader
            .next_labelled()
            .ok_or_else(|| candle_core::Error::Msg("the loader ended early".to_owned()))??;
        let draws = DrawsAt { seed: config.seed, step: step as u64, first_sample: 0, layer: 0 };
        let scores = classifier.train(&batch.views[0], draws)?;
        let labels = Tensor::from_vec(labels, batch_size, device)?;
        let loss = cross_entropy(&scores, &labels, config.label_smoothing)?;
        let mut gradients = Gradients::default();
        gradients.accumulate(&trainable, &mut loss.backward()?, 1.0)?;
        let loss = f64::from(loss.to_scalar::<f32>()?);
        if !(loss.is_finite() && gradients.norm()?.is_finite()) {
            let tensor = "the loss of the classifier or its gradient".to_owned();
            return Err(Error::NonFinite { step: step + 1, tensor });
        }
        optimizer.step(&gradients, Rates::lr(schedule.at(step)))?;
        losses[step / per_epoch] += loss / per_epoch as f64;
        progress(&FineTuneStep { step: step + 1, steps, loss });
    }

    let scores = embed(&classifier, test, protocol, device)?;
    let found = scores.data().chunks_exact(classifier.classes).map(highest);
    let right: Vec<bool> = found.zip(scores.labels()).map(|(own, label)| own == *label as usize).collect();
    let mut rng = rng(0, Purpose::Evaluate, 0, 0, 0);
    let interval = accuracy_interval(&right, &BootstrapConfig::default(), &mut rng)?;
    let top1 = right.iter().filter(|right| **right).count() as f64 / right.len() as f64;
    Ok(FineTuned { top1, interval, losses, encoder: classifier.of_encoder })
}

/// The first of the highest scores.
fn highest(scores: &[f32]) -> usize {
    let mut best = 0;
    for (class, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = class;
        }
    }
    best
}
