//! Brightness, contrast and saturation: blends of an image with a poorer one.
//!
//! Each is `factor * image + (1 - factor) * poorer`, clamped: 0 gives the poorer image, 1 the image itself, and more
//! goes beyond it. All finite factors are allowed; the usual ones are in [0, 2]. On `u8` the result is truncated, as in
//! Pillow's `ImageEnhance`.

use crate::image::Image;
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
    let factor = factor as f32;
    for pixel in image.pixels_mut() {
        let luma = S::luma(*pixel);
        *pixel = pixel.map(|x| x.blend(luma, factor));
    }
    image
}

fn blend_with_level<S: Sample>(mut image: Image<S>, level: S, factor: f64) -> Image<S> {
    let factor = factor as f32;
    for x in image.data_mut() {
        *x = x.blend(level, factor);
    }
    image
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
