//! SeLa, self-labelling (Asano et al., 2020, <https://arxiv.org/abs/1911.05371>; official code yukimasano/self-label).
//!
//! Every image has a label for each of several heads, and the network learns them by cross-entropy, from one view. At
//! certain times the labels are found anew: the network predicts all images, and [`SelfLabels`] gives every label the same
//! share of them. Equal shares are what keeps the features apart: `max_iterations = 0` takes them away.
//!
//! The label steps see the views and the batch norms of training, without gradients. Their times depend on the length of
//! the run alone, so that a resumed run has the same.

use std::ops::RangeInclusive;

use candle_core::{D, DType, Result, Tensor, Var, bail};
use serde::{Deserialize, Serialize};
use ssl_backbones::{Backbone, BackboneConfig};
use ssl_losses::SelfLabels;
use ssl_nn::{Init, Params, Purpose, cross_entropy, linear, log_softmax, permutation, rng};

use crate::checks;
use crate::clusters::{ceiling, distinct, prediction_information};
use crate::config::{Settings, TrainingData};
use crate::method::{Batch, Method, StepContext, StepOutput};
use crate::safeguard::Safeguard;

/// Settings of SeLa; the defaults are the paper's for ImageNet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SelaConfig {
    /// Heads, each with labels of its own.
    pub heads: usize,
    /// K, the labels of a head; at most the number of images.
    pub labels: usize,
    /// λ: how close labels are to the best balanced assignment.
    pub lambda: f64,
    /// Change of the solver's factors, summed over the images, at which it ends.
    pub tolerance: f64,
    /// Most iterations of the solver; 0 for the label that the network finds most probable, which gathers the images at
    /// few labels.
    pub max_iterations: usize,
    /// Label steps of a run.
    pub label_steps: usize,
    /// When they happen.
    pub label_times: LabelTimes,
    /// Heads that get new labels in a label step, in turns.
    pub heads_per_label_step: usize,
}

/// How label steps are spread over a run; the first is always at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LabelTimes {
    /// At the squares of equal distances, more of them early: ImageNet.
    Quadratic,
    /// At equal distances: CIFAR.
    Uniform,
}

impl Default for SelaConfig {
    fn default() -> Self {
        Self {
            heads: 10,
            labels: 3000,
            lambda: 25.0,
            tolerance: 0.1,
            max_iterations: 10_000,
            label_steps: 100,
            label_times: LabelTimes::Quadratic,
            heads_per_label_step: 10,
        }
    }
}

/// As many heads as anyone takes.
const MAX_HEADS: usize = 1000;

/// Epochs beyond the end of a run over which the official code spreads the label steps.
const BEYOND: f64 = 1.01;

impl Settings for SelaConfig {
    fn validate(&self) -> std::result::Result<(), String> {
        checks::count("heads", self.heads, 1..=MAX_HEADS)?;
        checks::count("labels", self.labels, 2..=1_000_000)?;
        checks::number("lambda", self.lambda, 0.01..=1000.0)?;
        checks::number("tolerance", self.tolerance, 1e-12..=1e12)?;
        checks::count("max_iterations", self.max_iterations, 0..=10_000_000)?;
        checks::count("label_steps", self.label_steps, 1..=100_000)?;
        checks::count("heads_per_label_step", self.heads_per_label_step, 1..=self.heads)
    }

    fn safeguard(&self) -> Safeguard {
        Safeguard::new(
            "the equal shares of images that all labels get",
            "too few label steps for the labels to follow the features, or more labels than the images can fill",
            "more method.label_steps, fewer method.labels, a larger method.lambda",
        )
        .unless(self.max_iterations == 0, "max_iterations", 0, Self::default().max_iterations)
    }

    fn build(
        &self,
        backbone: &BackboneConfig,
        params: &Params,
        data: &TrainingData,
    ) -> Result<Box<dyn Method>> {
        Ok(Box::new(Sela::new(self, backbone, params, data.images)?))
    }

    fn augmentation(&self) -> &'static str {
        "sela"
    }
}

impl SelaConfig {
    /// The label steps that come before the optimiser step `step`, numbered from 0.
    fn label_steps_before(&self, context: &StepContext) -> impl Iterator<Item = usize> {
        let span = context.total_steps as f64 + BEYOND * context.steps_per_epoch as f64;
        let (count, times, step) = (self.label_steps, self.label_times, context.step);
        (0..count).filter(move |i| {
            let share = *i as f64 / (count - 1).max(1) as f64;
            let share = if times == LabelTimes::Quadratic { share * share } else { share };
            (span * share).ceil() as usize == step
        })
    }

