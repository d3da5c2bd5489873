//! What the files of a run tell, without its lock: it may be training.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::Value;
use ssl_vision::train::{History, Recipe, Verdict};

/// A run as its files have it.
#[derive(Debug)]
pub(crate) struct Run {
    /// Name of its folder.
    pub(crate) name: String,
    pub(crate) recipe: Recipe,
    pub(crate) history: History,
    /// `result.json`, once the run has ended.
    pub(crate) result: Option<Value>,
    pub(crate) verdicts: Vec<Verdict>,
}

impl Run {
    /// Reads the run in `folder`.
    pub(crate) fn read(folder: &Path) -> anyhow::Result<Self> {
        let path = folder.join("recipe.toml");
        ensure!(path.is_file(), "{}: holds no run: there is no recipe.toml", folder.display());
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let recipe = Recipe::parse(&text, &[]).with_context(|| path.display().to_string())?;
        let history = History::read(folder)?;
        let path = folder.join("result.json");
        let result = match fs::read_to_string(&path) {
            Ok(text) => {
                Some(serde_json::from_str(&text).with_context(|| format!("{}: no JSON", path.display()))?)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        let whole = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
        let name =
            whole.file_name().map_or_else(|| recipe.name.clone(), |n| n.to_string_lossy().into_owned());
        let mut run = Self { name, recipe, history, result, verdicts: Vec::new() };
        let total = run.total_steps().unwrap_or_else(|| run.steps());
        run.verdicts = run.history.examine(&run.recipe.method, total).1;
        Ok(run)
    }

    /// Optimiser steps of the whole run: its end, or what its epochs have come to so far; `None` before the first has ended.
    pub(crate) fn total_steps(&self) -> Option<usize> {
        if self.result.is_some() {
            return Some(self.steps());
        }
        let (step, epoch) = self.history.measure("epoch").last().filter(|(_, epoch)| *epoch > 0.0)?;
        let whole = (step / epoch * self.recipe.train.epochs as f64).round() as usize;
        match self.recipe.train.max_steps {
            0 => Some(whole),
            limit => Some(whole.min(limit)),
        }
    }

    /// Steps done.
    pub(crate) fn steps(&self) -> usize {
        self.history.metric("step").last().map_or(0, |(step, _)| step as usize)
    }

    /// The value of `name` after the last step that has one.
    pub(crate) fn last_metric(&self, name: &str) -> Option<f64> {
        self.history.metric(name).last().map(|(_, value)| value)
    }

    /// The value of `name` at the last measurement that has one.
    pub(crate) fn last_measure(&self, name: &str) -> Option<f64> {
        self.history.measure(name).last().map(|(_, value)| value)
    }

    /// A number of `result.json` by its path.
    pub(crate) fn number(&self, pointer: &str) -> Option<f64> {
        self.result.as_ref()?.pointer(pointer)?.as_f64()
    }
}
