//! Max pooling with padding, and global average pooling.

use candle_core::{Result, Tensor, WithDType, bail};
use rayon::prelude::*;

use crate::graph::{gradient, node};
use crate::kernel::vectorised;
use crate::storage::{Element, dispatch, reader};

/// Largest value of each `kernel × kernel` window, as `torch.nn.functional.max_pool2d`.
///
/// Padding never wins. Of equal values the first in row order gets the gradient. NaN wins over every number.
///
/// # Shapes
/// `(B, C, H, W)` to `(B, C, (H + 2·padding − kernel) / stride + 1, …)`, rounded down; `f32` or `f64`.
///
/// # Errors
/// If `x` is not of rank 4, the stride is 0, the padding is more than half the kernel, or the kernel does not fit.
pub fn max_pool2d(x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let x = x.permute((0, 2, 3, 1))?;
    max_pool2d_channels_last(&x, kernel, stride, padding)?.permute((0, 3, 1, 2))?.contiguous()
}

/// [`max_pool2d`] of `(B, H, W, C)`.
///
/// # Errors
/// As [`max_pool2d`].
pub fn max_pool2d_channels_last(x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let (batch, h, w, channels) = x.dims4()?;
    if stride == 0 || 2 * padding > kernel || kernel == 0 || h.min(w) == 0 || h.min(w) + 2 * padding < kernel
    {
        bail!("max_pool2d: kernel {kernel}, stride {stride}, padding {padding} do not fit a {h}x{w} image");
    }
    let output = |size| (size + 2 * padding - kernel) / stride + 1;
    let window = Window { h, w, channels, out_h: output(h), out_w: output(w), kernel, stride, padding };
    if !x.device().is_cpu() {
        return window.composite(&x.permute((0, 3, 1, 2))?)?.permute((0, 2, 3, 1))?.contiguous();
    }
    let x = x.contiguous()?;
    dispatch!(x.dtype(), "max_pool2d", T => {
        let (y, winners) = window.forward(reader(&x).slice::<T>()?);
        let shape = (batch, window.out_h, window.out_w, channels);
        let input = x.clone();
        node("max_pool2d", &[&x], (y, shape), move |_, dy| {
            let dx = window.backward(reader(dy).slice::<T>()?, &winners, input.elem_count());
            Ok(vec![gradient(dx, &input)?])
        })
    })
}

/// Mean over height and width: `(B, C, H, W)` to `(B, C)`.
///
/// # Errors
/// If `x` is not of rank 4.
pub fn global_avg_pool(x: &Tensor) -> Result<Tensor> {
    x.dims4()?;
    x.flatten_from(2)?.mean(2)
}

/// [`global_avg_pool`] of `(B, H, W, C)`.
///
/// # Errors
/// If `x` is not of rank 4, or has no pixels.
pub fn global_avg_pool_channels_last(x: &Tensor) -> Result<Tensor> {
    let (batch, h, w, channels) = x.dims4()?;
    if h == 0 || w == 0 {
        bail!("global average pool: an image of {h}x{w} pixels has no mean");
    }
    if !x.device().is_cpu() {
        return x.flatten(1, 2)?.mean(1);
    }
    let x = x.contiguous()?;
    dispatch!(x.dtype(), "global average pool", T => {
        let share = T::from_f64(1.0 / (h * w) as f64);
        let mut y = vec![T::ZERO; batch * channels];
        let image = (h * w * channels).max(1);
        y.par_chunks_mut(channels.max(1)).zip(reader(&x).slice::<T>()?.par_chunks(image)).for_each(|(y, x)| {
            vectorised!({
                for pixel in x.chunks_exact(channels) {
                    y.iter_mut().zip(pixel).for_each(|(y, x)| *y += *x);
                }
                y.iter_mut().for_each(|y| *y *= share);
            });
        });
        let input = x.clone();
        node("global average pool", &[&x], (y, (batch, channels)), move |_, dy| {
            let mut dx = vec![T::ZERO; input.elem_count()];
            dx.par_chunks_mut(image).zip(reader(dy).slice::<T>()?.par_chunks(channels.max(1))).for_each(|(dx, dy)| {
                for pixel in dx.chunks_exact_mut(channels) {
                    pixel.iter_mut().zip(dy).for_each(|(dx, dy)| *dx = *dy * share);
                }
            });
            Ok(vec![gradient(dx, &input)?])
        })
    })
}

#[derive(Clone, Copy)]
struct Window {
    h: usize,
    w: usize,
    channels: usize,
    out_h: usize,
    out_w: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
}

impl Window {
    /// Rows or columns of the image that the window of output `o` covers.
    fn covers(&self, o: usize, size: usize) -> std::ops::Range<usize> {
        let start = o * self.stride;
        start.saturating_sub(self.padding)..(start + self.kernel - self.padding).min(size)
    }

    fn image_len(&self) -> usize {
        (self.h * self.w * self.channels).max(1)
    }

    fn output_len(&self) -> usize {
        (self.out_h * self.out_w * self.channels).max(1)
    }

    /// The largest elements, and for each the pixel of the image that it came from.
    fn forward<T: Element>(&self, x: &[T]) -> (Vec<T>, Vec<u32>) {
        let n = x.len() / self.image_len() * self.output_len();
        let (mut y, mut winners) = (vec![T::ZERO; n], vec![0; n]);
        y.par_chunks_mut(self.output_len())
            .zip(winners.par_chunks_mut(self.output_len()))
            .zip(x.par_chunks(self.image_len()))
            .for_each(|((y, winners), x)| {
                let outputs = y.chunks_exact_mut(self.channels).zip(winners.chunks_exact_mut(self.channels));
                for (o, (y, winners)) in outputs.enumerate() {
                    vectorised!(self.pool(o, x, y, winners));
                }
            });
        (y, winners)
    }

