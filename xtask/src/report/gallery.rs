//! What a network saw and what it makes of images: the sections of a page for which it has to look.

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use ssl_vision::backbones::Backbone;
use ssl_vision::data::{Dataset, Tolerant};
use ssl_vision::eval::{TSneConfig, principal_components, t_sne};
use ssl_vision::methods::Method;
use ssl_vision::nn::Params;
use ssl_vision::report::{Block, Chart, Class, Gallery, Picture, Png, ScatterChart, Section};
use ssl_vision::train::{Checkpoint, Images, Recipe, RunFolder, embeddings};

use super::spectrum;
use crate::data_path;
use crate::inspect::{self, Shown};
use crate::picture::Tiles;
use crate::views;

/// Images of which views and pictures are shown.
const IMAGES: usize = 6;

/// Images among which neighbours are looked for and whose spectrum is drawn, those that are asked about, and their neighbours.
const BANK: usize = 2000;
const QUERIES: usize = 8;
const NEIGHBOURS: usize = 7;

/// Images on the map.
const ON_MAP: usize = 800;

/// Neighbours that t-SNE keeps together.
const PERPLEXITY: f64 = 30.0;

/// A trained method with its images.
struct Trained {
    recipe: Recipe,
    checkpoint: Checkpoint,
    method: Box<dyn Method>,
    images: Images,
}

/// The sections of the run in `folder`, on its `images`, or on those that its recipe names; none if it has no checkpoint yet,
/// another process uses it, or the images are gone.
pub(super) fn of(folder: &Path, images: Option<Images>) -> anyhow::Result<Vec<Section>> {
    let Ok((run, _)) = RunFolder::open(folder) else { return Ok(Vec::new()) };
    let Some((_, checkpoint)) = run.latest(&Device::Cpu, |notice| eprintln!("{notice}"))? else {
        return Ok(Vec::new());
    };
    match images.map_or_else(|| images_of(&checkpoint.recipe), Ok) {
        Ok(images) => of_checkpoint(checkpoint, images),
        Err(error) => {
            eprintln!("the page has no pictures: {error}");
            Ok(Vec::new())
        }
    }
}

/// The images that a recipe names.
pub(super) fn images_of(recipe: &Recipe) -> ssl_vision::train::Result<Images> {
    Images::of_recipe(recipe, &data_path(&recipe.data.path))
}

/// What needs no network: the views that it is trained on.
pub(super) fn of_views(recipe: &Recipe, images: &Images) -> anyhow::Result<Section> {
    Ok(saw(vec![seen_views(recipe, images)?]))
}

/// The sections of a run as a checkpoint has it.
pub(super) fn of_checkpoint(checkpoint: Checkpoint, images: Images) -> anyhow::Result<Vec<Section>> {
    let recipe = checkpoint.recipe.clone();
    let params = Params::new(recipe.seed, DType::F32, &Device::Cpu);
    let method = recipe.method.build(&recipe.backbone, &params, &recipe.training_data(images.train.len()))?;
    params.load(&checkpoint.params)?;
    let trained = Trained { recipe, checkpoint, method, images };
    let mut seen = vec![seen_views(&trained.recipe, &trained.images)?];
    seen.extend(tokens(&trained)?);
    let (bank, h) = bank(&trained)?;
    let untrained = features(&*untrained(&trained)?, &bank.x)?;
    let after = format!("After step {}.", trained.checkpoint.step);
    let (neighbours, maps) = (neighbours(&trained, &bank, &h)?, maps(&trained)?);
    Ok(vec![
        saw(seen),
        Section {
            intro: format!(
                "At the left an image that the network was not trained on, then the {NEIGHBOURS} images with the most \
                 similar features of {} that it was trained on. {after}",
                bank.pixels.len()
            ),
            ..Section::new("neighbours", "Nearest neighbours", vec![Block::Gallery(neighbours)])
        },
        Section {
            intro: after.clone(),
            ..Section::new(
                "spectrum",
                "Spectrum of the features",
                vec![Block::Charts(vec![spectrum::chart(&h, &untrained)?])],
            )
        },
        Section { intro: after, ..Section::new("map", "Map of the features", vec![Block::Charts(maps)]) },
    ])
}

fn saw(images: Vec<Picture>) -> Section {
    let gallery = Gallery { caption: String::new(), images };
    Section::new("pictures", "What the network saw", vec![Block::Gallery(gallery)])
}

fn seen_views(recipe: &Recipe, images: &Images) -> anyhow::Result<Picture> {
    let caption = "An image a row: as it is, then its views.";
    picture(&views::picture(recipe, images, IMAGES, 1)?, caption)
}

/// What a vision transformer looks at, and what it completes.
fn tokens(trained: &Trained) -> anyhow::Result<Vec<Picture>> {
    let Trained { recipe, checkpoint, method, images } = trained;
    let normalize = recipe.augment.normalize()?;
    let set = held_out(images);
    let first: Vec<usize> = (0..IMAGES.min(set.len())).collect();
    let shown = Shown::load(set, &first, recipe.augment.size, &normalize)?;
    let mut pictures = Vec::new();
    let prefix = recipe.method.encoder_prefix();
    let own = checkpoint.params.iter();
    let own = own.filter_map(|(name, t)| Some((name.strip_prefix(prefix)?.to_owned(), t.clone())));
    if let Some(vit) = inspect::transformer(&recipe.backbone, own)? {
        let caption = "Where each head of the last block looks.";
        pictures.push(picture(&inspect::attention(&vit, &shown)?, caption)?);
        let caption = "Patches in the colours of their first three principal components.";
        pictures.push(picture(&inspect::features(&vit, &shown)?, caption)?);
    }
    if let Some(tiles) = inspect::reconstruction(&**method, &normalize, &shown)? {
        pictures.push(picture(&tiles, "The image, what the network sees of it, and how it completes it.")?);
    }
    Ok(pictures)
}

