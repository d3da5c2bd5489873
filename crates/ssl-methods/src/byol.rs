//! BYOL (Grill et al., 2020, <https://arxiv.org/abs/2006.07733>; official code deepmind/deepmind-research/byol).
//!
//! An online network, encoder `f`, projector `g` and predictor `q`, predicts from one view what a slow copy of `f` and `g`,
//! the target, makes of the other. There are no negatives: the predictor, the target without gradient and its slow
//! average keep the embeddings apart.
//!
//! The loss is `(2 − 2 cos(q_1, z'_2)) + (2 − 2 cos(q_2, z'_1))`, from 0 to 8, about 4 at the start. The target runs in
//! training mode, with batch statistics, and its parameters follow after each optimiser step by a momentum that rises
//! to 1 along a cosine. Deviations: the target starts as a copy of the online network, where the official code draws
//! other initial weights.

use std::ops::RangeInclusive;

use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use ssl_backbones::{Backbone, BackboneConfig};
use ssl_losses::negative_cosine;
use ssl_nn::{DrawsAt, Mlp, MlpConfig, Params, Schedule, Scope};

use crate::checks;
use crate::config::{Settings, TrainingData};
use crate::method::{Batch, Method, StepContext, StepOutput};
use crate::safeguard::Safeguard;
use crate::teacher::{self, Teacher};

/// Settings of BYOL; the defaults are the paper's for ImageNet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ByolConfig {
    /// Width of the projector's hidden layer.
    pub projector_hidden: usize,
    /// Width of the projections, and of the predictions.
    pub projector_dim: usize,
    /// Width of the predictor's hidden layer; 0 for no predictor, without which the embeddings collapse.
    pub predictor_hidden: usize,
    /// m, the share of the old target that is kept at the first step: 0.996 for 1000 epochs, 0.99 for 100 and 300.
    pub momentum: f64,
    /// m at the end of the run.
    pub final_momentum: f64,
}

impl Default for ByolConfig {
    fn default() -> Self {
        Self {
            projector_hidden: 4096,
            projector_dim: 256,
            predictor_hidden: 4096,
            momentum: 0.996,
            final_momentum: 1.0,
        }
    }
}

impl Settings for ByolConfig {
    fn validate(&self) -> std::result::Result<(), String> {
        checks::count("projector_hidden", self.projector_hidden, checks::WIDTH)?;
        checks::count("projector_dim", self.projector_dim, checks::WIDTH)?;
        checks::count("predictor_hidden", self.predictor_hidden, 0..=*checks::WIDTH.end())?;
        checks::number("momentum", self.momentum, 0.0..=1.0)?;
        checks::number("final_momentum", self.final_momentum, 0.0..=1.0)
    }

    fn safeguard(&self) -> Safeguard {
        Safeguard::new(
            "the predictor in front of a slowly moving target",
            "a target that follows too fast for the predictor, or a learning rate or weight decay that is too high",
            "method.momentum of 0.99 or more, a lower optimizer.lr, batch norm in the predictor",
        )
        .unless(self.predictor_hidden == 0, "predictor_hidden", 0, Self::default().predictor_hidden)
        .unless(self.momentum == 0.0, "momentum", 0, Self::default().momentum)
    }

    fn build(&self, backbone: &BackboneConfig, params: &Params, _: &TrainingData) -> Result<Box<dyn Method>> {
        Ok(Box::new(Byol::new(self, backbone, params)?))
    }

    fn augmentation(&self) -> &'static str {
        "byol"
    }
}

/// BYOL with its online and target networks.
pub struct Byol {
    online: Projected,
    predictor: Option<Mlp>,
    target: Projected,
    teacher: Teacher,
    config: ByolConfig,
}

/// An encoder and its projector.
struct Projected {
    backbone: Box<dyn Backbone>,
    projector: Mlp,
}

/// The first linear layer with a bias, the last one without, and nothing after it.
const MLP: MlpConfig = MlpConfig { last_bias: false, hidden_norm: true, ..MlpConfig::PLAIN };

