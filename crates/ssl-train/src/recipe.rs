//! A recipe: everything that decides the result of a run, in one TOML file.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use ssl_augment::{MultiView, Normalize, ViewConfig, presets};
use ssl_backbones::BackboneConfig;
use ssl_data::OnError;
use ssl_methods::MethodConfig;
use toml::{Table, Value};

use crate::captions::TextConfig;
use crate::error::{Error, Result};
use crate::gradients::ClipScope;
use crate::layers;
use crate::optimizer::OptimizerConfig;
use crate::schedule::ScheduleConfig;

/// The recipes that come with the library, by name; the first is the default.
const EMBEDDED: &[(&str, &str)] = &[
    ("simclr-fashion-mnist", include_str!("../recipes/simclr-fashion-mnist.toml")),
    ("simclr-cifar10", include_str!("../recipes/simclr-cifar10.toml")),
    ("simclr-imagenet", include_str!("../recipes/simclr-imagenet.toml")),
    ("byol-fashion-mnist", include_str!("../recipes/byol-fashion-mnist.toml")),
    ("moco-v1-fashion-mnist", include_str!("../recipes/moco-v1-fashion-mnist.toml")),
    ("moco-v1-imagenet", include_str!("../recipes/moco-v1-imagenet.toml")),
    ("moco-v2-fashion-mnist", include_str!("../recipes/moco-v2-fashion-mnist.toml")),
    ("moco-v2-cifar10", include_str!("../recipes/moco-v2-cifar10.toml")),
    ("moco-v2-imagenet", include_str!("../recipes/moco-v2-imagenet.toml")),
    ("moco-v3-fashion-mnist", include_str!("../recipes/moco-v3-fashion-mnist.toml")),
    ("moco-v3-cifar10", include_str!("../recipes/moco-v3-cifar10.toml")),
    ("moco-v3-imagenet", include_str!("../recipes/moco-v3-imagenet.toml")),
    ("byol-cifar10", include_str!("../recipes/byol-cifar10.toml")),
    ("byol-imagenet", include_str!("../recipes/byol-imagenet.toml")),
    ("simsiam-fashion-mnist", include_str!("../recipes/simsiam-fashion-mnist.toml")),
    ("simsiam-cifar10", include_str!("../recipes/simsiam-cifar10.toml")),
    ("simsiam-imagenet", include_str!("../recipes/simsiam-imagenet.toml")),
    ("barlow-twins-fashion-mnist", include_str!("../recipes/barlow-twins-fashion-mnist.toml")),
    ("barlow-twins-cifar10", include_str!("../recipes/barlow-twins-cifar10.toml")),
    ("barlow-twins-imagenet", include_str!("../recipes/barlow-twins-imagenet.toml")),
    ("vicreg-fashion-mnist", include_str!("../recipes/vicreg-fashion-mnist.toml")),
    ("vicreg-cifar10", include_str!("../recipes/vicreg-cifar10.toml")),
    ("vicreg-imagenet", include_str!("../recipes/vicreg-imagenet.toml")),
    ("swav-fashion-mnist", include_str!("../recipes/swav-fashion-mnist.toml")),
    ("swav-cifar10", include_str!("../recipes/swav-cifar10.toml")),
    ("swav-imagenet", include_str!("../recipes/swav-imagenet.toml")),
    ("swav-imagenet-small-batch", include_str!("../recipes/swav-imagenet-small-batch.toml")),
    ("seer-imagenet", include_str!("../recipes/seer-imagenet.toml")),
    ("sela-fashion-mnist", include_str!("../recipes/sela-fashion-mnist.toml")),
    ("sela-cifar10", include_str!("../recipes/sela-cifar10.toml")),
    ("sela-imagenet", include_str!("../recipes/sela-imagenet.toml")),
    ("mae-fashion-mnist", include_str!("../recipes/mae-fashion-mnist.toml")),
    ("mae-cifar10", include_str!("../recipes/mae-cifar10.toml")),
    ("mae-imagenet", include_str!("../recipes/mae-imagenet.toml")),
    ("simmim-fashion-mnist", include_str!("../recipes/simmim-fashion-mnist.toml")),
    ("simmim-cifar10", include_str!("../recipes/simmim-cifar10.toml")),
    ("simmim-imagenet", include_str!("../recipes/simmim-imagenet.toml")),
    ("beit-fashion-mnist", include_str!("../recipes/beit-fashion-mnist.toml")),
    ("beit-cifar10", include_str!("../recipes/beit-cifar10.toml")),
    ("beit-imagenet", include_str!("../recipes/beit-imagenet.toml")),
    ("data2vec-fashion-mnist", include_str!("../recipes/data2vec-fashion-mnist.toml")),
    ("data2vec-cifar10", include_str!("../recipes/data2vec-cifar10.toml")),
    ("data2vec-imagenet", include_str!("../recipes/data2vec-imagenet.toml")),
    ("i-jepa-fashion-mnist", include_str!("../recipes/i-jepa-fashion-mnist.toml")),
    ("i-jepa-cifar10", include_str!("../recipes/i-jepa-cifar10.toml")),
    ("i-jepa-imagenet", include_str!("../recipes/i-jepa-imagenet.toml")),
    ("dino-fashion-mnist", include_str!("../recipes/dino-fashion-mnist.toml")),
    ("dino-cifar10", include_str!("../recipes/dino-cifar10.toml")),
    ("dino-imagenet", include_str!("../recipes/dino-imagenet.toml")),
    ("dino-imagenet-resnet50", include_str!("../recipes/dino-imagenet-resnet50.toml")),
    ("clip-fashion-mnist", include_str!("../recipes/clip-fashion-mnist.toml")),
    ("clip-image-text", include_str!("../recipes/clip-image-text.toml")),
    ("ibot-fashion-mnist", include_str!("../recipes/ibot-fashion-mnist.toml")),
    ("ibot-imagenet", include_str!("../recipes/ibot-imagenet.toml")),
    ("dinov2-fashion-mnist", include_str!("../recipes/dinov2-fashion-mnist.toml")),
    ("dinov2-imagenet", include_str!("../recipes/dinov2-imagenet.toml")),
    ("msn-fashion-mnist", include_str!("../recipes/msn-fashion-mnist.toml")),
    ("msn-imagenet", include_str!("../recipes/msn-imagenet.toml")),
];

