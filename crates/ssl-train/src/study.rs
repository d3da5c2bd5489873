//! More than two accuracies of an encoder: few labels, probes as papers train them, clusters, retrieval, rank, what two views
//! of an image share, and what simple damages of the images do.

use candle_core::{DType, Device, Tensor};
use rayon::prelude::*;
use serde_json::{Value, json};
use ssl_augment::{Image, MultiView, Normalize, ResizeCenterCrop, presets};
use ssl_backbones::{Backbone, LastBlocks};
use ssl_data::{Dataset, Tolerant};
use ssl_eval::{
    Bound, CriticConfig, Features, KMeansConfig, KsgConfig, LinearProbeConfig, LowShot, Queries,
    SgdProbeConfig, adjusted_rand_index, clustering_accuracy, critic_information, k_means, knn_accuracy,
    ksg_information, linear_probe, low_shot, mean_average_precision_at, normalized_mutual_information,
    principal_components, recall_at, sgd_probe_of,
};
use ssl_nn::{Purpose, Rng, rng};

use crate::damage::Damage;
use crate::error::{Error, Result};
use crate::evaluate::{Protocol, embed, labelled_test};
use crate::forward::forward;
use crate::images::Images;
use crate::measure::Measures;

/// Draws of few labels whose accuracies are averaged.
const DRAWS: u64 = 3;

/// The parts of the labels that a probe is told.
const FEW: [(&str, LowShot); 3] = [
    ("1 % of the labels", LowShot::Fraction(0.01)),
    ("10 % of the labels", LowShot::Fraction(0.1)),
    ("10 labels a class", LowShot::PerClass(10)),
];

/// Steps below which a probe by LARS says nothing of the features.
const LARS_STEPS: usize = 2000;

/// Blocks of a vision transformer that the probes of DINO and DINOv2 look at.
const BLOCKS: usize = 4;

/// Ranks that retrieval looks at.
const RANKS: usize = 100;

/// Principal directions in which nearest neighbours estimate information; they fail honestly in many.
const DIRECTIONS: usize = 4;

/// Images of which two views are compared, at most.
const PAIRS: usize = 4000;

/// The part that measures the features of two views.
const VIEWS: &str = "features of two views";

/// Images of one forward pass.
const BATCH: usize = 256;

/// One figure of a study.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// What it belongs to, such as `linear probe with few labels`.
    pub part: &'static str,
    /// What it is.
    pub name: String,
    /// Its value, in the unit that `part` has: fractions in `[0, 1]`, nats, or dimensions. Or why there is none.
    pub value: std::result::Result<f64, String>,
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
    /// As a list of objects; one without a value says in `missing` why.
    pub fn to_json(&self) -> Value {
        let figure = |f: &Figure| {
            let (value, missing) = (f.value.as_ref().ok(), f.value.as_ref().err());
            json!({ "part": f.part, "name": f.name, "value": value, "ceiling": f.ceiling, "missing": missing })
        };
        Value::Array(self.figures.iter().map(figure).collect())
    }

    fn put(&mut self, part: &'static str, name: impl Into<String>, value: f64) {
        self.figures.push(Figure { part, name: name.into(), value: Ok(value), ceiling: None });
    }

    /// A figure that there is not.
    fn leave_out(&mut self, part: &'static str, name: impl Into<String>, reason: impl ToString) {
        let (name, value) = (name.into(), Err(reason.to_string()));
        self.figures.push(Figure { part, name, value, ceiling: None });
    }
}

