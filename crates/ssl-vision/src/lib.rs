//! Visual self-supervised learning on candle: the crates of this workspace under short names.
//!
//! Each module is a crate of its own and an optional default feature, so that a program can depend on the parts it
//! needs: `ssl-losses` alone, for example, brings candle and nothing else.
//!
//! - [`augment`]: pixels in, pixels out: transforms, views, presets.
//! - [`data`]: images from folders, IDX files and CIFAR batches.
//! - [`text`]: texts as token ids.
//! - [`nn`]: layers that train, and the store of parameters.
//! - [`losses`]: pure functions of tensors.
//! - [`backbones`]: networks, and their weights in and out.
//! - [`methods`]: one file each: architecture, forward pass, loss.
//! - [`eval`]: kNN and linear probe on frozen features.
//! - [`train`]: recipes, loader, optimisers, the loop, checkpoints.
//! - [`report`]: pages and charts of a run, event files for TensorBoard.

#[cfg(feature = "augment")]
pub use ssl_augment as augment;
#[cfg(feature = "backbones")]
pub use ssl_backbones as backbones;
#[cfg(feature = "data")]
pub use ssl_data as data;
#[cfg(feature = "eval")]
pub use ssl_eval as eval;
#[cfg(feature = "losses")]
pub use ssl_losses as losses;
#[cfg(feature = "methods")]
pub use ssl_methods as methods;
#[cfg(feature = "nn")]
pub use ssl_nn as nn;
#[cfg(feature = "report")]
pub use ssl_report as report;
#[cfg(feature = "text")]
pub use ssl_text as text;
#[cfg(feature = "train")]
pub use ssl_train as train;
