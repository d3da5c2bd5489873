//! `cargo xtask pretrain`: trains an encoder, evaluates it, exports it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use candle_core::Device;
use clap::Args;
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use ssl_vision::augment::presets;
use ssl_vision::backbones::BackboneConfig;
use ssl_vision::data::Dataset;
use ssl_vision::methods::MethodConfig;
use ssl_vision::train::{Observer, OptimizerConfig, Outcome, Recipe, ScheduleConfig, Session};

use crate::progress::Progress;
use crate::{data_path, project_root, table, use_threads};

/// Train an encoder on images without labels, then evaluate and export it.
///
/// Without arguments: SimCLR with a small ResNet on the Fashion-MNIST subset that ships with the project. Everything
/// lands in one folder below runs/. Ctrl-C finishes the step, writes a checkpoint and says how to go on.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask pretrain
  cargo xtask pretrain --method byol
  cargo xtask pretrain --data ~/photos --epochs 50 --set augment.size=64 --set data.on_error=skip
  cargo xtask pretrain --recipe simclr-cifar10 --data ~/cifar-10-batches-bin --epochs 200
  cargo xtask pretrain --resume runs/simclr-fashion-mnist
  cargo xtask pretrain --print-recipe > mine.toml && cargo xtask pretrain --recipe mine.toml")]
pub(crate) struct Pretrain {
    /// Recipe to start from: a name of --list, or a TOML file.
    #[arg(long, value_name = "NAME|FILE")]
    recipe: Option<String>,
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
    /// Threads to compute with; all cores by default. The result does not depend on it.
    #[arg(long)]
    threads: Option<usize>,
    /// Folder of the run; by default runs/RECIPE, numbered if that is taken.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on with the run in DIR (or in --out) from its newest intact checkpoint.
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = "")]
    resume: Option<PathBuf>,
    /// Train only; write no result.json.
    #[arg(long)]
    no_eval: bool,
    /// Print the recipe with every key and its value, and end.
    #[arg(long)]
    print_recipe: bool,
    /// List recipes, methods, backbones, augmentations, optimisers and schedules, and end.
    #[arg(long)]
    list: bool,
    /// With --list: print JSON.
    #[arg(long, requires = "list")]
    json: bool,
}

impl Pretrain {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        if self.list {
            list(self.json);
            return Ok(ExitCode::SUCCESS);
        }
        let overrides = self.overrides()?;
        if self.print_recipe {
            print!("{}", Recipe::load(self.recipe_name(), &overrides)?.to_toml()?);
            return Ok(ExitCode::SUCCESS);
        }
        let stop = stop_on_signals()?;
        let mut observers: Vec<Box<dyn Observer>> = vec![Box::new(Progress::new())];
        let mut session = self.session(&overrides, &mut observers)?;
        introduce(&session);
        if let Outcome::Interrupted { step } = session.train(&mut observers, &stop)? {
            drop(observers);
            println!("\nstopped after step {step}; the run is saved");
            println!("go on with:  cargo xtask pretrain --resume {}", session.folder().path().display());
            return Ok(ExitCode::from(130));
        }
        drop(observers);
        // All is saved: from here on a signal may end the program at once.
        stop.store(true, Ordering::Relaxed);
        self.finish(&session)?;
        Ok(ExitCode::SUCCESS)
    }

    fn session(
        &self,
        overrides: &[(String, String)],
        observers: &mut [Box<dyn Observer>],
    ) -> anyhow::Result<Session> {
        let device = Device::Cpu;
        if let Some(folder) = &self.resume {
            let folder = match (folder.as_os_str().is_empty(), &self.out) {
                (false, _) => folder,
                (true, Some(out)) => out,
                (true, None) => anyhow::bail!("--resume needs the folder of the run: --resume runs/NAME"),
            };
            let wanted = |own: &Recipe| match &self.recipe {
                Some(recipe) => Recipe::load(recipe, overrides),
                None => Recipe::parse(&own.to_toml()?, overrides),
            };
            let data = |recipe: &Recipe| data_path(&recipe.data.path);
            let threads = use_threads(self.threads)?;
            return Ok(Session::resume(folder, data, wanted, &device, threads, observers)?);
        }
        let recipe = Recipe::load(self.recipe_name(), overrides)?;
        let data = data_path(&recipe.data.path);
        let out = self.out.clone().unwrap_or_else(|| free_folder(&recipe.name));
        Ok(Session::start(recipe, &data, &out, &device, use_threads(self.threads)?)?)
    }

    /// The recipe that was asked for, or that of the method for the data that ships with the project.
    fn recipe_name(&self) -> &str {
        let of_method = |method: &str| {
            Recipe::embedded()
                .find(|name| name.strip_suffix("-fashion-mnist").is_some_and(|own| own == method))
        };
        let asked = self.recipe.as_deref().or_else(|| of_method(self.method.as_deref()?));
        asked.or_else(|| Recipe::embedded().next()).unwrap_or_default()
    }

    /// All settings of the command line as recipe keys.
    fn overrides(&self) -> anyhow::Result<Vec<(String, String)>> {
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

    /// Export, evaluation and the closing words.
    fn finish(&self, session: &Session) -> anyhow::Result<()> {
        let encoder = session.export()?;
        let folder = session.folder().path();
        if !self.no_eval {
            let evaluation = session.evaluate(|stage| println!("evaluating: {stage} …"))?;
            session.write_result(evaluation.as_ref())?;
            match &evaluation {
                Some(evaluation) => println!("\n{}", table::scores(evaluation)),
                None => {
                    let what =
                        if session.images().class_names().len() == 1 { "one class" } else { "no labels" };
                    println!("\nthe images have {what}, so there is no accuracy to measure");
                }
            }
        }
        let broken = session.images().broken();
        if let Some(first) = broken.first() {
            println!("broken files skipped: {}; the first: {first}", broken.len());
        }
        if let Some(share) = session.wait_share() {
            println!("waited   {:.1} % of the training time, for images", 100.0 * share);
        }
        println!("run      {}", folder.display());
        println!("encoder  {}", encoder.display());
        if !self.no_eval {
            println!("result   {}", folder.join("result.json").display());
        }
        Ok(())
    }
}

