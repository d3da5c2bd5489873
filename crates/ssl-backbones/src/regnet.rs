//! RegNetY (Radosavovic et al., 2020, <https://arxiv.org/abs/2003.13678>): residual bottlenecks with grouped convolutions
//! and squeeze-and-excitation, whose widths follow one line. As torchvision builds them, without the classifier; the two
//! largest are SEER's (Goyal et al., 2021 and 2022, <https://arxiv.org/abs/2103.01988>, <https://arxiv.org/abs/2202.08360>),
//! of which torchvision has none.
//!
//! The stem for small images is ours: torchvision's convolution with stride 1 instead of 2. A sixteenth of the
//! resolution remains, where the ImageNet stem leaves a thirty-second.

use std::iter::once;

use candle_core::{Result, Tensor, bail};
use ssl_nn::{
    ConvNorm, Residual, Scope, Shortcut, SqueezeExcitation, global_avg_pool_channels_last, residual_blocks,
    stem,
};

use crate::backbone::Backbone;
use crate::part::{Part, Sizes};
use crate::resnet::Stem;

/// Channels after the stem.
const STEM_WIDTH: usize = 32;
/// Widths of blocks are multiples of it before the groups are looked at.
const QUANTUM: f64 = 8.0;
/// Values of a gate over the channels that its block starts from.
const SQUEEZE: f64 = 0.25;
/// Deeper than every published network.
const MAX_DEPTH: usize = 1000;

/// The line that the widths of a RegNetY follow: block `i` has about `initial_width + i · width_slope` channels, rounded
/// to `initial_width` times a power of `width_multiplier`.
#[derive(Clone, Copy, Debug)]
pub struct RegNetConfig {
    /// Blocks, in 1..=1000; `d` in the paper.
    pub depth: usize,
    /// Width of the first block before rounding, a multiple of 8 from 8 on; `w_0`.
    pub initial_width: usize,
    /// What the line gains with each block, at least 0; `w_a`.
    pub width_slope: f64,
    /// Ratio of the widths of neighbouring stages, above 1; `w_m`.
    pub width_multiplier: f64,
    /// Channels of a group of the 3x3 convolutions, at least 1; `g`.
    pub group_width: usize,
    /// First layers.
    pub stem: Stem,
    /// Compute the stem and each block again in the backward pass ([`ssl_nn::recompute`]): equal results in less memory
    /// and more time.
    pub recompute: bool,
}

/// Blocks of equal width; the first of them halves the resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegNetStage {
    /// Number of blocks.
    pub depth: usize,
    /// Their channels.
    pub width: usize,
    /// Channels of a group.
    pub group_width: usize,
}

impl RegNetConfig {
    const fn new(depth: usize, w_0: usize, w_a: f64, w_m: f64, group_width: usize) -> Self {
        Self {
            depth,
            initial_width: w_0,
            width_slope: w_a,
            width_multiplier: w_m,
            group_width,
            stem: Stem::ImageNet,
            recompute: false,
        }
    }

    /// 3.9 million parameters, 440 features.
    pub const fn regnet_y_400mf() -> Self {
        Self::new(16, 48, 27.89, 2.09, 8)
    }

    /// 5.6 million parameters, 784 features.
    pub const fn regnet_y_800mf() -> Self {
        Self::new(14, 56, 38.84, 2.4, 16)
    }

    /// 10.3 million parameters, 888 features.
    pub const fn regnet_y_1_6gf() -> Self {
        Self::new(27, 48, 20.71, 2.65, 24)
    }

    /// 17.9 million parameters, 1512 features.
    pub const fn regnet_y_3_2gf() -> Self {
        Self::new(21, 80, 42.63, 2.66, 24)
    }

    /// 37.4 million parameters, 2016 features.
    pub const fn regnet_y_8gf() -> Self {
        Self::new(17, 192, 76.82, 2.19, 56)
    }

    /// 80.6 million parameters, 3024 features.
    pub const fn regnet_y_16gf() -> Self {
        Self::new(18, 200, 106.23, 2.48, 112)
    }

    /// 141 million parameters, 3712 features.
    pub const fn regnet_y_32gf() -> Self {
        Self::new(20, 232, 115.89, 2.53, 232)
    }

    /// 637 million parameters, 7392 features; SEER's smallest.
    pub const fn regnet_y_128gf() -> Self {
        Self::new(27, 456, 160.83, 2.52, 264)
    }

    /// 1.27 billion parameters, 10,444 features; SEER's.
    pub const fn regnet_y_256gf() -> Self {
        Self::new(27, 640, 230.83, 2.53, 373)
    }

