//! Convolution of 3x3 at stride 1 by Winograd's F(2x2, 3x3) (Lavin and Gray, 2015, <https://arxiv.org/abs/1509.09308>).
//!
//! A tile of 4x4 input pixels and a kernel are both transformed; their products, summed over the channels, are 16
//! independent matrix multiplications; a second transform makes 2x2 outputs of them. That takes 16 multiplications
//! where the plain sum takes 36. The weight gradient is the same the other way round: products of transformed input
//! and transformed output gradient, summed over the tiles.

use std::ops::Range;

use rayon::prelude::*;

use crate::convolve::{parts, right_rows, sum_in_order};
use crate::geometry::Geometry;
use crate::kernel::{ISA, Left, Right, Run, multiply, wide};
use crate::lanes::{LANES, Lanes, blocks, load, store};
use crate::storage::Element;

/// Elements of a transformed tile.
const POINTS: usize = 16;

/// Whether this way of computing serves the convolution and pays.
pub(crate) fn serves(g: &Geometry) -> bool {
    (g.kh, g.kw, g.config.stride, g.config.dilation, g.groups()) == (3, 3, 1, 1, 1)
        && g.c_in.min(g.c_out) >= LANES
}

/// The convolution of `x`, channels last, with the kernel whose weight for `(c_in, c_out, tap)` is `at`.
pub(crate) fn convolve<T: Element>(
    g: &Geometry,
    x: &[T],
    at: impl Fn(usize, usize, usize) -> T + Sync,
) -> Vec<T> {
    let kernel = Kernel::new(g, at);
    let tiles = Tiles::new(g);
    let step = (8192 / (g.c_in + g.c_out)).max(56) / 14 * 14;
    let (images, rows) = tiles.block(step);
    let mut y = vec![T::ZERO; g.batch * g.output_len()];
    if y.is_empty() {
        return y;
    }
    let outputs = y.par_chunks_mut(images * g.output_len()).zip(x.par_chunks(images * g.image_len()));
    outputs.for_each_init(
        || (Vec::new(), Vec::new()),
        |(v, m), (y, x)| {
            for first in (0..tiles.rows).step_by(rows) {
                let band = Band {
                    tiles,
                    rows: first..tiles.rows.min(first + rows),
                    images: x.len() / g.image_len(),
                };
                let n = band.len();
                v.resize(POINTS * n * g.c_in, T::ZERO);
                m.resize(POINTS * n * g.c_out, T::ZERO);
                wide(|| band.transform_input(g, x, v));
                for (point, (v, m)) in
                    v.chunks_exact(n * g.c_in).zip(m.chunks_exact_mut(n * g.c_out)).enumerate()
                {
                    let a = Left { data: v, row: g.c_in, col: 1 };
                    let start = Run { a: 0, b: 0 };
                    multiply((n, g.c_out), (&[start], g.c_in), a, kernel.right(point), (m, g.c_out), false);
                }
                wide(|| band.transform_output(g, m, y));
            }
        },
    );
    y
}

