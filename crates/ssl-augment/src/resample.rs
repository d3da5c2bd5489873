//! Separable resampling: the weights of one axis, and the two passes.

use std::ops::Range;

use crate::image::Image;
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
    /// Output positions are those of `window`, of `out_len` in all.
    pub(crate) fn antialiased<S: Sample<Weight = W>>(
        in_len: usize,
        out_len: usize,
        window: Range<usize>,
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
    let width = taps.spans.len();
    let mut data = vec![S::BLACK; width * region.height * 3];
    for (y, out) in data.chunks_exact_mut(width * 3).enumerate() {
        let row = region.row(image, y);
        for ((start, weights), out) in taps.iter().zip(out.as_chunks_mut().0) {
            let mut sums = [S::SUM_START; 3];
            for (&[r, g, b], &weight) in row[start..][..weights.len()].iter().zip(weights) {
                sums = [
                    r.accumulate(sums[0], weight),
                    g.accumulate(sums[1], weight),
                    b.accumulate(sums[2], weight),
                ];
            }
            *out = sums.map(S::from_sum);
        }
    }
    Image::from_parts(width, region.height, data)
}

/// Changes the height.
fn resample_columns<S: Sample>(image: &Image<S>, region: CropBox, taps: &Taps<S::Weight>) -> Image<S> {
    let height = taps.spans.len();
    let mut data = Vec::with_capacity(region.width * height * 3);
    let mut sums = vec![S::SUM_START; region.width * 3];
    for (start, weights) in taps.iter() {
        sums.fill(S::SUM_START);
        for (j, &weight) in weights.iter().enumerate() {
            for (sum, x) in sums.iter_mut().zip(region.row(image, start + j).as_flattened()) {
                *sum = x.accumulate(*sum, weight);
            }
        }
        data.extend(sums.iter().map(|&sum| S::from_sum(sum)));
    }
    Image::from_parts(region.width, height, data)
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
}
