//! Squeeze-and-excitation (Hu et al., 2018, <https://arxiv.org/abs/1709.01507>): every image weighs its channels by a
//! gate that it computes from their means.
//!
//! On the CPU a [`SqueezeExcitation`] is one operation by itself, and a part of one inside of a residual block.

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::activation::rectify;
use crate::conv2d::Conv2dConfig;
use crate::convolve::{forward, input_gradient, weight_gradient};
use crate::geometry::Geometry;
use crate::graph::{gradient, node};
use crate::init::{Fan, Init};
use crate::input::Input;
use crate::kernel::vectorised;
use crate::params::Scope;
use crate::real::Real;
use crate::storage::{dispatch, reader};

/// `x · σ(fc2(relu(fc1(mean(x)))))`, the mean over the pixels and the product channel by channel.
///
/// Names and shapes are those of `torchvision.ops.SqueezeExcitation`, whose two layers are 1x1 convolutions with bias.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use ssl_nn::{Params, SqueezeExcitation};
///
/// let params = Params::new(0, DType::F32, &Device::Cpu);
/// let layer = SqueezeExcitation::new(8, 2, &params.root().pp("se"))?;
/// let y = layer.forward(&Tensor::ones((1, 5, 5, 8), DType::F32, &Device::Cpu)?)?;
/// assert_eq!(y.dims(), [1, 5, 5, 8]);
/// assert_eq!(params.names(), ["se.fc1.weight", "se.fc1.bias", "se.fc2.weight", "se.fc2.bias"]);
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct SqueezeExcitation {
    /// Weight `(squeezed, channels, 1, 1)` and bias of `fc1`, weight `(channels, squeezed, 1, 1)` and bias of `fc2`.
    tensors: [Tensor; 4],
}

impl SqueezeExcitation {
    /// A gate over `channels` channels that goes through `squeezed` values; weights start Kaiming-normal over the fan-out
    /// as those of torchvision's RegNet, biases as PyTorch's.
    ///
    /// # Errors
    /// If one of the sizes is 0, or a name is taken.
    pub fn new(channels: usize, squeezed: usize, scope: &Scope) -> Result<Self> {
        if channels == 0 || squeezed == 0 {
            bail!(
                "squeeze-and-excitation: {channels} channels through {squeezed} values, both must be at least 1"
            );
        }
        let layer = |name: &str, c_in: usize, c_out: usize| {
            let scope = scope.pp(name);
            let weight = scope.trainable("weight", (c_out, c_in, 1, 1), Init::KaimingNormal(Fan::Out))?;
            let bias = scope.trainable("bias", c_out, Init::TorchDefault { fan_in: c_in })?;
            Ok::<_, candle_core::Error>([weight, bias])
        };
        let ([w1, b1], [w2, b2]) = (layer("fc1", channels, squeezed)?, layer("fc2", squeezed, channels)?);
        Ok(Self { tensors: [w1, b1, w2, b2] })
    }

