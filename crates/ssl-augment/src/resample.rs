//! Separable resampling: the weights of one axis, and the two passes.

use std::ops::Range;

use crate::image::Image;
use crate::lanes::{Kernel, run};
use crate::resize::{CropBox, Interpolation};
use crate::sample::Sample;

/// For each output position of one axis: which input positions, with which weights.
#[derive(Clone, Debug)]
pub(crate) struct Taps<W> {
    /// By how many pixels the whole axis becomes shorter.
    shrinkage: isize,
    /// Start in the input and number of weights, one for each output position.
    spans: Vec<(usize, usize)>,
    /// The weights of all output positions, one after the other.
    weights: Vec<W>,
}

impl<W: Copy> Taps<W> {
    /// Antialiased, as in Pillow: the filter is widened by the scale when the image shrinks.
    ///
    /// Output positions are those of `window`, in its order, of `out_len` in all.
    pub(crate) fn antialiased<S: Sample<Weight = W>>(
        in_len: usize,
        out_len: usize,
        window: impl Iterator<Item = usize>,
        interpolation: Interpolation,
    ) -> Self {
        let scale = in_len as f64 / out_len as f64;
        let stretch = scale.max(1.0);
        let inverse_stretch = 1.0 / stretch;
        let support = interpolation.support() * stretch;
        let mut taps = Self::new(in_len, out_len);
        let mut exact = Vec::new();
        for i in window {
            let center = (i as f64 + 0.5) * scale;
            let (start, end) = if interpolation == Interpolation::Nearest {
                (center as usize, center as usize + 1)
            } else {
                ((center - support + 0.5).max(0.0) as usize, ((center + support + 0.5) as usize).min(in_len))
            };
            exact.clear();
            exact.extend(
                (start..end).map(|j| interpolation.filter((j as f64 - center + 0.5) * inverse_stretch)),
            );
            let sum: f64 = exact.iter().sum();
            taps.spans.push((start, exact.len()));
            taps.weights.extend(exact.iter().map(|w| S::weight(w / sum)));
        }
        taps
    }

    /// Not antialiased, as in PyTorch: the filter has its own width at every scale, and edge pixels are repeated.
    pub(crate) fn interpolating<S: Sample<Weight = W>>(
        in_len: usize,
        out_len: usize,
        interpolation: Interpolation,
    ) -> Self {
        let scale = in_len as f64 / out_len as f64;
        let mut taps = Self::new(in_len, out_len);
        for i in 0..out_len {
            let (first, weights) = interpolation.point_weights(i as f64, scale);
            let inside = |j: usize| (first + j as isize).clamp(0, in_len as isize - 1) as usize;
            let start = inside(0);
            let mut exact = [0.0; 4];
            for (j, w) in weights.into_iter().enumerate() {
                exact[inside(j) - start] += w;
            }
            let len = inside(3) - start + 1;
            taps.spans.push((start, len));
            taps.weights.extend(exact[..len].iter().map(|&w| S::weight(w)));
        }
        taps
    }

    fn new(in_len: usize, out_len: usize) -> Self {
        Self { shrinkage: in_len as isize - out_len as isize, spans: Vec::new(), weights: Vec::new() }
    }

    /// Moves the input positions so that the first one needed becomes 0, and returns the range that is needed.
    fn trim(&mut self) -> Range<usize> {
        let start = self.spans.iter().map(|span| span.0).min().unwrap_or(0);
        let end = self.spans.iter().map(|span| span.0 + span.1).max().unwrap_or(0);
        for span in &mut self.spans {
            span.0 -= start;
        }
        start..end
    }

    /// First input position and weights of each output position.
    fn iter(&self) -> impl Iterator<Item = (usize, &[W])> {
        let mut rest = self.weights.as_slice();
        self.spans.iter().map(move |&(start, len)| {
            let (weights, tail) = rest.split_at(len);
            rest = tail;
            (start, weights)
        })
    }
}

