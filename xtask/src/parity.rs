//! `cargo xtask parity`: our numbers against those of the reference libraries.
//!
//! The golden folder holds a `manifest.json` and one safetensors file a case; its README explains both. Shapes,
//! hyper-parameters and tolerances all come from there, so any folder of the same format will do.

mod augment;
mod backbones;
mod case;
mod check;
mod eval;
mod heads;
mod losses;
mod masking;
mod network;
mod optim;
mod pattern;
mod schedules;
mod store;
mod vit;

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use case::{Case, Entry};
use check::{Check, Summary};

/// What became of a case.
enum Verdict {
    Judged(Summary),
    /// The case could not be run.
    Error(String),
    NotImplemented,
}

/// Runs every case of the folder `golden` that the project implements and prints the comparison: a table, or with
/// `json` a list of objects. Returns whether nothing failed.
pub(crate) fn run(golden: &Path, json: bool) -> Result<bool> {
    let path = golden.join("manifest.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let entries: Vec<Entry> = serde_json::from_str::<Vec<Value>>(&text)
        .map_err(anyhow::Error::from)
        .and_then(|entries| entries.into_iter().map(Entry::parse).collect())
        .with_context(|| format!("{} is not a manifest", path.display()))?;
    let width = entries.iter().map(|entry| entry.title().len()).max().unwrap_or(0);
    if !json {
        println!(
            "{:width$}  {:>8}  {:>8}  {:<18} {:>5}  verdict",
            "case", "max abs", "max rel", "tolerance", "used"
        );
    }
    let mut verdicts = Vec::with_capacity(entries.len());
    for entry in &entries {
        let verdict = judge(golden, entry);
        if !json && !matches!(verdict, Verdict::NotImplemented) {
            println!("{:width$}  {}", entry.title(), row(&verdict));
        }
        verdicts.push((entry, verdict));
    }
    match json {
        true => println!(
            "{:#}",
            verdicts.iter().map(|(entry, verdict)| object(entry, verdict)).collect::<Value>()
        ),
        false => print_total(&verdicts),
    }
    Ok(!verdicts.iter().any(|(_, verdict)| verdict.failed()))
}

impl Verdict {
    fn failed(&self) -> bool {
        match self {
            Verdict::Judged(summary) => !summary.failures.is_empty(),
            Verdict::Error(_) => true,
            Verdict::NotImplemented => false,
        }
    }

    fn word(&self) -> &'static str {
        match self {
            Verdict::NotImplemented => "not implemented",
            verdict if verdict.failed() => "fail",
            _ => "pass",
        }
    }

    fn detail(&self) -> Option<String> {
        match self {
            Verdict::Judged(summary) if !summary.failures.is_empty() => Some(summary.failures.join("; ")),
            Verdict::Error(message) => Some(message.clone()),
            _ => None,
        }
    }
}

fn judge(golden: &Path, entry: &Entry) -> Verdict {
    let run = match entry.area.as_str() {
        "augment" => augment::run,
        "backbones" => backbones::run,
        "eval" => eval::run,
        "heads" => heads::run,
        "losses" => losses::run,
        "masking" => masking::run,
        "optim" => optim::run,
        _ => return Verdict::NotImplemented,
    };
    let summary = || {
        let case = Case::load(golden, entry)?;
        let mut check = Check::new(entry, case.expected());
        Ok::<_, anyhow::Error>(run(&case, &mut check)?.then(|| check.finish()))
    };
    match summary() {
        Ok(Some(summary)) => Verdict::Judged(summary),
        Ok(None) => Verdict::NotImplemented,
        Err(error) => Verdict::Error(crate::one_line(&error)),
    }
}

/// The columns after the title.
fn row(verdict: &Verdict) -> String {
    let detail = verdict.detail().map(|detail| format!(": {detail}")).unwrap_or_default();
    let word = verdict.word();
    match verdict {
        Verdict::Judged(Summary { max_abs, max_rel, tolerance, used, .. }) => {
            let used = if *used < 10.0 { format!("{:.0}%", 100.0 * used) } else { ">999%".to_owned() };
            format!(
                "{:>8}  {:>8}  {tolerance:<18} {used:>5}  {word}{detail}",
                brief(*max_abs),
                brief(*max_rel)
            )
        }
        _ => format!("{:8}  {:8}  {:<18} {:>5}  {word}{detail}", "", "", "", ""),
    }
}

fn brief(error: f64) -> String {
    if error == 0.0 { "0".to_owned() } else { format!("{error:.1e}") }
}

fn print_total(verdicts: &[(&Entry, Verdict)]) {
    let with = |word: &str| verdicts.iter().filter(|(_, verdict)| verdict.word() == word).collect::<Vec<_>>();
    let (pass, fail, rest) = (with("pass"), with("fail"), with("not implemented"));
    if !rest.is_empty() {
        println!("\nnot implemented:");
    }
    for same_area in rest.chunk_by(|(a, _), (b, _)| a.area == b.area) {
        let names: Vec<&str> = same_area.iter().map(|(entry, _)| entry.case.as_str()).collect();
        println!("  {}: {}", same_area[0].0.area, names.join(", "));
    }
    println!(
        "\n{} cases: {} pass, {} fail, {} not implemented",
        verdicts.len(),
        pass.len(),
        fail.len(),
        rest.len()
    );
}

fn object(entry: &Entry, verdict: &Verdict) -> Value {
    let (max_abs, max_rel) = match verdict {
        Verdict::Judged(summary) => (Some(summary.max_abs), Some(summary.max_rel)),
        _ => (None, None),
    };
    let mut object = json!({
        "area": entry.area,
        "case": entry.case,
        "verdict": verdict.word(),
        "max_abs": max_abs,
        "max_rel": max_rel,
    });
    if let Some(detail) = verdict.detail() {
        object["detail"] = detail.into();
    }
    object
}
