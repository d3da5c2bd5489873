//! Trajectories of optimisers against PyTorch, lightly, the official code of LARS, and published formulas.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use candle_core::{Tensor, Var};
use serde_json::Value;
use ssl_vision::methods::ParameterRule;
use ssl_vision::nn::ema_update;
use ssl_vision::train::{
    AdamConfig, Gradients, LarsConfig, Optimizer, OptimizerConfig, ParamGroup, Rates, SgdConfig,
};

use super::case::{Case, Entry};
use super::check::Check;
use super::schedules;

/// The options that our optimisers have.
const KNOWN: [&str; 10] = [
    "steps",
    "lr",
    "lr_by",
    "weight_decay",
    "momentum",
    "nesterov",
    "betas",
    "eps",
    "trust_coefficient",
    "eta",
];

pub(crate) fn run(case: &Case<'_>, check: &mut Check<'_>) -> Result<bool> {
    let entry = case.entry;
    if entry.case.starts_with("schedules") {
        return schedules::run(case, check);
    }
    if entry.case == "ema" {
        return ema(case, check);
    }
    let own = own_settings(entry)?;
    let Some(config) = own.clone().map_or_else(|| config(entry), |config| Ok(Some(config)))? else {
        return Ok(false);
    };
    let params = case.names_after("in.init.").into_iter();
    let params: Vec<(String, Var)> = params
        .map(|name| Ok((name.to_owned(), Var::from_tensor(case.tensor(&format!("in.init.{name}"))?)?)))
        .collect::<Result<_>>()?;
    let constant: Vec<String> = entry.params.optional("constant_lr")?.unwrap_or_default();
    let groups = match own {
        Some(_) => config.groups(&params, |name| ParameterRule {
            constant_lr: constant.iter().any(|own| own == name),
            ..ParameterRule::default()
        }),
        None => params.iter().map(|(name, var)| group(entry, &config, name, var)).collect::<Result<_>>()?,
    };
    let lrs: Option<Vec<f64>> = entry.params.optional("lrs")?;
    let mut optimizer = Optimizer::with_groups(&config, &params, groups)?;
    let mut trajectories: BTreeMap<&str, Vec<Tensor>> = BTreeMap::new();
    for step in 0..entry.params.get("steps")? {
        let grads = params.iter();
        let grads =
            grads.map(|(name, _)| Ok((name.clone(), case.tensor(&format!("in.grads.{name}"))?.get(step)?)));
        let lr = lrs.as_ref().and_then(|lrs| lrs.get(step).copied()).unwrap_or(config.lr());
        optimizer.step(&Gradients::new(grads.collect::<Result<_>>()?), Rates::lr(lr))?;
        for (name, var) in &params {
            trajectories.entry(name).or_default().push(var.as_tensor().copy()?);
        }
    }
    for (name, trajectory) in &trajectories {
        check.tensor(&format!("out.params.{name}"), &Tensor::stack(trajectory, 0)?)?;
    }
    Ok(true)
}

fn ema(case: &Case<'_>, check: &mut Check<'_>) -> Result<bool> {
    let (momentum, steps): (f64, usize) = (case.params.get("m")?, case.params.get("steps")?);
    for name in case.names_after("in.ema0.") {
        let average = Var::from_tensor(case.tensor(&format!("in.ema0.{name}"))?)?;
        let mut trajectory = Vec::new();
        for step in 0..steps {
            ema_update(&average, &case.tensor(&format!("in.model.{name}"))?.get(step)?, momentum)?;
            trajectory.push(average.copy()?);
        }
        check.tensor(&format!("out.ema.{name}"), &Tensor::stack(&trajectory, 0)?)?;
    }
    Ok(true)
}

/// The rule of a case whose settings have the names of a recipe's; our own grouping belongs to it.
fn own_settings(entry: &Entry) -> Result<Option<OptimizerConfig>> {
    let Some(exclude_bias_and_norm) = entry.params.optional("exclude_bias_and_norm")? else {
        return Ok(None);
    };
    let params = &entry.params;
    Ok(Some(OptimizerConfig::Lars(LarsConfig {
        lr: params.get("lr")?,
        momentum: params.get("momentum")?,
        nesterov: params.get("nesterov")?,
        weight_decay: params.get("weight_decay")?,
        trust_coefficient: params.get("trust_coefficient")?,
        separate_norms: params.get("separate_norms")?,
        eps: params.get("eps")?,
        lr_in_momentum: params.get("lr_in_momentum")?,
        clip: params.get("clip")?,
        exclude_bias_and_norm,
        bias_and_norm_lr_factor: params.get("bias_and_norm_lr_factor")?,
    })))
}

