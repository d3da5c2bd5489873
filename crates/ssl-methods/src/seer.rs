//! SEER (Goyal et al., 2021, <https://arxiv.org/abs/2103.01988>; official code facebookresearch/vissl): SwAV on random
//! images from the internet, each seen once.
//!
//! It is [`Swav`] with other settings: a projector of three layers without batch norms, more prototypes, more iterations
//! of Sinkhorn-Knopp, no queue. The prototypes' freeze counts steps, since a run has a single epoch; the paper gives no
//! number for it, and it is 0.

use candle_core::Result;
use serde::{Deserialize, Serialize};
use ssl_backbones::BackboneConfig;
use ssl_nn::Params;

use crate::config::{Settings, TrainingData};
use crate::method::Method;
use crate::safeguard::Safeguard;
use crate::swav::{Swav, SwavConfig};

/// Settings of SEER; the defaults are the paper's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SeerConfig {
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
    /// ε of the codes; 0.03 for the network with ten billion parameters.
    pub sinkhorn_epsilon: f64,
    /// Iterations of Sinkhorn-Knopp; 0 for softmax codes.
    pub sinkhorn_iterations: usize,
    /// Optimiser steps, from the first, in which the prototypes stay as they are.
    pub freeze_prototypes_steps: usize,
}

impl Default for SeerConfig {
    fn default() -> Self {
        Self {
            projector_hidden: 8192,
            projector_dim: 256,
            projector_layers: 3,
            projector_norm: false,
            prototypes: 16_000,
            assigning_views: 2,
            temperature: 0.1,
            sinkhorn_epsilon: 0.05,
            sinkhorn_iterations: 10,
            freeze_prototypes_steps: 0,
        }
    }
}

impl SeerConfig {
    /// The same as settings of SwAV.
    pub fn as_swav(&self) -> SwavConfig {
        SwavConfig {
            projector_hidden: self.projector_hidden,
            projector_dim: self.projector_dim,
            projector_layers: self.projector_layers,
            projector_norm: self.projector_norm,
            prototypes: self.prototypes,
            assigning_views: self.assigning_views,
            temperature: self.temperature,
            sinkhorn_epsilon: self.sinkhorn_epsilon,
            sinkhorn_iterations: self.sinkhorn_iterations,
            freeze_prototypes_steps: self.freeze_prototypes_steps,
            queue_length: 0,
            queue_start_epoch: 0,
        }
    }
}

impl Settings for SeerConfig {
    fn validate(&self) -> std::result::Result<(), String> {
        self.as_swav().validate()
    }

    fn safeguard(&self) -> Safeguard {
        Safeguard::new(
            "the equal shares of images that Sinkhorn and Knopp's iterations give to prototypes",
            "an epsilon at which the codes are nearly even, or more prototypes than the batch can fill",
            "method.sinkhorn_epsilon of 0.03 instead of 0.05, fewer method.prototypes, a longer method.freeze_prototypes_steps",
        )
        .unless(self.sinkhorn_iterations == 0, "sinkhorn_iterations", 0, Self::default().sinkhorn_iterations)
    }

    fn build(&self, backbone: &BackboneConfig, params: &Params, _: &TrainingData) -> Result<Box<dyn Method>> {
        Ok(Box::new(Swav::new(&self.as_swav(), backbone, params)?))
    }

    fn augmentation(&self) -> &'static str {
        "seer"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_gradients_reach, batch, params, resnet};

    #[test]
    fn its_projector_has_three_layers_without_norms() {
        let params = params();
        let config =
            SeerConfig { projector_hidden: 16, projector_dim: 6, prototypes: 5, ..SeerConfig::default() };
        let method = Swav::new(&config.as_swav(), &resnet(), &params).unwrap();
        let names =
            params.names().into_iter().filter(|name| !name.starts_with("backbone.")).collect::<Vec<_>>();
        let layer = |i| [format!("projector.{i}.weight"), format!("projector.{i}.bias")];
        let expected = [0, 2, 4].into_iter().flat_map(layer).chain(["prototypes.weight".to_owned()]);
        assert_eq!(names, expected.collect::<Vec<_>>());
        assert_gradients_reach(&method, &params, &batch(&[8, 8, 6, 6], 5), &[]);
    }

    #[test]
    fn bad_settings_are_refused() {
        let error = SeerConfig { projector_layers: 0, ..SeerConfig::default() }.validate().unwrap_err();
        assert!(error.contains("method.projector_layers = 0 is not in 1..=8"), "{error}");
    }
}
