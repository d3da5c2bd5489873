//! Schedules against lightly, timm, PyTorch, DINO's code and published formulas, each written with our own.

use anyhow::{Context, Result, bail};
use ssl_vision::nn::Schedule;

use super::case::{Case, Options};
use super::check::Check;

pub(crate) fn run(case: &Case<'_>, check: &mut Check<'_>) -> Result<bool> {
    for series in case.params.keys() {
        let name = format!("out.f64.{series}");
        let schedule =
            schedule(&case.params.nested(series)?).with_context(|| format!("series `{series}`"))?;
        let len = case.tensor(&name)?.elem_count();
        let values: Vec<f64> = (0..len).map(|step| schedule.at(step)).collect();
        check.values(&name, &[len], &values)?;
    }
    Ok(true)
}

/// The schedule of the reference function that `symbol` names.
fn schedule(options: &Options) -> Result<Schedule> {
    let symbol: String = options.get("symbol")?;
    // The longer name first where one contains another.
    match symbol.as_str() {
        name if name.contains("CosineWarmupScheduler") => lightly_scheduler(options),
        name if name.contains("cosine_warmup_schedule") => lightly_warmup(options),
        name if name.contains("linear_warmup_schedule") => lightly_linear(options),
        name if name.contains("cosine_scheduler") => dino_cosine(options),
        name if name.contains("cosine_schedule") => {
            lightly_cosine(options, options.get("start")?, options.get("end")?, options.get("max_steps")?)
        }
        name if name.contains("linspace") => {
            Ok(linspace(options.get("start")?, options.get("end")?, options.get("steps")?))
        }
        name if name.contains("CosineLRScheduler") => timm_cosine(options),
        name if name.contains("CosineAnnealingLR") => torch_cosine(options),
        name if name.contains("MultiStepLR") => torch_steps(options),
        "momentum_cosine" => {
            Ok(Schedule::cosine(options.get("start")?, options.get("end")?, options.get("steps")?))
        }
        "momentum_linear" => Ok(Schedule::Linear {
            start: options.get("start")?,
            end: options.get("end")?,
            steps: options.get("steps")?,
            offset: 0.0,
        }),
        "momentum_constant" => Ok(Schedule::Constant(options.get("start")?)),
        name => bail!("no schedule like `{name}`"),
    }
}

/// `lightly.utils.scheduler.cosine_schedule`: at its end from step `max_steps - 1` on, or a whole wave every `period`.
fn lightly_cosine(options: &Options, start: f64, end: f64, max_steps: usize) -> Result<Schedule> {
    Ok(match options.optional::<f64>("period")? {
        Some(period) => Schedule::Cosine { start, end, steps: period / 2.0, periodic: true },
        None => Schedule::Cosine { start, end, steps: max_steps as f64 - 1.0, periodic: false },
    })
}

/// `lightly.utils.scheduler.cosine_warmup_schedule`: step 0 is already one part of the way up.
fn lightly_warmup(options: &Options) -> Result<Schedule> {
    let (start, end) = (options.get("start_value")?, options.get("end_value")?);
    let (warmup, max_steps): (usize, usize) = (options.get("warmup_steps")?, options.get("max_steps")?);
    let rise_to = options.optional("warmup_end_value")?.unwrap_or(start);
    let rest = lightly_cosine(options, start, end, max_steps.saturating_sub(warmup))?;
    Ok(then(rise(options.get("warmup_start_value")?, rise_to, warmup, 1.0), warmup, rest, true))
}

/// `lightly.utils.scheduler.CosineWarmupScheduler`: `base_lr` times such a schedule from 0.
fn lightly_scheduler(options: &Options) -> Result<Schedule> {
    let base: f64 = options.get("base_lr")?;
    let (start, end) = (base * options.get::<f64>("start_value")?, base * options.get::<f64>("end_value")?);
    let (warmup, max_epochs): (usize, usize) = (options.get("warmup_epochs")?, options.get("max_epochs")?);
    let rest = lightly_cosine(options, start, end, max_epochs.saturating_sub(warmup))?;
    Ok(then(rise(0.0, start, warmup, 1.0), warmup, rest, true))
}

/// `lightly.utils.scheduler.linear_warmup_schedule`.
fn lightly_linear(options: &Options) -> Result<Schedule> {
    Ok(rise(options.get("start_value")?, options.get("end_value")?, options.get("warmup_steps")?, 0.0))
}

/// `cosine_scheduler` of DINO: the warm-up ends on the base value, the wave stops one step before the final value.
fn dino_cosine(options: &Options) -> Result<Schedule> {
    let (start, end) = (options.get("base_value")?, options.get("final_value")?);
    let (warmup, total): (usize, usize) = (options.get("warmup_iters")?, options.get("total_iters")?);
    let steps = total.saturating_sub(warmup) as f64;
    let rest = Schedule::Cosine { start, end, steps, periodic: false };
    Ok(then(linspace(options.get("start_warmup_value")?, start, warmup), warmup, rest, true))
}

/// `timm.scheduler.CosineLRScheduler`: the warm-up hides the start of the wave, or with `warmup_prefix` precedes it.
fn timm_cosine(options: &Options) -> Result<Schedule> {
    let (start, end, warmup) = (options.get("base_lr")?, options.get("lr_min")?, options.get("warmup_t")?);
    let rest = Schedule::Cosine { start, end, steps: options.get("t_initial")?, periodic: false };
    let first = rise(options.get("warmup_lr_init")?, start, warmup, 0.0);
    Ok(then(first, warmup, rest, options.get("warmup_prefix")?))
}

/// `torch.optim.lr_scheduler.CosineAnnealingLR`: rises again after `T_max`.
fn torch_cosine(options: &Options) -> Result<Schedule> {
    let (start, end, steps) = (options.get("base_lr")?, options.get("eta_min")?, options.get("T_max")?);
    Ok(Schedule::Cosine { start, end, steps, periodic: true })
}

/// `torch.optim.lr_scheduler.MultiStepLR`.
fn torch_steps(options: &Options) -> Result<Schedule> {
    let (start, gamma) = (options.get("base_lr")?, options.get("gamma")?);
    Ok(Schedule::Steps { start, gamma, milestones: options.get("milestones")? })
}

/// `torch.linspace`: `values` steps with both ends.
fn linspace(start: f64, end: f64, values: usize) -> Schedule {
    if values < 2 { Schedule::Constant(start) } else { rise(start, end, values - 1, 0.0) }
}

fn rise(start: f64, end: f64, steps: usize, offset: f64) -> Schedule {
    Schedule::Linear { start, end, steps: steps as f64, offset }
}

fn then(first: Schedule, until: usize, rest: Schedule, restart: bool) -> Schedule {
    Schedule::Then { first: Box::new(first), until, rest: Box::new(rest), restart }
}
