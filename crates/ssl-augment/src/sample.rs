//! The two arithmetics: `u8` as Pillow computes, `f32` as torchvision computes.

use std::fmt::Debug;

use crate::image::Image;
use crate::normalize::Normalize;
use crate::{enhance, gaussian_blur, grayscale, hue};

/// A sample of a pixel: `u8` in 0..=255 or `f32` in [0, 1].
///
/// The type chooses the arithmetic. `u8` gives Pillow's results bit for bit and rounds after each operation;
/// `f32` gives the results of torchvision on float tensors. The trait is sealed.
pub trait Sample: Arithmetic + Copy + PartialEq + Send + Sync + Debug + 'static {}

impl Sample for u8 {}
impl Sample for f32 {}

/// The steps that differ between the two arithmetics.
pub trait Arithmetic: Sized + Copy {
    /// Black, the least value.
    const BLACK: Self;
    /// A weight of a resampling filter, and the type of weighted sums.
    type Weight: Copy + Send + Sync + Debug;
    /// Where a weighted sum starts, so that [`Self::from_sum`] rounds.
    const SUM_START: Self::Weight;

    /// A filter weight from its exact value.
    fn weight(exact: f64) -> Self::Weight;
    /// `sum + weight * self`.
    fn accumulate(self, sum: Self::Weight, weight: Self::Weight) -> Self::Weight;
    /// The sample for a weighted sum.
    fn from_sum(sum: Self::Weight) -> Self;

    /// `factor * x + (1 - factor) * level` for every sample `x`, clamped to the range of samples.
    fn blend_with_level(samples: &mut [Self], level: Self, factor: f32);
    /// The same with the grey value of each pixel in place of a level.
    fn blend_with_luma(pixels: &mut [[Self; 3]], factor: f32);
    /// Replaces all samples by the grey value of their pixel.
    fn replace_by_luma(pixels: &mut [[Self; 3]]);
    /// The mean grey value of an image.
    fn mean_luma(image: &Image<Self>) -> Self
    where
        Self: Sample;
    /// Turns the hue of all pixels by `turns` full circles.
    fn shift_hue(pixels: &mut [[Self; 3]], turns: f64);
    /// White minus `self` from the threshold on, which is given in 8-bit levels.
    fn solarize(self, threshold: u8) -> Self;
    /// Keeps `1 <= bits <= 8` bits of eight.
    fn posterize(self, bits: u32) -> Self;
    /// Blurs with a standard deviation of `sigma > 0` pixels.
    fn blur(image: Image<Self>, sigma: f64) -> Image<Self>
    where
        Self: Sample;
    /// `(self - mean) / std` of a channel.
    fn normalize(self, normalize: &Normalize, channel: usize) -> f32;
}

/// Pillow keeps filter weights as integers of 32 - 8 - 2 bits.
const WEIGHT_BITS: u32 = 22;

impl Arithmetic for u8 {
    const BLACK: Self = 0;
    type Weight = i32;
    const SUM_START: i32 = 1 << (WEIGHT_BITS - 1);

    fn weight(exact: f64) -> i32 {
        let scaled = exact * f64::from(1 << WEIGHT_BITS);
        (scaled + 0.5_f64.copysign(scaled)) as i32
    }

    #[inline(always)]
    fn accumulate(self, sum: i32, weight: i32) -> i32 {
        sum + i32::from(self) * weight
    }

    #[inline(always)]
    fn from_sum(sum: i32) -> Self {
        (sum >> WEIGHT_BITS).clamp(0, 255) as u8
    }

    fn blend_with_level(samples: &mut [Self], level: Self, factor: f32) {
        enhance::blend_with_level_u8(samples, level, factor);
    }

    fn blend_with_luma(pixels: &mut [[Self; 3]], factor: f32) {
        enhance::blend_with_luma_u8(pixels, factor);
    }

    fn replace_by_luma(pixels: &mut [[Self; 3]]) {
        grayscale::replace_by_luma_u8(pixels);
    }

    fn mean_luma(image: &Image<Self>) -> Self {
        grayscale::mean_luma_u8(image)
    }

    fn shift_hue(pixels: &mut [[Self; 3]], turns: f64) {
        hue::shift_hue_u8(pixels, turns);
    }

    fn solarize(self, threshold: u8) -> Self {
        if self < threshold { self } else { 255 - self }
    }

    fn posterize(self, bits: u32) -> Self {
        self & !((0xff_u32 >> bits) as u8)
    }

    fn blur(image: Image<Self>, sigma: f64) -> Image<Self> {
        gaussian_blur::extended_box_blur(image, sigma)
    }

    fn normalize(self, normalize: &Normalize, channel: usize) -> f32 {
        normalize.level(self, channel)
    }
}

impl Arithmetic for f32 {
    const BLACK: Self = 0.0;
    type Weight = f32;
    const SUM_START: f32 = 0.0;

    fn weight(exact: f64) -> f32 {
        exact as f32
    }

    #[inline(always)]
    fn accumulate(self, sum: f32, weight: f32) -> f32 {
        sum + self * weight
    }

    #[inline(always)]
    fn from_sum(sum: f32) -> Self {
        sum
    }

    fn blend_with_level(samples: &mut [Self], level: Self, factor: f32) {
        enhance::blend_with_level_f32(samples, level, factor);
    }

    fn blend_with_luma(pixels: &mut [[Self; 3]], factor: f32) {
        enhance::blend_with_luma_f32(pixels, factor);
    }

    fn replace_by_luma(pixels: &mut [[Self; 3]]) {
        grayscale::replace_by_luma_f32(pixels);
    }

    fn mean_luma(image: &Image<Self>) -> Self {
        grayscale::mean_luma_f32(image)
    }

    fn shift_hue(pixels: &mut [[Self; 3]], turns: f64) {
        hue::shift_hue_f32(pixels, turns);
    }

    fn solarize(self, threshold: u8) -> Self {
        if self < f32::from(threshold) / 255.0 { self } else { 1.0 - self }
    }

    fn posterize(self, bits: u32) -> Self {
        let levels = (1_u32 << bits) as f32;
        (self * levels).floor().clamp(0.0, levels - 1.0) / levels
    }

    fn blur(image: Image<Self>, sigma: f64) -> Image<Self> {
        gaussian_blur::default_kernel_blur(image, sigma)
    }

    fn normalize(self, normalize: &Normalize, channel: usize) -> f32 {
        normalize.value(self, channel)
    }
}
