//! What `result.json` says of a run: its recipe, its images, its training, and how the encoder was judged.

use serde_json::{Value, json};
use ssl_data::Dataset;

use crate::doctor::Verdict;
use crate::error::Result;
use crate::evaluate::Evaluation;
use crate::images::Images;
use crate::memory::peak_rss_bytes;
use crate::recipe::Recipe;

/// What was trained in this process.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Trained {
    pub(crate) steps: usize,
    pub(crate) seconds: f64,
    /// Seconds of these in which the training thread waited for images.
    pub(crate) wait_seconds: f64,
}

impl Trained {
    /// Share of the seconds that was spent waiting; `None` before the first step.
    pub(crate) fn wait_share(&self) -> Option<f64> {
        (self.seconds > 0.0).then(|| self.wait_seconds / self.seconds)
    }
}

/// A run as its result tells it.
pub(crate) struct Summary<'a> {
    pub(crate) recipe: &'a Recipe,
    pub(crate) images: &'a Images,
    /// Optimiser steps done, in this process and before.
    pub(crate) step: usize,
    pub(crate) threads: usize,
    pub(crate) trained: Trained,
    pub(crate) measure_share: Option<f64>,
    pub(crate) verdicts: &'a [Verdict],
}

impl Summary<'_> {
    /// As one object, with the fields of `evaluation` if there is one.
    pub(crate) fn to_json(&self, evaluation: Option<&Evaluation>) -> Result<Value> {
        let Self { recipe, images, trained, .. } = self;
        let Trained { steps, seconds, .. } = *trained;
        let seen = (steps * recipe.train.batch_size) as f64;
        let mut result = json!({
            "method": recipe.method.name(),
            "backbone": recipe.backbone.name,
            "backbone_config": recipe.backbone,
            "recipe": recipe.name,
            "recipe_hash": recipe.hash()?,
            "version": env!("CARGO_PKG_VERSION"),
            "dataset": {
                "description": images.description,
                "fingerprint": images.fingerprint,
                "train_images": images.train.len(),
                "test_images": images.test.as_ref().map(|test| test.len()),
                "broken_images": images.broken().len(),
            },
            "epochs": recipe.train.epochs,
            "steps": self.step,
            "batch_size": recipe.train.batch_size,
            "seed": recipe.seed,
            "threads": self.threads,
            "weights": "last",
            "images_per_second": (seconds > 0.0).then(|| seen / seconds),
            "seconds": seconds,
            "wait_share": trained.wait_share(),
            "measure_share": self.measure_share,
            "steps_in_this_process": steps,
            "peak_rss_bytes": peak_rss_bytes(),
            "doctor": self.verdicts.iter().map(verdict_json).collect::<Vec<_>>(),
        });
        if let (Some(evaluation), Value::Object(fields)) = (evaluation, &mut result) {
            fields.extend(evaluation.to_json());
        }
        Ok(result)
    }
}

fn verdict_json(verdict: &Verdict) -> Value {
    json!({
        "symptom": verdict.symptom.name(),
        "step": verdict.step,
        "since": verdict.since,
        "recovered": verdict.recovered,
        "says": verdict.to_string(),
    })
}
