//! Average pooling over windows.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::graph::{gradient, node};
use crate::storage::{Element, dispatch, reader};

/// Mean of each `kernel × kernel` window, as `torch.nn.functional.avg_pool2d`.
///
/// Padding counts as zeros in the mean, PyTorch's default. Rows and columns that are left over behind the last window
/// are not used.
///
/// # Shapes
/// `(B, C, H, W)` to `(B, C, (H + 2·padding − kernel) / stride + 1, …)`, rounded down; `f32` or `f64`.
///
/// ```
/// use candle_core::{Device, Tensor};
///
/// let x = Tensor::new(&[[[[1f32, 3.0, 9.0], [5.0, 7.0, 9.0]]]], &Device::Cpu)?;
/// let y = ssl_nn::avg_pool2d(&x, 2, 2, 0)?;
/// assert_eq!(y.flatten_all()?.to_vec1::<f32>()?, [4.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// If `x` is not of rank 4, the stride is 0, the padding is more than half the kernel, or the kernel does not fit.
pub fn avg_pool2d(x: &Tensor, kernel: usize, stride: usize, padding: usize) -> Result<Tensor> {
    let (batch, channels, h, w) = x.dims4()?;
    if stride == 0 || 2 * padding > kernel || kernel == 0 || h.min(w) == 0 || h.min(w) + 2 * padding < kernel
    {
        bail!("avg_pool2d: kernel {kernel}, stride {stride}, padding {padding} do not fit a {h}x{w} image");
    }
    let output = |size| (size + 2 * padding - kernel) / stride + 1;
    let window = Window { h, w, out_h: output(h), out_w: output(w), kernel, stride, padding };
    if !x.device().is_cpu() {
        return window.composite(x);
    }
    let x = x.contiguous()?;
    dispatch!(x.dtype(), "avg_pool2d", T => {
        let y = window.forward(reader(&x).slice::<T>()?);
        let shape = (batch, channels, window.out_h, window.out_w);
        let input = x.clone();
        node("avg_pool2d", &[&x], (y, shape), move |_, dy| {
            let dx = window.backward(reader(dy).slice::<T>()?);
            Ok(vec![gradient(dx, &input)?])
        })
    })
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

    fn share<T: Element>(&self) -> T {
        T::from_f64(1.0 / (self.kernel * self.kernel) as f64)
    }

    fn forward<T: Element>(&self, x: &[T]) -> Vec<T> {
        let (plane, outputs) = (self.h * self.w, self.out_h * self.out_w);
        let mut y = vec![T::ZERO; x.len() / plane * outputs];
        y.par_chunks_mut(outputs).zip(x.par_chunks(plane)).for_each(|(y, x)| {
            let mut sums = vec![T::ZERO; self.w];
            for (o, y) in y.chunks_exact_mut(self.out_w).enumerate() {
                sums.fill(T::ZERO);
                for row in self.covers(o, self.h) {
                    sums.iter_mut().zip(&x[row * self.w..]).for_each(|(sum, x)| *sum += *x);
                }
                for (o, y) in y.iter_mut().enumerate() {
                    sums[self.covers(o, self.w)].iter().for_each(|sum| *y += *sum);
                    *y *= self.share();
                }
            }
        });
        y
    }

    fn backward<T: Element>(&self, dy: &[T]) -> Vec<T> {
        let (plane, outputs) = (self.h * self.w, self.out_h * self.out_w);
        let mut dx = vec![T::ZERO; dy.len() / outputs * plane];
        dx.par_chunks_mut(plane).zip(dy.par_chunks(outputs)).for_each(|(dx, dy)| {
            let mut sums = vec![T::ZERO; self.w];
            for (o, dy) in dy.chunks_exact(self.out_w).enumerate() {
                sums.fill(T::ZERO);
                for (o, dy) in dy.iter().enumerate() {
                    sums[self.covers(o, self.w)].iter_mut().for_each(|sum| *sum += *dy * self.share());
                }
                for row in self.covers(o, self.h) {
                    dx[row * self.w..].iter_mut().zip(&sums).for_each(|(dx, sum)| *dx += *sum);
                }
            }
        });
        dx
    }

    /// Two products with the matrices that sum the rows and the columns of a window, for devices without a kernel of
    /// ours.
    fn composite(&self, x: &Tensor) -> Result<Tensor> {
        let matrix = |out: usize, size: usize| {
            let weight =
                |o, i| if self.covers(o, size).contains(&i) { 1.0 / self.kernel as f64 } else { 0.0 };
            let weights: Vec<f64> = (0..out * size).map(|i| weight(i / size, i % size)).collect();
            Tensor::from_vec(weights, (out, size), &candle_core::Device::Cpu)?
                .to_dtype(x.dtype())?
                .to_device(x.device())
        };
        let columns = x.contiguous()?.broadcast_matmul(&matrix(self.out_w, self.w)?.t()?)?;
        matrix(self.out_h, self.h)?.broadcast_matmul(&columns)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;

    #[test]
    fn what_does_not_fit_is_refused() {
        let x = |h| Tensor::zeros((1, 2, h, 3), DType::F32, &Device::Cpu).unwrap();
        let message =
            |h, kernel, stride, padding| avg_pool2d(&x(h), kernel, stride, padding).unwrap_err().to_string();
        assert!(message(3, 2, 0, 0).contains("stride 0"));
        assert!(message(3, 2, 1, 2).contains("padding 2"));
        assert!(message(3, 4, 1, 0).contains("kernel 4"));
        assert!(message(0, 2, 1, 1).contains("0x3 image"));
    }

    #[test]
    fn the_path_for_other_devices_agrees() {
        for (h, w, kernel, stride, padding) in [(7, 6, 3, 2, 1), (8, 8, 2, 2, 0), (5, 9, 4, 3, 2)] {
            let init = crate::Init::Uniform { bound: 1.0 };
            let x = init.sample(&[2, 3, h, w], 5, "x", DType::F64, &Device::Cpu).unwrap();
            let output = |size: usize| (size + 2 * padding - kernel) / stride + 1;
            let window = Window { h, w, out_h: output(h), out_w: output(w), kernel, stride, padding };
            let ours = avg_pool2d(&x, kernel, stride, padding).unwrap();
            let gap = (ours - window.composite(&x).unwrap()).unwrap().abs().unwrap().max_all().unwrap();
            assert!(gap.to_scalar::<f64>().unwrap() < 1e-14, "{gap}");
        }
    }
}
