//! Solarisation: bright samples are inverted.

use rand_core::RngCore;

use crate::error::{self, Result};
use crate::image::Image;
use crate::random;
use crate::sample::Sample;
use crate::transform::Transform;

/// Inverts every sample from `threshold` on, which is in 8-bit levels (`threshold / 255` for `f32`).
///
/// # Example
/// ```
/// use ssl_augment::{Image, solarize};
///
/// let image = Image::new(1, 1, vec![127u8, 128, 255])?;
/// assert_eq!(solarize(image, 128).data(), [127, 127, 0]);
/// # Ok::<(), ssl_augment::Error>(())
/// ```
pub fn solarize<S: Sample>(mut image: Image<S>, threshold: u8) -> Image<S> {
    for x in image.data_mut() {
        *x = x.solarize(threshold);
    }
    image
}

/// [`solarize`] with a probability. Draws one [`random::chance`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Solarize {
    p: f64,
    threshold: u8,
}

impl Solarize {
    /// Solarises with probability `p` in [0, 1]; BYOL has a `threshold` of 128.
    ///
    /// # Errors
    /// If `p` is outside [0, 1].
    pub fn new(p: f64, threshold: u8) -> Result<Self> {
        error::check_probability("solarize_p", p)?;
        Ok(Self { p, threshold })
    }
}

impl<S: Sample> Transform<S> for Solarize {
    fn apply(&self, image: Image<S>, rng: &mut dyn RngCore) -> Image<S> {
        if random::chance(rng, self.p) { solarize(image, self.threshold) } else { image }
    }
}
