//! Which images each step sees.

use ssl_augment::random;
use ssl_nn::{Purpose, rng};

use crate::recipe::Recipe;

/// The order of the images over a run: each epoch a permutation of all of them, cut into batches; what does not fill a
/// batch is left for another epoch's order.
///
/// ```
/// use ssl_train::Sampler;
///
/// let sampler = Sampler { seed: 3, images: 10, batch_size: 4 };
/// assert_eq!(sampler.steps_per_epoch(), 2);
/// let mut seen: Vec<usize> = sampler.order(0);
/// seen.sort();
/// assert_eq!(seen, (0..10).collect::<Vec<_>>());
/// assert_ne!(sampler.order(0), sampler.order(1));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Sampler {
    /// Seed of the run.
    pub seed: u64,
    /// Number of images.
    pub images: usize,
    /// Images of a step.
    pub batch_size: usize,
}

impl Sampler {
    /// That of a run on so many images.
    pub(crate) fn of_recipe(recipe: &Recipe, images: usize) -> Self {
        Self { seed: recipe.seed, images, batch_size: recipe.train.batch_size }
    }

    /// Whole batches in an epoch.
    pub fn steps_per_epoch(&self) -> usize {
        self.images / self.batch_size
    }

    /// The images in the order of `epoch`.
    pub fn order(&self, epoch: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.images).collect();
        random::shuffle(&mut rng(self.seed, Purpose::Shuffle, epoch as u64, 0, 0), &mut order);
        order
    }
}