    /// `(B, H, W, C)` to the same shape, channels last.
    ///
    /// # Errors
    /// If `x` is not of rank 4, has another number of channels or no pixels.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let sizes = self.sizes(x.dims4()?)?;
        if !x.device().is_cpu() {
            return self.composite(x);
        }
        let x = x.contiguous()?;
        dispatch!(x.dtype(), "squeeze-excitation", T => {
            let inputs = [x.clone(), self.part(0)?, self.part(1)?, self.part(2)?, self.part(3)?];
            let mut y = reader(&x).slice::<T>()?.to_vec();
            let kept = sizes.excite(&mut y, &inputs[1..])?;
            let held = inputs.clone();
            node("squeeze-excitation", &inputs.each_ref(), (y, x.shape()), move |_, dy| {
                let (x, mut dx) = (reader(&held[0]), reader(dy).slice::<T>()?.to_vec());
                let parts = sizes.gradients(x.slice()?, &mut dx, &kept, &held[1..])?;
                let all = std::iter::once(dx).chain(parts).zip(&held);
                all.map(|(data, input)| gradient(data, input)).collect()
            })
        })
    }

    /// The same in candle's operations, for devices without a kernel of ours.
    pub(crate) fn composite(&self, x: &Tensor) -> Result<Tensor> {
        let (batch, _, _, channels) = x.dims4()?;
        let [w1, b1, w2, b2] = &self.tensors;
        let layer = |x: &Tensor, w: &Tensor, b: &Tensor| x.matmul(&w.flatten_from(1)?.t()?)?.broadcast_add(b);
        let hidden = layer(&x.flatten(1, 2)?.mean(1)?, w1, b1)?.relu()?;
        let gate = ((layer(&hidden, w2, b2)?.neg()?.exp()? + 1.0)?.recip())?;
        x.broadcast_mul(&gate.reshape((batch, 1, 1, channels))?)
    }

    /// The sizes for an image `(B, H, W, C)`.
    pub(crate) fn sizes(&self, (batch, h, w, channels): (usize, usize, usize, usize)) -> Result<Sizes> {
        let (squeezed, expected, _, _) = self.tensors[0].dims4()?;
        if channels != expected || batch * h * w == 0 {
            bail!(
                "squeeze-and-excitation: expected ({expected} channels) of at least one pixel, got {batch} images of \
                 {h}x{w} pixels and {channels} channels"
            );
        }
        let layer =
            |c_in, c_out| Geometry::new((batch, c_in, 1, 1), (c_out, c_in, 1, 1), Conv2dConfig::default());
        Ok(Sizes {
            space: h * w,
            channels,
            first: layer(channels, squeezed)?,
            second: layer(squeezed, channels)?,
        })
    }

    /// Tensor `i` of the four, contiguous.
    pub(crate) fn part(&self, i: usize) -> Result<Tensor> {
        self.tensors[i].contiguous()
    }
}

/// The sizes of one call. The layers are convolutions of images of one pixel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Pixels of an image.
    space: usize,
    channels: usize,
    first: Geometry,
    second: Geometry,
}

/// What the backward pass needs beside the input.
pub(crate) struct Excitation<T> {
    /// `(B, C)`.
    means: Vec<T>,
    /// After the ReLU, `(B, S)`.
    hidden: Vec<T>,
    /// After the sigmoid, `(B, C)`.
    gate: Vec<T>,
}

impl Sizes {
    fn image(&self) -> usize {
        self.space * self.channels
    }

    /// Weighs the channels of `x`, where it lies.
    pub(crate) fn excite<T: Real>(&self, x: &mut [T], tensors: &[Tensor]) -> Result<Excitation<T>> {
        let mut means = self.sums(x, x, |x, _| x);
        let share = T::from_f64(1.0 / self.space as f64);
        means.iter_mut().for_each(|mean| *mean *= share);
        let layer = |g: &Geometry, x: &[T], i: usize| -> Result<Vec<T>> {
            let mut y = forward(g, x, reader(&tensors[i]).slice::<T>()?);
            let bias = reader(&tensors[i + 1]);
            let bias = bias.slice::<T>()?;
            y.chunks_exact_mut(bias.len()).for_each(|y| y.iter_mut().zip(bias).for_each(|(y, b)| *y += *b));
            Ok(y)
        };
        let mut hidden = layer(&self.first, &means, 0)?;
        hidden.iter_mut().for_each(|v| *v = rectify(*v));
        let mut gate = layer(&self.second, &hidden, 2)?;
        gate.iter_mut().for_each(|v| *v = T::ONE / (T::ONE + (T::ZERO - *v).exp()));
        let kept = Excitation { means, hidden, gate };
        self.weigh(x, &kept);
        Ok(kept)
    }

    /// Multiplies each channel of `x` by its gate.
    pub(crate) fn weigh<T: Real>(&self, x: &mut [T], kept: &Excitation<T>) {
        x.par_chunks_mut(self.image()).zip(kept.gate.par_chunks(self.channels)).for_each(|(x, gate)| {
            vectorised!({
                for pixel in x.chunks_exact_mut(self.channels) {
                    pixel.iter_mut().zip(gate).for_each(|(x, gate)| *x *= *gate);
                }
            });
        });
    }

