//! VICReg (Bardes et al., 2022, <https://arxiv.org/abs/2105.04906>; official code facebookresearch/vicreg).
//!
//! Two views of every image go through one encoder `f` and one expander `h`. The loss draws the embeddings of the views
//! together (invariance), keeps the standard deviation of every dimension at 1 or above (variance), and takes the
//! correlations between dimensions away (covariance). The variance part prevents collapse to a point, the covariance part
//! dimensions that all say the same. Nothing is normalised, so that the embeddings can also collapse by shrinking; the
//! term `deviation` tells.
//!
//! Paper and official code differ in the variance part: the code takes the mean of the two views' and so half of the
//! paper's sum (`halve_variance`). Deviations: none known.

use std::ops::RangeInclusive;

use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use ssl_backbones::{Backbone, BackboneConfig};
use ssl_losses::vicreg_terms;
use ssl_nn::{Mlp, MlpConfig, Params};

use crate::checks;
use crate::config::{Settings, TrainingData};
use crate::method::{Batch, Method, StepContext, StepOutput};
use crate::safeguard::Safeguard;

/// Settings of VICReg; the defaults are the official code's for ImageNet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VicRegConfig {
    /// Width of the hidden layers of the projector, which the paper calls expander.
    pub projector_hidden: usize,
    /// Width of the embeddings that the loss compares.
    pub projector_dim: usize,
    /// Linear layers of the projector.
    pub projector_layers: usize,
    /// λ, the factor of the distance between the views.
    pub invariance_weight: f64,
    /// μ, the factor of the variance part; with 0 the embeddings collapse to a point.
    pub variance_weight: f64,
    /// ν, the factor of the covariance part; with 0 dimensions may repeat each other.
    pub covariance_weight: f64,
    /// Take the mean of the two views' variance parts, as the official code does, rather than their sum, as the paper does.
    pub halve_variance: bool,
}

impl Default for VicRegConfig {
    fn default() -> Self {
        Self {
            projector_hidden: 8192,
            projector_dim: 8192,
            projector_layers: 3,
            invariance_weight: 25.0,
            variance_weight: 25.0,
            covariance_weight: 1.0,
            halve_variance: true,
        }
    }
}

impl Settings for VicRegConfig {
    fn validate(&self) -> std::result::Result<(), String> {
        checks::count("projector_hidden", self.projector_hidden, checks::WIDTH)?;
        checks::count("projector_dim", self.projector_dim, checks::WIDTH)?;
        checks::count("projector_layers", self.projector_layers, checks::LAYERS)?;
        checks::number("invariance_weight", self.invariance_weight, 0.0..=1e4)?;
        checks::number("variance_weight", self.variance_weight, 0.0..=1e4)?;
        checks::number("covariance_weight", self.covariance_weight, 0.0..=1e4)
    }

    fn safeguard(&self) -> Safeguard {
        Safeguard::new(
            "the variance and covariance parts of the loss",
            "weights of the variance and covariance parts that are too small beside that of the invariance, or a learning rate \
             that is too high",
            "method.variance_weight of at least method.invariance_weight, method.covariance_weight of 1, a lower optimizer.lr",
        )
        .unless(self.variance_weight == 0.0, "variance_weight", 0, Self::default().variance_weight)
        .unless(self.covariance_weight == 0.0, "covariance_weight", 0, Self::default().covariance_weight)
    }

    fn build(&self, backbone: &BackboneConfig, params: &Params, _: &TrainingData) -> Result<Box<dyn Method>> {
        Ok(Box::new(VicReg::new(self, backbone, params)?))
    }

    fn augmentation(&self) -> &'static str {
        "byol"
    }
}

/// VICReg with its encoder and projector.
pub struct VicReg {
    backbone: Box<dyn Backbone>,
    projector: Mlp,
    config: VicRegConfig,
}

impl std::fmt::Debug for VicReg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VicReg").field("config", &self.config).finish_non_exhaustive()
    }
}

impl VicReg {
    /// Creates `backbone.*` and `projector.*` in `params`.
    ///
    /// # Errors
    /// If a width is 0 or the backbone is unknown.
    pub fn new(config: &VicRegConfig, backbone: &BackboneConfig, params: &Params) -> Result<Self> {
        let backbone = backbone.build(&params.root().pp("backbone"))?;
        let mut dims = vec![config.projector_hidden; config.projector_layers + 1];
        dims[0] = backbone.embed_dim();
        dims[config.projector_layers] = config.projector_dim;
        let mlp = MlpConfig { last_bias: false, hidden_norm: true, ..MlpConfig::PLAIN };
        let projector = Mlp::new(&dims, mlp, &params.root().pp("projector"))?;
        Ok(Self { backbone, projector, config: config.clone() })
    }
}

impl Method for VicReg {
    fn num_views(&self) -> RangeInclusive<usize> {
        2..=2
    }

