//! `cargo xtask inspect`: what a vision transformer looks at, and what it completes, as pictures.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use candle_core::{D, DType, Device, Tensor};
use clap::Args;
use ssl_vision::augment::{Normalize, ResizeCenterCrop};
use ssl_vision::backbones::{BackboneConfig, Vit, load_encoder};
use ssl_vision::data::{Dataset, Tolerant};
use ssl_vision::eval::principal_components;
use ssl_vision::methods::{Batch, Method, StepContext};
use ssl_vision::nn::Params;
use ssl_vision::train::{DataConfig, Images, RunFolder};

use crate::picture::{Tiles, to_pixels};
use crate::{data_path, use_threads};

/// Look into a trained vision transformer: pictures of what its class token attends to, of its patches' features as
/// colours, and, of a run that predicts pixels, of what it makes of hidden patches; the last of a Swin Transformer too.
///
/// attention.png: an image a row, then where the class token looks in the last block, a head a column (bright is much).
/// features.png: the image and its patches, coloured by the first three principal components of all patches' features:
/// equal colours are equal features. reconstruction.png (MAE, SimMIM, BEiT): the image, what the network sees of it, and
/// how it completes it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask inspect --run runs/mae-fashion-mnist
  cargo xtask inspect --run runs/dino --data ~/photos --images 12 --out pictures
  cargo xtask inspect --weights encoder.safetensors --data ~/photos --size 448")]
pub(crate) struct Inspect {
    /// Folder of a run; its newest intact checkpoint is looked into.
    #[arg(long, value_name = "DIR", required_unless_present = "weights", conflicts_with = "weights")]
    run: Option<PathBuf>,
    /// Encoder written by `pretrain` or `export`.
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    /// Images to look at; by default those of the run, or `fashion-mnist`.
    #[arg(long, value_name = "PATH")]
    data: Option<String>,
    /// How many of them, the first of the test images if there are any.
    #[arg(long, default_value_t = 8)]
    images: usize,
    /// Side of the images in pixels, whole patches; by default that of the training. Other sizes are not for the
    /// reconstruction.
    #[arg(long)]
    size: Option<usize>,
    /// Folder for the pictures.
    #[arg(long, value_name = "DIR", default_value = "inspect")]
    out: PathBuf,
    /// Threads to compute with; all cores by default.
    #[arg(long)]
    threads: Option<usize>,
}

/// A trained network and how to feed it.
struct Trained {
    /// The encoder, if it is a vision transformer.
    vit: Option<Vit>,
    /// The whole method, of a run.
    method: Option<Box<dyn Method>>,
    size: usize,
    normalize: Normalize,
    data: DataConfig,
}

/// Images as tensors and as colours.
pub(crate) struct Shown {
    /// `(B, 3, S, S)`, normalised.
    pub(crate) x: Tensor,
    pub(crate) size: usize,
    /// Of each image, row by row.
    pub(crate) pixels: Vec<Vec<[u8; 3]>>,
    /// What each shows, where that is known.
    pub(crate) labels: Vec<Option<u32>>,
}

impl Shown {
    /// The images `index` of `set`, resized and cropped to `size` pixels.
    pub(crate) fn load(
        set: &Tolerant,
        index: &[usize],
        size: usize,
        normalize: &Normalize,
    ) -> anyhow::Result<Self> {
        let n = index.len();
        let transform = ResizeCenterCrop::evaluation(size)?;
        let mut values = vec![0f32; n * 3 * size * size];
        let (mut pixels, mut labels) = (Vec::with_capacity(n), Vec::with_capacity(n));
        for (index, out) in index.iter().zip(values.chunks_exact_mut(3 * size * size)) {
            let sample = set.get(*index)?;
            let image = transform.crop(&sample.image);
            normalize.write_chw(&image, out)?;
            pixels.push(image.pixels().to_vec());
            labels.push(sample.label);
        }
        Ok(Self { x: Tensor::from_vec(values, (n, 3, size, size), &Device::Cpu)?, size, pixels, labels })
    }
}

