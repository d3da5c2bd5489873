//! Mirror images.

use rand_core::RngCore;

use crate::error::{self, Result};
use crate::image::Image;
use crate::random;
use crate::sample::Sample;
use crate::transform::Transform;

/// Mirrors left and right.
///
/// # Example
/// ```
/// use ssl_augment::{Image, flip_horizontal};
///
/// let image = Image::new(2, 1, vec![1u8, 2, 3, 4, 5, 6])?;
/// assert_eq!(flip_horizontal(image).data(), [4, 5, 6, 1, 2, 3]);
/// # Ok::<(), ssl_augment::Error>(())
/// ```
pub fn flip_horizontal<S: Sample>(mut image: Image<S>) -> Image<S> {
    let width = image.width();
    for row in image.pixels_mut().chunks_exact_mut(width) {
        row.reverse();
    }
    image
}

/// [`flip_horizontal`] with a probability. Draws one [`random::chance`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HorizontalFlip {
    p: f64,
}

impl HorizontalFlip {
    /// Flips with probability `p` in [0, 1].
    ///
    /// # Errors
    /// If `p` is outside [0, 1].
    pub fn new(p: f64) -> Result<Self> {
        error::check_probability("flip_p", p)?;
        Ok(Self { p })
    }

    /// Draws whether to flip.
    pub(crate) fn draw(self, rng: &mut dyn RngCore) -> bool {
        random::chance(rng, self.p)
    }
}

impl<S: Sample> Transform<S> for HorizontalFlip {
    fn apply(&self, image: Image<S>, rng: &mut dyn RngCore) -> Image<S> {
        if self.draw(rng) { flip_horizontal(image) } else { image }
    }
}
