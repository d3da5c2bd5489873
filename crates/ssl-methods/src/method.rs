//! What all methods share.

use candle_core::{Result, Tensor};
use ssl_backbones::Backbone;

/// One batch of augmented images.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The views, each `(B, 3, H_v, W_v)`; row `b` of every view comes from the same image.
    pub views: Vec<Tensor>,
    /// Index of each of the `B` images in the data set.
    pub index: Vec<usize>,
}

/// Where in the run a step is.
#[derive(Clone, Copy, Debug)]
pub struct StepContext {
    /// Optimiser steps done before this one.
    pub step: usize,
    /// Optimiser steps of the whole run.
    pub total_steps: usize,
}

/// What one forward pass yields.
#[derive(Clone, Debug)]
pub struct StepOutput {
    /// The scalar to minimise.
    pub loss: Tensor,
    /// Scalars worth a line in the log, by name.
    pub terms: Vec<(&'static str, Tensor)>,
    /// The projections of each view, `(B, D)`, detached: what monitors look at.
    pub embeddings: Vec<Tensor>,
}

/// A way to train an encoder without labels.
pub trait Method: Send + Sync {
    /// Views that the method needs of every image.
    fn num_views(&self) -> usize;

    /// The loss of a batch, in training mode. May be called twice with the same result; running statistics of batch
    /// norms are the only state it touches.
    ///
    /// # Errors
    /// If the batch does not have the views that the method needs.
    fn loss(&self, batch: &Batch, context: &StepContext) -> Result<StepOutput>;

    /// Updates what the optimiser does not: teachers, queues, centres. Called after every optimiser step.
    ///
    /// # Errors
    /// If a tensor operation fails.
    fn after_step(&mut self, _context: &StepContext) -> Result<()> {
        Ok(())
    }

    /// The network that is evaluated and exported.
    fn encoder(&self) -> &dyn Backbone;

    /// Prefix of the encoder's tensors in the store, with its dot.
    fn encoder_prefix(&self) -> &'static str {
        "backbone."
    }
}