impl Inspect {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        ensure!((1..=1024).contains(&self.images), "--images = {} is not in 1..=1024", self.images);
        use_threads(self.threads)?;
        let trained = match (&self.run, &self.weights) {
            (Some(run), _) => of_run(run)?,
            (None, Some(weights)) => of_weights(weights)?,
            (None, None) => bail!("--run or --weights is needed"),
        };
        let size = self.size.unwrap_or(trained.size);
        if let Some(vit) = &trained.vit {
            let patch = vit.config().patch_size;
            ensure!(
                (patch..=4096).contains(&size) && size.is_multiple_of(patch),
                "--size = {size} is not a multiple of the patches' {patch} pixels in {patch}..=4096"
            );
        }
        let shown = self.load(&trained, size)?;
        let mut pictures = Vec::new();
        if let Some(vit) = &trained.vit {
            let what = "where each head of the last block looks";
            pictures.push(("attention.png", attention(vit, &shown)?, what));
            let what = "the first three principal components of the patches";
            pictures.push(("features.png", features(vit, &shown)?, what));
        }
        if size == trained.size
            && let Some(method) = &trained.method
            && let Some(tiles) = reconstruction(&**method, &trained.normalize, &shown)?
        {
            let what = "the image, its visible patches, and what completes them";
            pictures.push(("reconstruction.png", tiles, what));
        }
        ensure!(
            !pictures.is_empty(),
            "there is nothing to show: only vision transformers have tokens to look at, and only a run of MAE, SimMIM or \
             BEiT completes images, at the size of its training, {} pixels",
            trained.size
        );
        std::fs::create_dir_all(&self.out)
            .with_context(|| format!("cannot create {}", self.out.display()))?;
        for (name, tiles, what) in pictures {
            let path = self.out.join(name);
            tiles.save(&path)?;
            println!("{}: {what}", path.display());
        }
        Ok(ExitCode::SUCCESS)
    }

    fn load(&self, trained: &Trained, size: usize) -> anyhow::Result<Shown> {
        let path = self.data.clone().unwrap_or_else(|| trained.data.path.clone());
        let images = Images::open(&trained.data, &data_path(&path))?;
        let set = images.test.as_ref().unwrap_or(&images.train);
        let first: Vec<usize> = (0..self.images.min(set.len())).collect();
        Shown::load(set, &first, size, &trained.normalize)
    }
}

fn of_run(folder: &Path) -> anyhow::Result<Trained> {
    let (run, _) = RunFolder::open(folder)?;
    let Some((_, checkpoint)) = run.latest(&Device::Cpu, |notice| eprintln!("{notice}"))? else {
        bail!("{}: has no checkpoint yet", folder.display());
    };
    let recipe = checkpoint.recipe;
    let prefix = recipe.method.encoder_prefix();
    let tensors = checkpoint.params.iter();
    let own = tensors.filter_map(|(name, t)| Some((name.strip_prefix(prefix)?.to_owned(), t.clone())));
    let vit = transformer(&recipe.backbone, own)?;
    let params = Params::new(recipe.seed, DType::F32, &Device::Cpu);
    let images =
        Images::open(&recipe.data, &data_path(&recipe.data.path)).map_or(1, |images| images.train.len());
    let method = recipe.method.build(&recipe.backbone, &params, &recipe.training_data(images))?;
    params.load(&checkpoint.params)?;
    let normalize = recipe.augment.normalize()?;
    Ok(Trained { vit, method: Some(method), size: recipe.augment.size, normalize, data: recipe.data })
}

fn of_weights(path: &Path) -> anyhow::Result<Trained> {
    let encoder = load_encoder(path, &Device::Cpu)?;
    let tensors = encoder.params.all().into_iter().map(|(name, var)| (name, var.as_tensor().clone()));
    let vit = transformer(&encoder.info.backbone, tensors)?;
    let normalize = Normalize::new(encoder.info.mean, encoder.info.std)?;
    Ok(Trained { vit, method: None, size: encoder.info.input_size, normalize, data: DataConfig::default() })
}

/// The network with the weights `tensors`, if it is a vision transformer.
pub(crate) fn transformer(
    backbone: &BackboneConfig,
    tensors: impl Iterator<Item = (String, Tensor)>,
) -> anyhow::Result<Option<Vit>> {
    let Ok(config) = backbone.vision_transformer() else { return Ok(None) };
    let params = Params::new(0, DType::F32, &Device::Cpu);
    let vit = config.build(&params.root())?;
    params.load(&tensors.collect())?;
    Ok(Some(vit))
}