    /// 9.32 billion parameters, 28,280 features; SEER's largest.
    pub const fn regnet_y_10b() -> Self {
        Self::new(27, 1744, 620.83, 2.52, 1010)
    }

    /// The stages, from the image on.
    ///
    /// # Errors
    /// Names the setting, its value and the allowed range.
    pub fn stages(&self) -> std::result::Result<Vec<RegNetStage>, String> {
        self.validate()?;
        let (first, ratio) = (self.initial_width as f64, self.width_multiplier);
        let mut stages: Vec<RegNetStage> = Vec::new();
        for i in 0..self.depth {
            let wanted = first + i as f64 * self.width_slope;
            let power = ((wanted / first).ln() / ratio.ln()).round_ties_even();
            let width = ((first * ratio.powf(power) / QUANTUM).round_ties_even() * QUANTUM) as usize;
            match stages.last_mut().filter(|stage| stage.width == width) {
                Some(stage) => stage.depth += 1,
                None => stages.push(RegNetStage { depth: 1, width, group_width: self.group_width }),
            }
        }
        for stage in &mut stages {
            stage.group_width = stage.group_width.min(stage.width);
            stage.width = near_multiple(stage.width, stage.group_width);
        }
        Ok(stages)
    }

    /// Width of the embedding.
    ///
    /// # Errors
    /// As [`RegNetConfig::stages`].
    pub fn embed_dim(&self) -> std::result::Result<usize, String> {
        Ok(self.stages()?.last().map_or(STEM_WIDTH, |stage| stage.width))
    }

    /// Number of trainable parameters, without creating any.
    ///
    /// # Errors
    /// As [`RegNetConfig::stages`].
    pub fn num_parameters(&self) -> std::result::Result<usize, String> {
        let stages = self.stages()?;
        let of_blocks: usize = blocks(&stages).map(|(_, block)| block.num_parameters()).sum();
        Ok(self.first().num_parameters() + of_blocks)
    }

    /// Creates the parameters in `scope` under torchvision's names.
    ///
    /// # Errors
    /// As [`RegNetConfig::stages`], or if a name is taken.
    pub fn build(&self, scope: &Scope) -> Result<RegNet> {
        let sizes = self.stages().map_err(candle_core::Error::Msg)?;
        let place = scope.pp("stem");
        let first = First { layer: self.first().layer(1.0, &place.pp(0), &place.pp(1))? };
        let mut stages: Vec<Vec<Block>> = Vec::with_capacity(sizes.len());
        for ((stage, i), block) in blocks(&sizes) {
            let (s, scope) = (stage + 1, scope.pp("trunk_output"));
            let block = block.build(&scope.pp(format!("block{s}")).pp(format!("block{s}-{i}")))?;
            if i == 0 {
                stages.push(Vec::with_capacity(sizes[stage].depth));
            }
            stages[stage].push(block);
        }
        let embed_dim = self.embed_dim().map_err(candle_core::Error::Msg)?;
        Ok(RegNet { first, stages, embed_dim, recompute: self.recompute })
    }

    fn first(&self) -> Sizes {
        let stride = match self.stem {
            Stem::ImageNet => 2,
            Stem::Cifar => 1,
        };
        Sizes::new(3, STEM_WIDTH, 3, stride)
    }

    fn validate(&self) -> std::result::Result<(), String> {
        let Self { depth, initial_width: w_0, width_slope: w_a, width_multiplier: w_m, group_width, .. } =
            *self;
        if !(1..=MAX_DEPTH).contains(&depth) {
            return Err(format!("the depth of a regnet is {depth}, must be in 1..={MAX_DEPTH}"));
        }
        if w_0 == 0 || !w_0.is_multiple_of(8) {
            return Err(format!("the initial width of a regnet is {w_0}, must be a multiple of 8 from 8 on"));
        }
        if !(w_a >= 0.0 && w_a.is_finite()) {
            return Err(format!("the width slope of a regnet is {w_a}, must be at least 0"));
        }
        if !(w_m > 1.0 && w_m.is_finite()) {
            return Err(format!("the width multiplier of a regnet is {w_m}, must be above 1"));
        }
        if group_width == 0 {
            return Err("the group width of a regnet is 0, must be at least 1".to_owned());
        }
        Ok(())
    }
}

