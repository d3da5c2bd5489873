//! JPEGs at a quarter or an eighth of their sides, straight from the coefficients.

use image::{DynamicImage, GrayImage, RgbImage};
use jpeg_decoder::{Decoder, PixelFormat};
use ssl_augment::Resolution;

use crate::Limits;

/// Half the sides would take as long as the whole image, or longer (docs/benchmarks.md).
const DIVISORS: [u32; 2] = [8, 4];

/// Decodes a JPEG of `width` x `height` pixels at the smallest size that has `resolution`; its orientation is not applied.
///
/// `None` where that is the size it has, and where it cannot be done. The image is then to be decoded whole, which also
/// says what is wrong with a broken file.
pub(crate) fn decode(
    bytes: &[u8],
    (width, height): (u32, u32),
    resolution: Resolution,
    limits: &Limits,
) -> Option<DynamicImage> {
    let (to_width, to_height) = reduced_size(width, height, resolution)?;
    if limits.max_alloc_bytes < peak_bytes((width, height), (to_width, to_height)) {
        return None;
    }
    let size = (u16::try_from(to_width).ok()?, u16::try_from(to_height).ok()?);
    let mut decoder = Decoder::new(bytes);
    if decoder.scale(size.0, size.1).ok()? != size {
        return None;
    }
    let format = decoder.info()?.pixel_format;
    let mut pixels = || decoder.decode().ok();
    match format {
        PixelFormat::L8 => GrayImage::from_raw(to_width, to_height, pixels()?).map(DynamicImage::ImageLuma8),
        PixelFormat::RGB24 => RgbImage::from_raw(to_width, to_height, pixels()?).map(DynamicImage::ImageRgb8),
        // Inks, which may be inverted, and lossless JPEG, which cannot be reduced.
        PixelFormat::CMYK32 | PixelFormat::L16 => None,
    }
}

/// The size at the largest of [`DIVISORS`] that leaves `resolution`.
fn reduced_size(width: u32, height: u32, resolution: Resolution) -> Option<(u32, u32)> {
    let sizes = DIVISORS.map(|divisor| (width.div_ceil(divisor), height.div_ceil(divisor)));
    sizes.into_iter().find(|&(width, height)| resolution.is_met_by(width.into(), height.into()))
}

/// The bytes that are in use at once, at most: the coefficients, 2 bytes each, of three components, their reduced planes,
/// and the pixels.
fn peak_bytes(whole: (u32, u32), reduced: (u32, u32)) -> u64 {
    let pixels = |(width, height): (u32, u32)| u64::from(width) * u64::from(height);
    6 * pixels(whole) + 6 * pixels(reduced)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_size_with_the_resolution_is_taken() {
        let needed = |pixels, shorter_side| Resolution { pixels, shorter_side };
        // SimCLR needs 153,600 pixels for views of 96, and 836,267 for those of 224.
        assert_eq!(reduced_size(4000, 3000, needed(153_600, 109)), Some((500, 375)));
        assert_eq!(reduced_size(2000, 1500, needed(153_600, 109)), Some((500, 375)));
        assert_eq!(reduced_size(1000, 750, needed(153_600, 109)), None);
        assert_eq!(reduced_size(4000, 3000, needed(836_267, 256)), None);
        // Each bound is inclusive, and odd sides are rounded up.
        assert_eq!(reduced_size(801, 799, needed(101 * 100, 100)), Some((101, 100)));
        assert_eq!(reduced_size(801, 799, needed(101 * 100 + 1, 100)), Some((201, 200)));
        assert_eq!(reduced_size(801, 799, needed(0, 101)), Some((201, 200)));
        assert_eq!(reduced_size(799, 801, needed(0, 100)), Some((100, 101)));
        assert_eq!(reduced_size(799, 801, needed(0, 201)), None);
    }
}
