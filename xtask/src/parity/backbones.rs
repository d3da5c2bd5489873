//! Residual networks against torchvision: outputs, gradients, running statistics.

use anyhow::Result;
use candle_core::Var;
use ssl_vision::backbones::{BackboneConfig, ResNet, ResNetConfig, Stem};
use ssl_vision::nn::global_avg_pool;

use super::case::{Case, Entry, elements};
use super::check::{Check, norm};
use super::network;

pub(crate) fn run(case: &Case<'_>, check: &mut Check<'_>) -> Result<bool> {
    let Some(config) = config(case.entry)? else { return Ok(false) };
    let params = network::params();
    let resnet = config.build(&params.root())?;
    network::load(case, check, &params)?;
    let x = Var::from_tensor(case.tensor("in.x")?)?;
    for (train, suffix) in network::modes(case) {
        let pooled = judge_stages(check, &resnet, &x, (train, suffix))?;
        network::judge_loss(case, check, &params, (&x, &pooled), (train, suffix))?;
    }
    Ok(true)
}

/// The network that the entry names, or `None` if we have none like it.
fn config(entry: &Entry) -> Result<Option<ResNetConfig>> {
    let symbols = || entry.origin.split(|c: char| !c.is_alphanumeric() && c != '_');
    let Some(name) = BackboneConfig::NAMES.into_iter().find(|name| symbols().any(|symbol| symbol == *name))
    else {
        return Ok(None);
    };
    let base = match name {
        "resnet18" => ResNetConfig::resnet18(),
        "resnet34" => ResNetConfig::resnet34(),
        "resnet50" => ResNetConfig::resnet50(),
        _ => return Ok(None),
    };
    let eps = entry.params.optional("bn_eps")?.unwrap_or(1e-5);
    let momentum = entry.params.optional("bn_momentum")?.unwrap_or(0.1);
    if (eps, momentum) != (1e-5, 0.1) {
        return Ok(None);
    }
    let stem =
        if entry.params.optional("cifar_stem")?.unwrap_or(false) { Stem::Cifar } else { Stem::ImageNet };
    let width = entry.weights.get("conv1.weight").and_then(|weight| weight.shape.first().copied());
    let width = width.unwrap_or(base.width);
    Ok(Some(ResNetConfig { stem, width, ..base }))
}

/// Judges the outputs of the stages and returns their pooled end.
fn judge_stages(
    check: &mut Check<'_>,
    resnet: &ResNet,
    x: &Var,
    (train, suffix): (bool, &str),
) -> Result<candle_core::Tensor> {
    let stages = resnet.forward_stages(x, train)?;
    let mut norms = Vec::with_capacity(stages.len());
    for (stage, i) in stages.iter().zip(1..) {
        check.tensor(&format!("out.layer{i}{suffix}"), stage)?;
        norms.push(norm(&elements(stage)?));
    }
    check.values(&format!("out.stage_l2{suffix}"), &[norms.len()], &norms)?;
    let pooled = global_avg_pool(&stages[stages.len() - 1])?;
    check.tensor(&format!("out.pooled{suffix}"), &pooled)?;
    Ok(pooled)
}