/// Images of the training with their embeddings.
fn bank(trained: &Trained) -> anyhow::Result<(Shown, Tensor)> {
    let Trained { recipe, method, images, .. } = trained;
    let index = spread(&images.train, BANK);
    let shown = Shown::load(&images.train, &index, recipe.augment.size, &recipe.augment.normalize()?)?;
    let h = features(method.encoder(), &shown.x)?;
    Ok((shown, h))
}

/// The same network untrained, as the baselines of the evaluation have it.
fn untrained(trained: &Trained) -> anyhow::Result<Box<dyn Backbone>> {
    let params = Params::new(trained.recipe.seed, DType::F32, &Device::Cpu);
    Ok(trained.recipe.backbone.build(&params.root().pp("backbone"))?)
}

/// Test images beside those of the `bank` whose embeddings `h` are the most similar to theirs.
fn neighbours(trained: &Trained, bank: &Shown, h: &Tensor) -> anyhow::Result<Gallery> {
    let Trained { recipe, method, images, .. } = trained;
    let size = recipe.augment.size;
    let set = held_out(images);
    let queries = Shown::load(set, &spread(set, QUERIES), size, &recipe.augment.normalize()?)?;
    let unit = |h: &Tensor| h.broadcast_div(&(h.sqr()?.sum_keepdim(1)?.sqrt()? + 1e-12)?);
    let asked = unit(&features(method.encoder(), &queries.x)?)?;
    let cosines = asked.matmul(&unit(h)?.t()?)?.to_vec2::<f64>()?;
    let mut tiles = Tiles::new(queries.pixels.len(), 1 + NEIGHBOURS, size);
    for (row, (own, cosines)) in queries.pixels.iter().zip(&cosines).enumerate() {
        tiles.put((row, 0), size, |x, y| own[y * size + x]);
        let mut order: Vec<usize> = (0..cosines.len()).collect();
        order.sort_by(|a, b| cosines[*b].total_cmp(&cosines[*a]));
        // Without a test split an image would find itself.
        let others = order.into_iter().filter(|other| bank.pixels[*other] != *own);
        for (column, other) in others.take(NEIGHBOURS).enumerate() {
            tiles.put((row, column + 1), size, |x, y| bank.pixels[other][y * size + x]);
        }
    }
    Ok(Gallery { caption: String::new(), images: vec![picture(&tiles, "Most similar first.")?] })
}

/// Test images in two dimensions, in the colours of their classes: by principal components, and by t-SNE.
fn maps(trained: &Trained) -> anyhow::Result<Vec<Chart>> {
    let Trained { recipe, method, images, .. } = trained;
    let set = held_out(images);
    let index = spread(set, ON_MAP);
    let n = index.len();
    let shown = Shown::load(set, &index, recipe.augment.size, &recipe.augment.normalize()?)?;
    let h = features(method.encoder(), &shown.x)?;
    let along = principal_components(&h, 2.min(h.dim(1)?))?.to_vec2::<f64>()?;
    let along: Vec<[f64; 2]> = along.iter().map(|row| [row[0], row.get(1).copied().unwrap_or(0.0)]).collect();
    let map = |title: &str, caption: String, points: &[[f64; 2]]| {
        Chart::from(ScatterChart {
            title: title.into(),
            caption,
            classes: classes(points, &shown.labels, images.class_names()),
            ..ScatterChart::default()
        })
    };
    let caption = format!("{n} images along the two directions in which their features differ most.");
    let mut maps = vec![map("Principal components of the features", caption, &along)];
    let config = TSneConfig { perplexity: PERPLEXITY.min((n as f64 - 1.0) / 3.0), ..TSneConfig::default() };
    // Features that are all equal have no neighbours to keep.
    if let Ok(found) = t_sne(&h, &config) {
        let caption = format!(
            "The same images with their neighbours kept together (perplexity {:.0}); distances between groups say little.",
            config.perplexity
        );
        maps.push(map("t-SNE of the features", caption, &found.points));
    }
    Ok(maps)
}

/// The points of each class.
fn classes(points: &[[f64; 2]], labels: &[Option<u32>], names: &[String]) -> Vec<Class> {
    let mut present = labels.to_vec();
    present.sort_unstable();
    present.dedup();
    let class = |label: &Option<u32>| {
        let own = points.iter().zip(labels).filter(|(_, other)| *other == label);
        let name = label.and_then(|label| names.get(label as usize)).map_or("images", String::as_str);
        Class::new(name, own.map(|(point, _)| *point))
    };
    present.iter().map(class).collect()
}

/// At most `n` images of a set, from all of it.
fn spread(set: &Tolerant, n: usize) -> Vec<usize> {
    let n = n.min(set.len());
    (0..n).map(|i| i * set.len() / n).collect()
}

fn held_out(images: &Images) -> &Tolerant {
    images.test.as_deref().unwrap_or(&images.train)
}

/// Embeddings `(N, D)` in `f64`.
fn features(encoder: &dyn Backbone, x: &Tensor) -> anyhow::Result<Tensor> {
    Ok(embeddings(encoder, x)?.to_dtype(DType::F64)?)
}

fn picture(tiles: &Tiles, caption: &str) -> anyhow::Result<Picture> {
    Ok(Picture { png: Png::new(tiles.png()?)?, caption: caption.to_owned() })
}
