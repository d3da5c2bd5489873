//! MoCo v3 (Chen et al., 2021, <https://arxiv.org/abs/2104.02057>; official code facebookresearch/moco-v3).
//!
//! MoCo without its queue: the base network, encoder `f`, projector `g` and predictor `h`, asks with each view of an image
//! for what a slow copy of `f` and `g`, the momentum encoder, makes of the other view, among the keys of the whole batch.
//!
//! The loss is `ctr(q_1, k_2) + ctr(q_2, k_1)` with `ctr = 2τ · InfoNCE`, from 0 to about `4τ log N`, where it starts. Views
//! pass one by one, so that batch norms see `N` samples; the momentum encoder runs in training mode and follows after each
//! step, which is before the next step's keys, by a momentum that rises to 1 along a cosine. Of the heads no linear layer
//! has a bias and the projector ends in a batch norm without scale and shift; for a ViT the projector has three layers and
//! the predictor ends in such a norm, too. Deviations: our ViT has learned positions and timm's initial weights, where the
//! official code has fixed sines and Xavier's, its linear layers start as PyTorch's, and its patch projection learns, where
//! the official code freezes it.

use std::ops::RangeInclusive;

use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use ssl_backbones::{Backbone, BackboneConfig};
use ssl_losses::in_batch_info_nce;
use ssl_nn::{Affine, DrawsAt, Mlp, MlpConfig, Params, Schedule, Scope};

use crate::checks;
use crate::config::{Settings, TrainingData};
use crate::contrast::{ceiling, cosines};
use crate::method::{Batch, Method, StepContext, StepOutput};
use crate::safeguard::Safeguard;
use crate::teacher::{self, Teacher};

/// Settings of MoCo v3; the defaults are the official code's for ResNet-50 on ImageNet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MocoV3Config {
    /// Linear layers of the projector: 2 for a ResNet, 3 for a ViT.
    pub projector_layers: usize,
    /// Width of the projector's hidden layers.
    pub projector_hidden: usize,
    /// Width of the keys, and of the queries.
    pub projector_dim: usize,
    /// Width of the predictor's hidden layer; 0 for no predictor, as in the paper's ablation.
    pub predictor_hidden: usize,
    /// Whether the predictor ends in a batch norm without scale and shift: for a ViT.
    pub predictor_last_norm: bool,
    /// τ, the divisor of the similarities: 1 for a ResNet, 0.2 for a ViT.
    pub temperature: f64,
    /// m, the share of the old momentum encoder that is kept at the first step; 0.996 for 1000 epochs of a ResNet.
    pub momentum: f64,
    /// m at the end of the run.
    pub final_momentum: f64,
}

impl Default for MocoV3Config {
    fn default() -> Self {
        Self {
            projector_layers: 2,
            projector_hidden: 4096,
            projector_dim: 256,
            predictor_hidden: 4096,
            predictor_last_norm: false,
            temperature: 1.0,
            momentum: 0.99,
            final_momentum: 1.0,
        }
    }
}

impl Settings for MocoV3Config {
    fn validate(&self) -> std::result::Result<(), String> {
        checks::count("projector_layers", self.projector_layers, checks::LAYERS)?;
        checks::count("projector_hidden", self.projector_hidden, checks::WIDTH)?;
        checks::count("projector_dim", self.projector_dim, checks::WIDTH)?;
        checks::count("predictor_hidden", self.predictor_hidden, 0..=*checks::WIDTH.end())?;
        checks::temperature("temperature", self.temperature)?;
        checks::number("momentum", self.momentum, 0.0..=1.0)?;
        checks::number("final_momentum", self.final_momentum, 0.0..=1.0)
    }

    fn safeguard(&self) -> Safeguard {
        Safeguard::new(
            "the other images of the batch, from which the loss drives each image away",
            "a temperature at which all images look alike, views that share too little, or a learning rate that is too high",
            "method.temperature between 0.1 and 1, a lower optimizer.lr with a longer warm-up, a larger train.batch_size",
        )
    }

    fn build(&self, backbone: &BackboneConfig, params: &Params, _: &TrainingData) -> Result<Box<dyn Method>> {
        Ok(Box::new(MocoV3::new(self, backbone, params)?))
    }

    fn augmentation(&self) -> &'static str {
        "moco_v3"
    }
}

/// MoCo v3 with its base network and its momentum encoder.
pub struct MocoV3 {
    base: Projected,
    predictor: Option<Mlp>,
    momentum: Projected,
    teacher: Teacher,
    config: MocoV3Config,
}

