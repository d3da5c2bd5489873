//! What the features of a run are like, measured now and then on views of a few of its images.
//!
//! The encoder looks at the same views of the same images each time, in evaluation mode, so that the measures can be compared
//! over a run and between methods, whatever their loss; and since neither weights nor random numbers of the training are
//! touched, a run with them ends with the bits of a run without.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use serde::{Deserialize, Serialize};
use ssl_augment::random;
use ssl_backbones::Backbone;
use ssl_data::{Dataset, Tolerant};
use ssl_eval::{
    Covariance, CovarianceSpectrum, GaussianInformation, LidarConfig, PrincipalComponents, Shrinkage, lidar,
    rank_me, std_collapse, uniformity,
};
use ssl_losses::alignment;
use ssl_nn::{Purpose, rng};

use crate::error::Result;
use crate::forward::embeddings;
use crate::loader::Loader;
use crate::recipe::Recipe;

/// Principal directions in which the information of two views on each other is measured: few beside the images, so that
/// canonical correlations do not find what is not there.
const DIRECTIONS: usize = 16;

/// A direction with less than this share of the largest variance is rounding.
const ALIVE: f64 = 1e-6;

/// Which features are measured, and when. It does not change the run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasureConfig {
    /// Epochs between measurements; there is one before the first step and one after the last, too. 0 for none at all.
    pub every_epochs: usize,
    /// Images looked at, a random choice of those that are trained on.
    pub images: usize,
    /// Views of each of them.
    pub views: usize,
}

impl Default for MeasureConfig {
    fn default() -> Self {
        Self { every_epochs: 1, images: 256, views: 4 }
    }
}

impl MeasureConfig {
    /// Checks every setting.
    pub(crate) fn validate(&self) -> std::result::Result<(), String> {
        if !(32..=65_536).contains(&self.images) {
            return Err(format!("measure.images = {} is not in 32..=65536", self.images));
        }
        match self.views {
            2..=64 if self.views.is_multiple_of(2) => Ok(()),
            views => Err(format!("measure.views = {views} is not an even number in 2..=64")),
        }
    }
}

/// Measures of the features `(n, q, D)` of `q` views of `n` images. `N = n q` rows are looked at where views do not matter.
/// What is not defined, as the rank of features that are all equal, is `None`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measures {
    /// Mean squared distance of two views of an image on the unit sphere, in `[0, 4]`; lower is more alike (Wang & Isola,
    /// 2020).
    pub alignment: f64,
    /// `log E exp(−2 d²)` over pairs of images on the unit sphere; 0 if all are one point, lower is more even.
    pub uniformity: f64,
    /// Standard deviation of the directions, times `√D`: 1 is even, 0 one point (Chen & He, 2021).
    pub std: Option<f64>,
    /// RankMe: the exponential of the entropy of the singular values (Garrido et al., 2023), from 1 to `min(N, D)`.
    pub rank_me: Option<f64>,
    /// The same of the eigenvalues of the covariance: dimensions that the variance fills.
    pub effective_rank: Option<f64>,
    /// `(Σλ)² / Σλ²` of the same eigenvalues.
    pub participation_ratio: Option<f64>,
    /// Exponent by which the eigenvalues fall (Agrawal et al., 2022); near 1 in good representations. `None` for features
    /// with too few dimensions, too.
    pub alpha_req: Option<f64>,
    /// LiDAR: the effective rank of what tells images apart beside what tells views apart (Thilak et al., 2024).
    pub lidar: Option<f64>,
    /// Entropy of a normal distribution with the covariance of the features, which are scaled to a mean variance of 1, per
    /// dimension, in nats; at most `½ ln 2πe = 1.419`.
    pub entropy: Option<f64>,
    /// What the dimensions tell twice: the sum of their entropies less that of all together, per dimension, in nats; 0 for
    /// dimensions that are not correlated.
    pub redundancy: Option<f64>,
    /// Information of two views of an image on each other in their first principal directions, if they were normally
    /// distributed, in nats. With `k` directions and `N` pairs of views it is too high by about `k² / 2N`, 0.25 by default.
    pub view_information: Option<f64>,
}