/// The multiple of `divisor` that is nearest to `width`, or the next if that is more than a tenth too small.
fn near_multiple(width: usize, divisor: usize) -> usize {
    let near = ((2 * width + divisor) / (2 * divisor) * divisor).max(divisor);
    if 10 * near < 9 * width { near + divisor } else { near }
}

/// All blocks with their places: stage and number.
fn blocks(stages: &[RegNetStage]) -> impl Iterator<Item = ((usize, usize), BlockSizes)> {
    let inputs = once(STEM_WIDTH).chain(stages.iter().map(|stage| stage.width));
    stages.iter().zip(inputs).enumerate().flat_map(|(s, (stage, c_in))| {
        (0..stage.depth).map(move |i| {
            let (c_in, stride) = if i == 0 { (c_in, 2) } else { (stage.width, 1) };
            ((s, i), BlockSizes { c_in, width: stage.width, group_width: stage.group_width, stride })
        })
    })
}

/// The sizes of a block.
#[derive(Clone, Copy)]
struct BlockSizes {
    c_in: usize,
    width: usize,
    group_width: usize,
    stride: usize,
}

impl BlockSizes {
    /// The three layers of the branch.
    fn branch(&self) -> [Sizes; 3] {
        let Self { c_in, width, group_width, stride } = *self;
        [
            Sizes::new(c_in, width, 1, 1),
            Sizes { groups: width / group_width, ..Sizes::new(width, width, 3, stride) },
            Sizes::new(width, width, 1, 1),
        ]
    }

    fn projection(&self) -> Option<Sizes> {
        let Self { c_in, width, stride, .. } = *self;
        (stride != 1 || c_in != width).then(|| Sizes::new(c_in, width, 1, stride))
    }

    /// Values that the gate goes through.
    fn squeezed(&self) -> usize {
        ((SQUEEZE * self.c_in as f64).round_ties_even() as usize).max(1)
    }

    fn num_parameters(&self) -> usize {
        let layers = self.branch().into_iter().chain(self.projection());
        let (channels, squeezed) = (self.width, self.squeezed());
        let gate = squeezed * (channels + 1) + channels * (squeezed + 1);
        layers.map(Sizes::num_parameters).sum::<usize>() + gate
    }

    fn build(&self, scope: &Scope) -> Result<Block> {
        let layer = |sizes: Sizes, scope: Scope| sizes.layer(1.0, &scope.pp(0), &scope.pp(1));
        let projection = self.projection().map(|sizes| layer(sizes, scope.pp("proj"))).transpose()?;
        let scope = scope.pp("f");
        let [a, b, c] = self.branch();
        let (a, b) = (layer(a, scope.pp("a"))?, layer(b, scope.pp("b"))?);
        let gate = SqueezeExcitation::new(self.width, self.squeezed(), &scope.pp("se"))?;
        Ok(Block { branch: [a, b, layer(c, scope.pp("c"))?], gate, projection })
    }
}

/// A RegNetY up to its global average pool.
#[derive(Clone, Debug)]
pub struct RegNet {
    first: First,
    stages: Vec<Vec<Block>>,
    embed_dim: usize,
    recompute: bool,
}

impl RegNet {
    /// The outputs of the stages: `(B, C_i, H_i, W_i)`, each half the size of the one before.
    ///
    /// # Errors
    /// If `x` is not `(B, 3, H, W)` or too small.
    pub fn forward_stages(&self, x: &Tensor, train: bool) -> Result<Vec<Tensor>> {
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

impl Backbone for RegNet {
    fn embed_dim(&self) -> usize {
        self.embed_dim
    }

    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let mut blocks = self.stages.iter().flatten();
        let x = if self.recompute {
            let x = self.first.run(x, train, true)?;
            blocks.try_fold(x, |x, block| block.run(&x, train, true))?
        } else {
            if x.rank() != 4 {
                bail!("regnet: expected images (B, 3, H, W), got shape {:?}", x.dims());
            }
            let x = x.permute((0, 2, 3, 1))?.contiguous()?;
            let blocks: Vec<_> = once(self.first.residual()).chain(blocks.map(Block::residual)).collect();
            residual_blocks(&x, &blocks, train)?
        };
        global_avg_pool_channels_last(&x)
    }
}

/// The stem: `(B, 3, H, W)` to `(B, H', W', C)`.
#[derive(Clone, Debug)]
struct First {
    layer: ConvNorm,
}

impl First {
    fn residual(&self) -> Residual<'_> {
        Residual { branch: std::slice::from_ref(&self.layer), gate: None, shortcut: Shortcut::None }
    }
}

