//! Networks against torchvision and timm: outputs, gradients, running statistics.

use anyhow::Result;
use candle_core::{Tensor, Var};
use ssl_vision::backbones::{Backbone, BackboneConfig, RegNetConfig, ResNetConfig, Stem, VitConfig};
use ssl_vision::nn::global_avg_pool;

use super::case::{Case, Entry, elements};
use super::check::{Check, norm};
use super::network;

pub(crate) fn run(case: &Case<'_>, check: &mut Check<'_>) -> Result<bool> {
    if let Some(config) = vit(case.entry)? {
        return judge_vit(case, check, config);
    }
    if super::vit::run(case, check)? {
        return Ok(true);
    }
    let params = network::params();
    let stages: Stages = if let Some(config) = resnet(case.entry)? {
        let resnet = config.build(&params.root())?;
        Box::new(move |x, train| resnet.forward_stages(x, train))
    } else if let Some(config) = regnet(case.entry)? {
        let regnet = config.build(&params.root())?;
        Box::new(move |x, train| regnet.forward_stages(x, train))
    } else {
        return Ok(false);
    };
    network::load(case, check, &params)?;
    let x = Var::from_tensor(case.tensor("in.x")?)?;
    for (train, suffix) in network::modes(case) {
        let pooled = judge_stages(check, &stages(&x, train)?, suffix)?;
        network::judge_loss(case, check, &params, (&x, &pooled), (train, suffix))?;
    }
    Ok(true)
}

/// The outputs of a network's stages, given images and whether it trains.
type Stages = Box<dyn Fn(&Tensor, bool) -> candle_core::Result<Vec<Tensor>>>;

/// The vision transformer of timm that the entry names, or `None` if it is none.
fn vit(entry: &Entry) -> Result<Option<VitConfig>> {
    let known =
        [("vit_tiny_patch16_224", VitConfig::vit_tiny()), ("vit_small_patch16_224", VitConfig::vit_small())];
    let Some((_, base)) = known.into_iter().find(|(name, _)| entry.origin.contains(name)) else {
        return Ok(None);
    };
    let (image_size, patch_size) = (entry.params.get("img_size")?, entry.params.get("patch_size")?);
    Ok(Some(VitConfig { image_size, patch_size, ..base }))
}

/// Judges the tokens, the class token and the gradients of the mean of the tokens.
fn judge_vit(case: &Case<'_>, check: &mut Check<'_>, config: VitConfig) -> Result<bool> {
    let params = network::params();
    let vit = config.build(&params.root())?;
    network::load(case, check, &params)?;
    let x = Var::from_tensor(case.tensor("in.x")?)?;
    let tokens = vit.forward_features(&x)?;
    check.tensor("out.tokens", &tokens)?;
    check.tensor("out.cls", &vit.forward_t(&x, false)?)?;
    for (train, suffix) in network::modes(case) {
        network::judge_loss(case, check, &params, (&x, &tokens), (train, suffix))?;
    }
    Ok(true)
}

/// The residual network that the entry names, or `None` if we have none like it.
fn resnet(entry: &Entry) -> Result<Option<ResNetConfig>> {
    let base = match name(entry) {
        Some("resnet18") => ResNetConfig::resnet18(),
        Some("resnet34") => ResNetConfig::resnet34(),
        Some("resnet50") => ResNetConfig::resnet50(),
        _ => return Ok(None),
    };
    if !has_our_norms(entry)? {
        return Ok(None);
    }
    let stem =
        if entry.params.optional("cifar_stem")?.unwrap_or(false) { Stem::Cifar } else { Stem::ImageNet };
    let width = entry.weights.get("conv1.weight").and_then(|weight| weight.shape.first().copied());
    let width = width.unwrap_or(base.width);
    Ok(Some(ResNetConfig { stem, width, ..base }))
}

/// The RegNet that the entry names, or `None` if we have none like it.
fn regnet(entry: &Entry) -> Result<Option<RegNetConfig>> {
    let base = match name(entry) {
        Some("regnet_y_400mf") => RegNetConfig::regnet_y_400mf(),
        Some("regnet_y_800mf") => RegNetConfig::regnet_y_800mf(),
        Some("regnet_y_1_6gf") => RegNetConfig::regnet_y_1_6gf(),
        _ => return Ok(None),
    };
    let group_width: usize = entry.params.get("group_width")?;
    let squeeze: f64 = entry.params.get("se_ratio")?;
    let same = group_width == base.group_width && squeeze == 0.25 && has_our_norms(entry)?;
    Ok(same.then_some(base))
}

/// Our name of the network that the entry names.
fn name(entry: &Entry) -> Option<&'static str> {
    let symbols = || entry.origin.split(|c: char| !c.is_alphanumeric() && c != '_');
    BackboneConfig::NAMES.into_iter().find(|name| symbols().any(|symbol| symbol == *name))
}

/// Whether the batch norms have the settings that ours have.
fn has_our_norms(entry: &Entry) -> Result<bool> {
    let eps = entry.params.optional("bn_eps")?.unwrap_or(1e-5);
    let momentum = entry.params.optional("bn_momentum")?.unwrap_or(0.1);
    Ok((eps, momentum) == (1e-5, 0.1))
}

/// Judges the outputs of the stages and returns their pooled end.
fn judge_stages(check: &mut Check<'_>, stages: &[Tensor], suffix: &str) -> Result<Tensor> {
    let mut norms = Vec::with_capacity(stages.len());
    for (stage, i) in stages.iter().zip(1..) {
        check.tensor(&format!("out.layer{i}{suffix}"), stage)?;
        norms.push(norm(&elements(stage)?));
    }
    check.values(&format!("out.stage_l2{suffix}"), &[norms.len()], &norms)?;
    let last = &stages[stages.len() - 1];
    check.tensor(&format!("out.trunk{suffix}"), last)?;
    let pooled = global_avg_pool(last)?;
    check.tensor(&format!("out.pooled{suffix}"), &pooled)?;
    Ok(pooled)
}
