//! Whole training steps: views of a batch to the loss of a method, backward pass, AdamW, and what a teacher then does.

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor, Var};
use ssl_vision::augment::random::uniform;
use ssl_vision::backbones::{BackboneConfig, Stem, VitOptions};
use ssl_vision::methods::{
    Batch, DinoConfig, MaeConfig, MethodConfig, SimClrConfig, StepContext, TrainingData,
};
use ssl_vision::nn::{Params, Probe, Purpose, on_worker, rng};
use ssl_vision::train::{Gradients, Optimizer, OptimizerConfig, Rates};

use super::Suite;
use super::layer::{Conv, RESNET18_CIFAR};
use super::measure::{Case, Roof, Timing, Unit, time};

/// A training step.
struct Step {
    id: &'static str,
    backbone: fn() -> candle_core::Result<BackboneConfig>,
    method: fn() -> MethodConfig,
    /// Side of each view in pixels.
    views: &'static [usize],
    /// Images.
    batch: usize,
}

const STEPS: [Step; 6] = [
    Step {
        id: "resnet18-cifar-32/simclr/b64",
        backbone: || resnet("resnet18", Stem::Cifar),
        method: simclr,
        views: &[32, 32],
        batch: 64,
    },
    Step {
        id: "resnet50-224/simclr/b4",
        backbone: || resnet("resnet50", Stem::ImageNet),
        method: simclr,
        views: &[224, 224],
        batch: 4,
    },
    Step {
        id: "vit-tiny-p4-32/simclr/b64",
        backbone: || vit("vit_tiny", 32, 4),
        method: simclr,
        views: &[32, 32],
        batch: 64,
    },
    Step {
        id: "vit-small-p8-96/simclr/b8",
        backbone: || vit("vit_small", 96, 8),
        method: simclr,
        views: &[96, 96],
        batch: 8,
    },
    Step {
        id: "vit-tiny-p4-32/dino/b64",
        backbone: || vit("vit_tiny", 32, 4),
        method: dino,
        views: &[32, 32, 16, 16, 16, 16],
        batch: 64,
    },
    Step { id: "vit-tiny-p4-32/mae/b64", backbone: vit_mae, method: || mae(0.75), views: &[32], batch: 64 },
];

/// Steps without a peer: two of them with the key `backbone.recompute`, and MAE with an encoder that sees all patches but
/// one.
const ALONE: [Step; 3] = [
    Step {
        id: "resnet50-224-recompute/simclr/b4",
        backbone: || recompute(resnet("resnet50", Stem::ImageNet)?),
        method: simclr,
        views: &[224, 224],
        batch: 4,
    },
    Step {
        id: "vit-small-p8-96-recompute/simclr/b8",
        backbone: || recompute(vit("vit_small", 96, 8)?),
        method: simclr,
        views: &[96, 96],
        batch: 8,
    },
    Step {
        id: "vit-tiny-p4-32/mae-full/b64",
        backbone: vit_mae,
        method: || mae(0.01),
        views: &[32],
        batch: 64,
    },
];

pub(super) fn cases() -> Vec<Case> {
    let step = |step: &'static Step| {
        Case::new(Suite::Step, step.id, Unit::Images(step.batch as f64), || step.timing())
    };
    let roof = Case::new(
        Suite::Step,
        "gemm-roof",
        Unit::Flop(resnet18_flop(Conv::executed_step_flop)),
        share_of_roof,
    );
    let alone = ALONE.iter().map(step).map(|case| Case { has_peer: false, ..case });
    let adamw = Case::new(Suite::Step, "adamw/resnet18-cifar-32", Unit::Call, adamw_resnet18);
    let others = [adamw, Case { has_peer: false, ..roof }];
    STEPS.iter().map(step).chain(alone).chain(others).collect()
}

fn resnet(name: &str, stem: Stem) -> candle_core::Result<BackboneConfig> {
    Ok(BackboneConfig { stem: Some(stem), ..BackboneConfig::named(name)? })
}

fn vit(name: &str, image_size: usize, patch_size: usize) -> candle_core::Result<BackboneConfig> {
    let (image_size, patch_size) = (Some(image_size), Some(patch_size));
    Ok(BackboneConfig { image_size, patch_size, ..BackboneConfig::named(name)? })
}

fn vit_mae() -> candle_core::Result<BackboneConfig> {
    Ok(BackboneConfig { vit: Some(VitOptions::mae()), ..vit("vit_tiny", 32, 4)? })
}

fn simclr() -> MethodConfig {
    MethodConfig::SimClr(SimClrConfig::default())
}

/// With as many prototypes as small images need, which learn.
fn dino() -> MethodConfig {
    let config = DinoConfig { prototypes: 4096, freeze_last_layer_epochs: 0, ..DinoConfig::default() };
    MethodConfig::Dino(config)
}

