//! The three passes of a convolution over slices in channels-last order.
//!
//! Each pass is a sequence of matrix multiplications over *tiles*: as many output positions, of one or several
//! images, as make a column matrix that the cache holds. With `K = k · k · C_in` and `N` positions,
//!
//! - forward: `Y (N × C_out) = col(X) (N × K) · W (K × C_out)`;
//! - input gradient: at stride 1 the convolution of `dY` with the flipped kernel, else `col2im(dY · Wᵀ)`;
//! - weight gradient: `dW = Σ col(X)ᵀ (K × N) · dY (N × C_out)`, summed within a fixed number of parts of the batch and
//!   then over the parts in order, so that the result does not depend on the number of threads.

use std::ops::Range;

use rayon::prelude::*;

use crate::fresh::filled_with;
use crate::geometry::Geometry;
use crate::input::Input;
use crate::kernel::{ISA, Left, Right, Run, multiply};
pub(crate) use crate::pack::Packed;
use crate::pack::Strided;
use crate::storage::Element;
use crate::winograd::Weights;
use crate::{weight_gradient, winograd};

/// `y = conv(x, weight)`; `weight` in PyTorch's order.
pub(crate) fn forward<T: Element>(g: &Geometry, x: &[T], weight: &[T]) -> Vec<T> {
    forward_then(g, Input::plain(x), weight, |_, _| ())
}

/// [`forward`], of which `finish` gets each chunk, with the place of its first element, while the cache holds it.
pub(crate) fn forward_then<T: Element>(
    g: &Geometry,
    x: Input<'_, T>,
    weight: &[T],
    finish: impl Fn(usize, &mut [T]) + Sync + Send,
) -> Vec<T> {
    if winograd::serves(g) {
        let weights = Weights { data: weight, row: 9, column: 9 * g.c_in, tap: |tap| tap };
        return winograd::convolve(g, x, weights, finish);
    }
    direct_forward(g, &x.whole(), weight, finish)
}

pub(crate) fn direct_forward<T: Element>(
    g: &Geometry,
    x: &[T],
    weight: &[T],
    finish: impl Fn(usize, &mut [T]) + Sync + Send,
) -> Vec<T> {
    // Rows: taps and input channels; columns: output channels.
    let kernel = Strided {
        data: weight,
        taps: g.taps(),
        rows: g.c_in_group(),
        start: |group, tap| group * g.c_out_group() * g.k() + tap,
        row: g.taps(),
        column: g.k(),
    };
    sweep(g, x, &Packed::strided(g.groups(), g.c_out_group(), &kernel), finish)
}

/// The gradient of `x`.
pub(crate) fn input_gradient<T: Element>(g: &Geometry, weight: &[T], dy: &[T]) -> Vec<T> {
    input_gradient_then(g, weight, dy, |_, _| ())
}

/// [`input_gradient`], of which `finish` gets each chunk, with the place of its first element, while the cache holds it.
pub(crate) fn input_gradient_then<T: Element>(
    g: &Geometry,
    weight: &[T],
    dy: &[T],
    finish: impl Fn(usize, &mut [T]) + Sync + Send,
) -> Vec<T> {
    let at = |group: usize, tap: usize, c: usize, o: usize| {
        weight[((group * g.c_out_group() + o) * g.c_in_group() + c) * g.taps() + tap]
    };
    if let Some(transposed) = g.transposed().filter(winograd::serves) {
        let weights = Weights { data: weight, row: 9 * g.c_in, column: 9, tap: |tap| 8 - tap };
        return winograd::convolve(&transposed, Input::plain(dy), weights, finish);
    }
    if let Some(transposed) = g.transposed() {
        // The kernel turned by 180 degrees with its channels exchanged.
        let kernel = Strided {
            data: weight,
            taps: g.taps(),
            rows: g.c_out_group(),
            start: |group, tap| group * g.c_out_group() * g.k() + g.taps() - 1 - tap,
            row: g.k(),
            column: g.taps(),
        };
        let packed = Packed::strided(g.groups(), g.c_in_group(), &kernel);
        return sweep(&transposed, dy, &packed, finish);
    }
    let packed = if g.taps() == 1 {
        let start = |group, _| group * g.c_out_group() * g.k();
        let kernel = Strided { data: weight, taps: 1, rows: g.c_out_group(), start, row: g.k(), column: 1 };
        Packed::strided(g.groups(), g.k(), &kernel)
    } else {
        Packed::new(g.groups(), g.c_out_group(), g.k(), |group, o, k| {
            at(group, k / g.c_in_group(), k % g.c_in_group(), o)
        })
    };
    let runs = packed.runs(g.c_out_group());
    let rows = (g.tile() / g.out_w.max(1)).clamp(1, g.out_h);
    filled_with(g.batch * g.image_len(), g.image_len(), Vec::new, |columns, image, dx: &mut [T]| {
        let dy = &dy[image * g.output_len()..][..g.output_len()];
        for row in (0..g.out_h).step_by(rows) {
            let positions = row * g.out_w..g.out_h.min(row + rows) * g.out_w;
            columns.resize(positions.len() * g.k(), T::ZERO);
            for group in 0..g.groups() {
                let start = positions.start * g.c_out + group * g.c_out_group();
                let a = Left { data: &dy[start..], row: g.c_out, col: 1 };
                let (size, runs) = ((positions.len(), g.k()), (&runs[..], g.c_out_group()));
                multiply(size, runs, a, packed.right(group), (&mut columns[..], g.k()), false);
                col2im(g, columns, positions.clone(), group, dx);
            }
        }
        finish(image * g.image_len(), dx);
    })
}

