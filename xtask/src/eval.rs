//! `cargo xtask eval`: how good an encoder is.

mod tuning;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use candle_core::Device;
use clap::Args;
use ssl_vision::augment::presets;
use ssl_vision::backbones::{Encoder, EncoderInfo, load_encoder, save_encoder};
use ssl_vision::eval::KnnConfig;
use ssl_vision::train::{DataConfig, FineTuneConfig, Images, Protocol, evaluate, study};

use crate::weights::local_file;
use crate::{data_path, table, use_threads};
use tuning::{Tuned, Tuning};

/// Evaluate an encoder file on labelled images, beside raw pixels and the untrained network.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask eval --weights runs/simclr-fashion-mnist/encoder.safetensors --data fashion-mnist
  cargo xtask eval --weights encoder.safetensors --data ~/labelled --fine-tune --out tuned.safetensors
  cargo xtask eval --weights encoder.safetensors --augmented-probe --set augmented_probe.epochs=50
  cargo xtask eval --weights encoder.safetensors --data ~/photos --study --json")]
pub(crate) struct Eval {
    /// Encoder written by `pretrain`, `export` or `import`, here or on the Hugging Face hub, hf://OWNER/NAME/FILE, if the
    /// runner was built with `--features hub`. `import` makes one of torchvision's, timm's or DINOv2's weights.
    #[arg(long, value_name = "FILE")]
    weights: String,
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
    /// Train the whole encoder on with the labels, its rates falling from the last layer to the first, and the same network
    /// from scratch beside it. Its settings are keys of fine_tune: epochs, batch_size, optimizer.lr, layer_decay,
    /// warmup_epochs, label_smoothing, crop_scale, flip_p, seed.
    #[arg(long)]
    fine_tune: bool,
    /// Train a linear classifier on augmented images, the encoder frozen; the keys are those of fine-tuning, below
    /// augmented_probe.
    #[arg(long)]
    augmented_probe: bool,
    /// A setting of these two, such as --set fine_tune.layer_decay=0.65; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Write the encoder as fine-tuning leaves it.
    #[arg(long, value_name = "FILE", requires = "fine_tune")]
    out: Option<PathBuf>,
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
        let tunings = self.tunings()?;
        // Before minutes of training, not after them.
        if let Some(folder) = self.out.as_deref().and_then(Path::parent) {
            let there = folder.as_os_str().is_empty() || folder.is_dir();
            ensure!(there, "--out: there is no folder {}", folder.display());
        }
        let threads = use_threads(self.threads)?;
        let encoder = load_encoder(&local_file(&self.weights)?, &Device::Cpu)?;
        let (path, on_error, holdout) = (self.data.clone(), self.on_error, self.holdout);
        let config = DataConfig { path, on_error, holdout, ..DataConfig::default() };
        let images = Images::open(&config, &data_path(&self.data))?;
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
        let mut tuned = Vec::new();
        for (tuning, config) in tunings {
            tuned.push(Tuned::run(tuning, config, &encoder, &protocol, &images, threads)?);
        }
        if let (Some(path), Some(first)) = (&self.out, tuned.first()) {
            save_tuned(path, &encoder, first)?;
        }
        let broken = images.broken();
        if let Some(first) = broken.first() {
            eprintln!("broken files skipped: {}; the first: {first}", broken.len());
        }
        if self.json {
            let mut object = evaluation.to_json();
            object.extend(study.map(|study| ("study".to_owned(), study.to_json())));
            object.extend(tuned.iter().map(Tuned::to_json));
            println!("{}", serde_json::Value::Object(object));
        } else {
            println!("\n{}", table::scores(&evaluation));
            if let Some(study) = study {
                println!("{}", table::study(&study));
            }
            tuned.iter().for_each(|tuned| println!("{}", tuned.table()));
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The trainings with labels that are asked for, fine-tuning first, with their settings.
    fn tunings(&self) -> anyhow::Result<Vec<(Tuning, FineTuneConfig)>> {
        let asked = [(Tuning::FineTune, self.fine_tune), (Tuning::Probe, self.augmented_probe)];
        let asked: Vec<Tuning> =
            asked.into_iter().filter(|(_, asked)| *asked).map(|(tuning, _)| tuning).collect();
        let mut settings = Vec::new();
        for setting in &self.settings {
            let (key, value) =
                setting.split_once('=').with_context(|| format!("--set {setting}: expected KEY=VALUE"))?;
            let belongs = |tuning: &Tuning| key.split('.').next() == Some(tuning.section());
            ensure!(
                asked.iter().any(belongs),
                "--set {setting}: keys begin with `fine_tune.` beside --fine-tune, or with `augmented_probe.` beside \
                 --augmented-probe"
            );
            settings.push((key.trim().to_owned(), value.trim().to_owned()));
        }
        asked.into_iter().map(|tuning| Ok((tuning, tuning.config(&settings)?))).collect()
    }
}

/// Writes the encoder that fine-tuning left, with the description of the one it started from.
fn save_tuned(path: &Path, encoder: &Encoder, tuned: &Tuned) -> anyhow::Result<()> {
    let all = tuned.encoder.encoder.all().into_iter();
    let tensors = all.map(|(name, var)| (name, var.as_tensor().clone())).collect();
    let info = EncoderInfo { method: format!("{}, fine-tuned", encoder.info.method), ..encoder.info.clone() };
    Ok(save_encoder(path, tensors, &info)?)
}