    fn loss(&self, batch: &Batch, context: &StepContext) -> Result<StepOutput> {
        let [x_a, x_b] = batch.views.as_slice() else {
            bail!("vicreg needs 2 views, got {}", batch.views.len());
        };
        // Each view has batch statistics of its own, as in the official code.
        let z_a = self.projector.forward_t(&self.backbone.forward_train(x_a, context.draws(0))?, true)?;
        let z_b = self.projector.forward_t(&self.backbone.forward_train(x_b, context.draws(1))?, true)?;
        let c = &self.config;
        let terms = vicreg_terms(&z_a, &z_b, c.halve_variance)?;
        let loss = ((&terms.invariance * c.invariance_weight)? + (&terms.variance * c.variance_weight)?)?;
        let loss = (loss + (&terms.covariance * c.covariance_weight)?)?;
        // Variances and covariances know no mean, so what looks at the spread need not either.
        let embeddings = vec![centred(&z_a)?, centred(&z_b)?];
        let deviation = embeddings[0].sqr()?.mean(0)?.sqrt()?.mean_all()?;
        Ok(StepOutput {
            loss,
            terms: vec![
                ("invariance", terms.invariance.detach()),
                ("variance", terms.variance.detach()),
                ("covariance", terms.covariance.detach()),
                ("deviation", deviation),
            ],
            embeddings,
            memory: vec![],
        })
    }

    fn encoder(&self) -> &dyn Backbone {
        &*self.backbone
    }
}

/// Embeddings less their mean over the batch, detached.
fn centred(z: &Tensor) -> Result<Tensor> {
    let z = z.detach();
    z.broadcast_sub(&z.mean_keepdim(0)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{
        CONTEXT, assert_gradients_reach, assert_order_does_not_matter, images, params, resnet,
    };

    const TINY: VicRegConfig = VicRegConfig {
        projector_hidden: 16,
        projector_dim: 12,
        projector_layers: 3,
        invariance_weight: 25.0,
        variance_weight: 25.0,
        covariance_weight: 1.0,
        halve_variance: true,
    };

    fn tiny(config: &VicRegConfig) -> (Params, VicReg) {
        let params = params();
        let method = VicReg::new(config, &resnet(), &params).unwrap();
        (params, method)
    }

    /// The loss, its three parts, and the deviation.
    fn step(method: &VicReg) -> [f32; 5] {
        let StepOutput { loss, terms, .. } = method.loss(&images(2, 6), &CONTEXT).unwrap();
        [&loss, &terms[0].1, &terms[1].1, &terms[2].1, &terms[3].1].map(|t| t.to_scalar().unwrap())
    }

    #[test]
    fn every_trainable_parameter_gets_a_gradient() {
        for projector_layers in [1, 3] {
            let (params, method) = tiny(&VicRegConfig { projector_layers, ..TINY });
            assert_gradients_reach(&method, &params, &images(2, 5), &[]);
        }
    }

    #[test]
    fn hidden_layers_have_a_bias_and_the_last_one_neither_bias_nor_norm() {
        let names = tiny(&TINY).0.names();
        assert!(
            ["projector.0.bias", "projector.3.bias"].iter().all(|name| names.iter().any(|own| own == name))
        );
        assert_eq!(names.last().unwrap(), "projector.6.weight");
    }

    #[test]
    fn the_order_of_views_and_images_does_not_matter() {
        assert!(assert_order_does_not_matter(&tiny(&TINY).1) > 0.0);
    }

    #[test]
    fn the_loss_is_the_weighted_sum_of_its_terms() {
        let config =
            VicRegConfig { invariance_weight: 3.0, variance_weight: 5.0, covariance_weight: 7.0, ..TINY };
        let [loss, invariance, variance, covariance, deviation] = step(&tiny(&config).1);
        let sum = 3.0 * invariance + 5.0 * variance + 7.0 * covariance;
        assert!((loss - sum).abs() < 1e-5 * loss, "{loss} is not {sum}");
        assert!(deviation > 0.0 && variance < 1.0 && covariance > 0.0);
        let [.., double, _, _] = step(&tiny(&VicRegConfig { halve_variance: false, ..config }).1);
        assert!((double - 2.0 * variance).abs() < 1e-5);
    }

    #[test]
    fn a_shrunk_projector_shows_in_the_deviation_and_costs_its_variance() {
        let (params, method) = tiny(&TINY);
        let last = params.get("projector.6.weight").unwrap();
        let before = step(&method)[4];
        last.set(&(last.as_tensor() * 0.5).unwrap()).unwrap();
        assert!((step(&method)[4] - 0.5 * before).abs() < 1e-6);
        last.set(&last.zeros_like().unwrap()).unwrap();
        let [loss, .., deviation] = step(&method);
        assert!((loss - 24.75).abs() < 1e-4 && deviation == 0.0, "{loss}");
    }

    #[test]
    fn wrong_views_and_settings_are_refused() {
        let error = tiny(&TINY).1.loss(&images(3, 4), &CONTEXT).unwrap_err().to_string();
        assert!(error.contains("2 views, got 3"), "{error}");
        for (bad, message) in [
            (VicRegConfig { projector_hidden: 0, ..TINY }, "method.projector_hidden = 0 is not in 1..=65536"),
            (VicRegConfig { projector_dim: 0, ..TINY }, "method.projector_dim = 0 is not in 1..=65536"),
            (VicRegConfig { projector_layers: 0, ..TINY }, "method.projector_layers = 0 is not in 1..=8"),
            (
                VicRegConfig { invariance_weight: -1.0, ..TINY },
                "method.invariance_weight = -1 is not in [0, 10000]",
            ),
            (
                VicRegConfig { variance_weight: -1.0, ..TINY },
                "method.variance_weight = -1 is not in [0, 10000]",
            ),
            (
                VicRegConfig { covariance_weight: 1e5, ..TINY },
                "method.covariance_weight = 100000 is not in [0, 10000]",
            ),
        ] {
            assert_eq!(bad.validate().unwrap_err(), message);
        }
    }
}
