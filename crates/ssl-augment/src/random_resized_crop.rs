//! A random part of the image at a fixed size: the transform that matters most (Chen et al., 2020, Fig. 5).

use rand_core::RngCore;

use crate::error::{self, Result};
use crate::flip::HorizontalFlip;
use crate::image::Image;
use crate::random;
use crate::resize::{self, CropBox, Interpolation};
use crate::resolution::Resolution;
use crate::sample::Sample;
use crate::transform::Transform;

/// How often a box is drawn before the fallback.
const TRIES: usize = 10;

/// Crops a box of random area and aspect ratio, and resizes it to a square; torchvision's `RandomResizedCrop`.
///
/// Draws, for each of at most ten tries, the share of the area and the logarithm of the ratio, each by
/// [`random::uniform`]; then top and left of the first box that fits, each by [`random::below`]. If no box fits, it
/// takes the largest centred box with a ratio in range.
///
/// # Example
/// ```
/// use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};
/// use ssl_augment::{Image, Interpolation, RandomResizedCrop, Transform};
///
/// let crop = RandomResizedCrop::new(32, [0.08, 1.0], [3.0 / 4.0, 4.0 / 3.0], Interpolation::Bilinear)?;
/// let image = Image::new(64, 48, vec![0u8; 64 * 48 * 3])?;
/// let view = crop.apply(image, &mut ChaCha8Rng::seed_from_u64(0));
/// assert_eq!((view.width(), view.height()), (32, 32));
/// # Ok::<(), ssl_augment::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomResizedCrop {
    size: usize,
    scale: [f64; 2],
    ratio: [f64; 2],
    interpolation: Interpolation,
}

impl RandomResizedCrop {
    /// `size`: side of the result in pixels; `scale`: range of the share of the image's area; `ratio`: range of
    /// width / height.
    ///
    /// # Errors
    /// If `size` is outside 1..=16384, or not `0 < scale[0] <= scale[1] <= 1`, or not
    /// `0 < ratio[0] <= ratio[1] <= 1000`.
    pub fn new(size: usize, scale: [f64; 2], ratio: [f64; 2], interpolation: Interpolation) -> Result<Self> {
        error::check_side("size", size)?;
        error::check_interval("crop_scale", scale, 1.0, "[low, high] with 0 < low <= high <= 1")?;
        error::check_interval("crop_ratio", ratio, 1000.0, "[low, high] with 0 < low <= high <= 1000")?;
        Ok(Self { size, scale, ratio, interpolation })
    }

    /// Side of the result in pixels.
    pub fn size(&self) -> usize {
        self.size
    }

    /// What an image needs so that every box has at least the pixels of the result, on both sides.
    ///
    /// A box of the share `s` of `A` pixels and the ratio `r` is `√(A s r)` wide and `√(A s / r)` high, so that the least
    /// `s` and the extremes of `r` bound `A`. The fallback is bounded by the shorter side.
    pub fn resolution(&self) -> Resolution {
        let size = self.size as f64;
        let [narrowest, widest] = self.ratio;
        let pixels = size * size / (self.scale[0] * narrowest.min(1.0 / widest));
        let shorter_side = size * narrowest.max(1.0 / widest).max(1.0);
        Resolution { pixels: pixels.ceil() as u64, shorter_side: shorter_side.ceil() as u64 }
    }

    /// Draws a box in an image of `width` x `height` pixels, both at least 1.
    pub fn draw(&self, width: usize, height: usize, rng: &mut dyn RngCore) -> CropBox {
        let area = width as f64 * height as f64;
        let log_ratio = self.ratio.map(f64::ln);
        for _ in 0..TRIES {
            let target = area * random::uniform(rng, self.scale);
            let ratio = random::uniform(rng, log_ratio).exp();
            let w = (target * ratio).sqrt().round_ties_even() as usize;
            let h = (target / ratio).sqrt().round_ties_even() as usize;
            if 0 < w && w <= width && 0 < h && h <= height {
                let top = random::below(rng, height - h + 1);
                let left = random::below(rng, width - w + 1);
                return CropBox { top, left, height: h, width: w };
            }
        }
        self.fallback(width, height)
    }

    /// Crops and resizes without a copy of the image.
    pub fn crop<S: Sample>(&self, image: &Image<S>, rng: &mut dyn RngCore) -> Image<S> {
        let crop = self.draw(image.width(), image.height(), rng);
        resize::resize_region(image, crop, self.size, self.size, self.interpolation)
    }

    /// [`RandomResizedCrop::crop`], then `flip`, in one pass and with the same draws.
    pub(crate) fn crop_and_flip<S: Sample>(
        &self,
        flip: HorizontalFlip,
        image: &Image<S>,
        rng: &mut dyn RngCore,
    ) -> Image<S> {
        let crop = self.draw(image.width(), image.height(), rng);
        if flip.draw(rng) {
            resize::resize_region_flipped(image, crop, self.size, self.size, self.interpolation)
        } else {
            resize::resize_region(image, crop, self.size, self.size, self.interpolation)
        }
    }

    /// The largest centred box with a ratio in range.
    fn fallback(&self, width: usize, height: usize) -> CropBox {
        let ratio = width as f64 / height as f64;
        let side = |x: f64, limit: usize| (x.round_ties_even() as usize).clamp(1, limit);
        let (w, h) = if ratio < self.ratio[0] {
            (width, side(width as f64 / self.ratio[0], height))
        } else if ratio > self.ratio[1] {
            (side(height as f64 * self.ratio[1], width), height)
        } else {
            (width, height)
        };
        CropBox { top: (height - h) / 2, left: (width - w) / 2, height: h, width: w }
    }
}

impl<S: Sample> Transform<S> for RandomResizedCrop {
    fn apply(&self, image: Image<S>, rng: &mut dyn RngCore) -> Image<S> {
        self.crop(&image, rng)
    }
}
