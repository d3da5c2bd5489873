//! One optimiser step, from the next batch to the updated state.

use std::time::Instant;

use candle_core::{DType, Device, Result as CandleResult, Tensor, Var};
use serde_json::{Map, Value, json};
use ssl_methods::{Batch, Method, StepContext, StepOutput};
use ssl_nn::{Params, on_worker};

use crate::depth::Depth;
use crate::error::{Error, Result};
use crate::gradients::{Gradients, is_finite};
use crate::loader::Loader;
use crate::optimizer::{Optimizer, Rates};
use crate::recipe::Recipe;
use crate::spread::Spread;
use crate::train_config::TrainConfig;

/// The moving parts of a run.
pub(crate) struct Trainer {
    pub(crate) method: Box<dyn Method>,
    pub(crate) params: Params,
    pub(crate) optimizer: Optimizer,
    pub(crate) config: TrainConfig,
    pub(crate) depth: Depth,
}

/// What a step measured.
pub(crate) struct Measured {
    pub(crate) loss: f64,
    /// The method's terms, then those of [`Spread`] and the norm of all gradients.
    pub(crate) terms: Vec<(&'static str, f64)>,
    /// Norms of the gradients of the network's layers, from its input on.
    pub(crate) layer_grad_norms: Vec<f64>,
    pub(crate) wait_seconds: f64,
}

impl Trainer {
    /// Builds the network and its optimiser, and checks that the views are those that the method takes.
    pub(crate) fn new(recipe: &Recipe, images: usize, device: &Device) -> Result<Self> {
        let params = Params::new(recipe.seed, DType::F32, device);
        let method = recipe.method.build(&recipe.backbone, &params, &recipe.training_data(images))?;
        let (found, wanted) = (recipe.view_sizes()?.len(), method.num_views());
        if !wanted.contains(&found) {
            let wanted = match (wanted.start(), wanted.end()) {
                (least, most) if least == most => format!("{least}"),
                (least, most) => format!("{least} to {most}"),
            };
            return Err(Error::Recipe(format!(
                "augment.preset = \"{}\" and augment.views make {found} views, but method.name = \"{}\" needs {wanted}",
                recipe.augment.preset,
                recipe.method.name()
            )));
        }
        let trainable = params.trainable();
        let groups = recipe.optimizer.groups(&trainable, |name| method.parameter_rule(name));
        let optimizer = Optimizer::with_groups(&recipe.optimizer, &trainable, groups)?;
        let depth = Depth::new(&recipe.backbone, &trainable)?;
        Ok(Self { method, params, optimizer, config: recipe.train.clone(), depth })
    }

    /// Forward, backward, update. If anything is not finite, nothing is updated but running statistics.
    pub(crate) fn step(
        &mut self,
        loader: &mut Loader,
        context: &StepContext,
        rates: Rates,
    ) -> Result<Measured> {
        let trainable = self.params.trainable();
        let share = 1.0 / self.config.accumulate as f64;
        let (mut gradients, mut sums) = (Gradients::default(), Sums::default());
        let mut wait_seconds = 0.0;
        let mut memory: Vec<Vec<Tensor>> = vec![];
        for part in 0..self.config.accumulate {
            let asked = Instant::now();
            let batch = loader
                .next_batch()
                .ok_or_else(|| candle_core::Error::Msg("the loader ended early".into()))??;
            wait_seconds += asked.elapsed().as_secs_f64();
            memory.push(on_worker(|| {
                let output = self.method.loss(&batch, &StepContext { part, ..*context })?;
                if !sums.add(&output, share)? {
                    return Err(self.non_finite(context, bad_input(&batch, &self.params, &output)?));
                }
                gradients.accumulate(&trainable, &mut output.loss.backward()?, share)?;
                Ok(output.memory)
            })?);
        }
        let (norm, layer_grad_norms) =
            on_worker(|| self.update(context, rates, gradients, &joined(&memory)?))?;
        sums.terms.push(("grad_norm", norm));
        Ok(Measured { loss: sums.loss, terms: sums.terms, layer_grad_norms, wait_seconds })
    }

