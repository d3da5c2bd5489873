//! The table of results in a README, between two marks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result};
use ssl_vision::backbones::write_atomically;
use ssl_vision::methods::MethodConfig;

use super::rows::{Pair, Row};

/// Where the table begins and ends.
const MARKS: [&str; 2] = ["<!-- results: begin -->", "<!-- results: end -->"];

/// A part of the table: the runs on one set of images.
pub(super) struct Part<'a> {
    /// Which images.
    pub(super) title: &'a str,
    /// The command that makes it.
    pub(super) command: &'a str,
    /// File of the rows, below the README's folder.
    pub(super) file: &'a str,
    /// Methods in the order of the table.
    pub(super) methods: &'a [String],
    /// Rows of their present recipes.
    pub(super) rows: Vec<Row>,
}

/// Whether the README at `path` has the marks.
pub(super) fn check(path: &Path) -> Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    split(&text, path).map(drop)
}

/// Puts the table between the marks of the README at `path` and leaves the rest as it is.
pub(super) fn write(path: &Path, parts: &[Part<'_>]) -> Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let (before, after) = split(&text, path)?;
    let table = parts.iter().map(section).collect::<Vec<_>>().join("\n");
    let text = format!("{before}{}\n{table}{}{after}", MARKS[0], MARKS[1]);
    write_atomically(path, text.as_bytes()).with_context(|| path.display().to_string())
}

/// What stands before the first mark and after the second.
fn split<'a>(text: &'a str, path: &Path) -> Result<(&'a str, &'a str)> {
    let parts = text.split_once(MARKS[0]).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(MARKS[1])?;
        Some((before, after))
    });
    parts.with_context(|| {
        format!("{} has no place for the table: lines `{}` and `{}`", path.display(), MARKS[0], MARKS[1])
    })
}

/// Heads, rows and notes of a part.
fn section(part: &Part<'_>) -> String {
    let Some(first) = part.rows.first() else {
        return format!("No runs yet on {}: `{}`.\n", part.title, part.command);
    };
    let mut text =
        "| Method | kNN | Linear probe | kNN over untrained | Training | Images/s | Peak memory |\n\
        |---|---|---|---|---|---|---|\n"
            .to_owned();
    for method in part.methods {
        let rows: Vec<&Row> = part.rows.iter().filter(|row| row.method == *method).collect();
        if !rows.is_empty() {
            text += &of_method(method, &rows);
        }
    }
    for (name, pairs) in baselines(&part.rows) {
        let values = |f: fn(&Pair) -> f64| percent(&pairs.iter().map(f).collect::<Vec<_>>());
        text += &format!("| {name} | {} | {} | | | | |\n", values(|p| p.knn), values(|p| p.linear));
    }
    text += "\n";
    // Of a share of 0.8.
    let error = (0.8 * 0.2 / first.test_images as f64).sqrt();
    text += &format!(
        "Top-1 accuracy on {} test images (one standard error is about {:.1} points) after training without labels on {}; \
         ± is the standard deviation over seeds, with their number.\n",
        first.test_images,
        100.0 * error,
        part.title
    );
    let methods: BTreeSet<&str> = part.rows.iter().map(|row| row.method.as_str()).collect();
    for name in methods {
        if MethodConfig::named(name).is_some_and(|method| method.needs_text()) {
            text += &format!("{name} does have labels: the names of the classes are its texts.\n");
        }
    }
    text += &format!(
        "kNN: k = {}, T = {}, cosine; linear probe: logistic regression on frozen, standardised features.\n",
        first.knn_k, first.knn_temperature
    );
    text += &format!(
        "Each run is a process of its own, on {} threads of {}; time and peak memory are those of the fastest run, the \
         memory with evaluation, and the time of a resumed run that of all its steps at the speed of the last part.\n",
        list(part.rows.iter().map(|row| row.threads.to_string())),
        list(part.rows.iter().map(|row| row.cpu.clone())),
    );
    text += &format!(
        "Version {}; made by `{}`, a row a run in [{file}]({file}).\n",
        list(part.rows.iter().map(|row| row.version.clone())),
        part.command,
        file = part.file
    );
    text
}

