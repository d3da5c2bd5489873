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
mod info_nce;
mod log_sum_exp;
mod negative_cosine;
mod normalize;
mod nt_xent;
mod self_labels;
mod sinkhorn;
mod statistics;
mod swav;
#[cfg(test)]
mod testing;
mod vicreg;

pub use barlow_twins::{BarlowTwinsTerms, barlow_twins, barlow_twins_terms};
pub use info_nce::{in_batch_info_nce, info_nce, info_nce_logits};
pub use negative_cosine::negative_cosine;
pub use normalize::normalize;
pub use nt_xent::nt_xent;
pub use self_labels::{Labels, SelfLabels};
pub use sinkhorn::sinkhorn;
pub use statistics::standardize;
pub use swav::SwavLoss;
pub use vicreg::{VicRegTerms, VicRegWeights, vicreg, vicreg_terms};
