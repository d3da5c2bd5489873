//! SimSiam (Chen & He, 2021, <https://arxiv.org/abs/2011.10566>; official code facebookresearch/simsiam).
//!
//! One encoder `f`, a backbone and a projector, sees both views; a predictor `h` predicts from each what `f` makes of the
//! other. There are neither negatives nor a second network: that no gradient goes through the target is what keeps the
//! embeddings apart.
//!
//! The loss is `½ D(p_1, z_2) + ½ D(p_2, z_1)` with the negative cosine `D`, from -1 to 1. A loss near -1 within the first
//! epochs means collapse. As in the official code, the projector's last batch norm learns nothing, the predictor is a
//! bottleneck without a norm at its end, and its learning rate does not follow the schedule. Deviations: the official
//! code keeps an unused bias before the last norm; it changes the rate once an epoch, the recipes once a step.

use std::ops::RangeInclusive;

use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use ssl_backbones::{Backbone, BackboneConfig};
use ssl_losses::negative_cosine;
use ssl_nn::{Affine, DrawsAt, Mlp, MlpConfig, Params};

use crate::checks;
use crate::config::{Settings, TrainingData};
use crate::method::{Batch, Method, ParameterRule, StepContext, StepOutput};
use crate::safeguard::Safeguard;

/// Settings of SimSiam; the defaults are the paper's for ImageNet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimSiamConfig {
    /// Width of the hidden layers of the projector.
    pub projector_hidden: usize,
    /// Width of the projections, and of the predictions.
    pub projector_dim: usize,
    /// Linear layers of the projector: 3 for ImageNet, 2 for CIFAR-10 in the paper.
    pub projector_layers: usize,
    /// Width of the predictor's hidden layer, a quarter of its input in the paper.
    pub predictor_hidden: usize,
    /// Keep the predictor's learning rate at its peak (the paper's section 4.2: it should adapt to the latest encoder).
    pub constant_predictor_lr: bool,
    /// Let no gradient through the targets; without it the embeddings collapse (the paper's section 4.1).
    pub stop_gradient: bool,
}

impl Default for SimSiamConfig {
    fn default() -> Self {
        Self {
            projector_hidden: 2048,
            projector_dim: 2048,
            projector_layers: 3,
            predictor_hidden: 512,
            constant_predictor_lr: true,
            stop_gradient: true,
        }
    }
}

impl Settings for SimSiamConfig {
    fn validate(&self) -> std::result::Result<(), String> {
        checks::count("projector_hidden", self.projector_hidden, checks::WIDTH)?;
        checks::count("projector_dim", self.projector_dim, checks::WIDTH)?;
        checks::count("projector_layers", self.projector_layers, checks::LAYERS)?;
        checks::count("predictor_hidden", self.predictor_hidden, checks::WIDTH)
    }

    fn safeguard(&self) -> Safeguard {
        Safeguard::new(
            "the stop of the gradient at the targets",
            "a predictor that cannot keep up with its targets, or a learning rate that is too high",
            "a constant rate for the predictor (method.constant_predictor_lr = true), a lower optimizer.lr, no weight decay on norms",
        )
        .unless(!self.stop_gradient, "stop_gradient", false, true)
    }

    fn build(&self, backbone: &BackboneConfig, params: &Params, _: &TrainingData) -> Result<Box<dyn Method>> {
        Ok(Box::new(SimSiam::new(self, backbone, params)?))
    }

    fn augmentation(&self) -> &'static str {
        "moco_v2"
    }
}

/// SimSiam with its encoder and predictor.
pub struct SimSiam {
    backbone: Box<dyn Backbone>,
    projector: Mlp,
    predictor: Mlp,
    config: SimSiamConfig,
}

impl std::fmt::Debug for SimSiam {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimSiam").field("config", &self.config).finish_non_exhaustive()
    }
}

impl SimSiam {
    /// Creates `backbone.*`, `projector.*` and `predictor.*` in `params`.
    ///
    /// # Errors
    /// If a width is 0 or the backbone is unknown.
    pub fn new(config: &SimSiamConfig, backbone: &BackboneConfig, params: &Params) -> Result<Self> {
        let root = params.root();
        let backbone = backbone.build(&root.pp("backbone"))?;
        let mut dims = vec![config.projector_hidden; config.projector_layers + 1];
        dims[0] = backbone.embed_dim();
        dims[config.projector_layers] = config.projector_dim;
        let mlp = MlpConfig {
            hidden_bias: false,
            last_bias: false,
            hidden_norm: true,
            last_norm: Some(Affine::None),
            ..MlpConfig::PLAIN
        };
        let projector = Mlp::new(&dims, mlp, &root.pp("projector"))?;
        let dims = [config.projector_dim, config.predictor_hidden, config.projector_dim];
        let mlp = MlpConfig { last_bias: true, last_norm: None, ..mlp };
        let predictor = Mlp::new(&dims, mlp, &root.pp("predictor"))?;
        Ok(Self { backbone, projector, predictor, config: config.clone() })
    }

    /// The projection `z` and the prediction `p` of a view.
    fn forward(&self, x: &Tensor, draws: Option<DrawsAt>) -> Result<(Tensor, Tensor)> {
        let z = self.projector.forward_t(&self.backbone.forward_train(x, draws)?, true)?;
        let p = self.predictor.forward_t(&z, true)?;
        Ok((z, p))
    }

    fn target(&self, z: &Tensor) -> Tensor {
        if self.config.stop_gradient { z.detach() } else { z.clone() }
    }
}