    /// The heads that get new labels before the step.
    fn heads_before(&self, context: &StepContext) -> Vec<usize> {
        let turn = self.heads_per_label_step;
        let heads = self.label_steps_before(context).flat_map(|i| (0..turn).map(move |j| i * turn + j));
        let mut heads: Vec<usize> = heads.map(|head| head % self.heads).collect();
        heads.sort_unstable();
        heads.dedup();
        heads
    }
}

/// SeLa with its encoder, heads and labels.
pub struct Sela {
    backbone: Box<dyn Backbone>,
    /// All heads, `(heads K, D)` and `(heads K)`.
    weight: Tensor,
    bias: Tensor,
    /// The labels of all images, `(heads, N)`.
    labels: Var,
    config: SelaConfig,
}

impl std::fmt::Debug for Sela {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sela").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Sela {
    /// Creates `backbone.*`, `heads.weight`, `heads.bias` and `labels` in `params`, for `images` images. The first labels
    /// are random, in equal shares.
    ///
    /// # Errors
    /// If there are fewer images than labels, or the backbone is unknown.
    pub fn new(
        config: &SelaConfig,
        backbone: &BackboneConfig,
        params: &Params,
        images: usize,
    ) -> Result<Self> {
        let SelaConfig { heads, labels: k, .. } = *config;
        if k > images {
            bail!("method.labels = {k} is not in 2..={images}, the number of images to train on");
        }
        let root = params.root();
        let backbone = backbone.build(&root.pp("backbone"))?;
        let d = backbone.embed_dim();
        let (scope, init) = (root.pp("heads"), Init::TorchDefault { fan_in: d });
        let weight = scope.trainable("weight", (heads * k, d), init)?;
        let bias = scope.trainable("bias", heads * k, init)?;
        let shuffled = |head: usize| {
            let order = permutation(
                &mut rng(params.seed(), Purpose::Labels, 0, head as u64, 0),
                u32::try_from(images).unwrap_or(u32::MAX),
            );
            order.into_iter().map(move |place| i64::from(place) % k as i64)
        };
        let first: Vec<i64> = (0..heads).flat_map(shuffled).collect();
        let labels =
            root.buffer_from("labels", &Tensor::from_vec(first, (heads, images), params.device())?)?;
        Ok(Self { backbone, weight, bias, labels, config: config.clone() })
    }

    /// The labels of the images `index` for all heads, image by image: `(B heads)`.
    fn labels_of(&self, index: &[usize]) -> Result<Tensor> {
        let (_, images) = self.labels.dims2()?;
        if let Some(image) = index.iter().find(|image| **image >= images) {
            bail!("sela has labels for {images} images, and was given image {image}");
        }
        let index: Vec<u32> = index.iter().map(|image| *image as u32).collect();
        let index = Tensor::new(index, self.labels.device())?;
        self.labels.as_detached_tensor().index_select(&index, 1)?.t()?.flatten_all()
    }
}

impl Method for Sela {
    fn num_views(&self) -> RangeInclusive<usize> {
        1..=1
    }

    fn loss(&self, batch: &Batch, context: &StepContext) -> Result<StepOutput> {
        let [view] = &batch.views[..] else { bail!("sela needs 1 view, got {}", batch.views.len()) };
        let (heads, k) = (self.config.heads, self.config.labels);
        let h = self.backbone.forward_train(view, context.draws(0))?; // (B, D)
        let logits = linear(&h, &self.weight, Some(&self.bias), None)?; // (B, heads K)
        let logits = logits.reshape(((), k))?; // (B heads, K)
        let y = self.labels_of(&batch.index)?;
        let loss = cross_entropy(&logits, &y, 0.0)?;
        let logits = logits.detach();
        let hits = logits.argmax(D::Minus1)?.to_dtype(DType::I64)?.eq(&y)?;
        let first = logits.reshape(((), heads, k))?.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?; // (B, K)
        let own = y.reshape(((), heads))?.narrow(1, 0, 1)?.flatten_all()?; // (B)
        let terms = vec![
            ("label_accuracy", hits.to_dtype(DType::F64)?.mean_all()?),
            ("prediction_information", prediction_information(&log_softmax(&first, D::Minus1)?)?),
            ("used_prototypes", distinct(&own)?),
            ("possible_prototypes", Tensor::new(k.min(own.dim(0)?) as f32, own.device())?),
            ceiling(k, own.dim(0)?)?,
        ];
        Ok(StepOutput { loss, terms, embeddings: vec![h.detach()], memory: vec![] })
    }

