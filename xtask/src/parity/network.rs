//! What backbones and heads have in common: pattern weights in, outputs and gradients out.

use anyhow::Result;
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use ssl_vision::nn::Params;

use super::case::{Case, elements};
use super::check::{Check, norm};
use super::pattern;

/// An empty store for the network of a case.
pub(crate) fn params() -> Params {
    Params::new(0, DType::F32, &Device::Cpu)
}

/// Fills the store with the case's weights and judges its size.
pub(crate) fn load(case: &Case<'_>, check: &mut Check<'_>, params: &Params) -> Result<()> {
    params.load(&pattern::weights(case, check)?)?;
    if let Some(expected) = case.entry.n_parameters {
        check.number("number of parameters", params.num_trainable() as f64, expected as f64, [0.0, 0.0]);
    }
    Ok(())
}

/// The modes of a case, each with the suffix of its results. A network that is the same in both has no suffix.
pub(crate) fn modes(case: &Case<'_>) -> Vec<(bool, &'static str)> {
    if case.entry.expects("out.loss") { vec![(false, "")] } else { vec![(false, "_eval"), (true, "_train")] }
}

/// Judges the loss `mean(y P)`, its gradients and their norms, and in training the buffers that the pass has changed.
pub(crate) fn judge_loss(
    case: &Case<'_>,
    check: &mut Check<'_>,
    params: &Params,
    (x, y): (&Var, &Tensor),
    (train, suffix): (bool, &str),
) -> Result<()> {
    let loss = (y.to_dtype(DType::F64)? * pattern::loss_factors(y.dims())?)?.mean_all()?;
    check.tensor(&format!("out.loss{suffix}"), &loss)?;
    let grads = loss.backward()?;
    if let Some(grad) = grads.get(x) {
        check.tensor(&format!("grad.x{suffix}"), grad)?;
    }
    for (name, var) in params.trainable() {
        if let Some(grad) = grads.get(&var) {
            check.tensor(&format!("grad.param.{name}{suffix}"), grad)?;
        }
    }
    judge_norms(case, check, params, &grads, if train { "train" } else { "eval" })?;
    if train {
        for (name, var) in params.buffers() {
            check.tensor(&format!("out.after_train.{name}"), &var)?;
        }
    }
    Ok(())
}

fn judge_norms(
    case: &Case<'_>,
    check: &mut Check<'_>,
    params: &Params,
    grads: &GradStore,
    mode: &str,
) -> Result<()> {
    let entry = case.entry;
    let tolerance = entry.grad_norm_tol.get(mode).copied().unwrap_or([entry.rtol, entry.atol]);
    for (name, expected) in entry.grad_norms.get(mode).into_iter().flatten() {
        let var = params.get(name);
        let grad = var.as_ref().and_then(|var| grads.get(var));
        let norm = grad.map(|grad| Ok::<_, anyhow::Error>(norm(&elements(grad)?))).transpose()?;
        match (norm, expected) {
            (Some(norm), Some(expected)) => {
                check.number(
                    &format!("norm of the gradient of `{name}`, {mode}"),
                    norm,
                    *expected,
                    tolerance,
                );
            }
            (None, Some(_)) => check.fail(format!("`{name}` has no gradient in mode {mode}")),
            (Some(norm), None) if norm != 0.0 => {
                check.fail(format!("`{name}` has a gradient of norm {norm} in mode {mode}, expected none"));
            }
            _ => {}
        }
    }
    Ok(())
}
