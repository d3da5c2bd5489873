//! The progress of a run: a bar on a terminal, lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use ssl_vision::train::{Control, MeasureReport, Observer, StepReport};

/// Time between lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(15);

/// Shows images per second, loss, learning rate and the time left.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    started: Instant,
    last_line: Instant,
    first_step: usize,
    /// Images per second, smoothed over some twenty steps.
    speed: Option<f64>,
}

impl Progress {
    pub(crate) fn new() -> Self {
        let now = Instant::now();
        Self { bar: None, started: now, last_line: now, first_step: 0, speed: None }
    }

    fn message(&self, report: &StepReport<'_>) -> String {
        let spread = report.terms.iter().find(|(name, _)| *name == "embedding_std").map_or(0.0, |(_, v)| *v);
        format!(
            "epoch {}/{}  loss {:.4}  lr {:.5}  spread {spread:.2}  {:.0} images/s",
            report.epoch + 1,
            report.epochs,
            report.loss,
            report.lr,
            self.speed.unwrap_or(0.0),
        )
    }
}

impl Observer for Progress {
    fn on_start(&mut self, done: usize, total_steps: usize) {
        self.started = Instant::now();
        self.first_step = done;
        if std::io::stderr().is_terminal() {
            let bar = ProgressBar::new(total_steps as u64).with_position(done as u64);
            let template = "{bar:30} {pos}/{len}  {msg}  {eta} left";
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.reset_eta();
            self.bar = Some(bar);
        }
    }

    fn on_pass(&mut self, done: usize, total: usize) {
        let message = format!("looking at all images: {done} of {total}");
        match &self.bar {
            Some(bar) => bar.set_message(message),
            None if done == 0 || done == total || self.last_line.elapsed() >= LINE_EVERY => {
                self.last_line = Instant::now();
                eprintln!("{message}");
            }
            None => {}
        }
    }

    fn on_step(&mut self, report: &StepReport<'_>) -> Control {
        let now = report.images as f64 / report.seconds;
        self.speed = Some(self.speed.map_or(now, |speed| 0.95 * speed + 0.05 * now));
        if let Some(bar) = &self.bar {
            bar.set_message(self.message(report));
            bar.set_position(report.step as u64);
            if report.step == report.total_steps {
                bar.finish();
            }
        } else if self.last_line.elapsed() >= LINE_EVERY || report.step == report.total_steps {
            self.last_line = Instant::now();
            let done = (report.step - self.first_step) as f64;
            let left =
                self.started.elapsed().as_secs_f64() / done * (report.total_steps - report.step) as f64;
            eprintln!(
                "step {}/{}  {}  {left:.0} s left",
                report.step,
                report.total_steps,
                self.message(report)
            );
        }
        Control::Continue
    }

    fn on_measure(&mut self, report: &MeasureReport<'_>) {
        let value = |name: &str| report.values.iter().find(|(own, _)| *own == name).map(|(_, value)| *value);
        let mut line = format!("after epoch {:.0}:", report.epoch);
        for (name, value, scale, unit) in [
            ("kNN", value("knn"), 100.0, " %"),
            ("linear probe", value("linear"), 100.0, " %"),
            ("RankMe", value("rank_me"), 1.0, ""),
            ("LiDAR", value("lidar"), 1.0, ""),
        ] {
            if let Some(value) = value {
                line += &format!("  {name} {:.1}{unit}", scale * value);
            }
        }
        match &self.bar {
            Some(bar) => bar.println(line),
            None => eprintln!("{line}"),
        }
    }

    fn on_notice(&mut self, notice: &str) {
        match &self.bar {
            Some(bar) => bar.println(notice),
            None => eprintln!("{notice}"),
        }
    }
}

/// The progress of a work of which only the steps are known.
#[derive(Debug)]
pub(crate) struct Steps {
    name: String,
    bar: ProgressBar,
    last_line: Instant,
}

impl Steps {
    pub(crate) fn new(name: &str) -> Self {
        // Draws nothing where there is no terminal.
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{prefix}  {bar:30} {pos}/{len}  {msg}  {eta} left") {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_owned());
        Self { name: name.to_owned(), bar, last_line: Instant::now() }
    }

    pub(crate) fn tell(&mut self, done: usize, total: usize, message: &str) {
        self.bar.set_length(total as u64);
        self.bar.set_position(done as u64);
        self.bar.set_message(message.to_owned());
        if done == total {
            self.bar.finish();
        }
        if self.bar.is_hidden() && (done == total || self.last_line.elapsed() >= LINE_EVERY) {
            self.last_line = Instant::now();
            eprintln!("{}: step {done}/{total}  {message}", self.name);
        }
    }
}
