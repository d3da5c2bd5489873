//! Contracts of the whole crate.

// The allowance in clippy.toml covers test functions, not the helpers beside them.
#![allow(clippy::unwrap_used)]

/// Reference values of Pillow and torchvision, from `tests/golden/augment`.
mod golden;
/// What holds for every image and every seed.
mod properties;
/// Distributions of random parameters, compared with torchvision's.
mod sampling;
/// Views and presets.
mod views;
