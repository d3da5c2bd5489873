//! Contracts of ssl-nn, in one binary.

// clippy.toml allows this in test functions; here it is for the functions they share.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod differences;
mod gradients;
mod layer_gradients;
mod non_finite;
mod reference_layers;
mod transformer_blocks;
mod transformer_gradients;
