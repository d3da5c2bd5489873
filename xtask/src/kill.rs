//! `cargo xtask kill`: kills a run again and again and compares what it resumes to with the run that nobody killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use ssl_vision::augment::random;
use ssl_vision::nn::{Purpose, rng};

/// Prove that a run survives `kill -9`: kill it at random moments, resume it, compare every bit with an unharmed run.
#[derive(Debug, Args)]
#[command(after_help = "Example:
  cargo xtask kill --kills 200 --steps 400 -- --set optimizer.name=lars")]
pub(crate) struct Kill {
    /// How often the run is killed.
    #[arg(long, default_value_t = 20)]
    kills: usize,
    /// Optimiser steps of the run.
    #[arg(long, default_value_t = 60)]
    steps: usize,
    /// Seed of the random moments.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder for the two runs; it must not exist, and is removed after success.
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
    /// More arguments for `pretrain`.
    #[arg(last = true)]
    pretrain: Vec<String>,
}

impl Kill {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let folder = match &self.folder {
            Some(folder) => folder.clone(),
            None => std::env::temp_dir().join(format!("ssl-vision-kill-{}", std::process::id())),
        };
        ensure!(!folder.exists(), "{}: exists already", folder.display());
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let (whole, killed) = (folder.join("whole"), folder.join("killed"));

        let started = Instant::now();
        let status = self.start(&whole, false, 2)?.wait()?;
        ensure!(status.success(), "the unharmed run failed: {status}");
        let seconds = started.elapsed().as_secs_f64();
        println!("unharmed run: {} steps in {seconds:.1} s", self.steps);

        let (kills, resumed) = self.torment(&killed, seconds)?;
        println!("killed {kills} times, resumed {resumed} times");
        compare(&whole, &killed, self.steps)?;
        fs::remove_dir_all(&folder).with_context(|| folder.display().to_string())?;
        println!("equal to the bit: parameters, buffers, optimiser state, metrics.jsonl and measures.jsonl");
        Ok(ExitCode::SUCCESS)
    }

    /// Kills the run at random moments until it has been killed often enough, then lets it end.
    fn torment(&self, folder: &Path, seconds: f64) -> anyhow::Result<(usize, usize)> {
        let (mut kills, mut resumed) = (0, 0);
        let mut rng = rng(self.seed, Purpose::Shuffle, 0, 0, 0);
        loop {
            let resume = folder.join("recipe.toml").exists();
            resumed += usize::from(resume);
            // One thread and two take turns, which must not show in the result.
            let mut child = self.start(folder, resume, 1 + kills % 2)?;
            if kills < self.kills {
                // Up to the time of a whole run, more often early: some kills fall into the start, some into a step, some
                // into the writing of a checkpoint, some after the end.
                let share = random::uniform(&mut rng, [0.0, 1.0]).powi(2);
                match wait_at_most(&mut child, Duration::from_secs_f64(share * seconds))? {
                    None => {
                        child.kill()?;
                        child.wait()?;
                        kills += 1;
                    }
                    // The run was over before its time: begin another one.
                    Some(status) if status.success() => fs::remove_dir_all(folder)?,
                    Some(status) => bail!("after {kills} kills the resumed run failed: {status}"),
                }
                continue;
            }
            let status = child.wait()?;
            ensure!(status.success(), "after {kills} kills the resumed run failed: {status}");
            return Ok((kills, resumed));
        }
    }

    /// Starts a run of a small network with checkpoints close together.
    fn start(&self, folder: &Path, resume: bool, threads: usize) -> anyhow::Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["pretrain", "--no-eval", "--threads", &threads.to_string()]);
        if resume {
            command.arg("--resume").arg(folder);
        } else {
            command.arg("--out").arg(folder).args([
                "--batch-size",
                "16",
                "--max-steps",
                &self.steps.to_string(),
            ]);
            for setting in ["backbone.width=4", "augment.size=16", "checkpoint.every_steps=7"] {
                command.args(["--set", setting]);
            }
            command.args(&self.pretrain);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start the run")?;
        // Nobody may have to wait for a full pipe; an error message fits it.
        if let Some(errors) = child.stderr.take() {
            std::thread::spawn(move || {
                let text = std::io::read_to_string(errors).unwrap_or_default();
                text.lines().filter(|line| line.starts_with("error")).for_each(|line| eprintln!("{line}"));
            });
        }
        Ok(child)
    }
}

/// The child's exit status, or `None` if it is still running after `time`.
fn wait_at_most(child: &mut Child, time: Duration) -> anyhow::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + time;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Compares the last checkpoint and the metrics of two runs, byte by byte.
fn compare(whole: &Path, killed: &Path, steps: usize) -> anyhow::Result<()> {
    let checkpoint = ssl_vision::train::Checkpoint::file_name(steps);
    for name in [
        format!("checkpoints/{checkpoint}"),
        "metrics.jsonl".to_owned(),
        "measures.jsonl".to_owned(),
        "encoder.safetensors".to_owned(),
    ] {
        let read = |folder: &Path| {
            let path = folder.join(&name);
            fs::read(&path).with_context(|| path.display().to_string())
        };
        ensure!(
            read(whole)? == read(killed)?,
            "{name} differs between {} and {}",
            whole.display(),
            killed.display()
        );
    }
    Ok(())
}