impl Measures {
    /// Those of the features `(n, q, D)`, `q` even.
    ///
    /// # Errors
    /// If there are fewer than three images or two views, or a feature is not finite.
    pub fn of(features: &Tensor) -> Result<Self> {
        let h = features.to_dtype(DType::F64)?;
        let (n, q, d) = h.dims3()?;
        let rows = h.reshape((n * q, d))?;
        let spectrum = CovarianceSpectrum::of(&rows)?;
        let view = |v: usize| h.narrow(1, v, 1)?.squeeze(1)?.contiguous();
        let pairs = |side: usize| {
            let views = (side..q).step_by(2).map(view).collect::<candle_core::Result<Vec<_>>>()?;
            Tensor::cat(&views, 0)
        };
        let (a, b) = (pairs(0)?, pairs(1)?);
        let mean_variance = spectrum.eigenvalues().iter().sum::<f64>() / d as f64;
        let scaled = (&rows / mean_variance.max(1e-24).sqrt())?;
        let covariance = Covariance::of(&scaled, Shrinkage::LedoitWolf)?;
        let each = |nats: ssl_eval::Result<f64>| nats.ok().map(|nats| nats / d as f64);
        Ok(Self {
            alignment: alignment(&a, &b, 2.0)?.to_scalar()?,
            uniformity: uniformity(&view(0)?)?,
            std: std_collapse(&rows).ok(),
            rank_me: rank_me(&rows).ok(),
            effective_rank: spectrum.effective_rank().ok(),
            participation_ratio: spectrum.participation_ratio().ok(),
            alpha_req: spectrum.alpha_req().ok(),
            lidar: lidar(&h, &LidarConfig::default()).ok(),
            entropy: each(covariance.entropy()),
            redundancy: each(covariance.total_correlation()),
            view_information: view_information(&a, &b, DIRECTIONS.min(d).min((n / 8).max(1)))?,
        })
    }

