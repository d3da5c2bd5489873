//! MoCo v1 and v2 (He et al., 2019, <https://arxiv.org/abs/1911.05722>; Chen et al., 2020,
//! <https://arxiv.org/abs/2003.04297>; official code facebookresearch/moco, and its notebook for CIFAR-10).
//!
//! A query encoder, network `f` and head `g`, asks with one view of an image for what a slow copy of itself, the key
//! encoder, makes of the other view, among `K` older keys from a queue. v1 has a linear head and τ = 0.07, v2 a head of two
//! layers without batch norm, τ = 0.2, and other augmentation.
//!
//! The loss is asymmetric as in the papers; `symmetric` adds the other direction and queues the keys of both views, first
//! those of the first. A step's keys are no negatives of their own step. The key encoder runs in training mode, and
//! follows after each optimiser step, which is before the next step's keys, as in the official code.
//!
//! Batch norm can betray which key belongs to a query, by statistics that both share. The official code shuffles keys
//! between devices; on one device `batch_norm_groups` splits the batch instead (8 in the notebook). The default is 1,
//! ordinary batch norm without a shuffle, which would change nothing. Heads have no batch norm. Deviations: the groups are
//! neighbours in the batch, the notebook's are interleaved.

use std::ops::RangeInclusive;

use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use ssl_backbones::{Backbone, BackboneConfig};
use ssl_losses::{info_nce, normalize};
use ssl_nn::{DrawsAt, Mlp, MlpConfig, Params, Scope};

use crate::checks;
use crate::config::{Settings, TrainingData};
use crate::contrast::ceiling;
use crate::method::{Batch, Method, StepContext, StepOutput};
use crate::queue::Queue;
use crate::safeguard::Safeguard;
use crate::split_norm::SplitNorm;
use crate::teacher::{self, Teacher};

/// Settings of MoCo; [`MocoConfig::v1`] and [`MocoConfig::v2`] are the papers' for ImageNet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MocoConfig {
    /// Linear layers of the head, with ReLU and no norm between them: 1 in v1, 2 in v2.
    pub projector_layers: usize,
    /// Width of the hidden layers of the head; 0 stands for the width of the embedding, as in v2.
    pub projector_hidden: usize,
    /// Width of queries and keys.
    pub projector_dim: usize,
    /// τ, the divisor of the similarities.
    pub temperature: f64,
    /// K, the number of keys in the queue, a multiple of those that a step adds: the batch, twice that if `symmetric`.
    pub queue_size: usize,
    /// m, the share of the old key encoder that is kept at each step; 0 for a copy of the query encoder.
    pub momentum: f64,
    /// Whether each view is the query once: the sum of both directions, of twice the keys.
    pub symmetric: bool,
    /// Groups of a batch with batch norm statistics of their own; above 1 keys are shuffled between them.
    pub batch_norm_groups: usize,
}

impl MocoConfig {
    /// MoCo v1.
    pub fn v1() -> Self {
        Self { projector_layers: 1, temperature: 0.07, ..Self::v2() }
    }

    /// MoCo v2.
    pub fn v2() -> Self {
        Self {
            projector_layers: 2,
            projector_hidden: 0,
            projector_dim: 128,
            temperature: 0.2,
            queue_size: 65_536,
            momentum: 0.999,
            symmetric: false,
            batch_norm_groups: 1,
        }
    }
}

impl Settings for MocoConfig {
    fn validate(&self) -> std::result::Result<(), String> {
        checks::count("projector_layers", self.projector_layers, checks::LAYERS)?;
        checks::count("projector_hidden", self.projector_hidden, 0..=*checks::WIDTH.end())?;
        checks::count("projector_dim", self.projector_dim, checks::WIDTH)?;
        checks::temperature("temperature", self.temperature)?;
        checks::count("queue_size", self.queue_size, 1..=1 << 24)?;
        checks::number("momentum", self.momentum, 0.0..=1.0)?;
        checks::count("batch_norm_groups", self.batch_norm_groups, 1..=1024)
    }