/// As much memory for decoded images as one may ask for, in MiB: 16 TiB.
const MAX_CACHE_MIB: u64 = 1 << 24;

/// More epochs than any run has, and few enough that counting steps never overflows.
const MAX_EPOCHS: usize = 1_000_000;

/// Everything that decides the result of a run.
///
/// ```
/// use ssl_train::Recipe;
///
/// let recipe = Recipe::load("simclr-fashion-mnist", &[("optimizer.lr".into(), "0.01".into())])?;
/// assert_eq!(recipe.optimizer.lr(), 0.01);
/// let error = Recipe::load("simclr-fashion-mnist", &[("optimizer.lrr".into(), "1".into())]).unwrap_err();
/// assert!(error.to_string().contains("did you mean `optimizer.lr`?"));
/// # Ok::<(), ssl_train::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// Name of the recipe.
    pub name: String,
    /// Seed of all randomness.
    pub seed: u64,
    /// The images.
    pub data: DataConfig,
    /// The texts, for methods that compare images with texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<TextConfig>,
    /// How views are made.
    pub augment: AugmentConfig,
    /// The encoder.
    pub backbone: BackboneConfig,
    /// The method.
    pub method: MethodConfig,
    /// The update rule.
    pub optimizer: OptimizerConfig,
    /// The learning rate over time.
    pub schedule: ScheduleConfig,
    /// Length and batches.
    pub train: TrainConfig,
    /// What is kept for resuming.
    pub checkpoint: CheckpointConfig,
    /// How the encoder is judged.
    pub eval: EvalConfig,
}

/// The images of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// A folder of images, IDX files or CIFAR batches, or `fashion-mnist` for the data that ships with the project.
    pub path: String,
    /// What to do about a file that cannot be decoded: `stop` or `skip`.
    pub on_error: String,
    /// Share of the training images held out for evaluation if the data has labels but no test split, in `(0, 1)`.
    pub holdout: f64,
    /// Memory in MiB for decoded training images of a folder, which are then decoded once and not in every epoch; 0 for
    /// none. It does not change the result.
    pub cache_mib: u64,
}

/// How views are made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AugmentConfig {
    /// One of [`ssl_augment::presets`].
    pub preset: String,
    /// Side of the views in pixels.
    pub size: usize,
    /// Strength of the colour changes, for presets that have one.
    pub strength: f64,
    /// `u8`: as Pillow, rounding after each operation; `f32`: as torchvision on float tensors.
    pub arithmetic: String,
    /// Mean of each channel in `[0, 1]`, subtracted last.
    pub mean: [f64; 3],
    /// Standard deviation of each channel, divided by last.
    pub std: [f64; 3],
    /// Groups of equal views that replace the preset's, such as the large and the small crops of multi-crop: tables with
    /// keys of [`ViewConfig`], first of all `copies`, `size` and `crop_scale`. What group `i` leaves out is the preset's
    /// in its group `i`, or in its last one. Empty for the preset's groups.
    pub views: Vec<Table>,
    /// Keys of [`ViewConfig`] that replace the preset's in every view, such as `crop_scale`.
    #[serde(flatten)]
    pub overrides: Table,
}

/// Length and batches of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Passes over the images.
    pub epochs: usize,
    /// Stop after this many optimiser steps; 0 for no limit. The schedule is that of the whole run.
    pub max_steps: usize,
    /// Images of one optimiser step.
    pub batch_size: usize,
    /// Parts that a batch is computed in, one after the other; contrastive losses then see fewer negatives.
    pub accumulate: usize,
    /// Largest norm of the gradients; 0 for no limit.
    pub clip_norm: f64,
    /// Of which gradients: `all` together, those of each `module`, or of each `tensor`.
    #[serde(default, skip_serializing_if = "ClipScope::is_all")]
    pub clip_scope: ClipScope,
}