    /// Turns the gradient of the output into that of `x`, the input of [`Self::excite`], and returns those of its four
    /// tensors.
    pub(crate) fn gradients<T: Real>(
        &self,
        x: &[T],
        dy: &mut [T],
        kept: &Excitation<T>,
        tensors: &[Tensor],
    ) -> Result<[Vec<T>; 4]> {
        let mut d_gate = self.sums(dy, x, |dy, x| dy * x);
        d_gate.iter_mut().zip(&kept.gate).for_each(|(d, gate)| *d *= *gate * (T::ONE - *gate));
        let mut d_hidden = input_gradient(&self.second, reader(&tensors[2]).slice()?, &d_gate);
        d_hidden.iter_mut().zip(&kept.hidden).for_each(|(d, hidden)| {
            if *hidden == T::ZERO {
                *d = T::ZERO;
            }
        });
        let d_means = input_gradient(&self.first, reader(&tensors[0]).slice()?, &d_hidden);
        let share = T::from_f64(1.0 / self.space as f64);
        let gates = kept.gate.par_chunks(self.channels).zip(d_means.par_chunks(self.channels));
        dy.par_chunks_mut(self.image()).zip(gates).for_each(|(dy, (gate, d_mean))| {
            vectorised!({
                for pixel in dy.chunks_exact_mut(self.channels) {
                    for ((dy, gate), d_mean) in pixel.iter_mut().zip(gate).zip(d_mean) {
                        *dy = *dy * *gate + *d_mean * share;
                    }
                }
            });
        });
        Ok([
            weight_gradient(&self.first, Input::plain(&kept.means), &d_hidden),
            column_sums(&d_hidden, self.first.c_out),
            weight_gradient(&self.second, Input::plain(&kept.hidden), &d_gate),
            column_sums(&d_gate, self.channels),
        ])
    }

    /// The sums of `f(a, b)` over the pixels of each image: `(B, C)`.
    fn sums<T: Real>(&self, a: &[T], b: &[T], f: impl Fn(T, T) -> T + Copy + Send + Sync) -> Vec<T> {
        let mut sums = vec![T::ZERO; a.len() / self.space];
        let images = a.par_chunks(self.image()).zip(b.par_chunks(self.image()));
        sums.par_chunks_mut(self.channels).zip(images).for_each(|(sums, (a, b))| {
            vectorised!({
                for (a, b) in a.chunks_exact(self.channels).zip(b.chunks_exact(self.channels)) {
                    for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
                        *sum += f(*a, *b);
                    }
                }
            });
        });
        sums
    }
}

/// The sum of all rows of `columns` values.
fn column_sums<T: Real>(x: &[T], columns: usize) -> Vec<T> {
    let mut sums = vec![T::ZERO; columns];
    for row in x.chunks_exact(columns) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += *x);
    }
    sums
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};

    use super::*;
    use crate::Params;

    #[test]
    fn what_does_not_fit_is_refused() {
        let params = Params::new(0, DType::F32, &Device::Cpu);
        let error = SqueezeExcitation::new(4, 0, &params.root()).unwrap_err().to_string();
        assert!(error.contains("4 channels through 0 values"), "{error}");
        let layer = SqueezeExcitation::new(4, 2, &params.root()).unwrap();
        for shape in [[2, 3, 3, 5], [2, 0, 3, 4]] {
            let x = Tensor::zeros(&shape, DType::F32, &Device::Cpu).unwrap();
            let error = layer.forward(&x).unwrap_err().to_string();
            assert!(error.contains("expected (4 channels)"), "{error}");
        }
        assert!(layer.forward(&Tensor::zeros((2, 4), DType::F32, &Device::Cpu).unwrap()).is_err());
    }

    #[test]
    fn a_gate_without_weights_halves_the_image() {
        let params = Params::new(0, DType::F32, &Device::Cpu);
        let layer = SqueezeExcitation::new(3, 2, &params.root()).unwrap();
        for (_, var) in params.trainable() {
            var.set(&var.zeros_like().unwrap()).unwrap();
        }
        let x = Tensor::full(5f32, (2, 3, 4, 3), &Device::Cpu).unwrap();
        let y = layer.forward(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(y.iter().all(|y| *y == 2.5));
    }

    #[test]
    fn the_path_for_other_devices_agrees() {
        let params = Params::new(3, DType::F64, &Device::Cpu);
        let layer = SqueezeExcitation::new(5, 3, &params.root()).unwrap();
        let x = Init::Normal { std: 1.0 }.sample(&[3, 4, 2, 5], 1, "x", DType::F64, &Device::Cpu).unwrap();
        let values = |y: Tensor| y.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let (ours, theirs) = (values(layer.forward(&x).unwrap()), values(layer.composite(&x).unwrap()));
        ours.iter().zip(theirs).for_each(|(a, b)| assert!((a - b).abs() < 1e-12, "{a} {b}"));
    }
}
