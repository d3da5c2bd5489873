//! What is kept of every run: a line of JSON each, in the order in which they ended.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::machine;

/// A pair of accuracies, fractions in [0, 1].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Pair {
    pub(super) knn: f64,
    pub(super) linear: f64,
}

/// A run that has ended.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) method: String,
    pub(super) recipe_hash: String,
    pub(super) seed: u64,
    pub(super) version: String,
    pub(super) images: u64,
    pub(super) test_images: u64,
    pub(super) epochs: u64,
    pub(super) steps: u64,
    /// Time of all steps; that of a resumed run at the speed of its last part.
    pub(super) seconds: Option<f64>,
    pub(super) images_per_second: Option<f64>,
    pub(super) peak_rss_bytes: Option<u64>,
    pub(super) threads: u64,
    /// The network with its settings, as JSON.
    pub(super) backbone: String,
    pub(super) trained: Pair,
    pub(super) untrained: Pair,
    pub(super) pixels: Pair,
    pub(super) knn_k: u64,
    pub(super) knn_temperature: f64,
    pub(super) cpu: String,
}

impl Row {
    /// The row of a run of `method`, from its result.json.
    pub(super) fn of_result(method: &str, result: &Value) -> Result<Self> {
        let read = Fields(result);
        let baseline = |name: &str| {
            let pair = Fields(&result["baselines"][name]);
            Ok::<_, anyhow::Error>(Pair { knn: pair.number("knn")?, linear: pair.number("linear")? })
        };
        let steps = read.whole("steps")?;
        let images_per_second = result["images_per_second"].as_f64();
        let seen = (steps * read.whole("batch_size")?) as f64;
        let whole = result["steps_in_this_process"].as_u64() == Some(steps);
        Ok(Self {
            method: method.to_owned(),
            recipe_hash: read.text("recipe_hash")?,
            seed: read.whole("seed")?,
            version: read.text("version")?,
            images: Fields(&result["dataset"]).whole("train_images")?,
            test_images: Fields(&result["dataset"]).whole("test_images")?,
            epochs: read.whole("epochs")?,
            steps,
            seconds: match whole {
                true => result["seconds"].as_f64(),
                false => images_per_second.map(|speed| seen / speed),
            },
            images_per_second,
            peak_rss_bytes: result["peak_rss_bytes"].as_u64(),
            threads: read.whole("threads")?,
            backbone: result["backbone_config"].to_string(),
            trained: Pair {
                knn: Fields(&result["knn"]).number("top1")?,
                linear: Fields(&result["linear"]).number("top1")?,
            },
            untrained: baseline("untrained")?,
            pixels: baseline("pixels")?,
            knn_k: Fields(&result["knn"]).whole("k")?,
            knn_temperature: Fields(&result["knn"]).number("temperature")?,
            cpu: machine::cpu(),
        })
    }

    fn parse(line: &str) -> Result<Self> {
        let value: Value = serde_json::from_str(line)?;
        let read = Fields(&value);
        let pair = |name: &str| {
            let pair = Fields(&value[name]);
            Ok::<_, anyhow::Error>(Pair { knn: pair.number("knn")?, linear: pair.number("linear")? })
        };
        Ok(Self {
            method: read.text("method")?,
            recipe_hash: read.text("recipe_hash")?,
            seed: read.whole("seed")?,
            version: read.text("version")?,
            images: read.whole("images")?,
            test_images: read.whole("test_images")?,
            epochs: read.whole("epochs")?,
            steps: read.whole("steps")?,
            seconds: value["seconds"].as_f64(),
            images_per_second: value["images_per_second"].as_f64(),
            peak_rss_bytes: value["peak_rss_bytes"].as_u64(),
            threads: read.whole("threads")?,
            backbone: value["backbone"].to_string(),
            trained: Pair { knn: read.number("knn")?, linear: read.number("linear")? },
            untrained: pair("untrained")?,
            pixels: pair("pixels")?,
            knn_k: read.whole("knn_k")?,
            knn_temperature: read.number("knn_temperature")?,
            cpu: read.text("cpu")?,
        })
    }

    fn to_json(&self) -> Result<Value> {
        let pair = |pair: Pair| json!({ "knn": pair.knn, "linear": pair.linear });
        Ok(json!({
            "method": self.method,
            "recipe_hash": self.recipe_hash,
            "seed": self.seed,
            "version": self.version,
            "images": self.images,
            "test_images": self.test_images,
            "epochs": self.epochs,
            "steps": self.steps,
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "peak_rss_bytes": self.peak_rss_bytes,
            "threads": self.threads,
            "backbone": serde_json::from_str::<Value>(&self.backbone)?,
            "knn": self.trained.knn,
            "linear": self.trained.linear,
            "untrained": pair(self.untrained),
            "pixels": pair(self.pixels),
            "knn_k": self.knn_k,
            "knn_temperature": self.knn_temperature,
            "cpu": self.cpu,
        }))
    }
}

/// All rows of the file at `path`; none if there is no such file.
pub(super) fn read(path: &Path) -> Result<Vec<Row>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
    lines
        .map(|(line, number)| {
            Row::parse(line)
                .with_context(|| format!("{}: line {number} is not a row of results", path.display()))
        })
        .collect()
}

/// Adds a row to the file at `path`.
pub(super) fn append(path: &Path, row: &Row) -> Result<()> {
    let line = format!("{}\n", row.to_json()?);
    let write = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        OpenOptions::new().create(true).append(true).open(path)?.write_all(line.as_bytes())
    };
    write().with_context(|| path.display().to_string())
}

/// The fields of a JSON object, which must be there.
struct Fields<'a>(&'a Value);

impl Fields<'_> {
    fn number(&self, key: &str) -> Result<f64> {
        self.0[key].as_f64().with_context(|| format!("`{key}` is missing or no number"))
    }

    fn whole(&self, key: &str) -> Result<u64> {
        self.0[key].as_u64().with_context(|| format!("`{key}` is missing or no whole number"))
    }

    fn text(&self, key: &str) -> Result<String> {
        let text = self.0[key].as_str().with_context(|| format!("`{key}` is missing or no text"))?;
        Ok(text.to_owned())
    }
}
