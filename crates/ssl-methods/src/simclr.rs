//! SimCLR (Chen et al., 2020, <https://arxiv.org/abs/2002.05709>; official code google-research/simclr).
//!
//! Two views of every image go through one encoder `f` and one projector `g`; the loss asks each projection to find the
//! other view of its image among all other projections of the batch. Negatives prevent collapse.
//!
//! As in the official code, both views pass in one batch, so that batch norms see `2N` samples, and every linear layer
//! of the projector is without bias and followed by a batch norm, the last one without a shift. The loss is the mean over
//! the `2N` anchors (the paper's equation; the official code has twice that). Deviations: the linear layers start as
//! PyTorch's rather than from a normal with standard deviation 0.01, which makes no difference under a batch norm.

use std::ops::RangeInclusive;

use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use ssl_backbones::{Backbone, BackboneConfig};
use ssl_losses::nt_xent;
use ssl_nn::{Affine, Mlp, MlpConfig, Params};

use crate::checks;
use crate::config::{Settings, TrainingData};
use crate::contrast::{ceiling, cosines, cross_view_terms};
use crate::method::{Batch, Method, StepContext, StepOutput};
use crate::safeguard::Safeguard;

/// Settings of SimCLR; the defaults are the paper's for ImageNet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SimClrConfig {
    /// τ, the divisor of the similarities; 0.1 for ImageNet, 0.5 for CIFAR-10 in the paper.
    pub temperature: f64,
    /// Width of the hidden layers of the projector; 0 stands for the width of the embedding, as in the paper.
    pub projector_hidden: usize,
    /// Width of the projections.
    pub projector_dim: usize,
    /// Linear layers of the projector: 2 in the paper, 3 in SimCLR v2.
    pub projector_layers: usize,
}

impl Default for SimClrConfig {
    fn default() -> Self {
        Self { temperature: 0.1, projector_hidden: 0, projector_dim: 128, projector_layers: 2 }
    }
}

impl Settings for SimClrConfig {
    fn validate(&self) -> std::result::Result<(), String> {
        checks::temperature("temperature", self.temperature)?;
        checks::count("projector_hidden", self.projector_hidden, 0..=*checks::WIDTH.end())?;
        checks::count("projector_dim", self.projector_dim, checks::WIDTH)?;
        checks::count("projector_layers", self.projector_layers, checks::LAYERS)
    }

    fn safeguard(&self) -> Safeguard {
        Safeguard::new(
            "the other images of the batch, from which the loss drives each image away",
            "a temperature at which all images look alike, views that share too little, or a learning rate that is too high",
            "method.temperature between 0.1 and 0.5, larger crops (augment.crop_scale), a lower optimizer.lr, a larger train.batch_size",
        )
    }

    fn build(&self, backbone: &BackboneConfig, params: &Params, _: &TrainingData) -> Result<Box<dyn Method>> {
        Ok(Box::new(SimClr::new(self, backbone, params)?))
    }

    fn augmentation(&self) -> &'static str {
        "simclr"
    }
}

/// SimCLR with its encoder and projector.
pub struct SimClr {
    backbone: Box<dyn Backbone>,
    projector: Mlp,
    temperature: f64,
}

impl std::fmt::Debug for SimClr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimClr").field("temperature", &self.temperature).finish_non_exhaustive()
    }
}

impl SimClr {
    /// Creates `backbone.*` and `projector.*` in `params`.
    ///
    /// # Errors
    /// If a width is 0 or the backbone is unknown.
    pub fn new(config: &SimClrConfig, backbone: &BackboneConfig, params: &Params) -> Result<Self> {
        let backbone = backbone.build(&params.root().pp("backbone"))?;
        let d = backbone.embed_dim();
        let hidden = if config.projector_hidden == 0 { d } else { config.projector_hidden };
        let mut dims = vec![hidden; config.projector_layers + 1];
        dims[0] = d;
        dims[config.projector_layers] = config.projector_dim;
        let mlp = MlpConfig {
            hidden_bias: false,
            last_bias: false,
            hidden_norm: true,
            last_norm: Some(Affine::Scale),
            ..MlpConfig::PLAIN
        };
        let projector = Mlp::new(&dims, mlp, &params.root().pp("projector"))?;
        Ok(Self { backbone, projector, temperature: config.temperature })
    }
}

impl Method for SimClr {
    fn num_views(&self) -> RangeInclusive<usize> {
        2..=2
    }