    fn wants_pass(&self, context: &StepContext) -> bool {
        self.config.label_steps_before(context).next().is_some()
    }

    fn pass(
        &mut self,
        context: &StepContext,
        batches: &mut dyn Iterator<Item = Result<Batch>>,
    ) -> Result<()> {
        let SelaConfig { labels: k, lambda, tolerance, max_iterations, .. } = self.config;
        let (mut h, mut index) = (vec![], vec![]);
        for batch in batches {
            let batch = batch?;
            let [view] = &batch.views[..] else { bail!("sela needs 1 view, got {}", batch.views.len()) };
            h.push(self.backbone.forward_t(view, true)?.detach());
            index.extend(batch.index);
        }
        let h = Tensor::cat(&h, 0)?; // (N, D)
        let mut labels = self.labels.to_vec2::<i64>()?;
        let solver = SelfLabels { lambda, tolerance, max_iterations };
        for head in self.config.heads_before(context) {
            let (weight, bias) = (self.weight.narrow(0, head * k, k)?, self.bias.narrow(0, head * k, k)?);
            let logits = linear(&h, &weight.detach(), Some(&bias.detach()), None)?;
            let found = solver.solve(&log_softmax(&logits, D::Minus1)?)?;
            for (image, label) in index.iter().zip(found.labels) {
                let Some(place) = labels[head].get_mut(*image) else {
                    bail!("sela has labels for {} images, and was shown image {image}", self.labels.dim(1)?)
                };
                *place = i64::from(label);
            }
        }
        self.labels.set(&Tensor::new(labels, self.labels.device())?)
    }

