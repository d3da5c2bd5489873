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

use crate::fresh::Fresh;
use crate::geometry::Geometry;
use crate::kernel::{ISA, Left, Right, Run, multiply};
use crate::storage::Element;
use crate::winograd;

/// The kernel as the right operand of a multiplication: one packed matrix `K × C_out` for each group.
pub(crate) struct Packed<T> {
    data: Vec<T>,
    /// Elements of a group.
    group: usize,
    /// Rows of each matrix.
    k: usize,
    width: usize,
}

impl<T: Element> Packed<T> {
    /// `groups` matrices of `k × n`, whose elements `at(group, k, n)` gives.
    pub(crate) fn new(
        groups: usize,
        k: usize,
        n: usize,
        at: impl Fn(usize, usize, usize) -> T + Sync,
    ) -> Self {
        let width = ISA.panel::<T>();
        let panels = n.div_ceil(width);
        let mut data = vec![T::ZERO; groups * panels * k * width];
        data.par_chunks_mut((k * width).max(1)).enumerate().for_each(|(p, panel)| {
            let (group, first) = (p / panels, p % panels * width);
            for (k, row) in panel.chunks_exact_mut(width).enumerate() {
                for (j, v) in row.iter_mut().take(n - first).enumerate() {
                    *v = at(group, k, first + j);
                }
            }
        });
        Self { data, group: panels * k * width, k, width }
    }

    /// One matrix of `k × n` whose columns lie one after the other in `data`.
    pub(crate) fn of_columns(k: usize, n: usize, columns: &[T]) -> Self {
        // So many rows at a time stay in the cache while the columns of a panel are read.
        const ROWS: usize = 16;
        let width = ISA.panel::<T>();
        let mut data = Fresh::new(n.div_ceil(width) * k * width);
        data.par_parts(k * width).enumerate().for_each(|(p, panel)| {
            let (panel, first) = (panel.clear(), p * width);
            for (i, rows) in panel.chunks_mut(ROWS * width).enumerate() {
                for j in 0..width.min(n - first) {
                    let column = &columns[(first + j) * k + i * ROWS..][..rows.len() / width];
                    for (row, v) in rows.chunks_exact_mut(width).zip(column) {
                        row[j] = *v;
                    }
                }
            }
        });
        let data = data.into_vec();
        Self { group: data.len(), data, k, width }
    }

    /// The matrix of a group.
    pub(crate) fn right(&self, group: usize) -> Right<'_, T> {
        let data = &self.data[group * self.group..][..self.group];
        Right { data, panel: self.k * self.width, row: self.width }
    }

    /// `k` as runs of `len` rows, contiguous in the left operand as well.
    pub(crate) fn runs(&self, len: usize) -> Vec<Run> {
        (0..self.k).step_by(len.max(1)).map(|k| Run { a: k, b: k * self.width }).collect()
    }
}

/// `y = conv(x, weight)`; `weight` in PyTorch's order.
pub(crate) fn forward<T: Element>(g: &Geometry, x: &[T], weight: &[T]) -> Vec<T> {
    if winograd::serves(g) {
        return winograd::convolve(g, x, |c, o, tap| weight[(o * g.c_in + c) * 9 + tap]);
    }
    direct_forward(g, x, weight)
}

pub(crate) fn direct_forward<T: Element>(g: &Geometry, x: &[T], weight: &[T]) -> Vec<T> {
    let packed = Packed::new(g.groups(), g.k(), g.c_out_group(), |group, k, o| {
        let (tap, c) = (k / g.c_in_group(), k % g.c_in_group());
        weight[((group * g.c_out_group() + o) * g.c_in_group() + c) * g.taps() + tap]
    });
    sweep(g, x, &packed)
}

/// The gradient of `x`.
pub(crate) fn input_gradient<T: Element>(g: &Geometry, weight: &[T], dy: &[T]) -> Vec<T> {
    let at = |group: usize, tap: usize, c: usize, o: usize| {
        weight[((group * g.c_out_group() + o) * g.c_in_group() + c) * g.taps() + tap]
    };
    if let Some(transposed) = g.transposed().filter(winograd::serves) {
        return winograd::convolve(&transposed, dy, |o, c, tap| weight[(o * g.c_in + c) * 9 + 8 - tap]);
    }
    if let Some(transposed) = g.transposed() {
        // The kernel turned by 180 degrees with its channels exchanged.
        let packed = Packed::new(g.groups(), transposed.k(), g.c_in_group(), |group, k, c| {
            let (tap, o) = (k / g.c_out_group(), k % g.c_out_group());
            at(group, g.taps() - 1 - tap, c, o)
        });
        return sweep(&transposed, dy, &packed);
    }
    let packed = Packed::new(g.groups(), g.c_out_group(), g.k(), |group, o, k| {
        at(group, k / g.c_in_group(), k % g.c_in_group(), o)
    });
    let runs = packed.runs(g.c_out_group());
    let mut dx = vec![T::ZERO; g.batch * g.image_len()];
    if dx.is_empty() || dy.is_empty() {
        return dx;
    }
    let rows = (g.tile() / g.out_w.max(1)).clamp(1, g.out_h);
    dx.par_chunks_mut(g.image_len()).zip(dy.par_chunks(g.output_len())).for_each_init(
        Vec::new,
        |columns, (dx, dy)| {
            for row in (0..g.out_h).step_by(rows) {
                let positions = row * g.out_w..g.out_h.min(row + rows) * g.out_w;
                columns.resize(positions.len() * g.k(), T::ZERO);
                for group in 0..g.groups() {
                    let a = Left {
                        data: &dy[positions.start * g.c_out + group * g.c_out_group()..],
                        row: g.c_out,
                        col: 1,
                    };
                    let size = (positions.len(), g.k());
                    let runs = (&runs[..], g.c_out_group());
                    multiply(size, runs, a, packed.right(group), (&mut columns[..], g.k()), false);
                    col2im(g, columns, positions.clone(), group, dx);
                }
            }
        },
    );
    dx
}