/// What is studied.
struct Subject<'a> {
    backbone: &'a dyn Backbone,
    protocol: &'a Protocol,
    set: &'a Tolerant,
    views: MultiView,
    device: &'a Device,
    train: Features,
    test: Features,
    /// Of the last blocks of a vision transformer, on training and test images.
    blocks: Option<(Features, Features)>,
    classes: usize,
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
    let set = labelled_test(images)?;
    let views = presets::by_name(preset, protocol.input_size, 1.0).ok_or_else(|| {
        let names = presets::names().join(", ");
        Error::Recipe(format!("the augmentation \"{preset}\" is unknown; available: {names}"))
    })?;
    progress("features");
    let subject = Subject {
        backbone,
        protocol,
        set,
        views: MultiView::new(&views)?,
        device,
        train: embed(backbone, &images.train, protocol, device)?,
        test: embed(backbone, set, protocol, device)?,
        blocks: match backbone.vision_transformer() {
            Some(vit) => {
                let last = LastBlocks::new(vit, BLOCKS);
                let of = |set| embed(&last, set, protocol, device);
                Some((of(&images.train)?, of(set)?))
            }
            None => None,
        },
        classes: images.class_names().len(),
    };
    let mut study = Study { figures: Vec::new() };
    progress("few labels");
    subject.few_labels(&mut study)?;
    progress("probes of papers");
    subject.probes(&mut study)?;
    progress("clusters and retrieval");
    subject.clusters(&mut study)?;
    subject.retrieval(&mut study)?;
    progress("two views of each image");
    let pairs = subject.pairs()?;
    for (name, value) in Measures::of(&pairs)?.all() {
        match value {
            Some(value) => study.put(VIEWS, name, value),
            None => study.leave_out(VIEWS, name, "not defined for these features"),
        }
    }
    progress("information that views share");
    subject.shared_information(&pairs, &mut study)?;
    progress("damaged images");
    subject.damages(&mut study)?;
    Ok(study)
}

