//! Barlow Twins (Zbontar et al., 2021, <https://arxiv.org/abs/2103.03230>; official code facebookresearch/barlowtwins).
//!
//! Two views of every image go through one encoder `f` and one projector `g`; the loss draws the cross-correlation of
//! their projections towards the identity: every dimension says the same of both views, and different dimensions say
//! different things. The second part prevents collapse.
//!
//! The loss is a plain sum over the `D²` entries, times `loss_scale`. LARS does not notice that factor; an optimiser whose
//! steps grow with the gradient does, and weight decay as well. Deviations: none known; the official code's first release
//! had a scale of 1/32, its later one a learning rate of their own for biases and norms (`bias_and_norm_lr_factor` of LARS).

use std::ops::RangeInclusive;

use candle_core::{Result, bail};
use serde::{Deserialize, Serialize};
use ssl_backbones::{Backbone, BackboneConfig};
use ssl_losses::{BarlowTwinsTerms, barlow_twins_terms, standardize};
use ssl_nn::{Mlp, MlpConfig, Params};

use crate::checks;
use crate::config::{Settings, TrainingData};
use crate::method::{Batch, Method, StepContext, StepOutput};
use crate::safeguard::Safeguard;

/// Settings of Barlow Twins; the defaults are the paper's for ImageNet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BarlowTwinsConfig {
    /// Width of the hidden layers of the projector.
    pub projector_hidden: usize,
    /// Width of the projections; the paper gains up to 16384.
    pub projector_dim: usize,
    /// Linear layers of the projector.
    pub projector_layers: usize,
    /// λ, the factor of the entries off the diagonal; with 0 all dimensions may say the same.
    pub lambda: f64,
    /// Factor of the whole loss.
    pub loss_scale: f64,
}

impl Default for BarlowTwinsConfig {
    fn default() -> Self {
        Self {
            projector_hidden: 8192,
            projector_dim: 8192,
            projector_layers: 3,
            lambda: 0.0051,
            loss_scale: 1.0,
        }
    }
}

impl Settings for BarlowTwinsConfig {
    fn validate(&self) -> std::result::Result<(), String> {
        checks::count("projector_hidden", self.projector_hidden, checks::WIDTH)?;
        checks::count("projector_dim", self.projector_dim, checks::WIDTH)?;
        checks::count("projector_layers", self.projector_layers, checks::LAYERS)?;
        checks::number("lambda", self.lambda, 0.0..=1e4)?;
        checks::number("loss_scale", self.loss_scale, 1e-6..=1e6)
    }

    fn safeguard(&self) -> Safeguard {
        Safeguard::new(
            "the redundancy part of the loss, which makes dimensions tell different things",
            "too little weight on the redundancy part, or a learning rate that is too high",
            "a larger method.lambda (0.0051 in the paper), a wider method.projector_dim, a lower optimizer.lr",
        )
        .unless(self.lambda == 0.0, "lambda", 0, Self::default().lambda)
    }

    fn build(&self, backbone: &BackboneConfig, params: &Params, _: &TrainingData) -> Result<Box<dyn Method>> {
        Ok(Box::new(BarlowTwins::new(self, backbone, params)?))
    }

    fn augmentation(&self) -> &'static str {
        "byol"
    }
}

/// Barlow Twins with its encoder and projector.
pub struct BarlowTwins {
    backbone: Box<dyn Backbone>,
    projector: Mlp,
    lambda: f64,
    loss_scale: f64,
}

impl std::fmt::Debug for BarlowTwins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BarlowTwins").field("lambda", &self.lambda).finish_non_exhaustive()
    }
}

impl BarlowTwins {
    /// Creates `backbone.*` and `projector.*` in `params`.
    ///
    /// # Errors
    /// If a width is 0 or the backbone is unknown.
    pub fn new(config: &BarlowTwinsConfig, backbone: &BackboneConfig, params: &Params) -> Result<Self> {
        let backbone = backbone.build(&params.root().pp("backbone"))?;
        let mut dims = vec![config.projector_hidden; config.projector_layers + 1];
        dims[0] = backbone.embed_dim();
        dims[config.projector_layers] = config.projector_dim;
        let mlp = MlpConfig { hidden_bias: false, last_bias: false, hidden_norm: true, ..MlpConfig::PLAIN };
        let projector = Mlp::new(&dims, mlp, &params.root().pp("projector"))?;
        Ok(Self { backbone, projector, lambda: config.lambda, loss_scale: config.loss_scale })
    }
}

impl Method for BarlowTwins {
    fn num_views(&self) -> RangeInclusive<usize> {
        2..=2
    }

