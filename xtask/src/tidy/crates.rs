//! Rules for the crates of the workspace: who depends on whom, and what each has.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;
use toml::Table;

use super::{Violation, relative};
use crate::ci::metadata;

/// Which crate of the workspace may depend on which. A new edge is a decision: change docs/architecture.md with it.
const EDGES: &[(&str, &[&str])] = &[
    ("ssl-augment", &[]),
    ("ssl-text", &[]),
    ("ssl-report", &[]),
    ("ssl-nn", &[]),
    ("ssl-losses", &[]),
    ("ssl-data", &["ssl-augment"]),
    ("ssl-backbones", &["ssl-nn"]),
    ("ssl-eval", &["ssl-backbones"]),
    ("ssl-methods", &["ssl-losses", "ssl-backbones", "ssl-nn"]),
    (
        "ssl-train",
        &[
            "ssl-data",
            "ssl-augment",
            "ssl-text",
            "ssl-methods",
            "ssl-losses",
            "ssl-backbones",
            "ssl-nn",
            "ssl-eval",
        ],
    ),
    (
        "ssl-vision",
        &[
            "ssl-augment",
            "ssl-text",
            "ssl-nn",
            "ssl-losses",
            "ssl-data",
            "ssl-backbones",
            "ssl-eval",
            "ssl-methods",
            "ssl-train",
            "ssl-report",
        ],
    ),
    ("ssl-vision-tests", &["ssl-vision"]),
    ("xtask", &["ssl-vision"]),
];

/// The document that repeats [`EDGES`], and the marks around its table.
const EDGES_DOCUMENT: &str = "docs/architecture.md";
const EDGES_MARKS: [&str; 2] = ["<!-- edges: begin -->", "<!-- edges: end -->"];

/// Features that a crate on candle passes on to what it depends on.
const DEVICE_FEATURES: [&str; 4] = ["accelerate", "cuda", "metal", "mkl"];

/// Checks every crate, and that the document repeats the table of edges.
pub(super) fn check(root: &Path) -> anyhow::Result<Vec<Violation>> {
    let packages = packages(root)?;
    let mut found = Vec::new();
    for package in &packages {
        found.extend(check_edges(package));
        found.extend(check_manifest(package, &packages));
        if package.path.starts_with("crates/") {
            found.extend(check_documents(root, package));
        }
    }
    let document = root.join(EDGES_DOCUMENT);
    let document = fs::read_to_string(&document).with_context(|| document.display().to_string())?;
    found.extend(check_edges_document(&document));
    Ok(found)
}

/// What the rules need to know of a crate of the workspace.
#[derive(Debug, Default)]
struct Package {
    name: String,
    /// Folder below the project's root.
    path: String,
    manifest: String,
    dependencies: Vec<Dependency>,
    features: Table,
}

#[derive(Debug)]
struct Dependency {
    name: String,
    /// Not a dependency of tests or build scripts alone.
    normal: bool,
}

/// The crates of the workspace from `cargo metadata`.
fn packages(root: &Path) -> anyhow::Result<Vec<Package>> {
    let packages = metadata(&["--no-deps", "--offline"])?;
    packages.iter().map(|package| read_package(root, package)).collect()
}

fn read_package(root: &Path, package: &Value) -> anyhow::Result<Package> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let manifest_path = PathBuf::from(text(&package["manifest_path"]));
    let manifest = fs::read_to_string(&manifest_path).with_context(|| manifest_path.display().to_string())?;
    let features = manifest.parse::<Table>().with_context(|| manifest_path.display().to_string())?;
    let dependencies = package["dependencies"].as_array().into_iter().flatten();
    Ok(Package {
        name: text(&package["name"]),
        path: relative(root, manifest_path.parent().unwrap_or(root)),
        features: features.get("features").and_then(|f| f.as_table().cloned()).unwrap_or_default(),
        dependencies: dependencies
            .map(|d| Dependency { name: text(&d["name"]), normal: d["kind"].is_null() })
            .collect(),
        manifest,
    })
}

impl Package {
    /// A violation at the first line of the manifest that begins with `key`, or at its first line.
    fn violation(&self, key: &str, advice: String) -> Violation {
        let line = self.manifest.lines().position(|line| line.starts_with(key)).unwrap_or(0) + 1;
        Violation { path: format!("{}/Cargo.toml", self.path), line, advice }
    }

