//! The weight gradient of a convolution as a sum over positions, without Winograd.
//!
//! `dW (C_out × K) = dYᵀ (C_out × N) · col(X) (N × K)` is cut into blocks that the cache holds, and the positions into a
//! few parts where there are too few blocks for several threads. A block goes through the positions of its part in
//! order, and the parts are added in order, so that the result does not depend on the number of threads.

use std::ops::Range;

use rayon::prelude::*;

use crate::fresh::filled_with;
use crate::geometry::Geometry;
use crate::kernel::{ISA, Left, Right, Run, multiply};
use crate::storage::Element;

/// Rows of the largest block, in full tiles of the kernels.
const ROWS: usize = 16 * 14;
/// Panels of columns of the largest block.
const PANELS: usize = 8;
/// Positions that are packed at once.
const DEPTH: usize = 256;
/// Distance of rows, in elements, from which a block is copied.
const FAR: usize = 1024;
/// Blocks that keep some threads busy.
const TASKS: usize = 16;

/// The weight gradient, in PyTorch's order.
pub(crate) fn weight_gradient<T: Element>(g: &Geometry, x: &[T], dy: &[T]) -> Vec<T> {
    let size = g.groups() * g.k() * g.c_out_group();
    if x.is_empty() || dy.is_empty() {
        return vec![T::ZERO; size];
    }
    let blocks = Blocks::new::<T>(g);
    let sums: Vec<Vec<T>> = (0..blocks.count() * blocks.parts)
        .into_par_iter()
        .with_max_len(1)
        .map(|i| blocks.sum(g, x, dy, &blocks.block(i / blocks.parts), i % blocks.parts))
        .collect();
    filled_with(size, g.k(), Vec::new, |line, o, dw: &mut [T]| {
        if g.taps() == 1 {
            blocks.add_parts(&sums, o, dw);
            return;
        }
        line.resize(g.k(), T::ZERO);
        blocks.add_parts(&sums, o, line);
        for (tap, line) in line.chunks_exact(g.c_in_group()).enumerate() {
            dw.iter_mut().skip(tap).step_by(g.taps()).zip(line).for_each(|(dw, v)| *dw = *v);
        }
    })
}

/// How the gradient of each group is cut: a grid of blocks, each in some parts of the positions.
struct Blocks {
    groups: usize,
    down: usize,
    across: usize,
    /// Rows and columns of a group, then of a full block.
    size: (usize, usize),
    rows: usize,
    width: usize,
    parts: usize,
    positions: usize,
}

/// A block of one group.
struct Block {
    group: usize,
    rows: Range<usize>,
    columns: Range<usize>,
}

impl Blocks {
    fn new<T: Element>(g: &Geometry) -> Self {
        let (rows, columns, panel) = (g.c_out_group(), g.k(), ISA.panel::<T>());
        let down = rows.div_ceil(ROWS);
        let across = columns.div_ceil(PANELS * panel);
        let positions = g.batch * g.positions();
        let parts = TASKS.div_ceil(down * across * g.groups()).min(positions.div_ceil(DEPTH)).clamp(1, 8);
        Self {
            groups: g.groups(),
            down,
            across,
            size: (rows, columns),
            rows: rows.div_ceil(down).next_multiple_of(14),
            width: columns.div_ceil(across).next_multiple_of(panel),
            parts,
            positions,
        }
    }

    fn count(&self) -> usize {
        self.groups * self.down * self.across
    }

    fn columns(&self, j: usize) -> Range<usize> {
        (j * self.width).min(self.size.1)..((j + 1) * self.width).min(self.size.1)
    }

    fn block(&self, i: usize) -> Block {
        let (group, row, column) =
            (i / self.across / self.down, i / self.across % self.down, i % self.across);
        let rows = (row * self.rows).min(self.size.0)..((row + 1) * self.rows).min(self.size.0);
        Block { group, rows, columns: self.columns(column) }
    }