impl Subject<'_> {
    /// The generator of part `part` of the study.
    fn rng(&self, part: u64, sample: u64, view: u32) -> Rng {
        rng(self.protocol.seed, Purpose::Evaluate, part, sample, view)
    }

    /// Mean accuracies over a few draws, where there are as many labels.
    fn few_labels(&self, study: &mut Study) -> Result<()> {
        // Ten labels are too few to choose the penalty on some of them.
        let config = LinearProbeConfig { c_grid: vec![0.1], ..LinearProbeConfig::default() };
        for (name, shots) in FEW {
            let draw = |draw| low_shot(&self.train, self.classes, shots, &mut self.rng(1, draw, 0));
            let part = "linear probe with few labels";
            let draws = match (0..DRAWS).map(draw).collect::<ssl_eval::Result<Vec<_>>>() {
                Ok(draws) => draws,
                Err(reason) => {
                    study.leave_out(part, name, reason);
                    continue;
                }
            };
            let mut sum = 0.0;
            for few in &draws {
                sum += linear_probe(few, &self.test, self.classes, &config)?.top1;
            }
            study.put(part, name, sum / DRAWS as f64);
        }
        Ok(())
    }

    fn probes(&self, study: &mut Study) -> Result<()> {
        for (i, name) in SgdProbeConfig::NAMES.into_iter().enumerate() {
            let Some(config) = SgdProbeConfig::named(name) else { continue };
            let part = "linear probe by SGD, as in papers";
            let steps = config.steps(self.train.rows());
            if config.lars && steps < LARS_STEPS {
                let reason =
                    format!("LARS hardly moves weights in {steps} steps, takes at least {LARS_STEPS}");
                study.leave_out(part, name, reason);
                continue;
            }
            let mut rng = self.rng(7, i as u64, 0);
            let inputs = self.probe_inputs(name)?;
            let (names, inputs): (Vec<_>, Vec<_>) = inputs.into_iter().unzip();
            match sgd_probe_of(&inputs, self.classes, &config, &mut rng) {
                Ok(found) => study.put(part, format!("{name}{}", names[found.input]), found.top1),
                // It may diverge on these features: its rate was chosen for others.
                Err(reason) => study.leave_out(part, name, reason),
            }
        }
        Ok(())
    }

    /// The features that the probe of a paper chooses from, with what is told of each.
    fn probe_inputs(&self, name: &str) -> Result<Vec<(String, (Features, Features))>> {
        let Some((train, test)) = &self.blocks else {
            return Ok(vec![(String::new(), (self.train.clone(), self.test.clone()))]);
        };
        let width = self.train.dim();
        let blocks = train.dim() / width - 1;
        let choices: &[(usize, bool)] = match name {
            "dino" => &[(blocks, false)],
            "dinov2" => &[(1, false), (blocks, false), (1, true), (blocks, true)],
            _ => return Ok(vec![(String::new(), (self.train.clone(), self.test.clone()))]),
        };
        let input = |&(last, mean): &(usize, bool)| {
            let end = blocks + usize::from(mean);
            let columns = (blocks - last) * width..end * width;
            let with_mean = if mean { " and mean of patches" } else { "" };
            let told = match last {
                1 => format!(", last block{with_mean}"),
                _ => format!(", last {last} blocks{with_mean}"),
            };
            Ok((told, (train.columns(columns.clone())?, test.columns(columns)?)))
        };
        choices.iter().map(input).collect()
    }

    fn clusters(&self, study: &mut Study) -> Result<()> {
        let test = &self.test;
        let rows = Tensor::from_slice(test.data(), (test.rows(), test.dim()), &Device::Cpu)?;
        let rows = rows.broadcast_div(&(rows.sqr()?.sum_keepdim(1)?.sqrt()? + 1e-12)?)?;
        let found = k_means(&rows, self.classes, &KMeansConfig::default(), &mut self.rng(2, 0, 0))?.clusters;
        let part = "k-means on test images";
        study.put(
            part,
            "normalised mutual information",
            normalized_mutual_information(test.labels(), &found)?,
        );
        study.put(part, "adjusted Rand index", adjusted_rand_index(test.labels(), &found)?);
        study.put(part, "accuracy of matched clusters", clustering_accuracy(test.labels(), &found)?);
        Ok(())
    }

    fn retrieval(&self, study: &mut Study) -> Result<()> {
        let (part, k) = ("retrieval of training images", RANKS.min(self.train.rows()));
        let found = mean_average_precision_at(k, &self.train, Queries::Others(&self.test))?;
        study.put(part, format!("mAP@{k}"), found);
        study.put(part, "recall@1", recall_at(1, &self.train, Queries::Others(&self.test))?);
        Ok(())
    }

    /// Features `(n, 2, D)` of two views of each of the first test images: two that the augmentation makes together, or the
    /// only one twice.
    fn pairs(&self) -> Result<Tensor> {
        let sizes = self.views.sizes();
        let together = sizes.get(1).is_some_and(|size| *size == sizes[0]);
        let sides = (0..2).map(|side| {
            let (view, draw) = if together { (side, 0) } else { (0, side as u64) };
            let make = |index: usize, image: &Image| {
                let views = self.views.views(image, |view| self.rng(4 + draw, index as u64, view as u32));
                views.into_iter().nth(view)
            };
            self.features(PAIRS.min(self.set.len()), sizes[0], &make)
        });
        Ok(Tensor::stack(&sides.collect::<Result<Vec<_>>>()?, 1)?)
    }

    /// Estimates of the information of the features `(n, 2, D)` of two views on each other.
    fn shared_information(&self, pairs: &Tensor, study: &mut Study) -> Result<()> {
        let part = "information that views share, nats";
        let (n, _, d) = pairs.dims3()?;
        let side = |view: usize| pairs.narrow(1, view, 1)?.squeeze(1)?.contiguous();
        let (a, b) = (side(0)?, side(1)?);
        let (x, y) = (unlabelled(&a)?, unlabelled(&b)?);
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
            match critic_information(&x, &y, bound, &config, &mut self.rng(3, i as u64, 0)) {
                Ok(found) => {
                    let (name, value, ceiling) = (name.to_owned(), Ok(found.nats), found.ceiling);
                    study.figures.push(Figure { part, name, value, ceiling });
                }
                // Too few images for a held-out part are no error of the encoder.
                Err(reason) => study.leave_out(part, name, reason),
            }
        }
        let directions = DIRECTIONS.min(d);
        let along = principal_components(&Tensor::cat(&[&a, &b], 0)?, directions)?;
        let (x, y) = (unlabelled(&along.narrow(0, 0, n)?)?, unlabelled(&along.narrow(0, n, n)?)?);
        let name = format!("nearest neighbours, {directions} principal directions");
        match ksg_information(&x, &y, &KsgConfig::default()) {
            Ok(nats) => study.put(part, name, nats),
            Err(reason) => study.leave_out(part, name, reason),
        }
        Ok(())
    }

    fn damages(&self, study: &mut Study) -> Result<()> {
        let size = self.protocol.input_size;
        let transform = ResizeCenterCrop::evaluation(size)?;
        for damage in Damage::ALL {
            let mut sum = 0.0;
            for strength in Damage::STRENGTHS {
                let make = |index: usize, image: &Image| {
                    let mut rng = self.rng(6, index as u64, strength);
                    Some(damage.apply(transform.crop(image), strength, &mut rng))
                };
                let h = self.features(self.set.len(), size, &make)?.to_dtype(DType::F32)?;
                let (data, dim) = (h.flatten_all()?.to_vec1()?, h.dim(1)?);
                let damaged = Features::new(data, dim, self.test.labels().to_vec())?;
                sum += knn_accuracy(&self.train, &damaged, self.classes, &self.protocol.knn)?;
            }
            let part = "kNN on damaged test images, mean of three strengths";
            study.put(part, damage.name(), sum / Damage::STRENGTHS.len() as f64);
        }
        Ok(())
    }

    /// Features `(n, D)` of what `make` makes of the first `n` test images: an image of `size` pixels.
    fn features(
        &self,
        n: usize,
        size: usize,
        make: &(dyn Fn(usize, &Image) -> Option<Image> + Sync),
    ) -> Result<Tensor> {
        let normalize = Normalize::new(self.protocol.mean, self.protocol.std)?;
        let batch = |start: usize| {
            let count = BATCH.min(n - start);
            let mut pixels = vec![0f32; count * 3 * size * size];
            pixels.par_chunks_mut(3 * size * size).enumerate().try_for_each(|(row, out)| {
                let sample = self.set.get(start + row)?;
                let made = make(start + row, &sample.image)
                    .ok_or_else(|| Error::Recipe("an augmentation made no view".to_owned()))?;
                Ok::<_, Error>(normalize.write_chw(&made, out)?)
            })?;
            Ok(Tensor::from_vec(pixels, (count, 3, size, size), self.device)?)
        };
        forward(self.backbone, (0..n).step_by(BATCH).map(batch))
    }
}

