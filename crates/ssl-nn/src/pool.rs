//! Max pooling with padding, and global average pooling.

use std::sync::OnceLock;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType, bail};
use rayon::prelude::*;

use crate::storage::{Element, dispatch, reader, slice};

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
    let (_, _, h, w) = x.dims4()?;
    if stride == 0 || 2 * padding > kernel || kernel == 0 || h.min(w) + 2 * padding < kernel {
        bail!("max_pool2d: kernel {kernel}, stride {stride}, padding {padding} do not fit a {h}x{w} image");
    }
    let output = |size| (size + 2 * padding - kernel) / stride + 1;
    let window = Window { h, w, out_h: output(h), out_w: output(w), kernel, stride, padding };
    if !x.device().is_cpu() {
        return window.composite(x);
    }
    x.contiguous()?.apply_op1(MaxPool { window, winners: OnceLock::new() })
}

/// Mean over height and width: `(B, C, H, W)` to `(B, C)`.
///
/// # Errors
/// If `x` is not of rank 4.
pub fn global_avg_pool(x: &Tensor) -> Result<Tensor> {
    x.dims4()?;
    x.flatten_from(2)?.mean(2)
}

#[derive(Clone, Copy)]
struct Window {
    h: usize,
    w: usize,
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

    /// Value and position of the largest element of each window of one plane.
    fn pool<T: Element>(&self, plane: &[T], out: &mut [T], winners: &mut [u32]) {
        for (o, (out, winner)) in out.iter_mut().zip(winners).enumerate() {
            let (rows, cols) = (self.covers(o / self.out_w, self.h), self.covers(o % self.out_w, self.w));
            let mut best = rows.start * self.w + cols.start;
            for i in rows.flat_map(|y| cols.clone().map(move |x| y * self.w + x)) {
                // A comparison with NaN is false both ways; `v != v` is how a generic scalar asks for NaN.
                #[allow(clippy::eq_op)]
                if plane[i] > plane[best] || (plane[i] != plane[i] && plane[best] == plane[best]) {
                    best = i;
                }
            }
            (*out, *winner) = (plane[best], best as u32);
        }
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

struct MaxPool {
    window: Window,
    /// For each output the position of its value in the plane; set by the forward pass.
    winners: OnceLock<Vec<u32>>,
}

impl CustomOp1 for MaxPool {
    fn name(&self) -> &'static str {
        "ssl-max-pool2d"
    }

    fn cpu_fwd(&self, x: &CpuStorage, at: &Layout) -> Result<(CpuStorage, Shape)> {
        let w = &self.window;
        let (batch, channels, _, _) = at.shape().dims4()?;
        let outputs = w.out_h * w.out_w;
        dispatch!(x.dtype(), "max-pool2d", T => {
            let mut y = vec![T::ZERO; batch * channels * outputs];
            let mut winners = vec![0; y.len()];
            y.par_chunks_mut(outputs)
                .zip(winners.par_chunks_mut(outputs))
                .zip(slice::<T>(x, at)?.par_chunks(w.h * w.w))
                .for_each(|((y, winners), plane)| w.pool(plane, y, winners));
            let _ = self.winners.set(winners);
            Ok((T::to_cpu_storage_owned(y), Shape::from((batch, channels, w.out_h, w.out_w))))
        })
    }

    fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let Some(winners) = self.winners.get() else { bail!("max_pool2d: backward before forward") };
        let (w, grad) = (&self.window, grad.contiguous()?);
        let outputs = w.out_h * w.out_w;
        dispatch!(x.dtype(), "max-pool2d", T => {
            let dy = reader(&grad);
            let mut dx = vec![T::ZERO; x.elem_count()];
            dx.par_chunks_mut(w.h * w.w)
                .zip(winners.par_chunks(outputs))
                .zip(dy.slice::<T>()?.par_chunks(outputs))
                .for_each(|((dx, winners), dy)| {
                    winners.iter().zip(dy).for_each(|(winner, dy)| dx[*winner as usize] += *dy);
                });
            Tensor::from_vec(dx, x.shape(), x.device()).map(Some)
        })
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
            let window = Window { h, w, out_h: output(h), out_w: output(w), kernel, stride, padding };
            let a = max_pool2d(&x, kernel, stride, padding).unwrap().flatten_all().unwrap();
            let b = window.composite(&x).unwrap().flatten_all().unwrap();
            assert_eq!(a.to_vec1::<f64>().unwrap(), b.to_vec1::<f64>().unwrap());
        }
    }
}