impl std::fmt::Debug for Byol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Byol").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Projected {
    fn new(config: &ByolConfig, backbone: &BackboneConfig, scope: &Scope) -> Result<Self> {
        let backbone = backbone.build(&scope.pp("backbone"))?;
        let dims = [backbone.embed_dim(), config.projector_hidden, config.projector_dim];
        let projector = Mlp::new(&dims, MLP, &scope.pp("projector"))?;
        Ok(Self { backbone, projector })
    }

    fn forward(&self, x: &Tensor, draws: Option<DrawsAt>) -> Result<Tensor> {
        self.projector.forward_t(&self.backbone.forward_train(x, draws)?, true)
    }
}

impl Byol {
    /// Creates `backbone.*`, `projector.*` and `predictor.*`, and `teacher.*` for the target, in `params`.
    ///
    /// # Errors
    /// If a width is 0 or the backbone is unknown.
    pub fn new(config: &ByolConfig, backbone: &BackboneConfig, params: &Params) -> Result<Self> {
        let root = params.root();
        let online = Projected::new(config, backbone, &root)?;
        let dims = [config.projector_dim, config.predictor_hidden, config.projector_dim];
        let predictor = (config.predictor_hidden > 0).then(|| Mlp::new(&dims, MLP, &root.pp("predictor")));
        let predictor = predictor.transpose()?;
        let target = Projected::new(config, backbone, &root.pp(teacher::PREFIX).frozen())?;
        let teacher = Teacher::copy_student(params)?;
        Ok(Self { online, predictor, target, teacher, config: config.clone() })
    }
}

impl Method for Byol {
    fn num_views(&self) -> RangeInclusive<usize> {
        2..=2
    }

    fn loss(&self, batch: &Batch, context: &StepContext) -> Result<StepOutput> {
        let [x_1, x_2] = batch.views.as_slice() else {
            bail!("byol needs 2 views, got {}", batch.views.len());
        };
        // Each view has batch statistics of its own, as in the official code.
        let z_1 = self.online.forward(x_1, context.draws(0))?;
        let z_2 = self.online.forward(x_2, context.draws(1))?;
        let predict = |z: &Tensor| match &self.predictor {
            Some(predictor) => predictor.forward_t(z, true),
            None => Ok(z.clone()),
        };
        let (q_1, q_2) = (predict(&z_1)?, predict(&z_2)?);
        let target = |x: &Tensor| Ok::<_, candle_core::Error>(self.target.forward(x, None)?.detach());
        let (t_1, t_2) = (target(x_1)?, target(x_2)?);
        let cosines = (negative_cosine(&q_1, &t_2)? + negative_cosine(&q_2, &t_1)?)?;
        let loss = ((&cosines * 2.0)? + 4.0)?;
        let alignment = (cosines.detach() * -0.5)?;
        Ok(StepOutput {
            loss,
            terms: vec![("cosine", alignment)],
            embeddings: vec![z_1.detach(), z_2.detach()],
            memory: vec![],
        })
    }

    fn after_step(&mut self, context: &StepContext, _: &[Tensor]) -> Result<()> {
        let ByolConfig { momentum, final_momentum, .. } = self.config;
        let m = Schedule::cosine(momentum, final_momentum, context.total_steps);
        self.teacher.follow(m.at(context.step))
    }

