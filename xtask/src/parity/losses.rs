//! Losses and their gradients against lightly.

use anyhow::Result;
use candle_core::Var;
use ssl_vision::losses::nt_xent;

use super::case::Case;
use super::check::Check;

pub(crate) fn run(case: &Case<'_>, check: &mut Check<'_>) -> Result<bool> {
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
