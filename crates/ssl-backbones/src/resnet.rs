//! Residual networks (He et al., 2015, <https://arxiv.org/abs/1512.03385>) as torchvision builds them: "v1.5", with the
//! stride of a bottleneck in its 3x3 convolution. The classifier is left out.

use candle_core::{Result, Tensor, bail};
use serde::{Deserialize, Serialize};
use ssl_nn::{
    ConvNorm, Residual, Scope, Shortcut, global_avg_pool_channels_last, max_pool2d_channels_last,
    residual_blocks, stem,
};

use crate::backbone::Backbone;
use crate::part::{Part, Sizes};

/// The first layers of a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stem {
    /// ResNet: 7x7 convolution with stride 2, then 3x3 max-pooling with stride 2: a quarter of the resolution remains.
    /// RegNet: 3x3 convolution with stride 2.
    ImageNet,
    /// 3x3 convolution with stride 1 and no pooling, for small images (SimCLR, appendix B.9).
    Cifar,
}

/// The residual block that a network repeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// Two 3x3 convolutions.
    Basic,
    /// 1x1, 3x3 and 1x1 convolutions, the last with four times the channels.
    Bottleneck,
}

impl Block {
    fn expansion(self) -> usize {
        match self {
            Block::Basic => 1,
            Block::Bottleneck => 4,
        }
    }
}

/// Sizes of a residual network.
#[derive(Clone, Copy, Debug)]
pub struct ResNetConfig {
    /// Kind of block.
    pub block: Block,
    /// Blocks in each of the four stages.
    pub layers: [usize; 4],
    /// Channels of the first stage; each later stage has twice as many.
    pub width: usize,
    /// First layers.
    pub stem: Stem,
    /// Start the last batch norm of every block at 0.
    pub zero_init_residual: bool,
    /// Compute the stem and each block again in the backward pass ([`ssl_nn::recompute`]): equal results in less memory and
    /// more time.
    pub recompute: bool,
}

impl ResNetConfig {
    const fn new(block: Block, layers: [usize; 4]) -> Self {
        Self { block, layers, width: 64, stem: Stem::ImageNet, zero_init_residual: false, recompute: false }
    }

    /// ResNet-18: 11.2 million parameters, 512 features.
    pub const fn resnet18() -> Self {
        Self::new(Block::Basic, [2, 2, 2, 2])
    }

    /// ResNet-34: 21.3 million parameters, 512 features.
    pub const fn resnet34() -> Self {
        Self::new(Block::Basic, [3, 4, 6, 3])
    }

    /// ResNet-50: 23.5 million parameters, 2048 features.
    pub const fn resnet50() -> Self {
        Self::new(Block::Bottleneck, [3, 4, 6, 3])
    }

    /// Width of the embedding.
    pub fn embed_dim(&self) -> usize {
        8 * self.width * self.block.expansion()
    }

    /// Creates the parameters in `scope` under torchvision's names.
    ///
    /// # Errors
    /// If the width is 0 or a name is taken.
    pub fn build(&self, scope: &Scope) -> Result<ResNet> {
        if self.width == 0 {
            bail!("the width of a resnet must be at least 1, got 0");
        }
        let (kernel, stride) = match self.stem {
            Stem::ImageNet => (7, 2),
            Stem::Cifar => (3, 1),
        };
        let sizes = Sizes::new(3, self.width, kernel, stride);
        let first = sizes.layer(1.0, &scope.pp("conv1"), &scope.pp("bn1"))?;
        let mut channels = self.width;
        let stages = (0..4).map(|stage| {
            let (width, scope) = (self.width << stage, scope.pp(format!("layer{}", stage + 1)));
            (0..self.layers[stage])
                .map(|i| {
                    let stride = if stage > 0 && i == 0 { 2 } else { 1 };
                    let block = ResidualBlock::new(self, channels, width, stride, &scope.pp(i))?;
                    channels = width * self.block.expansion();
                    Ok(block)
                })
                .collect::<Result<Vec<_>>>()
        });
        let stages = stages.collect::<Result<_>>()?;
        let first = First { layer: first, stem: self.stem };
        Ok(ResNet { first, stages, embed_dim: self.embed_dim(), recompute: self.recompute })
    }
}

/// A residual network up to its global average pool.
#[derive(Clone, Debug)]
pub struct ResNet {
    first: First,
    stages: Vec<Vec<ResidualBlock>>,
    embed_dim: usize,
    recompute: bool,
}

impl ResNet {
    /// The outputs of the four stages: `(B, C_i, H_i, W_i)`, each half the size of the one before.
    ///
    /// # Errors
    /// If `x` is not `(B, 3, H, W)` or too small.
    pub fn forward_stages(&self, x: &Tensor, train: bool) -> Result<Vec<Tensor>> {
        // Inside of the network the channels come last: from the first layers on it is `(B, H, W, C)`.
        let mut x = self.first.run(x, train, self.recompute)?;
        let stages = self.stages.iter().map(|blocks| {
            for block in blocks {
                x = block.run(&x, train, self.recompute)?;
            }
            x.permute((0, 3, 1, 2))?.contiguous()
        });
        stages.collect()
    }
}

