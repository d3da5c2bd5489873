//! Grey images that keep their three channels.

use rand_core::RngCore;

use crate::error::{self, Result};
use crate::image::Image;
use crate::lanes::{Kernel, PixelMap, map_pixels, run};
use crate::random;
use crate::sample::Sample;
use crate::transform::Transform;

/// Replaces the three channels by the grey value.
///
/// `u8`: Pillow's mode `L`, `(19595 R + 38470 G + 7471 B + 2^15) >> 16`.
/// `f32`: torchvision's `0.2989 R + 0.587 G + 0.114 B`, whose weights sum to 0.9999.
///
/// # Example
/// ```
/// use ssl_augment::{Image, to_grayscale};
///
/// let green = Image::new(1, 1, vec![0u8, 255, 0])?;
/// assert_eq!(to_grayscale(green).data(), [150, 150, 150]);
/// # Ok::<(), ssl_augment::Error>(())
/// ```
pub fn to_grayscale<S: Sample>(mut image: Image<S>) -> Image<S> {
    S::replace_by_luma(image.pixels_mut());
    image
}

/// [`to_grayscale`] with a probability. Draws one [`random::chance`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grayscale {
    p: f64,
}

impl Grayscale {
    /// Grey with probability `p` in [0, 1].
    ///
    /// # Errors
    /// If `p` is outside [0, 1].
    pub fn new(p: f64) -> Result<Self> {
        error::check_probability("grayscale_p", p)?;
        Ok(Self { p })
    }
}

impl<S: Sample> Transform<S> for Grayscale {
    fn apply(&self, image: Image<S>, rng: &mut dyn RngCore) -> Image<S> {
        if random::chance(rng, self.p) { to_grayscale(image) } else { image }
    }
}

pub(crate) fn replace_by_luma_u8(pixels: &mut [[u8; 3]]) {
    map_pixels(pixels, Luma);
}

pub(crate) fn replace_by_luma_f32(pixels: &mut [[f32; 3]]) {
    pixels.iter_mut().for_each(|pixel| *pixel = [luma_f32(*pixel); 3]);
}

#[inline(always)]
pub(crate) fn luma_u8([r, g, b]: [u8; 3]) -> u8 {
    ((u32::from(r) * 19_595 + u32::from(g) * 38_470 + u32::from(b) * 7_471 + 0x8000) >> 16) as u8
}

pub(crate) fn luma_f32([r, g, b]: [f32; 3]) -> f32 {
    0.2989 * r + 0.587 * g + 0.114 * b
}

/// Mean of the rounded grey values, itself rounded half up.
pub(crate) fn mean_luma_u8(image: &Image<u8>) -> u8 {
    let sum = run(LumaSum(image.pixels()));
    (sum as f64 / image.pixels().len() as f64 + 0.5) as u8
}

pub(crate) fn mean_luma_f32(image: &Image<f32>) -> f32 {
    let sum: f64 = image.pixels().iter().map(|&rgb| f64::from(luma_f32(rgb))).sum();
    (sum / image.pixels().len() as f64) as f32
}

#[derive(Clone, Copy)]
struct Luma;

impl PixelMap for Luma {
    #[inline(always)]
    fn map(self, rgb: [u8; 3]) -> [u8; 3] {
        [luma_u8(rgb); 3]
    }
}

/// The sum of the rounded grey values.
struct LumaSum<'a>(&'a [[u8; 3]]);

impl Kernel for LumaSum<'_> {
    type Output = u64;

    #[inline(always)]
    fn run(self) -> u64 {
        let (blocks, rest) = self.0.as_chunks::<64>();
        let sum_of = |pixels: &[[u8; 3]]| pixels.iter().map(|&rgb| u32::from(luma_u8(rgb))).sum::<u32>();
        blocks.iter().map(|block| u64::from(sum_of(block))).sum::<u64>() + u64::from(sum_of(rest))
    }
}
