//! Self-supervised losses: pure functions of tensors, without state and without randomness.
//!
//! Every function checks its shapes, is differentiable in all its tensors, and documents the paper and the reduction.
//!
//! ```
//! use candle_core::{Device, Tensor};
//!
//! let z = Tensor::new(&[[1f32, 0.], [0., 1.]], &Device::Cpu)?;
//! let loss = ssl_losses::nt_xent(&z, &z, 0.5)?.to_scalar::<f32>()?;
//! // Positives agree and the two images are orthogonal: ln(1 + 2 exp(-1 / 0.5)).
//! assert!((loss - (1.0 + 2.0 * (-2f32).exp()).ln()).abs() < 1e-6);
//! # Ok::<(), candle_core::Error>(())
//! ```

mod barlow_twins;
mod checks;
mod clip;
mod dcl;
mod dino;
mod entropy;
mod hypersphere;
mod ibot;
mod info_nce;
mod koleo;
mod log_sum_exp;
mod masked_image;
mod msn;
mod negative_cosine;
mod normalize;
mod nt_xent;
mod patches;
mod self_labels;
mod sinkhorn;
mod smooth_l1;
mod statistics;
mod swav;
#[cfg(test)]
mod testing;
mod tico;
mod vicreg;

pub use barlow_twins::{BarlowTwinsTerms, barlow_twins, barlow_twins_terms};
pub use clip::{clip, clip_logits};
pub use dcl::{dcl, dclw};
pub use dino::{DinoLoss, centered_targets, updated_center};
pub use entropy::mean_entropy;
pub use hypersphere::{alignment, uniformity};
pub use ibot::{ibot_patches, ibot_weights};
pub use info_nce::{in_batch_info_nce, info_nce, info_nce_logits};
pub use koleo::{koleo, nearest_neighbors};
pub use masked_image::{mae, simmim};
pub use msn::{MsnLoss, MsnTerms};
pub use negative_cosine::negative_cosine;
pub use normalize::normalize;
pub use nt_xent::nt_xent;
pub use patches::{normalize_patches, patchify, unpatchify};
pub use self_labels::{Labels, SelfLabels};
pub use sinkhorn::sinkhorn;
pub use smooth_l1::{masked_smooth_l1, smooth_l1};
pub use statistics::standardize;
pub use swav::SwavLoss;
pub use tico::{TicoLoss, TicoTerms};
pub use vicreg::{VicRegTerms, VicRegWeights, vicreg, vicreg_terms};
