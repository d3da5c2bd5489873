//! Gaussian blur: Pillow's three box blurs on `u8`, a true kernel on `f32`.

use rand_core::RngCore;

use crate::error::{self, Error, Result};
use crate::image::Image;
use crate::lanes::{Kernel, run};
use crate::random;
use crate::sample::Sample;
use crate::transform::Transform;

/// Largest standard deviation in pixels; what is above counts as this.
const MAX_SIGMA: f64 = 1000.0;

/// Box blurs in each direction.
const PASSES: usize = 3;

/// Up to this radius a box is summed anew for every pixel of a row, many pixels at once; above it a sum is carried along.
const MAX_SUMMED_RADIUS: usize = 16;

/// Samples of a row that are summed at once: all of 32 pixels, a seventh of 224.
const SUMMED_LANES: usize = 96;

/// Blurs with a standard deviation of `sigma` pixels; 0 and below do nothing, above 1000 counts as 1000.
///
/// `u8`: Pillow's `GaussianBlur(radius=sigma)`, three extended box blurs in each direction (Gwosdek et al., 2011),
/// edge pixels repeated.
/// `f32`: [`convolve_gaussian`] with a kernel of about a tenth of the shorter side, `2 floor(side / 20) + 1`
/// (Chen et al., 2020, appendix A: 23 for 224 pixels), at least 3.
pub fn gaussian_blur<S: Sample>(image: Image<S>, sigma: f64) -> Image<S> {
    if sigma > 0.0 { S::blur(image, sigma.min(MAX_SIGMA)) } else { image }
}

/// Convolves with a sampled Gaussian of `kernel_size` x `kernel_size` pixels, as torchvision's `gaussian_blur`.
///
/// The border is reflected without repeating the edge pixel.
///
/// # Errors
/// If `kernel_size` is even or above 999, or `sigma` outside (0, 1000].
pub fn convolve_gaussian(image: Image<f32>, kernel_size: usize, sigma: f64) -> Result<Image<f32>> {
    if kernel_size.is_multiple_of(2) || kernel_size > 999 {
        return Err(Error::parameter("kernel_size", kernel_size, "odd and in 1..=999 pixels"));
    }
    if !(sigma > 0.0 && sigma <= MAX_SIGMA) {
        return Err(Error::parameter("sigma", sigma, "in (0, 1000] pixels"));
    }
    Ok(convolve(image, kernel_size / 2, sigma))
}

/// [`gaussian_blur`] with a probability and a random standard deviation.
///
/// Draws one [`random::chance`]; then, if it blurs, sigma by [`random::uniform`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GaussianBlur {
    p: f64,
    sigma: [f64; 2],
}

impl GaussianBlur {
    /// Blurs with probability `p` in [0, 1] and a standard deviation in the range `sigma`, in pixels.
    ///
    /// # Errors
    /// If `p` is outside [0, 1], or not `0 < sigma[0] <= sigma[1] <= 1000`.
    pub fn new(p: f64, sigma: [f64; 2]) -> Result<Self> {
        error::check_probability("blur_p", p)?;
        error::check_interval("blur_sigma", sigma, MAX_SIGMA, "[low, high] with 0 < low <= high <= 1000")?;
        Ok(Self { p, sigma })
    }
}

impl<S: Sample> Transform<S> for GaussianBlur {
    fn apply(&self, image: Image<S>, rng: &mut dyn RngCore) -> Image<S> {
        if !random::chance(rng, self.p) {
            return image;
        }
        gaussian_blur(image, random::uniform(rng, self.sigma))
    }
}

/// Pillow's `GaussianBlur`.
pub(crate) fn extended_box_blur(image: Image<u8>, sigma: f64) -> Image<u8> {
    let (width, height) = (image.width(), image.height());
    let blur = ExtendedBox::for_gaussian(sigma as f32);
    Image::from_parts(width, height, run(BoxBlur { data: image.into_data(), width, blur }))
}

/// All passes of a blur, first along the rows, then along the columns.
struct BoxBlur {
    data: Vec<u8>,
    width: usize,
    blur: ExtendedBox,
}

impl Kernel for BoxBlur {
    type Output = Vec<u8>;

    #[inline(always)]
    fn run(self) -> Vec<u8> {
        let Self { mut data, width, blur } = self;
        let mut line = Vec::new();
        for row in data.chunks_exact_mut(width * 3) {
            for _ in 0..PASSES {
                if blur.radius <= MAX_SUMMED_RADIUS {
                    repeat_ends(row, blur.radius + 1, &mut line);
                    blur.average_each(&line, row);
                } else {
                    line.clear();
                    line.extend_from_slice(row);
                    blur.average_along(&line, row, &mut [0; 3]);
                }
            }
        }
        let mut other = vec![0; data.len()];
        let mut sums = vec![0; width * 3];
        for _ in 0..PASSES {
            blur.average_along(&data, &mut other, &mut sums);
            std::mem::swap(&mut data, &mut other);
        }
        data
    }
}