/// The gradient of the weight, in PyTorch's order.
pub(crate) fn weight_gradient<T: Element>(g: &Geometry, x: Input<'_, T>, dy: &[T]) -> Vec<T> {
    if winograd::serves(g) && !x.is_empty() && !dy.is_empty() {
        return winograd::weight_gradient(g, x, dy);
    }
    weight_gradient::weight_gradient(g, &x.whole(), dy)
}

/// The sum of some equally long arrays, in their order.
pub(crate) fn sum_in_order<T: Element>(arrays: Vec<Vec<T>>) -> Vec<T> {
    let mut arrays = arrays.into_iter();
    let mut sum = arrays.next().unwrap_or_default();
    for array in arrays {
        sum.par_chunks_mut(1 << 14).zip(array.par_chunks(1 << 14)).for_each(|(sum, array)| {
            sum.iter_mut().zip(array).for_each(|(sum, v)| *sum += *v);
        });
    }
    sum
}

/// Parts of the batch that a gradient of `size` elements is summed over separately: enough for several threads, few
/// enough to fit beside the rest. Depends on nothing but the size, so that sums do not depend on the machine.
pub(crate) fn parts(size: usize) -> usize {
    match size {
        0..0x10_0000 => 8,
        0x10_0000..0x20_0000 => 4,
        _ => 2,
    }
}

/// The convolution of all images, tile by tile, and what `finish` does to each tile of outputs.
pub(crate) fn sweep<T: Element>(
    g: &Geometry,
    x: &[T],
    packed: &Packed<T>,
    finish: impl Fn(usize, &mut [T]) + Sync + Send,
) -> Vec<T> {
    let n = g.c_out_group();
    // An even number of tiles, so that two threads get equally much.
    let positions = g.batch * g.positions();
    let tile =
        positions.div_ceil(positions.div_ceil(g.tile()).next_multiple_of(2)).next_multiple_of(14).max(14);
    // A row of the kernel at a time keeps the panels small.
    let run = g.k() / g.kh;
    let runs = packed.runs(run);
    filled_with(g.batch * g.output_len(), tile * g.c_out, Vec::new, |columns, i, y: &mut [T]| {
        let positions = i * tile..i * tile + y.len() / g.c_out;
        for group in 0..g.groups() {
            let a = columns_of(g, x, positions.clone(), group, columns);
            let out = (&mut y[group * n..], g.c_out);
            multiply((positions.len(), n), (&runs, run), a, packed.right(group), out, false);
        }
        finish(i * tile * g.c_out, y);
    })
}

/// `rows` rows of a matrix as the right operand: as they lie if whole vectors can be read, else packed.
pub(crate) fn right_rows<'a, T: Element>(
    data: &'a [T],
    stride: usize,
    rows: usize,
    n: usize,
    packed: &'a mut Vec<T>,
) -> (Right<'a, T>, Run) {
    let width = ISA.panel::<T>();
    let start = Run { a: 0, b: 0 };
    if n.is_multiple_of(width / 2) {
        return (Right { data, panel: width, row: stride }, start);
    }
    let panels = n.div_ceil(width);
    packed.clear();
    packed.resize(panels * rows * width, T::ZERO);
    for (p, panel) in packed.chunks_exact_mut(rows * width).enumerate() {
        let columns = p * width..n.min((p + 1) * width);
        for (r, row) in panel.chunks_exact_mut(width).enumerate() {
            row[..columns.len()].copy_from_slice(&data[r * stride..][columns.clone()]);
        }
    }
    (Right { data: packed, panel: rows * width, row: width }, start)
}