/// What is kept for resuming.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointConfig {
    /// Optimiser steps between checkpoints.
    pub every_steps: usize,
    /// Checkpoints kept, at least 2, so that one survives if the newest is damaged.
    pub keep: usize,
}

/// How the encoder is judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvalConfig {
    /// Neighbours of the kNN classifier.
    pub knn_k: usize,
    /// Temperature of its votes.
    pub knn_temperature: f64,
}

impl Recipe {
    /// Names of the embedded recipes; the first is the default.
    pub fn embedded() -> impl Iterator<Item = &'static str> {
        EMBEDDED.iter().map(|(name, _)| *name)
    }

    /// Reads the embedded recipe or the TOML file `source` and lays `overrides` (key, value) over it.
    ///
    /// # Errors
    /// If there is no such recipe, or a key or value is refused; the message names key, value and allowed range.
    pub fn load(source: &str, overrides: &[(String, String)]) -> Result<Self> {
        let text = match EMBEDDED.iter().find(|(name, _)| *name == source) {
            Some((_, text)) => (*text).to_owned(),
            None => std::fs::read_to_string(source).map_err(|e| {
                let names: Vec<_> = Self::embedded().collect();
                Error::Recipe(format!(
                    "`{source}` is neither a recipe ({}) nor a file that can be read ({e})",
                    names.join(", ")
                ))
            })?,
        };
        Self::parse(&text, overrides).map_err(|error| match error {
            Error::Recipe(reason) => Error::Recipe(format!("{source}: {reason}")),
            other => other,
        })
    }

    /// Reads a recipe from TOML text and lays `overrides` over it.
    ///
    /// # Errors
    /// As [`Recipe::load`].
    pub fn parse(text: &str, overrides: &[(String, String)]) -> Result<Self> {
        let mut layer: Table = text.parse().map_err(|e| not_toml(text, &e))?;
        layers::apply(&mut layer, overrides)?;
        let groups = take_groups(&mut layer)?;
        let reference = Self::reference(&layer)?;
        let mut table = to_table(&reference)?;
        // Keys that are not written where they have their defaults, so that recipes without them keep their hash.
        let unwritten =
            reference.schedule.unwritten().into_iter().map(|(key, value)| ("schedule", key, value));
        let scope = ("train", "clip_scope", Value::String("all".to_owned()));
        for (section, key, value) in unwritten.chain([scope]) {
            if let Some(Value::Table(section)) = table.get_mut(section) {
                section.insert(key.to_owned(), value);
            }
        }
        // Of the view's keys only those that a layer has belong to the recipe; the others come from the preset.
        let mut every_key = table.clone();
        if let Some(Value::Table(augment)) = every_key.get_mut("augment") {
            augment.extend(view_keys()?);
        }
        layers::merge(&mut every_key, layer.clone())?;
        let overrides = take_view_keys(&mut layer)?;
        layers::merge(&mut table, layer)?;
        if let Some(Value::Table(augment)) = table.get_mut("augment") {
            augment.extend(overrides);
            augment.insert("views".to_owned(), groups);
        }
        let mut recipe: Recipe = from_table(table, "")?;
        recipe.backbone = recipe.backbone.brief();
        recipe.validate()?;
        Ok(recipe)
    }

    /// The recipe as TOML, every key spelled out.
    ///
    /// # Errors
    /// If a number does not fit TOML.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).map_err(|e| Error::Recipe(e.to_string()))
    }

    /// Sixteen hexadecimal digits that change with whatever changes the result, and not with the place of the data, the
    /// size of the cache or `backbone.recompute`.
    ///
    /// # Errors
    /// As [`Recipe::to_toml`].
    pub fn hash(&self) -> Result<String> {
        let digest = Sha256::digest(self.deciding().to_toml()?.as_bytes());
        Ok(digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect())
    }

    /// Key by key what differs from `there`, except the place of the data, the size of the cache and
    /// `backbone.recompute`, which do not change
    /// the result.
    ///
    /// # Errors
    /// As [`Recipe::to_toml`].
    pub(crate) fn differences(&self, there: &Self) -> Result<Vec<String>> {
        Ok(layers::differences(&to_table(&there.deciding())?, &to_table(&self.deciding())?))
    }

    /// The recipe without the keys that do not change the result.
    fn deciding(&self) -> Self {
        Self {
            data: DataConfig { path: String::new(), cache_mib: 0, ..self.data.clone() },
            backbone: BackboneConfig { recompute: None, ..self.backbone.clone() },
            ..self.clone()
        }
    }

    /// All keys with their defaults, for the variants that `layer` names.
    fn reference(layer: &Table) -> Result<Self> {
        let chosen = |section: &str, default: &str| -> Result<String> {
            match layer.get(section).and_then(|table| table.get("name")) {
                None => Ok(default.to_owned()),
                Some(Value::String(name)) => Ok(name.clone()),
                Some(other) => Err(Error::Recipe(format!("{section}.name = {other} is not a name"))),
            }
        };
        let unknown = |section: &str, name: &str, names: &[&str]| {
            Error::Recipe(format!("{section}.name = \"{name}\" is unknown; available: {}", names.join(", ")))
        };
        let (method, optimizer) = (chosen("method", "simclr")?, chosen("optimizer", "lars")?);
        let method =
            MethodConfig::named(&method).ok_or_else(|| unknown("method", &method, MethodConfig::NAMES))?;
        let (schedule, backbone) = (chosen("schedule", "cosine")?, chosen("backbone", "resnet50")?);
        let mut backbone = BackboneConfig::named(&backbone)
            .map_err(|_| unknown("backbone", &backbone, &BackboneConfig::NAMES))?;
        // A network with a size of its own is built for that of the views.
        let size = layer.get("augment").and_then(|augment| augment.get("size")).and_then(Value::as_integer);
        let size = size.and_then(|size| usize::try_from(size).ok());
        backbone.image_size = backbone.image_size.map(|default| size.unwrap_or(default));
        backbone = backbone.explicit()?;
        Ok(Self {
            name: "unnamed".to_owned(),
            seed: 0,
            data: DataConfig::default(),
            text: method.needs_text().then(TextConfig::default),
            augment: AugmentConfig {
                preset: method.augmentation().to_owned(),
                size: 224,
                strength: 1.0,
                arithmetic: "u8".to_owned(),
                mean: [0.0; 3],
                std: [1.0; 3],
                views: Vec::new(),
                overrides: Table::new(),
            },
            backbone,
            method,
            optimizer: OptimizerConfig::named(&optimizer)
                .ok_or_else(|| unknown("optimizer", &optimizer, &OptimizerConfig::NAMES))?,
            schedule: ScheduleConfig::named(&schedule)
                .ok_or_else(|| unknown("schedule", &schedule, &ScheduleConfig::NAMES))?,
            train: TrainConfig {
                epochs: 100,
                max_steps: 0,
                batch_size: 256,
                accumulate: 1,
                clip_norm: 0.0,
                clip_scope: ClipScope::All,
            },
            checkpoint: CheckpointConfig { every_steps: 100, keep: 2 },
            eval: EvalConfig { knn_k: 20, knn_temperature: 0.07 },
        })
    }

    fn validate(&self) -> Result<()> {
        let refuse = |reason: String| Err(Error::Recipe(reason));
        let (train, checkpoint, eval) = (&self.train, &self.checkpoint, &self.eval);
        if i64::try_from(self.seed).is_err() {
            return refuse(format!("seed = {} is not in 0..=9223372036854775807", self.seed));
        }
        if train.epochs > MAX_EPOCHS {
            return refuse(format!("train.epochs = {} is not in 1..={MAX_EPOCHS}", train.epochs));
        }
        if train.epochs == 0 || train.batch_size < 2 {
            return refuse(format!(
                "train.epochs = {} must be at least 1 and train.batch_size = {} at least 2",
                train.epochs, train.batch_size
            ));
        }
        if train.accumulate == 0
            || train.batch_size % train.accumulate != 0
            || train.batch_size / train.accumulate < 2
        {
            return refuse(format!(
                "train.accumulate = {} must divide train.batch_size = {} into parts of at least 2 images",
                train.accumulate, train.batch_size
            ));
        }
        if !(train.clip_norm >= 0.0 && train.clip_norm.is_finite()) {
            return refuse(format!(
                "train.clip_norm = {} is not in [0, ∞); 0 stands for no limit",
                train.clip_norm
            ));
        }
        if checkpoint.every_steps == 0 || checkpoint.keep < 2 {
            return refuse(format!(
                "checkpoint.every_steps = {} must be at least 1 and checkpoint.keep = {} at least 2",
                checkpoint.every_steps, checkpoint.keep
            ));
        }
        if eval.knn_k == 0 || !(eval.knn_temperature > 0.0 && eval.knn_temperature.is_finite()) {
            return refuse(format!(
                "eval.knn_k = {} must be at least 1 and eval.knn_temperature = {} positive",
                eval.knn_k, eval.knn_temperature
            ));
        }
        self.data.validate()?;
        let checks = [
            self.method.validate(),
            self.method.validate_batch(train.batch_size, train.accumulate),
            self.optimizer.validate(),
            self.schedule.validate(train.epochs),
            self.backbone.validate(),
            self.method.validate_backbone(&self.backbone),
            self.text.as_ref().map_or(Ok(()), TextConfig::validate),
        ];
        for check in checks {
            check.map_err(Error::Recipe)?;
        }
        if let Some(size) = self.backbone.image_size.filter(|size| *size != self.augment.size) {
            return refuse(format!(
                "backbone.image_size = {size} is not augment.size = {}",
                self.augment.size
            ));
        }
        self.augment.is_float()?;
        self.augment.normalize()?;
        self.augment.multi_view().map(drop)
    }
}

