//! Brightness, contrast and saturation: blends of an image with a poorer one.
//!
//! Each is `factor * image + (1 - factor) * poorer`, clamped: 0 gives the poorer image, 1 the image itself, and more
//! goes beyond it. All finite factors are allowed; the usual ones are in [0, 2]. On `u8` the result is truncated, as in
//! Pillow's `ImageEnhance`.

use crate::grayscale::{luma_f32, luma_u8};
use crate::image::Image;
use crate::lanes::{Kernel, PixelMap, cut_to_u8, map_pixels, run};
use crate::sample::Sample;

/// Blends with black: `factor * x`.
///
/// # Example
/// ```
/// use ssl_augment::{Image, adjust_brightness};
///
/// let image = Image::new(1, 1, vec![10u8, 101, 200])?;
/// assert_eq!(adjust_brightness(image, 1.5).data(), [15, 151, 255]);
/// # Ok::<(), ssl_augment::Error>(())
/// ```
pub fn adjust_brightness<S: Sample>(image: Image<S>, factor: f64) -> Image<S> {
    blend_with_level(image, S::BLACK, factor)
}

/// Blends with the mean grey value of the whole image.
pub fn adjust_contrast<S: Sample>(image: Image<S>, factor: f64) -> Image<S> {
    let level = S::mean_luma(&image);
    blend_with_level(image, level, factor)
}

/// Blends each pixel with its own grey value.
pub fn adjust_saturation<S: Sample>(mut image: Image<S>, factor: f64) -> Image<S> {
    S::blend_with_luma(image.pixels_mut(), factor as f32);
    image
}

fn blend_with_level<S: Sample>(mut image: Image<S>, level: S, factor: f64) -> Image<S> {
    S::blend_with_level(image.data_mut(), level, factor as f32);
    image
}

pub(crate) fn blend_with_level_u8(samples: &mut [u8], level: u8, factor: f32) {
    run(LevelBlend { samples, level: f32::from(level), factor });
}

pub(crate) fn blend_with_luma_u8(pixels: &mut [[u8; 3]], factor: f32) {
    map_pixels(pixels, LumaBlend { factor });
}

pub(crate) fn blend_with_level_f32(samples: &mut [f32], level: f32, factor: f32) {
    samples.iter_mut().for_each(|x| *x = blend_f32(*x, level, factor));
}

pub(crate) fn blend_with_luma_f32(pixels: &mut [[f32; 3]], factor: f32) {
    for pixel in pixels {
        let luma = luma_f32(*pixel);
        *pixel = pixel.map(|x| blend_f32(x, luma, factor));
    }
}

struct LevelBlend<'a> {
    samples: &'a mut [u8],
    level: f32,
    factor: f32,
}

impl Kernel for LevelBlend<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for x in self.samples {
            *x = blend_u8(*x, self.level, self.factor);
        }
    }
}

#[derive(Clone, Copy)]
struct LumaBlend {
    factor: f32,
}

impl PixelMap for LumaBlend {
    #[inline(always)]
    fn map(self, [r, g, b]: [u8; 3]) -> [u8; 3] {
        let luma = f32::from(luma_u8([r, g, b]));
        [blend_u8(r, luma, self.factor), blend_u8(g, luma, self.factor), blend_u8(b, luma, self.factor)]
    }
}

/// Pillow's `ImagingBlend`.
#[inline(always)]
fn blend_u8(x: u8, other: f32, factor: f32) -> u8 {
    cut_to_u8(other + factor * (f32::from(x) - other))
}

fn blend_f32(x: f32, other: f32, factor: f32) -> f32 {
    (factor * x + (1.0 - factor) * other).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        Image::new(2, 1, vec![200, 100, 0, 50, 60, 70]).unwrap()
    }

    #[test]
    fn factor_one_is_the_identity() {
        assert_eq!(adjust_brightness(image(), 1.0), image());
        assert_eq!(adjust_contrast(image(), 1.0), image());
        assert_eq!(adjust_saturation(image(), 1.0), image());
    }

    #[test]
    fn factor_zero_is_the_poorer_image() {
        assert_eq!(adjust_brightness(image(), 0.0).data(), [0; 6]);
        // Grey values: (19595 * 200 + 38470 * 100 + 2^15) / 2^16 = 118.9998, cut to 118; and 58.15 + 0.5, cut to 58.
        assert_eq!(adjust_saturation(image(), 0.0).data(), [118, 118, 118, 58, 58, 58]);
        assert_eq!(adjust_contrast(image(), 0.0).data(), [88; 6]);
    }

    #[test]
    fn absurd_factors_saturate() {
        assert_eq!(adjust_brightness(image(), -1.0).data(), [0; 6]);
        assert_eq!(adjust_brightness(image(), 1e30).data()[0], 255);
        assert_eq!(adjust_brightness(image().to_float(), 1e9).data()[0], 1.0);
    }
}