/// Distance in bytes at which addresses fall on the same lines of a first-level cache.
const PAGE: usize = 4096;

/// The column matrix `(positions × K)` of a group: for each output position the pixels under the kernel.
fn columns_of<'a, T: Element>(
    g: &Geometry,
    x: &'a [T],
    positions: Range<usize>,
    group: usize,
    columns: &'a mut Vec<T>,
) -> Left<'a, T> {
    let channels = g.c_in_group();
    if g.is_pointwise() && (g.c_in * size_of::<T>()).is_multiple_of(PAGE) {
        // As they lie, the rows of a tile would compete for the same lines of the cache.
        let row = channels + 16;
        columns.resize(positions.len() * row, T::ZERO);
        for (position, column) in positions.zip(columns.chunks_exact_mut(row)) {
            column[..channels].copy_from_slice(&x[position * g.c_in + group * channels..][..channels]);
        }
        return Left { data: columns, row, col: 1 };
    }
    if g.is_pointwise() {
        return Left { data: &x[positions.start * g.c_in + group * channels..], row: g.c_in, col: 1 };
    }
    columns.resize(positions.len() * g.k(), T::ZERO);
    let (stride, dilation) = (g.config.stride, g.config.dilation);
    for (position, column) in positions.zip(columns.chunks_exact_mut(g.k())) {
        let (image, at) = (position / g.positions(), position % g.positions());
        let image = &x[image * g.image_len()..][..g.image_len()];
        let (top, left) = (at / g.out_w * stride, at % g.out_w * stride);
        for (i, taps) in column.chunks_exact_mut(g.kw * channels).enumerate() {
            let Some(y) = (top + i * dilation).checked_sub(g.config.padding).filter(|&y| y < g.h) else {
                taps.fill(T::ZERO);
                continue;
            };
            let row = &image[y * g.w * g.c_in..][..g.w * g.c_in];
            if dilation == 1 && g.groups() == 1 {
                // The pixels under one row of the kernel are neighbours.
                let (first, last) = (
                    g.config.padding.saturating_sub(left).min(g.kw),
                    (g.w + g.config.padding).saturating_sub(left).min(g.kw),
                );
                let last = last.max(first);
                taps[..first * channels].fill(T::ZERO);
                taps[last * channels..].fill(T::ZERO);
                if first < last {
                    let start = (left + first - g.config.padding) * channels;
                    taps[first * channels..last * channels]
                        .copy_from_slice(&row[start..start + (last - first) * channels]);
                }
                continue;
            }
            for (j, tap) in taps.chunks_exact_mut(channels).enumerate() {
                match (left + j * dilation).checked_sub(g.config.padding).filter(|&x| x < g.w) {
                    Some(x) => tap.copy_from_slice(&row[x * g.c_in + group * channels..][..channels]),
                    None => tap.fill(T::ZERO),
                }
            }
        }
    }
    Left { data: columns, row: g.k(), col: 1 }
}

/// Adds the columns of `positions` of one image back to where their pixels came from.
fn col2im<T: Element>(g: &Geometry, columns: &[T], positions: Range<usize>, group: usize, dx: &mut [T]) {
    let channels = g.c_in_group();
    let (stride, dilation, padding) = (g.config.stride, g.config.dilation, g.config.padding);
    for (position, column) in positions.zip(columns.chunks_exact(g.k())) {
        let (top, left) = (position / g.out_w * stride, position % g.out_w * stride);
        for (tap, column) in column.chunks_exact(channels).enumerate() {
            let y = (top + tap / g.kw * dilation).checked_sub(padding).filter(|&y| y < g.h);
            let x = (left + tap % g.kw * dilation).checked_sub(padding).filter(|&x| x < g.w);
            let (Some(y), Some(x)) = (y, x) else { continue };
            let pixel = &mut dx[(y * g.w + x) * g.c_in + group * channels..][..channels];
            pixel.iter_mut().zip(column).for_each(|(dx, column)| *dx += *column);
        }
    }
}
