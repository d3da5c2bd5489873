//! Bicubic interpolation of images and of position embeddings.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor, bail};
use rayon::prelude::*;

use crate::graph::{gradient, node};
use crate::kernel::vectorised;
use crate::storage::{Element, dispatch, reader};

/// Settings of a bicubic interpolation; the defaults are those of `torch.nn.functional.interpolate` with a size.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BicubicConfig {
    /// Widen the kernel when shrinking, so that every input counts. PyTorch then takes another kernel, with `a = -0.5`
    /// in place of `-0.75`, also when enlarging.
    pub antialias: bool,
    /// Factors of the height and of the width, where they are not exactly the ratios of the sizes. DINO and DINOv2 add
    /// 0.1 to the size that they ask for and hand on `(size + 0.1) / old size`, which moves every sampled point.
    pub scale: Option<(f64, f64)>,
}

/// The images `x` `(B, C, H, W)` at another `size` (rows, columns), as `torch.nn.functional.interpolate` in mode
/// `bicubic` with `align_corners=False`.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use ssl_nn::{BicubicConfig, resize_bicubic};
///
/// let x = Tensor::ones((1, 3, 4, 4), DType::F32, &Device::Cpu)?;
/// let y = resize_bicubic(&x, (6, 5), BicubicConfig::default())?;
/// assert_eq!(y.dims(), [1, 3, 6, 5]);
/// assert!((y.mean_all()?.to_scalar::<f32>()? - 1.0).abs() < 1e-6);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If `x` is not of rank 4 or has no pixels, the size is 0, a scale is not positive, or the type is not `f32` or `f64`.
pub fn resize_bicubic(x: &Tensor, size: (usize, usize), config: BicubicConfig) -> Result<Tensor> {
    let x = x.permute((0, 2, 3, 1))?;
    resize_channels_last(&x, size, config)?.permute((0, 3, 1, 2))?.contiguous()
}

/// Position embeddings `(1, P + H·W, D)` for a `grid` (rows, columns) of `H × W` patches at another `size`
/// `H' × W'`: `(1, P + H'·W', D)`.
///
/// The `P` first ones, those of a class token and registers, stay as they are, and so does everything if the size is
/// that of the grid.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use ssl_nn::{BicubicConfig, interpolate_positions};
///
/// let positions = Tensor::ones((1, 1 + 14 * 14, 8), DType::F32, &Device::Cpu)?;
/// // As DINO calls it for crops of 96 pixels in patches of 16:
/// let scale = Some((6.1 / 14.0, 6.1 / 14.0));
/// let config = BicubicConfig { scale, ..Default::default() };
/// assert_eq!(interpolate_positions(&positions, (14, 14), (6, 6), config)?.dims(), [1, 37, 8]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If there are fewer positions than the grid has patches, or as [`resize_bicubic`].
pub fn interpolate_positions(
    positions: &Tensor,
    grid: (usize, usize),
    size: (usize, usize),
    config: BicubicConfig,
) -> Result<Tensor> {
    let (batch, tokens, dim) = positions.dims3()?;
    let patches = grid.0 * grid.1;
    if tokens < patches {
        bail!(
            "interpolate positions: a grid of {}x{} needs {patches} positions, got {tokens}",
            grid.0,
            grid.1
        );
    }
    if size == grid {
        return Ok(positions.clone());
    }
    let prefix = tokens - patches;
    let images = positions.narrow(1, prefix, patches)?.reshape((batch, grid.0, grid.1, dim))?;
    let resized = resize_channels_last(&images, size, config)?.reshape((batch, size.0 * size.1, dim))?;
    if prefix == 0 { Ok(resized) } else { Tensor::cat(&[&positions.narrow(1, 0, prefix)?, &resized], 1) }
}

