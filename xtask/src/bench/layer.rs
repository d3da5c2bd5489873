//! Single layers at the sizes of the networks: forward, and forward with backward.

use anyhow::Result;
use candle_core::{DType, Device, Tensor, Var};
use ssl_vision::nn::{
    BatchNorm, BatchNormConfig, BlockOptions, Conv2d, Conv2dConfig, Linear, LinearConfig, Params,
    TransformerBlock, TransformerBlockConfig, max_pool2d,
};

use super::Suite;
use super::measure::{Case, Timing, Unit, time};
use super::step::noise;

/// A convolution with a square kernel, padded by half of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conv {
    c_in: usize,
    c_out: usize,
    kernel: usize,
    stride: usize,
    /// Side of the input in pixels.
    size: usize,
}

const fn conv(c_in: usize, c_out: usize, kernel: usize, stride: usize, size: usize) -> Conv {
    Conv { c_in, c_out, kernel, stride, size }
}

/// The convolutions of ResNet-18 with the CIFAR stem at 32 pixels, and how many there are of each.
pub(super) const RESNET18_CIFAR: [(Conv, usize); 11] = [
    (conv(3, 64, 3, 1, 32), 1),
    (conv(64, 64, 3, 1, 32), 4),
    (conv(64, 128, 3, 2, 32), 1),
    (conv(64, 128, 1, 2, 32), 1),
    (conv(128, 128, 3, 1, 16), 3),
    (conv(128, 256, 3, 2, 16), 1),
    (conv(128, 256, 1, 2, 16), 1),
    (conv(256, 256, 3, 1, 8), 3),
    (conv(256, 512, 3, 2, 8), 1),
    (conv(256, 512, 1, 2, 8), 1),
    (conv(512, 512, 3, 1, 4), 3),
];

/// Stem, 3x3 and 1x1 of the first stage of ResNet-50 at 224 pixels.
const RESNET50: [Conv; 3] = [conv(3, 64, 7, 2, 224), conv(64, 64, 3, 1, 56), conv(64, 256, 1, 1, 56)];

/// Images that pass a layer at once: the views of a step.
const VIEWS_32: usize = 128;
const VIEWS_224: usize = 8;

/// Inputs, outputs and rows of linear layers: of a projector, and of the transformers ViT-Ti and ViT-S on [`TOKENS`].
const LINEARS: [(usize, usize, usize); 3] =
    [(512, 512, VIEWS_32), (192, 768, VIEWS_32 * TOKENS), (384, 1536, VIEWS_32 * TOKENS)];

/// Width and heads of a block of ViT-Ti and of ViT-S.
const BLOCKS: [(usize, usize); 2] = [(192, 3), (384, 6)];

/// Tokens of 32 pixels in patches of 4, with the class token.
const TOKENS: usize = 65;

pub(super) fn cases() -> Vec<Case> {
    let small = RESNET18_CIFAR.iter().map(|(conv, _)| conv.cases(VIEWS_32));
    let large = RESNET50.iter().map(|conv| conv.cases(VIEWS_224));
    let others = [
        pair("batch-norm-relu-64/32px/b128", None, || {
            let norm = BatchNorm::new(64, BatchNormConfig::default(), &params().root())?;
            Ok(layer(noise(0, (VIEWS_32, 64, 32, 32))?, move |x| norm.forward_relu_t(x, true)))
        }),
        pair("max-pool-64/112px/b8", None, || {
            Ok(layer(noise(0, (VIEWS_224, 64, 112, 112))?, |x| max_pool2d(x, 3, 2, 1)))
        }),
    ];
    let linears = LINEARS.iter().map(|(inputs, outputs, rows)| linear(*inputs, *outputs, *rows));
    let blocks = BLOCKS.iter().map(|(dim, heads)| block(*dim, *heads));
    small.chain(large).chain(others).chain(linears).chain(blocks).flatten().collect()
}

/// A linear layer without bias on `rows` rows.
fn linear(inputs: usize, outputs: usize, rows: usize) -> [Case; 2] {
    let flop = 2.0 * (inputs * outputs * rows) as f64;
    pair(&format!("linear-{inputs}-{outputs}/b{rows}"), Some(flop), move || {
        let config = LinearConfig { bias: false, ..Default::default() };
        let linear = Linear::new(inputs, outputs, config, &params().root())?;
        Ok(layer(noise(0, (rows, inputs))?, move |x| linear.forward(x)))
    })
}

