//! 2-D convolution with a hand-written backward pass.
//!
//! Forward, input gradient and weight gradient are each a sequence of matrix multiplications over *tiles*: as many
//! output positions of one or several images as make a matrix that the cache holds. With `K = C_in · k · k`,
//!
//! - forward: `Y (C_out × N) = W (C_out × K) · col(X) (K × N)`;
//! - input gradient: at stride 1 the convolution of `dY` with the flipped kernel, else `col2im(Wᵀ · dY)`;
//! - weight gradient: `dW = Σ dY (C_out × N) · col(X)ᵀ (N × K)`, summed within a fixed number of parts of the batch
//!   and then over the parts in order, so that the result does not depend on the number of threads.

use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

use crate::init::{Fan, Init};
use crate::matrix::{Strides, matmul};
use crate::params::Scope;
use crate::storage::{Element, dispatch, reader, slice};

/// How a convolution slides. Strides, padding and dilation are the same in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// Step between output positions, at least 1.
    pub stride: usize,
    /// Zeros added on each of the four sides.
    pub padding: usize,
    /// Step between the taps of the kernel, at least 1.
    pub dilation: usize,
}

impl Default for Conv2dConfig {
    fn default() -> Self {
        Self { stride: 1, padding: 0, dilation: 1 }
    }
}

/// Convolution without bias, as in the networks here, where a batch norm always follows.
#[derive(Clone, Debug)]
pub struct Conv2d {
    weight: Tensor,
    config: Conv2dConfig,
}

impl Conv2d {
    /// A convolution with a square kernel; creates `weight` of shape `(c_out, c_in, kernel, kernel)`,
    /// Kaiming-normal over the fan-out as torchvision's ResNet.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn new(
        c_in: usize,
        c_out: usize,
        kernel: usize,
        config: Conv2dConfig,
        scope: &Scope,
    ) -> Result<Self> {
        let weight =
            scope.trainable("weight", (c_out, c_in, kernel, kernel), Init::KaimingNormal(Fan::Out))?;
        Ok(Self { weight, config })
    }

    /// `(B, C_in, H, W)` to `(B, C_out, H', W')`.
    ///
    /// # Errors
    /// As [`conv2d`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        conv2d(x, &self.weight, self.config)
    }
}

/// Cross-correlation of `x` with `weight`, as `torch.nn.functional.conv2d` without bias.
///
/// # Shapes
/// `x`: `(B, C_in, H, W)`; `weight`: `(C_out, C_in, k_h, k_w)`; result: `(B, C_out, H', W')` with
/// `H' = (H + 2·padding − dilation·(k_h − 1) − 1) / stride + 1`, rounded down. `f32` or `f64`.
///
/// # Errors
/// If the ranks or channels do not fit, if a stride or dilation is 0, or if the kernel is larger than the padded image.
pub fn conv2d(x: &Tensor, weight: &Tensor, config: Conv2dConfig) -> Result<Tensor> {
    let geometry = Geometry::new(x.dims4()?, weight.dims4()?, config)?;
    if !x.device().is_cpu() {
        return x.conv2d(weight, config.padding, config.stride, config.dilation, 1);
    }
    x.contiguous()?.apply_op2(&weight.contiguous()?, Conv2dOp { geometry })
}

/// All sizes of one convolution.
#[derive(Clone, Copy, Debug)]
struct Geometry {
    batch: usize,
    c_in: usize,
    h: usize,
    w: usize,
    c_out: usize,
    kh: usize,
    kw: usize,
    out_h: usize,
    out_w: usize,
    config: Conv2dConfig,
}

impl Geometry {
    fn new(
        (batch, c_in, h, w): (usize, usize, usize, usize),
        (c_out, channels, kh, kw): (usize, usize, usize, usize),
        config: Conv2dConfig,
    ) -> Result<Self> {
        let Conv2dConfig { stride, padding, dilation } = config;
        if channels != c_in {
            bail!("conv2d: the image has {c_in} channels, the kernel expects {channels}");
        }
        if stride == 0 || dilation == 0 {
            bail!("conv2d: stride {stride} and dilation {dilation} must be at least 1");
        }
        let output = |size: usize, k: usize| {
            let reach = dilation * k.saturating_sub(1) + 1;
            (size + 2 * padding).checked_sub(reach).filter(|_| k > 0).map(|room| room / stride + 1)
        };
        let (Some(out_h), Some(out_w)) = (output(h, kh), output(w, kw)) else {
            bail!(
                "conv2d: a {kh}x{kw} kernel (dilation {dilation}) does not fit a {h}x{w} image padded by {padding}"
            )
        };
        Ok(Self { batch, c_in, h, w, c_out, kh, kw, out_h, out_w, config })
    }

