//! `cargo xtask tokenizer`: the codes of patches that BEiT predicts, learned apart from a run.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, ensure};
use candle_core::{D, DType, Device, Tensor};
use clap::Args;
use ssl_vision::augment::Normalize;
use ssl_vision::data::Dataset;
use ssl_vision::losses::unpatchify;
use ssl_vision::methods::{KMeansTokenizer, MethodConfig, Tokenizer as _};
use ssl_vision::train::{Images, Observer, learn_tokenizer};

use crate::choice::Choice;
use crate::picture::{Tiles, to_pixels};
use crate::progress::Progress;
use crate::{data_path, use_threads};

/// Codes in a picture at most.
const MOST: usize = 256;

/// Learn a tokenizer for BEiT: the codes of patches that it predicts, as centres of k-means among the patches of all
/// images.
///
/// A run of BEiT learns the same codes by itself before its first step. With a file of them several runs predict the same
/// codes, also on other images.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask tokenizer --picture codes.png
  cargo xtask tokenizer --data ~/photos --set augment.size=96 --set backbone.patch_size=8 --set method.codes=1024
  cargo xtask pretrain --method beit --set 'method.tokenizer_weights=\"tokenizer.safetensors\"'")]
pub(crate) struct Tokenizer {
    #[command(flatten)]
    choice: Choice,
    /// The file of codes.
    #[arg(long, value_name = "FILE", default_value = "tokenizer.safetensors")]
    out: PathBuf,
    /// A picture of the codes from dark to bright, of every so many if there are more than 256.
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
    /// Threads to compute with; all cores by default. The codes do not depend on it.
    #[arg(long)]
    threads: Option<usize>,
}

impl Tokenizer {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let recipe = self.choice.or_method("beit").recipe()?;
        if let (Some(path), MethodConfig::Beit(config)) = (&self.picture, &recipe.method) {
            ensure!(
                !config.normalize_patches,
                "{}: with method.normalize_patches = true the codes have no colours to draw",
                path.display()
            );
        }
        let threads = use_threads(self.threads)?;
        let images = Images::of_recipe(&recipe, &data_path(&recipe.data.path))?;
        let mut observers: Vec<Box<dyn Observer>> = vec![Box::new(Progress::new())];
        let never = AtomicBool::new(false);
        let learned = learn_tokenizer(&recipe, &images, &Device::Cpu, threads, &mut observers, &never)?;
        let tokenizer = learned.context("the pass over the images was stopped")?;
        tokenizer.write(&self.out, &recipe.training_data(images.train.len()))?;
        let fit = tokenizer.fit().context("nothing was learned")?;
        println!(
            "{}: {} codes of patches of {} pixels, {} of them used; they explain {:.1} % of the variance of the patches \
             ({} rounds of k-means)",
            self.out.display(),
            tokenizer.codes(),
            tokenizer.patch(),
            fit.used,
            100.0 * fit.explained,
            fit.rounds,
        );
        if let Some(path) = &self.picture {
            draw(&tokenizer, &recipe.augment.normalize()?, path)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Draws the codes in rows and columns.
fn draw(tokenizer: &KMeansTokenizer, normalize: &Normalize, path: &Path) -> anyhow::Result<()> {
    let centers = tokenizer.appearance().context("the codes have no colours to draw")?;
    let (codes, patch) = (tokenizer.codes(), tokenizer.patch());
    let brightness = centers.mean(D::Minus1)?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
    let mut order: Vec<usize> = (0..codes).collect();
    order.sort_by(|a, b| brightness[*a].total_cmp(&brightness[*b]));
    let shown: Vec<u32> = order.into_iter().step_by(codes.div_ceil(MOST)).map(|code| code as u32).collect();
    ensure!(!shown.is_empty(), "there are no codes to draw");
    let columns = (shown.len() as f64).sqrt().ceil() as usize;
    let mut tiles = Tiles::new(shown.len().div_ceil(columns), columns, patch);
    let chosen = centers.index_select(&Tensor::new(shown.as_slice(), centers.device())?, 0)?;
    let chosen = unpatchify(&chosen.unsqueeze(1)?, patch, (1, 1))?;
    for place in 0..shown.len() {
        let pixels = to_pixels(normalize, &chosen.get(place)?)?;
        tiles.put((place / columns, place % columns), patch, |x, y| pixels[y * patch + x]);
    }
    tiles.save(path)?;
    println!("{}: {} of {codes} codes, from dark to bright", path.display(), shown.len());
    Ok(())
}
