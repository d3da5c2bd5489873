//! `cargo xtask views`: the augmented views as the method sees them, as a picture or as tensors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use candle_core::{Device, Tensor};
use clap::Args;
use ssl_vision::augment::ResizeCenterCrop;
use ssl_vision::backbones::TensorFile;
use ssl_vision::data::Dataset;
use ssl_vision::methods::Batch;
use ssl_vision::train::{Images, Loader, Recipe, Sampler};

use crate::choice::Choice;
use crate::picture::{Tiles, to_pixels};
use crate::{data_path, use_threads};

/// Look at the augmented views of a recipe before training on them: one picture, an image a row, at the left the image
/// itself and beside it its views.
///
/// Crops that show nothing, colours that are gone and blur that leaves no shape are the most frequent reason for a poor
/// encoder, and are seen at once.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask views --method byol
  cargo xtask views --method swav --data ~/photos --set augment.size=96 --images 12 --out crops.png
  cargo xtask views --method simclr --epochs 2 --tensors /tmp/views    # what the first two epochs train on")]
pub(crate) struct Views {
    #[command(flatten)]
    choice: Choice,
    /// Images in the picture.
    #[arg(long, default_value_t = 8)]
    images: usize,
    /// The picture.
    #[arg(long, value_name = "FILE", default_value = "views.png")]
    out: PathBuf,
    /// Instead of a picture: a folder for epoch-0.safetensors and so on, all views of each epoch of the recipe,
    /// normalised, in the order of training (`view_0`, …: (N, 3, S, S), and `index`: (N,)).
    #[arg(long, value_name = "DIR", conflicts_with = "images")]
    tensors: Option<PathBuf>,
    /// Threads to load with; all cores by default.
    #[arg(long)]
    threads: Option<usize>,
}

impl Views {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let recipe = self.choice.recipe()?;
        let threads = use_threads(self.threads)?;
        let images = Images::of_recipe(&recipe, &data_path(&recipe.data.path))?;
        let (n, batch) = (images.train.len(), recipe.train.batch_size);
        ensure!(batch <= n, "train.batch_size = {batch} is larger than the data set of {n} images");
        match &self.tensors {
            Some(folder) => write_tensors(&recipe, &images, folder, threads)?,
            None => self.write_picture(&recipe, &images, threads)?,
        }
        Ok(ExitCode::SUCCESS)
    }

    fn write_picture(&self, recipe: &Recipe, images: &Images, threads: usize) -> anyhow::Result<()> {
        let most = recipe.train.batch_size / recipe.train.accumulate;
        ensure!(
            (1..=most).contains(&self.images),
            "--images = {} is not in 1..={most}, the images of a batch",
            self.images
        );
        picture(recipe, images, self.images, threads)?.save(&self.out)?;
        let views = recipe.view_sizes()?.len();
        println!("{}: {} images, each with {views} views", self.out.display(), self.images);
        Ok(())
    }
}

/// Images of the first step, a row each, beside their views.
pub(crate) fn picture(
    recipe: &Recipe,
    images: &Images,
    rows: usize,
    threads: usize,
) -> anyhow::Result<Tiles> {
    let mut loader = Loader::new(recipe, images.train.clone(), 0..1, threads, &Device::Cpu)?;
    let batch = loader.next_batch().context("the recipe has no steps")??;
    let originals = ResizeCenterCrop::evaluation(recipe.augment.size)?;
    let sizes = recipe.view_sizes()?;
    let tile = recipe.augment.size.max(sizes.iter().copied().max().unwrap_or(0));
    let mut tiles = Tiles::new(rows.min(batch.index.len()), 1 + sizes.len(), tile);
    for (row, index) in batch.index.iter().take(rows).enumerate() {
        let own = originals.crop(&images.train.get(*index)?.image);
        tiles.put((row, 0), own.width(), |x, y| own.pixels()[y * own.width() + x]);
        for (column, view) in batch.views.iter().enumerate() {
            let size = sizes[column];
            let pixels = to_pixels(&recipe.augment.normalize()?, &view.get(row)?)?;
            tiles.put((row, column + 1), size, |x, y| pixels[y * size + x]);
        }
    }
    Ok(tiles)
}

fn write_tensors(recipe: &Recipe, images: &Images, folder: &Path, threads: usize) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let (n, batch_size) = (images.train.len(), recipe.train.batch_size);
    let steps = Sampler { seed: recipe.seed, images: n, batch_size }.steps_per_epoch();
    let parts = steps * recipe.train.accumulate;
    let epochs = recipe.train.epochs;
    let mut loader = Loader::new(recipe, images.train.clone(), 0..epochs * parts, threads, &Device::Cpu)?;
    for epoch in 0..epochs {
        let batches: Vec<Batch> =
            std::iter::from_fn(|| loader.next_batch()).take(parts).collect::<Result<_, _>>()?;
        let mut tensors = BTreeMap::new();
        for view in 0..batches.first().map_or(0, |batch| batch.views.len()) {
            let views: Vec<_> = batches.iter().map(|batch| &batch.views[view]).collect();
            tensors.insert(format!("view_{view}"), Tensor::cat(&views, 0)?);
        }
        let index: Vec<i64> =
            batches.iter().flat_map(|batch| batch.index.iter().map(|i| *i as i64)).collect();
        tensors.insert("index".to_owned(), Tensor::new(index, &Device::Cpu)?);
        let path = folder.join(format!("epoch-{epoch}.safetensors"));
        let metadata = BTreeMap::from([("recipe".to_owned(), recipe.to_toml()?)]);
        TensorFile { tensors, metadata }.write(&path)?;
        println!("{}: {} images", path.display(), steps * batch_size);
    }
    Ok(())
}