    /// Rows of the column matrix.
    fn k(&self) -> usize {
        self.c_in * self.kh * self.kw
    }

    /// Output positions of one image.
    fn positions(&self) -> usize {
        self.out_h * self.out_w
    }

    fn image_len(&self) -> usize {
        self.c_in * self.h * self.w
    }

    fn output_len(&self) -> usize {
        self.c_out * self.positions()
    }

    /// The convolution that computes the input gradient at stride 1, if the padding allows it.
    fn transposed(&self) -> Option<Self> {
        let Conv2dConfig { stride, padding, dilation } = self.config;
        let reach = dilation * (self.kh - 1);
        let padding = reach.checked_sub(padding)?;
        (stride == 1 && self.kh == self.kw).then_some(Self {
            c_in: self.c_out,
            h: self.out_h,
            w: self.out_w,
            c_out: self.c_in,
            out_h: self.h,
            out_w: self.w,
            config: Conv2dConfig { padding, ..self.config },
            ..*self
        })
    }

    /// Whether the column matrix of an image is the image itself.
    fn is_pointwise(&self) -> bool {
        self.kh == 1 && self.kw == 1 && self.config == Conv2dConfig::default()
    }

    /// How the work is cut: small images are joined, large ones are cut into bands of rows.
    fn tiling(&self) -> Tiling {
        // About 384 KiB of column matrix, but no fewer columns than keep the kernels busy.
        let columns = (96 * 1024 / self.k().max(1)).clamp(192, 4096);
        let images = (columns / self.positions().max(1)).clamp(1, self.batch.max(1));
        let rows = if images > 1 { self.out_h } else { (columns / self.out_w.max(1)).clamp(1, self.out_h) };
        Tiling { images, rows }
    }
}

/// Images of a group and output rows of a band; a group of several images is always one band.
#[derive(Clone, Copy, Debug)]
struct Tiling {
    images: usize,
    rows: usize,
}

impl Tiling {
    fn bands(self, out_h: usize) -> impl Iterator<Item = (usize, usize)> {
        (0..out_h).step_by(self.rows).map(move |row| (row, self.rows.min(out_h - row)))
    }
}

struct Conv2dOp {
    geometry: Geometry,
}

