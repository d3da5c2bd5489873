//! The sizes of a convolution.

use candle_core::{Result, bail};

use crate::conv2d::Conv2dConfig;

/// All sizes of one convolution.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub(crate) batch: usize,
    pub(crate) c_in: usize,
    pub(crate) h: usize,
    pub(crate) w: usize,
    pub(crate) c_out: usize,
    pub(crate) kh: usize,
    pub(crate) kw: usize,
    pub(crate) out_h: usize,
    pub(crate) out_w: usize,
    pub(crate) config: Conv2dConfig,
}

impl Geometry {
    pub(crate) fn new(
        (batch, c_in, h, w): (usize, usize, usize, usize),
        (c_out, channels, kh, kw): (usize, usize, usize, usize),
        config: Conv2dConfig,
    ) -> Result<Self> {
        let Conv2dConfig { stride, padding, dilation, groups } = config;
        if groups == 0 || !c_in.is_multiple_of(groups) || !c_out.is_multiple_of(groups) {
            bail!("conv2d: {groups} groups do not divide {c_in} channels into {c_out}");
        }
        if channels * groups != c_in {
            bail!("conv2d: the image has {c_in} channels, the kernel expects {}", channels * groups);
        }
        if c_in == 0 || c_out == 0 || h == 0 || w == 0 {
            bail!("conv2d: no pixels or channels: {h}x{w} pixels, {c_in} channels in, {c_out} out");
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

    pub(crate) fn groups(&self) -> usize {
        self.config.groups
    }

    /// Input channels of a group.
    pub(crate) fn c_in_group(&self) -> usize {
        self.c_in / self.groups()
    }

    /// Output channels of a group.
    pub(crate) fn c_out_group(&self) -> usize {
        self.c_out / self.groups()
    }

    /// Positions of the kernel.
    pub(crate) fn taps(&self) -> usize {
        self.kh * self.kw
    }

    /// Inputs of one output.
    pub(crate) fn k(&self) -> usize {
        self.c_in_group() * self.taps()
    }

    /// Output positions of one image.
    pub(crate) fn positions(&self) -> usize {
        self.out_h * self.out_w
    }

    pub(crate) fn image_len(&self) -> usize {
        self.c_in * self.h * self.w
    }

    pub(crate) fn output_len(&self) -> usize {
        self.c_out * self.positions()
    }

    /// The convolution that computes the input gradient at stride 1, if the padding allows it.
    pub(crate) fn transposed(&self) -> Option<Self> {
        let Conv2dConfig { stride, padding, dilation, .. } = self.config;
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
    pub(crate) fn is_pointwise(&self) -> bool {
        self.taps() == 1 && self.config.stride == 1 && self.config.padding == 0
    }

    /// Output positions that are worked on together: about 400 KB of column matrix, in full tiles of the kernels.
    pub(crate) fn tile(&self) -> usize {
        (96 * 1024 / self.k().max(1)).clamp(98, 896) / 14 * 14
    }
}