impl Part for First {
    fn layers(&self) -> impl Iterator<Item = &ConvNorm> {
        once(&self.layer)
    }

    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        stem(x, &self.layer, train)
    }
}

/// `relu(shortcut(x) + c(gate(b(a(x)))))`.
#[derive(Clone, Debug)]
struct Block {
    branch: [ConvNorm; 3],
    gate: SqueezeExcitation,
    projection: Option<ConvNorm>,
}

impl Block {
    fn residual(&self) -> Residual<'_> {
        let shortcut = self.projection.as_ref().map_or(Shortcut::Identity, Shortcut::Projection);
        Residual { branch: &self.branch, gate: Some(&self.gate), shortcut }
    }
}

impl Part for Block {
    fn layers(&self) -> impl Iterator<Item = &ConvNorm> {
        self.branch.iter().chain(&self.projection)
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
    use crate::BackboneConfig;

    /// Depths, widths, width of the groups, and the parameters without `fc`, of torchvision 0.24.1: those of
    /// `torchvision.models`, and for the last two those that its `RegNet` has with SEER's settings.
    type Published = (RegNetConfig, [usize; 4], [usize; 4], usize, usize);

    const PUBLISHED: [Published; 10] = [
        (RegNetConfig::regnet_y_400mf(), [1, 3, 6, 6], [48, 104, 208, 440], 8, 3_903_144),
        (RegNetConfig::regnet_y_800mf(), [1, 3, 8, 2], [64, 144, 320, 784], 16, 5_647_512),
        (RegNetConfig::regnet_y_1_6gf(), [2, 6, 17, 2], [48, 120, 336, 888], 24, 10_313_430),
        (RegNetConfig::regnet_y_3_2gf(), [2, 5, 13, 1], [72, 216, 576, 1512], 24, 17_923_338),
        (RegNetConfig::regnet_y_8gf(), [2, 4, 10, 1], [224, 448, 896, 2016], 56, 37_364_472),
        (RegNetConfig::regnet_y_16gf(), [2, 4, 11, 1], [224, 448, 1232, 3024], 112, 80_565_140),
        (RegNetConfig::regnet_y_32gf(), [2, 5, 12, 1], [232, 696, 1392, 3712], 232, 141_333_770),
        (RegNetConfig::regnet_y_128gf(), [2, 7, 17, 1], [528, 1056, 2904, 7392], 264, 637_419_894),
        (RegNetConfig::regnet_y_256gf(), [2, 7, 17, 1], [746, 1492, 4103, 10444], 373, 1_272_156_138),
        (RegNetConfig::regnet_y_10b(), [2, 7, 17, 1], [2020, 4040, 11110, 28280], 1010, 9_323_934_872),
    ];

    /// A network of two stages that a test can afford.
    fn tiny(stem: Stem) -> RegNetConfig {
        RegNetConfig { stem, ..RegNetConfig::new(3, 8, 6.0, 2.0, 4) }
    }

    fn images(size: usize) -> Tensor {
        let n = 3 * 3 * size * size;
        let x: Vec<f32> = (0..n).map(|i| ((i * 7919) % 101) as f32 / 50.0 - 1.0).collect();
        Tensor::from_vec(x, (3, 3, size, size), &Device::Cpu).unwrap()
    }

    #[test]
    fn stages_and_parameter_counts_are_torchvisions_without_the_classifier() {
        for (config, depths, widths, group_width, parameters) in PUBLISHED {
            let stages: Vec<_> = depths
                .into_iter()
                .zip(widths)
                .map(|(depth, width)| RegNetStage { depth, width, group_width })
                .collect();
            assert_eq!(config.stages().unwrap(), stages);
            assert_eq!(config.num_parameters().unwrap(), parameters, "{config:?}");
            assert_eq!(config.embed_dim().unwrap(), widths[3]);
        }
    }

    #[test]
    fn the_count_is_that_of_what_is_built() {
        for config in [RegNetConfig::regnet_y_400mf(), tiny(Stem::Cifar)] {
            let params = Params::new(0, DType::F32, &Device::Cpu);
            config.build(&params.root()).unwrap();
            assert_eq!(params.num_trainable(), config.num_parameters().unwrap());
        }
    }

    #[test]
    fn names_are_torchvisions() {
        let params = Params::new(0, DType::F32, &Device::Cpu);
        BackboneConfig::named("regnet_y_400mf").unwrap().build(&params.root()).unwrap();
        let shape = |name: &str| params.get(name).unwrap_or_else(|| panic!("{name}")).dims().to_vec();
        assert_eq!(params.names().len(), 382);
        let block = "trunk_output.block2.block2-0";
        assert_eq!(shape("stem.0.weight"), [32, 3, 3, 3]);
        assert_eq!(shape(&format!("{block}.proj.0.weight")), [104, 48, 1, 1]);
        assert_eq!(shape(&format!("{block}.f.a.0.weight")), [104, 48, 1, 1]);
        assert_eq!(shape(&format!("{block}.f.b.0.weight")), [104, 8, 3, 3]);
        assert_eq!(shape(&format!("{block}.f.se.fc1.weight")), [12, 104, 1, 1]);
        assert_eq!(shape(&format!("{block}.f.se.fc2.bias")), [104]);
        assert_eq!(shape(&format!("{block}.f.c.1.running_var")), [104]);
        assert!(params.get("trunk_output.block2.block2-1.proj.0.weight").is_none());
    }

    #[test]
    fn every_parameter_gets_a_gradient_and_no_buffer_does() {
        for (stem, train) in [(Stem::ImageNet, true), (Stem::Cifar, true), (Stem::Cifar, false)] {
            let params = Params::new(1, DType::F32, &Device::Cpu);
            let net = tiny(stem).build(&params.root()).unwrap();
            let y = net.forward_t(&images(17), train).unwrap();
            assert_eq!(y.dims(), [3, net.embed_dim()]);
            let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            for (name, var) in params.trainable() {
                let grad = grads.get(&var).unwrap_or_else(|| panic!("{name} has no gradient"));
                let norm = grad.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
                assert!(norm.is_finite() && norm > 0.0, "{name}: squared norm {norm}");
            }
            assert!(params.buffers().iter().all(|(_, var)| grads.get(var).is_none()));
        }
    }

    #[test]
    fn the_stem_for_small_images_keeps_the_resolution() {
        for (stem, sizes) in [(Stem::ImageNet, [7, 4]), (Stem::Cifar, [14, 7])] {
            let params = Params::new(1, DType::F32, &Device::Cpu);
            let net = tiny(stem).build(&params.root()).unwrap();
            let stages = net.forward_stages(&images(28), false).unwrap();
            assert_eq!(stages.iter().map(|s| s.dims()[2]).collect::<Vec<_>>(), sizes);
            let pooled = ssl_nn::global_avg_pool(stages.last().unwrap()).unwrap();
            let values = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            let own = values(&net.forward_t(&images(28), false).unwrap());
            values(&pooled).iter().zip(own).for_each(|(a, b)| assert!((a - b).abs() < 1e-5, "{a} {b}"));
        }
    }

    #[test]
    fn too_small_images_and_other_shapes_are_refused() {
        let params = Params::new(1, DType::F32, &Device::Cpu);
        let net = tiny(Stem::ImageNet).build(&params.root()).unwrap();
        let x = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        for (shape, train, part) in [
            (&[2, 3, 0, 8][..], false, "no pixels"),
            (&[2, 1, 8, 8], false, "the image has 1 channels, the kernel expects 3"),
            (&[3, 8, 8], false, "expected images (B, 3, H, W), got shape [3, 8, 8]"),
            // A single image of which a single pixel remains.
            (&[1, 3, 2, 2], true, "at least two values per channel"),
        ] {
            let error = net.forward_t(&x(shape), train).unwrap_err().to_string();
            assert!(error.contains(part), "{shape:?}: {error}");
        }
        assert!(net.forward_t(&x(&[1, 3, 2, 2]), false).is_ok());
    }

    #[test]
    fn impossible_settings_are_refused_with_their_value() {
        let base = RegNetConfig::regnet_y_400mf();
        for (config, part) in [
            (RegNetConfig { depth: 0, ..base }, "depth of a regnet is 0, must be in 1..=1000"),
            (RegNetConfig { initial_width: 20, ..base }, "initial width of a regnet is 20"),
            (RegNetConfig { width_slope: -1.0, ..base }, "width slope of a regnet is -1"),
            (RegNetConfig { width_multiplier: 1.0, ..base }, "width multiplier of a regnet is 1"),
            (RegNetConfig { group_width: 0, ..base }, "group width of a regnet is 0"),
        ] {
            let params = Params::new(1, DType::F32, &Device::Cpu);
            let error = config.build(&params.root()).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let width = BackboneConfig { width: Some(8), ..BackboneConfig::named("regnet_y_400mf").unwrap() };
        assert!(width.validate().unwrap_err().contains("backbone.width is no setting of `regnet_y_400mf`"));
    }
}
