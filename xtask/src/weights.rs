//! `cargo xtask export` and `cargo xtask import`: encoders to and from the files of other programs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use candle_core::Device;
use clap::{Args, ValueEnum};
use ssl_vision::backbones::{
    BackboneConfig, EncoderInfo, HubFile, Positions, RelativePositions, TensorFile, VitNames, VitOptions,
    export_foreign, import_foreign, load_encoder, save_encoder,
};
use ssl_vision::train::{Recipe, RunFolder, encoder_of_checkpoint};
use toml::{Table, Value};

/// The programs whose names of tensors are known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Names {
    /// torchvision's ResNet and RegNet, loaded with strict=True once `fc` is an identity.
    Torchvision,
    /// timm's VisionTransformer, Beit and SwinTransformer, the last also as in its official code.
    Timm,
    /// The official code of DINO and iBOT.
    Dino,
    /// The official code of DINOv2, with and without registers.
    Dinov2,
    /// The official code of MAE.
    Mae,
    /// ViTModel of transformers.
    TransformersVit,
    /// ViTMAEModel of transformers.
    TransformersVitMae,
    /// Dinov2Model and Dinov2WithRegistersModel of transformers.
    TransformersDinov2,
    /// BeitModel of transformers.
    TransformersBeit,
    /// Data2VecVisionModel of transformers.
    TransformersData2vec,
    /// CLIPVisionModel of transformers.
    TransformersClip,
}

impl Names {
    /// The names of a vision transformer; `None` for torchvision, which has ours of the other networks.
    fn of_vit(self) -> Option<VitNames> {
        Some(match self {
            Self::Torchvision => return None,
            Self::Timm => VitNames::Timm,
            Self::Dino => VitNames::Dino,
            Self::Dinov2 => VitNames::Dinov2,
            Self::Mae => VitNames::Mae,
            Self::TransformersVit => VitNames::TransformersVit,
            Self::TransformersVitMae => VitNames::TransformersVitMae,
            Self::TransformersDinov2 => VitNames::TransformersDinov2,
            Self::TransformersBeit => VitNames::TransformersBeit,
            Self::TransformersData2vec => VitNames::TransformersData2Vec,
            Self::TransformersClip => VitNames::TransformersClip,
        })
    }

    /// The parts of the vision transformers that the program usually has.
    fn options(self) -> VitOptions {
        let fine_tuned = VitOptions { relative_positions: RelativePositions::Each, ..VitOptions::beit() };
        match self {
            Self::Dinov2 | Self::TransformersDinov2 => VitOptions::dinov2(),
            Self::Mae | Self::TransformersVitMae => VitOptions::mae(),
            Self::TransformersVit => VitOptions { norm_eps: 1e-12, ..VitOptions::default() },
            Self::TransformersBeit | Self::TransformersData2vec => {
                VitOptions { norm_eps: 1e-12, positions: Positions::None, ..fine_tuned }
            }
            Self::TransformersClip => VitOptions::clip(),
            Self::Torchvision | Self::Timm | Self::Dino => VitOptions::default(),
        }
    }
}

/// Write an encoder as safetensors for use elsewhere.
///
/// Without --format the file has torchvision's names for ResNets and RegNets and timm's for transformers, and says
/// how to feed the network; `eval`, `inspect` and the library read it. With --format it has those of that program.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask export --run runs/simclr-fashion-mnist --out encoder.safetensors
  cargo xtask export --run runs/mae-fashion-mnist --format transformers-vit-mae --out model.safetensors
  cargo xtask export --weights encoder.safetensors --format dinov2 --out dinov2.safetensors")]
pub(crate) struct Export {
    /// Folder of the run; its newest intact checkpoint is exported.
    #[arg(long, value_name = "DIR", required_unless_present = "weights", conflicts_with = "weights")]
    run: Option<PathBuf>,
    /// Encoder file of ours to export instead.
    #[arg(long, value_name = "FILE")]
    weights: Option<String>,
    /// Naming of the tensors; by default ours, with a description.
    #[arg(long, value_enum)]
    format: Option<Names>,
    /// File to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl Export {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let (info, tensors, from) = match (&self.run, &self.weights) {
            (_, Some(weights)) => {
                let weights = local_file(weights)?;
                let encoder = load_encoder(&weights, &Device::Cpu)?;
                let tensors = encoder.params.all().into_iter();
                let tensors = tensors.map(|(name, var)| (name, var.as_detached_tensor())).collect();
                (encoder.info, tensors, weights)
            }
            (Some(run), None) => {
                let (folder, _) = RunFolder::open(run)?;
                let Some((path, checkpoint)) = folder.latest(&Device::Cpu, |notice| eprintln!("{notice}"))?
                else {
                    bail!("{}: has no checkpoint yet", run.display());
                };
                let (info, tensors) = encoder_of_checkpoint(&checkpoint)?;
                (info, tensors, path)
            }
            (None, None) => bail!("--run or --weights is needed"),
        };
        match self.format.map(|format| (format, format.of_vit())) {
            None => save_encoder(&self.out, tensors, &info)?,
            Some((format, names)) => {
                let tensors = export_foreign(tensors, names, &info.backbone)
                    .with_context(|| format!("--format {}", name_of(format)))?;
                TensorFile { tensors, metadata: [("format".to_owned(), "pt".to_owned())].into() }
                    .write(&self.out)?;
            }
        }
        let name = from.file_name().map(Path::new).unwrap_or(&from);
        println!("{} (from {})", self.out.display(), name.display());
        Ok(ExitCode::SUCCESS)
    }
}

