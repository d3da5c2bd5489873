//! `cargo xtask pretrain`: trains an encoder, evaluates it, exports it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use candle_core::Device;
use clap::Args;
use serde_json::json;
use signal_hook::consts::{SIGINT, SIGTERM};
use ssl_vision::augment::presets;
use ssl_vision::backbones::BackboneConfig;
use ssl_vision::data::Dataset;
use ssl_vision::methods::MethodConfig;
use ssl_vision::train::{Observer, OptimizerConfig, Outcome, Recipe, ScheduleConfig, Session};

use crate::choice::Choice;
use crate::progress::Progress;
use crate::report::{self, Events};
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
    #[command(flatten)]
    choice: Choice,
    /// Threads to compute with; all cores by default. The result does not depend on it.
    #[arg(long)]
    threads: Option<usize>,
    /// Folder of the run; by default runs/RECIPE, numbered if that is taken.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on with the run in DIR (or in --out) from its newest intact checkpoint.
    #[arg(long, value_name = "DIR", num_args = 0..=1, default_missing_value = "")]
    resume: Option<PathBuf>,
    /// Train only; write no result.json and no report.html.
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
        if self.print_recipe {
            print!("{}", self.choice.recipe()?.to_toml()?);
            return Ok(ExitCode::SUCCESS);
        }
        let stop = stop_on_signals()?;
        let mut observers: Vec<Box<dyn Observer>> = vec![Box::new(Progress::new())];
        let mut session = self.session(&mut observers)?;
        observers.push(Box::new(Events::new(session.folder().path())));
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
        if !self.no_eval {
            let (folder, images) = (session.folder().path().to_owned(), session.images().clone());
            // The page opens the run by itself.
            drop(session);
            println!("report   {}", report::write_page(&folder, images)?.display());
        }
        Ok(ExitCode::SUCCESS)
    }

    fn session(&self, observers: &mut [Box<dyn Observer>]) -> anyhow::Result<Session> {
        let device = Device::Cpu;
        if let Some(folder) = &self.resume {
            let folder = match (folder.as_os_str().is_empty(), &self.out) {
                (false, _) => folder,
                (true, Some(out)) => out,
                (true, None) => anyhow::bail!("--resume needs the folder of the run: --resume runs/NAME"),
            };
            let overrides = self.choice.overrides()?;
            let wanted = |own: &Recipe| match &self.choice.recipe {
                Some(recipe) => Recipe::load(recipe, &overrides),
                None => Recipe::parse(&own.to_toml()?, &overrides),
            };
            let data = |recipe: &Recipe| data_path(&recipe.data.path);
            let threads = use_threads(self.threads)?;
            return Ok(Session::resume(folder, data, wanted, &device, threads, observers)?);
        }
        let recipe = self.choice.recipe()?;
        let data = data_path(&recipe.data.path);
        let out = self.out.clone().unwrap_or_else(|| free_folder(&recipe.name));
        Ok(Session::start(recipe, &data, &out, &device, use_threads(self.threads)?)?)
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
pub(crate) fn stop_on_signals() -> anyhow::Result<Arc<AtomicBool>> {
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
            (None, Some(patch)) => format!("(patches of {patch})"),
            (Some(width), Some(patch)) => format!("(patches of {patch}, width {width})"),
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
    let sizes = recipe.view_sizes().unwrap_or_default();
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
