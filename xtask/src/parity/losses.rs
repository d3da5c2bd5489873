//! Losses and their gradients against lightly and transformers.

use anyhow::Result;
use candle_core::{DType, Device, Tensor, Var};
use ssl_vision::losses::{
    DinoLoss, MsnLoss, SwavLoss, TicoLoss, VicRegWeights, alignment, barlow_twins, centered_targets, clip,
    clip_logits, dcl, dclw, ibot_patches, ibot_weights, info_nce, info_nce_logits, koleo, nearest_neighbors,
    negative_cosine, normalize, nt_xent, sinkhorn, uniformity, updated_center, vicreg, vicreg_terms,
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
        "dino" => dino(case, check)?,
        "ibot" => ibot(case, check)?,
        "msn" => msn(case, check)?,
        "clip" => {
            let [image, text, log_scale] = [
                case.tensor("in.image_embeds")?,
                case.tensor("in.text_embeds")?,
                case.tensor("in.logit_scale")?,
            ];
            check.tensor("out.logits_per_image", &clip_logits(image, text, log_scale)?)?;
            differentiate(case, check, ["image_embeds", "text_embeds", "logit_scale"], |[i, t, s]| {
                clip(i, t, s)
            })?;
        }
        "koleo" => {
            check.tensor("out.nn_index", &nearest_neighbors(case.tensor("in.x")?)?)?;
            differentiate(case, check, ["x"], |[x]| koleo(x))?;
        }
        "dcl" => {
            let temperature = case.params.get("temperature")?;
            differentiate(case, check, ["z0", "z1"], |[z0, z1]| dcl(z0, z1, temperature))?;
        }
        "dclw" => {
            let (temperature, sigma) = (case.params.get("temperature")?, case.params.get("sigma")?);
            differentiate(case, check, ["z0", "z1"], |[z0, z1]| dclw(z0, z1, temperature, sigma))?;
        }
        "hypersphere" => {
            let (t, weight): (f64, f64) = (case.params.get("t")?, case.params.get("lam")?);
            let alpha = case.params.get("alpha")?;
            differentiate(case, check, ["z_a", "z_b"], |[z_a, z_b]| {
                let uniform = (uniformity(z_a, t)? + uniformity(z_b, t)?)?;
                alignment(z_a, z_b, alpha)? + (uniform * (weight / 2.0))?
            })?;
        }
        "tico" => {
            let loss =
                TicoLoss { momentum: case.params.get("beta")?, contrast_weight: case.params.get("rho")? };
            let before = case.tensor("in.C")?;
            let (_, terms) = loss.forward(case.tensor("in.z_a")?, case.tensor("in.z_b")?, before)?;
            check.tensor("out.C_after", &terms.covariance)?;
            differentiate(case, check, ["z_a", "z_b"], |[z_a, z_b]| Ok(loss.forward(z_a, z_b, before)?.0))?;
        }
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
    let vars = inputs(case, names.iter().map(|name| (*name).to_owned()))?;
    let loss = loss(std::array::from_fn(|i| vars[i].1.as_tensor()))?;
    judge(check, &vars, &loss)
}

/// The inputs of these names, as variables.
fn inputs(case: &Case<'_>, names: impl Iterator<Item = String>) -> Result<Vec<(String, Var)>> {
    names.map(|name| Ok((name.clone(), Var::from_tensor(case.tensor(&format!("in.{name}"))?)?))).collect()
}

/// Judges a loss, and its gradients in its inputs.
fn judge(check: &mut Check<'_>, inputs: &[(String, Var)], loss: &Tensor) -> Result<()> {
    let grads = loss.backward()?;
    check.tensor("out.loss", loss)?;
    for (name, var) in inputs {
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
    let vars = inputs(case, names)?;
    let scores: Vec<Tensor> = vars.iter().map(|(_, var)| var.as_tensor().clone()).collect();
    let queues = case.names_after("in.queue").into_iter();
    let queues = queues.map(|i| Ok(case.tensor(&format!("in.queue{i}"))?.clone()));
    let loss = SwavLoss {
        assigning_views,
        temperature: case.params.get("temperature")?,
        epsilon: case.params.get("sinkhorn_epsilon")?,
        iterations: case.params.get("sinkhorn_iterations")?,
    };
    let (loss, _) = loss.forward(&scores, &queues.collect::<Result<Vec<_>>>()?)?;
    judge(check, &vars, &loss)?;
    Ok(true)
}

/// DINO's loss on given logits, and the centre afterwards.
fn dino(case: &Case<'_>, check: &mut Check<'_>) -> Result<()> {
    let (students, teachers): (usize, usize) = (case.params.get("n_student")?, case.params.get("n_teacher")?);
    let vars = inputs(case, (0..students).map(|i| format!("student{i}")))?;
    let student: Vec<Tensor> = vars.iter().map(|(_, var)| var.as_tensor().clone()).collect();
    let teacher = (0..teachers).map(|i| Ok(case.tensor(&format!("in.teacher{i}"))?.clone()));
    let teacher = teacher.collect::<Result<Vec<_>>>()?;
    let center = case.tensor("in.center")?;
    let loss = DinoLoss {
        student_temperature: case.params.get("student_temp")?,
        teacher_temperature: case.params.get("teacher_temp")?,
    };
    let (loss, _) = loss.forward(&student, &teacher, center)?;
    judge(check, &vars, &loss)?;
    let momentum = case.params.get("center_momentum")?;
    check.tensor("out.center_after", &updated_center(center, &Tensor::cat(&teacher, 0)?, momentum)?)
}

/// iBOT's loss on the logits of masked patches, and their centre afterwards.
fn ibot(case: &Case<'_>, check: &mut Check<'_>) -> Result<()> {
    let (teacher, center) = (case.tensor("in.teacher")?, case.tensor("in.center")?);
    let (temperature, momentum) = (case.params.get("student_temp")?, case.params.get("center_momentum")?);
    let targets = centered_targets(teacher, center, case.params.get("teacher_temp")?)?;
    let mask = case.tensor("in.mask")?.flatten_from(1)?;
    let masked = mask.flatten_all()?.to_vec1::<u8>()?;
    let masked: Vec<u32> = (0u32..).zip(masked).filter(|(_, flag)| *flag > 0).map(|(i, _)| i).collect();
    let weights = ibot_weights(&mask, teacher.dtype())?.flatten_all()?;
    let weights = weights.index_select(&Tensor::new(masked, &Device::Cpu)?, 0)?;
    differentiate(case, check, ["student"], |[g]| ibot_patches(g, &targets, &weights, temperature))?;
    check.tensor("out.center_after", &updated_center(center, teacher, momentum)?)
}

/// MSN's loss on the embeddings of anchors, a view after the other, and its targets.
fn msn(case: &Case<'_>, check: &mut Check<'_>) -> Result<()> {
    let loss = MsnLoss {
        temperature: case.params.get("temperature")?,
        sharpening: case.params.get("target_sharpen_temperature")?,
        sinkhorn_iterations: case.params.get("sinkhorn_iterations")?,
        spread_weight: case.params.get("regularization_weight")?,
    };
    let (views, targets): (usize, _) = (case.params.get("views")?, case.tensor("in.targets")?);
    let anchors = case.tensor("in.anchors")?.chunk(views, 0)?;
    let (_, terms) = loss.forward(&anchors, targets, case.tensor("in.prototypes")?)?;
    check.tensor("out.target_probs", &terms.targets)?;
    differentiate(case, check, ["anchors", "prototypes"], |[anchors, prototypes]| {
        Ok(loss.forward(&anchors.chunk(views, 0)?, targets, prototypes)?.0)
    })
}
