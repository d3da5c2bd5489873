//! The last pass: pixels of `(H, W, 3)` become normalised values of `(3, H, W)`.

use std::fmt;

use crate::error::{Error, Result};
use crate::image::Image;
use crate::sample::Sample;

/// `(x - mean) / std` for each channel, with x in [0, 1].
///
/// # Example
/// ```
/// use ssl_augment::{Image, Normalize};
///
/// let image = Image::new(2, 1, vec![0u8, 51, 102, 255, 204, 153])?;
/// let mut out = [0.0; 6];
/// Normalize::identity().write_chw(&image, &mut out)?;
/// assert_eq!(out, [0.0, 1.0, 0.2, 0.8, 0.4, 0.6]);
/// # Ok::<(), ssl_augment::Error>(())
/// ```
#[derive(Clone, PartialEq)]
pub struct Normalize {
    mean: [f64; 3],
    std: [f64; 3],
    /// The result for each 8-bit level of each channel.
    levels: Box<[[f32; 256]; 3]>,
}

impl Normalize {
    /// Mean and standard deviation of the red, green and blue samples, on the scale of [0, 1].
    ///
    /// # Errors
    /// If a mean is not finite, or a standard deviation is not finite and above 0.
    pub fn new(mean: [f64; 3], std: [f64; 3]) -> Result<Self> {
        if let Some(bad) = mean.iter().find(|x| !x.is_finite()) {
            return Err(Error::parameter("mean", bad, "finite"));
        }
        if let Some(bad) = std.iter().find(|x| !(x.is_finite() && **x > 0.0)) {
            return Err(Error::parameter("std", bad, "finite and above 0"));
        }
        Ok(Self::from_finite(mean, std))
    }

    /// The statistics of ImageNet that torchvision uses.
    pub fn imagenet() -> Self {
        Self::from_finite([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    }

    /// The statistics of CIFAR-10.
    pub fn cifar10() -> Self {
        Self::from_finite([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])
    }

    /// The statistics of CIFAR-100.
    pub fn cifar100() -> Self {
        Self::from_finite([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762])
    }

    /// The statistics of OpenAI's CLIP.
    pub fn clip() -> Self {
        Self::from_finite([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    }

    /// Leaves the samples in [0, 1], as SimCLR does.
    pub fn identity() -> Self {
        Self::from_finite([0.0; 3], [1.0; 3])
    }

    /// Mean of each channel.
    pub fn mean(&self) -> [f64; 3] {
        self.mean
    }

    /// Standard deviation of each channel.
    pub fn std(&self) -> [f64; 3] {
        self.std
    }

    /// Writes the normalised image to `out`, `(3, height, width)` row-major.
    ///
    /// # Errors
    /// If the length of `out` is not `3 * height * width`.
    pub fn write_chw<S: Sample>(&self, image: &Image<S>, out: &mut [f32]) -> Result<()> {
        if out.len() != image.data().len() {
            return Err(Error::BufferLength {
                width: image.width(),
                height: image.height(),
                expected: image.data().len(),
                found: out.len(),
            });
        }
        let (red, rest) = out.split_at_mut(image.pixels().len());
        let (green, blue) = rest.split_at_mut(image.pixels().len());
        for (((pixel, r), g), b) in image.pixels().iter().zip(red).zip(green).zip(blue) {
            *r = pixel[0].normalize(self, 0);
            *g = pixel[1].normalize(self, 1);
            *b = pixel[2].normalize(self, 2);
        }
        Ok(())
    }

    /// The result for an 8-bit level.
    pub(crate) fn level(&self, x: u8, channel: usize) -> f32 {
        self.levels[channel][usize::from(x)]
    }

    /// The result for a value in [0, 1].
    pub(crate) fn value(&self, x: f32, channel: usize) -> f32 {
        ((f64::from(x) - self.mean[channel]) / self.std[channel]) as f32
    }

    fn from_finite(mean: [f64; 3], std: [f64; 3]) -> Self {
        let mut levels = Box::new([[0.0; 256]; 3]);
        for (channel, levels) in levels.iter_mut().enumerate() {
            for (x, level) in levels.iter_mut().enumerate() {
                *level = ((x as f64 / 255.0 - mean[channel]) / std[channel]) as f32;
            }
        }
        Self { mean, std, levels }
    }
}

impl fmt::Debug for Normalize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Normalize").field("mean", &self.mean).field("std", &self.std).finish_non_exhaustive()
    }
}
