//! Losses and their gradients against lightly.

use anyhow::Result;
use candle_core::{Tensor, Var};
use ssl_vision::losses::{SwavLoss, nt_xent, sinkhorn};

use super::case::Case;
use super::check::Check;

pub(crate) fn run(case: &Case<'_>, check: &mut Check<'_>) -> Result<bool> {
    if case.entry.case.starts_with("swav") {
        return swav(case, check);
    }
    let memory = case.params.optional::<usize>("memory_bank_size")?.unwrap_or(0);
    if !case.entry.case.starts_with("ntxent") || memory > 0 {
        return Ok(false);
    }
    let z0 = Var::from_tensor(case.tensor("in.z0")?)?;
    let z1 = Var::from_tensor(case.tensor("in.z1")?)?;
    let loss = nt_xent(&z0, &z1, case.params.get("temperature")?)?;
    let grads = loss.backward()?;
    check.tensor("out.loss", &loss)?;
    for (name, var) in [("grad.z0", &z0), ("grad.z1", &z1)] {
        if let Some(grad) = grads.get(var) {
            check.tensor(name, grad)?;
        }
    }
    Ok(true)
}

/// The codes of SwAV, and its loss on scores.
fn swav(case: &Case<'_>, check: &mut Check<'_>) -> Result<bool> {
    if case.entry.expects("out.codes") {
        let (epsilon, iterations) = (case.params.get("epsilon")?, case.params.get("iterations")?);
        check.tensor("out.codes", &sinkhorn(case.tensor("in.scores")?, epsilon, iterations)?)?;
        return Ok(true);
    }
    let assigning_views = case.params.get("n_high")?;
    let low: usize = case.params.get("n_low")?;
    let names = (0..assigning_views).map(|i| format!("high{i}")).chain((0..low).map(|i| format!("low{i}")));
    let vars = names.map(|name| Ok((Var::from_tensor(case.tensor(&format!("in.{name}"))?)?, name)));
    let vars = vars.collect::<Result<Vec<_>>>()?;
    let scores: Vec<Tensor> = vars.iter().map(|(var, _)| var.as_tensor().clone()).collect();
    let queues = case.names_after("in.queue").into_iter();
    let queues = queues.map(|i| Ok(case.tensor(&format!("in.queue{i}"))?.clone()));
    let loss = SwavLoss {
        assigning_views,
        temperature: case.params.get("temperature")?,
        epsilon: case.params.get("sinkhorn_epsilon")?,
        iterations: case.params.get("sinkhorn_iterations")?,
    };
    let (loss, _) = loss.forward(&scores, &queues.collect::<Result<Vec<_>>>()?)?;
    let grads = loss.backward()?;
    check.tensor("out.loss", &loss)?;
    for (var, name) in &vars {
        if let Some(grad) = grads.get(var) {
            check.tensor(&format!("grad.{name}"), grad)?;
        }
    }
    Ok(true)
}
