//! The choice of a recipe and the changes to it, as every command takes them that needs one.

use anyhow::Context;
use clap::Args;
use ssl_vision::train::Recipe;

/// A recipe, and what is changed in it.
#[derive(Debug, Args)]
pub(crate) struct Choice {
    /// Recipe to start from: a name of `pretrain --list`, or a TOML file.
    #[arg(long, value_name = "NAME|FILE")]
    pub(crate) recipe: Option<String>,
    /// Method (key method.name); without --recipe its recipe for Fashion-MNIST.
    #[arg(long)]
    method: Option<String>,
    /// Network (key backbone.name).
    #[arg(long)]
    backbone: Option<String>,
    /// Images: a folder with or without class folders, IDX files, CIFAR batches, or `fashion-mnist`.
    #[arg(long, value_name = "PATH")]
    data: Option<String>,
    /// Passes over the images (key train.epochs).
    #[arg(long)]
    epochs: Option<usize>,
    /// Stop after so many steps (key train.max_steps); the schedule is that of the whole run.
    #[arg(long)]
    max_steps: Option<usize>,
    /// Images of a step (key train.batch_size).
    #[arg(long)]
    batch_size: Option<usize>,
    /// Seed of all randomness (key seed).
    #[arg(long)]
    seed: Option<u64>,
    /// Any key of the recipe, for example --set optimizer.lr=0.01; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
}

impl Choice {
    /// The same, with this method if neither a recipe nor a method was asked for.
    pub(crate) fn or_method(mut self, method: &str) -> Self {
        if self.recipe.is_none() && self.method.is_none() {
            self.method = Some(method.to_owned());
        }
        self
    }

    /// The recipe with all changes.
    pub(crate) fn recipe(&self) -> anyhow::Result<Recipe> {
        Ok(Recipe::load(self.name(), &self.overrides()?)?)
    }

    /// The recipe that was asked for, or that of the method for the data that ships with the project.
    fn name(&self) -> &str {
        let of_method = |method: &str| {
            Recipe::embedded()
                .find(|name| name.strip_suffix("-fashion-mnist").is_some_and(|own| own == method))
        };
        let asked = self.recipe.as_deref().or_else(|| of_method(self.method.as_deref()?));
        asked.or_else(|| Recipe::embedded().next()).unwrap_or_default()
    }

    /// All changes as recipe keys.
    pub(crate) fn overrides(&self) -> anyhow::Result<Vec<(String, String)>> {
        let mut overrides = Vec::new();
        let quoted = |text: &str| format!("{}", toml::Value::from(text));
        let mut push =
            |key: &str, value: Option<String>| overrides.extend(value.map(|v| (key.to_owned(), v)));
        push("method.name", self.method.as_deref().map(quoted));
        push("backbone.name", self.backbone.as_deref().map(quoted));
        push("data.path", self.data.as_deref().map(|data| quoted(&absolute(data))));
        push("train.epochs", self.epochs.map(|n| n.to_string()));
        push("train.max_steps", self.max_steps.map(|n| n.to_string()));
        push("train.batch_size", self.batch_size.map(|n| n.to_string()));
        push("seed", self.seed.map(|n| n.to_string()));
        for setting in &self.settings {
            let (key, value) =
                setting.split_once('=').with_context(|| format!("--set {setting}: expected KEY=VALUE"))?;
            overrides.push((key.trim().to_owned(), value.trim().to_owned()));
        }
        Ok(overrides)
    }
}

/// The path as a recipe keeps it: one that means the same from everywhere.
pub(crate) fn absolute(data: &str) -> String {
    if data == "fashion-mnist" {
        return data.to_owned();
    }
    std::path::absolute(data).map_or(data.to_owned(), |path| path.to_string_lossy().into_owned())
}
