//! From a run to an encoder file.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use ssl_backbones::{BackboneConfig, EncoderInfo, save_encoder};

use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::recipe::Recipe;

/// Writes the encoder of a checkpoint under torchvision's names to `path`.
///
/// # Errors
/// If the file system refuses.
pub fn export_checkpoint(path: &Path, checkpoint: &Checkpoint) -> Result<()> {
    let recipe = &checkpoint.recipe;
    export(path, recipe, checkpoint.params.clone())
}

/// Writes those of a run's tensors that are the encoder's.
///
/// # Errors
/// If the recipe cannot be hashed or the file cannot be written.
pub(crate) fn export(path: &Path, recipe: &Recipe, tensors: BTreeMap<String, Tensor>) -> Result<()> {
    let prefix = recipe.method.encoder_prefix();
    let own = tensors.into_iter().filter_map(|(name, t)| Some((name.strip_prefix(prefix)?.to_owned(), t)));
    let info = EncoderInfo {
        backbone: BackboneConfig { recompute: None, ..recipe.backbone.clone() },
        method: recipe.method.name().to_owned(),
        input_size: recipe.augment.size,
        mean: recipe.augment.mean,
        std: recipe.augment.std,
        pooling: recipe.backbone.pooling()?.to_owned(),
        // SPDX for: whoever trained it has not said.
        licence: "NOASSERTION".to_owned(),
        recipe_hash: recipe.hash()?,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    Ok(save_encoder(path, own.collect(), &info)?)
}
