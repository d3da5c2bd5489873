//! `cargo xtask tidy`: the rules of the house that neither the compiler nor clippy knows.

mod crates;
mod text;

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, bail};

use crate::project_root;

/// Endings of the files that the rules for text apply to.
const TEXT: [&str; 6] = [".rs", ".md", ".toml", ".py", ".yml", ".ci/run"];

/// Folders without text of ours, besides those whose names begin with a dot.
const SKIPPED_FOLDERS: [&str; 2] = ["target", "runs"];

/// Folders that are looked at although their names begin with a dot.
const HIDDEN_FOLDERS: [&str; 3] = [".cargo", ".ci", ".github"];

/// A broken rule: where, and what to do.
#[derive(Debug, PartialEq)]
struct Violation {
    path: String,
    line: usize,
    advice: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.advice)
    }
}

/// Checks the whole workspace and prints every broken rule.
pub(crate) fn run() -> anyhow::Result<()> {
    let root = project_root();
    let files = text_files(&root)?;
    let mut found = Vec::new();
    for (path, text) in &files {
        found.extend(text::check(path, text));
        if path.ends_with(".md") {
            found.extend(text::check_links(&root, path, text));
        }
    }
    found.extend(crates::check(&root)?);
    for violation in &found {
        println!("{violation}");
    }
    match found.len() {
        0 => println!("tidy: {} files in order", files.len()),
        n => bail!("tidy: {n} places to put in order"),
    }
    Ok(())
}

/// Paths below `root`, with `/` between their parts, and contents of all text files, in order.
fn text_files(root: &Path) -> anyhow::Result<Vec<(String, String)>> {
    let (mut files, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                let hidden = name.starts_with('.') && !HIDDEN_FOLDERS.contains(&name.as_str());
                if !hidden && !SKIPPED_FOLDERS.contains(&name.as_str()) {
                    folders.push(path);
                }
            } else if TEXT.iter().any(|ending| relative(root, &path).ends_with(ending)) {
                let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                files.push((relative(root, &path), text));
            }
        }
    }
    files.sort();
    Ok(files)
}

fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).to_string_lossy().replace('\\', "/")
}
