//! A recipe: everything that decides the result of a run, in one TOML file.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use ssl_augment::{MultiView, ResizeCenterCrop, Resolution};
use ssl_backbones::BackboneConfig;
use ssl_methods::{MethodConfig, TrainingData};
use toml::{Table, Value};

use crate::augment_config::{self, AugmentConfig};
use crate::captions::TextConfig;
use crate::checkpoint::CheckpointConfig;
use crate::data_config::DataConfig;
use crate::embedded::EMBEDDED;
use crate::error::{Error, Result};
use crate::evaluate::EvalConfig;
use crate::layers::{self, from_table, to_table};
use crate::measure::MeasureConfig;
use crate::optimizer::OptimizerConfig;
use crate::schedule::ScheduleConfig;
use crate::train_config::TrainConfig;

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
    /// What is measured of its features meanwhile.
    #[serde(default, skip_serializing_if = "is_default")]
    pub measure: MeasureConfig,
}

/// Whether a value need not be written.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
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
        let groups = augment_config::take_groups(&mut layer)?;
        let reference = Self::reference(&layer)?;
        let mut table = to_table(&reference)?;
        // Keys that are not written where they have their defaults, so that recipes without them keep their hash.
        let unwritten =
            reference.schedule.unwritten().into_iter().map(|(key, value)| ("schedule", key, value));
        let scope = ("train", "clip_scope", Value::String("all".to_owned()));
        let partners = ("data", "partners", Value::String(String::new()));
        let whole_jpegs = ("data", "whole_jpegs", Value::Boolean(false));
        let online = ("eval", "every_epochs", Value::Integer(0));
        table.insert("measure".to_owned(), Value::Table(to_table(&MeasureConfig::default())?));
        let of_method = reference.method.unwritten().iter();
        let of_method = of_method.map(|(key, value)| ("method", *key, Value::from(*value)));
        for (section, key, value) in unwritten.chain([scope, partners, whole_jpegs, online]).chain(of_method)
        {
            if let Some(Value::Table(section)) = table.get_mut(section) {
                section.insert(key.to_owned(), value);
            }
        }
        // Of the view's keys only those that a layer has belong to the recipe; the others come from the preset.
        let mut every_key = table.clone();
        if let Some(Value::Table(augment)) = every_key.get_mut("augment") {
            augment.extend(augment_config::view_keys()?);
        }
        layers::merge(&mut every_key, layer.clone())?;
        let overrides = augment_config::take_view_keys(&mut layer)?;
        layers::merge(&mut table, layer)?;
        if let Some(Value::Table(augment)) = table.get_mut("augment") {
            augment.extend(overrides);
            augment.insert("views".to_owned(), groups);
        }
        let mut recipe: Recipe = from_table(table, "")?;
        recipe.backbone = recipe.backbone.brief();
        recipe.text = recipe.text.filter(|_| recipe.method.needs_text());
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
    /// size of the cache, `backbone.recompute` or what is measured meanwhile.
    ///
    /// # Errors
    /// As [`Recipe::to_toml`].
    pub fn hash(&self) -> Result<String> {
        let digest = Sha256::digest(self.deciding().to_toml()?.as_bytes());
        Ok(digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect())
    }

    /// Key by key what differs from `there`, except the place of the data, the size of the cache, `backbone.recompute` and
    /// what is measured meanwhile, which do not change the result.
    ///
    /// # Errors
    /// As [`Recipe::to_toml`].
    pub(crate) fn differences(&self, there: &Self) -> Result<Vec<String>> {
        Ok(layers::differences(&to_table(&there.deciding())?, &to_table(&self.deciding())?))
    }

    /// The recipe without the keys that do not change the result.
    fn deciding(&self) -> Self {
        Self {
            data: DataConfig {
                path: String::new(),
                partners: if self.data.partners.is_empty() { "" } else { "partners" }.to_owned(),
                cache_mib: 0,
                ..self.data.clone()
            },
            backbone: BackboneConfig { recompute: None, ..self.backbone.clone() },
            eval: EvalConfig { every_epochs: 0, ..self.eval.clone() },
            measure: MeasureConfig::default(),
            ..self.clone()
        }
    }

    /// The views of an image, and those of its partner where the method compares pairs: the second group of views, or the
    /// only one again.
    ///
    /// # Errors
    /// If the preset is unknown or a value out of range.
    pub fn views(&self) -> Result<(MultiView, Option<MultiView>)> {
        let views = self.augment.views()?;
        match views.split_first() {
            Some((first, others)) if self.method.needs_pairs() => {
                let others = if others.is_empty() { &views } else { others };
                Ok((MultiView::new(std::slice::from_ref(first))?, Some(MultiView::new(others)?)))
            }
            _ => Ok((MultiView::new(&views)?, None)),
        }
    }

    /// The side of every view in pixels, in the order of a batch.
    ///
    /// # Errors
    /// As [`Recipe::views`].
    pub fn view_sizes(&self) -> Result<Vec<usize>> {
        let (own, of_partners) = self.views()?;
        let mut sizes = own.sizes();
        sizes.extend(of_partners.iter().flat_map(MultiView::sizes));
        Ok(sizes)
    }

    /// What an image needs so that neither a view nor its evaluation enlarges a part of it.
    ///
    /// # Errors
    /// As [`Recipe::views`].
    pub fn resolution(&self) -> Result<Resolution> {
        let (own, of_partners) = self.views()?;
        let evaluation = ResizeCenterCrop::evaluation(self.augment.size)?.resolution();
        let views = [Some(own), of_partners];
        Ok(views.iter().flatten().map(MultiView::resolution).fold(evaluation, Resolution::max))
    }

    /// What the method is told of `images` images to train on.
    pub fn training_data(&self, images: usize) -> TrainingData {
        TrainingData { images, mean: self.augment.mean, std: self.augment.std }
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
            augment: AugmentConfig::of_preset(method.augmentation()),
            backbone,
            method,
            optimizer: OptimizerConfig::named(&optimizer)
                .ok_or_else(|| unknown("optimizer", &optimizer, &OptimizerConfig::NAMES))?,
            schedule: ScheduleConfig::named(&schedule)
                .ok_or_else(|| unknown("schedule", &schedule, &ScheduleConfig::NAMES))?,
            train: TrainConfig::default(),
            checkpoint: CheckpointConfig::default(),
            eval: EvalConfig::default(),
            measure: MeasureConfig::default(),
        })
    }

    fn validate(&self) -> Result<()> {
        let refuse = |reason: String| Err(Error::Recipe(reason));
        if i64::try_from(self.seed).is_err() {
            return refuse(format!("seed = {} is not in 0..=9223372036854775807", self.seed));
        }
        self.train.validate()?;
        self.checkpoint.validate()?;
        self.eval.validate()?;
        self.data.validate()?;
        match (self.method.needs_pairs(), self.data.partners.is_empty()) {
            (true, true) => {
                return refuse(format!(
                    "data.partners is empty, but {} compares pairs of images; name the folder of their partners",
                    self.method.name()
                ));
            }
            (false, false) => {
                return refuse(format!(
                    "data.partners = \"{}\", but {} looks at images alone",
                    self.data.partners,
                    self.method.name()
                ));
            }
            _ => {}
        }
        let checks = [
            self.method.validate(),
            self.method.validate_batch(self.train.batch_size, self.train.accumulate),
            self.optimizer.validate(),
            self.schedule.validate(self.train.epochs),
            self.backbone.validate(),
            self.method.validate_backbone(&self.backbone),
            self.text.as_ref().map_or(Ok(()), TextConfig::validate),
            self.measure.validate(),
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
        self.views().map(drop)
    }
}

/// What is wrong with `text`, in one line.
fn not_toml(text: &str, error: &toml::de::Error) -> Error {
    let before = error.span().and_then(|span| text.as_bytes().get(..span.start)).unwrap_or_default();
    let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
    Error::Recipe(format!("not TOML: line {line}: {}", error.message()))
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
            (
                "backbone.vit.pooling",
                "max",
                "unknown variant `max`, expected one of `token`, `mean`, `mean_norm`",
            ),
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
    fn the_hash_follows_the_result_and_not_the_place_of_the_data() {
        let hash = |overrides: &[(&str, &str)]| parse(overrides).unwrap().hash().unwrap();
        assert_eq!(hash(&[]), hash(&[("data.path", "elsewhere")]));
        assert_eq!(hash(&[]), hash(&[("data.cache_mib", "100")]));
        assert_eq!(hash(&[]), hash(&[("data.whole_jpegs", "false")]));
        assert_ne!(hash(&[]), hash(&[("data.whole_jpegs", "true")]));
        assert_ne!(hash(&[]), hash(&[("seed", "1")]));
    }
}