/// Make an encoder file of weights that another program wrote.
///
/// What is no part of the encoder, such as heads, decoders and mask tokens, is left out. The network is described by keys
/// of a recipe; where the names belong to one kind of network, its usual parts are the defaults.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask import --weights vit_small.safetensors --names timm --backbone vit_small --out encoder.safetensors
  cargo xtask import --weights dinov2.safetensors --names transformers-dinov2 --backbone vit_small \\
      --set backbone.patch_size=14 --set augment.size=518 --set backbone.vit.layer_scale=1 --out encoder.safetensors
  cargo xtask import --weights beit.safetensors --names transformers-beit --backbone vit_base \\
      --set backbone.vit.pooling=mean_norm --out encoder.safetensors     # fine-tuned: a norm behind the mean
  cargo run --release -p xtask --features hub -- import --weights hf://timm/vit_small_patch16_224.augreg_in21k/model.safetensors \\
      --names timm --backbone vit_small --set augment.mean=[0.5,0.5,0.5] --set augment.std=[0.5,0.5,0.5] --out encoder.safetensors
  cargo xtask eval --weights encoder.safetensors --data ~/labelled")]
pub(crate) struct Import {
    /// Safetensors file of the other program, or one of the Hugging Face hub, hf://OWNER/NAME/FILE, if the runner was built
    /// with `--features hub`.
    #[arg(long, value_name = "FILE")]
    weights: String,
    /// Naming of its tensors.
    #[arg(long, value_enum)]
    names: Names,
    /// Network (key backbone.name).
    #[arg(long)]
    backbone: String,
    /// Any key of a recipe's tables backbone and augment, for example --set augment.size=224, --set
    /// backbone.patch_size=8 or --set augment.mean=[0.5,0.5,0.5]; may be repeated. Mean and deviation are by default those
    /// of ImageNet.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// What trained the weights, for the description.
    #[arg(long, value_name = "TEXT", default_value = "unknown")]
    method: String,
    /// Licence of the weights as an SPDX expression, for the description.
    #[arg(long, value_name = "SPDX", default_value = "NOASSERTION")]
    licence: String,
    /// Encoder file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

impl Import {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let recipe = self.recipe()?;
        let file = TensorFile::read_foreign(&local_file(&self.weights)?, &Device::Cpu)?;
        let count = file.tensors.len();
        let tensors = import_foreign(file.tensors, self.names.of_vit(), &recipe.backbone)
            .with_context(|| format!("{}: --names {}", self.weights, name_of(self.names)))?;
        let info = EncoderInfo {
            pooling: recipe.backbone.pooling()?.to_owned(),
            backbone: recipe.backbone,
            method: self.method,
            input_size: recipe.augment.size,
            mean: recipe.augment.mean,
            std: recipe.augment.std,
            licence: self.licence,
            recipe_hash: "none".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let kept = tensors.len();
        save_encoder(&self.out, tensors, &info)?;
        println!("{} ({kept} tensors of {count} in {})", self.out.display(), self.weights);
        Ok(ExitCode::SUCCESS)
    }

    /// The network and its input as a recipe, so that keys and messages are those of recipes.
    fn recipe(&self) -> anyhow::Result<Recipe> {
        let mut backbone = Table::from_iter([("name".to_owned(), Value::from(self.backbone.as_str()))]);
        let is_vit =
            BackboneConfig::named(&self.backbone).is_ok_and(|named| named.vision_transformer().is_ok());
        if is_vit && self.names.of_vit().is_some() {
            backbone.insert("vit".to_owned(), Value::try_from(self.names.options())?);
        }
        let augment = Table::from_iter([
            ("mean".to_owned(), Value::from(vec![0.485, 0.456, 0.406])),
            ("std".to_owned(), Value::from(vec![0.229, 0.224, 0.225])),
        ]);
        let layer = Table::from_iter([
            ("backbone".to_owned(), Value::Table(backbone)),
            ("augment".to_owned(), Value::Table(augment)),
        ]);
        let mut settings = Vec::new();
        for setting in &self.settings {
            let (key, value) =
                setting.split_once('=').with_context(|| format!("--set {setting}: expected KEY=VALUE"))?;
            let key = key.trim();
            if !["backbone.", "augment."].iter().any(|table| key.starts_with(table)) {
                bail!("--set {setting}: expected a key of the tables backbone and augment");
            }
            settings.push((key.to_owned(), value.trim().to_owned()));
        }
        Ok(Recipe::parse(&layer.to_string(), &settings)?)
    }
}

/// The file at a path, or that of an address of the hub, downloaded.
pub(crate) fn local_file(address: &str) -> anyhow::Result<PathBuf> {
    match HubFile::parse(address)? {
        Some(file) => Ok(file.fetch()?),
        None => Ok(PathBuf::from(address)),
    }
}

/// The value as it stands on the command line.
fn name_of(names: Names) -> String {
    names.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}
