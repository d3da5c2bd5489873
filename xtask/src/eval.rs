//! `cargo xtask eval`: how good an encoder is.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::ensure;
use candle_core::Device;
use clap::Args;
use ssl_vision::augment::presets;
use ssl_vision::backbones::load_encoder;
use ssl_vision::eval::KnnConfig;
use ssl_vision::train::{DataConfig, Protocol, evaluate, open_images, study};

use crate::{data_path, table, use_threads};

/// Evaluate an encoder file on labelled images, beside raw pixels and the untrained network.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask eval --weights runs/simclr-fashion-mnist/encoder.safetensors --data fashion-mnist
  cargo xtask eval --weights encoder.safetensors --data ~/photos --study --json")]
pub(crate) struct Eval {
    /// Encoder written by `pretrain`, `export` or `import`.
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
    /// Tell more than two accuracies: few labels, clusters, retrieval, ranks, the information that views share, damaged
    /// images. Takes some minutes.
    #[arg(long)]
    study: bool,
    /// Augmentation that makes the views of a study, a name of `pretrain --list`.
    #[arg(long, value_name = "PRESET", default_value = "simclr", requires = "study")]
    views: String,
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
        let presets = presets::names();
        ensure!(
            presets.contains(&self.views.as_str()),
            "--views {} is unknown; available: {}",
            self.views,
            presets.join(", ")
        );
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
        let progress = |stage: &str| {
            if !quiet {
                println!("evaluating: {stage} …");
            }
        };
        let evaluation = evaluate(&*encoder.backbone, &protocol, &images, &Device::Cpu, progress)?;
        let study = match self.study {
            true => Some(study(&*encoder.backbone, &protocol, &images, &self.views, &Device::Cpu, progress)?),
            false => None,
        };
        let broken = images.broken();
        if let Some(first) = broken.first() {
            eprintln!("broken files skipped: {}; the first: {first}", broken.len());
        }
        if self.json {
            let mut object = evaluation.to_json();
            object.extend(study.map(|study| ("study".to_owned(), study.to_json())));
            println!("{}", serde_json::Value::Object(object));
        } else {
            println!("\n{}", table::scores(&evaluation));
            if let Some(study) = study {
                println!("{}", table::study(&study));
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}