    fn validate_batch(&self, images: usize, parts: usize) -> std::result::Result<(), String> {
        let (size, keys) = (self.queue_size, if self.symmetric { 2 * images } else { images });
        if !size.is_multiple_of(keys) {
            return Err(format!(
                "method.queue_size = {size} is not a multiple of the {keys} keys that a step of train.batch_size = \
                 {images} adds"
            ));
        }
        let (groups, part) = (self.batch_norm_groups, images / parts);
        if !part.is_multiple_of(groups) || part / groups < 2 {
            return Err(format!(
                "method.batch_norm_groups = {groups} must divide the {part} images of a part of the batch \
                 (train.batch_size = {images}, train.accumulate = {parts}) into groups of at least 2"
            ));
        }
        Ok(())
    }

    fn safeguard(&self) -> Safeguard {
        Safeguard::new(
            "the queue of other images, from which the loss drives each image away, and keys that change slowly",
            "a temperature at which all images look alike, a queue of keys that are too old, or batch statistics that tell which \
             images belong together",
            "method.temperature between 0.07 and 0.2, method.momentum between 0.99 and 0.999, a smaller method.queue_size, \
             method.batch_norm_groups of 2 or more",
        )
        .unless(self.momentum < 0.5, "momentum", self.momentum, 0.999)
    }

    fn build(&self, backbone: &BackboneConfig, params: &Params, _: &TrainingData) -> Result<Box<dyn Method>> {
        Ok(Box::new(Moco::new(self, backbone, params)?))
    }

    /// Of the version with this head.
    fn augmentation(&self) -> &'static str {
        if self.projector_layers == 1 { "moco_v1" } else { "moco_v2" }
    }
}

/// MoCo v1 or v2 with its two encoders and its queue.
pub struct Moco {
    query: Encoder,
    key: Encoder,
    teacher: Teacher,
    queue: Queue,
    config: MocoConfig,
}

/// A network with its head.
struct Encoder {
    backbone: Box<dyn Backbone>,
    projector: Mlp,
    split: SplitNorm,
}

impl std::fmt::Debug for Moco {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Moco").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Encoder {
    /// In `scope`, the place `prefix` of `params`.
    fn new(
        config: &MocoConfig,
        backbone: &BackboneConfig,
        (params, scope, prefix): (&Params, &Scope, &str),
    ) -> Result<Self> {
        let backbone = backbone.build(&scope.pp("backbone"))?;
        let d = backbone.embed_dim();
        let hidden = if config.projector_hidden == 0 { d } else { config.projector_hidden };
        let mut dims = vec![hidden; config.projector_layers + 1];
        dims[0] = d;
        dims[config.projector_layers] = config.projector_dim;
        let projector = Mlp::new(&dims, MlpConfig::default(), &scope.pp("projector"))?;
        let split = SplitNorm::new(config.batch_norm_groups, params, &format!("{prefix}backbone."));
        Ok(Self { backbone, projector, split })
    }

    /// The normalised queries of a view, `(B, D)`.
    fn queries(&self, x: &Tensor, draws: Option<DrawsAt>) -> Result<Tensor> {
        normalize(&self.projector.forward_t(&self.split.forward(&*self.backbone, x, draws)?, true)?)
    }

    /// The normalised keys of view number `view`, `(B, D)`, without gradient.
    fn keys(&self, x: &Tensor, context: &StepContext, view: u32) -> Result<Tensor> {
        let h = self.split.forward_shuffled(&*self.backbone, x, context, view)?;
        Ok(normalize(&self.projector.forward_t(&h, true)?)?.detach())
    }
}

impl Moco {
    /// Creates `backbone.*` and `projector.*`, `teacher.*` for the key encoder, and `queue` and `queue_ptr` in `params`.
    ///
    /// # Errors
    /// If a width is 0 or the backbone is unknown.
    pub fn new(config: &MocoConfig, backbone: &BackboneConfig, params: &Params) -> Result<Self> {
        let root = params.root();
        let query = Encoder::new(config, backbone, (params, &root, ""))?;
        let prefix = format!("{}.", teacher::PREFIX);
        let key =
            Encoder::new(config, backbone, (params, &root.pp(teacher::PREFIX).frozen(), prefix.as_str()))?;
        let teacher = Teacher::copy_student(params)?;
        let queue = Queue::new(config.queue_size, config.projector_dim, &root)?;
        Ok(Self { query, key, teacher, queue, config: config.clone() })
    }

