//! Posterisation: fewer levels a channel.

use rand_core::RngCore;

use crate::error::{self, Error, Result};
use crate::image::Image;
use crate::random;
use crate::sample::Sample;
use crate::transform::Transform;

/// Keeps the upper `bits` of the eight bits of each sample.
///
/// On `f32` it is `floor(x * 2^bits) / 2^bits`, with white on the highest level, as in torchvision's transforms v2.
///
/// # Errors
/// If `bits` is outside 1..=8.
///
/// # Example
/// ```
/// use ssl_augment::{Image, posterize};
///
/// let image = Image::new(1, 1, vec![127u8, 128, 255])?;
/// assert_eq!(posterize(image, 1)?.data(), [0, 128, 128]);
/// # Ok::<(), ssl_augment::Error>(())
/// ```
pub fn posterize<S: Sample>(image: Image<S>, bits: u32) -> Result<Image<S>> {
    check_bits(bits)?;
    Ok(keep_bits(image, bits))
}

/// [`posterize`] with a probability. Draws one [`random::chance`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Posterize {
    p: f64,
    bits: u32,
}

impl Posterize {
    /// Keeps `bits` bits with probability `p` in [0, 1].
    ///
    /// # Errors
    /// If `p` is outside [0, 1], or `bits` outside 1..=8.
    pub fn new(p: f64, bits: u32) -> Result<Self> {
        error::check_probability("posterize_p", p)?;
        check_bits(bits)?;
        Ok(Self { p, bits })
    }
}

impl<S: Sample> Transform<S> for Posterize {
    fn apply(&self, image: Image<S>, rng: &mut dyn RngCore) -> Image<S> {
        if random::chance(rng, self.p) { keep_bits(image, self.bits) } else { image }
    }
}

fn check_bits(bits: u32) -> Result<()> {
    if (1..=8).contains(&bits) { Ok(()) } else { Err(Error::parameter("bits", bits, "in 1..=8")) }
}

fn keep_bits<S: Sample>(mut image: Image<S>, bits: u32) -> Image<S> {
    for x in image.data_mut() {
        *x = x.posterize(bits);
    }
    image
}
