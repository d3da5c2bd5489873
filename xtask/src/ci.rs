//! `cargo xtask check`, `test` and `ci`: everything that must hold before a change is merged.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::{licences, project_root, tidy};

/// The test command: unit, integration and documentation tests of all crates.
const TEST: [&str; 3] = ["test", "--workspace", "--locked"];

/// One check by name.
struct Step {
    name: String,
    work: Work,
}

/// What a check does.
enum Work {
    Own(fn() -> anyhow::Result<()>),
    /// Arguments of cargo, and variables set for it.
    Cargo(Vec<String>, Vec<(&'static str, &'static str)>),
}

/// All checks, then all tests.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut steps = checks()?;
    steps.push(Step { name: "test".to_owned(), work: Work::Own(test) });
    run_in_order(&steps)
}

/// All checks but the tests.
pub(crate) fn check() -> anyhow::Result<()> {
    run_in_order(&checks()?)
}

/// All tests: those in the sources, those in the folders `tests`, and the examples of the documentation.
pub(crate) fn test() -> anyhow::Result<()> {
    println!("$ cargo {}", TEST.join(" "));
    let start = Instant::now();
    let mut child = cargo(&TEST).stdout(Stdio::piped()).spawn().context("cargo test")?;
    let (mut passed, mut failed) = (0, 0);
    for line in child.stdout.take().into_iter().flat_map(|output| BufReader::new(output).lines()) {
        let line = line.context("cargo test")?;
        println!("{line}");
        if let Some((more_passed, more_failed)) = counts(&line) {
            (passed, failed) = (passed + more_passed, failed + more_failed);
        }
    }
    let status = child.wait().context("cargo test")?;
    println!("test: {passed} passed, {failed} failed, {}", seconds(start.elapsed()));
    if !status.success() {
        bail!("cargo test failed");
    }
    Ok(())
}

/// Cargo, the one that runs this program if one does, in the top folder of the project.
pub(crate) fn cargo(args: &[impl AsRef<std::ffi::OsStr>]) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(args).current_dir(project_root());
    cargo
}

/// The packages that `cargo metadata` lists under these arguments.
pub(crate) fn metadata(args: &[&str]) -> anyhow::Result<Vec<Value>> {
    let output =
        cargo(&[&["metadata", "--format-version", "1"], args].concat()).output().context("cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    Ok(metadata["packages"].as_array().cloned().unwrap_or_default())
}

/// The checks, cheapest first.
fn checks() -> anyhow::Result<Vec<Step>> {
    let own = |name: &str, work| Step { name: name.to_owned(), work: Work::Own(work) };
    let cargo = |name: String, args: &str, variables| Step {
        name,
        work: Work::Cargo(args.split(' ').map(str::to_owned).collect(), variables),
    };
    let clippy = "clippy --workspace --all-targets --locked -- -D warnings";
    let doc = "doc --workspace --no-deps --locked";
    let mut steps = vec![
        cargo("fmt".to_owned(), "fmt --all --check", vec![]),
        own("tidy", tidy::run),
        own("licences", licences::run),
        cargo("clippy".to_owned(), clippy, vec![]),
        cargo("doc".to_owned(), doc, vec![("RUSTDOCFLAGS", "-D warnings")]),
    ];
    steps.extend(libraries()?.into_iter().map(|library| {
        let args = format!("check --package {library} --no-default-features --locked");
        cargo(format!("{library} alone"), &args, vec![])
    }));
    Ok(steps)
}

/// Names of the crates in the folder `crates`, which are those of their folders.
fn libraries() -> anyhow::Result<Vec<String>> {
    let folder = project_root().join("crates");
    let entries = fs::read_dir(&folder).with_context(|| folder.display().to_string())?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Runs the steps up to the first that fails, and prints how long each took.
fn run_in_order(steps: &[Step]) -> anyhow::Result<()> {
    let (start, mut table, mut failure) = (Instant::now(), String::new(), None);
    for step in steps {
        let step_start = Instant::now();
        let outcome = step.run();
        let (word, took) = (if outcome.is_ok() { "ok" } else { "FAILED" }, seconds(step_start.elapsed()));
        println!("{}: {word}, {took}\n", step.name);
        table += &format!("{:<20} {word:<7} {took:>9}\n", step.name);
        if let Err(error) = outcome {
            failure = Some(error.context(format!("{} failed", step.name)));
            break;
        }
    }
    print!("{table}");
    println!("{:<20} {:<7} {:>9}", "total", "", seconds(start.elapsed()));
    failure.map_or(Ok(()), Err)
}

impl Step {
    fn run(&self) -> anyhow::Result<()> {
        match &self.work {
            Work::Own(work) => {
                println!("$ cargo xtask {}", self.name);
                work()
            }
            Work::Cargo(args, variables) => {
                let set: String =
                    variables.iter().map(|(name, value)| format!("{name}=\"{value}\" ")).collect();
                println!("$ {set}cargo {}", args.join(" "));
                let status = cargo(args).envs(variables.iter().copied()).status().context("cargo")?;
                if !status.success() {
                    bail!("cargo {} ended with {status}", args[0]);
                }
                Ok(())
            }
        }
    }
}

/// Passed and failed tests, from the line that ends each test program's report.
fn counts(line: &str) -> Option<(usize, usize)> {
    let number = |part: Option<&str>| part?.split(' ').rev().nth(1)?.parse().ok();
    let mut parts = line.strip_prefix("test result: ")?.split(';');
    Some((number(parts.next())?, number(parts.next())?))
}

fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted() {
        let line =
            "test result: ok. 12 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s";
        assert_eq!(counts(line), Some((12, 3)));
        assert_eq!(counts("test tests::results_are_counted ... ok"), None);
    }

    #[test]
    fn every_crate_is_checked_alone() {
        let names = libraries().unwrap();
        assert!(names.contains(&"ssl-losses".to_owned()) && names.is_sorted(), "{names:?}");
    }

    #[test]
    fn the_first_failure_ends_the_run_and_is_named() {
        let step = |name: &str, work| Step { name: name.to_owned(), work: Work::Own(work) };
        let steps = [step("a", || Ok(())), step("b", || bail!("reason")), step("c", || bail!("not reached"))];
        let error = format!("{:#}", run_in_order(&steps).unwrap_err());
        assert_eq!(error, "b failed: reason");
        assert!(run_in_order(&steps[..1]).is_ok());
    }
}
