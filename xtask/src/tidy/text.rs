//! Rules for the text of a file.

use std::path::{Path, PathBuf};

use super::Violation;

/// The rules that a file can be held to by itself.
pub(super) fn check(path: &str, text: &str) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut report = |line: usize, advice: String| {
        found.push(Violation { path: path.to_owned(), line, advice });
    };
    let name = path.rsplit('/').next().unwrap_or(path);
    let (stem, extension) = name.rsplit_once('.').unwrap_or((name, ""));
    let rust = extension == "rs";
    if (rust || extension == "py") && ["utils", "util", "common", "misc", "helpers"].contains(&stem) {
        report(1, format!("name the file after what it does; `{stem}` says nothing"));
    }
    if rust && !text.starts_with("//!") {
        report(1, "open the file with `//!` and a sentence on what it is for".to_owned());
    }
    if !text.ends_with('\n') || text.ends_with("\n\n") {
        report(text.lines().count().max(1), "end the file with one newline".to_owned());
    }
    for (line, number) in text.lines().zip(1..) {
        if line.ends_with([' ', '\t', '\r']) {
            report(number, "remove the white space at the end of the line".to_owned());
        }
        if line.contains('\t') {
            report(number, "use spaces instead of a tab".to_owned());
        }
        if let Some(folder) = machine_path(line) {
            report(number, format!("`{folder}` exists on one machine only; use a relative path"));
        }
        if extension != "md" && line.split(|c: char| !c.is_alphanumeric()).any(is_reminder) {
            report(number, "finish it, or open an issue and remove the reminder".to_owned());
        }
        if rust {
            for (construct, advice) in banned(path) {
                if line.contains(&construct) {
                    report(number, format!("`{construct}`: {advice}"));
                }
            }
        }
    }
    found
}

/// Parts of Rust code that have no place at `path`. They are put together here, lest this file break its own rules.
fn banned(path: &str) -> Vec<(String, &'static str)> {
    let mut banned = vec![
        (format!("to{}!", "do"), "write it, or return an error"),
        (format!("unimple{}!", "mented"), "write it, or return an error"),
        (
            format!("#[ig{}", "nore"),
            "a test that does not run protects nothing; make it fast enough or remove it",
        ),
        (format!("should_{}", "panic"), "return an error and compare its message"),
    ];
    if !path.starts_with("crates/ssl-nn/") {
        let advice = "such code lives in crates/ssl-nn only; find a safe way or move it there";
        banned.extend(["{", "fn", "impl", "trait"].map(|next| (format!("un{} {next}", "safe"), advice)));
    }
    banned
}

fn is_reminder(word: &str) -> bool {
    [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X")].contains(&word)
}

/// The first folder in `line` that only exists on somebody's machine.
fn machine_path(line: &str) -> Option<String> {
    let folders = ["home", "root", "Users", "work"].map(|folder| format!("/{folder}/"));
    let starts_a_word =
        |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "._-~/*}>".contains(c));
    folders.into_iter().find(|folder| line.match_indices(folder.as_str()).any(|(at, _)| starts_a_word(at)))
}

/// Relative links to files that do not exist.
pub(super) fn check_links(root: &Path, path: &str, text: &str) -> Vec<Violation> {
    let folder = root.join(path).parent().map(PathBuf::from).unwrap_or_default();
    let broken = links(text).into_iter().filter(|(_, target)| !folder.join(target).exists());
    let report = |(line, target)| Violation {
        path: path.to_owned(),
        line,
        advice: format!("the link leads nowhere: there is no `{target}` beside this file"),
    };
    broken.map(report).collect()
}

/// Lines and targets of the relative links of a Markdown text, without anchors. Code is passed over.
fn links(text: &str) -> Vec<(usize, String)> {
    let (mut links, mut in_code) = (Vec::new(), false);
    for (line, number) in text.lines().zip(1..) {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        let prose: String = line.split('`').step_by(2).collect();
        let inline = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let reference = prose.starts_with('[').then(|| prose.split("]: ").nth(1)).flatten();
        for target in inline.chain(reference) {
            let target = target.split(['#', ' ']).next().unwrap_or(target);
            if !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:") {
                links.push((number, target.to_owned()));
            }
        }
    }
    links
}

#[cfg(test)]
mod tests {
    use super::*;

    fn advice(found: &[Violation]) -> Vec<(usize, &str)> {
        found.iter().map(|v| (v.line, v.advice.split([';', ',', ':']).next().unwrap())).collect()
    }

    #[test]
    fn a_clean_file_passes() {
        assert_eq!(check("crates/a/src/crop.rs", "//! Crops.\n\nfn crop() {}\n"), []);
        assert_eq!(check("docs/style.md", "# Style\n\nSee `\\t`.\n"), []);
    }

    #[test]
    fn each_rule_for_text_names_its_line() {
        for (path, text, expected) in [
            (
                "a/crop.rs",
                "fn crop() {}\n".to_owned(),
                (1, "open the file with `//!` and a sentence on what it is for"),
            ),
            ("a/crop.rs", "//! Crops.".to_owned(), (1, "end the file with one newline")),
            ("a/crop.rs", "//! Crops.\n\n".to_owned(), (2, "end the file with one newline")),
            ("a/b.toml", "a = 1\nb = 2 \n".to_owned(), (2, "remove the white space at the end of the line")),
            ("a/b.md", "a\tb\n".to_owned(), (1, "use spaces instead of a tab")),
            ("a/utils.rs", "//! Things.\n".to_owned(), (1, "name the file after what it does")),
            ("a/b.py", format!("# {}\n", concat!("TO", "DO")), (1, "finish it")),
            ("a/crop.rs", format!("//! Crops.\n{}!()\n", concat!("to", "do")), (2, concat!("`to", "do!`"))),
            (
                "a/crop.rs",
                format!("//! Crops.\n#[{}]\n", concat!("ig", "nore")),
                (2, concat!("`#[ig", "nore`")),
            ),
            ("a/crop.rs", format!("//! Crops.\n{} {{}}\n", "unsafe"), (2, concat!("`unsafe ", "{`"))),
        ] {
            assert_eq!(advice(&check(path, &text)), [expected], "{path}: {text:?}");
        }
        let allowed = format!("//! Kernels.\n{} {{}}\n", "unsafe");
        assert_eq!(check("crates/ssl-nn/src/matrix.rs", &allowed), []);
    }

    #[test]
    fn machine_paths_are_told_from_urls() {
        for folder in ["home", "root", "work"] {
            assert_eq!(machine_path(&format!("open(\"/{folder}/x\")")), Some(format!("/{folder}/")));
            assert_eq!(machine_path(&format!("https://example.org/{folder}/x")), None);
        }
    }

    #[test]
    fn links_are_found_outside_of_code() {
        let text = "[a](b.md#c), [d](https://e.f) and `[g](h)`\n```\n[i](j)\n```\n[k](#l)\n[m]: n/o.md\n";
        assert_eq!(links(text), [(1, "b.md".to_owned()), (6, "n/o.md".to_owned())]);
    }
}