/// The rule of a case, or `None` if we have none like it. Decays of single parameters are left to [`group`].
fn config(entry: &Entry) -> Result<Option<OptimizerConfig>> {
    let rules = ["sgd", "adamw", "adam", "lars_official", "lars"];
    let Some(rule) = rules.into_iter().find(|rule| entry.case.starts_with(rule)) else { return Ok(None) };
    if !entry.params.all_among(&KNOWN) {
        return Ok(None);
    }
    let lr = entry.params.get("lr")?;
    let weight_decay = 0.0;
    let momentum = entry.params.optional("momentum")?.unwrap_or(0.0);
    let nesterov = entry.params.optional("nesterov")?.unwrap_or(false);
    let adam = || {
        let [beta1, beta2] = entry.params.get("betas")?;
        let eps = entry.params.get("eps")?;
        Ok::<_, anyhow::Error>(AdamConfig {
            lr,
            beta1,
            beta2,
            eps,
            weight_decay,
            exclude_bias_and_norm: false,
        })
    };
    let eps = entry.params.optional("eps")?.unwrap_or(1e-8);
    let lars = |trust_coefficient, separate_norms| {
        OptimizerConfig::Lars(LarsConfig {
            lr,
            momentum,
            nesterov,
            weight_decay,
            trust_coefficient,
            separate_norms,
            eps,
            lr_in_momentum: false,
            clip: false,
            exclude_bias_and_norm: true,
            bias_and_norm_lr_factor: 1.0,
        })
    };
    Ok(Some(match rule {
        "sgd" => OptimizerConfig::Sgd(SgdConfig {
            lr,
            momentum,
            nesterov,
            weight_decay,
            exclude_bias_and_norm: false,
        }),
        "adamw" => OptimizerConfig::AdamW(adam()?),
        "adam" => OptimizerConfig::Adam(adam()?),
        "lars_official" => lars(entry.params.get("eta")?, false),
        _ => lars(entry.params.get("trust_coefficient")?, true),
    }))
}

/// The group of one parameter. The references of LARS leave biases alone in two ways: lightly by a group without
/// decay, which the notes name and which is not scaled either; the official code by rank.
fn group(entry: &Entry, config: &OptimizerConfig, name: &str, var: &Var) -> Result<ParamGroup> {
    let own_decay = per_parameter(entry, "weight_decay", name)?.unwrap_or(0.0);
    let (weight_decay, adapt) = match config {
        OptimizerConfig::Lars(lars) if lars.separate_norms => {
            let decays = own_decay != 0.0 && !excluded_names(&entry.notes)?.contains(&name);
            (if decays { own_decay } else { 0.0 }, decays)
        }
        OptimizerConfig::Lars(_) if var.rank() <= 1 => (0.0, false),
        _ => (own_decay, true),
    };
    let lr: f64 = entry.params.get("lr")?;
    Ok(ParamGroup {
        name: name.to_owned(),
        members: vec![name.to_owned()],
        lr_factor: per_parameter(entry, "lr_by", name)?.map_or(1.0, |own| own / lr),
        constant_lr: false,
        weight_decay,
        adapt,
    })
}

/// The names in `group 'excluded' = {b, c}`.
fn excluded_names(notes: &str) -> Result<Vec<&str>> {
    let names = notes.split_once("'excluded' = {").and_then(|(_, rest)| rest.split_once('}'));
    match names {
        Some((names, _)) => Ok(names.split(',').map(str::trim).collect()),
        None => bail!("the notes do not say which parameters are excluded"),
    }
}

/// A number for all parameters or a map by name.
fn per_parameter(entry: &Entry, key: &str, name: &str) -> Result<Option<f64>> {
    let value: Option<Value> = entry.params.optional(key)?;
    Ok(value.and_then(|value| value.get(name).cloned().unwrap_or(value).as_f64()))
}
