//! Integration tests over the umbrella crate, in one binary.

// The lints take only functions marked as tests for tests.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

// Loading what was exported, here and in candle-transformers.
mod export;
// Short trainings on real images: that a method learns.
mod learning;
// The run folder, checkpoints, determinism.
mod resume;

use std::path::{Path, PathBuf};

/// The images that ship with the project.
fn shipped_data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/fashion-mnist")
}