    fn has_device_features(&self) -> bool {
        DEVICE_FEATURES.iter().all(|feature| self.features.contains_key(*feature))
    }
}

/// Dependencies within the workspace, those of tests included, that [`EDGES`] does not allow.
fn check_edges(package: &Package) -> Vec<Violation> {
    let allowed = EDGES.iter().find(|(name, _)| *name == package.name).map(|(_, allowed)| *allowed);
    let Some(allowed) = allowed else {
        let advice = format!(
            "give `{}` a row in EDGES of xtask/src/tidy/crates.rs and in {EDGES_DOCUMENT}",
            package.name
        );
        return vec![package.violation("name", advice)];
    };
    let internal = package.dependencies.iter().filter(|d| EDGES.iter().any(|(name, _)| *name == d.name));
    let forbidden = internal.filter(|d| !allowed.contains(&d.name.as_str()));
    let report = |d: &Dependency| {
        let advice = format!(
            "`{}` must not depend on `{}`; {EDGES_DOCUMENT} says which crate may depend on which",
            package.name, d.name
        );
        package.violation(&d.name, advice)
    };
    forbidden.map(report).collect()
}

/// Whether the table of the document is [`EDGES`], crate for crate.
fn check_edges_document(document: &str) -> Vec<Violation> {
    let [begin, end] = EDGES_MARKS;
    let report = |line, advice| Violation { path: EDGES_DOCUMENT.to_owned(), line, advice };
    let Some(first) = document.lines().position(|line| line == begin) else {
        return vec![report(1, format!("put the table of edges between `{begin}` and `{end}`"))];
    };
    let lines = document.lines().zip(1..).skip(first).take_while(|(line, _)| *line != end);
    let mut rows: Vec<(usize, Vec<&str>)> =
        lines.map(|(line, number)| (number, quoted(line))).filter(|(_, names)| !names.is_empty()).collect();
    let mut found = Vec::new();
    for (name, allowed) in EDGES {
        let Some(at) = rows.iter().position(|(_, names)| names[0] == *name) else {
            found.push(report(first + 1, format!("the table lacks a row for `{name}`")));
            continue;
        };
        let (line, names) = rows.remove(at);
        if names[1..] != **allowed {
            let expected = if allowed.is_empty() { "nothing".to_owned() } else { allowed.join(", ") };
            found.push(report(
                line,
                format!("the row should be {name}: {expected}; so says xtask/src/tidy/crates.rs"),
            ));
        }
    }
    let unknown = rows.iter().map(|(line, names)| report(*line, format!("EDGES has no `{}`", names[0])));
    found.extend(unknown);
    found
}