/// The weight gradient as `(C_in, C_out, 9)`.
pub(crate) fn weight_gradient<T: Element>(g: &Geometry, x: &[T], dy: &[T]) -> Vec<T> {
    let tiles = Tiles::new(g);
    let (images, rows) = tiles.block((8192 / (g.c_in + g.c_out)).clamp(128, 256));
    let size = POINTS * g.c_in * g.c_out;
    let groups = g.batch.div_ceil(images).div_ceil(parts(size));
    let part = groups * images;
    let sums: Vec<Vec<T>> = x
        .par_chunks(part * g.image_len())
        .zip(dy.par_chunks(part * g.output_len()))
        .map(|(x, dy)| {
            let (mut v, mut d, mut packed) = (Vec::new(), Vec::new(), Vec::new());
            let mut sum = vec![T::ZERO; size];
            let groups = x.chunks(images * g.image_len()).zip(dy.chunks(images * g.output_len()));
            for (x, dy) in groups {
                for first in (0..tiles.rows).step_by(rows) {
                    let rows = first..tiles.rows.min(first + rows);
                    let band = Band { tiles, rows, images: x.len() / g.image_len() };
                    let n = band.len();
                    v.resize(POINTS * n * g.c_in, T::ZERO);
                    d.resize(POINTS * n * g.c_out, T::ZERO);
                    wide(|| band.transform_input(g, x, &mut v));
                    wide(|| band.transform_gradient(g, dy, &mut d));
                    for (point, sum) in sum.chunks_exact_mut(g.c_in * g.c_out).enumerate() {
                        let a = Left { data: &v[point * n * g.c_in..][..n * g.c_in], row: 1, col: g.c_in };
                        let d = &d[point * n * g.c_out..][..n * g.c_out];
                        let (b, run) = right_rows(d, g.c_out, n, g.c_out, &mut packed);
                        multiply((g.c_in, g.c_out), (&[run], n), a, b, (sum, g.c_out), true);
                    }
                }
            }
            sum
        })
        .collect();
    let sum = sum_in_order(sums);
    let mut dw = vec![T::ZERO; g.c_in * g.c_out * 9];
    dw.par_chunks_mut(9).enumerate().for_each(|(i, dw)| {
        let u: [T; POINTS] = std::array::from_fn(|point| sum[point * g.c_in * g.c_out + i]);
        dw.copy_from_slice(&kernel_gradient(u));
    });
    dw
}

/// The transformed kernels as right operands, one for each point.
struct Kernel<T> {
    data: Vec<T>,
    k: usize,
    width: usize,
}

impl<T: Element> Kernel<T> {
    fn new(g: &Geometry, at: impl Fn(usize, usize, usize) -> T + Sync) -> Self {
        let (k, width) = (g.c_in, ISA.panel::<T>());
        let mut data = vec![T::ZERO; g.c_out.div_ceil(width) * POINTS * k * width];
        data.par_chunks_mut(POINTS * k * width).enumerate().for_each(|(p, panel)| {
            for c in 0..k {
                for j in 0..width.min(g.c_out - p * width) {
                    let u = kernel_transform(std::array::from_fn(|tap| at(c, p * width + j, tap)));
                    for (point, u) in u.into_iter().enumerate() {
                        panel[(point * k + c) * width + j] = u;
                    }
                }
            }
        });
        Self { data, k, width }
    }

    fn right(&self, point: usize) -> Right<'_, T> {
        let matrix = self.k * self.width;
        Right { data: &self.data[point * matrix..], panel: POINTS * matrix, row: self.width }
    }
}

/// `G g Gᵀ`.
fn kernel_transform<T: Element>(g: [T; 9]) -> [T; POINTS] {
    let half = T::from_f64(0.5);
    let line = |a: T, b: T, c: T| [a, (a + b + c) * half, (a - b + c) * half, c];
    let rows: [[T; 4]; 3] = std::array::from_fn(|i| line(g[3 * i], g[3 * i + 1], g[3 * i + 2]));
    let columns: [[T; 4]; 4] = std::array::from_fn(|j| line(rows[0][j], rows[1][j], rows[2][j]));
    std::array::from_fn(|i| columns[i % 4][i / 4])
}

/// `Gᵀ u G`.
fn kernel_gradient<T: Element>(u: [T; POINTS]) -> [T; 9] {
    let half = T::from_f64(0.5);
    let line = |a: T, b: T, c: T, d: T| [a + (b + c) * half, (b - c) * half, (b + c) * half + d];
    let rows: [[T; 3]; 4] = std::array::from_fn(|i| line(u[4 * i], u[4 * i + 1], u[4 * i + 2], u[4 * i + 3]));
    let columns: [[T; 3]; 3] = std::array::from_fn(|j| line(rows[0][j], rows[1][j], rows[2][j], rows[3][j]));
    std::array::from_fn(|i| columns[i % 3][i / 3])
}

/// The tiles of 2x2 outputs of an image.
#[derive(Clone, Copy)]
struct Tiles {
    rows: usize,
    columns: usize,
}

impl Tiles {
    fn new(g: &Geometry) -> Self {
        Self { rows: g.out_h.div_ceil(2), columns: g.out_w.div_ceil(2) }
    }

