//! Judges an encoder on labelled images, beside two baselines that cost no training.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use ssl_augment::{Normalize, ResizeCenterCrop};
use ssl_backbones::{Backbone, BackboneConfig, EncoderInfo};
use ssl_data::{Dataset, Tolerant};
use ssl_eval::{
    BootstrapConfig, ConfidenceInterval, Features, KnnConfig, LinearProbeConfig, accuracy, accuracy_interval,
    extract, knn_predict, linear_probe, raw_pixels,
};
use ssl_nn::{Params, Purpose, rng};

use crate::error::{Error, Result};
use crate::images::Images;
use crate::recipe::{Recipe, is_default};
use crate::zero_shot::ZeroShot;

/// Images of one forward pass.
const BATCH: usize = 256;

/// How the encoder is judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalConfig {
    /// Neighbours of the kNN classifier.
    pub knn_k: usize,
    /// Temperature of its votes.
    pub knn_temperature: f64,
    /// Epochs between evaluations during the training; 0 for none before its end. They do not change the run.
    #[serde(default, skip_serializing_if = "is_default")]
    pub every_epochs: usize,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self { knn_k: 20, knn_temperature: 0.07, every_epochs: 0 }
    }
}

impl EvalConfig {
    /// Checks every setting.
    pub(crate) fn validate(&self) -> Result<()> {
        let Self { knn_k, knn_temperature, .. } = *self;
        if knn_k == 0 || !(knn_temperature > 0.0 && knn_temperature.is_finite()) {
            return Err(Error::Recipe(format!(
                "eval.knn_k = {knn_k} must be at least 1 and eval.knn_temperature = {knn_temperature} positive"
            )));
        }
        Ok(())
    }
}

/// Everything that an accuracy depends on besides the weights.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// Architecture, for the untrained baseline.
    pub backbone: BackboneConfig,
    /// Side of the input in pixels: images are resized to 8/7 of it and cropped in the middle, or left alone if they
    /// have that size.
    pub input_size: usize,
    /// Mean of each channel.
    pub mean: [f64; 3],
    /// Standard deviation of each channel.
    pub std: [f64; 3],
    /// The kNN classifier.
    pub knn: KnnConfig,
    /// Seed of the untrained baseline.
    pub seed: u64,
}

impl Protocol {
    /// The protocol that belongs to a run.
    pub(crate) fn of_recipe(recipe: &Recipe) -> Self {
        Self {
            backbone: recipe.backbone.clone(),
            input_size: recipe.augment.size,
            mean: recipe.augment.mean,
            std: recipe.augment.std,
            knn: KnnConfig { k: recipe.eval.knn_k, temperature: recipe.eval.knn_temperature },
            seed: recipe.seed,
        }
    }

    /// The protocol that belongs to an encoder file.
    pub fn of_encoder(info: &EncoderInfo, knn: KnnConfig, seed: u64) -> Self {
        let EncoderInfo { backbone, input_size, mean, std, .. } = info.clone();
        Self { backbone, input_size, mean, std, knn, seed }
    }
}

/// Accuracies on the test images, fractions in `[0, 1]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scores {
    /// Weighted k nearest neighbours.
    pub knn: f64,
    /// Linear probe.
    pub linear: f64,
    /// Inverse regularisation that the probe chose.
    pub linear_c: f64,
    /// Whether the probe's optimiser reached its tolerance.
    pub linear_converged: bool,
    /// 95 % intervals of both accuracies over the choice of test images, by bootstrap.
    pub intervals: [ConfidenceInterval; 2],
}

/// What an encoder must beat.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Baselines {
    /// The normalised pixels that the encoder sees.
    pub pixels: Scores,
    /// The same network as it was initialised.
    pub untrained: Scores,
}

/// An encoder's accuracies beside its baselines', and how they were measured.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// The encoder.
    pub encoder: Scores,
    /// The baselines.
    pub baselines: Baselines,
    /// Classification by texts, of a method that knows texts.
    pub zero_shot: Option<ZeroShot>,
    /// How all were measured.
    pub protocol: Protocol,
}