    fn encoder(&self) -> &dyn Backbone {
        &*self.backbone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{CONTEXT, assert_gradients_reach, images, params, resnet};

    const IMAGES: usize = 12;

    fn tiny() -> SelaConfig {
        SelaConfig { heads: 3, labels: 4, heads_per_label_step: 3, label_steps: 5, ..SelaConfig::default() }
    }

    fn labels(params: &Params) -> Vec<Vec<i64>> {
        params.get("labels").unwrap().to_vec2().unwrap()
    }

    fn largest_share(labels: &[i64]) -> usize {
        (0..4).map(|label| labels.iter().filter(|l| **l == label).count()).max().unwrap()
    }

    /// All images in two batches, the second first.
    fn pass(method: &mut Sela, context: &StepContext) -> Result<()> {
        let all = images(1, IMAGES);
        let part = |start: usize| {
            Ok(Batch {
                views: vec![all.views[0].narrow(0, start, IMAGES / 2)?],
                index: (start..start + IMAGES / 2).collect(),
                text: None,
            })
        };
        method.pass(context, &mut [6, 0].into_iter().map(part))
    }

    #[test]
    fn gradients_reach_everything_and_labels_follow_their_images() {
        let params = params();
        let method = Sela::new(&tiny(), &resnet(), &params, IMAGES).unwrap();
        let batch = images(1, 6);
        assert_gradients_reach(&method, &params, &batch, &[]);
        let order = [3usize, 0, 5, 1, 4, 2];
        let rows = Tensor::new(&order.map(|i| i as u32), params.device()).unwrap();
        let permuted = Batch {
            views: vec![batch.views[0].index_select(&rows, 0).unwrap()],
            index: order.to_vec(),
            text: None,
        };
        let loss = |batch: &Batch| method.loss(batch, &CONTEXT).unwrap().loss.to_scalar::<f32>().unwrap();
        assert!((loss(&batch) - loss(&permuted)).abs() < 1e-5);
        // Other images have other labels.
        assert!((loss(&batch) - loss(&Batch { index: (6..12).collect(), ..batch.clone() })).abs() > 1e-3);
    }

    #[test]
    fn the_loss_is_the_mean_over_heads_and_ln_k_for_equal_logits() {
        let params = params();
        let method = Sela::new(&tiny(), &resnet(), &params, IMAGES).unwrap();
        for name in ["heads.weight", "heads.bias"] {
            let var = params.get(name).unwrap();
            var.set(&var.zeros_like().unwrap()).unwrap();
        }
        let batch = images(1, 6);
        let loss = || method.loss(&batch, &CONTEXT).unwrap().loss.to_scalar::<f32>().unwrap();
        assert!((loss() - 4f32.ln()).abs() < 1e-6);
        // The second head says label 2 for sure; the images that have it there cost nothing, the others 50.
        let mut bias = [0f32; 12];
        bias[4 + 2] = 50.0;
        params.get("heads.bias").unwrap().set(&Tensor::new(&bias, params.device()).unwrap()).unwrap();
        let wrong = labels(&params)[1][..6].iter().filter(|label| **label != 2).count() as f32;
        assert!((loss() - (2.0 * 4f32.ln() + 50.0 * wrong / 6.0) / 3.0).abs() < 1e-4);
    }

    #[test]
    fn labels_start_and_stay_in_equal_shares_and_follow_their_images() {
        let params = params();
        let mut method = Sela::new(&tiny(), &resnet(), &params, IMAGES).unwrap();
        let start = labels(&params);
        assert!(start.iter().all(|head| largest_share(head) == 3), "{start:?}");
        assert!(start[0] != start[1]);
        assert!(method.wants_pass(&CONTEXT));
        pass(&mut method, &CONTEXT).unwrap();
        let found = labels(&params);
        assert!(found.iter().all(|head| largest_share(head) <= 4), "{found:?}");
        assert!(found != start);
        // Without the solver they are the network's own choice.
        method.config.max_iterations = 0;
        pass(&mut method, &CONTEXT).unwrap();
        let own = labels(&params);
        assert!(own.iter().any(|head| largest_share(head) > 6), "{own:?}");
        let halves = [0, 6].map(|start| {
            let view = images(1, IMAGES).views[0].narrow(0, start, 6).unwrap();
            let batch = Batch { views: vec![view], index: (start..start + 6).collect(), text: None };
            let terms = method.loss(&batch, &CONTEXT).unwrap().terms;
            terms[0].1.to_scalar::<f64>().unwrap()
        });
        assert_eq!(halves, [1.0, 1.0], "label accuracy");
    }

    #[test]
    fn label_steps_are_spread_as_in_the_official_code_and_heads_take_turns() {
        let context = |step| StepContext { step, total_steps: 100, steps_per_epoch: 10, ..CONTEXT };
        let times = |config: &SelaConfig| {
            (0..100).filter(|step| !config.heads_before(&context(*step)).is_empty()).collect::<Vec<_>>()
        };
        // 110.1 steps, four distances.
        assert_eq!(times(&tiny()), [0, 7, 28, 62]);
        let uniform = SelaConfig { label_times: LabelTimes::Uniform, heads_per_label_step: 1, ..tiny() };
        assert_eq!(times(&uniform), [0, 28, 56, 83]);
        let heads = [0, 28, 56, 83].map(|step| uniform.heads_before(&context(step)));
        assert_eq!(heads, [[0], [1], [2], [0]]);
        assert_eq!(times(&SelaConfig { label_steps: 1, ..tiny() }), [0]);
        let params = params();
        let config = SelaConfig { heads_per_label_step: 1, ..tiny() };
        let mut method = Sela::new(&config, &resnet(), &params, IMAGES).unwrap();
        let start = labels(&params);
        pass(&mut method, &context(7)).unwrap();
        let found = labels(&params);
        assert!(found[1] != start[1] && found[0] == start[0] && found[2] == start[2]);
    }

    #[test]
    fn bad_settings_and_batches_are_refused() {
        let refused = |config: SelaConfig, text: &str| {
            let error = config.validate().unwrap_err();
            assert!(error.contains(text), "{error}");
        };
        refused(SelaConfig { labels: 1, ..tiny() }, "method.labels = 1 is not in 2..=1000000");
        refused(SelaConfig { lambda: 0.0, ..tiny() }, "method.lambda = 0 is not in [0.01, 1000]");
        refused(
            SelaConfig { heads_per_label_step: 4, ..tiny() },
            "method.heads_per_label_step = 4 is not in 1..=3",
        );
        refused(SelaConfig { label_steps: 0, ..tiny() }, "method.label_steps = 0");
        let error = Sela::new(&tiny(), &resnet(), &params(), 3).unwrap_err().to_string();
        assert!(error.contains("method.labels = 4 is not in 2..=3"), "{error}");
        let method = Sela::new(&tiny(), &resnet(), &params(), IMAGES).unwrap();
        let error = |batch: &Batch| method.loss(batch, &CONTEXT).unwrap_err().to_string();
        assert!(error(&images(2, 4)).contains("1 view, got 2"));
        assert!(
            error(&Batch { index: vec![0, 12, 1, 2], ..images(1, 4) })
                .contains("12 images, and was given image 12")
        );
    }
}
