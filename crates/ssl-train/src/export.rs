//! From a run to an encoder file.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;
use ssl_backbones::{BackboneConfig, EncoderInfo, save_encoder};

use crate::checkpoint::Checkpoint;
use crate::error::Result;
use crate::recipe::Recipe;

/// The encoder of a checkpoint: what it is, and its tensors under torchvision's or timm's names.
///
/// # Errors
/// If the recipe cannot be hashed.
pub fn encoder_of_checkpoint(checkpoint: &Checkpoint) -> Result<(EncoderInfo, BTreeMap<String, Tensor>)> {
    encoder(&checkpoint.recipe, checkpoint.params.clone())
}

/// Writes those of a run's tensors that are the encoder's.
///
/// # Errors
/// If the recipe cannot be hashed or the file cannot be written.
pub(crate) fn export(path: &Path, recipe: &Recipe, tensors: BTreeMap<String, Tensor>) -> Result<()> {
    let (info, tensors) = encoder(recipe, tensors)?;
    Ok(save_encoder(path, tensors, &info)?)
}

fn encoder(
    recipe: &Recipe,
    tensors: BTreeMap<String, Tensor>,
) -> Result<(EncoderInfo, BTreeMap<String, Tensor>)> {
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
    Ok((info, own.collect()))
}