    fn loss(&self, batch: &Batch, context: &StepContext) -> Result<StepOutput> {
        let [x_a, x_b] = batch.views.as_slice() else {
            bail!("barlow-twins needs 2 views, got {}", batch.views.len());
        };
        // Each view has batch statistics of its own, as in the official code.
        let z_a = self.projector.forward_t(&self.backbone.forward_train(x_a, context.draws(0))?, true)?;
        let z_b = self.projector.forward_t(&self.backbone.forward_train(x_b, context.draws(1))?, true)?;
        let BarlowTwinsTerms { invariance, redundancy } = barlow_twins_terms(&z_a, &z_b)?;
        let loss = ((&invariance + (&redundancy * self.lambda)?)? * self.loss_scale)?;
        Ok(StepOutput {
            loss,
            terms: vec![("invariance", invariance.detach()), ("redundancy", redundancy.detach())],
            // Standardised, as the loss sees them: it knows nothing of means and scales.
            embeddings: vec![standardize(&z_a.detach())?, standardize(&z_b.detach())?],
            memory: vec![],
        })
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

    const TINY: BarlowTwinsConfig = BarlowTwinsConfig {
        projector_hidden: 16,
        projector_dim: 12,
        projector_layers: 3,
        lambda: 0.0051,
        loss_scale: 1.0,
    };

    fn tiny(config: &BarlowTwinsConfig) -> (Params, BarlowTwins) {
        let params = params();
        let method = BarlowTwins::new(config, &resnet(), &params).unwrap();
        (params, method)
    }

    fn step(method: &BarlowTwins) -> [f32; 3] {
        let StepOutput { loss, terms, .. } = method.loss(&images(2, 6), &CONTEXT).unwrap();
        [&loss, &terms[0].1, &terms[1].1].map(|t| t.to_scalar().unwrap())
    }

    #[test]
    fn every_trainable_parameter_gets_a_gradient() {
        for projector_layers in [1, 3] {
            let (params, method) = tiny(&BarlowTwinsConfig { projector_layers, ..TINY });
            assert_gradients_reach(&method, &params, &images(2, 5), &[]);
        }
    }

    #[test]
    fn the_projector_has_no_biases_and_ends_without_a_norm() {
        let names = tiny(&TINY).0.names();
        let own: Vec<_> = names.iter().filter(|name| name.starts_with("projector.")).collect();
        assert!(
            own.iter().all(|name| !name.ends_with(".bias") || name.contains(".1.") || name.contains(".4."))
        );
        assert_eq!(own.last().unwrap().as_str(), "projector.6.weight");
    }

    #[test]
    fn the_order_of_views_and_images_does_not_matter() {
        assert!(assert_order_does_not_matter(&tiny(&TINY).1) > 0.0);
    }

    #[test]
    fn the_loss_is_the_scaled_sum_of_its_terms() {
        let config = BarlowTwinsConfig { lambda: 0.5, loss_scale: 0.1, ..TINY };
        let [loss, invariance, redundancy] = step(&tiny(&config).1);
        assert!((loss - 0.1 * (invariance + 0.5 * redundancy)).abs() < 1e-5 * loss, "{loss}");
        assert!(invariance > 0.0 && redundancy > 0.0);
    }

    #[test]
    fn a_collapsed_projector_costs_its_dimensions() {
        let (params, method) = tiny(&TINY);
        let last = params.get("projector.6.weight").unwrap();
        last.set(&last.zeros_like().unwrap()).unwrap();
        assert_eq!(step(&method), [12.0, 12.0, 0.0]);
    }

    #[test]
    fn wrong_views_and_settings_are_refused() {
        let error = tiny(&TINY).1.loss(&images(1, 4), &CONTEXT).unwrap_err().to_string();
        assert!(error.contains("2 views, got 1"), "{error}");
        for (bad, message) in [
            (
                BarlowTwinsConfig { projector_hidden: 0, ..TINY },
                "method.projector_hidden = 0 is not in 1..=65536",
            ),
            (BarlowTwinsConfig { projector_dim: 0, ..TINY }, "method.projector_dim = 0 is not in 1..=65536"),
            (
                BarlowTwinsConfig { projector_layers: 0, ..TINY },
                "method.projector_layers = 0 is not in 1..=8",
            ),
            (BarlowTwinsConfig { lambda: -1.0, ..TINY }, "method.lambda = -1 is not in [0, 10000]"),
            (
                BarlowTwinsConfig { loss_scale: 0.0, ..TINY },
                "method.loss_scale = 0 is not in [0.000001, 1000000]",
            ),
        ] {
            assert_eq!(bad.validate().unwrap_err(), message);
        }
    }
}