impl Evaluation {
    /// The fields that `result.json` has of an evaluation.
    pub fn to_json(&self) -> Map<String, Value> {
        let pair = |s: &Scores| json!({ "knn": s.knn, "linear": s.linear });
        let bounds = |interval: &ConfidenceInterval| [interval.low, interval.high];
        let Self { encoder, baselines, zero_shot, protocol } = self;
        let features = match protocol.backbone.pooling().unwrap_or_default() {
            "token" => "class token",
            "mean" => "mean of the patches",
            "mean_norm" => "norm of the mean of the patches",
            _ => "global average pool",
        };
        let fields = json!({
            "knn": { "top1": encoder.knn, "interval": bounds(&encoder.intervals[0]), "k": protocol.knn.k, "temperature": protocol.knn.temperature },
            "linear": { "top1": encoder.linear, "interval": bounds(&encoder.intervals[1]), "c": encoder.linear_c, "converged": encoder.linear_converged },
            "baselines": { "pixels": pair(&baselines.pixels), "untrained": pair(&baselines.untrained) },
            "protocol": {
                "features": format!("eval mode, {features}"),
                "knn": "cosine, weights exp(s / temperature)",
                "interval": "95 % over the choice of test images, percentiles of 2,000 bootstrap resamples",
                "linear": "multinomial logistic regression on standardised features, C by a hold-out of the training images",
                "input_size": protocol.input_size,
                "mean": protocol.mean,
                "std": protocol.std,
                "untrained_seed": protocol.seed,
            },
        });
        let mut fields = match fields {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        fields.extend(zero_shot.as_ref().map(|zero_shot| ("zero_shot".to_owned(), zero_shot.to_json())));
        fields
    }
}

/// Accuracies of `backbone`, of the pixels and of the untrained network, by one protocol. `progress` is told each stage.
///
/// # Errors
/// If the images have no labels, one cannot be decoded, or a feature is not finite.
pub fn evaluate(
    backbone: &dyn Backbone,
    protocol: &Protocol,
    images: &Images,
    device: &Device,
    progress: impl FnMut(&str),
) -> Result<Evaluation> {
    judge(backbone, protocol, images, device, progress, |_| Ok(None))
}

/// [`evaluate`], and `zero_shot` of the encoder's embeddings of the test images.
pub(crate) fn judge(
    backbone: &dyn Backbone,
    protocol: &Protocol,
    images: &Images,
    device: &Device,
    mut progress: impl FnMut(&str),
    zero_shot: impl FnOnce(&Features) -> Result<Option<ZeroShot>>,
) -> Result<Evaluation> {
    let test = labelled_test(images)?;
    let pixels = |set: &Tolerant| -> Result<Features> { Ok(raw_pixels(batches(set, protocol, device)?)?) };
    let embed = |backbone: &dyn Backbone, set: &Tolerant| embed(backbone, set, protocol, device);
    let classes = images.class_names().len();
    let score = |train: &Features, test: &Features| scores(train, test, classes, &protocol.knn);
    progress("features of the trained encoder");
    let test_features = embed(backbone, test)?;
    let zero_shot = zero_shot(&test_features)?;
    let encoder = score(&embed(backbone, &images.train)?, &test_features)?;
    progress("features of the untrained network");
    let params = Params::new(protocol.seed, DType::F32, device);
    let fresh = protocol.backbone.build(&params.root().pp("backbone"))?;
    let untrained = score(&embed(&*fresh, &images.train)?, &embed(&*fresh, test)?)?;
    progress("raw pixels");
    let pixels = score(&pixels(&images.train)?, &pixels(test)?)?;
    let baselines = Baselines { pixels, untrained };
    Ok(Evaluation { encoder, baselines, zero_shot, protocol: protocol.clone() })
}

/// Accuracies of `backbone` alone.
pub(crate) fn score(
    backbone: &dyn Backbone,
    protocol: &Protocol,
    images: &Images,
    device: &Device,
) -> Result<Scores> {
    let test = labelled_test(images)?;
    let embed = |set: &Tolerant| embed(backbone, set, protocol, device);
    scores(&embed(&images.train)?, &embed(test)?, images.class_names().len(), &protocol.knn)
}

pub(crate) fn labelled_test(images: &Images) -> Result<&Tolerant> {
    images.test.as_deref().ok_or_else(|| {
        Error::Recipe("the data has no labels, so there is nothing to evaluate against".to_owned())
    })
}

pub(crate) fn embed(
    backbone: &dyn Backbone,
    set: &Tolerant,
    protocol: &Protocol,
    device: &Device,
) -> Result<Features> {
    Ok(extract(backbone, batches(set, protocol, device)?)?)
}

pub(crate) fn scores(train: &Features, test: &Features, classes: usize, knn: &KnnConfig) -> Result<Scores> {
    let linear = linear_probe(train, test, classes, &LinearProbeConfig::default())?;
    let nearest = knn_predict(train, test, classes, knn)?;
    let interval = |found: &[u32]| {
        let right: Vec<bool> = found.iter().zip(test.labels()).map(|(own, label)| own == label).collect();
        // Always the same resamples, so that an evaluation can be repeated to the bit.
        accuracy_interval(&right, &BootstrapConfig::default(), &mut rng(0, Purpose::Evaluate, 0, 0, 0))
    };
    Ok(Scores {
        knn: accuracy(&nearest.classes, test.labels())?,
        linear: linear.top1,
        linear_c: linear.c,
        linear_converged: linear.converged,
        intervals: [interval(&nearest.classes)?, interval(&linear.classes)?],
    })
}

/// The images of `set` in order, resized, cropped and normalised.
fn batches<'a>(
    set: &'a Tolerant,
    protocol: &Protocol,
    device: &'a Device,
) -> Result<impl Iterator<Item = candle_core::Result<(Tensor, Vec<u32>)>> + 'a> {
    let transform = ResizeCenterCrop::evaluation(protocol.input_size)?;
    let normalize = Normalize::new(protocol.mean, protocol.std)?;
    let size = protocol.input_size;
    let starts = (0..set.len()).step_by(BATCH);
    Ok(starts.map(move |start| {
        let n = BATCH.min(set.len() - start);
        let mut pixels = vec![0f32; n * 3 * size * size];
        let labels = pixels.par_chunks_mut(3 * size * size).enumerate().map(|(row, out)| {
            let sample = set.get(start + row).map_err(candle_core::Error::wrap)?;
            normalize.write_chw(&transform.crop(&sample.image), out).map_err(candle_core::Error::wrap)?;
            sample.label.ok_or_else(|| candle_core::Error::Msg(format!("image {} has no label", start + row)))
        });
        let labels = labels.collect::<candle_core::Result<Vec<u32>>>()?;
        Ok((Tensor::from_vec(pixels, (n, 3, size, size), device)?, labels))
    }))
}