/// A block of a vision transformer on the tokens of 32 pixels in patches of 4.
fn block(dim: usize, heads: usize) -> [Case; 2] {
    let (t, d) = (TOKENS as f64, dim as f64);
    let flop = VIEWS_32 as f64 * (24.0 * t * d * d + 4.0 * t * t * d);
    pair(&format!("block-{dim}-{heads}/{TOKENS}tokens/b{VIEWS_32}"), Some(flop), move || {
        let config = TransformerBlockConfig { heads, ..Default::default() };
        let block = TransformerBlock::new(dim, config, &params().root())?;
        let x = noise(0, (VIEWS_32, TOKENS, dim))?;
        Ok(layer(x, move |x| block.forward(x, &BlockOptions::default())))
    })
}

impl Conv {
    /// Arithmetic of the forward pass for `batch` images.
    fn flop(&self, batch: usize) -> f64 {
        let out = (self.size + 2 * (self.kernel / 2) - self.kernel) / self.stride + 1;
        2.0 * (batch * self.c_in * self.c_out * self.kernel.pow(2) * out.pow(2)) as f64
    }

    /// Arithmetic of forward and backward pass; images, of three channels, need no gradient.
    pub(super) fn step_flop(&self, batch: usize) -> f64 {
        self.flop(batch) * if self.c_in == 3 { 2.0 } else { 3.0 }
    }

    /// [`Self::step_flop`] with the multiplications that are done: Winograd's F(2x2, 3x3), which `ssl-nn` takes for
    /// kernels of 3x3 at stride 1 from 16 channels on, has 16 for 36 of a direct convolution. Sides are even.
    pub(super) fn executed_step_flop(&self, batch: usize) -> f64 {
        let winograd = self.kernel == 3 && self.stride == 1 && self.c_in.min(self.c_out) >= 16;
        self.step_flop(batch) * if winograd { 16.0 / 36.0 } else { 1.0 }
    }

    fn cases(self, batch: usize) -> [Case; 2] {
        let Conv { c_in, c_out, kernel, stride, size } = self;
        let stride_name = if stride == 1 { String::new() } else { format!("-s{stride}") };
        let id = format!("conv{kernel}x{kernel}{stride_name}-{c_in}-{c_out}/{size}px/b{batch}");
        let [forward, both] = pair(&id, Some(self.flop(batch)), move || {
            let config = Conv2dConfig { stride, padding: kernel / 2, ..Default::default() };
            let conv = Conv2d::new(c_in, c_out, kernel, config, &params().root())?;
            let layer = layer(noise(0, (batch, c_in, size, size))?, move |x| conv.forward(x));
            Ok(Layer { input_gradient: c_in != 3, ..layer })
        });
        [forward, Case { unit: Unit::Flop(self.step_flop(batch)), ..both }]
    }
}

type Forward = dyn Fn(&Tensor) -> candle_core::Result<Tensor>;

/// A layer and its input.
struct Layer {
    x: Tensor,
    input_gradient: bool,
    forward: Box<Forward>,
}

fn layer(x: Tensor, forward: impl Fn(&Tensor) -> candle_core::Result<Tensor> + 'static) -> Layer {
    Layer { x, input_gradient: true, forward: Box::new(forward) }
}

fn params() -> Params {
    Params::new(0, DType::F32, &Device::Cpu)
}

/// The two cases of a layer; `flop` is the arithmetic of its forward pass.
fn pair(id: &str, flop: Option<f64>, build: impl Fn() -> Result<Layer> + Clone + 'static) -> [Case; 2] {
    let unit = |passes: f64| flop.map_or(Unit::Call, |flop| Unit::Flop(passes * flop));
    let backward = build.clone();
    [
        Case::new(Suite::Layer, format!("{id}/forward"), unit(1.0), move || build()?.time_forward()),
        Case::new(Suite::Layer, format!("{id}/forward-backward"), unit(3.0), move || backward()?.time_both()),
    ]
}

impl Layer {
    fn time_forward(&self) -> Result<Timing> {
        let x = self.input()?;
        time(3, 5, || Ok((self.forward)(&x)?))
    }

    fn time_both(&self) -> Result<Timing> {
        let x = self.input()?;
        time(3, 5, || Ok((self.forward)(&x)?.sum_all()?.backward()?))
    }

    fn input(&self) -> Result<Tensor> {
        Ok(if self.input_gradient { Var::from_tensor(&self.x)?.into_inner() } else { self.x.clone() })
    }
}