impl CustomOp2 for Conv2dOp {
    fn name(&self) -> &'static str {
        "ssl-conv2d"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_at: &Layout,
        weight: &CpuStorage,
        weight_at: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        use candle_core::WithDType;
        use candle_core::backend::BackendStorage;
        let g = &self.geometry;
        let shape = Shape::from((g.batch, g.c_out, g.out_h, g.out_w));
        dispatch!(x.dtype(), "conv2d", T => {
            let y = forward::<T>(g, slice(x, x_at)?, slice(weight, weight_at)?);
            Ok((T::to_cpu_storage_owned(y), shape))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let g = &self.geometry;
        let grad = grad.contiguous()?;
        dispatch!(x.dtype(), "conv2d", T => {
            let (xs, ws, dy) = (reader(x), reader(weight), reader(&grad));
            let dx = match x.track_op() {
                true => Some(input_gradient::<T>(g, ws.slice()?, dy.slice()?)),
                false => None,
            };
            let dw = match weight.track_op() {
                true => Some(weight_gradient::<T>(g, xs.slice()?, dy.slice()?)),
                false => None,
            };
            let tensor = |data, like: &Tensor| Tensor::from_vec(data, like.shape(), like.device());
            Ok((dx.map(|d| tensor(d, x)).transpose()?, dw.map(|d| tensor(d, weight)).transpose()?))
        })
    }
}

fn forward<T: Element>(g: &Geometry, x: &[T], weight: &[T]) -> Vec<T> {
    let tiling = g.tiling();
    let mut y = vec![T::ZERO; g.batch * g.output_len()];
    if y.is_empty() {
        return y;
    }
    y.par_chunks_mut(tiling.images * g.output_len())
        .zip(x.par_chunks(tiling.images * g.image_len()))
        .for_each_init(
            || (Vec::new(), Vec::new()),
            |(columns, joined), (y, x)| {
                for (row, rows) in tiling.bands(g.out_h) {
                    let columns = im2col(g, x, row, rows, columns);
                    let n = columns.n;
                    let weight = (weight, Strides::col_major(g.k()));
                    if y.len() == g.output_len() {
                        let out = (&mut y[row * g.out_w..], Strides::col_major(g.positions()));
                        matmul((n, g.k(), g.c_out), out, columns.transposed(), weight, false);
                    } else {
                        joined.resize(n * g.c_out, T::ZERO);
                        let out = (&mut joined[..], Strides::col_major(n));
                        matmul((n, g.k(), g.c_out), out, columns.transposed(), weight, false);
                        split_images(g, joined, y);
                    }
                }
            },
        );
    y
}

fn input_gradient<T: Element>(g: &Geometry, weight: &[T], dy: &[T]) -> Vec<T> {
    if let Some(transposed) = g.transposed() {
        return forward(&transposed, dy, &flip(g, weight));
    }
    let tiling = g.tiling();
    let mut dx = vec![T::ZERO; g.batch * g.image_len()];
    if dx.is_empty() {
        return dx;
    }
    dx.par_chunks_mut(tiling.images * g.image_len())
        .zip(dy.par_chunks(tiling.images * g.output_len()))
        .for_each_init(
            || (Vec::new(), Vec::new()),
            |(columns, joined), (dx, dy)| {
                for (row, rows) in tiling.bands(g.out_h) {
                    let (dy, dy_at, n) = output_tile(g, dy, row, rows, joined);
                    columns.resize(n * g.k(), T::ZERO);
                    let out = (&mut columns[..], Strides::col_major(n));
                    let weight = (weight, Strides::row_major(g.k()));
                    matmul((n, g.c_out, g.k()), out, (dy, dy_at), weight, false);
                    col2im(g, columns, row, rows, dx);
                }
            },
        );
    dx
}

/// Parts of the batch that the weight gradient is summed over separately: enough for several threads, few enough that
/// adding them up costs little. A constant, so that sums do not depend on the machine.
const PARTS: usize = 8;

fn weight_gradient<T: Element>(g: &Geometry, x: &[T], dy: &[T]) -> Vec<T> {
    let tiling = g.tiling();
    let groups = g.batch.div_ceil(tiling.images);
    let images = groups.div_ceil(PARTS).max(1) * tiling.images;
    if x.is_empty() || dy.is_empty() {
        return vec![T::ZERO; g.c_out * g.k()];
    }
    let parts: Vec<Vec<T>> = x
        .par_chunks(images * g.image_len())
        .zip(dy.par_chunks(images * g.output_len()))
        .map(|(x, dy)| {
            let (mut columns, mut joined) = (Vec::new(), Vec::new());
            let mut dw = vec![T::ZERO; g.c_out * g.k()];
            let groups =
                x.chunks(tiling.images * g.image_len()).zip(dy.chunks(tiling.images * g.output_len()));
            for (x, dy) in groups {
                for (row, rows) in tiling.bands(g.out_h) {
                    let columns = im2col(g, x, row, rows, &mut columns);
                    let (dy, dy_at, n) = output_tile(g, dy, row, rows, &mut joined);
                    let out = (&mut dw[..], Strides::col_major(g.k()));
                    matmul((g.k(), n, g.c_out), out, columns.matrix(), (dy, dy_at), true);
                }
            }
            dw
        })
        .collect();
    let mut parts = parts.into_iter();
    let mut sum = parts.next().unwrap_or_default();
    for part in parts {
        sum.iter_mut().zip(&part).for_each(|(s, p)| *s += *p);
    }
    sum
}

/// A column matrix `(K, n)`: row `k` starts at `k * stride`.
struct Columns<'a, T> {
    data: &'a [T],
    stride: usize,
    n: usize,
}

impl<'a, T> Columns<'a, T> {
    fn matrix(&self) -> (&'a [T], Strides) {
        (self.data, Strides::row_major(self.stride))
    }

    fn transposed(&self) -> (&'a [T], Strides) {
        (self.data, Strides::col_major(self.stride))
    }
}

