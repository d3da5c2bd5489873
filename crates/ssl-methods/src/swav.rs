//! SwAV (Caron et al., 2020, <https://arxiv.org/abs/2006.09882>; official code facebookresearch/swav).
//!
//! Each view has scores, its cosines with `K` trainable prototypes. Those of the first two views become codes, with all
//! prototypes used about equally often in a batch (Sinkhorn-Knopp); the other views predict them. Equal use is what
//! keeps the embeddings apart: `sinkhorn_iterations = 0` takes it away.
//!
//! Views of one size pass the backbone in one batch, all embeddings the head in one. Prototypes are normalised at
//! creation and after each step. With a queue, the scores of former embeddings with the present prototypes take part in
//! making codes, as soon as the queue is full. As in the official code it fills from `queue_start_epoch` on.

use std::ops::RangeInclusive;

use candle_core::{D, Result, Tensor, Var, bail};
use serde::{Deserialize, Serialize};
use ssl_backbones::{Backbone, BackboneConfig};
use ssl_losses::{SwavLoss, normalize};
use ssl_nn::{Init, Mlp, MlpConfig, Params, log_softmax};

use crate::checks;
use crate::clusters::{ceiling, entropy, prediction_information, used_columns};
use crate::config::{Settings, TrainingData};
use crate::crops::Crops;
use crate::method::{Batch, Method, StepContext, StepOutput};
use crate::safeguard::Safeguard;

/// Settings of SwAV; the defaults are the paper's for ImageNet with large batches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SwavConfig {
    /// Width of the projector's hidden layers.
    pub projector_hidden: usize,
    /// Width of the projections, and of the prototypes.
    pub projector_dim: usize,
    /// Linear layers of the projector.
    pub projector_layers: usize,
    /// Whether batch norms follow the projector's hidden layers.
    pub projector_norm: bool,
    /// K, the number of prototypes.
    pub prototypes: usize,
    /// How many views, the first ones, have codes that the others predict.
    pub assigning_views: usize,
    /// τ of the predictions.
    pub temperature: f64,
    /// ε of the codes.
    pub sinkhorn_epsilon: f64,
    /// Iterations of Sinkhorn-Knopp; 0 for softmax codes, with which the samples gather at few prototypes.
    pub sinkhorn_iterations: usize,
    /// Optimiser steps, from the first, in which the prototypes stay as they are: an epoch in the paper.
    pub freeze_prototypes_steps: usize,
    /// Embeddings remembered for each assigning view, 0 for none; 3840 in the paper for batches of 256.
    pub queue_length: usize,
    /// Epoch, counted from 0, from which the queue fills; it is used as soon as it is full.
    pub queue_start_epoch: usize,
}

impl Default for SwavConfig {
    fn default() -> Self {
        Self {
            projector_hidden: 2048,
            projector_dim: 128,
            projector_layers: 2,
            projector_norm: true,
            prototypes: 3000,
            assigning_views: 2,
            temperature: 0.1,
            sinkhorn_epsilon: 0.05,
            sinkhorn_iterations: 3,
            freeze_prototypes_steps: 313,
            queue_length: 0,
            queue_start_epoch: 15,
        }
    }
}

/// As many views as anyone takes.
const MAX_VIEWS: usize = 64;

/// More optimiser steps than any run has.
const MAX_STEPS: usize = 1_000_000_000;

/// Below, exponentials of cosines vanish in `f32`.
const EPSILON: RangeInclusive<f64> = 0.025..=10.0;

impl Settings for SwavConfig {
    fn validate(&self) -> std::result::Result<(), String> {
        checks::count("projector_hidden", self.projector_hidden, checks::WIDTH)?;
        checks::count("projector_dim", self.projector_dim, checks::WIDTH)?;
        checks::count("projector_layers", self.projector_layers, checks::LAYERS)?;
        checks::count("prototypes", self.prototypes, checks::PROTOTYPES)?;
        checks::count("assigning_views", self.assigning_views, 1..=MAX_VIEWS)?;
        checks::temperature("temperature", self.temperature)?;
        checks::number("sinkhorn_epsilon", self.sinkhorn_epsilon, EPSILON)?;
        checks::count("sinkhorn_iterations", self.sinkhorn_iterations, 0..=1000)?;
        checks::count("freeze_prototypes_steps", self.freeze_prototypes_steps, 0..=MAX_STEPS)?;
        checks::count("queue_length", self.queue_length, 0..=10_000_000)?;
        checks::count("queue_start_epoch", self.queue_start_epoch, checks::EPOCHS)
    }