/// An encoder and its projector.
struct Projected {
    backbone: Box<dyn Backbone>,
    projector: Mlp,
}

impl std::fmt::Debug for MocoV3 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MocoV3").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Linear layers without bias, each but perhaps the last under a batch norm, which is the last without scale and shift.
fn mlp(last_norm: bool) -> MlpConfig {
    MlpConfig {
        hidden_bias: false,
        last_bias: false,
        hidden_norm: true,
        last_norm: last_norm.then_some(Affine::None),
        ..MlpConfig::PLAIN
    }
}

impl Projected {
    fn new(config: &MocoV3Config, backbone: &BackboneConfig, scope: &Scope) -> Result<Self> {
        let backbone = backbone.build(&scope.pp("backbone"))?;
        let mut dims = vec![config.projector_hidden; config.projector_layers + 1];
        dims[0] = backbone.embed_dim();
        dims[config.projector_layers] = config.projector_dim;
        let projector = Mlp::new(&dims, mlp(true), &scope.pp("projector"))?;
        Ok(Self { backbone, projector })
    }

    fn forward(&self, x: &Tensor, draws: Option<DrawsAt>) -> Result<Tensor> {
        self.projector.forward_t(&self.backbone.forward_train(x, draws)?, true)
    }
}

impl MocoV3 {
    /// Creates `backbone.*`, `projector.*` and `predictor.*`, and `teacher.*` for the momentum encoder, in `params`.
    ///
    /// # Errors
    /// If a width is 0 or the backbone is unknown.
    pub fn new(config: &MocoV3Config, backbone: &BackboneConfig, params: &Params) -> Result<Self> {
        let root = params.root();
        let base = Projected::new(config, backbone, &root)?;
        let dims = [config.projector_dim, config.predictor_hidden, config.projector_dim];
        let last_norm = config.predictor_last_norm;
        let predictor =
            (config.predictor_hidden > 0).then(|| Mlp::new(&dims, mlp(last_norm), &root.pp("predictor")));
        let predictor = predictor.transpose()?;
        let momentum = Projected::new(config, backbone, &root.pp(teacher::PREFIX).frozen())?;
        let teacher = Teacher::copy_student(params)?;
        Ok(Self { base, predictor, momentum, teacher, config: config.clone() })
    }

    /// The queries of a view, `(N, D)`.
    fn queries(&self, x: &Tensor, draws: Option<DrawsAt>) -> Result<Tensor> {
        let z = self.base.forward(x, draws)?;
        match &self.predictor {
            Some(predictor) => predictor.forward_t(&z, true),
            None => Ok(z),
        }
    }
}

impl Method for MocoV3 {
    fn num_views(&self) -> RangeInclusive<usize> {
        2..=2
    }

    fn loss(&self, batch: &Batch, context: &StepContext) -> Result<StepOutput> {
        let [x_1, x_2] = batch.views.as_slice() else {
            bail!("moco-v3 needs 2 views, got {}", batch.views.len());
        };
        let n = x_1.dim(0)?;
        let (q_1, q_2) = (self.queries(x_1, context.draws(0))?, self.queries(x_2, context.draws(1))?);
        let keys = |x: &Tensor| Ok::<_, candle_core::Error>(self.momentum.forward(x, None)?.detach());
        let (k_1, k_2) = (keys(x_1)?, keys(x_2)?);
        let tau = self.config.temperature;
        let cross_entropies = (in_batch_info_nce(&q_1, &k_2, tau)? + in_batch_info_nce(&q_2, &k_1, tau)?)?;
        let loss = (&cross_entropies * (2.0 * tau))?;
        // I(q; k) >= log N - cross-entropy, in nats, on average over the two directions.
        let mi_bound = ((cross_entropies.detach() * -0.5)? + (n as f64).ln())?;
        let (q_1, q_2) = (q_1.detach(), q_2.detach());
        let ([p_1, n_1], [p_2, n_2]) = (cosines(&q_1, &k_2)?, cosines(&q_2, &k_1)?);
        let terms = vec![
            ("mi_lower_bound", mi_bound),
            ("positive_cosine", ((p_1 + p_2)? * 0.5)?),
            ("negative_cosine", ((n_1 + n_2)? * 0.5)?),
            ceiling(n)?,
        ];
        Ok(StepOutput { loss, terms, embeddings: vec![q_1, q_2], memory: vec![] })
    }