    fn encoder(&self) -> &dyn Backbone {
        &*self.online.backbone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{
        CONTEXT, assert_gradients_reach, assert_order_does_not_matter, images, params, resnet,
    };

    const TINY: ByolConfig = ByolConfig {
        projector_hidden: 16,
        projector_dim: 6,
        predictor_hidden: 12,
        momentum: 0.9,
        final_momentum: 1.0,
    };

    #[test]
    fn the_online_network_gets_gradients_and_the_target_none() {
        let params = params();
        let method = Byol::new(&TINY, &resnet(), &params).unwrap();
        assert_gradients_reach(&method, &params, &images(2, 5), &[]);
        let trainable = params.trainable();
        assert!(trainable.iter().all(|(name, _)| !name.starts_with("teacher.")));
    }

    #[test]
    fn the_target_starts_as_a_copy_and_follows_by_the_closed_form() {
        let params = params();
        let mut method = Byol::new(&ByolConfig { final_momentum: 0.9, ..TINY }, &resnet(), &params).unwrap();
        let get = |name: &str| params.get(name).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let start = get("projector.0.weight");
        assert_eq!(get("teacher.projector.0.weight"), start);
        let online = params.get("projector.0.weight").unwrap();
        online.set(&(online.as_tensor() + 1.0).unwrap()).unwrap();
        for step in 0..4 {
            method.after_step(&StepContext { step, ..CONTEXT }, &[]).unwrap();
        }
        // A constant student s and m: s + m^t (t0 - s), and s - t0 is 1 here.
        let gap = 1.0 - 0.9f32.powi(4);
        let target = get("teacher.projector.0.weight");
        assert!(target.iter().zip(&start).all(|(t, t0)| (t - t0 - gap).abs() < 1e-5));
        assert_eq!(get("teacher.backbone.bn1.running_mean"), vec![0.0; 4]);
    }

    #[test]
    fn the_order_of_views_and_images_does_not_matter() {
        let loss = assert_order_does_not_matter(&Byol::new(&TINY, &resnet(), &params()).unwrap());
        assert!((0.0..8.0).contains(&loss), "{loss}");
    }

    #[test]
    fn without_a_predictor_a_target_that_is_the_online_network_finds_equal_views_equal() {
        let batch = images(2, 6);
        let equal = Batch { views: vec![batch.views[0].clone(); 2], ..batch.clone() };
        let loss = |config: &ByolConfig, batch: &Batch| {
            let method = Byol::new(config, &resnet(), &params()).unwrap();
            method.loss(batch, &CONTEXT).unwrap().loss.to_scalar::<f32>().unwrap()
        };
        let without = ByolConfig { predictor_hidden: 0, ..TINY };
        assert!(loss(&without, &equal).abs() < 1e-5);
        assert!(loss(&without, &batch) > 1e-3 && loss(&TINY, &equal) > 1e-3);
    }

    #[test]
    fn the_momentum_rises_to_its_final_value_along_a_cosine() {
        let params = params();
        let mut method = Byol::new(&TINY, &resnet(), &params).unwrap();
        let get = |name: &str| params.get(name).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()[0];
        let online = params.get("projector.0.weight").unwrap();
        online.set(&(online.as_tensor() + 1.0).unwrap()).unwrap();
        // Half-way the momentum is 0.95, at the end 1.
        let gap = || get("projector.0.weight") - get("teacher.projector.0.weight");
        method.after_step(&StepContext { step: 5, ..CONTEXT }, &[]).unwrap();
        assert!((gap() - 0.95).abs() < 1e-5, "{}", gap());
        method.after_step(&StepContext { step: 10, ..CONTEXT }, &[]).unwrap();
        assert!((gap() - 0.95).abs() < 1e-5, "{}", gap());
    }

    #[test]
    fn wrong_views_and_settings_are_refused() {
        let method = Byol::new(&TINY, &resnet(), &params()).unwrap();
        let error = method.loss(&images(3, 4), &CONTEXT).unwrap_err().to_string();
        assert!(error.contains("2 views, got 3"), "{error}");
        for (bad, message) in [
            (ByolConfig { projector_hidden: 0, ..TINY }, "method.projector_hidden = 0 is not in 1..=65536"),
            (ByolConfig { projector_dim: 0, ..TINY }, "method.projector_dim = 0 is not in 1..=65536"),
            (
                ByolConfig { predictor_hidden: 70_000, ..TINY },
                "method.predictor_hidden = 70000 is not in 0..=65536",
            ),
            (ByolConfig { momentum: 1.5, ..TINY }, "method.momentum = 1.5 is not in [0, 1]"),
            (ByolConfig { final_momentum: -0.5, ..TINY }, "method.final_momentum = -0.5 is not in [0, 1]"),
        ] {
            assert_eq!(bad.validate().unwrap_err(), message);
        }
    }
}
