//! `cargo xtask reproduce`: every method with its recipe, and the table of results in the README.

mod report;
mod rows;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde_json::Value;
use ssl_vision::data::Dataset;
use ssl_vision::train::{Images, Recipe};

use crate::choice::absolute;
use crate::pretrain::stop_on_signals;
use crate::project_root;
use report::Part;
use rows::Row;

/// Recipes of this table end so.
const SUFFIX: &str = "-fashion-mnist";

/// Images of the whole of Fashion-MNIST, to train and to test on.
const FULL: (usize, usize) = (60_000, 10_000);

/// How long a run may take to save itself after a signal before it is killed; it is resumed from a checkpoint then.
const PATIENCE: Duration = Duration::from_secs(60);

/// Train every method by its recipe, evaluate it, and write the table of results.
///
/// Takes each recipe NAME-fashion-mnist, trains and evaluates it in a process of its own below runs/reproduce, adds a
/// row to docs/results/fashion-mnist.jsonl, and writes the table between the two marks in README.md. A run whose row
/// stands in that file, with the same recipe and seed, is not trained again; one that was interrupted is resumed. So the
/// same command goes on after Ctrl-C or a crash, and after a change of a recipe it trains that method only.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask reproduce fashion-mnist                         all methods, some minutes each
  cargo xtask reproduce fashion-mnist --methods simclr,byol   some of them
  cargo xtask reproduce fashion-mnist --seeds 3               seeds 0, 1 and 2, and their spread
  cargo xtask reproduce fashion-mnist --table-only            the table anew, without a run
  cargo xtask reproduce fashion-mnist --full --data ~/fashion-mnist
  cargo xtask reproduce fashion-mnist --root /tmp/try --set train.epochs=2   a try elsewhere")]
pub(crate) struct Reproduce {
    /// The table to reproduce.
    #[arg(value_enum)]
    what: What,
    /// Methods to train, separated by commas; all that have a recipe by default.
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    methods: Vec<String>,
    /// Number of seeds: 0 to N - 1, in 1..=100.
    #[arg(long, value_name = "N", default_value_t = 1)]
    seeds: u64,
    /// Train on all 60,000 images instead of the 10,000 that ship with the project; needs --data.
    #[arg(long)]
    full: bool,
    /// Folder with the four IDX files of the whole Fashion-MNIST.
    #[arg(long, value_name = "PATH", requires = "full")]
    data: Option<String>,
    /// Write the table from the rows that there are, and end.
    #[arg(long)]
    table_only: bool,
    /// Threads to compute with; all cores by default. The accuracies do not depend on it.
    #[arg(long)]
    threads: Option<usize>,
    /// Folder with README.md, docs/results and runs; the project by default. A README.md is made if there is none.
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Any key of all recipes, as of `pretrain`; such runs are no reproduction, so it needs --root.
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "root")]
    settings: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// The recipes NAME-fashion-mnist.
    FashionMnist,
}

/// A run that the table needs.
struct Run {
    method: String,
    recipe: String,
    seed: u64,
    hash: String,
    folder: PathBuf,
}

impl Reproduce {
    pub(crate) fn run(self) -> Result<ExitCode> {
        let What::FashionMnist = self.what;
        ensure!((1..=100).contains(&self.seeds), "--seeds = {} is not in 1..=100", self.seeds);
        let runs = self.runs()?;
        self.prepare_readme()?;
        if !self.table_only {
            self.check_data(&runs)?;
            let stop = stop_on_signals()?;
            for (i, run) in runs.iter().enumerate() {
                let place = format!("[{}/{}] {}, seed {}", i + 1, runs.len(), run.method, run.seed);
                if self.finished(run)? {
                    println!("{place}: stands in {}", self.rows_path(self.full).display());
                    continue;
                }
                println!("{place}: {}", run.folder.display());
                let ended = self.train(run, &stop)?;
                self.write_table()?;
                if !ended {
                    println!("\nstopped; all finished runs are kept, and this one is saved");
                    println!("go on with:  {}", self.command_line());
                    return Ok(ExitCode::from(130));
                }
            }
        }
        self.write_table()?;
        println!("table    {}", self.root().join("README.md").display());
        println!("rows     {}", self.rows_path(self.full).display());
        Ok(ExitCode::SUCCESS)
    }

