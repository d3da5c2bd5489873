//! What all methods share.

use std::ops::RangeInclusive;

use candle_core::{Result, Tensor};
use ssl_backbones::Backbone;
use ssl_nn::{DrawsAt, Purpose, Rng, rng};

/// One batch of augmented images.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The views, each `(B, 3, H_v, W_v)`; row `b` of every view comes from the same image.
    pub views: Vec<Tensor>,
    /// Index of each of the `B` images in the data set.
    pub index: Vec<usize>,
    /// The token ids of a text for each image, `(B, 77)` of type `U32`, for methods that compare images with texts.
    pub text: Option<Tensor>,
}

/// Where in the run a forward pass is.
#[derive(Clone, Copy, Debug)]
pub struct StepContext {
    /// Optimiser steps done before this one.
    pub step: usize,
    /// Optimiser steps of the whole run.
    pub total_steps: usize,
    /// Optimiser steps of an epoch.
    pub steps_per_epoch: usize,
    /// Which of the step's micro-batches this is, counted from 0.
    pub part: usize,
    /// Seed of the run.
    pub seed: u64,
}

impl StepContext {
    /// The epoch, counted from 0.
    pub fn epoch(&self) -> usize {
        self.step / self.steps_per_epoch.max(1)
    }

    /// Where forward pass `pass` of [`Method::loss`] draws what it leaves out in training. Passes are numbered as the
    /// method likes, below 256, with a number for each that is to draw apart.
    pub fn draws(&self, pass: usize) -> Option<DrawsAt> {
        let first_sample = ((self.part * 256 + pass) as u64) << 32;
        Some(DrawsAt { seed: self.seed, step: self.step as u64, first_sample, layer: 0 })
    }

    /// The generator of what the masks of all images of a micro-batch share in this step.
    pub fn batch_masks(&self) -> Rng {
        rng(self.seed, Purpose::Mask, self.step as u64, self.part as u64, u32::MAX)
    }

    /// The generator of the masks of view `view` of image `image`, by its [`Batch::index`], in this step.
    pub fn masks(&self, image: usize, view: usize) -> Rng {
        rng(self.seed, Purpose::Mask, self.step as u64, image as u64, view as u32)
    }
}

/// What one forward pass yields.
#[derive(Clone, Debug)]
pub struct StepOutput {
    /// The scalar to minimise.
    pub loss: Tensor,
    /// Scalars worth a line in the log, by name.
    pub terms: Vec<(&'static str, Tensor)>,
    /// The embeddings of each view that the loss compares, `(B, D)`, or tokens `(M, D)`, detached: what monitors look at.
    pub embeddings: Vec<Tensor>,
    /// What [`Method::after_step`] needs of this batch, detached, a row a sample: keys for a queue, logits for a centre.
    pub memory: Vec<Tensor>,
}

/// Images as a method sees and completes them.
#[derive(Clone, Debug)]
pub struct Reconstruction {
    /// The images `(B, 3, H, W)`, normalised as they came, with what the method predicts where patches were hidden.
    pub images: Tensor,
    /// `(B, N)` of type `U8`, patches row by row: 1 where one was hidden.
    pub mask: Tensor,
}

/// What the optimiser has to know of a parameter beyond its shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ParameterRule {
    /// Whether its learning rate stays at the peak instead of following the schedule.
    pub constant_lr: bool,
    /// Whether it is exempt from weight decay, and from the ratio of LARS, whatever its shape.
    pub no_decay: bool,
    /// Factor on its learning rate.
    pub lr_factor: f64,
}

impl Default for ParameterRule {
    fn default() -> Self {
        Self { constant_lr: false, no_decay: false, lr_factor: 1.0 }
    }
}

/// A way to train an encoder without labels.
///
/// All state that lasts from one step to the next lies in the [`ssl_nn::Params`] that the method was built with, so that
/// saving these saves the method.
pub trait Method: Send + Sync {
    /// How many views of every image the method takes.
    fn num_views(&self) -> RangeInclusive<usize>;

    /// The loss of a batch, in training mode. May be called twice with the same result; running statistics of batch
    /// norms are the only state it touches.
    ///
    /// # Errors
    /// If the batch does not have the views that the method needs.
    fn loss(&self, batch: &Batch, context: &StepContext) -> Result<StepOutput>;

    /// Updates what the optimiser does not: teachers, queues, centres. Called after every optimiser step with the
    /// [`StepOutput::memory`] of its micro-batches, joined row by row, and the context of the first.
    ///
    /// # Errors
    /// If a tensor operation fails.
    fn after_step(&mut self, _context: &StepContext, _memory: &[Tensor]) -> Result<()> {
        Ok(())
    }

    /// Whether the method has to see all images before this step: then [`Method::pass`] is called.
    fn wants_pass(&self, _context: &StepContext) -> bool {
        false
    }

    /// Sees every image of the data set once, as batches of the training's views in the order of the images.
    ///
    /// # Errors
    /// If a batch is an error, or a tensor operation fails; then the method is as it was before.
    fn pass(
        &mut self,
        _context: &StepContext,
        _batches: &mut dyn Iterator<Item = Result<Batch>>,
    ) -> Result<()> {
        Ok(())
    }

    /// Hides patches of the batch as in training and predicts their pixels; `None` for methods that predict no pixels.
    ///
    /// # Errors
    /// As [`Method::loss`].
    fn reconstruct(&self, _batch: &Batch, _context: &StepContext) -> Result<Option<Reconstruction>> {
        Ok(None)
    }

    /// How the optimiser treats the parameter `name`.
    fn parameter_rule(&self, _name: &str) -> ParameterRule {
        ParameterRule::default()
    }

    /// The network that is evaluated and exported.
    fn encoder(&self) -> &dyn Backbone;

    /// The way of images and of texts into one space, if the method has one.
    fn dual_encoder(&self) -> Option<&dyn DualEncoder> {
        None
    }
}

/// What puts images and texts into one space, where cosines compare them. In evaluation mode, without gradient.
pub trait DualEncoder {
    /// Embeddings of [`Method::encoder`], `(N, d)`, to that space, `(N, e)`.
    ///
    /// # Errors
    /// If the shape does not fit.
    fn project_images(&self, h: &Tensor) -> Result<Tensor>;

    /// Token ids as in [`Batch::text`], `(N, 77)`, to that space, `(N, e)`.
    ///
    /// # Errors
    /// If the shape does not fit or there is no such token.
    fn embed_texts(&self, tokens: &Tensor) -> Result<Tensor>;
}