    /// Row `o` of the gradient, taps before channels, as the sum over the parts of its blocks.
    fn add_parts<T: Element>(&self, sums: &[Vec<T>], o: usize, line: &mut [T]) {
        let (group, o) = (o / self.size.0, o % self.size.0);
        let first = (group * self.down + o / self.rows) * self.across;
        for (j, sums) in sums[first * self.parts..].chunks(self.parts).take(self.across).enumerate() {
            let columns = self.columns(j);
            let at = o % self.rows * columns.len();
            let line = &mut line[columns];
            line.copy_from_slice(&sums[0][at..at + line.len()]);
            for sum in &sums[1..] {
                line.iter_mut().zip(&sum[at..]).for_each(|(sum, v)| *sum += *v);
            }
        }
    }

    /// The sum of a block over a part of the positions.
    fn sum<T: Element>(&self, g: &Geometry, x: &[T], dy: &[T], block: &Block, part: usize) -> Vec<T> {
        let (m, n) = (block.rows.len(), block.columns.len());
        let mut sum = vec![T::ZERO; m * n];
        let (mut left, mut right) = (Vec::new(), Vec::new());
        let len = self.positions.div_ceil(self.parts);
        let part = (part * len).min(self.positions)..((part + 1) * len).min(self.positions);
        let first = block.group * g.c_out_group() + block.rows.start;
        for start in part.clone().step_by(DEPTH) {
            let positions = start..part.end.min(start + DEPTH);
            let a = rows_of(&dy[first..], g.c_out, positions.clone(), m, &mut left);
            let b = if g.is_pointwise() && n.is_multiple_of(ISA.panel::<T>() / 2) {
                let x = &x[block.group * g.c_in_group() + block.columns.start..];
                let rows = rows_of(x, g.c_in, positions.clone(), n, &mut right);
                Right { data: rows.data, panel: ISA.panel::<T>(), row: rows.col }
            } else {
                let row = columns_of(g, x, positions.clone(), block, &mut right);
                Right { data: &right, panel: ISA.panel::<T>(), row }
            };
            multiply(
                (m, n),
                (&[Run { a: 0, b: 0 }], positions.len()),
                a,
                b,
                (&mut sum, n),
                start > part.start,
            );
        }
        sum
    }
}

/// The first `n` elements of some rows, turned: as they lie, or copied closer together where their distance would make
/// them compete for the same lines of the cache.
fn rows_of<'a, T: Element>(
    data: &'a [T],
    stride: usize,
    positions: Range<usize>,
    n: usize,
    copy: &'a mut Vec<T>,
) -> Left<'a, T> {
    if stride < FAR {
        return Left { data: &data[positions.start * stride..], row: 1, col: stride };
    }
    copy.clear();
    positions.for_each(|p| copy.extend_from_slice(&data[p * stride..][..n]));
    Left { data: copy, row: 1, col: n }
}

/// Rows of the column matrix: the inputs of `positions` that the columns of `block` stand for. Returns the distance of
/// the rows, which have room for whole panels.
fn columns_of<T: Element>(
    g: &Geometry,
    x: &[T],
    positions: Range<usize>,
    block: &Block,
    columns: &mut Vec<T>,
) -> usize {
    // Not a power of two, so that neighbouring rows do not compete for the same lines of the cache.
    let stride = block.columns.len().next_multiple_of(ISA.panel::<T>()) + 16;
    columns.resize(positions.len() * stride, T::ZERO);
    let segments = Segments::new(g, block.group);
    let Range { start, end } = block.columns;
    for (position, row) in positions.zip(columns.chunks_exact_mut(stride)) {
        for segment in start / segments.len..end.div_ceil(segments.len) {
            let base = segment * segments.len;
            let to = start.max(base)..end.min(base + segments.len);
            let Some((source, inside)) = segments.at(g, segment, position) else {
                row[to.start - start..to.end - start].fill(T::ZERO);
                continue;
            };
            let (first, last) = (to.start.max(base + inside.start), to.end.min(base + inside.end));
            let (first, last) = (first.min(to.end), last.clamp(first.min(to.end), to.end));
            row[to.start - start..first - start].fill(T::ZERO);
            row[last - start..to.end - start].fill(T::ZERO);
            if first < last {
                let from = source + first - base - inside.start;
                row[first - start..last - start].copy_from_slice(&x[from..from + last - first]);
            }
        }
    }
    stride
}

