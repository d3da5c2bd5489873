//! How good frozen features are: weighted kNN, linear probe, and the raw-pixel baseline; and for encoders of images and
//! texts, zero-shot classification.
//!
//! [`extract`] runs a backbone in eval mode over batches and caches its embeddings as [`Features`]; everything else
//! works on those. All results are the same for every number of threads, and random numbers are drawn by
//! [`critic_information`] alone, from the caller's generator.
//! Accuracies are fractions in `[0, 1]`.
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
mod cholesky;
mod critics;
mod error;
mod extract;
mod features;
mod knn;
mod ksg;
mod lbfgs;
mod linear_probe;
mod logistic_regression;
mod objective;
mod precondition;
mod principal;
mod split;
mod standardize;
mod symmetric;
mod zero_shot;

pub use crate::accuracy::{accuracy, topk_accuracy};
pub use crate::critics::{Bound, CriticConfig, CriticInformation, critic_information};
pub use crate::error::{Error, Result};
pub use crate::extract::{extract, raw_pixels};
pub use crate::features::Features;
pub use crate::knn::{KnnConfig, KnnPrediction, knn_accuracy, knn_predict};
pub use crate::ksg::{KsgAlgorithm, KsgConfig, ksg_information};
pub use crate::linear_probe::{LinearProbeConfig, LinearProbeResult, linear_probe};
pub use crate::logistic_regression::{LogisticRegression, LogisticRegressionConfig};
pub use crate::principal::principal_components;
pub use crate::zero_shot::zero_shot_accuracy;

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;