    /// All runs, seed by seed, each checked against its folder.
    fn runs(&self) -> Result<Vec<Run>> {
        let known = methods();
        if let Some(unknown) = self.methods.iter().find(|method| !known.contains(method)) {
            bail!("--methods {unknown}: no recipe {unknown}{SUFFIX}; there are {}", known.join(", "));
        }
        let chosen = known.iter().filter(|method| self.methods.is_empty() || self.methods.contains(method));
        let chosen: Vec<&String> = chosen.collect();
        let pairs = (0..self.seeds).flat_map(|seed| chosen.iter().map(move |method| (*method, seed)));
        pairs.map(|(method, seed)| self.one(method, seed)).collect()
    }

    fn one(&self, method: &str, seed: u64) -> Result<Run> {
        let recipe = format!("{method}{SUFFIX}");
        let hash = Recipe::load(&recipe, &self.overrides(seed)?)?.hash()?;
        let name = format!("{}{method}-{seed}", if self.full { "full-" } else { "" });
        let folder = self.root().join("runs/reproduce").join(name);
        Ok(Run { method: method.to_owned(), recipe, seed, hash, folder })
    }

    /// The changes to a recipe.
    fn overrides(&self, seed: u64) -> Result<Vec<(String, String)>> {
        let settings = self.settings.iter().map(|setting| {
            let (key, value) =
                setting.split_once('=').with_context(|| format!("--set {setting}: expected KEY=VALUE"))?;
            Ok((key.trim().to_owned(), value.trim().to_owned()))
        });
        settings.chain([Ok(("seed".to_owned(), seed.to_string()))]).collect()
    }

    /// Refuses `--full` without the whole of Fashion-MNIST.
    fn check_data(&self, runs: &[Run]) -> Result<()> {
        if !self.full {
            return Ok(());
        }
        let Some(data) = &self.data else {
            bail!(
                "--full needs --data PATH: a folder with the four IDX files of Fashion-MNIST (train-images-idx3-ubyte.gz \
                 and so on, from https://github.com/zalandoresearch/fashion-mnist); the project has 10,000 of its images"
            )
        };
        let Some(run) = runs.first() else { return Ok(()) };
        let recipe = Recipe::load(&run.recipe, &self.overrides(run.seed)?)?;
        let images = Images::of_recipe(&recipe, Path::new(data))?;
        let found = (images.train.len(), images.test.as_ref().map_or(0, |test| test.len()));
        ensure!(
            found == FULL,
            "--data {data} has {} images to train and {} to test on, the whole of Fashion-MNIST has {} and {}",
            found.0,
            found.1,
            FULL.0,
            FULL.1
        );
        Ok(())
    }

    /// Whether the run stands in the file of rows.
    fn finished(&self, run: &Run) -> Result<bool> {
        let rows = rows::read(&self.rows_path(self.full))?;
        Ok(rows.iter().any(|row| is_of(row, run)))
    }

    /// Trains and evaluates, or goes on with it, and adds the row. `false` if somebody asked to stop.
    fn train(&self, run: &Run, stop: &AtomicBool) -> Result<bool> {
        move_aside(run)?;
        let started = run.folder.join("recipe.toml");
        let result = run.folder.join("result.json");
        if !result.exists() {
            let status = wait(self.child(run, started.exists())?, stop)?;
            // A run that was just about to end may end well although somebody asked to stop.
            if !status.success() && (stop.load(Ordering::Relaxed) || status.code() == Some(130)) {
                return Ok(false);
            }
            ensure!(status.success(), "{} with seed {} failed: {status}", run.recipe, run.seed);
        }
        let text = fs::read_to_string(&result).with_context(|| result.display().to_string())?;
        let row = serde_json::from_str::<Value>(&text)
            .map_err(anyhow::Error::from)
            .and_then(|result| Row::of_result(&run.method, &result))
            .with_context(|| format!("{} is no result of a run", result.display()))?;
        rows::append(&self.rows_path(self.full), &row)?;
        Ok(!stop.load(Ordering::Relaxed))
    }

