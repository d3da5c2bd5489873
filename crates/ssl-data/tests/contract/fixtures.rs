//! Tiny files to read, made on the spot.

use std::fs;
use std::io::{Cursor, Write};
use std::path::Path;

use flate2::write::{GzEncoder, ZlibEncoder};
use flate2::{Compression, Crc};
use image::{DynamicImage, ImageFormat, Rgb, RgbImage};
use ssl_data::{Image, Limits, OpenOptions, Resolution, Result, Splits};

/// A fixture from the folder of golden values; its README says how each was made.
pub(crate) fn golden(name: &str) -> Vec<u8> {
    fs::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/images")).join(name)).unwrap()
}

/// An image in which every pixel differs from its neighbours.
pub(crate) fn gradient(width: u32, height: u32) -> DynamicImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([(x * 5) as u8, (y * 7) as u8, (x * y) as u8])).into()
}

pub(crate) fn encode(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A PNG from its header, other chunks and scan lines, for what the encoder cannot write.
pub(crate) fn png(
    size: (u32, u32),
    depth: u8,
    colour: u8,
    chunks: &[(&[u8; 4], &[u8])],
    lines: &[u8],
) -> Vec<u8> {
    let header = [&size.0.to_be_bytes()[..], &size.1.to_be_bytes(), &[depth, colour, 0, 0, 0]].concat();
    let mut packed = ZlibEncoder::new(Vec::new(), Compression::default());
    packed.write_all(lines).unwrap();
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    file.extend(png_chunk(b"IHDR", &header));
    chunks.iter().for_each(|(kind, data)| file.extend(png_chunk(kind, data)));
    file.extend(png_chunk(b"IDAT", &packed.finish().unwrap()));
    file.extend(png_chunk(b"IEND", &[]));
    file
}

fn png_chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let mut crc = Crc::new();
    crc.update(kind);
    crc.update(data);
    [&(data.len() as u32).to_be_bytes(), &kind[..], data, &crc.sum().to_be_bytes()].concat()
}

/// An IDX file of bytes.
pub(crate) fn idx(sizes: &[u32], data: &[u8]) -> Vec<u8> {
    let sizes_be = sizes.iter().flat_map(|size| size.to_be_bytes());
    [0, 0, 8, sizes.len() as u8].into_iter().chain(sizes_be).chain(data.iter().copied()).collect()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

/// Writes a file and the folders that lead to it.
pub(crate) fn write(root: &Path, relative: &str, bytes: &[u8]) {
    let path = root.join(relative);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Writes a PNG of one colour, which tells images apart.
pub(crate) fn write_png(root: &Path, relative: &str, value: u8) {
    let image = RgbImage::from_pixel(2, 2, Rgb([value; 3])).into();
    write(root, relative, &encode(&image, ImageFormat::Png));
}

pub(crate) fn open(root: &Path) -> Result<Splits> {
    ssl_data::open(root, &OpenOptions::default())
}

pub(crate) fn open_error(root: &Path) -> String {
    open(root).unwrap_err().to_string()
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Image> {
    ssl_data::decode_bytes(bytes, Path::new("some/image.jpg"), &Limits::default(), None)
}

/// At the smallest size with this shorter side.
pub(crate) fn decode_reduced(bytes: &[u8], shorter_side: u64) -> Result<Image> {
    let resolution = Some(Resolution { pixels: 0, shorter_side });
    ssl_data::decode_bytes(bytes, Path::new("some/image.jpg"), &Limits::default(), resolution)
}

pub(crate) fn decode_error(bytes: &[u8]) -> String {
    decode(bytes).unwrap_err().to_string()
}

pub(crate) fn pixel(image: &Image, x: usize, y: usize) -> [u8; 3] {
    let at = 3 * (y * image.width() + x);
    [image.data()[at], image.data()[at + 1], image.data()[at + 2]]
}

/// For lossy formats.
#[track_caller]
pub(crate) fn assert_close(found: [u8; 3], expected: [u8; 3], tolerance: u8) {
    let is_close = found.iter().zip(expected).all(|(&a, b)| a.abs_diff(b) <= tolerance);
    assert!(is_close, "found {found:?}, expected {expected:?} within {tolerance}");
}
