//! Convolution of 3x3 at stride 1 by Winograd's F(2x2, 3x3) (Lavin and Gray, 2015, <https://arxiv.org/abs/1509.09308>).
//!
//! A tile of 4x4 input pixels and a kernel are both transformed; their products, summed over the channels, are 16
//! independent matrix multiplications; a second transform makes 2x2 outputs of them. That takes 16 multiplications
//! where the plain sum takes 36. The weight gradient is the same the other way round: products of transformed input
//! and transformed output gradient, summed over the tiles.

use std::ops::Range;

use rayon::prelude::*;

use crate::convolve::{parts, right_rows, sum_in_order};
use crate::fresh::{Fresh, filled};
use crate::geometry::Geometry;
use crate::input::Input;
use crate::kernel::{ISA, Left, Right, Run, multiply, vectorised};
use crate::lanes::{LANES, Lanes, for_blocks, get, put};
use crate::storage::Element;

/// Elements of a transformed tile.
const POINTS: usize = 16;

/// Whether this way of computing serves the convolution and pays.
pub(crate) fn serves(g: &Geometry) -> bool {
    (g.kh, g.kw, g.config.stride, g.config.dilation, g.groups()) == (3, 3, 1, 1, 1)
        && g.c_in.min(g.c_out) >= LANES
}

/// A kernel as it lies in an array: the weights of input `c` and output `o` are the nine elements from
/// `c · row + o · column`, in the order that `tap` says.
#[derive(Clone, Copy)]
pub(crate) struct Weights<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) row: usize,
    pub(crate) column: usize,
    pub(crate) tap: fn(usize) -> usize,
}

/// The convolution of `x` and what `finish` does to each chunk of outputs, given the place of its first.
pub(crate) fn convolve<T: Element>(
    g: &Geometry,
    x: Input<'_, T>,
    weights: Weights<'_, T>,
    finish: impl Fn(usize, &mut [T]) + Sync + Send,
) -> Vec<T> {
    let kernel = Kernel::new(g, weights);
    let tiles = Tiles::new(g);
    let (images, rows) = tiles.block((8192 / (g.c_in + g.c_out)).max(64));
    // Two threads get equally much where there are few images.
    let images = g.batch.div_ceil(g.batch.div_ceil(images).next_multiple_of(2)).max(1);
    let bands = tiles.bands(g.batch, images, rows);
    let ends = bands.iter().map(|(image, band)| {
        let rows = g.out_h.min(2 * band.rows.end);
        (image + band.images - 1) * g.output_len() + rows * g.out_w * g.c_out
    });
    let mut fresh = Fresh::new(g.batch * g.output_len());
    let parts = fresh.parts_at(ends);
    let buffers = || (Vec::new(), Vec::new(), Vec::new());
    parts.into_par_iter().zip(bands).for_each_init(buffers, |(v, m, room), (y, (image, band))| {
        let n = band.len();
        let (v_plane, m_plane) = (plane(n * g.c_in), plane(n * g.c_out));
        v.resize(POINTS * v_plane, T::ZERO);
        m.resize(POINTS * m_plane, T::ZERO);
        let x = band.input(g, x, image, room);
        vectorised!(band.transform_input(g, x, (v, v_plane)));
        for (point, (v, m)) in v.chunks_exact(v_plane).zip(m.chunks_exact_mut(m_plane)).enumerate() {
            let a = Left { data: v, row: g.c_in, col: 1 };
            let start = Run { a: 0, b: 0 };
            multiply((n, g.c_out), (&[start], g.c_in), a, kernel.right(point), (m, g.c_out), false);
        }
        let y = y.clear();
        vectorised!(band.transform_output(g, (m, m_plane), y));
        finish(image * g.output_len() + 2 * band.rows.start * g.out_w * g.c_out, y);
    });
    fresh.into_vec()
}

/// Room for the elements of one point: the planes of the points must not all begin at the same place of the cache.
fn plane(elements: usize) -> usize {
    elements.next_multiple_of(16) + 16
}