/// Writes a row of pixels with `n` more of the first and of the last pixel.
#[inline(always)]
fn repeat_ends(row: &[u8], n: usize, line: &mut Vec<u8>) {
    line.clear();
    (0..n).for_each(|_| line.extend_from_slice(&row[..3]));
    line.extend_from_slice(row);
    (0..n).for_each(|_| line.extend_from_slice(&row[row.len() - 3..]));
}

/// A box of `2 * radius + 1` whole pixels and a part of one more at either end, in fixed point of 24 bits.
struct ExtendedBox {
    radius: usize,
    /// Weight of a whole pixel.
    whole: u32,
    /// Weight of the pixels at the ends.
    end: u32,
}

impl ExtendedBox {
    /// The box that gives the variance `sigma^2` in [`PASSES`] passes (Gwosdek et al., 2011, equations 7, 11, 14).
    ///
    /// Single and double precision alternate as in Pillow.
    fn for_gaussian(sigma: f32) -> Self {
        let variance = sigma * sigma / PASSES as f32;
        let length = (12.0 * f64::from(variance) + 1.0).sqrt() as f32;
        let whole_radius = ((f64::from(length) - 1.0) / 2.0).floor() as f32;
        let l = whole_radius;
        let mut part = (2.0 * l + 1.0) * (l * (l + 1.0) - 3.0 * variance);
        part /= 6.0 * (variance - (l + 1.0) * (l + 1.0));
        let radius = l + part;

        let one = 1_u32 << 24;
        let whole = (one as f32 / (radius * 2.0 + 1.0)) as u32;
        let radius = radius as usize;
        Self { radius, whole, end: (one - (2 * radius as u32 + 1) * whole) / 2 }
    }

    /// Averages a row of pixels that has `radius + 1` more at either end of `line`.
    #[inline(always)]
    fn average_each(&self, line: &[u8], out: &mut [u8]) {
        if out.len() < SUMMED_LANES {
            self.average_blocks::<1>(line, out);
        } else {
            self.average_blocks::<SUMMED_LANES>(line, out);
        }
    }

    /// Averages `N` samples at a time; the last block may overlap the one before.
    #[inline(always)]
    fn average_blocks<const N: usize>(&self, line: &[u8], out: &mut [u8]) {
        let (last_block, last) = (out.len() - N, 2 * self.radius + 2);
        for start in (0..out.len()).step_by(N).map(|start| start.min(last_block)) {
            let at = |j: usize| line[start + 3 * j..].first_chunk::<N>();
            let mut sums = [0_u16; N];
            for x in (1..last).filter_map(at) {
                (0..N).for_each(|lane| sums[lane] += u16::from(x[lane]));
            }
            let Some((left, right)) = at(0).zip(at(last)) else { continue };
            for (lane, out) in out[start..start + N].iter_mut().enumerate() {
                *out = self.level(u32::from(sums[lane]), left[lane], right[lane]);
            }
        }
    }

    /// Averages along a line of positions, each of `sums.len()` samples side by side; the ends are repeated.
    #[inline(always)]
    fn average_along(&self, line: &[u8], out: &mut [u8], sums: &mut [u32]) {
        let lanes = sums.len();
        let last = line.len() / lanes - 1;
        let at = |x: usize| &line[x.min(last) * lanes..][..lanes];

        // The sum around position -1: radius + 1 times the first pixel, then pixels 0 to radius - 1.
        for (sum, &x) in sums.iter_mut().zip(at(0)) {
            *sum = u32::from(x) * (self.radius as u32 + 1);
        }
        for j in 0..self.radius {
            for (sum, &x) in sums.iter_mut().zip(at(j)) {
                *sum += u32::from(x);
            }
        }
        for (i, out) in out.chunks_exact_mut(lanes).enumerate() {
            let leaving = at(i.saturating_sub(self.radius + 1));
            let (entering, next) = (at(i + self.radius), at(i + self.radius + 1));
            for lane in 0..lanes {
                sums[lane] = sums[lane] + u32::from(entering[lane]) - u32::from(leaving[lane]);
                out[lane] = self.level(sums[lane], leaving[lane], next[lane]);
            }
        }
    }

    /// The average of pixels that sum to `sum`, and of those at the ends.
    #[inline(always)]
    fn level(&self, sum: u32, left: u8, right: u8) -> u8 {
        let total = sum * self.whole + (u32::from(left) + u32::from(right)) * self.end;
        ((total + (1 << 23)) >> 24) as u8
    }
}

/// torchvision's blur with the kernel size that goes with the image.
pub(crate) fn default_kernel_blur(image: Image<f32>, sigma: f64) -> Image<f32> {
    let radius = (image.width().min(image.height()) / 20).max(1);
    convolve(image, radius, sigma)
}

