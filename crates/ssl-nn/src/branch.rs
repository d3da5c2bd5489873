//! A branch of a transformer block, `x + scale · second(middle(first(norm(x))))`, over slices.
//!
//! The middle is the attention of whole samples or an activation. A few rows at a time stay in the cache from the norm
//! to the sum.

use rayon::prelude::*;

use crate::attention::{Heads, Scratch as AttentionScratch};
use crate::convolve::{parts, sum_in_order};
use crate::dense::{Operand, add_bias, add_columns, add_weight_gradient};
use crate::fresh::Fresh;
use crate::kernel::vectorised;
use crate::layer_norm::{backward_rows, forward_rows};
use crate::real::{Real, sum_by};
use crate::scratch::with_scratch;

/// Rows that are computed together.
pub(crate) const ROWS: usize = 112;

/// What stands between the two layers of a branch.
pub(crate) trait Middle<T>: Sync {
    /// Rows that are computed together.
    fn rows(&self) -> usize;

    /// The output for the rows from `start` on.
    fn forward(&self, start: usize, first: &[T], middle: &mut [T], scratch: &mut AttentionScratch<T>);

    /// The output once more, the gradient of the input, and what is added to further gradients.
    fn backward(
        &self,
        start: usize,
        first: &[T],
        d_middle: &[T],
        outputs: (&mut [T], &mut [T]),
        more: &mut [T],
        scratch: &mut AttentionScratch<T>,
    );

    /// Width of the output for that of the input.
    fn width(&self, first: usize) -> usize;
}

impl<T: Real> Middle<T> for Heads<'_, T> {
    fn rows(&self) -> usize {
        ROWS.div_ceil(self.sizes.tokens) * self.sizes.tokens
    }

    fn width(&self, first: usize) -> usize {
        first / 3
    }

    fn forward(&self, start: usize, first: &[T], middle: &mut [T], scratch: &mut AttentionScratch<T>) {
        let (i, sample) = (start / self.sizes.tokens, self.sizes.tokens * self.sizes.dim());
        for (i, (qkv, y)) in (i..).zip(first.chunks_exact(3 * sample).zip(middle.chunks_exact_mut(sample))) {
            Heads::forward(self, i, qkv, y, scratch);
        }
    }

    fn backward(
        &self,
        start: usize,
        first: &[T],
        d_middle: &[T],
        (middle, d_first): (&mut [T], &mut [T]),
        more: &mut [T],
        scratch: &mut AttentionScratch<T>,
    ) {
        let (i, sample) = (start / self.sizes.tokens, self.sizes.tokens * self.sizes.dim());
        let inputs = first.chunks_exact(3 * sample).zip(d_middle.chunks_exact(sample));
        let outputs = d_first.chunks_exact_mut(3 * sample).zip(middle.chunks_exact_mut(sample));
        for (i, ((qkv, dy), (dqkv, y))) in (i..).zip(inputs.zip(outputs)) {
            Heads::backward(self, i, qkv, dy, dqkv, Some(y), more, scratch);
        }
    }
}

/// The elements of a branch.
#[derive(Clone, Copy)]
pub(crate) struct Branch<'a, T> {
    pub(crate) norm: (&'a [T], &'a [T]),
    pub(crate) eps: T,
    pub(crate) first: (&'a [T], Option<&'a [T]>),
    pub(crate) second: (&'a [T], Option<&'a [T]>),
    pub(crate) scale: Option<&'a [T]>,
    /// Rows of a sample.
    pub(crate) tokens: usize,
    /// A factor for each sample.
    pub(crate) factors: Option<&'a [T]>,
    /// Which gradients are wanted, in the order of weight and bias of the norm, of the first and of the second
    /// layer, and of the scale.
    pub(crate) wanted: [bool; 7],
}

/// Memory that a thread uses again for every few rows.
struct Rows<T> {
    norm: Vec<T>,
    stats: Vec<[T; 2]>,
    middle: Vec<T>,
    d_middle: Vec<T>,
    d_first: Vec<T>,
    d_norm: Vec<T>,
    dz: Vec<T>,
    packed: Vec<T>,
    attention: AttentionScratch<T>,
}

impl<T> Default for Rows<T> {
    fn default() -> Self {
        let [norm, middle, d_middle, d_first, d_norm, dz, packed] = [(); 7].map(|()| Vec::new());
        let (stats, attention) = (Vec::new(), AttentionScratch::default());
        Self { norm, stats, middle, d_middle, d_first, d_norm, dz, packed, attention }
    }
}

