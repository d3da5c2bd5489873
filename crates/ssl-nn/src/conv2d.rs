//! 2-D convolution with a hand-written backward pass.

use candle_core::{Result, Tensor};

use crate::channels_last::{to_channels_first, to_channels_last};
use crate::convolve::{forward, input_gradient, weight_gradient};
use crate::geometry::Geometry;
use crate::graph::node;
use crate::init::{Fan, Init};
use crate::input::Input;
use crate::params::Scope;
use crate::storage::{Element, dispatch, reader};

/// How a convolution slides. Strides, padding and dilation are the same in both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// Step between output positions, at least 1.
    pub stride: usize,
    /// Zeros added on each of the four sides.
    pub padding: usize,
    /// Step between the taps of the kernel, at least 1.
    pub dilation: usize,
    /// Groups of channels that are convolved apart; must divide the channels of both sides.
    pub groups: usize,
}

impl Default for Conv2dConfig {
    fn default() -> Self {
        Self { stride: 1, padding: 0, dilation: 1, groups: 1 }
    }
}

/// Convolution without bias, as in the networks here, where a batch norm always follows.
#[derive(Clone, Debug)]
pub struct Conv2d {
    weight: Tensor,
    config: Conv2dConfig,
}

impl Conv2d {
    /// A convolution with a square kernel; creates `weight` of shape
    /// `(c_out, c_in / groups, kernel, kernel)`,
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
        let shape = (c_out, c_in / config.groups.max(1), kernel, kernel);
        let weight = scope.trainable("weight", shape, Init::KaimingNormal(Fan::Out))?;
        Ok(Self { weight, config })
    }

    pub(crate) fn weight(&self) -> &Tensor {
        &self.weight
    }

    pub(crate) fn config(&self) -> Conv2dConfig {
        self.config
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
/// `x`: `(B, C_in, H, W)`; `weight`: `(C_out, C_in / groups, k_h, k_w)`; result: `(B, C_out, H', W')` with
/// `H' = (H + 2·padding − dilation·(k_h − 1) − 1) / stride + 1`, rounded down. `f32` or `f64`.
///
/// # Errors
/// If the ranks, channels or groups do not fit, if an image has no pixels or channels, if a stride or dilation is 0, or
/// if the kernel is larger than the padded image.
pub fn conv2d(x: &Tensor, weight: &Tensor, config: Conv2dConfig) -> Result<Tensor> {
    let geometry = Geometry::new(x.dims4()?, weight.dims4()?, config)?;
    if !x.device().is_cpu() {
        return x.conv2d(weight, config.padding, config.stride, config.dilation, config.groups);
    }
    let (x, weight) = (x.contiguous()?, weight.contiguous()?);
    dispatch!(x.dtype(), "conv2d", T => on_cpu::<T>(geometry, x, weight))
}

/// In candle's order of memory, channels first, outside of which the kernels work.
fn on_cpu<T: Element>(g: Geometry, x: Tensor, weight: Tensor) -> Result<Tensor> {
    let images = move |x: &Tensor| -> Result<Vec<T>> {
        Ok(to_channels_last(reader(x).slice::<T>()?, g.c_in, g.h * g.w))
    };
    let y = forward(&g, &images(&x)?, reader(&weight).slice::<T>()?);
    let y = to_channels_first(&y, g.c_out, g.positions());
    let inputs = [x.clone(), weight.clone()];
    node("conv2d", &inputs.each_ref(), (y, (g.batch, g.c_out, g.out_h, g.out_w)), move |_, dy| {
        let dy = to_channels_last(reader(dy).slice::<T>()?, g.c_out, g.positions());
        let dx = || {
            let dx = input_gradient(&g, reader(&weight).slice::<T>()?, &dy);
            Tensor::from_vec(to_channels_first(&dx, g.c_in, g.h * g.w), x.shape(), x.device())
        };
        let dw = || {
            Tensor::from_vec(weight_gradient(&g, Input::plain(&images(&x)?), &dy), weight.shape(), x.device())
        };
        Ok(vec![x.track_op().then(dx).transpose()?, weight.track_op().then(dw).transpose()?])
    })
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
        let empty = Tensor::zeros((1, 16, 0, 4), candle_core::DType::F32, &Device::Cpu).unwrap();
        let padded = Conv2dConfig { padding: 2, ..Default::default() };
        let error =
            conv2d(&empty, &Tensor::zeros((16, 16, 3, 3), empty.dtype(), &Device::Cpu).unwrap(), padded);
        assert!(error.unwrap_err().to_string().contains("0x4 pixels"));
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
