//! From the bytes of a file to RGB pixels, within limits.

use std::fs::File;
use std::io::{Cursor, Read};
use std::path::Path;

use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader};
use ssl_augment::{Image, Resolution};

use crate::{Error, Result, jpeg, reduced, truncation};

/// What one image, and one data set in memory, may cost. Inclusive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The width and the height of an image in pixels; 16,384 by default.
    pub max_side: u32,
    /// Width times height of an image in pixels; 100 million by default.
    pub max_pixels: u64,
    /// The memory to decode an image in bytes, as far as its header tells; 512 MiB by default.
    pub max_alloc_bytes: u64,
    /// The size of an image file in bytes; 256 MiB by default.
    pub max_file_bytes: u64,
    /// The size in bytes of the pixels of a split in IDX or CIFAR format, which is held in memory; 4 GiB by default.
    pub max_packed_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_side: 16_384,
            max_pixels: 100_000_000,
            max_alloc_bytes: 512 << 20,
            max_file_bytes: 256 << 20,
            max_packed_bytes: 4 << 30,
        }
    }
}

/// Decodes the image file at `path`; see [`decode_bytes`].
///
/// # Errors
///
/// [`Error::Decode`] if the file cannot be read or decoded, or exceeds a limit.
pub fn decode_file(path: &Path, limits: &Limits, resolution: Option<Resolution>) -> Result<Image> {
    let max_bytes = limits.max_file_bytes;
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes))
        .map_err(|error| Error::decode(path, format!("cannot be read: {error}")))?;
    if bytes.len() as u64 > max_bytes {
        return Err(Error::decode(path, format!("the file is larger than the limit of {max_bytes} bytes")));
    }
    decode_bytes(&bytes, path, limits, resolution)
}

/// Decodes a JPEG, PNG, WebP or BMP file given as `bytes`; errors call it `path`.
///
/// The content decides the format, whatever the name says. Any colour model becomes RGB with 8 bits a channel: grey
/// is replicated, alpha is dropped as Pillow's `convert("RGB")` does, of 16 bits the upper 8 are kept, CMYK
/// is converted without a colour profile. Of an animation the first frame is taken. An orientation in EXIF is applied.
///
/// With a `resolution`, a JPEG that has more may be decoded at a quarter or an eighth of its sides, as long as it keeps that
/// resolution: this takes less time and memory than the whole image. Which size it is depends on the file, on
/// `resolution` and on `limits` alone.
///
/// # Errors
///
/// [`Error::Decode`] if the bytes are no image, a broken or truncated one, or one that exceeds a limit.
pub fn decode_bytes(
    bytes: &[u8],
    path: &Path,
    limits: &Limits,
    resolution: Option<Resolution>,
) -> Result<Image> {
    decode(bytes, limits, resolution).map_err(|reason| Error::decode(path, reason))
}

fn decode(
    bytes: &[u8],
    limits: &Limits,
    resolution: Option<Resolution>,
) -> std::result::Result<Image, String> {
    let format = recognise(bytes)?;
    let truncated =
        || truncation::missing_end(format, bytes).map(|end| format!("the file is truncated: {end}"));
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut library_limits = image::Limits::no_limits();
    library_limits.max_alloc = Some(limits.max_alloc_bytes);
    reader.limits(library_limits);
    let mut decoder =
        reader.into_decoder().map_err(|error| truncated().unwrap_or_else(|| one_line(&error)))?;
    check_size(decoder.dimensions(), limits)?;
    if let Some(reason) = truncated() {
        return Err(reason);
    }

    let orientation = decoder.orientation().map_err(|error| one_line(&error))?;
    let is_jpeg = format == ImageFormat::Jpeg;
    let reduced = resolution
        .filter(|_| is_jpeg)
        .and_then(|resolution| reduced::decode(bytes, decoder.dimensions(), resolution, limits));
    let mut pixels = match reduced {
        Some(pixels) => pixels,
        None => {
            let needed = peak_bytes(&decoder, orientation, is_jpeg && jpeg::is_progressive(bytes));
            if limits.max_alloc_bytes < needed {
                return Err(format!(
                    "decoding needs {needed} bytes, more than the limit of {}",
                    limits.max_alloc_bytes
                ));
            }
            DynamicImage::from_decoder(decoder).map_err(|error| one_line(&error))?
        }
    };
    pixels.apply_orientation(orientation);
    let (width, height) = (pixels.width() as usize, pixels.height() as usize);
    Image::new(width, height, into_rgb(pixels)?).map_err(|error| error.to_string())
}

