//! Contracts of ssl-backbones, in one binary.

// clippy.toml allows this in test functions; here it is for the functions they share.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod vit_names;
mod vit_tokens;
