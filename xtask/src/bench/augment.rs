//! Two views of SimCLR for an image, on one thread, as the loader makes them.

use std::path::Path;

use anyhow::Result;
use image::codecs::jpeg::JpegEncoder;
use ssl_vision::augment::random::below;
use ssl_vision::augment::{Image, Interpolation, MultiView, Normalize, presets};
use ssl_vision::data::{Limits, decode_bytes};
use ssl_vision::nn::{Purpose, rng};

use super::Suite;
use super::measure::{Case, Timing, Unit, time};

/// A case that decodes a JPEG.
struct Photo {
    id: &'static str,
    width: usize,
    height: usize,
    /// Side of the views in pixels.
    size: usize,
    /// How often the JPEG is read in a call, so that the random choices average out.
    reads: u64,
}

const PHOTOS: [Photo; 2] = [
    Photo { id: "augment/simclr-224-jpeg", width: 500, height: 375, size: 224, reads: 64 },
    Photo { id: "augment/simclr-96-photo", width: 4000, height: 3000, size: 96, reads: 8 },
];

pub(super) fn cases() -> Vec<Case> {
    const READS: u64 = 64;
    let small = Case::new(Suite::Augment, "augment/simclr-32", Unit::Images(READS as f64), || {
        let mut rng = rng(0, Purpose::Init, 0, 0, 0);
        let image = Image::new(32, 32, (0..32 * 32 * 3).map(|_| below(&mut rng, 256) as u8).collect())?;
        two_views(&simclr(32)?, READS, || Ok(image.clone()))
    });
    let of_photo = |photo: Photo| {
        Case::new(Suite::Augment, photo.id, Unit::Images(photo.reads as f64), move || {
            let (jpeg, views) = (photo.jpeg()?, simclr(photo.size)?);
            // As the loader reads it.
            let (limits, resolution) = (Limits::default(), Some(views.resolution()));
            let read = || Ok(decode_bytes(&jpeg, Path::new("photo.jpg"), &limits, resolution)?);
            two_views(&views, photo.reads, read)
        })
    };
    std::iter::once(small).chain(PHOTOS.map(of_photo)).collect()
}

/// The views of SimCLR, interpolated as the peer does, where the preset has the paper's bicubic.
fn simclr(size: usize) -> Result<MultiView> {
    let mut config = presets::simclr(size, 1.0);
    config.iter_mut().for_each(|view| view.interpolation = Interpolation::Bilinear);
    Ok(MultiView::new(&config)?)
}

/// Reads an image, makes two views and normalises them, `reads` times in a call, with other random choices in each.
fn two_views(views: &MultiView, reads: u64, read: impl Fn() -> Result<Image>) -> Result<Timing> {
    let size = views.sizes()[0];
    let normalize = Normalize::imagenet();
    let mut out = vec![0f32; 3 * size * size];
    let mut epoch = 0;
    time(2, 3, || {
        for sample in 0..reads {
            let image = read()?;
            for view in views.views(&image, |view| rng(0, Purpose::Augment, epoch, sample, view as u32)) {
                normalize.write_chw(&view, &mut out)?;
            }
        }
        epoch += 1;
        Ok(())
    })
}

/// The JPEG that the case decodes, or nothing.
pub(super) fn photo_of(case: &str) -> Result<Vec<u8>> {
    PHOTOS.iter().find(|photo| photo.id == case).map_or(Ok(Vec::new()), Photo::jpeg)
}

impl Photo {
    /// Smooth areas, edges and fine grain, about as many bytes as a photo at this quality.
    fn jpeg(&self) -> Result<Vec<u8>> {
        let mut grain = rng(0, Purpose::Init, 0, 0, 0);
        let mut pixels = Vec::with_capacity(self.width * self.height * 3);
        for y in 0..self.height {
            for x in 0..self.width {
                let (u, v) = (x as f64 / self.width as f64, y as f64 / self.height as f64);
                let edge = if ((9.0 * u).sin() + (7.0 * v).cos()) > 0.3 { 40.0 } else { 0.0 };
                let noise = below(&mut grain, 25) as f64;
                for shift in [0.0, 0.7, 1.9] {
                    let wave = 60.0 * (5.0 * u + shift).sin() * (4.0 * v - shift).cos();
                    pixels.push((95.0 + wave + edge + noise) as u8);
                }
            }
        }
        let (width, height) = (u32::try_from(self.width)?, u32::try_from(self.height)?);
        let mut jpeg = Vec::new();
        JpegEncoder::new_with_quality(&mut jpeg, 90).encode(
            &pixels,
            width,
            height,
            image::ExtendedColorType::Rgb8,
        )?;
        Ok(jpeg)
    }
}