impl Backbone for ResNet {
    fn embed_dim(&self) -> usize {
        self.embed_dim
    }

    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let mut blocks = self.stages.iter().flatten();
        let x = if self.recompute {
            let x = self.first.run(x, train, true)?;
            blocks.try_fold(x, |x, block| block.run(&x, train, true))?
        } else {
            let blocks = blocks.map(ResidualBlock::residual);
            match self.first.stem {
                Stem::ImageNet => {
                    residual_blocks(&self.first.forward_t(x, train)?, &blocks.collect::<Vec<_>>(), train)?
                }
                // Without a pool in between, all layers are one operation.
                Stem::Cifar => {
                    let layers = std::slice::from_ref(&self.first.layer);
                    let first = Residual { branch: layers, gate: None, shortcut: Shortcut::None };
                    let x = x.permute((0, 2, 3, 1))?.contiguous()?;
                    residual_blocks(&x, &std::iter::once(first).chain(blocks).collect::<Vec<_>>(), train)?
                }
            }
        };
        global_avg_pool_channels_last(&x)
    }
}

/// The first layers: `(B, 3, H, W)` to `(B, H', W', C)`.
#[derive(Clone, Debug)]
struct First {
    layer: ConvNorm,
    stem: Stem,
}

impl Part for First {
    fn layers(&self) -> impl Iterator<Item = &ConvNorm> {
        std::iter::once(&self.layer)
    }

    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let x = stem(x, &self.layer, train)?;
        match self.stem {
            Stem::ImageNet => max_pool2d_channels_last(&x, 3, 2, 1),
            Stem::Cifar => Ok(x),
        }
    }
}

/// `relu(shortcut(x) + branch(x))`.
#[derive(Clone, Debug)]
struct ResidualBlock {
    branch: Vec<ConvNorm>,
    downsample: Option<ConvNorm>,
}

impl ResidualBlock {
    fn new(config: &ResNetConfig, c_in: usize, width: usize, stride: usize, scope: &Scope) -> Result<Self> {
        let c_out = width * config.block.expansion();
        let sizes = match config.block {
            Block::Basic => vec![Sizes::new(c_in, width, 3, stride), Sizes::new(width, width, 3, 1)],
            Block::Bottleneck => vec![
                Sizes::new(c_in, width, 1, 1),
                Sizes::new(width, width, 3, stride),
                Sizes::new(width, c_out, 1, 1),
            ],
        };
        let last = sizes.len();
        let branch = sizes.into_iter().zip(1..).map(|(sizes, i)| {
            let weight = if i == last && config.zero_init_residual { 0.0 } else { 1.0 };
            sizes.layer(weight, &scope.pp(format!("conv{i}")), &scope.pp(format!("bn{i}")))
        });
        let branch = branch.collect::<Result<_>>()?;
        let downsample = (stride != 1 || c_in != c_out).then(|| {
            let scope = scope.pp("downsample");
            Sizes::new(c_in, c_out, 1, stride).layer(1.0, &scope.pp(0), &scope.pp(1))
        });
        Ok(Self { branch, downsample: downsample.transpose()? })
    }

    fn residual(&self) -> Residual<'_> {
        let shortcut = self.downsample.as_ref().map_or(Shortcut::Identity, Shortcut::Projection);
        Residual { branch: &self.branch, gate: None, shortcut }
    }
}

impl Part for ResidualBlock {
    fn layers(&self) -> impl Iterator<Item = &ConvNorm> {
        self.branch.iter().chain(&self.downsample)
    }

    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        residual_blocks(x, &[self.residual()], train)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device};
    use ssl_nn::Params;

    use super::*;

    #[test]
    fn parameter_counts_are_torchvisions_without_the_classifier() {
        for (config, expected) in [
            (ResNetConfig::resnet18(), 11_176_512),
            (ResNetConfig::resnet34(), 21_284_672),
            (ResNetConfig::resnet50(), 23_508_032),
        ] {
            let params = Params::new(0, DType::F32, &Device::Cpu);
            config.build(&params.root()).unwrap();
            assert_eq!(params.num_trainable(), expected, "{config:?}");
        }
    }

    #[test]
    fn every_parameter_gets_a_gradient_and_no_buffer_does() {
        for (base, size) in [(ResNetConfig::resnet18(), 32), (ResNetConfig::resnet50(), 48)] {
            for stem in [Stem::ImageNet, Stem::Cifar] {
                let params = Params::new(1, DType::F32, &Device::Cpu);
                let net = ResNetConfig { width: 4, stem, ..base }.build(&params.root()).unwrap();
                let n = 3 * 3 * size * size;
                let x: Vec<f32> = (0..n).map(|i| ((i * 7919) % 101) as f32 / 50.0 - 1.0).collect();
                let x = Tensor::from_vec(x, (3, 3, size, size), &Device::Cpu).unwrap();
                let grads =
                    net.forward_t(&x, true).unwrap().sqr().unwrap().sum_all().unwrap().backward().unwrap();
                for (name, var) in params.trainable() {
                    let grad = grads.get(&var).unwrap_or_else(|| panic!("{name} has no gradient"));
                    let norm = grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
                    assert!(norm.is_finite() && norm > 0.0, "{name}: squared norm {norm}");
                }
                assert!(params.buffers().iter().all(|(_, var)| grads.get(var).is_none()));
            }
        }
    }

    #[test]
    fn zero_init_residual_makes_every_block_start_as_its_shortcut() {
        let config = ResNetConfig { width: 4, zero_init_residual: true, ..ResNetConfig::resnet50() };
        let params = Params::new(1, DType::F32, &Device::Cpu);
        config.build(&params.root()).unwrap();
        let zeros = params.trainable().into_iter().filter(|(name, var)| {
            name.ends_with("weight") && var.sum_all().unwrap().to_scalar::<f32>().unwrap() == 0.0
        });
        let names: Vec<_> = zeros.map(|(name, _)| name).collect();
        assert_eq!(names.len(), 16);
        assert!(names.iter().all(|name| name.ends_with("bn3.weight")));
    }
}
