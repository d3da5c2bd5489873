//! `cargo xtask eval` and `cargo xtask export`: what one does with a trained encoder.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use candle_core::Device;
use clap::{Args, ValueEnum};
use ssl_vision::backbones::load_encoder;
use ssl_vision::eval::KnnConfig;
use ssl_vision::train::{DataConfig, Protocol, RunFolder, evaluate, export_checkpoint, open_images};

use crate::{data_path, table, use_threads};

/// Evaluate an encoder file on labelled images, beside raw pixels and the untrained network.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  cargo xtask eval --weights runs/simclr-fashion-mnist/encoder.safetensors --data fashion-mnist")]
pub(crate) struct Eval {
    /// Encoder written by `pretrain` or `export`.
    #[arg(long, value_name = "FILE")]
    weights: PathBuf,
    /// Labelled images, as for `pretrain`; without a test split a part is held out.
    #[arg(long, value_name = "PATH", default_value = "fashion-mnist")]
    data: String,
    /// Neighbours of the kNN classifier.
    #[arg(long, default_value_t = 20)]
    knn_k: usize,
    /// Temperature of its votes.
    #[arg(long, default_value_t = 0.07)]
    knn_temperature: f64,
    /// What to do about a broken file: stop or skip.
    #[arg(long, default_value = "stop")]
    on_error: String,
    /// Share held out of each class if there is no test split.
    #[arg(long, default_value_t = 0.2)]
    holdout: f64,
    /// Seed of the untrained network.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Threads to compute with; all cores by default.
    #[arg(long)]
    threads: Option<usize>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

impl Eval {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let knn = KnnConfig { k: self.knn_k, temperature: self.knn_temperature };
        knn.check()?;
        use_threads(self.threads)?;
        let encoder = load_encoder(&self.weights, &Device::Cpu)?;
        let (path, on_error, holdout) = (self.data.clone(), self.on_error, self.holdout);
        let config = DataConfig { path, on_error, holdout, ..DataConfig::default() };
        let images = open_images(&config, None, &data_path(&self.data))?;
        if !images.can_evaluate() {
            anyhow::bail!("{}: evaluation needs labels of two classes or more", self.data);
        }
        let protocol = Protocol::of_encoder(&encoder.info, knn, self.seed);
        let quiet = self.json;
        let evaluation = evaluate(&*encoder.backbone, &protocol, &images, &Device::Cpu, |stage| {
            if !quiet {
                println!("evaluating: {stage} …");
            }
        })?;
        let broken = images.broken();
        if let Some(first) = broken.first() {
            eprintln!("broken files skipped: {}; the first: {first}", broken.len());
        }
        if self.json {
            println!("{}", serde_json::Value::Object(evaluation.to_json()));
        } else {
            println!("\n{}", table::scores(&evaluation));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Names under which the tensors of an export stand.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    /// torchvision's ResNet, loaded with strict=True once `fc` is replaced by an identity.
    Torchvision,
}

/// Write the encoder of a run as safetensors for use elsewhere.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  cargo xtask export --run runs/simclr-fashion-mnist --format torchvision --out encoder.safetensors")]
pub(crate) struct Export {
    /// Folder of the run; its newest intact checkpoint is exported.
    #[arg(long, value_name = "DIR")]
    run: PathBuf,
    /// Naming of the tensors.
    #[arg(long, value_enum, default_value = "torchvision")]
    format: Format,
    /// File to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl Export {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let Format::Torchvision = self.format;
        let (folder, _) = RunFolder::open(&self.run)?;
        let Some((path, checkpoint)) = folder.latest(&Device::Cpu, |notice| eprintln!("{notice}"))? else {
            anyhow::bail!("{}: has no checkpoint yet", self.run.display());
        };
        export_checkpoint(&self.out, &checkpoint)?;
        let name = path.file_name().map(Path::new).unwrap_or(&path);
        println!("{} (from {})", self.out.display(), name.display());
        Ok(ExitCode::SUCCESS)
    }
}