fn convolve(image: Image<f32>, radius: usize, sigma: f64) -> Image<f32> {
    let (width, height) = (image.width(), image.height());
    let kernel = gaussian_kernel(radius, sigma);
    let mut data = image.into_data();
    let mut padded = Vec::new();
    for row in data.chunks_exact_mut(width * 3) {
        reflect_pad(row, 3, radius, &mut padded);
        weighted_sum(&padded, 3, &kernel, row);
    }
    reflect_pad(&data, width * 3, radius, &mut padded);
    for (y, row) in data.chunks_exact_mut(width * 3).enumerate() {
        weighted_sum(&padded[y * width * 3..], width * 3, &kernel, row);
    }
    Image::from_parts(width, height, data)
}

fn gaussian_kernel(radius: usize, sigma: f64) -> Vec<f32> {
    let density = |j: usize| (-0.5 * ((j as f64 - radius as f64) / sigma).powi(2)).exp();
    let sum: f64 = (0..=2 * radius).map(density).sum();
    (0..=2 * radius).map(|j| (density(j) / sum) as f32).collect()
}

/// Writes a line of positions, each of `lanes` samples side by side, with `radius` mirrored positions at either end.
fn reflect_pad(line: &[f32], lanes: usize, radius: usize, padded: &mut Vec<f32>) {
    let len = line.len() / lanes;
    padded.clear();
    for i in 0..len + 2 * radius {
        let source = reflect(i as isize - radius as isize, len);
        padded.extend_from_slice(&line[source * lanes..][..lanes]);
    }
}

/// `out[i]` becomes the sum of `kernel[j] * input[i + j * step]`.
fn weighted_sum(input: &[f32], step: usize, kernel: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    for (j, &weight) in kernel.iter().enumerate() {
        for (out, &x) in out.iter_mut().zip(&input[j * step..]) {
            *out += weight * x;
        }
    }
}

/// The position in `0..len` that `i` falls on when the line is mirrored at the centres of its end pixels.
fn reflect(i: isize, len: usize) -> usize {
    let period = (2 * (len as isize - 1)).max(1);
    let i = i.rem_euclid(period) as usize;
    if i < len { i } else { period as usize - i }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reflection_does_not_repeat_the_edge() {
        let mirrored: Vec<_> = (-4..8).map(|i| reflect(i, 4)).collect();
        assert_eq!(mirrored, [2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1]);
        assert_eq!((reflect(-3, 1), reflect(5, 1)), (0, 0));
    }

    #[test]
    fn box_weights_sum_to_one() {
        for sigma in [0.1, 0.5, 1.0, 2.0, 10.0, 1000.0] {
            let b = ExtendedBox::for_gaussian(sigma);
            let sum = (2 * b.radius as u32 + 1) * b.whole + 2 * b.end;
            assert!((1 << 24) - sum <= 1, "sigma {sigma}: {sum}");
        }
    }

    #[test]
    fn a_sum_anew_and_a_sum_carried_along_agree() {
        for sigma in [0.1, 0.7, 1.9, 4.0, 12.0, 90.0] {
            let blur = ExtendedBox::for_gaussian(sigma);
            for width in [1, 2, 11, 33, 70] {
                let row: Vec<u8> = (0..width * 3).map(|i| (i * i * 31 % 256) as u8).collect();
                let (mut anew, mut along) = (row.clone(), row.clone());
                let mut line = Vec::new();
                repeat_ends(&row, blur.radius + 1, &mut line);
                blur.average_each(&line, &mut anew);
                blur.average_along(&row, &mut along, &mut [0; 3]);
                assert_eq!(anew, along, "sigma {sigma}, width {width}");
            }
        }
    }

    #[test]
    fn kernel_is_normalised_and_symmetric() {
        let kernel = gaussian_kernel(2, 1.0);
        assert!((kernel.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert_eq!((kernel[0], kernel[1]), (kernel[4], kernel[3]));
        assert!((kernel[1] / kernel[2] - (-0.5_f32).exp()).abs() < 1e-6);
    }

    #[test]
    fn sigma_zero_negative_or_nan_changes_nothing() {
        let image = Image::new(2, 1, vec![0u8, 0, 0, 255, 255, 255]).unwrap();
        for sigma in [0.0, -1.0, f64::NAN] {
            assert_eq!(gaussian_blur(image.clone(), sigma), image);
        }
    }

    #[test]
    fn bad_parameters_are_refused() {
        assert!(GaussianBlur::new(1.1, [0.1, 2.0]).is_err());
        assert!(GaussianBlur::new(0.5, [0.0, 2.0]).is_err());
        assert!(GaussianBlur::new(0.5, [2.0, 0.1]).is_err());
        assert!(GaussianBlur::new(0.5, [0.1, f64::NAN]).is_err());
        let image = Image::new(1, 1, vec![0.5f32; 3]).unwrap();
        assert!(convolve_gaussian(image.clone(), 4, 1.0).is_err());
        assert!(convolve_gaussian(image.clone(), 3, 0.0).is_err());
        assert_eq!(convolve_gaussian(image.clone(), 5, 1.0).unwrap().width(), 1);
    }
}