impl<T: Real> Branch<'_, T> {
    fn dim(&self) -> usize {
        self.norm.0.len()
    }

    /// Outputs of the first layer.
    fn hidden(&self) -> usize {
        self.first.0.len() / self.dim()
    }

    /// `y` and the output of the first layer.
    pub(crate) fn forward(&self, x: &[T], middle: &impl Middle<T>) -> (Vec<T>, Vec<T>) {
        let (dim, hidden) = (self.dim(), self.hidden());
        let width = middle.width(hidden);
        let (first, second) = (Operand::forward(self.first.0, dim), Operand::forward(self.second.0, width));
        let (mut y, mut kept) = (Fresh::new(x.len()), Fresh::new(x.len() / dim * hidden));
        let rows = middle.rows();
        x.par_chunks(rows * dim)
            .zip(y.par_parts(rows * dim))
            .zip(kept.par_parts(rows * hidden))
            .enumerate()
            .for_each(|(i, ((x, y), kept))| {
                let (y, kept) = (y.clear(), kept.clear());
                with_scratch(|room: &mut Rows<T>| {
                    self.normalise(x, room);
                    first.apply(&room.norm, kept);
                    if let Some(bias) = self.first.1 {
                        add_bias(kept, bias);
                    }
                    room.middle.resize(x.len() / dim * width, T::ZERO);
                    middle.forward(i * rows, kept, &mut room.middle, &mut room.attention);
                    second.apply(&room.middle, y);
                });
                self.finish(i * rows, x, y);
            });
        (y.into_vec(), kept.into_vec())
    }

    fn normalise(&self, x: &[T], room: &mut Rows<T>) {
        room.norm.resize(x.len(), T::ZERO);
        room.stats.resize(x.len() / self.dim(), [T::ZERO; 2]);
        vectorised!(forward_rows(x, self.norm, self.eps, &mut room.norm, &mut room.stats));
    }

    /// `y = x + factor · scale · (y + bias)` for the rows from `start` on.
    fn finish(&self, start: usize, x: &[T], y: &mut [T]) {
        if let Some(bias) = self.second.1 {
            add_bias(y, bias);
        }
        vectorised!({
            for (i, (x, y)) in x.chunks_exact(self.dim()).zip(y.chunks_exact_mut(self.dim())).enumerate() {
                self.weigh(start + i, y);
                y.iter_mut().zip(x).for_each(|(y, x)| *y += *x);
            }
        });
    }

    /// Multiplies a row by the factor of its sample and the scale of each channel.
    #[inline(always)]
    fn weigh(&self, row: usize, y: &mut [T]) {
        if let Some(scale) = self.scale {
            y.iter_mut().zip(scale).for_each(|(y, scale)| *y *= *scale);
        }
        if let Some(factors) = self.factors {
            let factor = factors[row / self.tokens];
            y.iter_mut().for_each(|y| *y *= factor);
        }
    }

    /// The gradient of `x`, and those of the branch's tensors in their order, followed by `more` of the middle. A
    /// gradient that nobody wants is empty.
    pub(crate) fn backward(
        &self,
        (x, kept): (&[T], &[T]),
        dy: &[T],
        middle: &impl Middle<T>,
        more: usize,
    ) -> (Vec<T>, Vec<Vec<T>>) {
        let (dim, hidden) = (self.dim(), self.hidden());
        let width = middle.width(hidden);
        let scaled = self.scale.map(|scale| {
            let mut weight = self.second.0.to_vec();
            scale_rows(&mut weight, scale);
            weight
        });
        let operands = Operands {
            first: Operand::backward(self.first.0, dim),
            second: Operand::backward(scaled.as_deref().unwrap_or(self.second.0), width),
        };
        let lens = [dim, dim, self.first.0.len(), hidden, self.second.0.len(), dim, 0, more];
        let mut wanted = self.wanted;
        // The gradient of the scale is made of those of the second layer.
        wanted[4] |= wanted[6];
        wanted[5] |= wanted[6] && self.second.1.is_some();
        let wanted = wanted.into_iter().chain([more > 0]);
        let lens: Vec<usize> =
            lens.into_iter().zip(wanted).map(|(n, wanted)| if wanted { n } else { 0 }).collect();
        let rows = middle.rows();
        let chunks = (x.len() / dim).div_ceil(rows);
        let n = parts(lens.iter().sum()).min(chunks);
        // Where each part begins, in rows, and the end.
        let bounds: Vec<usize> = (0..=n).map(|p| (p * chunks / n * rows).min(x.len() / dim)).collect();
        let mut dx = Fresh::new(x.len());
        let sums: Vec<Vec<Vec<T>>> = dx
            .parts_at(bounds[1..].iter().map(|end| end * dim))
            .into_par_iter()
            .zip(bounds.par_windows(2))
            .map(|(dx, bounds)| {
                let of = |width: usize| bounds[0] * width..bounds[1] * width;
                let (x, kept, dy) = (&x[of(dim)], &kept[of(hidden)], &dy[of(dim)]);
                let mut sums: Vec<Vec<T>> = lens.iter().map(|n| vec![T::ZERO; *n]).collect();
                let inputs = x.chunks(rows * dim).zip(kept.chunks(rows * hidden)).zip(dy.chunks(rows * dim));
                for (i, (((x, kept), dy), dx)) in inputs.zip(dx.clear().chunks_mut(rows * dim)).enumerate() {
                    let start = bounds[0] + i * rows;
                    with_scratch(|room| {
                        self.backward_rows(start, (x, kept, dy), &operands, middle, dx, &mut sums, room);
                    });
                }
                sums
            })
            .collect();
        let mut sums = sum_each(sums, lens.len());
        self.finish_scale(&mut sums);
        (dx.into_vec(), sums)
    }

    /// The gradient of the scale and those of the second layer from what the latter would be without a scale:
    /// `y = scale · (W m + b)` makes `dscale = (dy m) · W + dy b`, where `dy m` is the gradient of `W` but for the scale.
    fn finish_scale(&self, sums: &mut [Vec<T>]) {
        let (Some(scale), [_, _, _, _, d_second, d_bias, d_scale, _]) = (self.scale, sums) else { return };
        if self.wanted[6] {
            let width = self.second.0.len() / scale.len();
            let rows = self.second.0.chunks_exact(width).zip(d_second.chunks_exact(width));
            *d_scale = rows.map(|(weight, sum)| sum_by(weight, sum, |w, d| w * d)).collect();
            if let Some(bias) = self.second.1 {
                for (d_scale, (bias, d_bias)) in d_scale.iter_mut().zip(bias.iter().zip(&*d_bias)) {
                    *d_scale += *bias * *d_bias;
                }
            }
        }
        scale_rows(d_second, scale);
        d_bias.iter_mut().zip(scale).for_each(|(d_bias, scale)| *d_bias *= *scale);
    }

    fn backward_rows(
        &self,
        start: usize,
        (x, kept, dy): (&[T], &[T], &[T]),
        operands: &Operands<T>,
        middle: &impl Middle<T>,
        dx: &mut [T],
        sums: &mut [Vec<T>],
        room: &mut Rows<T>,
    ) {
        let (dim, hidden) = (self.dim(), self.hidden());
        let (rows, width) = (x.len() / dim, middle.width(hidden));
        let [d_norm_weight, d_norm_bias, d_first, d_first_bias, d_second, d_second_bias, _, more] = sums
        else {
            return;
        };
        self.normalise(x, room);
        room.middle.resize(rows * width, T::ZERO);
        room.d_middle.resize(rows * width, T::ZERO);
        room.d_first.resize(rows * hidden, T::ZERO);
        room.d_norm.resize(rows * dim, T::ZERO);
        room.dz.clear();
        room.dz.extend_from_slice(dy);
        if let Some(factors) = self.factors {
            vectorised!({
                for (i, dz) in room.dz.chunks_exact_mut(dim).enumerate() {
                    let factor = factors[(start + i) / self.tokens];
                    dz.iter_mut().for_each(|dz| *dz *= factor);
                }
            });
        }
        operands.second.apply(&room.dz, &mut room.d_middle);
        let outputs = (&mut room.middle[..], &mut room.d_first[..]);
        middle.backward(start, kept, &room.d_middle, outputs, more, &mut room.attention);
        if !d_second.is_empty() {
            add_weight_gradient((&room.dz, dim), (&room.middle, width), d_second, &mut room.packed);
        }
        if !d_second_bias.is_empty() {
            add_columns(&room.dz, d_second_bias);
        }
        if self.wanted[2] {
            add_weight_gradient((&room.d_first, hidden), (&room.norm, dim), d_first, &mut room.packed);
        }
        if self.wanted[3] {
            add_columns(&room.d_first, d_first_bias);
        }
        operands.first.apply(&room.d_first, &mut room.d_norm);
        let norm = (x, self.norm.0, &room.stats[..]);
        // The room of `dz` is free again: the gradient of the norm's weight and bias in these rows.
        room.dz.clear();
        room.dz.resize(2 * dim, T::ZERO);
        let (dw, db) = room.dz.split_at_mut(dim);
        vectorised!({
            backward_rows(norm, &room.d_norm, dx, (dw, db));
            dx.iter_mut().zip(dy).for_each(|(dx, dy)| *dx += *dy);
            d_norm_weight.iter_mut().zip(dw).for_each(|(sum, v)| *sum += *v);
            d_norm_bias.iter_mut().zip(db).for_each(|(sum, v)| *sum += *v);
        });
    }
}

/// The weights as the backward pass needs them.
struct Operands<T> {
    first: Operand<T>,
    /// Times the scale.
    second: Operand<T>,
}

/// Multiplies each row of a weight by its factor.
fn scale_rows<T: Real>(weight: &mut [T], factors: &[T]) {
    let width = (weight.len() / factors.len()).max(1);
    for (row, factor) in weight.chunks_exact_mut(width).zip(factors) {
        row.iter_mut().for_each(|w| *w *= *factor);
    }
}

/// The sums over the parts, each in the order of the parts.
fn sum_each<T: Real>(parts: Vec<Vec<Vec<T>>>, n: usize) -> Vec<Vec<T>> {
    let mut by_tensor: Vec<Vec<Vec<T>>> = (0..n).map(|_| Vec::with_capacity(parts.len())).collect();
    for part in parts {
        by_tensor.iter_mut().zip(part).for_each(|(tensor, sum)| tensor.push(sum));
    }
    by_tensor.into_iter().map(sum_in_order).collect()
}