impl Method for SimSiam {
    fn num_views(&self) -> RangeInclusive<usize> {
        2..=2
    }

    fn loss(&self, batch: &Batch, context: &StepContext) -> Result<StepOutput> {
        let [x_1, x_2] = batch.views.as_slice() else {
            bail!("simsiam needs 2 views, got {}", batch.views.len());
        };
        // Each view has batch statistics of its own, as in the official code.
        let (z_1, p_1) = self.forward(x_1, context.draws(0))?;
        let (z_2, p_2) = self.forward(x_2, context.draws(1))?;
        let (t_1, t_2) = (self.target(&z_1), self.target(&z_2));
        let loss = ((negative_cosine(&p_1, &t_2)? + negative_cosine(&p_2, &t_1)?)? * 0.5)?;
        Ok(StepOutput {
            terms: vec![("cosine", loss.detach().neg()?)],
            loss,
            embeddings: vec![z_1.detach(), z_2.detach()],
            memory: vec![],
        })
    }

    fn parameter_rule(&self, name: &str) -> ParameterRule {
        let constant_lr = self.config.constant_predictor_lr && name.starts_with("predictor.");
        ParameterRule { constant_lr, ..ParameterRule::default() }
    }

    fn encoder(&self) -> &dyn Backbone {
        &*self.backbone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{
        CONTEXT, assert_gradients_reach, assert_order_does_not_matter, images, params, resnet,
    };

    const TINY: SimSiamConfig = SimSiamConfig {
        projector_hidden: 16,
        projector_dim: 12,
        projector_layers: 3,
        predictor_hidden: 6,
        constant_predictor_lr: true,
        stop_gradient: true,
    };

    fn tiny(config: &SimSiamConfig) -> (Params, SimSiam) {
        let params = params();
        let method = SimSiam::new(config, &resnet(), &params).unwrap();
        (params, method)
    }

    #[test]
    fn every_trainable_parameter_gets_a_gradient() {
        for projector_layers in [1, 2, 3] {
            for stop_gradient in [true, false] {
                let (params, method) = tiny(&SimSiamConfig { projector_layers, stop_gradient, ..TINY });
                assert_gradients_reach(&method, &params, &images(2, 5), &[]);
            }
        }
    }

    #[test]
    fn norms_and_biases_stand_where_the_official_code_has_them() {
        let (params, _) = tiny(&TINY);
        let trainable: Vec<_> = params.trainable().into_iter().map(|(name, _)| name).collect();
        let has = |name: &str| trainable.iter().any(|own| own == name);
        // The projector ends in a norm that learns nothing, the predictor in a linear layer with a bias.
        for name in ["projector.6.weight", "projector.4.bias", "predictor.1.bias", "predictor.3.bias"] {
            assert!(has(name), "{name}");
        }
        for name in [
            "projector.0.bias",
            "projector.3.bias",
            "projector.6.bias",
            "projector.7.weight",
            "predictor.0.bias",
        ] {
            assert!(!has(name), "{name}");
        }
        assert!(params.get("projector.7.running_mean").is_some());
    }

    #[test]
    fn the_order_of_views_and_images_does_not_matter() {
        let loss = assert_order_does_not_matter(&tiny(&TINY).1);
        assert!((-1.0..1.0).contains(&loss), "{loss}");
    }

    #[test]
    fn the_target_changes_the_gradient_and_not_the_value() {
        let results: Vec<(f32, Vec<f32>)> = [true, false]
            .map(|stop_gradient| {
                let (params, method) = tiny(&SimSiamConfig { stop_gradient, ..TINY });
                let loss = method.loss(&images(2, 6), &CONTEXT).unwrap().loss;
                let weight = params.get("projector.6.weight").unwrap();
                let grads = loss.backward().unwrap();
                let grad = grads.get(&weight).unwrap().flatten_all().unwrap().to_vec1().unwrap();
                (loss.to_scalar().unwrap(), grad)
            })
            .into();
        assert_eq!(results[0].0, results[1].0);
        assert_ne!(results[0].1, results[1].1);
    }

    #[test]
    fn the_predictors_rate_is_constant_if_wanted() {
        for constant_predictor_lr in [true, false] {
            let (params, method) = tiny(&SimSiamConfig { constant_predictor_lr, ..TINY });
            for (name, _) in params.trainable() {
                let expected = constant_predictor_lr && name.starts_with("predictor");
                assert_eq!(method.parameter_rule(&name).constant_lr, expected, "{name}");
            }
        }
    }

    #[test]
    fn wrong_views_and_settings_are_refused() {
        let error = tiny(&TINY).1.loss(&images(3, 4), &CONTEXT).unwrap_err().to_string();
        assert!(error.contains("2 views, got 3"), "{error}");
        for (bad, message) in [
            (
                SimSiamConfig { projector_hidden: 0, ..TINY },
                "method.projector_hidden = 0 is not in 1..=65536",
            ),
            (SimSiamConfig { projector_dim: 0, ..TINY }, "method.projector_dim = 0 is not in 1..=65536"),
            (SimSiamConfig { projector_layers: 9, ..TINY }, "method.projector_layers = 9 is not in 1..=8"),
            (
                SimSiamConfig { predictor_hidden: 0, ..TINY },
                "method.predictor_hidden = 0 is not in 1..=65536",
            ),
        ] {
            assert_eq!(bad.validate().unwrap_err(), message);
        }
    }
}