/// The weight gradient as `(C_out, C_in, 9)`.
pub(crate) fn weight_gradient<T: Element>(g: &Geometry, x: Input<'_, T>, dy: &[T]) -> Vec<T> {
    let tiles = Tiles::new(g);
    let aligned = g.c_in.is_multiple_of(ISA.panel::<T>() / 2);
    if aligned && g.c_in * g.c_out >= WIDE && tiles.rows * tiles.columns <= 256 {
        return wide_weight_gradient(g, x, dy);
    }
    let (images, rows) = tiles.block((8192 / (g.c_in + g.c_out)).clamp(128, 256));
    let sum_plane = plane(g.c_in * g.c_out);
    let size = POINTS * sum_plane;
    let groups = g.batch.div_ceil(images).div_ceil(parts(size));
    let part = groups * images;
    let sums: Vec<Vec<T>> = dy
        .par_chunks(part * g.output_len())
        .enumerate()
        .map(|(p, dy)| {
            let [mut v, mut d, mut packed, mut room] = [(); 4].map(|()| Vec::new());
            let mut sum = vec![T::ZERO; size];
            for (i, dy) in dy.chunks(images * g.output_len()).enumerate() {
                for first in (0..tiles.rows).step_by(rows) {
                    let rows = first..tiles.rows.min(first + rows);
                    let band = Band { tiles, rows, images: dy.len() / g.output_len() };
                    let n = band.len();
                    let (v_plane, d_plane) = (plane(n * g.c_in), plane(n * g.c_out));
                    v.resize(POINTS * v_plane, T::ZERO);
                    d.resize(POINTS * d_plane, T::ZERO);
                    let x = band.input(g, x, p * part + i * images, &mut room);
                    vectorised!(band.transform_input(g, x, (&mut v, v_plane)));
                    vectorised!(band.transform_gradient(g, dy, (&mut d, d_plane)));
                    for (point, sum) in sum.chunks_exact_mut(sum_plane).enumerate() {
                        let a = Left { data: &d[point * d_plane..][..n * g.c_out], row: 1, col: g.c_out };
                        let v = &v[point * v_plane..][..n * g.c_in];
                        let (b, run) = right_rows(v, g.c_in, n, g.c_in, &mut packed);
                        multiply((g.c_out, g.c_in), (&[run], n), a, b, (sum, g.c_in), true);
                    }
                }
            }
            sum
        })
        .collect();
    let sum = sum_in_order(sums);
    filled(g.c_in * g.c_out * 9, g.c_in * 9, |o, dw| {
        vectorised!(kernel_gradients(&sum[o * g.c_in..], sum_plane, dw));
    })
}

/// Channels in times channels out from which a gradient is summed over all tiles at once.
const WIDE: usize = 1 << 16;
/// Outputs that a task sums, in full tiles of the kernels.
const OUTPUTS: usize = 126;
/// Transformed elements that the last-level cache holds beside the rest.
const TRANSFORMED: usize = 1 << 22;

/// [`weight_gradient`] for many channels, whose sums are too large to have several of: each task has some outputs and
/// one point, and goes through all tiles, which are transformed before.
fn wide_weight_gradient<T: Element>(g: &Geometry, x: Input<'_, T>, dy: &[T]) -> Vec<T> {
    let tiles = Tiles::new(g);
    let (images, _) = tiles.block(64);
    let full = Band { tiles, rows: 0..tiles.rows, images };
    let (v_plane, d_plane) = (plane(full.len() * g.c_in), plane(full.len() * g.c_out));
    let (v_band, d_band) = (POINTS * v_plane, POINTS * d_plane);
    let bands = (TRANSFORMED / (v_band + d_band)).max(1);
    let sum_plane = plane(OUTPUTS * g.c_in);
    let mut sums = vec![T::ZERO; g.c_out.div_ceil(OUTPUTS) * POINTS * sum_plane];
    let (mut v, mut d) = (vec![T::ZERO; bands * v_band], vec![T::ZERO; bands * d_band]);
    for (chunk, dy) in dy.chunks(bands * images * g.output_len()).enumerate() {
        let first = chunk * bands * images;
        transform_bands(g, (first, images), (x, dy), (&mut v, v_plane), (&mut d, d_plane));
        let count = dy.len() / g.output_len();
        let runs: Vec<Run> =
            (0..count.div_ceil(images)).map(|i| Run { a: i * d_band, b: i * v_band }).collect();
        let (whole, rest) = runs.split_at(count / images);
        let rest_len = count % images * tiles.rows * tiles.columns;
        sums.par_chunks_mut(sum_plane).with_max_len(1).enumerate().for_each(|(i, sum)| {
            let (first, point) = (i / POINTS * OUTPUTS, i % POINTS);
            let size = (OUTPUTS.min(g.c_out - first), g.c_in);
            let a = Left { data: &d[point * d_plane + first..], row: 1, col: g.c_out };
            let b = Right { data: &v[point * v_plane..], panel: ISA.panel::<T>(), row: g.c_in };
            if !whole.is_empty() {
                multiply(size, (whole, full.len()), a, b, (sum, g.c_in), chunk > 0);
            }
            if rest_len > 0 {
                multiply(size, (rest, rest_len), a, b, (sum, g.c_in), chunk > 0 || !whole.is_empty());
            }
        });
    }
    filled(g.c_in * g.c_out * 9, g.c_in * 9, |o, dw| {
        let sum = &sums[o / OUTPUTS * POINTS * sum_plane + o % OUTPUTS * g.c_in..];
        vectorised!(kernel_gradients(sum, sum_plane, dw));
    })
}

