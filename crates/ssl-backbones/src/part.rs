//! What convolutional networks are made of: layers with their norms, and parts that can be computed again.

use candle_core::{Result, Tensor};
use ssl_nn::{BatchNorm, BatchNormConfig, Conv2d, Conv2dConfig, ConvNorm, Scope, recompute};

/// A part of a network that can be computed again by itself.
pub(crate) trait Part: Clone + Send + Sync + 'static {
    /// All layers of it.
    fn layers(&self) -> impl Iterator<Item = &ConvNorm>;

    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor>;

    /// [`Part::forward_t`], of which with `again` nothing is kept: the backward pass runs it once more.
    fn run(&self, x: &Tensor, train: bool, again: bool) -> Result<Tensor> {
        if !again {
            return self.forward_t(x, train);
        }
        let buffers: Vec<_> = self.layers().flat_map(|layer| layer.norm.buffers()).collect();
        let part = self.clone();
        recompute(&[x], &buffers, move |inputs| part.forward_t(&inputs[0], train))
    }
}

/// Sizes of a convolution that keeps the size of an image at stride 1.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) c_in: usize,
    pub(crate) c_out: usize,
    pub(crate) kernel: usize,
    pub(crate) stride: usize,
    pub(crate) groups: usize,
}

impl Sizes {
    /// Without groups.
    pub(crate) fn new(c_in: usize, c_out: usize, kernel: usize, stride: usize) -> Self {
        Self { c_in, c_out, kernel, stride, groups: 1 }
    }

    /// The convolution with its norm, whose weights start at `weight_init`.
    pub(crate) fn layer(self, weight_init: f64, conv: &Scope, norm: &Scope) -> Result<ConvNorm> {
        let Self { c_in, c_out, kernel, stride, groups } = self;
        let config = Conv2dConfig { stride, padding: kernel / 2, groups, ..Default::default() };
        Ok(ConvNorm {
            conv: Conv2d::new(c_in, c_out, kernel, config, conv)?,
            norm: BatchNorm::new(c_out, BatchNormConfig { weight_init, ..Default::default() }, norm)?,
        })
    }

    /// Trainable numbers of the convolution and its norm.
    pub(crate) fn num_parameters(self) -> usize {
        self.c_out * (self.c_in / self.groups * self.kernel * self.kernel + 2)
    }
}