    /// As values of the log: those that there are.
    pub fn values(&self) -> Vec<(&'static str, f64)> {
        self.all().into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    /// All by name; `None` for what is not defined, or not finite.
    pub(crate) fn all(&self) -> [(&'static str, Option<f64>); 11] {
        [
            ("alignment", Some(self.alignment)),
            ("uniformity", Some(self.uniformity)),
            ("std", self.std),
            ("rank_me", self.rank_me),
            ("effective_rank", self.effective_rank),
            ("participation_ratio", self.participation_ratio),
            ("alpha_req", self.alpha_req),
            ("lidar", self.lidar),
            ("entropy", self.entropy),
            ("redundancy", self.redundancy),
            ("view_information", self.view_information),
        ]
        .map(|(name, value)| (name, value.filter(|value| value.is_finite())))
    }
}

/// The information of the rows of `a` and `b`, `(N, D)`, on each other in the first `directions` of both together, as far
/// as these have any variance.
fn view_information(a: &Tensor, b: &Tensor, directions: usize) -> Result<Option<f64>> {
    let both = Tensor::cat(&[a, b], 0)?;
    let components = PrincipalComponents::fit(&both, directions)?;
    let variances = components.explained_variance();
    let most = variances.first().copied().unwrap_or_default();
    let alive = variances.iter().filter(|variance| **variance > ALIVE * most).count();
    if alive == 0 {
        return Ok(None);
    }
    let (n, along) = (a.dim(0)?, components.project(&both)?.narrow(1, 0, alive)?);
    let (x, y) = (along.narrow(0, 0, n)?, along.narrow(0, n, n)?);
    Ok(GaussianInformation::between(&x, &y, Shrinkage::None).ok().map(|found| found.nats()))
}

/// The features `(n, q, D)` that [`MeasureConfig`] asks for.
pub(crate) fn measured_features(
    backbone: &dyn Backbone,
    recipe: &Recipe,
    images: &Arc<Tolerant>,
    threads: usize,
    device: &Device,
) -> Result<Tensor> {
    let mut order: Vec<usize> = (0..images.len()).collect();
    random::shuffle(&mut rng(recipe.seed, Purpose::Measure, u64::MAX, 0, 0), &mut order);
    order.truncate(recipe.measure.images);
    // The first two views that have the size of the first, unless the second shows another image.
    let sizes = recipe.views()?.0.sizes();
    let each = 1 + usize::from(sizes.get(1).is_some_and(|size| *size == sizes[0]));
    let draws = recipe.measure.views / each;
    let mut loader = Loader::measure(recipe, images.clone(), order, draws, threads, device)?;
    let mut views = Vec::with_capacity(recipe.measure.views);
    while let Some(batch) = loader.next_batch() {
        for view in &batch?.views[..each] {
            views.push(embeddings(backbone, view)?);
        }
    }
    Ok(Tensor::stack(&views, 1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `n` images with `q` views of `d` normal values, of which a share `shared` of the variance is that of the image.
    fn features(n: usize, q: usize, d: usize, shared: f64) -> Tensor {
        let mut rng = rng(3, Purpose::Measure, 0, 0, 0);
        let mut normal = || random::normal(&mut rng);
        let mut data = Vec::with_capacity(n * q * d);
        for _ in 0..n {
            let own: Vec<f64> = (0..d).map(|_| normal()).collect();
            for _ in 0..q {
                data.extend(own.iter().map(|x| shared.sqrt() * x + (1.0 - shared).sqrt() * normal()));
            }
        }
        Tensor::from_vec(data, (n, q, d), &Device::Cpu).unwrap()
    }

    #[test]
    fn independent_dimensions_are_full_and_tell_what_they_share() {
        let found = Measures::of(&features(512, 4, 8, 0.8)).unwrap();
        let [rank, effective, lidar] = [found.rank_me, found.effective_rank, found.lidar].map(Option::unwrap);
        assert!(rank > 7.9 && effective > 7.8 && lidar > 7.0, "{found:?}");
        assert!((found.std.unwrap() - 1.0).abs() < 0.1 && found.uniformity < -2.0, "{found:?}");
        // Each dimension shares −½ ln(1 − 0.8²) nats.
        let truth = -4.0 * (1.0 - 0.64f64).ln();
        assert!((found.view_information.unwrap() - truth).abs() < 0.1 * truth, "{found:?}, {truth}");
        let (entropy, redundancy) = (found.entropy.unwrap(), found.redundancy.unwrap());
        assert!((entropy - 1.4189).abs() < 0.01 && redundancy.abs() < 0.01, "{found:?}");
        // E‖a − b‖² = 2 (1 − cos) with a cosine of about 0.8.
        assert!((found.alignment - 0.4).abs() < 0.05, "{found:?}");
    }

    #[test]
    fn repeated_dimensions_are_redundant_and_views_that_share_nothing_tell_nothing() {
        let few = features(512, 2, 4, 0.0);
        let twice = Tensor::cat(&[&few, &(&few * 1.001).unwrap()], 2).unwrap();
        let noise = (features(512, 2, 8, 0.0) * 0.1).unwrap();
        let found = Measures::of(&(twice + noise).unwrap()).unwrap();
        let [redundancy, entropy] = [found.redundancy, found.entropy].map(Option::unwrap);
        assert!(redundancy > 0.5 && entropy < 0.9 && found.rank_me.unwrap() < 5.5, "{found:?}");
        assert!(found.view_information.unwrap() < 0.2, "{found:?}");
    }

    #[test]
    fn features_that_are_all_equal_are_measured_too() {
        let equal = Tensor::ones((40, 4, 16), DType::F32, &Device::Cpu).unwrap();
        let found = Measures::of(&equal).unwrap();
        assert!(found.alignment.abs() < 1e-9 && found.uniformity.abs() < 1e-9, "{found:?}");
        assert!(found.values().iter().all(|(_, value)| value.is_finite()), "{found:?}");
        let nan = (equal * f64::NAN).unwrap();
        assert!(Measures::of(&nan).unwrap_err().to_string().contains("expected a finite number"));
    }

    #[test]
    fn settings_out_of_range_are_refused() {
        for (images, views, expected) in
            [(8, 4, "measure.images = 8 is not in 32..=65536"), (64, 3, "measure.views = 3 is not an even")]
        {
            let error = MeasureConfig { images, views, ..MeasureConfig::default() }.validate().unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