/// Asks for a stop at the first SIGINT or SIGTERM and ends the program at the second.
fn stop_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone())?;
        signal_hook::flag::register(signal, stop.clone())?;
    }
    Ok(stop)
}

fn introduce(session: &Session) {
    let (recipe, images) = (session.recipe(), session.images());
    println!(
        "{} on {}: {} {}, {} epochs of {} images, {} parameters",
        recipe.method.name(),
        images.description,
        recipe.backbone.name,
        match (recipe.backbone.width, recipe.backbone.patch_size) {
            (_, Some(patch)) => format!("(patches of {patch})"),
            (Some(width), _) if width != 64 => format!("(width {width})"),
            _ => String::new(),
        },
        recipe.train.epochs,
        images.train.len(),
        session.params().num_trainable(),
    );
    println!("views of {} pixels; run folder {}", views(recipe), session.folder().path().display());
    if session.step() > 0 {
        println!("resumed after step {} of {}", session.step(), session.last_step());
    }
}

/// `2 of 28x28, 4 of 16x16`.
fn views(recipe: &Recipe) -> String {
    let sizes = recipe.augment.multi_view().map(|views| views.sizes()).unwrap_or_default();
    let groups = sizes.chunk_by(|a, b| a == b).map(|group| format!("{} of {1}x{1}", group.len(), group[0]));
    groups.collect::<Vec<_>>().join(", ")
}

/// runs/NAME, or the first of runs/NAME-2, runs/NAME-3, … that does not exist.
fn free_folder(name: &str) -> PathBuf {
    let runs = project_root().join("runs");
    let numbered = (2..).map(|n| runs.join(format!("{name}-{n}")));
    let first = std::iter::once(runs.join(name)).chain(numbered).find(|path| !path.exists());
    let path = first.unwrap_or_else(|| runs.join(name));
    let here = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(&here).map(Path::to_owned).unwrap_or(path)
}

/// The path as a recipe keeps it: one that means the same from everywhere.
fn absolute(data: &str) -> String {
    if data == "fashion-mnist" {
        return data.to_owned();
    }
    std::path::absolute(data).map_or(data.to_owned(), |path| path.to_string_lossy().into_owned())
}

fn list(as_json: bool) {
    let recipes: Vec<_> = Recipe::embedded().collect();
    let presets = presets::names();
    let lists: [(&str, &[&str]); 7] = [
        ("recipes", &recipes),
        ("methods", MethodConfig::NAMES),
        ("backbones", &BackboneConfig::NAMES),
        ("datasets", &["fashion-mnist"]),
        ("augmentations", &presets),
        ("optimizers", &OptimizerConfig::NAMES),
        ("schedules", &ScheduleConfig::NAMES),
    ];
    if as_json {
        let object: serde_json::Map<_, _> = lists.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
        println!("{}", serde_json::Value::Object(object));
        return;
    }
    for (what, names) in lists {
        println!("{what:<14} {}", names.join(", "));
    }
    println!(
        "\nthe first recipe is the default; `--data` also takes a folder of images, IDX files and CIFAR batches"
    );
}