impl Default for DataConfig {
    fn default() -> Self {
        Self { path: "fashion-mnist".to_owned(), on_error: "stop".to_owned(), holdout: 0.2, cache_mib: 0 }
    }
}

impl DataConfig {
    pub(crate) fn validate(&self) -> Result<()> {
        if self.path.is_empty() {
            return Err(Error::Recipe("data.path is empty, expected a path or `fashion-mnist`".to_owned()));
        }
        if !(self.holdout > 0.0 && self.holdout < 1.0) {
            return Err(Error::Recipe(format!("data.holdout = {} is not in (0, 1)", self.holdout)));
        }
        if self.cache_mib > MAX_CACHE_MIB {
            return Err(Error::Recipe(format!(
                "data.cache_mib = {} is not in 0..={MAX_CACHE_MIB}",
                self.cache_mib
            )));
        }
        self.policy().map(drop)
    }

    /// What to do about a broken file.
    pub(crate) fn policy(&self) -> Result<OnError> {
        match self.on_error.as_str() {
            "stop" => Ok(OnError::Stop),
            "skip" => Ok(OnError::Skip),
            other => {
                Err(Error::Recipe(format!("data.on_error = \"{other}\" is neither \"stop\" nor \"skip\"")))
            }
        }
    }
}

impl AugmentConfig {
    /// The views of every image.
    ///
    /// # Errors
    /// If the preset is unknown or a value out of range.
    pub fn multi_view(&self) -> Result<MultiView> {
        Ok(MultiView::new(&self.views()?)?)
    }