/// The column matrix of the output rows `row..row + rows` of the images `x`, image after image within a row.
fn im2col<'a, T: Element>(
    g: &Geometry,
    x: &'a [T],
    row: usize,
    rows: usize,
    buffer: &'a mut Vec<T>,
) -> Columns<'a, T> {
    let images = x.len() / g.image_len();
    let band = rows * g.out_w;
    let n = images * band;
    if g.is_pointwise() && images == 1 {
        return Columns { data: &x[row * g.out_w..], stride: g.positions(), n };
    }
    buffer.resize(g.k() * n, T::ZERO);
    let Conv2dConfig { stride, padding, dilation } = g.config;
    for (image, x) in x.chunks_exact(g.image_len()).enumerate() {
        for (c, plane) in x.chunks_exact(g.h * g.w).enumerate() {
            for (i, j) in (0..g.kh).flat_map(|i| (0..g.kw).map(move |j| (i, j))) {
                let k = (c * g.kh + i) * g.kw + j;
                let out = &mut buffer[k * n + image * band..][..band];
                if stride == 1 && g.out_w == g.w {
                    shift_plane(g, plane, i * dilation, j * dilation, row, out);
                    continue;
                }
                for (oy, out) in out.chunks_exact_mut(g.out_w).enumerate() {
                    match ((row + oy) * stride + i * dilation).checked_sub(padding).filter(|&y| y < g.h) {
                        Some(y) => gather_row(&plane[y * g.w..][..g.w], j * dilation, padding, stride, out),
                        None => out.fill(T::ZERO),
                    }
                }
            }
        }
    }
    Columns { data: buffer, stride: n, n }
}

/// The rows from `row` on of a plane moved by `(down, right)` less the padding, 0 where nothing was: what a tap of a
/// kernel with stride 1 sees if input and output are equally wide. One copy and two narrow borders.
fn shift_plane<T: Element>(g: &Geometry, plane: &[T], down: usize, right: usize, row: usize, out: &mut [T]) {
    let padding = g.config.padding;
    // Output position `o` of the band reads `plane[o + ahead − behind]`.
    let (ahead, behind) = ((row + down) * g.w + right, padding * g.w + padding);
    let first = behind.saturating_sub(ahead).min(out.len());
    let last = (plane.len() + behind).saturating_sub(ahead).min(out.len()).max(first);
    out[..first].fill(T::ZERO);
    out[last..].fill(T::ZERO);
    if first < last {
        out[first..last].copy_from_slice(&plane[first + ahead - behind..last + ahead - behind]);
    }
    let (first, last) = inside(g.w, right, padding, 1, g.out_w);
    if (first, last) != (0, g.out_w) {
        for line in out.chunks_exact_mut(g.out_w) {
            line[..first].iter_mut().for_each(|v| *v = T::ZERO);
            line[last..].iter_mut().for_each(|v| *v = T::ZERO);
        }
    }
}

/// `out[o] = line[o · stride + offset − padding]`, 0 outside the line.
fn gather_row<T: Element>(line: &[T], offset: usize, padding: usize, stride: usize, out: &mut [T]) {
    let (first, last) = inside(line.len(), offset, padding, stride, out.len());
    out[..first].fill(T::ZERO);
    out[last..].fill(T::ZERO);
    if first == last {
        return;
    }
    let start = first * stride + offset - padding;
    if stride == 1 {
        out[first..last].copy_from_slice(&line[start..start + last - first]);
    } else {
        let line = line[start..].iter().step_by(stride);
        out[first..last].iter_mut().zip(line).for_each(|(o, v)| *o = *v);
    }
}

/// The outputs `first..last` whose input `o · stride + offset − padding` lies in `0..len`.
fn inside(len: usize, offset: usize, padding: usize, stride: usize, outputs: usize) -> (usize, usize) {
    let first = padding.saturating_sub(offset).div_ceil(stride).min(outputs);
    let last = (len + padding).saturating_sub(offset).div_ceil(stride).min(outputs);
    (first, last.max(first))
}