/// Transforms the images from `first` on and their output gradients, `images` at a time.
fn transform_bands<T: Element>(
    g: &Geometry,
    (first, images): (usize, usize),
    (x, dy): (Input<'_, T>, &[T]),
    (v, v_plane): (&mut [T], usize),
    (d, d_plane): (&mut [T], usize),
) {
    let tiles = Tiles::new(g);
    let outputs = v.par_chunks_mut(POINTS * v_plane).zip(d.par_chunks_mut(POINTS * d_plane));
    let bands = outputs.zip(dy.par_chunks(images * g.output_len())).enumerate();
    bands.for_each_init(Vec::new, |room, (i, ((v, d), dy))| {
        let band = Band { tiles, rows: 0..tiles.rows, images: dy.len() / g.output_len() };
        let x = band.input(g, x, first + i * images, room);
        vectorised!(band.transform_input(g, x, (v, v_plane)));
        vectorised!(band.transform_gradient(g, dy, (d, d_plane)));
    });
}

/// The transformed kernels as right operands, one for each point.
struct Kernel<T> {
    data: Vec<T>,
    /// Elements of a panel of one point.
    matrix: usize,
    width: usize,
}

impl<T: Element> Kernel<T> {
    fn new(g: &Geometry, weights: Weights<'_, T>) -> Self {
        let width = ISA.panel::<T>();
        let matrix = plane(g.c_in * width);
        let size = g.c_out.div_ceil(width) * POINTS * matrix;
        let data = filled(size, POINTS * matrix, |p, panel| {
            vectorised!({
                for c in 0..g.c_in {
                    for_blocks!(width.min(g.c_out - p * width), (start, end, FULL) => {
                        let u = kernel_transform(&weights.lanes(c, p * width + start..p * width + end));
                        for (point, u) in u.iter().enumerate() {
                            let at = point * matrix + c * width;
                            put::<FULL, _>(&mut panel[at + start..at + end], u);
                        }
                    });
                }
            });
        });
        Self { data, matrix, width }
    }

    fn right(&self, point: usize) -> Right<'_, T> {
        Right { data: &self.data[point * self.matrix..], panel: POINTS * self.matrix, row: self.width }
    }
}

impl<T: Element> Weights<'_, T> {
    /// The nine weights of some outputs, an output in each lane.
    #[inline(always)]
    fn lanes(&self, c: usize, outputs: Range<usize>) -> [Lanes<T>; 9] {
        let mut lanes = [[T::ZERO; LANES]; 9];
        for (j, o) in outputs.enumerate() {
            let weights = &self.data[c * self.row + o * self.column..][..9];
            for (tap, lanes) in lanes.iter_mut().enumerate() {
                lanes[j] = weights[(self.tap)(tap)];
            }
        }
        lanes
    }
}

/// `G g Gᵀ`.
#[inline(always)]
fn kernel_transform<T: Element>(g: &[Lanes<T>; 9]) -> [Lanes<T>; POINTS] {
    let mut rows = [[[T::ZERO; LANES]; 4]; 3];
    for (row, g) in rows.iter_mut().zip(g.chunks_exact(3)) {
        *row = kernel_line(g[0], g[1], g[2]);
    }
    let mut u = [[T::ZERO; LANES]; POINTS];
    for j in 0..4 {
        let column = kernel_line(rows[0][j], rows[1][j], rows[2][j]);
        for (i, value) in column.iter().enumerate() {
            u[4 * i + j] = *value;
        }
    }
    u
}

