//! `cargo xtask licences`: whether every dependency may be shipped under the licences of this project.

use anyhow::bail;
use serde_json::Value;

use crate::ci::metadata;

/// Licences that ask for no more than their text and a notice.
const ALLOWED: [&str; 13] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// The registry as `cargo metadata` names it; crates of the workspace have no source.
const REGISTRY: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Checks every package that a build with default features may use, on any platform, tests included.
///
/// The features for devices are left out: `mkl` brings Intel's library under Intel's own terms.
pub(crate) fn run() -> anyhow::Result<()> {
    // Not offline: packages for other platforms may not have been downloaded yet.
    let packages = metadata(&["--locked"])?;
    let offenders: Vec<String> = packages.iter().filter_map(offence).collect();
    for offender in &offenders {
        println!("{offender}");
    }
    match offenders.len() {
        0 => println!("licences: {} packages under allowed licences", packages.len()),
        n => bail!("licences: {n} packages that may not be used"),
    }
    Ok(())
}

/// What is wrong with a package, if anything.
fn offence(package: &Value) -> Option<String> {
    let name = format!("{} {}", package["name"].as_str()?, package["version"].as_str()?);
    if let Some(source) = package["source"].as_str().filter(|source| *source != REGISTRY) {
        return Some(format!("{name}: comes from {source}; use the registry"));
    }
    let Some(expression) = package["license"].as_str() else {
        return Some(format!("{name}: names no licence; read its files and look for another crate"));
    };
    match satisfiable(expression) {
        Some(true) => None,
        Some(false) => Some(format!("{name}: `{expression}` allows none of {}", ALLOWED.join(", "))),
        None => Some(format!("{name}: `{expression}` is not an SPDX expression")),
    }
}

/// Whether an SPDX expression can be met by [`ALLOWED`] licences; `None` if it cannot be read. `/` is an old `OR`.
fn satisfiable(expression: &str) -> Option<bool> {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    let met = any(&mut rest)?;
    rest.is_empty().then_some(met)
}

/// `all OR all …`
fn any(words: &mut &[&str]) -> Option<bool> {
    let mut met = all(words)?;
    while take(words, "OR") {
        met |= all(words)?;
    }
    Some(met)
}

/// `one AND one …`
fn all(words: &mut &[&str]) -> Option<bool> {
    let mut met = one(words)?;
    while take(words, "AND") {
        met &= one(words)?;
    }
    Some(met)
}

/// `( any )`, `LICENCE` or `LICENCE WITH EXCEPTION`
fn one(words: &mut &[&str]) -> Option<bool> {
    if take(words, "(") {
        let met = any(words)?;
        return take(words, ")").then_some(met);
    }
    let licence = name(words)?;
    match take(words, "WITH") {
        true => Some(ALLOWED.contains(&format!("{licence} WITH {}", name(words)?).as_str())),
        false => Some(ALLOWED.contains(&licence)),
    }
}

fn name<'a>(words: &mut &[&'a str]) -> Option<&'a str> {
    let (first, rest) = words.split_first()?;
    *words = rest;
    (!["AND", "OR", "WITH", "(", ")"].contains(first)).then_some(*first)
}

fn take(words: &mut &[&str], expected: &str) -> bool {
    let found = words.first() == Some(&expected);
    if found {
        *words = &words[1..];
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn expressions_are_met_by_one_side_of_or_and_both_of_and() {
        for (expression, expected) in [
            ("MIT", Some(true)),
            ("GPL-3.0", Some(false)),
            ("MIT OR GPL-3.0", Some(true)),
            ("GPL-3.0 OR LGPL-2.1", Some(false)),
            ("MIT AND GPL-3.0", Some(false)),
            ("(MIT OR GPL-3.0) AND Unicode-3.0", Some(true)),
            ("MIT OR (GPL-3.0 AND Zlib)", Some(true)),
            ("GPL-3.0 AND Zlib OR MIT", Some(true)),
            ("GPL-3.0 AND (Zlib OR MIT)", Some(false)),
            ("MIT/Apache-2.0", Some(true)),
            ("GPL-2.0 / Unlicense", Some(true)),
            ("Apache-2.0 WITH LLVM-exception", Some(true)),
            ("MIT WITH Font-exception", Some(false)),
        ] {
            assert_eq!(satisfiable(expression), expected, "{expression}");
        }
    }

    #[test]
    fn what_is_no_expression_is_not_taken_for_one() {
        for text in ["", "MIT OR", "AND MIT", "(MIT", "MIT)", "MIT Apache-2.0", "MIT WITH", "()"] {
            assert_eq!(satisfiable(text), None, "{text}");
        }
    }

    #[test]
    fn packages_need_a_licence_and_a_known_source() {
        let package = |license: Value, source: Value| json!({ "name": "a", "version": "1.0.0", "license": license, "source": source });
        assert_eq!(offence(&package(json!("MIT"), json!(REGISTRY))), None);
        assert_eq!(offence(&package(json!("MIT"), Value::Null)), None);
        for (license, source, expected) in [
            (
                json!("MIT"),
                json!("git+https://example.org/a"),
                "a 1.0.0: comes from git+https://example.org/a",
            ),
            (Value::Null, json!(REGISTRY), "a 1.0.0: names no licence"),
            (json!("GPL-3.0"), json!(REGISTRY), "a 1.0.0: `GPL-3.0` allows none of"),
            (json!("MIT,"), json!(REGISTRY), "a 1.0.0: `MIT,` allows none of"),
            (json!("MIT OR"), json!(REGISTRY), "a 1.0.0: `MIT OR` is not an SPDX expression"),
        ] {
            let offence = offence(&package(license, source)).unwrap();
            assert!(offence.starts_with(expected), "{offence}");
        }
    }
}
