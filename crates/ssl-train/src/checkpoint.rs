//! A checkpoint: the whole run in one file.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};
use ssl_backbones::TensorFile;

use crate::error::{Error, Result};
use crate::recipe::Recipe;

/// Version of the layout below; a program reads its own version only.
const FORMAT: &str = "2";

/// What is kept for resuming.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Optimiser steps between checkpoints.
    pub every_steps: usize,
    /// Checkpoints kept, at least 2, so that one survives if the newest is damaged.
    pub keep: usize,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every_steps: 100, keep: 2 }
    }
}

impl CheckpointConfig {
    /// Checks every setting.
    pub(crate) fn validate(&self) -> Result<()> {
        match self {
            Self { every_steps: 1.., keep: 2.. } => Ok(()),
            Self { every_steps, keep } => Err(Error::Recipe(format!(
                "checkpoint.every_steps = {every_steps} must be at least 1 and checkpoint.keep = {keep} at least 2"
            ))),
        }
    }
}

/// The state of a run after some step: everything that the following steps depend on.
///
/// The position of the sampler and of all random numbers follows from the step and the recipe's seed.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Optimiser steps done.
    pub step: usize,
    /// Length of metrics.jsonl at that moment.
    pub metrics_bytes: u64,
    /// The recipe of the run.
    pub recipe: Recipe,
    /// Digest of the data.
    pub fingerprint: String,
    /// The store: parameters and buffers.
    pub params: BTreeMap<String, Tensor>,
    /// The optimiser's state.
    pub optimizer: BTreeMap<String, Tensor>,
}

impl Checkpoint {
    /// Name of the file for a step; names sort as steps do.
    pub fn file_name(step: usize) -> String {
        format!("step-{step:010}.safetensors")
    }

    /// Writes the file atomically, flushed to the disk, with a checksum.
    ///
    /// # Errors
    /// If the file system refuses; an older file of that name then stays.
    pub fn save(&self, path: &Path) -> Result<()> {
        let prefixed = |prefix: &'static str, tensors: &BTreeMap<String, Tensor>| {
            tensors.iter().map(|(name, t)| (format!("{prefix}.{name}"), t.clone())).collect::<Vec<_>>()
        };
        let mut tensors = prefixed("model", &self.params);
        tensors.extend(prefixed("optimizer", &self.optimizer));
        let metadata = [
            ("ssl_vision.checkpoint", FORMAT.to_owned()),
            ("step", self.step.to_string()),
            ("metrics_bytes", self.metrics_bytes.to_string()),
            ("recipe", self.recipe.to_toml()?),
            ("dataset", self.fingerprint.clone()),
        ];
        let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Ok(TensorFile { tensors: tensors.into_iter().collect(), metadata }.write(path)?)
    }

    /// Reads a checkpoint and verifies its checksum.
    ///
    /// # Errors
    /// [`ssl_backbones::Error::Corrupt`] if the file is damaged, [`Error::Checkpoint`] if it is another kind of file or
    /// of another format version.
    pub fn load(path: &Path, device: &Device) -> Result<Self> {
        let file = TensorFile::read(path, device)?;
        let refuse = |reason: String| Error::Checkpoint { path: path.to_owned(), reason };
        let get = |key: &str| {
            file.metadata.get(key).ok_or_else(|| refuse(format!("is no checkpoint: it has no `{key}`")))
        };
        let format = get("ssl_vision.checkpoint")?;
        if format != FORMAT {
            return Err(refuse(format!("has format version {format}; this program reads version {FORMAT}")));
        }
        let number = |key: &str| -> Result<u64> {
            get(key)?.parse().map_err(|_| refuse(format!("its `{key}` is not a number")))
        };
        let part = |prefix: &str| -> BTreeMap<String, Tensor> {
            let own = file.tensors.iter().filter_map(|(name, t)| Some((name.strip_prefix(prefix)?, t)));
            own.map(|(name, t)| (name.to_owned(), t.clone())).collect()
        };
        Ok(Self {
            step: number("step")? as usize,
            metrics_bytes: number("metrics_bytes")?,
            recipe: Recipe::parse(get("recipe")?, &[])?,
            fingerprint: get("dataset")?.clone(),
            params: part("model."),
            optimizer: part("optimizer."),
        })
    }

    /// Refuses a checkpoint of other data.
    ///
    /// # Errors
    /// Names both sides.
    pub(crate) fn check_data(&self, path: &Path, fingerprint: &str) -> Result<()> {
        if self.fingerprint == fingerprint {
            return Ok(());
        }
        let reason = format!(
            "belongs to other data: fingerprint {} there, {fingerprint} here; were files added, removed or changed?",
            self.fingerprint
        );
        Err(Error::Checkpoint { path: path.to_owned(), reason })
    }
}
