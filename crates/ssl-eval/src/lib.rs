//! How good frozen features are: weighted kNN, linear probe, and the raw-pixel baseline; and for encoders of images and
//! texts, zero-shot classification. And what embeddings are like without labels: their rank, their information, clusters.
//!
//! [`extract`] runs a backbone in eval mode over batches and caches its embeddings as [`Features`]; everything else
//! works on those, or on rows `(N, D)` in a tensor. All results are the same for every number of threads, and random
//! numbers come from a generator that the caller passes in. Accuracies are fractions in `[0, 1]`.
//!
//! ```
//! use ssl_eval::{Features, KnnConfig, LinearProbeConfig, knn_accuracy, linear_probe};
//!
//! let train = Features::new(vec![1.0, 0.1, 0.9, 0.0, 0.1, 1.0, 0.0, 0.8], 2, vec![0, 0, 1, 1])?;
//! let test = Features::new(vec![2.0, 0.3, 0.2, 1.5], 2, vec![0, 1])?;
//!
//! assert_eq!(knn_accuracy(&train, &test, 2, &KnnConfig { k: 2, ..Default::default() })?, 1.0);
//! assert_eq!(linear_probe(&train, &test, 2, &LinearProbeConfig::default())?.top1, 1.0);
//! # Ok::<(), ssl_eval::Error>(())
//! ```

mod accuracy;
mod assignment;
mod bootstrap;
mod cholesky;
mod clustering;
mod covariance;
mod critics;
mod draw;
mod error;
mod extract;
mod features;
mod gaussian;
mod k_means;
mod knn;
mod ksg;
mod lbfgs;
mod lidar;
mod linear_probe;
mod logistic_regression;
mod low_shot;
mod nearest;
mod objective;
mod precondition;
mod principal;
mod retrieval;
mod rows;
mod sgd_probe;
mod spectrum;
mod split;
mod standardize;
mod symmetric;
mod t_sne;
mod uniformity;
mod zero_shot;

pub use crate::accuracy::{accuracy, topk_accuracy};
pub use crate::bootstrap::{BootstrapConfig, ConfidenceInterval, accuracy_interval};
pub use crate::clustering::{
    adjusted_rand_index, clustering_accuracy, normalized_mutual_information, purity,
};
pub use crate::covariance::{Covariance, Shrinkage};
pub use crate::critics::{Bound, CriticConfig, CriticInformation, critic_information};
pub use crate::error::{Error, Result};
pub use crate::extract::{extract, raw_pixels};
pub use crate::features::Features;
pub use crate::gaussian::GaussianInformation;
pub use crate::k_means::{KMeans, KMeansConfig, k_means};
pub use crate::knn::{KnnConfig, KnnPrediction, knn_accuracy, knn_predict};
pub use crate::ksg::{KsgAlgorithm, KsgConfig, ksg_information};
pub use crate::lidar::{LidarConfig, lidar};
pub use crate::linear_probe::{LinearProbeConfig, LinearProbeResult, linear_probe};
pub use crate::logistic_regression::{LogisticRegression, LogisticRegressionConfig};
pub use crate::low_shot::{LowShot, low_shot};
pub use crate::principal::{PrincipalComponents, principal_components};
pub use crate::retrieval::{Queries, mean_average_precision, mean_average_precision_at, recall_at};
pub use crate::sgd_probe::{
    ProbeInput, ProbeSchedule, SgdProbeConfig, SgdProbeResult, sgd_probe, sgd_probe_of,
};
pub use crate::spectrum::{
    CovarianceSpectrum, alpha_req, covariance_effective_rank, covariance_spectrum, effective_rank,
    participation_ratio, rank_me, singular_values, std_collapse,
};
pub use crate::t_sne::{TSne, TSneConfig, t_sne};
pub use crate::uniformity::uniformity;
pub use crate::zero_shot::zero_shot_accuracy;

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
