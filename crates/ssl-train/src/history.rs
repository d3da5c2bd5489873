//! What a run has written of itself: the lines of `metrics.jsonl` and `measures.jsonl`.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde_json::{Map, Value};
use ssl_methods::MethodConfig;

use crate::doctor::{Doctor, Verdict};
use crate::error::{Error, Result};

/// One line: values by name.
pub type Line = Map<String, Value>;

/// The logs of a run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    /// A line a step.
    pub metrics: Vec<Line>,
    /// A line for each time that features were measured.
    pub measures: Vec<Line>,
}

impl History {
    /// Reads the logs of the run in `folder`. Missing ones are empty, and so is a last line that is not whole: somebody may
    /// be writing it.
    ///
    /// # Errors
    /// If a file cannot be read, or a line that is not the last is no JSON object; the message names file and line.
    pub fn read(folder: &Path) -> Result<Self> {
        let read = |name: &str| lines(&folder.join(name));
        Ok(Self { metrics: read("metrics.jsonl")?, measures: read("measures.jsonl")? })
    }

    /// The steps and values of `name` in the metrics, where it has one.
    pub fn metric<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (f64, f64)> + 'a {
        values(&self.metrics, name)
    }

    /// The steps and lists of `name` in the metrics, where it has one.
    pub fn metric_list<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (f64, Vec<f64>)> + 'a {
        self.metrics.iter().filter_map(move |line| {
            let list = line.get(name)?.as_array()?.iter().filter_map(Value::as_f64);
            Some((line.get("step")?.as_f64()?, list.collect()))
        })
    }

    /// The steps and values of `name` in the measures, where it has one.
    pub fn measure<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (f64, f64)> + 'a {
        values(&self.measures, name)
    }

    /// Shows all of it to a doctor of a run of `total_steps` steps, who is returned with all that was said.
    pub fn examine(&self, method: &MethodConfig, total_steps: usize) -> (Doctor, Vec<Verdict>) {
        let (mut doctor, mut verdicts) = (Doctor::new(method, total_steps), Vec::new());
        let mut measures = self.measures.iter().peekable();
        let number = |line: &Line, name: &str| line.get(name).and_then(Value::as_f64);
        let step_of = |line: &Line| line.get("step").and_then(Value::as_u64).unwrap_or_default() as usize;
        for line in &self.metrics {
            let step = step_of(line);
            while let Some(measured) = measures.next_if(|measured| step_of(measured) < step) {
                verdicts.extend(doctor.look_at_measures(step_of(measured), &|name| number(measured, name)));
            }
            verdicts.extend(doctor.look(step, &|name| number(line, name)));
        }
        for measured in measures {
            verdicts.extend(doctor.look_at_measures(step_of(measured), &|name| number(measured, name)));
        }
        (doctor, verdicts)
    }
}

fn values<'a>(lines: &'a [Line], name: &'a str) -> impl Iterator<Item = (f64, f64)> + 'a {
    lines.iter().filter_map(move |line| Some((line.get("step")?.as_f64()?, line.get(name)?.as_f64()?)))
}

fn lines(path: &Path) -> Result<Vec<Line>> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(path)(error)),
    };
    let mut lines = Vec::new();
    for (number, line) in text.split_inclusive('\n').enumerate() {
        match serde_json::from_str(line) {
            Ok(line) => lines.push(line),
            Err(_) if !line.ends_with('\n') => {}
            Err(error) => {
                let reason = format!("line {} is no JSON object: {error}", number + 1);
                return Err(Error::RunFolder { path: path.to_owned(), reason });
            }
        }
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(metrics: &str, measures: &str) -> Result<History> {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("metrics.jsonl"), metrics).unwrap();
        fs::write(folder.path().join("measures.jsonl"), measures).unwrap();
        History::read(folder.path())
    }

    #[test]
    fn lines_are_read_and_one_that_is_being_written_is_left_out() {
        let history =
            history("{\"step\":1,\"loss\":2.5}\n{\"step\":2,\"loss\":1.5}\n{\"step\":3,\"lo", "").unwrap();
        assert_eq!(history.metric("loss").collect::<Vec<_>>(), [(1.0, 2.5), (2.0, 1.5)]);
        assert_eq!(history.metric("gain").count() + history.measure("loss").count(), 0);
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(History::read(empty.path()).unwrap(), History::default());
    }

    #[test]
    fn a_line_that_is_damaged_is_refused_with_its_number() {
        let error = history("{\"step\":1}\n[2]\n{\"step\":3}\n", "").unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl: line 2 is no JSON object"), "{error}");
    }

    #[test]
    fn a_doctor_who_reads_the_logs_says_what_was_said_during_the_run() {
        let metrics: String = (1..=40)
            .map(|step| format!("{{\"step\":{step},\"embedding_std\":0.01,\"embedding_dimensions\":4.0}}\n"))
            .collect();
        let measures: String = [(0, 30.0), (10, 40.0), (20, 5.0), (30, 5.0), (40, 5.0)]
            .map(|(step, rank)| format!("{{\"step\":{step},\"rank_me\":{rank}}}\n"))
            .concat();
        let simclr = MethodConfig::named("simclr").unwrap();
        let (_, verdicts) = history(&metrics, &measures).unwrap().examine(&simclr, 0);
        let told: Vec<_> =
            verdicts.iter().map(|verdict| (verdict.symptom.name(), verdict.since, verdict.step)).collect();
        assert_eq!(told, [("collapse", 1, 20), ("falling rank", 20, 30)]);
    }
}