/// Adds the column matrix of the output rows `row..row + rows` back into the images `x`.
fn col2im<T: Element>(g: &Geometry, columns: &[T], row: usize, rows: usize, x: &mut [T]) {
    let Conv2dConfig { stride, padding, dilation } = g.config;
    let band = rows * g.out_w;
    let n = x.len() / g.image_len() * band;
    for (image, x) in x.chunks_exact_mut(g.image_len()).enumerate() {
        for (c, plane) in x.chunks_exact_mut(g.h * g.w).enumerate() {
            for (i, j) in (0..g.kh).flat_map(|i| (0..g.kw).map(move |j| (i, j))) {
                let k = (c * g.kh + i) * g.kw + j;
                let (first, last) = inside(g.w, j * dilation, padding, stride, g.out_w);
                let columns = &columns[k * n + image * band..][..band];
                for (oy, columns) in columns.chunks_exact(g.out_w).enumerate() {
                    let y = ((row + oy) * stride + i * dilation).checked_sub(padding).filter(|&y| y < g.h);
                    let Some(y) = y.filter(|_| first < last) else { continue };
                    let line = &mut plane[y * g.w + first * stride + j * dilation - padding..];
                    let line = line.iter_mut().step_by(stride);
                    line.zip(&columns[first..last]).for_each(|(x, c)| *x += *c);
                }
            }
        }
    }
}

/// The tile `(n, C_out)` of an output-shaped array, copied together if it spans several images.
fn output_tile<'a, T: Element>(
    g: &Geometry,
    y: &'a [T],
    row: usize,
    rows: usize,
    joined: &'a mut Vec<T>,
) -> (&'a [T], Strides, usize) {
    let images = y.len() / g.output_len();
    let n = images * rows * g.out_w;
    if images == 1 {
        return (&y[row * g.out_w..], Strides::col_major(g.positions()), n);
    }
    joined.resize(n * g.c_out, T::ZERO);
    for (image, y) in y.chunks_exact(g.output_len()).enumerate() {
        for (c, plane) in y.chunks_exact(g.positions()).enumerate() {
            joined[c * n + image * plane.len()..][..plane.len()].copy_from_slice(plane);
        }
    }
    (joined, Strides::col_major(n), n)
}

/// The inverse of the copy in [`output_tile`].
fn split_images<T: Element>(g: &Geometry, joined: &[T], y: &mut [T]) {
    let n = joined.len() / g.c_out;
    for (image, y) in y.chunks_exact_mut(g.output_len()).enumerate() {
        for (c, plane) in y.chunks_exact_mut(g.positions()).enumerate() {
            let len = plane.len();
            plane.copy_from_slice(&joined[c * n + image * len..][..len]);
        }
    }
}

/// The kernel turned by 180 degrees with its channels exchanged: `(C_in, C_out, k_h, k_w)`.
fn flip<T: Element>(g: &Geometry, weight: &[T]) -> Vec<T> {
    let taps = g.kh * g.kw;
    let mut flipped = vec![T::ZERO; weight.len()];
    for (o, kernels) in weight.chunks_exact(g.k()).enumerate() {
        for (i, kernel) in kernels.chunks_exact(taps).enumerate() {
            let out = &mut flipped[(i * g.c_out + o) * taps..][..taps];
            out.iter_mut().zip(kernel.iter().rev()).for_each(|(f, w)| *f = *w);
        }
    }
    flipped
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn bad_sizes_are_refused_with_their_numbers() {
        let x = Tensor::zeros((1, 3, 4, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        let kernel = |c, k| Tensor::zeros((2, c, k, k), candle_core::DType::F32, &Device::Cpu).unwrap();
        for (weight, config, part) in [
            (kernel(4, 3), Conv2dConfig::default(), "3 channels, the kernel expects 4"),
            (kernel(3, 5), Conv2dConfig::default(), "5x5 kernel (dilation 1) does not fit a 4x4 image"),
            (kernel(3, 3), Conv2dConfig { stride: 0, ..Default::default() }, "stride 0"),
        ] {
            let error = conv2d(&x, &weight, config).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn the_input_gradient_is_skipped_for_an_image() {
        let x = Tensor::ones((1, 1, 3, 3), candle_core::DType::F32, &Device::Cpu).unwrap();
        let w = candle_core::Var::ones((1, 1, 2, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let y = conv2d(&x, &w, Conv2dConfig::default()).unwrap();
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert!(grads.get(&x).is_none());
        assert_eq!(grads.get(&w).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap(), [4.0; 4]);
    }
}