/// Rows `(N, D)` as features of which labels do not matter.
fn unlabelled(rows: &Tensor) -> Result<Features> {
    let (n, d) = rows.dims2()?;
    Ok(Features::new(rows.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?, d, vec![0; n])?)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ssl_backbones::BackboneConfig;
    use ssl_data::{OnError, Sample};
    use ssl_eval::KnnConfig;

    use super::*;

    /// Images of two classes that alternate, dark and bright.
    #[derive(Debug)]
    struct Greys(Vec<String>, usize);

    impl Dataset for Greys {
        fn len(&self) -> usize {
            self.1
        }

        fn get(&self, index: usize) -> ssl_data::Result<Sample> {
            let pixel = |at: usize| (100 * (index % 2) + 7 * (index + 1) * (at % 13) % 100) as u8;
            let image = Image::new(8, 8, (0..3 * 8 * 8).map(pixel).collect()).unwrap();
            Ok(Sample { image, label: self.label(index), caption: None, partner: None })
        }

        fn label(&self, index: usize) -> Option<u32> {
            Some((index % 2) as u32)
        }

        fn class_names(&self) -> &[String] {
            &self.0
        }

        fn fingerprint(&self) -> String {
            String::new()
        }

        fn describe(&self) -> String {
            String::new()
        }
    }

    /// Means of the quarters of an image, over all channels.
    struct Quarters;

    impl Backbone for Quarters {
        fn embed_dim(&self) -> usize {
            4
        }

        fn forward_t(&self, x: &Tensor, _: bool) -> candle_core::Result<Tensor> {
            x.avg_pool2d(4)?.mean(1)?.flatten_from(1)
        }
    }

    #[test]
    fn what_few_images_cannot_tell_is_named_with_its_reason() {
        let greys = |n| {
            let names = ["dark", "bright"].map(str::to_owned).to_vec();
            Arc::new(Tolerant::new(Box::new(Greys(names, n)), OnError::Stop))
        };
        let images = Images {
            train: greys(12),
            test: Some(greys(6)),
            description: String::new(),
            fingerprint: String::new(),
        };
        let protocol = Protocol {
            backbone: BackboneConfig::named("resnet18").unwrap(),
            input_size: 8,
            mean: [0.5; 3],
            std: [0.25; 3],
            knn: KnnConfig::default(),
            seed: 0,
        };
        let study = study(&Quarters, &protocol, &images, "simclr", &Device::Cpu, |_| ()).unwrap();
        for (name, reason) in [
            ("10 labels a class", "allowed is"),
            ("simsiam", "LARS hardly moves weights in 90 steps"),
            ("alpha_req", "not defined for these features"),
            ("MINE critic", "the smallest of the parts"),
        ] {
            let json = study.to_json();
            let figure = json.as_array().unwrap().iter().find(|figure| figure["name"] == name).unwrap();
            assert_eq!(figure["value"], Value::Null, "{figure}");
            assert!(figure["missing"].as_str().unwrap().contains(reason), "{figure}");
        }
        // What there is has no reason to be missing, and is a number.
        let values = study.figures.iter().filter_map(|figure| figure.value.as_ref().ok());
        assert!(values.clone().count() > 20 && values.clone().all(|value| value.is_finite()), "{study:?}");
    }
}
