//! SimCLR (Chen et al., 2020, <https://arxiv.org/abs/2002.05709>; official code google-research/simclr).
//!
//! Two views of every image go through one encoder `f` and one projector `g`; the loss asks each projection to find the
//! other view of its image among all other projections of the batch. Negatives prevent collapse.
//!
//! As in the official code, both views pass in one batch, so that batch norms see `2N` samples, and every linear layer
//! of the projector is without bias and followed by a batch norm, the last one without a shift. The loss is the mean over
//! the `2N` anchors (the paper's equation; the official code has twice that). Deviations: the linear layers start as
//! PyTorch's rather than from a normal with standard deviation 0.01, which makes no difference under a batch norm.

use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use ssl_backbones::{Backbone, BackboneConfig};
use ssl_losses::nt_xent;
use ssl_nn::{Affine, LinearConfig, Mlp, MlpConfig, Params};

use crate::method::{Batch, Method, StepContext, StepOutput};

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

impl SimClrConfig {
    pub(crate) fn validate(&self) -> std::result::Result<(), String> {
        let Self { temperature, projector_hidden, projector_dim, projector_layers } = *self;
        if !(temperature > 0.0 && temperature <= 10.0) {
            return Err(format!("method.temperature = {temperature} is not in (0, 10]"));
        }
        for (key, value, range) in [
            ("projector_hidden", projector_hidden, 0..=65_536),
            ("projector_dim", projector_dim, 1..=65_536),
            ("projector_layers", projector_layers, 1..=8),
        ] {
            if !range.contains(&value) {
                return Err(format!("method.{key} = {value} is not in {}..={}", range.start(), range.end()));
            }
        }
        Ok(())
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
    /// If a setting is out of range or the backbone is unknown.
    pub fn new(config: &SimClrConfig, backbone: &BackboneConfig, params: &Params) -> Result<Self> {
        if let Err(reason) = config.validate() {
            bail!("{reason}");
        }
        let backbone = backbone.build(&params.root().pp("backbone"))?;
        let d = backbone.embed_dim();
        let hidden = if config.projector_hidden == 0 { d } else { config.projector_hidden };
        let mut dims = vec![hidden; config.projector_layers + 1];
        dims[0] = d;
        dims[config.projector_layers] = config.projector_dim;
        let mlp = MlpConfig {
            linear: LinearConfig { bias: false, ..Default::default() },
            hidden_norm: true,
            last_norm: Some(Affine::Scale),
        };
        let projector = Mlp::new(&dims, mlp, &params.root().pp("projector"))?;
        Ok(Self { backbone, projector, temperature: config.temperature })
    }
}

impl Method for SimClr {
    fn num_views(&self) -> usize {
        2
    }

    fn loss(&self, batch: &Batch, _: &StepContext) -> Result<StepOutput> {
        let [x_a, x_b] = batch.views.as_slice() else {
            bail!("simclr needs 2 views, got {}", batch.views.len());
        };
        let n = x_a.dim(0)?;
        let h = self.backbone.forward_t(&Tensor::cat(&[x_a, x_b], 0)?, true)?; // (2N, d), view after view
        let z = self.projector.forward_t(&h, true)?;
        let (z_a, z_b) = (z.narrow(0, 0, n)?, z.narrow(0, n, n)?);
        let loss = nt_xent(&z_a, &z_b, self.temperature)?;
        // I(z_a; z_b) >= log(2N - 1) - loss, in nats.
        let mi_bound = (loss.detach().neg()? + ((2 * n - 1) as f64).ln())?;
        Ok(StepOutput {
            loss,
            terms: vec![("mi_lower_bound", mi_bound)],
            embeddings: vec![z_a.detach(), z_b.detach()],
        })
    }

    fn encoder(&self) -> &dyn Backbone {
        &*self.backbone
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use ssl_backbones::Stem;

    use super::*;

    fn tiny(config: &SimClrConfig) -> (Params, SimClr) {
        let params = Params::new(11, DType::F32, &Device::Cpu);
        let backbone = BackboneConfig {
            stem: Some(Stem::Cifar),
            width: Some(4),
            ..BackboneConfig::named("resnet18").unwrap()
        };
        let method = SimClr::new(config, &backbone, &params).unwrap();
        (params, method)
    }

    fn batch(n: usize) -> Batch {
        let view = |salt: usize| {
            let data: Vec<f32> =
                (0..n * 3 * 64).map(|i| ((i * 7919 + salt) % 251) as f32 / 125.0 - 1.0).collect();
            Tensor::from_vec(data, (n, 3, 8, 8), &Device::Cpu).unwrap()
        };
        Batch { views: vec![view(0), view(13)], index: (0..n).collect() }
    }

    const CONTEXT: StepContext = StepContext { step: 0, total_steps: 1 };

    #[test]
    fn every_trainable_parameter_gets_a_gradient_and_no_buffer_does() {
        for projector_layers in [1, 2, 3] {
            let (params, method) = tiny(&SimClrConfig { projector_layers, ..Default::default() });
            let grads = method.loss(&batch(5), &CONTEXT).unwrap().loss.backward().unwrap();
            for (name, var) in params.trainable() {
                let grad = grads.get(&var).unwrap_or_else(|| panic!("{name} has no gradient"));
                let norm = grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
                assert!(norm.is_finite() && norm > 0.0, "{name}: squared norm {norm}");
            }
            assert!(params.buffers().iter().all(|(_, var)| grads.get(var).is_none()));
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
        let one = Batch { views: batch(3).views[..1].to_vec(), index: vec![0, 1, 2] };
        assert!(method.loss(&one, &CONTEXT).unwrap_err().to_string().contains("2 views, got 1"));
        let error = SimClrConfig { temperature: 0.0, ..Default::default() }.validate().unwrap_err();
        assert_eq!(error, "method.temperature = 0 is not in (0, 10]");
    }
}