/// Where the class token, or without one the mean patch, looks in the last block, head by head.
pub(crate) fn attention(vit: &Vit, shown: &Shown) -> anyhow::Result<Tiles> {
    let (grid, prefix) = (shown.size / vit.config().patch_size, vit.config().prefix_tokens());
    let map = vit.last_attention(&shown.x)?; // (B, heads, M, M)
    let looks = match vit.config().options.class_token {
        true => map.narrow(2, 0, 1)?,
        false => map.mean_keepdim(2)?,
    };
    let looks = looks.squeeze(2)?.narrow(2, prefix, grid * grid)?.to_dtype(DType::F64)?.to_vec3::<f64>()?;
    let heads = looks.first().map_or(0, Vec::len);
    let mut tiles = Tiles::new(shown.pixels.len(), 1 + heads, shown.size);
    for (row, (pixels, heads)) in shown.pixels.iter().zip(&looks).enumerate() {
        tiles.put((row, 0), shown.size, |x, y| pixels[y * shown.size + x]);
        for (head, looks) in heads.iter().enumerate() {
            let most = looks.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
            tiles.put((row, head + 1), shown.size, |x, y| heat(looks[place(shown.size, grid, x, y)] / most));
        }
    }
    Ok(tiles)
}

/// The patches in the colours of their three principal components.
pub(crate) fn features(vit: &Vit, shown: &Shown) -> anyhow::Result<Tiles> {
    let grid = shown.size / vit.config().patch_size;
    let patches = vit.split(&vit.forward_features(&shown.x)?)?.patches.detach(); // (B, N, d)
    let n = patches.dim(D::Minus2)?;
    let along = principal_components(&patches.flatten(0, 1)?, 3)?.to_vec2::<f64>()?;
    let range = |i: usize| {
        let mut values: Vec<f64> = along.iter().map(|row| row[i]).collect();
        values.sort_unstable_by(f64::total_cmp);
        // Without the outermost hundredths, which would leave the rest grey.
        let at = |share: f64| values[((values.len() - 1) as f64 * share).round() as usize];
        (at(0.01), at(0.99))
    };
    let ranges = [0, 1, 2].map(range);
    let colour = |row: &[f64]| {
        [0, 1, 2].map(|i| {
            let (low, high) = ranges[i];
            (255.0 * ((row[i] - low) / (high - low).max(1e-12)).clamp(0.0, 1.0)).round() as u8
        })
    };
    let mut tiles = Tiles::new(shown.pixels.len(), 2, shown.size);
    for (row, pixels) in shown.pixels.iter().enumerate() {
        tiles.put((row, 0), shown.size, |x, y| pixels[y * shown.size + x]);
        let own = &along[row * n..(row + 1) * n];
        tiles.put((row, 1), shown.size, |x, y| colour(&own[place(shown.size, grid, x, y)]));
    }
    Ok(tiles)
}

/// The image, its visible patches, and the image with the hidden ones predicted; `None` of a method that predicts no pixels.
pub(crate) fn reconstruction(
    method: &dyn Method,
    normalize: &Normalize,
    shown: &Shown,
) -> anyhow::Result<Option<Tiles>> {
    let batch = Batch { views: vec![shown.x.clone()], index: (0..shown.pixels.len()).collect(), text: None };
    let context = StepContext { step: 0, total_steps: 1, steps_per_epoch: 1, part: 0, seed: 0 };
    let Some(found) = method.reconstruct(&batch, &context)? else { return Ok(None) };
    let grid = found.mask.dim(1)?.isqrt();
    let mut tiles = Tiles::new(shown.pixels.len(), 3, shown.size);
    for (row, pixels) in shown.pixels.iter().enumerate() {
        let completed = to_pixels(normalize, &found.images.get(row)?)?;
        let hidden = found.mask.get(row)?.to_vec1::<u8>()?;
        tiles.put((row, 0), shown.size, |x, y| pixels[y * shown.size + x]);
        tiles.put((row, 1), shown.size, |x, y| match hidden[place(shown.size, grid, x, y)] {
            0 => pixels[y * shown.size + x],
            _ => [128; 3],
        });
        tiles.put((row, 2), shown.size, |x, y| completed[y * shown.size + x]);
    }
    Ok(Some(tiles))
}

/// The patch that a pixel of an image of `size` lies in, of `grid` by `grid`.
fn place(size: usize, grid: usize, x: usize, y: usize) -> usize {
    let patch = size / grid;
    (y / patch) * grid + x / patch
}

/// A colour from black over red and yellow to white for a value from 0 to 1.
fn heat(value: f64) -> [u8; 3] {
    [0.0, 1.0, 2.0].map(|start| (255.0 * (3.0 * value - start).clamp(0.0, 1.0)).round() as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heat_rises_from_black_to_white() {
        assert_eq!([heat(0.0), heat(1.0 / 3.0), heat(1.0)], [[0; 3], [255, 0, 0], [255; 3]]);
    }

    #[test]
    fn pixels_lie_in_their_patches() {
        assert_eq!(
            [place(8, 2, 3, 3), place(8, 2, 4, 3), place(8, 2, 0, 4), place(8, 2, 7, 7)],
            [0, 1, 2, 3]
        );
    }
}
