//! The middle of the image, and the transform of the evaluation protocols.

use rand_core::RngCore;

use crate::error::{self, Error, Result};
use crate::image::Image;
use crate::resample::{self, Taps};
use crate::resize::{CropBox, Interpolation};
use crate::resolution::Resolution;
use crate::sample::Sample;
use crate::transform::Transform;

/// Cuts the central `size` x `size` pixels, with black around an image that is smaller; torchvision's `CenterCrop`.
/// Draws nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CenterCrop {
    size: usize,
}

impl CenterCrop {
    /// `size`: side of the result in pixels.
    ///
    /// # Errors
    /// If `size` is outside 1..=16384.
    pub fn new(size: usize) -> Result<Self> {
        error::check_side("size", size)?;
        Ok(Self { size })
    }
}

impl<S: Sample> Transform<S> for CenterCrop {
    fn apply(&self, image: Image<S>, _: &mut dyn RngCore) -> Image<S> {
        let size = self.size;
        if (image.width(), image.height()) == (size, size) {
            return image;
        }
        let (left, to_left, width) = overlap(image.width(), size);
        let (top, to_top, height) = overlap(image.height(), size);
        let region = CropBox { top, left, height, width };
        let mut data = vec![S::BLACK; size * size * 3];
        for y in 0..height {
            let start = ((to_top + y) * size + to_left) * 3;
            data[start..start + width * 3].copy_from_slice(region.row(&image, y).as_flattened());
        }
        Image::from_parts(size, size, data)
    }
}

/// Resizes the shorter side and cuts the centre: what evaluation does to an image. Draws nothing.
///
/// An image that already has the size of the result stays as it is, which is the protocol of CIFAR.
///
/// # Example
/// ```
/// use ssl_augment::{Image, ResizeCenterCrop};
///
/// let photo = Image::new(60, 40, vec![7u8; 7200])?;
/// let view = ResizeCenterCrop::evaluation(32)?.crop(&photo);
/// assert_eq!((view.width(), view.height()), (32, 32));
/// # Ok::<(), ssl_augment::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ResizeCenterCrop {
    shorter_side: usize,
    size: usize,
    interpolation: Interpolation,
}

impl ResizeCenterCrop {
    /// `shorter_side`: shorter side after resizing; `size`: side of the result; both in pixels.
    ///
    /// # Errors
    /// If a side is outside 1..=16384, or `shorter_side < size`.
    pub fn new(shorter_side: usize, size: usize, interpolation: Interpolation) -> Result<Self> {
        error::check_side("shorter_side", shorter_side)?;
        error::check_side("size", size)?;
        if shorter_side < size {
            return Err(Error::parameter("shorter_side", shorter_side, "at least the size of the crop"));
        }
        Ok(Self { shorter_side, size, interpolation })
    }

    /// Bicubic, with the shorter side at 8/7 of `size`: 256 for 224.
    ///
    /// # Errors
    /// If `size` is outside 1..=14336.
    pub fn evaluation(size: usize) -> Result<Self> {
        error::check_side("size", size)?;
        Self::new(size * 8 / 7, size, Interpolation::Bicubic)
    }

    /// Side of the result in pixels.
    pub fn size(&self) -> usize {
        self.size
    }

    /// What an image needs so that it is never enlarged.
    pub fn resolution(&self) -> Resolution {
        Resolution { pixels: 0, shorter_side: self.shorter_side as u64 }
    }

    /// Applies the transform without a copy of the image. Pixels that the crop cuts off are never computed.
    pub fn crop<S: Sample>(&self, image: &Image<S>) -> Image<S> {
        let (width, height) = (image.width(), image.height());
        if (width, height) == (self.size, self.size) {
            return image.clone();
        }
        let shorter = width.min(height);
        let taps = |len: usize| {
            let resized = self.shorter_side * len / shorter;
            let (start, _, _) = overlap(resized, self.size);
            Taps::antialiased::<S>(len, resized, start..start + self.size, self.interpolation)
        };
        resample::resample(image, CropBox::whole(image), taps(width), taps(height))
    }
}

impl<S: Sample> Transform<S> for ResizeCenterCrop {
    fn apply(&self, image: Image<S>, _: &mut dyn RngCore) -> Image<S> {
        self.crop(&image)
    }
}

/// Where a line of `len` pixels and its central `size` overlap: start in the line, start in the crop, length.
///
/// Odd differences are split as torchvision splits them: halves go to the even number when cutting, and down when
/// padding.
fn overlap(len: usize, size: usize) -> (usize, usize, usize) {
    if len < size {
        (0, (size - len) / 2, len)
    } else {
        (((len - size) as f64 / 2.0).round_ties_even() as usize, 0, size)
    }
}