    /// The last step of every view.
    ///
    /// # Errors
    /// If a standard deviation is not positive.
    pub fn normalize(&self) -> Result<Normalize> {
        Ok(Normalize::new(self.mean, self.std)?)
    }

    /// Whether views are made in `f32`.
    pub(crate) fn is_float(&self) -> Result<bool> {
        match self.arithmetic.as_str() {
            "u8" => Ok(false),
            "f32" => Ok(true),
            other => {
                Err(Error::Recipe(format!("augment.arithmetic = \"{other}\" is neither \"u8\" nor \"f32\"")))
            }
        }
    }

    fn views(&self) -> Result<Vec<ViewConfig>> {
        let views = presets::by_name(&self.preset, self.size, self.strength).ok_or_else(|| {
            let names = presets::names().join(", ");
            Error::Recipe(format!("augment.preset = \"{}\" is unknown; available: {names}", self.preset))
        })?;
        let with_overrides = |view: &ViewConfig, group: Option<(usize, &Table)>| {
            let mut table = to_table(view)?;
            layers::merge(&mut table, self.overrides.clone())?;
            if let Some((i, group)) = group {
                layers::merge_at(&format!("augment.views[{i}]"), &mut table, group.clone())?;
            }
            from_table(table, "augment.")
        };
        if self.views.is_empty() {
            return views.iter().map(|view| with_overrides(view, None)).collect();
        }
        let groups = self.views.iter().enumerate();
        let groups = groups.filter_map(|(i, group)| Some((views.get(i).or(views.last())?, (i, group))));
        groups.map(|(view, group)| with_overrides(view, Some(group))).collect()
    }
}

/// Keys of a view that a recipe may change; its size and number belong to the preset.
fn view_keys() -> Result<Table> {
    let mut table = to_table(&ViewConfig::default())?;
    for key in ["size", "copies", "order"] {
        table.remove(key);
    }
    Ok(table)
}

/// Removes the view's keys from the table `[augment]` of `layer` and returns them.
fn take_view_keys(layer: &mut Table) -> Result<Table> {
    let Some(Value::Table(augment)) = layer.get_mut("augment") else { return Ok(Table::new()) };
    Ok(view_keys()?.keys().filter_map(|key| augment.remove_entry(key)).collect())
}

/// Removes the list `augment.views` from `layer` and returns it; an empty one if there is none.
fn take_groups(layer: &mut Table) -> Result<Value> {
    let augment = layer.get_mut("augment").and_then(Value::as_table_mut);
    match augment.and_then(|augment| augment.remove("views")) {
        None => Ok(Value::Array(Vec::new())),
        Some(Value::Array(groups)) if groups.iter().all(Value::is_table) => Ok(Value::Array(groups)),
        Some(other) => Err(Error::Recipe(format!(
            "augment.views = {other} is not a list of tables such as [{{ copies = 2, size = 32 }}]"
        ))),
    }
}

/// What is wrong with `text`, in one line.
fn not_toml(text: &str, error: &toml::de::Error) -> Error {
    let before = error.span().and_then(|span| text.as_bytes().get(..span.start)).unwrap_or_default();
    let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
    Error::Recipe(format!("not TOML: line {line}: {}", error.message()))
}

fn to_table<T: Serialize>(value: &T) -> Result<Table> {
    Table::try_from(value).map_err(|e| Error::Recipe(e.to_string()))
}

