//! `cargo xtask report`: a run as a page, or several beside each other.

mod charts;
mod compare;
mod events;
mod gallery;
mod live;
mod page;
mod run;
mod serve;
mod spectrum;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Args;
use ssl_vision::train::Images;

use crate::use_threads;
use live::Live;

pub(crate) use events::Events;
pub(crate) use run::Run;

/// Write a run as a page: curves, information, the doctor's verdicts, what the network saw and what it makes of it, and how
/// good it is. One file that needs no network. Several runs become one page that compares them.
///
/// `pretrain` writes the page of its run by itself when it ends. While it still trains, `--follow` shows the page in a browser
/// and keeps it up to date, with pictures of every new checkpoint by one thread that mostly rests.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask report runs/simclr-fashion-mnist
  cargo xtask report runs/simclr-fashion-mnist --follow
  cargo xtask report runs/simclr runs/byol runs/dino --out comparison.html
  cargo xtask report runs/mae --charts docs/pictures        # its charts as SVG files")]
pub(crate) struct Report {
    /// Folders of runs.
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// The page; report.html in the folder of the run by default, comparison.html here for several.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Serve the page on this machine, and keep it up to date until Ctrl-C.
    #[arg(long, conflicts_with_all = ["out", "charts"])]
    follow: bool,
    /// Port to serve on; any that is free by default.
    #[arg(long, default_value_t = 0, requires = "follow")]
    port: u16,
    /// Write the charts as SVG files to this folder as well.
    #[arg(long, value_name = "DIR")]
    charts: Option<PathBuf>,
    /// Leave out the pictures, for which the network has to look at images.
    #[arg(long)]
    no_pictures: bool,
    /// Threads to compute with; all cores by default, and one with --follow.
    #[arg(long)]
    threads: Option<usize>,
}

impl Report {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        use_threads(self.threads.or(self.follow.then_some(1)))?;
        let runs = self.runs.iter().map(|folder| Run::read(folder)).collect::<anyhow::Result<Vec<_>>>()?;
        if self.follow {
            ensure!(runs.len() == 1, "--follow shows one run, got {}", runs.len());
            let live = if self.no_pictures { Live::without_pictures() } else { Live::start(&self.runs[0])? };
            return serve::follow(&self.runs[0], self.port, &live);
        }
        let (page, out) = match &runs[..] {
            [only] => {
                let pictures = if self.no_pictures { Vec::new() } else { gallery::of(&self.runs[0], None)? };
                (page::of(only, pictures), self.runs[0].join("report.html"))
            }
            several => (compare::of(several), PathBuf::from("comparison.html")),
        };
        let out = self.out.clone().unwrap_or(out);
        write(&out, &page.to_html())?;
        println!("report   {}", out.display());
        if let Some(folder) = &self.charts {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
            for (name, chart) in charts::named(&page) {
                let path = folder.join(format!("{name}.svg"));
                write(&path, &chart.to_svg())?;
                println!("chart    {}", path.display());
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Writes the page of the run in `folder`, with pictures of its images, and returns its path.
pub(crate) fn write_page(folder: &Path, images: Images) -> anyhow::Result<PathBuf> {
    let page = page::of(&Run::read(folder)?, gallery::of(folder, Some(images))?);
    let path = folder.join("report.html");
    write(&path, &page.to_html())?;
    Ok(path)
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    ssl_vision::backbones::write_atomically(path, text.as_bytes())
        .with_context(|| format!("cannot write {}", path.display()))
}