fn of_method(method: &str, rows: &[&Row]) -> String {
    let all = |f: fn(&Row) -> f64| rows.iter().map(|row| f(row)).collect::<Vec<_>>();
    // Whatever else the machine did made a run slower, so the fastest says most.
    let speed = |row: &&&Row| row.images_per_second.unwrap_or(0.0);
    let fastest = rows.iter().max_by(|a, b| speed(a).total_cmp(&speed(b)));
    let known = |f: fn(&Row) -> Option<f64>| fastest.and_then(|row| f(row));
    let shown = |value: Option<f64>, show: fn(f64) -> String| value.map_or("–".to_owned(), show);
    format!(
        "| {method} | {} | {} | {:+.1} | {} | {} | {} |\n",
        percent(&all(|row| row.trained.knn)),
        percent(&all(|row| row.trained.linear)),
        100.0 * mean(&all(|row| row.trained.knn - row.untrained.knn)),
        shown(known(|row| row.seconds), |s| format!("{s:.0} s")),
        shown(known(|row| row.images_per_second), |s| format!("{s:.0}")),
        shown(known(|row| row.peak_rss_bytes.map(|bytes| bytes as f64)), |bytes| {
            format!("{:.2} GiB", bytes / f64::from(1 << 30))
        }),
    )
}

/// The baselines: each untrained network with the methods that start from it, and the pixels. One value a seed.
fn baselines(rows: &[Row]) -> Vec<(String, Vec<Pair>)> {
    let mut networks: BTreeMap<&str, (BTreeSet<&str>, BTreeMap<u64, Pair>)> = BTreeMap::new();
    let mut pixels: Vec<(BTreeSet<&str>, Pair)> = Vec::new();
    for row in rows {
        let (methods, seeds) = networks.entry(&row.backbone).or_default();
        methods.insert(&row.method);
        seeds.insert(row.seed, row.untrained);
        match pixels.iter_mut().find(|(_, pair)| *pair == row.pixels) {
            Some((methods, _)) => drop(methods.insert(&row.method)),
            None => pixels.push((BTreeSet::from([row.method.as_str()]), row.pixels)),
        }
    }
    let name = |what: &str, methods: &BTreeSet<&str>, single: bool| match single {
        true => what.to_owned(),
        false => format!("{what}: {}", list(methods.iter().map(|method| (*method).to_owned()))),
    };
    let (one_network, one_kind) = (networks.len() == 1, pixels.len() == 1);
    let mut named: Vec<(String, Vec<Pair>)> = networks
        .into_values()
        .map(|(methods, seeds)| {
            (name("untrained network, as initialised", &methods, one_network), seeds.into_values().collect())
        })
        .collect();
    named.extend(
        pixels.into_iter().map(|(methods, pair)| (name("raw pixels", &methods, one_kind), vec![pair])),
    );
    named
}

/// `81.3 %`, or `81.3 ± 0.4 % (3)` for several.
fn percent(values: &[f64]) -> String {
    let average = 100.0 * mean(values);
    match values.len() {
        0 => "–".to_owned(),
        1 => format!("{average:.1} %"),
        n => {
            let squares: f64 = values.iter().map(|value| (100.0 * value - average).powi(2)).sum();
            format!("{average:.1} ± {:.1} % ({n})", (squares / (n - 1) as f64).sqrt())
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Distinct values, in order.
fn list(values: impl Iterator<Item = String>) -> String {
    values.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_seeds_show_their_spread_and_number() {
        assert_eq!(percent(&[0.813]), "81.3 %");
        assert_eq!(percent(&[0.80, 0.82, 0.84]), "82.0 ± 2.0 % (3)");
    }
}