fn resize_channels_last(x: &Tensor, size: (usize, usize), config: BicubicConfig) -> Result<Tensor> {
    let (batch, h, w, channels) = x.dims4()?;
    if h * w * channels == 0 || size.0 * size.1 == 0 {
        bail!("bicubic: {h}x{w} pixels of {channels} channels cannot become {}x{}", size.0, size.1);
    }
    let (scale_h, scale_w) = config.scale.unwrap_or((size.0 as f64 / h as f64, size.1 as f64 / w as f64));
    for scale in [scale_h, scale_w] {
        if !(scale > 0.0 && scale.is_finite()) {
            bail!("bicubic: scale is {scale}, must be positive");
        }
    }
    let rows = Weights::new(h, size.0, scale_h, config.antialias);
    let columns = Weights::new(w, size.1, scale_w, config.antialias);
    if !x.device().is_cpu() {
        return composite(x, &rows, &columns);
    }
    let x = x.contiguous()?;
    dispatch!(x.dtype(), "bicubic", T => {
        let y = resample(reader(&x).slice::<T>()?, channels, &rows, &columns);
        let (rows, columns) = (Arc::new(rows.transposed()), Arc::new(columns.transposed()));
        let input = x.clone();
        node("bicubic", &[&x], (y, (batch, size.0, size.1, channels)), move |_, dy| {
            let dx = resample(reader(dy).slice::<T>()?, channels, &rows, &columns);
            Ok(vec![gradient(dx, &input)?])
        })
    })
}

/// `Σ rows(o, i) · columns(p, j) · x(i, j)` for all outputs `(o, p)` and channels of each image.
fn resample<T: Element>(x: &[T], channels: usize, rows: &Weights, columns: &Weights) -> Vec<T> {
    let (image, out_row) = (rows.inputs * columns.inputs * channels, columns.taps.len() * channels);
    let mut y = vec![T::ZERO; x.len() / image * rows.taps.len() * out_row];
    y.par_chunks_mut(out_row).enumerate().for_each(|(o, y)| {
        let (x, o) = (&x[o / rows.taps.len() * image..][..image], o % rows.taps.len());
        vectorised!({
            for (y, columns_of) in y.chunks_exact_mut(channels).zip(&columns.taps) {
                for (i, row) in &rows.taps[o] {
                    for (j, column) in columns_of {
                        let weight = T::from_f64(row * column);
                        let pixel = &x[(i * columns.inputs + j) * channels..][..channels];
                        y.iter_mut().zip(pixel).for_each(|(y, x)| *y += weight * *x);
                    }
                }
            }
        });
    });
    y
}

/// Two products with the matrices of the weights, for devices without a kernel of ours.
fn composite(x: &Tensor, rows: &Weights, columns: &Weights) -> Result<Tensor> {
    let matrix = |weights: &Weights| {
        let dense = Tensor::from_vec(weights.dense(), (weights.taps.len(), weights.inputs), &Device::Cpu)?;
        dense.to_dtype(x.dtype())?.to_device(x.device())
    };
    let x = x.permute((0, 3, 1, 2))?.contiguous()?.broadcast_matmul(&matrix(columns)?.t()?)?;
    matrix(rows)?.broadcast_matmul(&x)?.permute((0, 2, 3, 1))?.contiguous()
}

/// The weights of one axis: for each output the inputs that it is made of.
struct Weights {
    inputs: usize,
    taps: Vec<Vec<(usize, f64)>>,
}

impl Weights {
    fn new(inputs: usize, outputs: usize, scale: f64, antialias: bool) -> Self {
        let taps = if antialias { smooth } else { sharp };
        Self { inputs, taps: (0..outputs).map(|o| taps(o as f64 + 0.5, inputs, 1.0 / scale)).collect() }
    }

    /// The weights of the way back.
    fn transposed(&self) -> Self {
        let mut taps = vec![Vec::new(); self.inputs];
        for (o, inputs) in self.taps.iter().enumerate() {
            inputs.iter().for_each(|(i, weight)| taps[*i].push((o, *weight)));
        }
        Self { inputs: self.taps.len(), taps }
    }

