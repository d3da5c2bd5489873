//! A picture of square tiles in rows and columns.

use std::io::Cursor;
use std::path::Path;

use anyhow::Context;
use candle_core::{DType, Tensor};
use image::imageops::{FilterType, crop_imm, resize};
use image::{DynamicImage, ImageFormat, Rgba, RgbaImage};
use ssl_vision::augment::Normalize;

/// Pixels between the tiles.
const GAP: usize = 2;

/// Pixels that the side of a tile should have on a screen.
const LEGIBLE: usize = 96;

/// Tiles of `tile` by `tile` pixels, with nothing but a transparent white between them.
pub(crate) struct Tiles {
    picture: RgbaImage,
    tile: usize,
}

impl Tiles {
    pub(crate) fn new(rows: usize, columns: usize, tile: usize) -> Self {
        let side = |tiles: usize| (tiles * (tile + GAP) + GAP) as u32;
        Self { picture: RgbaImage::from_pixel(side(columns), side(rows), Rgba([255, 255, 255, 0])), tile }
    }

    /// Puts a square of `size` pixels, at most the side of a tile, in the middle of the tile at (row, column); `pixel` is a
    /// function of (column, row) within it.
    pub(crate) fn put(
        &mut self,
        (row, column): (usize, usize),
        size: usize,
        pixel: impl Fn(usize, usize) -> [u8; 3],
    ) {
        let start = |place: usize| GAP + place * (self.tile + GAP) + (self.tile - size) / 2;
        for (y, x) in (0..size).flat_map(|y| (0..size).map(move |x| (y, x))) {
            let (left, top) = (start(column) + x, start(row) + y);
            let [red, green, blue] = pixel(x, y);
            self.picture.put_pixel(left as u32, top as u32, Rgba([red, green, blue, 255]));
        }
    }

    /// Writes the picture on white, with small tiles enlarged without smoothing, so that their pixels can be seen.
    pub(crate) fn save(&self, path: &Path) -> anyhow::Result<()> {
        DynamicImage::from(self.enlarged())
            .to_rgb8()
            .save(path)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The same without its margins as the bytes of a PNG file, transparent between the tiles.
    pub(crate) fn png(&self) -> anyhow::Result<Vec<u8>> {
        let mut bytes = Cursor::new(Vec::new());
        let (whole, margin) = (self.enlarged(), self.scale() * GAP as u32);
        let (width, height) = (whole.width() - 2 * margin, whole.height() - 2 * margin);
        crop_imm(&whole, margin, margin, width, height).to_image().write_to(&mut bytes, ImageFormat::Png)?;
        Ok(bytes.into_inner())
    }

    fn scale(&self) -> u32 {
        (LEGIBLE / self.tile).max(1) as u32
    }

    fn enlarged(&self) -> RgbaImage {
        let scale = self.scale();
        let (width, height) = (scale * self.picture.width(), scale * self.picture.height());
        resize(&self.picture, width, height, FilterType::Nearest)
    }
}

/// The colours of a normalised image `(3, H, W)`, row by row.
pub(crate) fn to_pixels(normalize: &Normalize, image: &Tensor) -> anyhow::Result<Vec<[u8; 3]>> {
    let (_, height, width) = image.dims3()?;
    let values = image.to_dtype(DType::F64)?.flatten_all()?.to_vec1::<f64>()?;
    let (mean, std) = (normalize.mean(), normalize.std());
    let level = |channel: usize, pixel: usize| {
        let value = values[channel * height * width + pixel] * std[channel] + mean[channel];
        (value * 255.0).round().clamp(0.0, 255.0) as u8
    };
    Ok((0..height * width).map(|pixel| [0, 1, 2].map(|channel| level(channel, pixel))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_stand_apart_and_small_squares_in_their_middle() {
        let mut tiles = Tiles::new(1, 2, 4);
        tiles.put((0, 1), 2, |x, y| [x as u8, y as u8, 7]);
        assert_eq!(tiles.picture.dimensions(), (14, 8));
        assert_eq!(tiles.picture.get_pixel(9, 3), &Rgba([0, 0, 7, 255]));
        assert_eq!(tiles.picture.get_pixel(10, 4), &Rgba([1, 1, 7, 255]));
        assert_eq!(tiles.picture.get_pixel(8, 2), &Rgba([255, 255, 255, 0]));
        let folder = tempfile::tempdir().unwrap();
        tiles.save(&folder.path().join("a.png")).unwrap();
        let read = image::open(folder.path().join("a.png")).unwrap();
        assert_eq!((read.width(), read.height()), (14 * 24, 8 * 24));
        assert_eq!(read.to_rgba8().get_pixel(0, 0), &Rgba([255; 4]));
        let shown = image::load_from_memory(&tiles.png().unwrap()).unwrap().to_rgba8();
        assert_eq!(shown.dimensions(), (10 * 24, 4 * 24));
        assert_eq!(shown.get_pixel(5 * 24, 0)[3], 0);
        let error = tiles.save(&folder.path().join("none/a.png")).unwrap_err().to_string();
        assert!(error.contains("cannot write") && error.contains("none/a.png"), "{error}");
    }
}