    /// Images that are joined, or rows of tiles that one is cut into, for about `tiles` tiles.
    fn block(self, tiles: usize) -> (usize, usize) {
        let image = (self.rows * self.columns).max(1);
        if image <= tiles { (tiles / image, self.rows) } else { (1, (tiles / self.columns).max(1)) }
    }
}

/// The same rows of tiles of some images.
struct Band {
    tiles: Tiles,
    rows: Range<usize>,
    images: usize,
}

impl Band {
    fn len(&self) -> usize {
        self.images * self.rows.len() * self.tiles.columns
    }

    /// Image, row and column of each tile, in order.
    fn tiles(&self) -> impl Iterator<Item = (usize, usize, usize)> + '_ {
        (0..self.images).flat_map(move |image| {
            self.rows.clone().flat_map(move |y| (0..self.tiles.columns).map(move |x| (image, y, x)))
        })
    }

    /// `Bᵀ d B` of every tile and channel: `v` is `(points, tiles, C_in)`.
    #[inline(always)]
    fn transform_input<T: Element>(&self, g: &Geometry, x: &[T], v: &mut [T]) {
        let (c_in, plane) = (g.c_in, self.len() * g.c_in);
        for (t, (image, ty, tx)) in self.tiles().enumerate() {
            let image = &x[image * g.image_len()..][..g.image_len()];
            let pixels: [Option<&[T]>; POINTS] = std::array::from_fn(|i| {
                let y = (2 * ty + i / 4).checked_sub(g.config.padding).filter(|&y| y < g.h)?;
                let x = (2 * tx + i % 4).checked_sub(g.config.padding).filter(|&x| x < g.w)?;
                Some(&image[(y * g.w + x) * c_in..][..c_in])
            });
            for (start, end) in blocks(c_in) {
                let mut rows = [[[T::ZERO; LANES]; 4]; 4];
                for (row, pixels) in rows.iter_mut().zip(pixels.chunks_exact(4)) {
                    for (d, pixel) in row.iter_mut().zip(pixels) {
                        if let Some(pixel) = pixel {
                            *d = load(&pixel[start..end]);
                        }
                    }
                    *row = input_line(row[0], row[1], row[2], row[3]);
                }
                for j in 0..4 {
                    let column = input_line(rows[0][j], rows[1][j], rows[2][j], rows[3][j]);
                    for (i, value) in column.iter().enumerate() {
                        let at = (4 * i + j) * plane + t * c_in;
                        store(&mut v[at + start..at + end], value);
                    }
                }
            }
        }
    }

    /// `Aᵀ m A` of every tile and channel; `m` is `(points, tiles, C_out)`.
    #[inline(always)]
    fn transform_output<T: Element>(&self, g: &Geometry, m: &[T], y: &mut [T]) {
        let (c_out, plane) = (g.c_out, self.len() * g.c_out);
        for (t, (image, ty, tx)) in self.tiles().enumerate() {
            let image = &mut y[image * g.output_len()..][..g.output_len()];
            for (start, end) in blocks(c_out) {
                let mut rows = [[[T::ZERO; LANES]; 2]; 4];
                for (i, row) in rows.iter_mut().enumerate() {
                    let mut m_row = [[T::ZERO; LANES]; 4];
                    for (j, lanes) in m_row.iter_mut().enumerate() {
                        let at = (4 * i + j) * plane + t * c_out;
                        *lanes = load(&m[at + start..at + end]);
                    }
                    *row = output_line(m_row[0], m_row[1], m_row[2], m_row[3]);
                }
                for j in 0..2 {
                    let column = output_line(rows[0][j], rows[1][j], rows[2][j], rows[3][j]);
                    for (i, value) in column.iter().enumerate() {
                        let (oy, ox) = (2 * ty + i, 2 * tx + j);
                        if oy < g.out_h && ox < g.out_w {
                            let at = (oy * g.out_w + ox) * c_out;
                            store(&mut image[at + start..at + end], value);
                        }
                    }
                }
            }
        }
    }

    /// `A dy Aᵀ` of every tile and channel: `d` is `(points, tiles, C_out)`.
    #[inline(always)]
    fn transform_gradient<T: Element>(&self, g: &Geometry, dy: &[T], d: &mut [T]) {
        let (c_out, plane) = (g.c_out, self.len() * g.c_out);
        for (t, (image, ty, tx)) in self.tiles().enumerate() {
            let image = &dy[image * g.output_len()..][..g.output_len()];
            for (start, end) in blocks(c_out) {
                let mut rows = [[[T::ZERO; LANES]; 4]; 2];
                for (i, row) in rows.iter_mut().enumerate() {
                    let mut dy = [[T::ZERO; LANES]; 2];
                    for (j, lanes) in dy.iter_mut().enumerate() {
                        let (oy, ox) = (2 * ty + i, 2 * tx + j);
                        if oy < g.out_h && ox < g.out_w {
                            let at = (oy * g.out_w + ox) * c_out;
                            *lanes = load(&image[at + start..at + end]);
                        }
                    }
                    *row = gradient_line(dy[0], dy[1]);
                }
                for j in 0..4 {
                    let column = gradient_line(rows[0][j], rows[1][j]);
                    for (i, value) in column.iter().enumerate() {
                        let at = (4 * i + j) * plane + t * c_out;
                        store(&mut d[at + start..at + end], value);
                    }
                }
            }
        }
    }
}

