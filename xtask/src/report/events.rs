//! A run for TensorBoard: event files beside its other files.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde_json::Value;
use ssl_vision::report::{EventWriter, event_file_name};
use ssl_vision::train::{Control, History, Line, MeasureReport, Observer, StepReport};

/// Steps between flushes, so that TensorBoard need not wait for the end.
const FLUSH_EVERY: usize = 20;

/// Writes the values of every step to `tensorboard/` in the folder of the run, from its first step on, also if it was resumed.
pub(crate) struct Events {
    folder: PathBuf,
    writer: Option<EventWriter<BufWriter<File>>>,
}

impl Events {
    /// For the run in `folder`.
    pub(crate) fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), writer: None }
    }

    /// Begins a file with what the run has logged so far, in place of the files of before.
    fn start(&self) -> anyhow::Result<EventWriter<BufWriter<File>>> {
        let history = History::read(&self.folder)?;
        let folder = self.folder.join("tensorboard");
        let context = || folder.display().to_string();
        fs::create_dir_all(&folder).with_context(context)?;
        for entry in fs::read_dir(&folder).with_context(context)? {
            let entry = entry.with_context(context)?;
            if entry.file_name().to_string_lossy().starts_with("events.out.tfevents.") {
                fs::remove_file(entry.path()).with_context(context)?;
            }
        }
        let path = folder.join(event_file_name(now() as u64, "ssl-vision"));
        let file = File::create(&path).with_context(|| path.display().to_string())?;
        let mut writer = EventWriter::new(BufWriter::new(file), now())?;
        for (prefix, lines) in [("train", &history.metrics), ("features", &history.measures)] {
            for line in lines {
                let (step, values) = values(prefix, line);
                writer.scalars(now(), step, &named(&values))?;
            }
        }
        writer.flush()?;
        Ok(writer)
    }

    /// A file that cannot be written is told once and left alone: the run is worth more.
    fn write(&mut self, step: usize, values: &[(String, f64)]) {
        let Some(writer) = &mut self.writer else { return };
        let mut written = writer.scalars(now(), step as u64, &named(values));
        if step.is_multiple_of(FLUSH_EVERY) {
            written = written.and_then(|()| writer.flush());
        }
        if let Err(error) = written {
            eprintln!("{}: {error}; no more is written for TensorBoard", self.folder.display());
            self.writer = None;
        }
    }
}

impl Observer for Events {
    fn on_start(&mut self, _done: usize, _total_steps: usize) {
        match self.start() {
            Ok(writer) => self.writer = Some(writer),
            Err(error) => eprintln!("nothing is written for TensorBoard: {error:#}"),
        }
    }

    fn on_step(&mut self, report: &StepReport<'_>) -> Control {
        let mut values = vec![("train/loss".to_owned(), report.loss), ("train/lr".to_owned(), report.lr)];
        values.extend(report.terms.iter().map(|(name, value)| (format!("train/{name}"), *value)));
        values.extend(elements("train/layer_grad_norms", report.layer_grad_norms.iter().copied()));
        self.write(report.step, &values);
        Control::Continue
    }

    fn on_measure(&mut self, report: &MeasureReport<'_>) {
        let values: Vec<_> =
            report.values.iter().map(|(name, value)| (format!("features/{name}"), *value)).collect();
        self.write(report.step, &values);
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if let Some(writer) = &mut self.writer
            && let Err(error) = writer.flush()
        {
            eprintln!("{}: the file for TensorBoard is not whole: {error}", self.folder.display());
        }
    }
}

/// The step and the numbers of a line of the log.
fn values(prefix: &str, line: &Line) -> (u64, Vec<(String, f64)>) {
    let step = line.get("step").and_then(Value::as_u64).unwrap_or_default();
    let mut numbers = Vec::new();
    for (name, value) in line.iter().filter(|(name, _)| *name != "step" && *name != "epoch") {
        let name = format!("{prefix}/{name}");
        match value {
            Value::Array(list) => numbers.extend(elements(&name, list.iter().filter_map(Value::as_f64))),
            _ => numbers.extend(value.as_f64().map(|value| (name, value))),
        }
    }
    (step, numbers)
}

/// The elements of a list, each by its place in it.
fn elements(name: &str, list: impl Iterator<Item = f64>) -> impl Iterator<Item = (String, f64)> {
    list.enumerate().map(move |(place, value)| (format!("{name}/{place:02}"), value))
}

fn named(values: &[(String, f64)]) -> Vec<(&str, f64)> {
    values.iter().map(|(name, value)| (name.as_str(), *value)).collect()
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}