/// Resamples the pixels of `region` in two passes; `u8` is rounded in between.
///
/// The order of the passes is that of Pillow 13, which makes tall images shorter first. (Before, Pillow always began
/// with the rows.)
pub(crate) fn resample<S: Sample>(
    image: &Image<S>,
    mut region: CropBox,
    mut horizontal: Taps<S::Weight>,
    mut vertical: Taps<S::Weight>,
) -> Image<S> {
    if 0 < vertical.shrinkage && 2 * horizontal.shrinkage < vertical.shrinkage {
        let columns = horizontal.trim();
        region = CropBox { left: region.left + columns.start, width: columns.len(), ..region };
        let short = resample_columns(image, region, &vertical);
        resample_rows(&short, CropBox::whole(&short), &horizontal)
    } else {
        let rows = vertical.trim();
        region = CropBox { top: region.top + rows.start, height: rows.len(), ..region };
        let narrow = resample_rows(image, region, &horizontal);
        resample_columns(&narrow, CropBox::whole(&narrow), &vertical)
    }
}

/// Changes the width.
fn resample_rows<S: Sample>(image: &Image<S>, region: CropBox, taps: &Taps<S::Weight>) -> Image<S> {
    run(Rows { image, region, taps })
}

/// Changes the height.
fn resample_columns<S: Sample>(image: &Image<S>, region: CropBox, taps: &Taps<S::Weight>) -> Image<S> {
    run(Columns { image, region, taps })
}

/// Rows that are resampled at once.
const ROWS: usize = 5;

/// The samples of one column of so many rows, and one more to make a power of two.
const ROW_LANES: usize = 16;

/// Samples of a row of the result that are computed at once: all of 32 pixels, a seventh of 224.
const COLUMN_LANES: usize = 96;

struct Rows<'a, S: Sample> {
    image: &'a Image<S>,
    region: CropBox,
    taps: &'a Taps<S::Weight>,
}

impl<S: Sample> Kernel for Rows<'_, S> {
    type Output = Image<S>;

    #[inline(always)]
    fn run(self) -> Image<S> {
        let Self { image, region, taps } = self;
        let width = taps.spans.len();
        let mut data = vec![S::BLACK; width * region.height * 3];
        let mut lines = vec![[S::BLACK; ROW_LANES]; region.width];
        for (group, out) in data.chunks_mut(ROWS * width * 3).enumerate() {
            for row in 0..out.len() / (width * 3) {
                let pixels = region.row(image, group * ROWS + row);
                for (line, pixel) in lines.iter_mut().zip(pixels) {
                    line[3 * row..3 * row + 3].copy_from_slice(pixel);
                }
            }
            for (x, (start, weights)) in taps.iter().enumerate() {
                let levels = weighted(&lines[start..start + weights.len()], weights);
                for (out, level) in out.chunks_exact_mut(width * 3).zip(levels.as_chunks::<3>().0) {
                    out[3 * x..3 * x + 3].copy_from_slice(level);
                }
            }
        }
        Image::from_parts(width, region.height, data)
    }
}

struct Columns<'a, S: Sample> {
    image: &'a Image<S>,
    region: CropBox,
    taps: &'a Taps<S::Weight>,
}

impl<S: Sample> Kernel for Columns<'_, S> {
    type Output = Image<S>;

    #[inline(always)]
    fn run(self) -> Image<S> {
        let Self { image, region, taps } = self;
        let (stride, height) = (region.width * 3, taps.spans.len());
        let mut data = vec![S::BLACK; stride * height];
        for ((start, weights), out) in taps.iter().zip(data.chunks_exact_mut(stride)) {
            let row = |j: usize| region.row(image, start + j).as_flattened();
            if stride < COLUMN_LANES {
                weighted_columns::<S, 1>(row, weights, out);
            } else {
                weighted_columns::<S, COLUMN_LANES>(row, weights, out);
            }
        }
        Image::from_parts(region.width, height, data)
    }
}

/// The weighted sum of `lines`, lane by lane.
#[inline(always)]
fn weighted<S: Sample, const N: usize>(lines: &[[S; N]], weights: &[S::Weight]) -> [S; N] {
    let mut sums = [S::SUM_START; N];
    for (line, &weight) in lines.iter().zip(weights) {
        accumulate(&mut sums, line, weight);
    }
    let mut levels = [S::BLACK; N];
    for lane in 0..N {
        levels[lane] = S::from_sum(sums[lane]);
    }
    levels
}

