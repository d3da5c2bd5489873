//! Losses and their gradients against lightly.

use anyhow::Result;
use candle_core::{DType, Device, Tensor, Var};
use ssl_vision::losses::{
    SwavLoss, VicRegWeights, barlow_twins, info_nce, info_nce_logits, negative_cosine, normalize, nt_xent,
    sinkhorn, vicreg, vicreg_terms,
};
use ssl_vision::methods::Queue;
use ssl_vision::nn::Params;

use super::case::Case;
use super::check::Check;

pub(crate) fn run(case: &Case<'_>, check: &mut Check<'_>) -> Result<bool> {
    let memory = case.params.optional::<usize>("memory_bank_size")?.unwrap_or(0);
    let family = case.entry.case.split('_').next().unwrap_or_default();
    match family {
        "swav" => return swav(case, check),
        "moco" => return moco(case, check),
        "ntxent" if memory == 0 => {
            let temperature = case.params.get("temperature")?;
            differentiate(case, check, ["z0", "z1"], |[z0, z1]| nt_xent(z0, z1, temperature))?;
        }
        "barlow" => {
            let lambda = case.params.get("lambda_param")?;
            differentiate(case, check, ["z_a", "z_b"], |[z_a, z_b]| barlow_twins(z_a, z_b, lambda))?;
        }
        "vicreg" => vicreg_case(case, check)?,
        "negative" => differentiate(case, check, ["x0", "x1"], |[x0, x1]| negative_cosine(x0, x1))?,
        // Both directions, towards targets that get no gradient.
        "byol" | "simsiam" => {
            let targets = [case.tensor("in.z0")?, case.tensor("in.z1")?];
            differentiate(case, check, ["p0", "p1"], |[p0, p1]| {
                let cosines = (negative_cosine(p0, targets[1])? + negative_cosine(p1, targets[0])?)?;
                if family == "byol" { (cosines * 2.0)? + 4.0 } else { cosines * 0.5 }
            })?;
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Judges a loss of the inputs `names`, and its gradients.
fn differentiate<const N: usize>(
    case: &Case<'_>,
    check: &mut Check<'_>,
    names: [&str; N],
    loss: impl Fn([&Tensor; N]) -> candle_core::Result<Tensor>,
) -> Result<()> {
    let vars = names.iter().map(|name| Ok(Var::from_tensor(case.tensor(&format!("in.{name}"))?)?));
    let vars = vars.collect::<Result<Vec<Var>>>()?;
    let loss = loss(std::array::from_fn(|i| vars[i].as_tensor()))?;
    let grads = loss.backward()?;
    check.tensor("out.loss", &loss)?;
    for (name, var) in names.iter().zip(&vars) {
        if let Some(grad) = grads.get(var) {
            check.tensor(&format!("grad.{name}"), grad)?;
        }
    }
    Ok(())
}

fn vicreg_case(case: &Case<'_>, check: &mut Check<'_>) -> Result<()> {
    let weights = VicRegWeights {
        invariance: case.params.get("lambda_param")?,
        variance: case.params.get("mu_param")?,
        covariance: case.params.get("nu_param")?,
        halve_variance: true,
    };
    let terms = vicreg_terms(case.tensor("in.z_a")?, case.tensor("in.z_b")?, true)?;
    check.tensor("out.inv", &terms.invariance)?;
    check.tensor("out.var", &terms.variance)?;
    check.tensor("out.cov", &terms.covariance)?;
    differentiate(case, check, ["z_a", "z_b"], |[z_a, z_b]| vicreg(z_a, z_b, &weights))
}

/// The loss with a queue, and the queue afterwards.
fn moco(case: &Case<'_>, check: &mut Check<'_>) -> Result<bool> {
    let (k, queue) = (case.tensor("in.k")?, case.tensor("in.queue")?);
    let temperature: f64 = case.params.get("temperature")?;
    check.tensor("out.logits", &info_nce_logits(case.tensor("in.q")?, k, queue, temperature)?)?;
    differentiate(case, check, ["q"], |[q]| info_nce(q, k, queue, temperature))?;
    let (size, width) = queue.dims2()?;
    let start: usize = case.params.get("ptr_before")?;
    if start + k.dim(0)? >= size {
        // lightly drops the keys that do not fit; ours go round, as in the official code.
        check.exempt("out.queue_after");
        check.exempt("out.ptr_after");
        return Ok(true);
    }
    let params = Params::new(0, DType::F32, &Device::Cpu);
    let own = Queue::new(size, width, &params.root())?;
    params.load(
        &[
            ("queue".to_owned(), queue.clone()),
            ("queue_ptr".to_owned(), Tensor::new(start as i64, &Device::Cpu)?),
        ]
        .into(),
    )?;
    own.enqueue(&normalize(k)?)?;
    check.tensor("out.queue_after", &own.keys())?;
    let pointer = params.get("queue_ptr").map(|pointer| pointer.to_scalar::<i64>()).transpose()?;
    check.number("`out.ptr_after`", pointer.unwrap_or(-1) as f64, (start + k.dim(0)?) as f64, [0.0, 0.0]);
    check.exempt("out.ptr_after");
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