    fn safeguard(&self) -> Safeguard {
        Safeguard::new(
            "the equal shares of images that Sinkhorn and Knopp's iterations give to prototypes",
            "an epsilon at which the codes are nearly even, more prototypes than the batch can fill, or prototypes that move \
             before the features do",
            "method.sinkhorn_epsilon of 0.03 instead of 0.05, fewer method.prototypes, a queue (method.queue_length), a longer \
             method.freeze_prototypes_steps",
        )
        .unless(self.sinkhorn_iterations == 0, "sinkhorn_iterations", 0, Self::default().sinkhorn_iterations)
    }

    fn build(&self, backbone: &BackboneConfig, params: &Params, _: &TrainingData) -> Result<Box<dyn Method>> {
        Ok(Box::new(Swav::new(self, backbone, params)?))
    }

    fn augmentation(&self) -> &'static str {
        "swav"
    }
}

/// SwAV with its encoder, projector, prototypes and queues.
pub struct Swav {
    backbone: Box<dyn Backbone>,
    projector: Mlp,
    prototypes: Var,
    queue: Option<Queue>,
    config: SwavConfig,
}

/// The newest embeddings of each assigning view, newest first, and how many rows of each are filled.
struct Queue {
    rows: Vec<Var>,
    filled: Var,
}

impl std::fmt::Debug for Swav {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Swav").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Swav {
    /// Creates `backbone.*`, `projector.*`, `prototypes.weight` and with a queue `queue.*` in `params`.
    ///
    /// # Errors
    /// If a width is 0 or the backbone is unknown.
    pub fn new(config: &SwavConfig, backbone: &BackboneConfig, params: &Params) -> Result<Self> {
        let root = params.root();
        let backbone = backbone.build(&root.pp("backbone"))?;
        let d = config.projector_dim;
        let mut dims = vec![config.projector_hidden; config.projector_layers + 1];
        dims[0] = backbone.embed_dim();
        dims[config.projector_layers] = d;
        let mlp = MlpConfig { hidden_norm: config.projector_norm, ..MlpConfig::default() };
        let projector = Mlp::new(&dims, mlp, &root.pp("projector"))?;
        let init = Init::TorchDefault { fan_in: d };
        root.pp("prototypes").trainable("weight", (config.prototypes, d), init)?;
        let Some(prototypes) = params.get("prototypes.weight") else { bail!("swav has no prototypes") };
        prototypes.set(&normalize(prototypes.as_tensor())?.detach())?;
        let queue = (config.queue_length > 0).then(|| {
            let scope = root.pp("queue");
            let row = |i: usize| scope.buffer(&i.to_string(), (config.queue_length, d), Init::Const(0.0));
            let rows = (0..config.assigning_views).map(row).collect::<Result<_>>()?;
            Ok::<_, candle_core::Error>(Queue { rows, filled: scope.counter("filled")? })
        });
        Ok(Self { backbone, projector, prototypes, queue: queue.transpose()?, config: config.clone() })
    }

    /// The normalised projections of each view, `(B, D)`: one backbone pass a size, one pass of the head.
    fn embed(&self, views: &[Tensor], context: &StepContext) -> Result<Vec<Tensor>> {
        let (crops, h) =
            Crops::features(views, |x, pass| self.backbone.forward_train(x, context.draws(pass)))?;
        crops.split(&normalize(&self.projector.forward_t(&h, true)?)?)
    }

    /// The scores of the queues, if these are full.
    fn queue_scores(&self, prototypes: &Tensor) -> Result<Vec<Tensor>> {
        match &self.queue {
            Some(queue) if queue.filled.to_scalar::<i64>()? >= self.config.queue_length as i64 => {
                queue.rows.iter().map(|rows| rows.as_detached_tensor().matmul(&prototypes.t()?)).collect()
            }
            _ => Ok(vec![]),
        }
    }