/// Messages of the JPEG decoder end in a line break.
fn one_line(error: &ImageError) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

fn recognise(bytes: &[u8]) -> std::result::Result<ImageFormat, String> {
    const ACCEPTED: [ImageFormat; 4] =
        [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP, ImageFormat::Bmp];
    if bytes.is_empty() {
        return Err("the file is empty".to_owned());
    }
    match image::guess_format(bytes) {
        Ok(format) if ACCEPTED.contains(&format) => Ok(format),
        Ok(format) => Err(format!("its content is {format:?}, expected jpeg, png, webp or bmp")),
        Err(_) => Err("its content is no image, expected jpeg, png, webp or bmp".to_owned()),
    }
}

fn check_size((width, height): (u32, u32), limits: &Limits) -> std::result::Result<(), String> {
    if limits.max_side < width.max(height) {
        return Err(format!("{width}x{height} pixels, more than the limit of {} on a side", limits.max_side));
    }
    if limits.max_pixels < u64::from(width) * u64::from(height) {
        return Err(format!("{width}x{height} pixels, more than the limit of {} in all", limits.max_pixels));
    }
    Ok(())
}

/// The bytes that are in use at once: the decoded pixels, a second buffer where colours are converted or sides
/// swapped, and the coefficients of a progressive JPEG (2 bytes each, up to 4 components).
fn peak_bytes(decoder: &impl ImageDecoder, orientation: Orientation, is_progressive: bool) -> u64 {
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    let swaps_sides = !matches!(
        orientation,
        Orientation::NoTransforms
            | Orientation::Rotate180
            | Orientation::FlipHorizontal
            | Orientation::FlipVertical
    );
    let rotated = if swaps_sides { decoder.total_bytes() } else { 0 };
    let converted = if decoder.color_type() == ColorType::Rgb8 { 0 } else { 3 * pixels };
    let coefficients = if is_progressive { 8 * pixels } else { 0 };
    decoder.total_bytes().saturating_add(rotated.max(converted).max(coefficients))
}

fn into_rgb(pixels: DynamicImage) -> std::result::Result<Vec<u8>, String> {
    let high_byte = |sample: u16| sample.to_be_bytes()[0];
    let same = |sample: u8| sample;
    Ok(match pixels {
        DynamicImage::ImageRgb8(rgb) => rgb.into_raw(),
        DynamicImage::ImageLuma8(grey) => take_rgb(&grey, 1, same),
        DynamicImage::ImageLumaA8(grey) => take_rgb(&grey, 2, same),
        DynamicImage::ImageRgba8(rgba) => take_rgb(&rgba, 4, same),
        DynamicImage::ImageLuma16(grey) => take_rgb(&grey, 1, high_byte),
        DynamicImage::ImageLumaA16(grey) => take_rgb(&grey, 2, high_byte),
        DynamicImage::ImageRgb16(rgb) => take_rgb(&rgb, 3, high_byte),
        DynamicImage::ImageRgba16(rgba) => take_rgb(&rgba, 4, high_byte),
        other => return Err(format!("its pixels are {:?}, expected 8 or 16 bits a channel", other.color())),
    })
}

/// The colour of each pixel of `channels` samples: grey, grey and alpha, RGB, or RGBA.
fn take_rgb<T: Copy>(samples: &[T], channels: usize, to_byte: impl Fn(T) -> u8) -> Vec<u8> {
    let (green, blue) = if channels < 3 { (0, 0) } else { (1, 2) };
    let to_rgb = |pixel: &[T]| [to_byte(pixel[0]), to_byte(pixel[green]), to_byte(pixel[blue])];
    samples.chunks_exact(channels).flat_map(to_rgb).collect()
}