    /// One direction: the loss and the mean cosines with positives and negatives.
    fn direction(&self, q: &Tensor, k: &Tensor) -> Result<[Tensor; 3]> {
        let queue = self.queue.keys();
        let loss = info_nce(q, k, &queue, self.config.temperature)?;
        let q = q.detach();
        let positive = (&q * k)?.sum(1)?.mean_all()?;
        // The mean of all products is the product of the means.
        let negative = (q.mean(0)? * queue.mean(0)?)?.sum_all()?;
        Ok([loss, positive, negative])
    }
}

impl Method for Moco {
    fn num_views(&self) -> RangeInclusive<usize> {
        2..=2
    }

    fn loss(&self, batch: &Batch, context: &StepContext) -> Result<StepOutput> {
        let [x_1, x_2] = batch.views.as_slice() else {
            bail!("moco needs 2 views, got {}", batch.views.len());
        };
        let q_1 = self.query.queries(x_1, context.draws(0))?;
        let k_2 = self.key.keys(x_2, context, 1)?;
        let [mut loss, mut positive, mut negative] = self.direction(&q_1, &k_2)?;
        let (mut embeddings, mut memory) = (vec![q_1.detach(), k_2.clone()], vec![k_2]);
        let mut per_direction = loss.detach();
        if self.config.symmetric {
            let q_2 = self.query.queries(x_2, context.draws(1))?;
            let k_1 = self.key.keys(x_1, context, 0)?;
            let [other, p, n] = self.direction(&q_2, &k_1)?;
            loss = (loss + other)?;
            per_direction = (loss.detach() * 0.5)?;
            (positive, negative) = (((positive + p)? * 0.5)?, ((negative + n)? * 0.5)?);
            embeddings[1] = q_2.detach();
            memory.insert(0, k_1);
        }
        // I(q; k) >= log(1 + K) - loss, in nats.
        let mi_bound = (per_direction.neg()? + ((1 + self.config.queue_size) as f64).ln())?;
        let terms = vec![
            ("mi_lower_bound", mi_bound),
            ("positive_cosine", positive),
            ("negative_cosine", negative),
            ceiling(1 + self.config.queue_size)?,
        ];
        Ok(StepOutput { loss, terms, embeddings, memory })
    }

    /// The key encoder moves before the next step's keys, and this step's keys enter the queue after their step.
    fn after_step(&mut self, _: &StepContext, memory: &[Tensor]) -> Result<()> {
        self.teacher.follow(self.config.momentum)?;
        let keys = Tensor::cat(memory, 0)?;
        let (size, n) = (self.config.queue_size, keys.dim(0)?);
        if n == 0 || !size.is_multiple_of(n) {
            bail!("method.queue_size = {size} is not a multiple of the {n} keys of a step");
        }
        self.queue.enqueue(&keys)
    }