/// The gradient of the weight, in PyTorch's order.
pub(crate) fn weight_gradient<T: Element>(g: &Geometry, x: &[T], dy: &[T]) -> Vec<T> {
    if winograd::serves(g) && !x.is_empty() && !dy.is_empty() {
        return outputs_first(&winograd::weight_gradient(g, x, dy), (g.c_in, g.c_out, 9));
    }
    direct_weight_gradient(g, x, dy)
}

pub(crate) fn direct_weight_gradient<T: Element>(g: &Geometry, x: &[T], dy: &[T]) -> Vec<T> {
    let (k, n) = (g.k(), g.c_out_group());
    let size = g.groups() * k * n;
    if x.is_empty() || dy.is_empty() {
        return vec![T::ZERO; size];
    }
    let positions = g.batch * g.positions();
    let part = positions.div_ceil(parts(size));
    let sums: Vec<Vec<T>> = (0..positions.div_ceil(part))
        .into_par_iter()
        .map(|i| {
            let (mut columns, mut packed) = (Vec::new(), Vec::new());
            let mut dw = vec![T::ZERO; size];
            for tile in tiles(i * part..positions.min((i + 1) * part), g.tile()) {
                for (group, dw) in dw.chunks_exact_mut(k * n).enumerate() {
                    let a = columns_of(g, x, tile.clone(), group, &mut columns);
                    let a = Left { data: a.data, row: 1, col: a.row };
                    let dy = &dy[tile.start * g.c_out + group * n..];
                    let (b, run) = right_rows(dy, g.c_out, tile.len(), n, &mut packed);
                    multiply((k, n), (&[run], tile.len()), a, b, (dw, n), true);
                }
            }
            dw
        })
        .collect();
    from_taps_first(g, &sum_in_order(sums))
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

/// `(C_in, C_out, taps)` to `(C_out, C_in, taps)`.
fn outputs_first<T: Element>(dw: &[T], (c_in, c_out, taps): (usize, usize, usize)) -> Vec<T> {
    let mut out = vec![T::ZERO; dw.len()];
    out.par_chunks_mut(c_in * taps).enumerate().for_each(|(o, out)| {
        for (c, out) in out.chunks_exact_mut(taps).enumerate() {
            out.copy_from_slice(&dw[(c * c_out + o) * taps..][..taps]);
        }
    });
    out
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

/// `(group, k, k, C_in, C_out)` to `(C_out, C_in, k, k)`.
fn from_taps_first<T: Element>(g: &Geometry, dw: &[T]) -> Vec<T> {
    let (c_in, n) = (g.c_in_group(), g.c_out_group());
    let mut out = vec![T::ZERO; dw.len()];
    out.par_chunks_mut(g.k()).enumerate().for_each(|(o, out)| {
        let dw = &dw[o / n * g.k() * n..][..g.k() * n];
        for (i, v) in out.iter_mut().enumerate() {
            let (c, tap) = (i / g.taps(), i % g.taps());
            *v = dw[(tap * c_in + c) * n + o % n];
        }
    });
    out
}

/// The convolution of all images, tile by tile.
fn sweep<T: Element>(g: &Geometry, x: &[T], packed: &Packed<T>) -> Vec<T> {
    let mut y = vec![T::ZERO; g.batch * g.output_len()];
    if y.is_empty() {
        return y;
    }
    let (n, tile) = (g.c_out_group(), g.tile());
    // A row of the kernel at a time keeps the panels small.
    let run = g.k() / g.kh;
    let runs = packed.runs(run);
    y.par_chunks_mut(tile * g.c_out).enumerate().for_each_init(Vec::new, |columns, (i, y)| {
        let positions = i * tile..i * tile + y.len() / g.c_out;
        for group in 0..g.groups() {
            let a = columns_of(g, x, positions.clone(), group, columns);
            let out = (&mut y[group * n..], g.c_out);
            multiply((positions.len(), n), (&runs, run), a, packed.right(group), out, false);
        }
    });
    y
}

fn tiles(range: Range<usize>, step: usize) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(step).map(move |start| start..range.end.min(start + step))
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

/// The column matrix `(positions × K)` of a group: for each output position the pixels under the kernel.
fn columns_of<'a, T: Element>(
    g: &Geometry,
    x: &'a [T],
    positions: Range<usize>,
    group: usize,
    columns: &'a mut Vec<T>,
) -> Left<'a, T> {
    let channels = g.c_in_group();
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
