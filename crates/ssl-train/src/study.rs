//! More than two accuracies of an encoder: few labels, clusters, retrieval, rank, what two views of an image share, and
//! what simple damages of the images do.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use serde_json::{Value, json};
use ssl_augment::{
    Image, MultiView, Normalize, ResizeCenterCrop, adjust_brightness, adjust_contrast, gaussian_blur, presets,
};
use ssl_backbones::Backbone;
use ssl_data::{Dataset, Tolerant};
use ssl_eval::{
    Bound, CriticConfig, Features, KMeansConfig, KsgConfig, LinearProbeConfig, LowShot, Queries,
    SgdProbeConfig, adjusted_rand_index, clustering_accuracy, critic_information, k_means, knn_accuracy,
    ksg_information, linear_probe, low_shot, mean_average_precision_at, normalized_mutual_information,
    principal_components, recall_at, sgd_probe,
};
use ssl_nn::{Purpose, Rng, rng};

use crate::error::{Error, Result};
use crate::evaluate::{Protocol, embed, labelled_test};
use crate::images::Images;
use crate::measure::Measures;

/// Draws of few labels whose accuracies are averaged.
const DRAWS: usize = 3;

/// The parts of the labels that a probe is told.
const FEW: [(&str, LowShot); 3] = [
    ("1 % of the labels", LowShot::Fraction(0.01)),
    ("10 % of the labels", LowShot::Fraction(0.1)),
    ("10 labels a class", LowShot::PerClass(10)),
];

/// Steps below which a probe by LARS says nothing of the features.
const LARS_STEPS: usize = 2000;

/// Ranks that retrieval looks at.
const RANKS: usize = 100;

/// Principal directions in which nearest neighbours estimate information; they fail honestly in many.
const DIRECTIONS: usize = 4;

/// Images of which two views are compared, at most.
const PAIRS: usize = 4000;

/// Images of one forward pass.
const BATCH: usize = 256;

/// How simple damages change a picture with values in `[0, 255]`, at three strengths each.
const DAMAGES: [Damage; 5] =
    [Damage::Noise, Damage::Blur, Damage::Darker, Damage::Brighter, Damage::LessContrast];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    Noise,
    Blur,
    Darker,
    Brighter,
    LessContrast,
}

/// One figure of a study.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What it belongs to, such as `few labels`.
    pub part: &'static str,
    /// What it is.
    pub name: String,
    /// Its value, in the unit that `part` has: fractions in `[0, 1]`, nats, or dimensions.
    pub value: f64,
    /// What it cannot exceed, if that is known and not 1.
    pub ceiling: Option<f64>,
}

/// The figures of an encoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Study {
    /// In the order of a table.
    pub figures: Vec<Figure>,
}

impl Study {
    /// As a list of objects.
    pub fn to_json(&self) -> Value {
        let figure =
            |f: &Figure| json!({ "part": f.part, "name": f.name, "value": f.value, "ceiling": f.ceiling });
        Value::Array(self.figures.iter().map(figure).collect())
    }
}

/// Studies `backbone` on labelled images. Two views of a test image are made by the augmentation `preset`; `progress` is told
/// each stage. The weights and running statistics of `backbone` are not touched.
///
/// # Errors
/// If the images have no labels, the preset is unknown, an image cannot be decoded, or a feature is not finite.
pub fn study(
    backbone: &dyn Backbone,
    protocol: &Protocol,
    images: &Images,
    preset: &str,
    device: &Device,
    mut progress: impl FnMut(&str),
) -> Result<Study> {
    let test_images = labelled_test(images)?;
    let views = views(preset, protocol)?;
    progress("features");
    let train = embed(backbone, &images.train, protocol, device)?;
    let test = embed(backbone, test_images, protocol, device)?;
    let classes = images.class_names().len();
    let mut figures = Vec::new();
    let mut put = |part, name: String, value, ceiling| figures.push(Figure { part, name, value, ceiling });
    progress("few labels");
    for (name, shots) in FEW {
        if let Some(mean) = few_labels(&train, &test, classes, shots, protocol.seed)? {
            put("linear probe with few labels", name.to_owned(), mean, None);
        }
    }
    progress("probes of papers");
    for (i, name) in SgdProbeConfig::NAMES.into_iter().enumerate() {
        let mut rng = rng(protocol.seed, Purpose::Evaluate, 7, i as u64, 0);
        let Some(config) = SgdProbeConfig::named(name) else { continue };
        // LARS needs many steps to move weights at all.
        if config.lars && config.steps(train.rows()) < LARS_STEPS {
            continue;
        }
        // One that diverges on these features is left out: its rate was chosen for others.
        if let Ok(found) = sgd_probe(&train, &test, classes, &config, &mut rng) {
            put("linear probe by SGD, as in papers", name.to_owned(), found.top1, None);
        }
    }
    progress("clusters");
    for (name, value) in clusters(&test, classes, protocol.seed)? {
        put("k-means on test images", name.to_owned(), value, None);
    }
    progress("retrieval");
    let queries = Queries::Others(&test);
    let k = RANKS.min(train.rows());
    put(
        "retrieval of training images",
        format!("mAP@{k}"),
        mean_average_precision_at(k, &train, queries)?,
        None,
    );
    put(
        "retrieval of training images",
        "recall@1".to_owned(),
        recall_at(1, &train, Queries::Others(&test))?,
        None,
    );
    progress("two views of each image");
    let pairs = paired_views(backbone, test_images, &views, protocol, device)?;
    for (name, value) in Measures::of(&pairs)?.values() {
        put("features of two views", name.to_owned(), value, None);
    }
    progress("information that views share");
    for (name, nats, ceiling) in shared_information(&pairs, protocol.seed)? {
        put("information that views share, nats", name, nats, ceiling);
    }
    progress("damaged images");
    for damage in DAMAGES {
        let accuracies = (1..=3).map(|strength| {
            let damaged = damaged(backbone, test_images, (damage, strength), protocol, device)?;
            Ok(knn_accuracy(&train, &damaged, classes, &protocol.knn)?)
        });
        let accuracies = accuracies.collect::<Result<Vec<f64>>>()?;
        let mean = accuracies.iter().sum::<f64>() / accuracies.len() as f64;
        put("kNN on damaged test images, mean of three strengths", damage.name().to_owned(), mean, None);
    }
    Ok(Study { figures })
}