/// What stands between back quotes in a line.
fn quoted(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

/// Keys that every manifest has, and features that every crate on candle forwards.
fn check_manifest(package: &Package, packages: &[Package]) -> Vec<Violation> {
    let mut found = Vec::new();
    for (key, advice) in [
        ("description = \"", "add a description, one line"),
        ("license.workspace = true", "take the licence from the workspace: `license.workspace = true`"),
        ("[lints", "take the lints from the workspace: `[lints]` with `workspace = true`"),
    ] {
        if !package.manifest.lines().any(|line| line.starts_with(key)) {
            found.push(package.violation("[package]", advice.to_owned()));
        }
    }
    if !package.path.starts_with("crates/") {
        return found;
    }
    let on_candle = |d: &&Dependency| {
        let crate_of_ours = packages.iter().find(|p| p.name == d.name);
        d.normal && (d.name.starts_with("candle-") || crate_of_ours.is_some_and(Package::has_device_features))
    };
    for dependency in package.dependencies.iter().filter(on_candle) {
        for feature in DEVICE_FEATURES {
            let forwards = package.features.get(feature).and_then(toml::Value::as_array);
            let wanted =
                [format!("{}/{feature}", dependency.name), format!("{}?/{feature}", dependency.name)];
            let has = |value: &toml::Value| wanted.iter().any(|w| value.as_str() == Some(w));
            if !forwards.is_some_and(|values| values.iter().any(has)) {
                let advice = format!("let the feature `{feature}` turn on `{}`", wanted[0]);
                found.push(package.violation(feature, advice));
            }
        }
    }
    found
}

/// The documents of a library: a README of more than a title and crate-level docs of more than a line.
fn check_documents(root: &Path, package: &Package) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut report = |file: &str, advice: &str| {
        found.push(Violation {
            path: format!("{}/{file}", package.path),
            line: 1,
            advice: advice.to_owned(),
        });
    };
    let read = |file: &str| fs::read_to_string(root.join(&package.path).join(file)).unwrap_or_default();
    if read("README.md").lines().filter(|line| !line.is_empty()).count() < 2 {
        report("README.md", "say what the crate is and show a small example");
    }
    let library = read("src/lib.rs");
    let documented = library.lines().filter(|line| line.starts_with("//! ")).count() > 1
        || library.contains("#![doc = include_str!");
    if !documented {
        report("src/lib.rs", "document the crate: what it is for and where to begin");
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advice(found: &[Violation]) -> Vec<(usize, &str)> {
        found.iter().map(|v| (v.line, v.advice.split([';', ',', ':']).next().unwrap())).collect()
    }

    fn package(name: &str, manifest: &str) -> Package {
        let table: Table = manifest.parse().unwrap();
        let names = |key: &str| table.get(key).and_then(|t| t.as_table().cloned()).unwrap_or_default();
        let dependency = |normal| move |name: &String| Dependency { name: name.clone(), normal };
        let mut dependencies: Vec<_> = names("dependencies").keys().map(dependency(true)).collect();
        dependencies.extend(names("dev-dependencies").keys().map(dependency(false)));
        let (path, manifest) = (format!("crates/{name}"), manifest.to_owned());
        Package { name: name.to_owned(), path, manifest, dependencies, features: names("features") }
    }

    #[test]
    fn edges_outside_of_the_table_are_refused_for_tests_too() {
        let losses =
            package("ssl-losses", "[dependencies]\ncandle-core = '1'\n[dev-dependencies]\nssl-nn = '1'\n");
        assert_eq!(advice(&check_edges(&losses)), [(4, "`ssl-losses` must not depend on `ssl-nn`")]);
        assert_eq!(check_edges(&package("ssl-backbones", "[dependencies]\nssl-nn = '1'\n")), []);
        assert_eq!(check_edges(&package("ssl-new", "name = 'ssl-new'\n")).len(), 1);
    }

    #[test]
    fn the_document_must_repeat_the_table() {
        let row = |(name, allowed): &(&str, &[&str])| {
            let allowed: Vec<_> = allowed.iter().map(|name| format!("`{name}`")).collect();
            format!("| `{name}` | {} |\n", allowed.join(", "))
        };
        let rows: String = EDGES.iter().map(row).collect();
        let [begin, end] = EDGES_MARKS;
        let document = format!("# Edges\n{begin}\n| crate | may use |\n|---|---|\n{rows}{end}\n`other`\n");
        assert_eq!(check_edges_document(&document), []);
        let short = document.replace("| `ssl-nn` |  |\n", "");
        assert_eq!(advice(&check_edges_document(&short)), [(2, "the table lacks a row for `ssl-nn`")]);
        let wrong = document.replace("| `ssl-nn` |  |\n", "| `ssl-nn` | `ssl-losses` |\n");
        let place = EDGES.iter().position(|(name, _)| *name == "ssl-nn").unwrap();
        // Four lines stand above the first row.
        assert_eq!(advice(&check_edges_document(&wrong)), [(place + 5, "the row should be ssl-nn")]);
        assert_eq!(check_edges_document("# Edges\n").len(), 1);
    }

    #[test]
    fn device_features_reach_every_dependency_on_candle() {
        let features = |of: &str| DEVICE_FEATURES.map(|f| format!("{f} = [\"{of}/{f}\"]\n")).concat();
        let with = |name: &str, dependency: &str, of: &str| {
            let head = "description = \"a\"\nlicense.workspace = true\n[lints]\nworkspace = true\n";
            package(name, &format!("{head}[dependencies]\n{dependency} = '1'\n[features]\n{}", features(of)))
        };
        let nn = with("ssl-nn", "candle-core", "candle-core");
        let backbones = |of: &str| with("ssl-backbones", "ssl-nn", of);
        let packages = [nn];
        assert_eq!(check_manifest(&packages[0], &packages), []);
        assert_eq!(check_manifest(&backbones("ssl-nn"), &packages), []);
        assert_eq!(check_manifest(&backbones("ssl-nn?"), &packages), []);
        assert_eq!(check_manifest(&backbones("other"), &packages).len(), 4);
        assert_eq!(check_manifest(&package("ssl-data", ""), &packages).len(), 3);
    }
}