    /// One window, for all channels of an image.
    #[inline(always)]
    fn pool<T: Element>(&self, o: usize, x: &[T], y: &mut [T], winners: &mut [u32]) {
        let (rows, columns) = (self.covers(o / self.out_w, self.h), self.covers(o % self.out_w, self.w));
        let first = rows.start * self.w + columns.start;
        y.copy_from_slice(&x[first * self.channels..][..self.channels]);
        winners.fill(first as u32);
        for i in rows.flat_map(|row| columns.clone().map(move |column| row * self.w + column)) {
            let pixel = &x[i * self.channels..][..self.channels];
            for ((y, winner), v) in y.iter_mut().zip(winners.iter_mut()).zip(pixel) {
                // A comparison with NaN is false both ways; `v != v` is how a generic scalar asks for NaN.
                #[allow(clippy::eq_op)]
                let wins = (*v > *y) | ((*v != *v) & (*y == *y));
                *y = if wins { *v } else { *y };
                *winner = if wins { i as u32 } else { *winner };
            }
        }
    }

    fn backward<T: Element>(&self, dy: &[T], winners: &[u32], inputs: usize) -> Vec<T> {
        let mut dx = vec![T::ZERO; inputs];
        dx.par_chunks_mut(self.image_len())
            .zip(winners.par_chunks(self.output_len()))
            .zip(dy.par_chunks(self.output_len()))
            .for_each(|((dx, winners), dy)| {
                let pixels = winners.chunks_exact(self.channels).zip(dy.chunks_exact(self.channels));
                for (c, (winner, dy)) in pixels.flat_map(|(w, dy)| w.iter().zip(dy).enumerate()) {
                    dx[*winner as usize * self.channels + c] += *dy;
                }
            });
        dx
    }

    /// The same in candle's operations, for devices without a kernel of ours. Exact for inputs that are nowhere
    /// negative, such as the output of a ReLU, since candle pads with zeros.
    fn composite(&self, x: &Tensor) -> Result<Tensor> {
        let reach = |out: usize| (out - 1) * self.stride + self.kernel;
        let pad = |x: Tensor, dim, size, out: usize| {
            let after = (reach(out)).saturating_sub(size + self.padding);
            x.pad_with_zeros(dim, self.padding, after)
        };
        let x = pad(pad(x.clone(), 2, self.h, self.out_h)?, 3, self.w, self.out_w)?;
        let taps = (0..self.kernel).flat_map(|i| (0..self.kernel).map(move |j| (i, j)));
        let index = |start, out: usize| {
            let last = start + (out - 1) * self.stride;
            Tensor::from_iter((start..=last).step_by(self.stride).map(|i| i as u32), x.device())
        };
        let mut best: Option<Tensor> = None;
        for (i, j) in taps {
            let tap = x.index_select(&index(i, self.out_h)?, 2)?.index_select(&index(j, self.out_w)?, 3)?;
            best = Some(match best {
                Some(best) => best.maximum(&tap)?,
                None => tap,
            });
        }
        best.ok_or_else(|| candle_core::Error::Msg("max_pool2d: empty kernel".into()))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;

    #[test]
    fn padding_loses_even_against_negative_values_and_nan_wins() {
        let x = Tensor::full(-2f32, (1, 1, 3, 3), &Device::Cpu).unwrap();
        let y = max_pool2d(&x, 3, 2, 1).unwrap();
        assert_eq!(y.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [-2.0; 4]);
        let x = Tensor::new(&[[[[1f32, f32::NAN], [3., 2.]]]], &Device::Cpu).unwrap();
        assert!(
            max_pool2d(&x, 2, 2, 0).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()[0].is_nan()
        );
    }

    #[test]
    fn images_without_pixels_are_refused() {
        let x = Tensor::zeros((1, 2, 0, 3), DType::F32, &Device::Cpu).unwrap();
        assert!(max_pool2d(&x, 2, 1, 1).unwrap_err().to_string().contains("do not fit a 0x3 image"));
        let last = x.permute((0, 2, 3, 1)).unwrap();
        assert!(global_avg_pool_channels_last(&last).unwrap_err().to_string().contains("0x3 pixels"));
    }

    #[test]
    fn the_first_of_equal_values_gets_the_whole_gradient() {
        let x = Var::ones((1, 1, 4, 4), DType::F64, &Device::Cpu).unwrap();
        let grads = max_pool2d(&x, 2, 2, 0).unwrap().sum_all().unwrap().backward().unwrap();
        let dx = grads.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f64>().unwrap();
        assert_eq!(dx, [1., 0., 1., 0., 0., 0., 0., 0., 1., 0., 1., 0., 0., 0., 0., 0.]);
    }

    #[test]
    fn the_composite_path_agrees_on_what_a_relu_leaves() {
        for (h, w, kernel, stride, padding) in
            [(7, 6, 3, 2, 1), (8, 8, 2, 2, 0), (5, 9, 3, 3, 1), (9, 4, 2, 3, 1)]
        {
            let init = crate::Init::Uniform { bound: 1.0 };
            let x = init.sample(&[2, 3, h, w], 5, "x", DType::F64, &Device::Cpu).unwrap().relu().unwrap();
            let output = |size: usize| (size + 2 * padding - kernel) / stride + 1;
            let window =
                Window { h, w, channels: 3, out_h: output(h), out_w: output(w), kernel, stride, padding };
            let a = max_pool2d(&x, kernel, stride, padding).unwrap().flatten_all().unwrap();
            let b = window.composite(&x).unwrap().flatten_all().unwrap();
            assert_eq!(a.to_vec1::<f64>().unwrap(), b.to_vec1::<f64>().unwrap());
        }
    }
}