/// The weighted sum of whole rows, `N` samples at a time; the last block may overlap the one before.
#[inline(always)]
fn weighted_columns<'a, S: Sample, const N: usize>(
    row: impl Fn(usize) -> &'a [S],
    weights: &[S::Weight],
    out: &mut [S],
) {
    let last = out.len() - N;
    for start in (0..out.len()).step_by(N).map(|start| start.min(last)) {
        let mut sums = [S::SUM_START; N];
        for (j, &weight) in weights.iter().enumerate() {
            if let Some(line) = row(j)[start..].first_chunk() {
                accumulate(&mut sums, line, weight);
            }
        }
        for (out, sum) in out[start..start + N].iter_mut().zip(sums) {
            *out = S::from_sum(sum);
        }
    }
}

#[inline(always)]
fn accumulate<S: Sample, const N: usize>(sums: &mut [S::Weight; N], line: &[S; N], weight: S::Weight) {
    for lane in 0..N {
        sums[lane] = line[lane].accumulate(sums[lane], weight);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_lengths_give_unit_weights() {
        for interpolation in [Interpolation::Nearest, Interpolation::Bilinear, Interpolation::Bicubic] {
            let taps = Taps::antialiased::<f32>(5, 5, 0..5, interpolation);
            for (i, (start, weights)) in taps.iter().enumerate() {
                let total: Vec<_> = weights.iter().enumerate().filter(|(_, w)| **w != 0.0).collect();
                assert_eq!(total, [(i - start, &1.0)], "{interpolation:?}");
            }
        }
    }

    #[test]
    fn halving_bilinearly_weighs_four_pixels() {
        let taps = Taps::antialiased::<f32>(8, 4, 0..4, Interpolation::Bilinear);
        let (start, weights) = taps.iter().nth(1).unwrap();
        // Triangle of half width 2 around 3.0, over the centres 1.5, 2.5, 3.5, 4.5.
        assert_eq!((start, weights), (1, [0.125, 0.375, 0.375, 0.125].as_slice()));
    }

    #[test]
    fn a_window_is_a_part_of_the_whole() {
        let whole = Taps::antialiased::<u8>(40, 17, 0..17, Interpolation::Bicubic);
        let part = Taps::antialiased::<u8>(40, 17, 5..9, Interpolation::Bicubic);
        assert!(part.iter().eq(whole.iter().skip(5).take(4)));
    }

    /// The two passes sample by sample, in the order that `resample` takes for images that do not get much shorter.
    fn plain<S: Sample>(
        image: &Image<S>,
        horizontal: &Taps<S::Weight>,
        vertical: &Taps<S::Weight>,
    ) -> Vec<S> {
        let sample = |taps: &(usize, &[S::Weight]), at: &dyn Fn(usize) -> S| {
            let terms = taps.1.iter().enumerate();
            S::from_sum(terms.fold(S::SUM_START, |sum, (j, &w)| at(taps.0 + j).accumulate(sum, w)))
        };
        let mut out = Vec::new();
        for rows in vertical.iter() {
            for columns in horizontal.iter() {
                for c in 0..3 {
                    let pixel = |y: usize, x: usize| image.pixels()[y * image.width() + x][c];
                    out.push(sample(&rows, &|y| sample(&columns, &|x| pixel(y, x))));
                }
            }
        }
        out
    }

    #[test]
    fn lanes_change_no_bit() {
        for (width, height, size) in [(1, 1, 3), (7, 4, 5), (40, 23, 17), (33, 12, 12), (90, 11, 43)] {
            let data = (0..width * height * 3).map(|i| (i * i * 13 % 251) as u8).collect();
            let image = Image::new(width, height, data).unwrap();
            for interpolation in [Interpolation::Bilinear, Interpolation::Bicubic] {
                let whole = CropBox::whole(&image);
                let h = Taps::antialiased::<u8>(width, size, 0..size, interpolation);
                let v = Taps::antialiased::<u8>(height, size, 0..size, interpolation);
                let expected = plain(&image, &h, &v);
                assert_eq!(resample(&image, whole, h, v).data(), expected);
                let h = Taps::antialiased::<f32>(width, size, 0..size, interpolation);
                let v = Taps::antialiased::<f32>(height, size, 0..size, interpolation);
                let image = image.to_float();
                let expected = plain(&image, &h, &v);
                assert_eq!(resample(&image, whole, h, v).data(), expected);
            }
        }
    }
}