/// The mean accuracy over a few draws; `None` if there are too few labels for such a part.
fn few_labels(
    train: &Features,
    test: &Features,
    classes: usize,
    shots: LowShot,
    seed: u64,
) -> Result<Option<f64>> {
    let mut sum = 0.0;
    for draw in 0..DRAWS {
        let mut rng = rng(seed, Purpose::Evaluate, 1, draw as u64, 0);
        let Ok(few) = low_shot(train, classes, shots, &mut rng) else { return Ok(None) };
        // Ten labels are too few to choose the penalty on some of them.
        let config = LinearProbeConfig { c_grid: vec![0.1], ..LinearProbeConfig::default() };
        sum += linear_probe(&few, test, classes, &config)?.top1;
    }
    Ok(Some(sum / DRAWS as f64))
}

fn clusters(test: &Features, classes: usize, seed: u64) -> Result<[(&'static str, f64); 3]> {
    let rows = Tensor::from_slice(test.data(), (test.rows(), test.dim()), &Device::Cpu)?;
    let lengths = (rows.sqr()?.sum_keepdim(1)?.sqrt()? + 1e-12)?;
    let rows = rows.broadcast_div(&lengths)?;
    let found =
        k_means(&rows, classes, &KMeansConfig::default(), &mut rng(seed, Purpose::Evaluate, 2, 0, 0))?;
    Ok([
        ("normalised mutual information", normalized_mutual_information(test.labels(), &found.clusters)?),
        ("adjusted Rand index", adjusted_rand_index(test.labels(), &found.clusters)?),
        ("accuracy of matched clusters", clustering_accuracy(test.labels(), &found.clusters)?),
    ])
}

/// Estimates of the information of the features `(n, 2, D)` of two views on each other.
fn shared_information(pairs: &Tensor, seed: u64) -> Result<Vec<(String, f64, Option<f64>)>> {
    let (n, _, d) = pairs.dims3()?;
    let rows = |rows: &Tensor| -> Result<Features> {
        let (n, d) = rows.dims2()?;
        Ok(Features::new(rows.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?, d, vec![0; n])?)
    };
    let side = |view: usize| pairs.narrow(1, view, 1)?.squeeze(1)?.contiguous();
    let (a, b) = (side(0)?, side(1)?);
    let (x, y) = (rows(&a)?, rows(&b)?);
    let mut found = Vec::new();
    let config = CriticConfig::default();
    // Every part of the images needs a batch.
    let batch_size = config.batch_size.min((n as f64 * config.validation_share) as usize).max(2);
    let config = CriticConfig { batch_size, ..config };
    let bounds = [
        ("InfoNCE critic", Bound::InfoNce),
        ("NWJ critic", Bound::Nwj),
        ("SMILE critic", Bound::smile()),
        ("MINE critic", Bound::DonskerVaradhan),
    ];
    for (i, (name, bound)) in bounds.into_iter().enumerate() {
        let mut rng = rng(seed, Purpose::Evaluate, 3, i as u64, 0);
        // Too few images for a held-out part are no error of the encoder.
        if let Ok(own) = critic_information(&x, &y, bound, &config, &mut rng) {
            found.push((name.to_owned(), own.nats, own.ceiling));
        }
    }
    let directions = DIRECTIONS.min(d);
    let along = principal_components(&Tensor::cat(&[&a, &b], 0)?, directions)?;
    let (x, y) = (rows(&along.narrow(0, 0, n)?)?, rows(&along.narrow(0, n, n)?)?);
    if let Ok(nats) = ksg_information(&x, &y, &KsgConfig::default()) {
        found.push((format!("nearest neighbours, {directions} principal directions"), nats, None));
    }
    Ok(found)
}

/// The first two views of an augmentation, of one size.
fn views(preset: &str, protocol: &Protocol) -> Result<MultiView> {
    let views = presets::by_name(preset, protocol.input_size, 1.0).ok_or_else(|| {
        Error::Recipe(format!("--views {preset} is unknown; available: {}", presets::names().join(", ")))
    })?;
    Ok(MultiView::new(&views)?)
}

/// Features `(n, 2, D)` of two views of each of the first test images.
fn paired_views(
    backbone: &dyn Backbone,
    set: &Tolerant,
    views: &MultiView,
    protocol: &Protocol,
    device: &Device,
) -> Result<Tensor> {
    let sizes = views.sizes();
    let second = usize::from(sizes.get(1).is_some_and(|size| *size == sizes[0]));
    let make = |image: &Image, index: usize, side: usize| {
        let pass = (side * (1 - second)) as u64;
        let made = views
            .views(image, |view| rng(protocol.seed, Purpose::Evaluate, 4 + pass, index as u64, view as u32));
        made.into_iter().nth(side * second)
    };
    let n = PAIRS.min(set.len());
    let sides = (0..2).map(|side| {
        let image = |index: usize, image: &Image| make(image, index, side);
        features(backbone, set, n, sizes[0], &image, protocol, device)
    });
    Ok(Tensor::stack(&sides.collect::<Result<Vec<_>>>()?, 1)?)
}

/// Features of the test images after a damage.
fn damaged(
    backbone: &dyn Backbone,
    set: &Tolerant,
    (damage, strength): (Damage, u32),
    protocol: &Protocol,
    device: &Device,
) -> Result<Features> {
    let transform = ResizeCenterCrop::evaluation(protocol.input_size)?;
    let image = |index: usize, image: &Image| {
        let mut rng = rng(protocol.seed, Purpose::Evaluate, 6, index as u64, strength);
        Some(damage.apply(transform.crop(image), f64::from(strength), &mut rng))
    };
    let n = set.len();
    let h = features(backbone, set, n, protocol.input_size, &image, protocol, device)?;
    let labels = (0..n).into_par_iter().map(|index| {
        let label = set.get(index)?.label;
        label.ok_or_else(|| Error::Recipe(format!("image {index} has no label")))
    });
    let (data, dim) = (h.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?, h.dim(1)?);
    Ok(Features::new(data, dim, labels.collect::<Result<_>>()?)?)
}

/// Features `(n, D)` of what `image` makes of the first `n` images.
fn features(
    backbone: &dyn Backbone,
    set: &Tolerant,
    n: usize,
    size: usize,
    image: &(dyn Fn(usize, &Image) -> Option<Image> + Sync),
    protocol: &Protocol,
    device: &Device,
) -> Result<Tensor> {
    let normalize = Normalize::new(protocol.mean, protocol.std)?;
    let mut parts = Vec::new();
    for start in (0..n).step_by(BATCH) {
        let count = BATCH.min(n - start);
        let mut pixels = vec![0f32; count * 3 * size * size];
        pixels.par_chunks_mut(3 * size * size).enumerate().try_for_each(|(row, out)| {
            let sample = set.get(start + row)?;
            let made = image(start + row, &sample.image)
                .ok_or_else(|| Error::Recipe("an augmentation made no view".to_owned()))?;
            Ok::<_, Error>(normalize.write_chw(&made, out)?)
        })?;
        let x = Tensor::from_vec(pixels, (count, 3, size, size), device)?;
        parts.push(backbone.forward_t(&x, false)?.detach());
    }
    Ok(Tensor::cat(&parts, 0)?)
}

impl Damage {
    fn name(self) -> &'static str {
        match self {
            Self::Noise => "noise",
            Self::Blur => "blur",
            Self::Darker => "darker",
            Self::Brighter => "brighter",
            Self::LessContrast => "less contrast",
        }
    }

    /// The image with this damage at strength 1, 2 or 3.
    fn apply(self, mut image: Image, strength: f64, rng: &mut Rng) -> Image {
        match self {
            Self::Noise => {
                for value in image.data_mut() {
                    let noise = 12.0 * strength * normal(rng);
                    *value = (f64::from(*value) + noise).round().clamp(0.0, 255.0) as u8;
                }
                image
            }
            Self::Blur => gaussian_blur(image, 0.4 * strength),
            Self::Darker => adjust_brightness(image, 1.0 - 0.2 * strength),
            Self::Brighter => adjust_brightness(image, 1.0 + 0.4 * strength),
            Self::LessContrast => adjust_contrast(image, 1.0 - 0.25 * strength),
        }
    }
}

/// A normal number, by Box and Muller.
fn normal(rng: &mut Rng) -> f64 {
    let uniform = |rng: &mut Rng| ssl_augment::random::uniform(rng, [0.0, 1.0]);
    let (u, v) = (1.0 - uniform(rng), uniform(rng));
    (-2.0 * u.max(1e-300).ln()).sqrt() * (std::f64::consts::TAU * v).cos()
}