    /// The run as a process of its own, so that its peak memory is its own.
    fn child(&self, run: &Run, resume: bool) -> Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("pretrain");
        match resume {
            true => command.arg("--resume").arg(&run.folder),
            false => command.arg("--out").arg(&run.folder),
        };
        // A resumed run is compared with the recipe, and finds its images where they lie now.
        command.args(["--recipe", &run.recipe, "--seed", &run.seed.to_string()]);
        command.args(self.data.iter().flat_map(|data| ["--data".to_owned(), absolute(data)]));
        command.args(self.settings.iter().flat_map(|setting| ["--set", setting]));
        command.args(self.threads.iter().flat_map(|n| ["--threads".to_owned(), n.to_string()]));
        command.stdin(std::process::Stdio::null());
        command.spawn().context("cannot start the run")
    }

    fn write_table(&self) -> Result<()> {
        let methods = methods();
        let part = |full: bool| {
            let rows = rows::read(&self.rows_path(full))?;
            let present = rows.into_iter().filter(|row| match self.one(&row.method, row.seed) {
                Ok(run) => is_of(row, &run),
                // A method that has lost its recipe.
                Err(_) => false,
            });
            Ok::<_, anyhow::Error>(Part {
                title: if full { "all 60,000 images" } else { "the 10,000 images of the repository" },
                command: match full {
                    true => "cargo xtask reproduce fashion-mnist --full --data PATH",
                    false => "cargo xtask reproduce fashion-mnist",
                },
                file: rows_name(full),
                methods: &methods,
                rows: present.collect(),
            })
        };
        let mut parts = vec![part(false)?];
        let full = part(true)?;
        if !full.rows.is_empty() {
            parts.push(full);
        }
        report::write(&self.root().join("README.md"), &parts)
    }

    /// Checks that the README takes a table before anything is trained.
    fn prepare_readme(&self) -> Result<()> {
        let path = self.root().join("README.md");
        if self.root.is_some() && !path.exists() {
            fs::create_dir_all(self.root()).with_context(|| self.root().display().to_string())?;
            fs::write(&path, "<!-- results: begin -->\n<!-- results: end -->\n")
                .with_context(|| path.display().to_string())?;
        }
        report::check(&path)
    }

    fn root(&self) -> PathBuf {
        self.root.clone().unwrap_or_else(project_root)
    }

    fn rows_path(&self, full: bool) -> PathBuf {
        self.root().join(rows_name(full))
    }

    /// The command that this is.
    fn command_line(&self) -> String {
        let mut line = "cargo xtask reproduce fashion-mnist".to_owned();
        if !self.methods.is_empty() {
            line += &format!(" --methods {}", self.methods.join(","));
        }
        if self.seeds != 1 {
            line += &format!(" --seeds {}", self.seeds);
        }
        if self.full {
            line += " --full";
        }
        for (option, value) in [
            ("data", self.data.clone()),
            ("threads", self.threads.map(|n| n.to_string())),
            ("root", self.root.as_ref().map(|root| root.display().to_string())),
        ] {
            line += &value.map_or(String::new(), |value| format!(" --{option} {value}"));
        }
        self.settings.iter().for_each(|setting| line += &format!(" --set {setting}"));
        line
    }
}

/// The methods that have a recipe for this table, in the order of the recipes.
fn methods() -> Vec<String> {
    Recipe::embedded().filter_map(|name| name.strip_suffix(SUFFIX)).map(str::to_owned).collect()
}

/// Where the rows lie, below the root.
fn rows_name(full: bool) -> &'static str {
    match full {
        true => "docs/results/fashion-mnist-full.jsonl",
        false => "docs/results/fashion-mnist.jsonl",
    }
}

/// Whether the row is of this run with its present recipe.
fn is_of(row: &Row, run: &Run) -> bool {
    row.method == run.method && row.seed == run.seed && row.recipe_hash == run.hash
}

/// Renames the folder of the run if it holds one of another recipe.
fn move_aside(run: &Run) -> Result<()> {
    let recipe = run.folder.join("recipe.toml");
    if !recipe.exists() {
        return Ok(());
    }
    let own = Recipe::load(&recipe.to_string_lossy(), &[])?.hash()?;
    if own == run.hash {
        return Ok(());
    }
    let aside = PathBuf::from(format!("{}-{own}", run.folder.display()));
    ensure!(
        !aside.exists(),
        "{} holds a run of another recipe than {}, and {} is taken; remove one of them",
        run.folder.display(),
        run.recipe,
        aside.display()
    );
    fs::rename(&run.folder, &aside).with_context(|| run.folder.display().to_string())?;
    println!("a run of another recipe was there; it is now {}", aside.display());
    Ok(())
}

/// Waits for the run to end. The terminal tells it of Ctrl-C as well as us, and it then saves itself; where only we were
/// told, it is ended by force after a while, which loses the steps since its last checkpoint.
fn wait(mut child: Child, stop: &AtomicBool) -> Result<ExitStatus> {
    let mut asked: Option<Instant> = None;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if stop.load(Ordering::Relaxed) && asked.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
            child.kill()?;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
