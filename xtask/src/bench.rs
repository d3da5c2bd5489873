//! `cargo xtask bench`: how fast the parts are, alone or beside PyTorch in the same run.
//!
//! Every run of a case is a process of its own, so that its peak memory is that of the case. Runs of ours and of the
//! peer take turns, so that a slow moment of the machine meets both. The peer's half of each case is in
//! `xtask/python/bench_peer.py`, under the same id and in the same order.

mod augment;
mod eval;
mod knn;
mod layer;
mod measure;
mod process;
mod report;
mod step;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};

use measure::{Case, Sample};
use report::Report;

/// Measure training steps, augmentation, kNN and single layers, alone or against PyTorch.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask bench step                                     # training steps, as they run here
  cargo xtask bench --peer venv/bin/python                   # everything, beside PyTorch: ratio above 1 = faster here
  cargo xtask bench --case knn/60000x10000x512 --runs 1 --json
  cargo xtask bench layer --list

Rates are medians over the runs; `speed` is the peer's time over ours, `memory` the peer's peak over ours.
The Python of --peer needs torch, torchvision, timm, lightly, numpy and Pillow. Measure on a machine that is idle.")]
pub(crate) struct Bench {
    /// What to measure; everything by default.
    suite: Option<Suite>,
    /// Measure this case only; may be given several times.
    #[arg(long, value_name = "ID")]
    case: Vec<String>,
    /// Print the ids of the cases and end.
    #[arg(long)]
    list: bool,
    /// Run the same cases in this Python, too.
    #[arg(long, value_name = "PYTHON")]
    peer: Option<PathBuf>,
    /// Threads of each side; the cases of `augment` always have one.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Runs of each case, of which the median counts.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Print one JSON object a case and line instead of a table.
    #[arg(long)]
    json: bool,
    /// Run this case once, in this process.
    #[arg(long, value_name = "ID", hide = true)]
    child: Option<String>,
}

/// A group of cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Whole training steps of SimCLR, and their share of the machine's matrix multiplication.
    Step,
    /// Two views of an image, on one thread.
    Augment,
    /// Exact k nearest neighbours.
    Knn,
    /// Probe, measures and retrieval of the features of a whole data set.
    Eval,
    /// Single layers at the sizes of the networks.
    Layer,
}

impl Bench {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        if let Some(id) = &self.child {
            crate::use_threads(Some(self.threads))?;
            let case = all_cases().into_iter().find(|case| case.id == *id).context("no such case")?;
            println!("{}", Sample::of_this_process((case.run)()?).to_json());
            return Ok(ExitCode::SUCCESS);
        }
        let cases = self.chosen()?;
        if self.list {
            cases.iter().for_each(|case| println!("{}", case.id));
            return Ok(ExitCode::SUCCESS);
        }
        for (option, value, most) in [("--runs", self.runs, 1000), ("--threads", self.threads, 1024)] {
            if !(1..=most).contains(&value) {
                bail!("{option} = {value} is not in 1..={most}");
            }
        }
        let versions = self.peer.as_deref().map(process::peer_versions).transpose()?;
        let report = Report { threads: self.threads, runs: self.runs, versions, json: self.json };
        let width = report::width(&cases);
        report.print_header(width);
        for case in &cases {
            let (ours, theirs) = self.measure(case).with_context(|| case.id.clone())?;
            report.print(case, &ours, &theirs, width);
        }
        Ok(ExitCode::SUCCESS)
    }

    /// The runs of ours and of the peer, in turns.
    fn measure(&self, case: &Case) -> anyhow::Result<(Vec<Sample>, Vec<Sample>)> {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..self.runs {
            ours.push(process::ours(case, case.threads(self.threads))?);
            if let Some(python) = self.peer.as_ref().filter(|_| case.has_peer) {
                theirs.push(process::peer(python, case, case.threads(self.threads))?);
            }
        }
        Ok((ours, theirs))
    }

    fn chosen(&self) -> anyhow::Result<Vec<Case>> {
        let mut cases = all_cases();
        cases.retain(|case| self.suite.is_none_or(|suite| case.suite == suite));
        if let Some(unknown) = self.case.iter().find(|id| cases.iter().all(|case| case.id != **id)) {
            let known: Vec<&str> = cases.iter().map(|case| case.id.as_str()).collect();
            bail!("unknown case `{unknown}`; available: {}", known.join(", "));
        }
        cases.retain(|case| self.case.is_empty() || self.case.contains(&case.id));
        Ok(cases)
    }
}

fn all_cases() -> Vec<Case> {
    [step::cases(), augment::cases(), knn::cases(), eval::cases(), layer::cases()]
        .into_iter()
        .flatten()
        .collect()
}