    fn encoder(&self) -> &dyn Backbone {
        &*self.query.backbone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{CONTEXT, assert_gradients_reach, images, params, resnet};

    fn tiny() -> MocoConfig {
        MocoConfig {
            projector_hidden: 16,
            projector_dim: 6,
            queue_size: 12,
            momentum: 0.9,
            ..MocoConfig::v2()
        }
    }

    fn built(config: &MocoConfig) -> (Params, Moco) {
        let params = params();
        let method = Moco::new(config, &resnet(), &params).unwrap();
        (params, method)
    }

    fn values(params: &Params, name: &str) -> Vec<f32> {
        params.get(name).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn scalar(x: &Tensor) -> f32 {
        x.to_scalar().unwrap()
    }

    #[test]
    fn the_query_encoder_gets_gradients_and_the_key_encoder_and_the_queue_none() {
        let v1 = MocoConfig { projector_layers: 1, ..tiny() };
        for config in [v1, tiny(), MocoConfig { symmetric: true, batch_norm_groups: 2, ..tiny() }] {
            let (params, method) = built(&config);
            assert_gradients_reach(&method, &params, &images(2, 6), &[]);
            let trainable = params.trainable();
            assert!(trainable.iter().all(|(name, _)| !name.starts_with("teacher.") && name != "queue"));
        }
    }

    #[test]
    fn the_head_of_v1_is_linear_and_that_of_v2_has_two_layers_without_norm() {
        let head = |config: &MocoConfig| {
            let names = built(config).0.names().into_iter();
            names.filter(|name| name.starts_with("projector.")).collect::<Vec<_>>()
        };
        let first = ["projector.0.weight", "projector.0.bias"];
        let v1 = MocoConfig { queue_size: 8, ..MocoConfig::v1() };
        assert_eq!(head(&v1), first);
        let v2 = MocoConfig { queue_size: 8, ..MocoConfig::v2() };
        assert_eq!(head(&v2), [&first[..], &["projector.2.weight", "projector.2.bias"]].concat());
        assert_eq!((v1.augmentation(), v2.augmentation()), ("moco_v1", "moco_v2"));
    }

    #[test]
    fn the_key_encoder_follows_by_the_closed_form() {
        let (params, mut method) = built(&tiny());
        let start = values(&params, "projector.0.weight");
        assert_eq!(values(&params, "teacher.projector.0.weight"), start);
        let query = params.get("projector.0.weight").unwrap();
        query.set(&(query.as_tensor() + 1.0).unwrap()).unwrap();
        let keys = method.loss(&images(2, 4), &CONTEXT).unwrap().memory;
        for step in 0..4 {
            method.after_step(&StepContext { step, ..CONTEXT }, &keys).unwrap();
        }
        // A constant query encoder s and m: s + m^t (t0 - s), and s - t0 is 1 here.
        let gap = 1.0 - 0.9f32.powi(4);
        let now = values(&params, "teacher.projector.0.weight");
        assert!(now.iter().zip(&start).all(|(now, start)| (now - start - gap).abs() < 1e-5));
    }

    #[test]
    fn a_steps_keys_enter_the_queue_after_it_and_are_no_negatives_of_it() {
        for symmetric in [false, true] {
            let (params, mut method) = built(&MocoConfig { symmetric, momentum: 1.0, ..tiny() });
            let queue = || params.get("queue").unwrap().to_vec2::<f32>().unwrap();
            let pointer = || params.get("queue_ptr").unwrap().to_scalar::<i64>().unwrap();
            let start = queue();
            let batch = images(2, 3);
            let first = method.loss(&batch, &CONTEXT).unwrap();
            assert_eq!(queue(), start);
            // At the start both encoders are equal: the key of view 2 is the query that it would be.
            let per_step = if symmetric { 6 } else { 3 };
            method.after_step(&CONTEXT, &first.memory).unwrap();
            let keys = Tensor::cat(&first.memory, 0).unwrap().to_vec2::<f32>().unwrap();
            assert_eq!(keys.len(), per_step);
            assert_eq!(queue(), [&keys[..], &start[per_step..]].concat());
            assert_eq!(pointer(), per_step as i64);
            if symmetric {
                let q_1 = first.embeddings[0].to_vec2::<f32>().unwrap();
                let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
                assert!((0..3).all(|i| close(&keys[i], &q_1[i])), "the keys of the first view come first");
            }
            // Now each query meets its own key twice, as the positive and in the queue.
            assert!(scalar(&method.loss(&batch, &CONTEXT).unwrap().loss) > scalar(&first.loss));
            for _ in 1..12 / per_step {
                method.after_step(&CONTEXT, &first.memory).unwrap();
            }
            assert_eq!((queue(), pointer()), (vec![&keys[..]; 12 / per_step].concat(), 0));
        }
    }

    #[test]
    fn the_symmetric_loss_is_the_sum_of_both_directions() {
        let batch = images(2, 4);
        let reversed = Batch { views: batch.views.iter().rev().cloned().collect(), ..batch.clone() };
        let loss = |symmetric, batch: &Batch| {
            let (_, method) = built(&MocoConfig { symmetric, ..tiny() });
            let output = method.loss(batch, &CONTEXT).unwrap();
            (scalar(&output.loss), scalar(&output.terms[0].1))
        };
        let (one, other, both) = (loss(false, &batch), loss(false, &reversed), loss(true, &batch));
        assert!((both.0 - one.0 - other.0).abs() < 1e-5);
        assert!((both.1 - 0.5 * (one.1 + other.1)).abs() < 1e-5);
        assert!((one.1 + one.0 - 13f32.ln()).abs() < 1e-5, "I >= log(1 + K) - loss");
        assert!((loss(true, &reversed).0 - both.0).abs() < 1e-5);
    }

    #[test]
    fn the_order_of_images_does_not_matter_and_terms_are_mean_cosines() {
        let (params, method) = built(&tiny());
        let batch = images(2, 5);
        let order = Tensor::new(&[3u32, 0, 1, 4, 2], batch.views[0].device()).unwrap();
        let views = batch.views.iter().map(|view| view.index_select(&order, 0).unwrap()).collect();
        let output = method.loss(&batch, &CONTEXT).unwrap();
        let shuffled = method.loss(&Batch { views, ..batch }, &CONTEXT).unwrap();
        assert!((scalar(&output.loss) - scalar(&shuffled.loss)).abs() < 1e-5);
        let [q, k] = [0, 1].map(|i| output.embeddings[i].to_vec2::<f32>().unwrap());
        let queue = params.get("queue").unwrap().to_vec2::<f32>().unwrap();
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let positive = q.iter().zip(&k).map(|(q, k)| dot(q, k)).sum::<f32>() / 5.0;
        let negative = q.iter().flat_map(|q| queue.iter().map(move |k| dot(q, k))).sum::<f32>() / 60.0;
        assert!((scalar(&output.terms[1].1) - positive).abs() < 1e-5);
        assert!((scalar(&output.terms[2].1) - negative).abs() < 1e-5);
    }

    #[test]
    fn equal_queries_keys_and_queue_show_as_zero_information() {
        let (params, method) = built(&tiny());
        for name in ["projector.2.weight", "teacher.projector.2.weight"] {
            let weight = params.get(name).unwrap();
            weight.set(&weight.zeros_like().unwrap()).unwrap();
        }
        let queue = params.get("queue").unwrap();
        // What is left is the bias, which both encoders have.
        let bias = normalize(&params.get("projector.2.bias").unwrap().as_detached_tensor()).unwrap();
        queue.set(&bias.broadcast_as((12, 6)).unwrap().contiguous().unwrap()).unwrap();
        let output = method.loss(&images(2, 3), &CONTEXT).unwrap();
        assert!((scalar(&output.loss) - 13f32.ln()).abs() < 1e-5);
        assert!(scalar(&output.terms[0].1).abs() < 1e-5);
        assert!((scalar(&output.terms[2].1) - 1.0).abs() < 1e-5);
    }

    #[test]
    fn wrong_views_batches_and_settings_are_refused() {
        let (_, mut method) = built(&tiny());
        assert!(method.loss(&images(1, 3), &CONTEXT).unwrap_err().to_string().contains("2 views, got 1"));
        let keys = method.loss(&images(2, 5), &CONTEXT).unwrap().memory;
        let error = method.after_step(&CONTEXT, &keys).unwrap_err().to_string();
        assert!(error.contains("method.queue_size = 12 is not a multiple of the 5 keys"), "{error}");
        let (_, split) = built(&MocoConfig { batch_norm_groups: 2, ..tiny() });
        let error = split.loss(&images(2, 5), &CONTEXT).unwrap_err().to_string();
        assert!(error.contains("batch_norm_groups = 2 does not divide a batch of 5"), "{error}");
        for (config, message) in [
            (MocoConfig { temperature: 0.0, ..tiny() }, "method.temperature = 0 is not in (0, 10]"),
            (MocoConfig { momentum: 1.1, ..tiny() }, "method.momentum = 1.1 is not in [0, 1]"),
            (MocoConfig { queue_size: 0, ..tiny() }, "method.queue_size = 0 is not in 1..=16777216"),
            (
                MocoConfig { batch_norm_groups: 0, ..tiny() },
                "method.batch_norm_groups = 0 is not in 1..=1024",
            ),
            (MocoConfig { projector_layers: 0, ..tiny() }, "method.projector_layers = 0 is not in 1..=8"),
        ] {
            assert_eq!(config.validate().unwrap_err(), message);
        }
        let symmetric = MocoConfig { symmetric: true, ..tiny() };
        let error = symmetric.validate_batch(4, 1).unwrap_err();
        assert!(error.contains("method.queue_size = 12") && error.contains("the 8 keys"), "{error}");
        assert!(error.contains("train.batch_size = 4"), "{error}");
        assert!(tiny().validate_batch(4, 2).is_ok());
        let split = MocoConfig { batch_norm_groups: 2, ..tiny() };
        assert!(split.validate_batch(4, 1).is_ok());
        let error = split.validate_batch(4, 2).unwrap_err();
        assert!(error.contains("method.batch_norm_groups = 2 must divide the 2 images"), "{error}");
    }
}
