//! Resizing, of a whole image or of a crop.

use crate::error::{self, Error, Result};
use crate::image::Image;
use crate::resample::{self, Taps};
use crate::sample::Sample;

/// How pixels are made when an image changes size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
pub enum Interpolation {
    /// The one pixel that covers the centre of the new pixel; for label maps rather than views. Where the centre falls
    /// between two pixels it is the right or lower one, while Pillow may take either.
    Nearest,
    /// Triangle filter of half width 1; torchvision's default.
    Bilinear,
    /// Keys' cubic filter of half width 2 with a = -0.5, which sharpens and may overshoot.
    Bicubic,
}

/// A rectangle of pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CropBox {
    /// Rows above the box.
    pub top: usize,
    /// Columns left of the box.
    pub left: usize,
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
}

impl CropBox {
    /// The whole of an image.
    pub fn whole<S: Sample>(image: &Image<S>) -> Self {
        Self { top: 0, left: 0, height: image.height(), width: image.width() }
    }

    /// Row `y` of the box.
    pub(crate) fn row<S: Sample>(self, image: &Image<S>, y: usize) -> &[[S; 3]] {
        let start = (self.top + y) * image.width() + self.left;
        &image.pixels()[start..start + self.width]
    }

    fn check<S: Sample>(self, image: &Image<S>) -> Result<()> {
        let fits = |start: usize, len: usize, limit: usize| len > 0 && len <= limit && start <= limit - len;
        if fits(self.left, self.width, image.width()) && fits(self.top, self.height, image.height()) {
            return Ok(());
        }
        Err(Error::CropBox {
            left: self.left,
            top: self.top,
            width: self.width,
            height: self.height,
            image_width: image.width(),
            image_height: image.height(),
        })
    }
}

/// Resizes to `width` x `height` pixels, antialiased.
///
/// `u8`: Pillow's `Image.resize`, in fixed point, rounded and clamped after each of two passes.
/// `f32`: torchvision's `resize(antialias=True)`; nothing is clamped, so that bicubic may leave [0, 1].
///
/// # Errors
/// If a side is outside 1..=16384.
///
/// # Example
/// ```
/// use ssl_augment::{Image, Interpolation, resize};
///
/// let image = Image::new(2, 1, vec![0u8, 0, 0, 100, 100, 100])?;
/// let small = resize(&image, 1, 1, Interpolation::Bilinear)?;
/// assert_eq!(small.data(), [50, 50, 50]);
/// # Ok::<(), ssl_augment::Error>(())
/// ```
pub fn resize<S: Sample>(
    image: &Image<S>,
    width: usize,
    height: usize,
    interpolation: Interpolation,
) -> Result<Image<S>> {
    resized_crop(image, CropBox::whole(image), width, height, interpolation)
}

/// Crops, then resizes the crop as [`resize`] does; pixels outside `crop` have no influence.
///
/// # Errors
/// If `crop` is empty or not inside the image, or a side is outside 1..=16384.
pub fn resized_crop<S: Sample>(
    image: &Image<S>,
    crop: CropBox,
    width: usize,
    height: usize,
    interpolation: Interpolation,
) -> Result<Image<S>> {
    check_target(width, height)?;
    crop.check(image)?;
    Ok(resize_region(image, crop, width, height, interpolation))
}

/// Crops, then resizes without antialiasing: PyTorch's `interpolate(align_corners=False)`.
///
/// Here bicubic has a = -0.75, and nearest takes pixel `floor(i * scale)`.
///
/// # Errors
/// As [`resized_crop`].
pub fn resized_crop_aliased(
    image: &Image<f32>,
    crop: CropBox,
    width: usize,
    height: usize,
    interpolation: Interpolation,
) -> Result<Image<f32>> {
    check_target(width, height)?;
    crop.check(image)?;
    let horizontal = Taps::interpolating::<f32>(crop.width, width, interpolation);
    let vertical = Taps::interpolating::<f32>(crop.height, height, interpolation);
    Ok(resample::resample(image, crop, horizontal, vertical))
}

/// [`resized_crop`] for parameters that are right by construction.
pub(crate) fn resize_region<S: Sample>(
    image: &Image<S>,
    crop: CropBox,
    width: usize,
    height: usize,
    interpolation: Interpolation,
) -> Image<S> {
    let horizontal = Taps::antialiased::<S>(crop.width, width, 0..width, interpolation);
    let vertical = Taps::antialiased::<S>(crop.height, height, 0..height, interpolation);
    resample::resample(image, crop, horizontal, vertical)
}

/// The mirror image of [`resize_region`], at no cost: the columns are computed from right to left.
pub(crate) fn resize_region_flipped<S: Sample>(
    image: &Image<S>,
    crop: CropBox,
    width: usize,
    height: usize,
    interpolation: Interpolation,
) -> Image<S> {
    let horizontal = Taps::antialiased::<S>(crop.width, width, (0..width).rev(), interpolation);
    let vertical = Taps::antialiased::<S>(crop.height, height, 0..height, interpolation);
    resample::resample(image, crop, horizontal, vertical)
}

fn check_target(width: usize, height: usize) -> Result<()> {
    error::check_side("width", width)?;
    error::check_side("height", height)
}

impl Interpolation {
    /// Half the width of the filter, in pixels.
    pub(crate) fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    /// The filter at a distance of `x` pixels.
    pub(crate) fn filter(self, x: f64) -> f64 {
        match self {
            Self::Nearest => 1.0,
            Self::Bilinear => (1.0 - x.abs()).max(0.0),
            Self::Bicubic => cubic(x.abs(), -0.5),
        }
    }

    /// First of four input positions, possibly outside the image, and their weights, for output position `i`.
    pub(crate) fn point_weights(self, i: f64, scale: f64) -> (isize, [f64; 4]) {
        let position = (i + 0.5) * scale - 0.5;
        match self {
            Self::Nearest => ((i * scale) as isize, [1.0, 0.0, 0.0, 0.0]),
            Self::Bilinear => {
                let position = position.max(0.0);
                let t = position.fract();
                (position as isize, [1.0 - t, t, 0.0, 0.0])
            }
            Self::Bicubic => {
                let t = position - position.floor();
                let weights = [t + 1.0, t, 1.0 - t, 2.0 - t].map(|x| cubic(x, -0.75));
                (position.floor() as isize - 1, weights)
            }
        }
    }
}

/// Cubic convolution (Keys, 1981) at distance `x >= 0`.
fn cubic(x: f64, a: f64) -> f64 {
    if x < 1.0 {
        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * a
    } else {
        0.0
    }
}