/// With a decoder for small images.
fn mae(mask_ratio: f64) -> MethodConfig {
    let sizes = MaeConfig { decoder_dim: 128, decoder_depth: 2, decoder_heads: 4, ..MaeConfig::default() };
    MethodConfig::Mae(MaeConfig { mask_ratio, ..sizes })
}

fn recompute(config: BackboneConfig) -> candle_core::Result<BackboneConfig> {
    Ok(BackboneConfig { recompute: Some(true), ..config })
}

impl Step {
    fn timing(&self) -> Result<Timing> {
        let params = Params::new(0, DType::F32, &Device::Cpu);
        let data = TrainingData { images: self.batch, mean: [0.5; 3], std: [0.25; 3] };
        let mut method = (self.method)().build(&(self.backbone)()?, &params, &data)?;
        let trainable = params.trainable();
        let adamw = OptimizerConfig::named("adamw").context("adamw")?;
        let mut optimizer = Optimizer::new(&adamw, &trainable)?;
        let view = |(seed, size): (u64, &usize)| noise(seed, (self.batch, 3, *size, *size));
        let views = (0..).zip(self.views).map(view).collect::<Result<_>>()?;
        let batch = Batch { views, index: (0..self.batch).collect(), text: None };
        let context = StepContext { step: 0, total_steps: 1, steps_per_epoch: 1, part: 0, seed: 0 };
        let mut step = || -> Result<()> {
            let output = method.loss(&batch, &context)?;
            let mut gradients = Gradients::default();
            gradients.accumulate(&trainable, &mut output.loss.backward()?, 1.0)?;
            optimizer.step(&gradients, Rates::lr(1e-3))?;
            Ok(method.after_step(&context, &output.memory)?)
        };
        time(2, 3, || on_worker(&mut step))
    }
}

/// The update of a ResNet-18's 11.2 million parameters alone.
fn adamw_resnet18() -> Result<Timing> {
    let params = Params::new(0, DType::F32, &Device::Cpu);
    (STEPS[0].backbone)()?.build(&params.root())?;
    let trainable = params.trainable();
    let gradient = |(name, var): &(String, Var)| Ok((name.clone(), noise(0, var.shape())?));
    let gradients = Gradients::new(trainable.iter().map(gradient).collect::<Result<_>>()?);
    let adamw = OptimizerConfig::named("adamw").context("adamw")?;
    let mut optimizer = Optimizer::new(&adamw, &trainable)?;
    time(3, 10, || Ok(optimizer.step(&gradients, Rates::lr(1e-3))?))
}

/// The first step beside the time that its convolutions would take at the rate of a large matrix multiplication: the
/// faster one of candle's and of our own kernels.
fn share_of_roof() -> Result<Timing> {
    const N: usize = 1024;
    let (a, b) = (noise(0, (N, N))?, noise(1, (N, N))?);
    let candle = time(3, 5, || Ok(a.matmul(&b)?))?;
    let probe = Probe::new(N)?;
    let ours = time(3, 5, || Ok(probe.multiply()))?;
    let flop_per_second = 2.0 * (N as f64).powi(3) / candle.seconds.min(ours.seconds);
    let roof = Roof {
        executed_seconds: resnet18_flop(Conv::executed_step_flop) / flop_per_second,
        direct_seconds: resnet18_flop(Conv::step_flop) / flop_per_second,
    };
    Ok(Timing { roof: Some(roof), ..STEPS[0].timing()? })
}

/// Arithmetic of the convolutions of the first step, as `count` has it for each.
fn resnet18_flop(count: fn(&Conv, usize) -> f64) -> f64 {
    let views = 2 * STEPS[0].batch;
    RESNET18_CIFAR.iter().map(|(conv, times)| *times as f64 * count(conv, views)).sum()
}

/// Uniform numbers of variance 1.
pub(super) fn noise(seed: u64, shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    let shape = shape.into();
    let mut rng = rng(seed, Purpose::Init, 0, 0, 0);
    let bound = 3f64.sqrt();
    let data: Vec<f32> = (0..shape.elem_count()).map(|_| uniform(&mut rng, [-bound, bound]) as f32).collect();
    Ok(Tensor::from_vec(data, shape, &Device::Cpu)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_that_of_the_published_network() {
        // 0.556 billion multiplications for a 32-pixel image, three times for a step, less the stem's input gradient.
        let per_pair = |count| resnet18_flop(count) / STEPS[0].batch as f64;
        let direct = per_pair(Conv::step_flop);
        assert!((6.6e9..6.75e9).contains(&direct), "{direct:e}");
        // Winograd's method serves nine tenths of it, with 16 multiplications in place of 36.
        let executed = per_pair(Conv::executed_step_flop);
        assert!((0.48..0.55).contains(&(executed / direct)), "{executed:e}");
    }
}