    fn loss(&self, batch: &Batch, context: &StepContext) -> Result<StepOutput> {
        let [x_a, x_b] = batch.views.as_slice() else {
            bail!("simclr needs 2 views, got {}", batch.views.len());
        };
        let n = x_a.dim(0)?;
        let h = self.backbone.forward_train(&Tensor::cat(&[x_a, x_b], 0)?, context.draws(0))?; // (2N, d)
        let z = self.projector.forward_t(&h, true)?;
        let (z_a, z_b) = (z.narrow(0, 0, n)?, z.narrow(0, n, n)?);
        let loss = nt_xent(&z_a, &z_b, self.temperature)?;
        // I(z_a; z_b) >= log(2N - 1) - loss, in nats.
        let mi_bound = (loss.detach().neg()? + ((2 * n - 1) as f64).ln())?;
        let mut terms = vec![("mi_lower_bound", mi_bound), ceiling(2 * n - 1)?];
        let (z_a, z_b) = (z_a.detach(), z_b.detach());
        terms.extend(cross_view_terms(&z_a, &z_b, self.temperature)?);
        let [positive, negative] = cosines(&z_a, &z_b)?;
        terms.extend([("positive_cosine", positive), ("negative_cosine", negative)]);
        Ok(StepOutput { loss, terms, embeddings: vec![z_a, z_b], memory: vec![] })
    }

    fn encoder(&self) -> &dyn Backbone {
        &*self.backbone
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{CONTEXT, assert_gradients_reach, images, params, resnet};

    fn tiny(config: &SimClrConfig) -> (Params, SimClr) {
        let params = params();
        let method = SimClr::new(config, &resnet(), &params).unwrap();
        (params, method)
    }

    fn batch(n: usize) -> Batch {
        images(2, n)
    }

    #[test]
    fn every_trainable_parameter_gets_a_gradient_and_no_buffer_does() {
        for projector_layers in [1, 2, 3] {
            let (params, method) = tiny(&SimClrConfig { projector_layers, ..Default::default() });
            assert_gradients_reach(&method, &params, &batch(5), &[]);
        }
    }

    #[test]
    fn names_stand_under_backbone_and_projector() {
        let (params, _) = tiny(&SimClrConfig::default());
        let names = params.names();
        assert_eq!(names[0], "backbone.conv1.weight");
        assert!(
            names.contains(&"projector.4.weight".to_owned())
                && !names.contains(&"projector.4.bias".to_owned())
        );
    }

    #[test]
    fn both_views_share_their_batch_statistics() {
        // One forward pass, so the counter of each norm moves by one, not by two.
        let (params, method) = tiny(&SimClrConfig::default());
        method.loss(&batch(3), &CONTEXT).unwrap();
        let count = params.get("backbone.bn1.num_batches_tracked").unwrap().to_scalar::<i64>().unwrap();
        assert_eq!(count, 1);
    }

    #[test]
    fn a_collapsed_projector_shows_as_zero_information() {
        // With the last scale at zero every projection is the same point, whatever the image.
        let (params, method) = tiny(&SimClrConfig::default());
        let scale = params.get("projector.4.weight").unwrap();
        let healthy = method.loss(&batch(6), &CONTEXT).unwrap();
        scale.set(&scale.zeros_like().unwrap()).unwrap();
        let collapsed = method.loss(&batch(6), &CONTEXT).unwrap();
        let scalar = |t: &Tensor| t.to_scalar::<f32>().unwrap();
        assert!((scalar(&collapsed.loss) - 11f32.ln()).abs() < 1e-5);
        assert!(scalar(&collapsed.terms[0].1).abs() < 1e-5);
        assert!(scalar(&healthy.loss) < 0.99 * 11f32.ln() || scalar(&healthy.loss) > 1.01 * 11f32.ln());
    }

    #[test]
    fn wrong_views_and_settings_are_refused() {
        let (_, method) = tiny(&SimClrConfig::default());
        let one = Batch { views: batch(3).views[..1].to_vec(), ..batch(3) };
        assert!(method.loss(&one, &CONTEXT).unwrap_err().to_string().contains("2 views, got 1"));
        let error = SimClrConfig { temperature: 0.0, ..Default::default() }.validate().unwrap_err();
        assert_eq!(error, "method.temperature = 0 is not in (0, 10]");
    }
}