/// `Gᵀ u G` for all input channels of an output: `u` has a plane for each point, `dw` is `(C_in, 9)`.
#[inline(always)]
fn kernel_gradients<T: Element>(u: &[T], plane: usize, dw: &mut [T]) {
    for_blocks!(dw.len() / 9, (start, end, FULL) => {
        let mut rows = [[[T::ZERO; LANES]; 3]; 4];
        for (i, row) in rows.iter_mut().enumerate() {
            let mut lanes = [[T::ZERO; LANES]; 4];
            for (j, lanes) in lanes.iter_mut().enumerate() {
                let at = (4 * i + j) * plane;
                *lanes = get::<FULL, _>(&u[at + start..at + end]);
            }
            *row = kernel_gradient_line(lanes[0], lanes[1], lanes[2], lanes[3]);
        }
        for j in 0..3 {
            let column = kernel_gradient_line(rows[0][j], rows[1][j], rows[2][j], rows[3][j]);
            for (i, value) in column.iter().enumerate() {
                let taps = dw[9 * start + 3 * i + j..9 * end].iter_mut().step_by(9);
                taps.zip(value).for_each(|(dw, v)| *dw = *v);
            }
        }
    });
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

    /// All tiles of a batch in bands of so many images and rows, each with the number of its first image.
    fn bands(self, batch: usize, images: usize, rows: usize) -> Vec<(usize, Band)> {
        let of = |first: usize| {
            (0..self.rows).step_by(rows).map(move |row| {
                let rows = row..self.rows.min(row + rows);
                (first, Band { tiles: self, rows, images: images.min(batch - first) })
            })
        };
        (0..batch).step_by(images).flat_map(of).collect()
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

    /// The rows of `x` that the tiles are made of, and the number of the first; the band begins at image `first`.
    fn input<'a, T: Element>(
        &self,
        g: &Geometry,
        x: Input<'a, T>,
        first: usize,
        room: &'a mut Vec<T>,
    ) -> (&'a [T], usize) {
        // Of several images, these are all rows.
        let end = (2 * self.rows.end + 2).saturating_sub(g.config.padding).min(g.h);
        let top = (2 * self.rows.start).saturating_sub(g.config.padding).min(end);
        let row = g.w * g.c_in;
        let elements =
            first * g.image_len() + top * row..(first + self.images - 1) * g.image_len() + end * row;
        (x.part(elements, room), top)
    }

    /// `Bᵀ d B` of every tile and channel: `v` is `(points, tiles, C_in)`, `x` begins at row `top`.
    #[inline(always)]
    fn transform_input<T: Element>(
        &self,
        g: &Geometry,
        (x, top): (&[T], usize),
        (v, plane): (&mut [T], usize),
    ) {
        let c_in = g.c_in;
        for (t, (image, ty, tx)) in self.tiles().enumerate() {
            let image = &x[image * g.image_len()..];
            let mut pixels: [Option<&[T]>; POINTS] = [None; POINTS];
            for (i, pixel) in pixels.iter_mut().enumerate() {
                let y = (2 * ty + i / 4).checked_sub(g.config.padding).filter(|&y| y < g.h);
                let x = (2 * tx + i % 4).checked_sub(g.config.padding).filter(|&x| x < g.w);
                if let (Some(y), Some(x)) = (y, x) {
                    *pixel = Some(&image[((y - top) * g.w + x) * c_in..][..c_in]);
                }
            }
            for_blocks!(c_in, (start, end, FULL) => {
                let mut rows = [[[T::ZERO; LANES]; 4]; 4];
                for (row, pixels) in rows.iter_mut().zip(pixels.chunks_exact(4)) {
                    for (d, pixel) in row.iter_mut().zip(pixels) {
                        if let Some(pixel) = pixel {
                            *d = get::<FULL, _>(&pixel[start..end]);
                        }
                    }
                    *row = input_line(row[0], row[1], row[2], row[3]);
                }
                for j in 0..4 {
                    let column = input_line(rows[0][j], rows[1][j], rows[2][j], rows[3][j]);
                    for (i, value) in column.iter().enumerate() {
                        let at = (4 * i + j) * plane + t * c_in;
                        put::<FULL, _>(&mut v[at + start..at + end], value);
                    }
                }
            });
        }
    }

    /// `Aᵀ m A` of every tile and channel; `m` is `(points, tiles, C_out)`, `y` begins with the band.
    #[inline(always)]
    fn transform_output<T: Element>(&self, g: &Geometry, (m, plane): (&[T], usize), y: &mut [T]) {
        let c_out = g.c_out;
        for (t, (image, ty, tx)) in self.tiles().enumerate() {
            let image = &mut y[image * g.output_len()..];
            for_blocks!(c_out, (start, end, FULL) => {
                let mut rows = [[[T::ZERO; LANES]; 2]; 4];
                for (i, row) in rows.iter_mut().enumerate() {
                    let mut m_row = [[T::ZERO; LANES]; 4];
                    for (j, lanes) in m_row.iter_mut().enumerate() {
                        let at = (4 * i + j) * plane + t * c_out;
                        *lanes = get::<FULL, _>(&m[at + start..at + end]);
                    }
                    *row = output_line(m_row[0], m_row[1], m_row[2], m_row[3]);
                }
                for j in 0..2 {
                    let column = output_line(rows[0][j], rows[1][j], rows[2][j], rows[3][j]);
                    for (i, value) in column.iter().enumerate() {
                        let (oy, ox) = (2 * ty + i, 2 * tx + j);
                        if oy < g.out_h && ox < g.out_w {
                            let at = ((oy - 2 * self.rows.start) * g.out_w + ox) * c_out;
                            put::<FULL, _>(&mut image[at + start..at + end], value);
                        }
                    }
                }
            });
        }
    }

    /// `A dy Aᵀ` of every tile and channel: `d` is `(points, tiles, C_out)`.
    #[inline(always)]
    fn transform_gradient<T: Element>(&self, g: &Geometry, dy: &[T], (d, plane): (&mut [T], usize)) {
        let c_out = g.c_out;
        for (t, (image, ty, tx)) in self.tiles().enumerate() {
            let image = &dy[image * g.output_len()..][..g.output_len()];
            for_blocks!(c_out, (start, end, FULL) => {
                let mut rows = [[[T::ZERO; LANES]; 4]; 2];
                for (i, row) in rows.iter_mut().enumerate() {
                    let mut dy = [[T::ZERO; LANES]; 2];
                    for (j, lanes) in dy.iter_mut().enumerate() {
                        let (oy, ox) = (2 * ty + i, 2 * tx + j);
                        if oy < g.out_h && ox < g.out_w {
                            let at = (oy * g.out_w + ox) * c_out;
                            *lanes = get::<FULL, _>(&image[at + start..at + end]);
                        }
                    }
                    *row = gradient_line(dy[0], dy[1]);
                }
                for j in 0..4 {
                    let column = gradient_line(rows[0][j], rows[1][j]);
                    for (i, value) in column.iter().enumerate() {
                        let at = (4 * i + j) * plane + t * c_out;
                        put::<FULL, _>(&mut d[at + start..at + end], value);
                    }
                }
            });
        }
    }
}

