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

/// Images in a call, so that the random choices average out.
const IMAGES: u64 = 64;

pub(super) fn cases() -> Vec<Case> {
    let unit = Unit::Images(IMAGES as f64);
    vec![
        Case::new(Suite::Augment, "augment/simclr-32", unit, || {
            let mut rng = rng(0, Purpose::Init, 0, 0, 0);
            let image = Image::new(32, 32, (0..32 * 32 * 3).map(|_| below(&mut rng, 256) as u8).collect())?;
            two_views(32, || Ok(image.clone()))
        }),
        Case::new(Suite::Augment, "augment/simclr-224-jpeg", unit, || {
            let jpeg = photo_jpeg()?;
            two_views(224, || Ok(decode_bytes(&jpeg, Path::new("photo.jpg"), &Limits::default())?))
        }),
    ]
}

/// Reads an image, makes two views and normalises them, again and again with other random choices.
fn two_views(size: usize, read: impl Fn() -> Result<Image>) -> Result<Timing> {
    let mut config = presets::simclr(size, 1.0);
    // As the peer, where the preset has the paper's bicubic.
    config.iter_mut().for_each(|view| view.interpolation = Interpolation::Bilinear);
    let views = MultiView::new(&config)?;
    let normalize = Normalize::imagenet();
    let mut out = vec![0f32; 3 * size * size];
    let mut epoch = 0;
    time(2, 3, || {
        for sample in 0..IMAGES {
            let image = read()?;
            for view in views.views(&image, |view| rng(0, Purpose::Augment, epoch, sample, view as u32)) {
                normalize.write_chw(&view, &mut out)?;
            }
        }
        epoch += 1;
        Ok(())
    })
}

/// A JPEG of 500x375 pixels with smooth areas, edges and fine grain, about as large as a photo at this quality.
pub(super) fn photo_jpeg() -> Result<Vec<u8>> {
    const WIDTH: usize = 500;
    const HEIGHT: usize = 375;
    let mut grain = rng(0, Purpose::Init, 0, 0, 0);
    let mut pixels = Vec::with_capacity(WIDTH * HEIGHT * 3);
    for y in 0..HEIGHT {
        for x in 0..WIDTH {
            let (u, v) = (x as f64 / WIDTH as f64, y as f64 / HEIGHT as f64);
            let edge = if ((9.0 * u).sin() + (7.0 * v).cos()) > 0.3 { 40.0 } else { 0.0 };
            let noise = below(&mut grain, 25) as f64;
            for shift in [0.0, 0.7, 1.9] {
                let wave = 60.0 * (5.0 * u + shift).sin() * (4.0 * v - shift).cos();
                pixels.push((95.0 + wave + edge + noise) as u8);
            }
        }
    }
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, 90).encode(
        &pixels,
        WIDTH as u32,
        HEIGHT as u32,
        image::ExtendedColorType::Rgb8,
    )?;
    Ok(jpeg)
}