    /// The update by the gradients of a step; the norm of all of them and that of each layer.
    fn update(
        &mut self,
        context: &StepContext,
        rates: Rates,
        mut gradients: Gradients,
        memory: &[Tensor],
    ) -> Result<(f64, Vec<f64>)> {
        let squares = gradients.squared_norms()?;
        let norm = squares.iter().map(|(_, square)| square).sum::<f64>().sqrt();
        let layer_grad_norms = self.depth.norms(&squares);
        if !norm.is_finite() {
            let name = gradients
                .first_non_finite(&self.params.trainable())?
                .unwrap_or_else(|| "a norm of gradients".to_owned());
            return Err(self.non_finite(context, format!("the gradient of `{name}`")));
        }
        if self.config.clip_norm > 0.0 {
            gradients.clip(self.config.clip_norm, self.config.clip_scope)?;
        }
        self.optimizer.step(&gradients, rates)?;
        self.method.after_step(context, memory)?;
        Ok((norm, layer_grad_norms))
    }

    fn non_finite(&self, context: &StepContext, tensor: String) -> Error {
        Error::NonFinite { step: context.step + 1, tensor }
    }
}

impl Measured {
    /// As line of the log after `step` steps.
    pub(crate) fn line(&self, step: usize, epoch: usize, lr: f64) -> Value {
        let mut line = Map::new();
        line.insert("step".to_owned(), json!(step));
        line.insert("epoch".to_owned(), json!(epoch));
        line.insert("lr".to_owned(), json!(lr));
        line.insert("loss".to_owned(), json!(self.loss));
        line.extend(self.terms.iter().map(|(name, term)| ((*name).to_owned(), json!(term))));
        line.insert("layer_grad_norms".to_owned(), json!(self.layer_grad_norms));
        Value::Object(line)
    }
}

/// What a step's micro-batches leave for [`Method::after_step`], each kind joined row by row.
fn joined(parts: &[Vec<Tensor>]) -> CandleResult<Vec<Tensor>> {
    match parts {
        [only] => Ok(only.clone()),
        _ => {
            let kinds = parts.iter().map(Vec::len).min().unwrap_or(0);
            let kind = |k: usize| parts.iter().map(|part| part[k].clone()).collect::<Vec<_>>();
            (0..kinds).map(|k| Tensor::cat(&kind(k), 0)).collect()
        }
    }
}

/// Means over the micro-batches of a step.
#[derive(Default)]
struct Sums {
    loss: f64,
    terms: Vec<(&'static str, f64)>,
}

impl Sums {
    /// Adds a share of `output`; false if a value is not finite.
    fn add(&mut self, output: &StepOutput, share: f64) -> CandleResult<bool> {
        let mut terms = vec![];
        for (name, term) in &output.terms {
            terms.push((*name, scalar(term)?));
        }
        terms.extend(Spread::of(&output.embeddings)?.terms());
        let loss = scalar(&output.loss)?;
        self.loss += share * loss;
        if self.terms.is_empty() {
            self.terms = terms.iter().map(|(name, _)| (*name, 0.0)).collect();
        }
        self.terms.iter_mut().zip(&terms).for_each(|(sum, (_, term))| sum.1 += share * term);
        Ok(loss.is_finite() && terms.iter().all(|(_, term)| term.is_finite()))
    }
}

fn scalar(tensor: &Tensor) -> CandleResult<f64> {
    tensor.to_dtype(DType::F64)?.to_scalar()
}

/// The first tensor that is not finite, in the order in which the step computed them.
fn bad_input(batch: &Batch, params: &Params, output: &StepOutput) -> CandleResult<String> {
    for (i, view) in batch.views.iter().enumerate() {
        for (row, index) in batch.index.iter().enumerate() {
            if !is_finite(&view.get(row)?)? {
                return Ok(format!("view {i} of image {index}"));
            }
        }
    }
    let floats = params.all().into_iter().filter(|(_, var): &(String, Var)| var.dtype().is_float());
    for (name, var) in floats {
        if !is_finite(&var)? {
            return Ok(format!("`{name}`"));
        }
    }
    for (i, z) in output.embeddings.iter().enumerate() {
        if !is_finite(z)? {
            return Ok(format!("the projection of view {i}"));
        }
    }
    for (name, term) in &output.terms {
        if !is_finite(term)? {
            return Ok(format!("the term `{name}`"));
        }
    }
    Ok("the loss".to_owned())
}