/// `G g` of one line.
#[inline(always)]
fn kernel_line<T: Element>(a: Lanes<T>, b: Lanes<T>, c: Lanes<T>) -> [Lanes<T>; 4] {
    let even = add(a, c);
    [a, half(add(even, b)), half(sub(even, b)), c]
}

/// `Gᵀ u` of one line.
#[inline(always)]
fn kernel_gradient_line<T: Element>(a: Lanes<T>, b: Lanes<T>, c: Lanes<T>, d: Lanes<T>) -> [Lanes<T>; 3] {
    let sum = half(add(b, c));
    [add(a, sum), half(sub(b, c)), add(sum, d)]
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
fn half<T: Element>(mut a: Lanes<T>) -> Lanes<T> {
    let half = T::from_f64(0.5);
    for i in 0..LANES {
        a[i] *= half;
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
            (9, 7, 5, 256, 272, 1),
        ] {
            let config = Conv2dConfig { padding, ..Default::default() };
            let g = Geometry::new((batch, c_in, h, w), (c_out, c_in, 3, 3), config).unwrap();
            assert!(serves(&g));
            let (x, weight) = (values(batch * g.image_len(), 1), values(c_in * c_out * 9, 2));
            let dy = values(batch * g.output_len(), 3);
            let label = format!("{g:?}");
            assert!(
                gap(
                    &convolve::forward(&g, &x, &weight),
                    &convolve::direct_forward(&g, &x, &weight, |_, _| ())
                ) < 1e-5,
                "{label}"
            );
            let dw = convolve::weight_gradient(&g, Input::plain(&x), &dy);
            assert!(gap(&dw, &crate::weight_gradient::weight_gradient(&g, &x, &dy)) < 1e-5, "{label}");
        }
    }
}