/// A column matrix's columns in segments that lie together in the image: rows of the kernel where its pixels are
/// neighbours, else single taps.
struct Segments {
    len: usize,
    /// Taps of a segment.
    taps: usize,
    /// The first channel of the group.
    channel: usize,
}

impl Segments {
    fn new(g: &Geometry, group: usize) -> Self {
        let taps = if g.config.dilation == 1 && g.groups() == 1 { g.kw } else { 1 };
        Self { len: taps * g.c_in_group(), taps, channel: group * g.c_in_group() }
    }

    /// Where the segment of an output position starts in `x`, and which of its elements lie in the image.
    #[inline(always)]
    fn at(&self, g: &Geometry, segment: usize, position: usize) -> Option<(usize, Range<usize>)> {
        let (image, at) = (position / g.positions(), position % g.positions());
        let (i, j) = (segment * self.taps / g.kw, segment * self.taps % g.kw);
        let (stride, dilation, padding) = (g.config.stride, g.config.dilation, g.config.padding);
        let y = (at / g.out_w * stride + i * dilation).checked_sub(padding).filter(|&y| y < g.h)?;
        let left = at % g.out_w * stride + j * dilation;
        let first = padding.saturating_sub(left).min(self.taps);
        let last = (g.w + padding).saturating_sub(left).min(self.taps);
        (first < last).then(|| {
            let source = ((image * g.h + y) * g.w + left + first - padding) * g.c_in + self.channel;
            (source, first * g.c_in_group()..last * g.c_in_group())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv2d::Conv2dConfig;

    /// The gradient of one weight, by its definition.
    fn plain(g: &Geometry, x: &[f64], dy: &[f64], (o, c, tap): (usize, usize, usize)) -> f64 {
        let Conv2dConfig { stride, padding, dilation, .. } = g.config;
        let channel = o / g.c_out_group() * g.c_in_group() + c;
        let mut sum = 0.0;
        for position in 0..g.batch * g.positions() {
            let (image, at) = (position / g.positions(), position % g.positions());
            let row =
                (at / g.out_w * stride + tap / g.kw * dilation).checked_sub(padding).filter(|&y| y < g.h);
            let column =
                (at % g.out_w * stride + tap % g.kw * dilation).checked_sub(padding).filter(|&x| x < g.w);
            if let (Some(row), Some(column)) = (row, column) {
                sum +=
                    x[((image * g.h + row) * g.w + column) * g.c_in + channel] * dy[position * g.c_out + o];
            }
        }
        sum
    }

    #[test]
    fn blocks_and_parts_sum_to_the_definition() {
        let config = |stride, padding, dilation, groups| Conv2dConfig { stride, padding, dilation, groups };
        for (size, weight, config) in [
            ((2, 3, 25, 19), (5, 3, 7, 7), config(2, 3, 1, 1)),
            ((3, 40, 6, 5), (300, 40, 3, 3), config(2, 1, 1, 1)),
            ((9, 300, 7, 5), (17, 300, 1, 1), config(1, 0, 1, 1)),
            ((2, 1024, 3, 3), (1040, 1024, 1, 1), config(2, 0, 1, 1)),
            ((2, 12, 9, 8), (10, 6, 3, 2), config(1, 3, 2, 2)),
        ] {
            let g = Geometry::new(size, weight, config).unwrap();
            let values = |n: usize, seed: usize| -> Vec<f64> {
                (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f64 / 1001.5 - 1.0).collect()
            };
            let (x, dy) = (values(g.batch * g.image_len(), 1), values(g.batch * g.output_len(), 2));
            let dw = weight_gradient(&g, &x, &dy);
            assert_eq!(dw.len(), g.c_out * g.k());
            for i in (0..dw.len()).step_by(1 + dw.len() / 500) {
                let at = (i / g.k(), i % g.k() / g.taps(), i % g.taps());
                let expected = plain(&g, &x, &dy, at);
                assert!((dw[i] - expected).abs() < 1e-9, "{g:?}, {at:?}: {} {expected}", dw[i]);
            }
        }
    }
}