/// `Bᵀ d` of one line.
#[inline(always)]
fn input_line<T: Element>(a: Lanes<T>, b: Lanes<T>, c: Lanes<T>, d: Lanes<T>) -> [Lanes<T>; 4] {
    [sub(a, c), add(b, c), sub(c, b), sub(b, d)]
}

/// `Aᵀ m` of one line.
#[inline(always)]
fn output_line<T: Element>(a: Lanes<T>, b: Lanes<T>, c: Lanes<T>, d: Lanes<T>) -> [Lanes<T>; 2] {
    [add(add(a, b), c), sub(sub(b, c), d)]
}

/// `A dy` of one line.
#[inline(always)]
fn gradient_line<T: Element>(a: Lanes<T>, b: Lanes<T>) -> [Lanes<T>; 4] {
    [a, add(a, b), sub(a, b), sub([T::ZERO; LANES], b)]
}

#[inline(always)]
fn add<T: Element>(mut a: Lanes<T>, b: Lanes<T>) -> Lanes<T> {
    for i in 0..LANES {
        a[i] += b[i];
    }
    a
}

#[inline(always)]
fn sub<T: Element>(mut a: Lanes<T>, b: Lanes<T>) -> Lanes<T> {
    for i in 0..LANES {
        a[i] -= b[i];
    }
    a
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conv2d::Conv2dConfig;
    use crate::convolve;

    fn values(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.5 - 1.0).collect()
    }

    /// The largest difference as a part of the root mean square.
    fn gap(a: &[f32], b: &[f32]) -> f32 {
        let rms = (b.iter().map(|b| b * b).sum::<f32>() / b.len() as f32).sqrt();
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / rms
    }

    #[test]
    fn every_pass_agrees_with_the_plain_sums() {
        for (batch, h, w, c_in, c_out, padding) in [
            (3, 8, 8, 64, 64, 1),
            (2, 7, 5, 16, 40, 1),
            (1, 9, 12, 33, 17, 0),
            (5, 4, 4, 16, 16, 2),
            (1, 40, 33, 16, 32, 1),
        ] {
            let config = Conv2dConfig { padding, ..Default::default() };
            let g = Geometry::new((batch, c_in, h, w), (c_out, c_in, 3, 3), config).unwrap();
            assert!(serves(&g));
            let (x, weight) = (values(batch * g.image_len(), 1), values(c_in * c_out * 9, 2));
            let dy = values(batch * g.output_len(), 3);
            let label = format!("{g:?}");
            assert!(
                gap(&convolve::forward(&g, &x, &weight), &convolve::direct_forward(&g, &x, &weight)) < 1e-5,
                "{label}"
            );
            let dw = convolve::weight_gradient(&g, &x, &dy);
            assert!(gap(&dw, &convolve::direct_weight_gradient(&g, &x, &dy)) < 1e-5, "{label}");
        }
    }
}