    /// The momentum encoder moves before the next step's keys, by that step's momentum.
    fn after_step(&mut self, context: &StepContext, _: &[Tensor]) -> Result<()> {
        let MocoV3Config { momentum, final_momentum, .. } = self.config;
        let m = Schedule::cosine(momentum, final_momentum, context.total_steps);
        self.teacher.follow(m.at(context.step + 1))
    }

    fn encoder(&self) -> &dyn Backbone {
        &*self.base.backbone
    }
}

#[cfg(test)]
mod tests {
    use ssl_losses::normalize;

    use super::*;
    use crate::testing::{CONTEXT, assert_gradients_reach, images, params, resnet};

    const TINY: MocoV3Config = MocoV3Config {
        projector_layers: 2,
        projector_hidden: 16,
        projector_dim: 6,
        predictor_hidden: 12,
        predictor_last_norm: false,
        temperature: 0.5,
        momentum: 0.9,
        final_momentum: 1.0,
    };

    fn values(params: &Params, name: &str) -> Vec<f32> {
        params.get(name).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    fn scalar(x: &Tensor) -> f32 {
        x.to_scalar().unwrap()
    }

    #[test]
    fn the_base_network_gets_gradients_and_the_momentum_encoder_none() {
        let vit = MocoV3Config { projector_layers: 3, predictor_last_norm: true, ..TINY };
        for config in [TINY, vit, MocoV3Config { predictor_hidden: 0, ..TINY }] {
            let params = params();
            let method = MocoV3::new(&config, &resnet(), &params).unwrap();
            assert_gradients_reach(&method, &params, &images(2, 5), &[]);
            assert!(params.trainable().iter().all(|(name, _)| !name.starts_with("teacher.")));
        }
    }

    #[test]
    fn heads_have_the_layers_of_the_official_code() {
        let heads = |config: &MocoV3Config| {
            let params = params();
            MocoV3::new(config, &resnet(), &params).unwrap();
            let names = params.trainable().into_iter().map(|(name, _)| name);
            names.filter(|name| !name.starts_with("backbone.")).collect::<Vec<_>>()
        };
        let norm = |place: &str| ["weight", "bias"].map(|name| format!("{place}.{name}"));
        let linear = |place: &str| [format!("{place}.weight")];
        let projector = [&linear("projector.0")[..], &norm("projector.1"), &linear("projector.3")].concat();
        let predictor = [&linear("predictor.0")[..], &norm("predictor.1"), &linear("predictor.3")].concat();
        assert_eq!(heads(&TINY), [projector.clone(), predictor.clone()].concat());
        let third = [&norm("projector.4")[..], &linear("projector.6")].concat();
        let vit = MocoV3Config { projector_layers: 3, predictor_last_norm: true, ..TINY };
        assert_eq!(heads(&vit), [projector, third, predictor].concat());
        let params = params();
        MocoV3::new(&vit, &resnet(), &params).unwrap();
        for norm in ["projector.7", "predictor.4", "teacher.projector.7"] {
            assert!(params.get(&format!("{norm}.running_mean")).is_some(), "{norm}");
        }
        assert!(params.names().iter().all(|name| !name.starts_with("teacher.predictor")));
    }

    #[test]
    fn the_momentum_encoder_follows_by_the_momentum_of_the_next_step() {
        let params = params();
        let mut method = MocoV3::new(&TINY, &resnet(), &params).unwrap();
        let start = values(&params, "projector.0.weight");
        assert_eq!(values(&params, "teacher.projector.0.weight"), start);
        let base = params.get("projector.0.weight").unwrap();
        base.set(&(base.as_tensor() + 1.0).unwrap()).unwrap();
        let mut gap = 1.0;
        for step in 0..CONTEXT.total_steps {
            method.after_step(&StepContext { step, ..CONTEXT }, &[]).unwrap();
            let t = (step + 1) as f64 / CONTEXT.total_steps as f64;
            gap *= 1.0 - 0.1 * 0.5 * (1.0 + (std::f64::consts::PI * t).cos());
            let now = values(&params, "teacher.projector.0.weight");
            assert!(
                now.iter()
                    .zip(&start)
                    .all(|(now, start)| { (f64::from(now - start) - (1.0 - gap)).abs() < 1e-5 })
            );
        }
        assert_eq!(values(&params, "teacher.backbone.bn1.running_mean"), vec![0.0; 4]);
    }

    #[test]
    fn the_order_of_views_and_images_does_not_matter() {
        let params = params();
        let method = MocoV3::new(&TINY, &resnet(), &params).unwrap();
        let batch = images(2, 6);
        let reversed = Batch { views: batch.views.iter().rev().cloned().collect(), ..batch.clone() };
        let order = Tensor::new(&[3u32, 0, 5, 1, 4, 2], batch.views[0].device()).unwrap();
        let views = batch.views.iter().map(|view| view.index_select(&order, 0).unwrap()).collect();
        let outputs = [batch.clone(), reversed, Batch { views, ..batch }]
            .map(|batch| method.loss(&batch, &CONTEXT).unwrap());
        let numbers = |output: &StepOutput| {
            let terms = output.terms.iter().map(|(_, term)| scalar(term));
            std::iter::once(scalar(&output.loss)).chain(terms).collect::<Vec<_>>()
        };
        let first = numbers(&outputs[0]);
        for output in &outputs[1..] {
            assert!(first.iter().zip(numbers(output)).all(|(a, b)| (a - b).abs() < 1e-5));
        }
    }

    #[test]
    fn loss_terms_and_embeddings_belong_together() {
        let params = params();
        let method = MocoV3::new(&TINY, &resnet(), &params).unwrap();
        let output = method.loss(&images(2, 6), &CONTEXT).unwrap();
        let [mi, positive, negative] = [0, 1, 2].map(|i| scalar(&output.terms[i].1));
        // The sum of two cross-entropies, times twice the temperature.
        assert!((scalar(&output.loss) - 2.0 * (6f32.ln() - mi)).abs() < 1e-5);
        // By a loop over pairs; without a predictor and at the start keys are queries.
        let config = MocoV3Config { predictor_hidden: 0, ..TINY };
        let params = crate::testing::params();
        let method = MocoV3::new(&config, &resnet(), &params).unwrap();
        let output = method.loss(&images(2, 6), &CONTEXT).unwrap();
        let [z_1, z_2] = [0, 1].map(|i| normalize(&output.embeddings[i]).unwrap().to_vec2::<f32>().unwrap());
        let cosine = |i: usize, j: usize| z_1[i].iter().zip(&z_2[j]).map(|(a, b)| a * b).sum::<f32>();
        let pairs = || (0..6).flat_map(|i| (0..6).map(move |j| (i, j)));
        let mean = |equal: bool| {
            let chosen: Vec<f32> =
                pairs().filter(|(i, j)| (i == j) == equal).map(|(i, j)| cosine(i, j)).collect();
            chosen.iter().sum::<f32>() / chosen.len() as f32
        };
        assert!((scalar(&output.terms[1].1) - mean(true)).abs() < 1e-5);
        assert!((scalar(&output.terms[2].1) - mean(false)).abs() < 1e-5);
        assert!(positive.abs() <= 1.0 && negative.abs() <= 1.0);
    }

    #[test]
    fn a_collapsed_predictor_shows_as_zero_information() {
        // A predictor that says zero for every image: all cosines are equal.
        let params = params();
        let method = MocoV3::new(&TINY, &resnet(), &params).unwrap();
        let last = params.get("predictor.3.weight").unwrap();
        last.set(&last.zeros_like().unwrap()).unwrap();
        let output = method.loss(&images(2, 6), &CONTEXT).unwrap();
        // 2τ log N in each direction.
        assert!((scalar(&output.loss) - 2.0 * 6f32.ln()).abs() < 1e-5);
        assert!(scalar(&output.terms[0].1).abs() < 1e-5);
    }

    #[test]
    fn wrong_views_batches_and_settings_are_refused() {
        let params = params();
        let method = MocoV3::new(&TINY, &resnet(), &params).unwrap();
        let refused = |batch: &Batch| method.loss(batch, &CONTEXT).unwrap_err().to_string();
        assert!(refused(&images(1, 3)).contains("2 views, got 1"));
        for (config, message) in [
            (MocoV3Config { temperature: 0.0, ..TINY }, "method.temperature = 0 is not in (0, 10]"),
            (MocoV3Config { momentum: 1.5, ..TINY }, "method.momentum = 1.5 is not in [0, 1]"),
            (MocoV3Config { final_momentum: -1.0, ..TINY }, "method.final_momentum = -1 is not in [0, 1]"),
            (MocoV3Config { projector_layers: 9, ..TINY }, "method.projector_layers = 9 is not in 1..=8"),
            (MocoV3Config { projector_dim: 0, ..TINY }, "method.projector_dim = 0 is not in 1..=65536"),
        ] {
            assert_eq!(config.validate().unwrap_err(), message);
        }
    }
}