/// `path` is where the table stands in a recipe, with its dot.
fn from_table<T: DeserializeOwned>(table: Table, path: &str) -> Result<T> {
    Value::Table(table).try_into().map_err(|e: toml::de::Error| {
        // The key is told by the error's second line alone.
        let text = e.to_string();
        let key = text.lines().find_map(|line| line.strip_prefix("in `")?.strip_suffix('`'));
        Error::Recipe(key.map_or(e.message().to_owned(), |key| format!("{path}{key}: {}", e.message())))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(overrides: &[(&str, &str)]) -> Result<Recipe> {
        let overrides: Vec<_> = overrides.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        Recipe::load("simclr-fashion-mnist", &overrides)
    }

    #[test]
    fn every_embedded_recipe_is_valid_and_survives_a_round_trip() {
        for name in Recipe::embedded() {
            let recipe = Recipe::load(name, &[]).unwrap();
            assert_eq!(recipe.name, name);
            assert_eq!(Recipe::parse(&recipe.to_toml().unwrap(), &[]).unwrap(), recipe);
        }
    }

    #[test]
    fn bad_recipes_are_refused_with_key_value_and_range() {
        for (key, value, part) in [
            ("optimzer.lr", "1", "unknown key `optimzer.lr`; did you mean `optimizer.lr`?"),
            ("optimizer.lr", "-1", "optimizer.lr = -1 is not in [0, 10000]"),
            ("optimizer.lr", "fast", "optimizer.lr = \"fast\" is text, expected a number"),
            ("optimizer.lr", "nan", "optimizer.lr = NaN is not in"),
            ("optimizer.name", "adagrad", "\"adagrad\" is unknown; available: sgd, adamw, adam, lars"),
            ("optimizer.beta1", "1.0", "optimizer.beta1 = 1 is not in"),
            ("method.name", "simclear", "available: simclr"),
            ("method.temperature", "0", "method.temperature = 0 is not in (0, 10]"),
            ("method.projector_layers", "0", "method.projector_layers = 0 is not in 1..=8"),
            (
                "method.projector_hidden",
                "100000000",
                "method.projector_hidden = 100000000 is not in 0..=65536",
            ),
            ("backbone.patch_size", "4", "unknown key `backbone.patch_size`"),
            ("backbone.name", "vgg16", "available: resnet18, resnet34, resnet50"),
            ("backbone.width", "0", "backbone.width = 0 is not in 1..=4096"),
            (
                "backbone.stem",
                "tiny",
                "backbone.stem: unknown variant `tiny`, expected `imagenet` or `cifar`",
            ),
            ("augment.interpolation", "cubic", "augment.interpolation: unknown variant `cubic`"),
            ("augment.mean", "[0, 0]", "augment.mean = [0, 0] has 2 numbers, expected 3"),
            ("augment.crop_scale", "[0.5]", "augment.crop_scale = [0.5] has 1 numbers, expected 2"),
            ("schedule.warmup_epochs", "1000", "schedule.warmup_epochs = 1000 is not in 0.."),
            (
                "schedule.warmup_steps",
                "7",
                "schedule.warmup_epochs = 1 and schedule.warmup_steps = 7 are two lengths of one warm-up",
            ),
            (
                "schedule.warmup_steps",
                "1.5",
                "schedule.warmup_steps = 1.5 is a number, expected a whole number",
            ),
            ("schedule.warmup_steps", "-1", "schedule.warmup_steps = -1 is not in 0..="),
            ("schedule.end_factor", "2", "schedule.end_factor = 2 is not in [0, 1]"),
            ("train.epochs", "0", "train.epochs = 0 must be at least 1"),
            ("train.epochs", "1000001", "train.epochs = 1000001 is not in 1..=1000000"),
            ("train.epochs", "1.5", "train.epochs = 1.5 is a number, expected a whole number"),
            ("train.epochs", "-3", "train.epochs = -3 is not in 0..="),
            ("train.batch_size", "1", "train.batch_size = 1 at least 2"),
            ("train.accumulate", "3", "train.accumulate = 3 must divide train.batch_size"),
            ("train.clip_norm", "-0.5", "train.clip_norm = -0.5 is not in [0, ∞)"),
            ("checkpoint.keep", "1", "checkpoint.keep = 1 at least 2"),
            ("checkpoint.every_steps", "0", "checkpoint.every_steps = 0 must be at least 1"),
            ("eval.knn_k", "0", "eval.knn_k = 0 must be at least 1"),
            ("eval.knn_temperature", "0", "eval.knn_temperature = 0 positive"),
            ("data.on_error", "panic", "neither \"stop\" nor \"skip\""),
            ("data.path", "", "data.path is empty"),
            ("data.cache_mib", "16777217", "data.cache_mib = 16777217 is not in 0..=16777216"),
            ("data.cache_mib", "-1", "data.cache_mib = -1 is not in 0..="),
            ("data.holdout", "1", "data.holdout = 1 is not in (0, 1)"),
            ("augment.preset", "nothing", "available: simclr"),
            ("augment.crop_scale", "[0, 1]", "crop_scale"),
            ("augment.jitter.hue", "0.7", "jitter.hue"),
            ("augment.jitter.hju", "0.7", "did you mean `augment.jitter.hue`?"),
            ("augment.flip_p", "true", "augment.flip_p = true is true or false, expected a number"),
            ("augment.size", "0", "size is 0"),
            ("augment.std", "[1, 0, 1]", "std"),
            ("augment.arithmetic", "f16", "neither \"u8\" nor \"f32\""),
            ("augment", "3", "augment = 3 is a whole number, expected a table"),
            ("seed", "-1", "seed = -1 is not in 0..="),
            ("", "1", "`` is not a key"),
            ("a..b", "1", "`a..b` is not a key"),
        ] {
            let error = parse(&[(key, value)]).unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains('\n'), "{key}={value}: {error}");
        }
    }

    #[test]
    fn a_vision_transformer_is_built_for_the_size_of_the_views() {
        let vit = |more: &[(&str, &str)]| parse(&[&[("backbone.name", "vit_tiny")], more].concat());
        assert_eq!(vit(&[("backbone.patch_size", "7")]).unwrap().backbone.image_size, Some(28));
        for (key, value, part) in [
            ("backbone.patch_size", "16", "image_size = 28 is not a multiple of patch_size = 16"),
            ("backbone.image_size", "56", "backbone.image_size = 56 is not augment.size = 28"),
            ("backbone.stem", "cifar", "unknown key `backbone.stem`"),
        ] {
            let error = vit(&[("backbone.patch_size", "7"), (key, value)]).unwrap_err().to_string();
            assert!(error.contains(part), "{key}={value}: {error}");
        }
    }

    #[test]
    fn the_parts_of_a_vision_transformer_are_keys_and_the_default_ones_change_nothing() {
        let vit = |more: &[(&str, &str)]| {
            parse(&[&[("backbone.name", "vit_tiny"), ("backbone.patch_size", "7")], more].concat())
        };
        let plain = vit(&[]).unwrap();
        assert!(!plain.to_toml().unwrap().contains("vit.") && plain.backbone.vit.is_none());
        let same = vit(&[("backbone.vit.registers", "0"), ("backbone.vit.pooling", "token")]).unwrap();
        assert_eq!(same.hash().unwrap(), plain.hash().unwrap());
        let mean = vit(&[("backbone.vit.pooling", "mean"), ("backbone.vit.layer_scale", "0.1")]).unwrap();
        assert_eq!(mean.backbone.pooling().unwrap(), "mean");
        assert_ne!(mean.hash().unwrap(), plain.hash().unwrap());
        assert_eq!(Recipe::parse(&mean.to_toml().unwrap(), &[]).unwrap(), mean);
        for (key, value, part) in [
            ("backbone.vit.depth", "3", "unknown key `backbone.vit.depth`"),
            ("backbone.vit.drop_path", "1.5", "backbone.vit.drop_path = 1.5 is not in [0, 1)"),
            ("backbone.vit.pooling", "max", "unknown variant `max`, expected `token` or `mean`"),
        ] {
            let error = vit(&[(key, value)]).unwrap_err().to_string();
            assert!(error.contains(part), "{key}={value}: {error}");
        }
        let error = parse(&[("backbone.vit.registers", "1")]).unwrap_err().to_string();
        assert!(error.contains("unknown key `backbone.vit"), "{error}");
    }

    #[test]
    fn only_a_method_that_reads_texts_has_keys_for_them() {
        let clip = |key: &str, value: &str| {
            Recipe::load("clip-fashion-mnist", &[(key.to_owned(), value.to_owned())])
        };
        let recipe = clip("text.templates", "[\"one {}\", \"two {}s\"]").unwrap();
        assert_eq!(recipe.text.as_ref().unwrap().templates, ["one {}", "two {}s"]);
        assert_eq!(Recipe::parse(&recipe.to_toml().unwrap(), &[]).unwrap(), recipe);
        for (key, value, part) in [
            ("text.templates", "[\"{}\", \"a cat\"]", "text.templates[1] = \"a cat\" has no {}"),
            ("text.templates", "[]", "text.templates is empty"),
            ("text.templates", "[1]", "text.templates = [1] must hold texts, got 1"),
            ("text.caption_column", "", "text.caption_column is empty"),
            ("text.caption", "a.csv", "did you mean `text.captions`?"),
            ("method.text_heads", "3", "method.text_heads = 3 does not divide"),
        ] {
            let error = clip(key, value).unwrap_err().to_string();
            assert!(error.contains(part), "{key}={value}: {error}");
        }
        let error = parse(&[("text.captions", "a.csv")]).unwrap_err().to_string();
        assert!(error.contains("unknown key `text.captions`"), "{error}");
    }

    #[test]
    fn a_method_that_does_not_fit_the_batch_is_refused_before_data_is_touched() {
        for (settings, part) in [
            ([("method.queue_size", "100"), ("train.batch_size", "64")], "a multiple of the 64 keys"),
            ([("method.queue_size", "64"), ("method.symmetric", "true")], "a multiple of the 128 keys"),
            ([("method.batch_norm_groups", "8"), ("train.accumulate", "8")], "must divide the 8 images"),
        ] {
            let settings = settings.map(|(k, v)| (k.to_owned(), v.to_owned()));
            let error = Recipe::load("moco-v2-fashion-mnist", &settings).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn text_that_is_not_toml_is_refused_with_its_line() {
        let error = Recipe::parse("[train]\nepochs = = 3", &[]).unwrap_err().to_string();
        assert!(error.starts_with("recipe: not TOML: line 2: ") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn moved_data_is_no_difference() {
        let [here, there] = ["here", "there"].map(|path| parse(&[("data.path", path)]).unwrap());
        assert_eq!(here.differences(&there).unwrap(), Vec::<String>::new());
        let other_seed = parse(&[("data.path", "here"), ("seed", "5")]).unwrap();
        assert_eq!(other_seed.differences(&there).unwrap(), ["seed: 0 there, 5 here"]);
    }

    #[test]
    fn recomputation_is_a_key_of_every_network_and_no_difference() {
        for name in ["resnet18", "vit_tiny"] {
            let recipe = |recompute| {
                let keys =
                    [("backbone.name", name), ("augment.size", "32"), ("backbone.recompute", recompute)];
                parse(&keys).unwrap()
            };
            let (without, with) = (recipe("false"), recipe("true"));
            assert_eq!(with.backbone.recompute, Some(true));
            assert!(without.to_toml().unwrap().contains("recompute = false"));
            assert_eq!(without.hash().unwrap(), with.hash().unwrap());
            assert_eq!(with.differences(&without).unwrap(), Vec::<String>::new());
        }
        let error = parse(&[("backbone.recompute", "2")]).unwrap_err().to_string();
        assert!(
            error.contains("backbone.recompute = 2 is a whole number, expected true or false"),
            "{error}"
        );
    }

    #[test]
    fn view_keys_replace_the_presets_in_every_view() {
        let recipe = parse(&[("augment.crop_scale", "[0.5, 1]"), ("augment.jitter.p", "0.25")]).unwrap();
        for view in recipe.augment.views().unwrap() {
            assert_eq!((view.crop_scale, view.jitter.p), ([0.5, 1.0], 0.25));
            assert!(view.jitter.hue > 0.0, "the other keys of jitter stay the preset's");
        }
    }

    #[test]
    fn a_warmup_in_steps_changes_the_hash_and_its_absence_is_not_written() {
        let none = parse(&[("schedule.warmup_epochs", "0")]).unwrap();
        let zero = parse(&[("schedule.warmup_epochs", "0"), ("schedule.warmup_steps", "0")]).unwrap();
        assert_eq!(none, zero);
        assert!(!zero.to_toml().unwrap().contains("warmup_steps"));
        // As it was before there was such a key.
        assert_eq!(parse(&[]).unwrap().hash().unwrap(), "b3e7903093a879d9");
        let some = parse(&[("schedule.warmup_epochs", "0"), ("schedule.warmup_steps", "7")]).unwrap();
        assert_ne!(none.hash().unwrap(), some.hash().unwrap());
        assert_eq!(Recipe::parse(&some.to_toml().unwrap(), &[]).unwrap(), some);
        assert_eq!(some.differences(&none).unwrap(), ["schedule.warmup_steps: nothing there, 7 here"]);
        let error = parse(&[("schedule.name", "constant"), ("schedule.warmup_steps", "7")]).unwrap_err();
        assert!(error.to_string().contains("unknown key `schedule.warmup"), "{error}");
    }

    #[test]
    fn groups_of_views_take_the_place_of_the_presets() {
        let swav = |groups: &str| {
            let recipe =
                parse(&[("augment.preset", "swav"), ("augment.flip_p", "0"), ("augment.views", groups)])?;
            assert_eq!(Recipe::parse(&recipe.to_toml()?, &[])?, recipe);
            Ok::<_, Error>(recipe.augment)
        };
        let own = swav("[{copies = 3}, {size = 14, crop_scale = [0.1, 0.2], jitter = {p = 1}}, {size = 7}]")
            .unwrap();
        assert_eq!(own.multi_view().unwrap().sizes(), [vec![28; 3], vec![14; 6], vec![7; 6]].concat());
        let views = own.views().unwrap();
        assert_eq!((views[0].crop_scale, views[1].crop_scale), ([0.3, 1.0], [0.1, 0.2]));
        assert_eq!((views[1].jitter.p, views[1].flip_p), (1.0, 0.0));
        assert_eq!(swav("[]").unwrap().multi_view().unwrap().len(), 8);
        for (groups, part) in [
            ("3", "augment.views = 3 is not a list of tables"),
            ("[1]", "is not a list of tables"),
            (
                "[{copys = 2}]",
                "unknown key `augment.views[0].copys`; did you mean `augment.views[0].copies`?",
            ),
            ("[{}, {size = \"big\"}]", "augment.views[1].size = \"big\" is text"),
            ("[{copies = 0}]", "copies is 0"),
        ] {
            let error = swav(groups).unwrap_err().to_string();
            assert!(error.contains(part), "{groups}: {error}");
        }
    }

    #[test]
    fn the_hash_follows_the_result_and_not_the_place_of_the_data() {
        let hash = |overrides: &[(&str, &str)]| parse(overrides).unwrap().hash().unwrap();
        assert_eq!(hash(&[]), hash(&[("data.path", "elsewhere")]));
        assert_eq!(hash(&[]), hash(&[("data.cache_mib", "100")]));
        assert_ne!(hash(&[]), hash(&[("seed", "1")]));
    }
}