    /// Information of the predictions on the image, `H(mean p) − mean H(p)` in nats, at most `ln K`; entropy of the codes;
    /// how many prototypes are the first choice of a code, and how many could be.
    fn terms(&self, scores: &[Tensor], codes: &[Tensor]) -> Result<Vec<(&'static str, Tensor)>> {
        let s = Tensor::cat(&scores[..codes.len()], 0)?.detach();
        let log_p = log_softmax(&(s / self.config.temperature)?, D::Minus1)?;
        let q = Tensor::cat(codes, 0)?;
        let (rows, k) = q.dims2()?;
        Ok(vec![
            ("prediction_information", prediction_information(&log_p)?),
            ("code_entropy", (entropy(&q)? / rows as f64)?),
            ("used_prototypes", used_columns(&q)?),
            ("possible_prototypes", Tensor::new(k.min(rows) as f32, q.device())?),
            ceiling(k, rows)?,
        ])
    }
}

impl Method for Swav {
    fn num_views(&self) -> RangeInclusive<usize> {
        self.config.assigning_views.max(2)..=MAX_VIEWS
    }

    fn loss(&self, batch: &Batch, context: &StepContext) -> Result<StepOutput> {
        let (views, config) = (&batch.views, &self.config);
        if !self.num_views().contains(&views.len()) {
            bail!("swav needs {:?} views, got {}", self.num_views(), views.len());
        }
        let z = self.embed(views, context)?;
        let current = self.prototypes.as_detached_tensor();
        let frozen = context.step < config.freeze_prototypes_steps;
        let prototypes = if frozen { current.clone() } else { self.prototypes.as_tensor().clone() };
        let all = Tensor::cat(&z, 0)?.matmul(&prototypes.t()?)?; // (V B, K)
        let n = views[0].dim(0)?;
        let scores = (0..z.len()).map(|v| all.narrow(0, v * n, n)).collect::<Result<Vec<_>>>()?;
        let loss = SwavLoss {
            assigning_views: config.assigning_views,
            temperature: config.temperature,
            epsilon: config.sinkhorn_epsilon,
            iterations: config.sinkhorn_iterations,
        };
        let (loss, codes) = loss.forward(&scores, &self.queue_scores(&current)?)?;
        let embeddings: Vec<Tensor> = z[..codes.len()].iter().map(Tensor::detach).collect();
        let memory = if self.queue.is_some() { embeddings.clone() } else { vec![] };
        Ok(StepOutput { loss, terms: self.terms(&scores, &codes)?, embeddings, memory })
    }

    fn after_step(&mut self, context: &StepContext, memory: &[Tensor]) -> Result<()> {
        self.prototypes.set(&normalize(&self.prototypes.as_detached_tensor())?)?;
        let Some(queue) = &self.queue else { return Ok(()) };
        if context.epoch() < self.config.queue_start_epoch {
            return Ok(());
        }
        if memory.len() != queue.rows.len() {
            bail!("swav has {} queues and got the embeddings of {} views", queue.rows.len(), memory.len());
        }
        let length = self.config.queue_length;
        for (rows, z) in queue.rows.iter().zip(memory) {
            let new = z.dim(0)?.min(length);
            let newest = z.narrow(0, z.dim(0)? - new, new)?;
            let kept = rows.as_detached_tensor().narrow(0, 0, length - new)?;
            rows.set(&Tensor::cat(&[&newest, &kept], 0)?)?;
        }
        let seen = queue.filled.to_scalar::<i64>()? + memory[0].dim(0)? as i64;
        queue.filled.set(&Tensor::new(seen.min(length as i64), queue.filled.device())?)
    }

