//! The codes of patches that BEiT predicts, learned apart from a run.

use std::sync::atomic::AtomicBool;

use candle_core::{DType, Device};
use ssl_data::Dataset;
use ssl_methods::{Beit, KMeansTokenizer, MethodConfig, StepContext};
use ssl_nn::Params;

use crate::error::{Error, Result};
use crate::images::Images;
use crate::loader::Loader;
use crate::observer::Observer;
use crate::pass::show_all;
use crate::recipe::Recipe;
use crate::sampler::Sampler;

/// Learns the codes that a run of BEiT by `recipe` on `images` would learn before its first step; `None` if somebody asked
/// to stop before all images were seen. They do not depend on `threads`.
///
/// [`KMeansTokenizer::write`] makes a file of them for the key `method.tokenizer_weights` of other runs.
///
/// # Errors
/// If the recipe has another method or a tokenizer already, or the images cannot be read or have too few patches.
pub fn learn_tokenizer(
    recipe: &Recipe,
    images: &Images,
    device: &Device,
    threads: usize,
    observers: &mut [Box<dyn Observer>],
    stop: &AtomicBool,
) -> Result<Option<KMeansTokenizer>> {
    let MethodConfig::Beit(config) = &recipe.method else {
        let name = recipe.method.name();
        return Err(Error::Recipe(format!(
            "method.name = \"{name}\" has no tokenizer to learn, only \"beit\" has"
        )));
    };
    if !config.tokenizer_weights.is_empty() {
        return Err(Error::Recipe(format!(
            "method.tokenizer_weights = \"{}\" is a tokenizer already, so that there is none to learn",
            config.tokenizer_weights
        )));
    }
    let (seed, total) = (recipe.seed, images.train.len());
    let params = Params::new(seed, DType::F32, device);
    let mut method = Beit::new(config, &recipe.backbone, &params, &recipe.training_data(total))?;
    let sampler = Sampler { seed, images: total, batch_size: recipe.train.batch_size };
    let steps_per_epoch = sampler.steps_per_epoch();
    let total_steps = recipe.train.epochs * steps_per_epoch;
    let context = StepContext { step: 0, total_steps, steps_per_epoch, part: 0, seed };
    let mut loader = Loader::pass(recipe, images.train.clone(), context.step, threads, device)?;
    let seen = show_all(&mut method, &context, &mut loader, total, observers, stop)?;
    Ok(method.learned_tokenizer().filter(|_| seen).cloned())
}