    /// As a matrix `(outputs, inputs)`.
    fn dense(&self) -> Vec<f64> {
        let mut matrix = vec![0.0; self.taps.len() * self.inputs];
        for (row, taps) in matrix.chunks_exact_mut(self.inputs).zip(&self.taps) {
            taps.iter().for_each(|(i, weight)| row[*i] += weight);
        }
        matrix
    }
}

/// The four inputs around the point, those beyond the border being those at it.
fn sharp(centre: f64, inputs: usize, step: f64) -> Vec<(usize, f64)> {
    let point = centre * step - 0.5;
    let first = point.floor() - 1.0;
    let weight = |i: f64| (i.clamp(0.0, inputs as f64 - 1.0) as usize, cubic(point - i, -0.75));
    (0..4).map(|k| weight(first + f64::from(k))).collect()
}

/// All inputs under a kernel as wide as the step, weighted so that they sum to 1.
fn smooth(centre: f64, inputs: usize, step: f64) -> Vec<(usize, f64)> {
    let (point, stretch) = (centre * step, step.max(1.0));
    let bound = |x: f64| (x + 0.5).clamp(0.0, inputs as f64) as usize;
    let range = bound(point - 2.0 * stretch)..bound(point + 2.0 * stretch);
    let weight = |i: usize| cubic((i as f64 + 0.5 - point) / stretch, -0.5);
    let sum: f64 = range.clone().map(weight).sum();
    range.map(|i| (i, weight(i) / sum)).collect()
}

/// The cubic convolution kernel (Keys, 1981), which is 0 from a distance of 2 on.
fn cubic(x: f64, a: f64) -> f64 {
    match x.abs() {
        x if x <= 1.0 => ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0,
        x if x < 2.0 => ((x - 5.0) * x + 8.0) * x * a - 4.0 * a,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use candle_core::DType;

    use super::*;

    #[test]
    fn the_path_for_other_devices_agrees() {
        let init = crate::Init::Uniform { bound: 1.0 };
        let x = init.sample(&[2, 5, 4, 3], 5, "x", DType::F64, &Device::Cpu).unwrap();
        for antialias in [false, true] {
            for size in [(7, 9), (2, 3)] {
                let config = BicubicConfig { antialias, scale: None };
                let ours = resize_channels_last(&x, size, config).unwrap();
                let weights = |inputs: usize, outputs: usize| {
                    Weights::new(inputs, outputs, outputs as f64 / inputs as f64, antialias)
                };
                let theirs = composite(&x, &weights(5, size.0), &weights(4, size.1)).unwrap();
                let gap = (ours - theirs).unwrap().abs().unwrap().max_all().unwrap();
                assert!(gap.to_scalar::<f64>().unwrap() < 1e-14, "{gap}");
            }
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let x = Tensor::zeros((1, 5, 3), DType::F32, &Device::Cpu).unwrap();
        let message = |grid, size, scale| {
            let config = BicubicConfig { scale, ..Default::default() };
            interpolate_positions(&x, grid, size, config).unwrap_err().to_string()
        };
        assert!(message((2, 3), (4, 4), None).contains("a grid of 2x3 needs 6 positions, got 5"));
        assert!(message((2, 2), (0, 4), None).contains("cannot become 0x4"));
        assert!(message((2, 2), (4, 4), Some((0.0, 1.0))).contains("scale is 0, must be positive"));
    }

    #[test]
    fn the_own_size_changes_nothing() {
        let x = Tensor::new(&[[[1f64], [2.0], [3.0]]], &Device::Cpu).unwrap();
        let config = BicubicConfig::default();
        let y = interpolate_positions(&x, (1, 2), (1, 2), config).unwrap();
        assert_eq!(y.to_vec3::<f64>().unwrap(), [[[1.0], [2.0], [3.0]]]);
    }
}