    fn encoder(&self) -> &dyn Backbone {
        &*self.backbone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{CONTEXT, assert_gradients_reach, batch, images, params, resnet};

    fn tiny() -> SwavConfig {
        SwavConfig {
            projector_hidden: 16,
            projector_dim: 6,
            prototypes: 5,
            freeze_prototypes_steps: 0,
            queue_start_epoch: 0,
            ..SwavConfig::default()
        }
    }

    fn value(method: &Swav, batch: &Batch) -> f32 {
        method.loss(batch, &CONTEXT).unwrap().loss.to_scalar().unwrap()
    }

    fn lengths(params: &Params) -> Vec<f32> {
        let weight = params.get("prototypes.weight").unwrap();
        weight.sqr().unwrap().sum(1).unwrap().to_vec1().unwrap()
    }

    #[test]
    fn gradients_reach_all_but_frozen_prototypes() {
        for freeze_prototypes_steps in [0, 1] {
            let params = params();
            let config = SwavConfig { freeze_prototypes_steps, ..tiny() };
            let method = Swav::new(&config, &resnet(), &params).unwrap();
            let without: &[&str] = if freeze_prototypes_steps > 0 { &["prototypes"] } else { &[] };
            assert_gradients_reach(&method, &params, &batch(&[8, 8, 6, 6], 5), without);
        }
    }

    #[test]
    fn the_loss_does_not_change_with_the_order_of_images() {
        let params = params();
        let method = Swav::new(&tiny(), &resnet(), &params).unwrap();
        let plain = images(3, 6);
        let order = Tensor::new(&[3u32, 0, 5, 1, 4, 2], plain.views[0].device()).unwrap();
        let views = plain.views.iter().map(|view| view.index_select(&order, 0).unwrap()).collect();
        assert!((value(&method, &plain) - value(&method, &Batch { views, ..plain.clone() })).abs() < 1e-4);
    }

    #[test]
    fn prototypes_have_length_one_at_creation_and_after_each_step() {
        let params = params();
        let mut method = Swav::new(&tiny(), &resnet(), &params).unwrap();
        assert!(lengths(&params).iter().all(|l| (l - 1.0).abs() < 1e-6));
        let weight = params.get("prototypes.weight").unwrap();
        weight.set(&(weight.as_tensor() * 3.0).unwrap()).unwrap();
        method.after_step(&CONTEXT, &[]).unwrap();
        assert!(lengths(&params).iter().all(|l| (l - 1.0).abs() < 1e-6));
    }

    #[test]
    fn the_queue_holds_the_newest_first_and_is_used_when_full() {
        let params = params();
        let config = SwavConfig { queue_length: 5, queue_start_epoch: 1, ..tiny() };
        let mut method = Swav::new(&config, &resnet(), &params).unwrap();
        let rows = |value: f32| vec![Tensor::full(value, (2, 6), params.device()).unwrap(); 2];
        let first = |params: &Params| {
            let queue = params.get("queue.1").unwrap().narrow(1, 0, 1).unwrap();
            queue.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let plain = value(&method, &images(2, 5));
        method.after_step(&StepContext { step: 4, ..CONTEXT }, &rows(9.0)).unwrap();
        assert_eq!(first(&params), [0.0; 5], "before its epoch");
        for (step, used) in [(5, false), (6, false), (7, true)] {
            method.after_step(&StepContext { step, ..CONTEXT }, &rows(step as f32)).unwrap();
            assert_eq!(value(&method, &images(2, 5)) != plain, used, "step {step}");
        }
        assert_eq!(first(&params), [7.0, 7.0, 6.0, 6.0, 5.0]);
        let many: Vec<_> = (0..2).map(|_| Tensor::full(1f32, (8, 6), params.device()).unwrap()).collect();
        method.after_step(&StepContext { step: 8, ..CONTEXT }, &many).unwrap();
        assert_eq!(first(&params), [1.0; 5]);
        assert!(method.after_step(&StepContext { step: 9, ..CONTEXT }, &[]).is_err());
    }

    #[test]
    fn bad_settings_and_batches_are_refused() {
        let refused = |config: SwavConfig, key: &str| {
            let error = config.validate().unwrap_err();
            assert!(error.contains(key), "{error}");
        };
        refused(
            SwavConfig { sinkhorn_epsilon: 0.0, ..tiny() },
            "method.sinkhorn_epsilon = 0 is not in [0.025, 10]",
        );
        refused(SwavConfig { prototypes: 1, ..tiny() }, "method.prototypes = 1 is not in 2..=1000000");
        refused(SwavConfig { temperature: 0.0, ..tiny() }, "method.temperature = 0 is not in (0, 10]");
        refused(SwavConfig { assigning_views: 0, ..tiny() }, "method.assigning_views = 0 is not in 1..=64");
        refused(
            SwavConfig { queue_start_epoch: 1_000_001, ..tiny() },
            "method.queue_start_epoch = 1000001 is not in 0..=1000000",
        );
        refused(
            SwavConfig { freeze_prototypes_steps: 1_000_000_001, ..tiny() },
            "method.freeze_prototypes_steps = 1000000001 is not in 0..=1000000000",
        );
        let method = Swav::new(&tiny(), &resnet(), &params()).unwrap();
        let error = method.loss(&images(1, 4), &CONTEXT).unwrap_err().to_string();
        assert!(error.contains("2..=64 views, got 1"), "{error}");
    }
}
