//! The length of a run and its batches, as a recipe says them.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::gradients::ClipScope;

/// More epochs than any run has, and few enough that counting steps never overflows.
const MAX_EPOCHS: usize = 1_000_000;

/// Length and batches of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Passes over the images.
    pub epochs: usize,
    /// Stop after this many optimiser steps; 0 for no limit. The schedule is that of the whole run.
    pub max_steps: usize,
    /// Images of one optimiser step.
    pub batch_size: usize,
    /// Parts that a batch is computed in, one after the other; contrastive losses then see fewer negatives.
    pub accumulate: usize,
    /// Largest norm of the gradients; 0 for no limit.
    pub clip_norm: f64,
    /// Of which gradients: `all` together, those of each `module`, or of each `tensor`.
    #[serde(default, skip_serializing_if = "ClipScope::is_all")]
    pub clip_scope: ClipScope,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 100,
            max_steps: 0,
            batch_size: 256,
            accumulate: 1,
            clip_norm: 0.0,
            clip_scope: ClipScope::All,
        }
    }
}

impl TrainConfig {
    /// Checks every setting.
    pub(crate) fn validate(&self) -> Result<()> {
        let refuse = |reason: String| Err(Error::Recipe(reason));
        let Self { epochs, batch_size, accumulate, clip_norm, .. } = *self;
        if epochs > MAX_EPOCHS {
            return refuse(format!("train.epochs = {epochs} is not in 1..={MAX_EPOCHS}"));
        }
        if epochs == 0 || batch_size < 2 {
            return refuse(format!(
                "train.epochs = {epochs} must be at least 1 and train.batch_size = {batch_size} at least 2"
            ));
        }
        if accumulate == 0 || batch_size % accumulate != 0 || batch_size / accumulate < 2 {
            return refuse(format!(
                "train.accumulate = {accumulate} must divide train.batch_size = {batch_size} into parts of at least 2 images"
            ));
        }
        if !(clip_norm >= 0.0 && clip_norm.is_finite()) {
            return refuse(format!("train.clip_norm = {clip_norm} is not in [0, ∞); 0 stands for no limit"));
        }
        Ok(())
    }
}
