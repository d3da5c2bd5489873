//! `cargo xtask sanitize`: the tests of the crate with unsafe code, with every access to memory watched.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::ci::cargo;
use crate::project_root;

/// The only crate with unsafe code.
const CRATE: &str = "ssl-nn";

/// Run the tests of ssl-nn, the only crate with unsafe code, under a checker of memory.
///
/// `address` is the compiler's AddressSanitizer: all tests, on the instruction sets of this processor. It needs the
/// runtime that rustup's toolchains for Linux and macOS bring, and builds all dependencies once more, into
/// target/sanitize. `valgrind` is the unit tests under valgrind's memcheck, which also sees uninitialised memory; it
/// needs valgrind, and runs AVX-512 kernels only where valgrind knows these instructions.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  cargo xtask sanitize
  cargo xtask sanitize kernel --tool valgrind")]
pub(crate) struct Sanitize {
    /// Only tests whose names contain this.
    filter: Option<String>,
    /// What watches.
    #[arg(long, value_enum, default_value_t = Tool::Address)]
    tool: Tool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Tool {
    Address,
    Valgrind,
}

impl Sanitize {
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        let mut command = match self.tool {
            Tool::Address => address()?,
            Tool::Valgrind => valgrind()?,
        };
        let status = command.args(&self.filter).status().context("the tests could not be started")?;
        ensure!(status.success(), "the tests of {CRATE} ended with {status}");
        println!("sanitize: no access outside of what was asked for");
        Ok(ExitCode::SUCCESS)
    }
}

/// Cargo, to build everything with the sanitizer and run the tests.
fn address() -> anyhow::Result<Command> {
    let host = rustc(&["-vV"])?;
    let host =
        host.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
    let libraries =
        Path::new(rustc(&["--print", "sysroot"])?.trim()).join("lib/rustlib").join(host).join("lib");
    if !has_runtime(&libraries) {
        bail!("{}: no runtime of the AddressSanitizer; try --tool valgrind", libraries.display());
    }
    // A target of its own name keeps the flags away from build scripts. The variable lets a stable compiler take them.
    let mut command = cargo(&["test", "--locked", "--package", CRATE, "--tests", "--target", host]);
    command.arg("--target-dir").arg(project_root().join("target/sanitize"));
    command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-Zsanitizer=address");
    Ok(command)
}

fn has_runtime(libraries: &Path) -> bool {
    let named = |name: &str| name.contains("_rt.asan.");
    fs::read_dir(libraries).is_ok_and(|mut entries| {
        entries.any(|entry| entry.is_ok_and(|entry| named(&entry.file_name().to_string_lossy())))
    })
}

fn rustc(args: &[&str]) -> anyhow::Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(args).current_dir(project_root()).output().context("rustc")?;
    ensure!(output.status.success(), "rustc {} ended with {}", args.join(" "), output.status);
    String::from_utf8(output.stdout).context("rustc")
}

/// Valgrind on the unit tests, which are built as always.
fn valgrind() -> anyhow::Result<Command> {
    let version = Command::new("valgrind").arg("--version").output();
    ensure!(
        version.is_ok_and(|v| v.status.success()),
        "valgrind was not found; install it, or use --tool address"
    );
    let mut command = Command::new("valgrind");
    command.args(["--quiet", "--error-exitcode=1"]).arg(unit_tests()?).arg("--test-threads=1");
    Ok(command)
}

/// Builds the unit tests and returns their program.
fn unit_tests() -> anyhow::Result<PathBuf> {
    let args = ["test", "--locked", "--package", CRATE, "--lib", "--no-run", "--message-format", "json"];
    let output = cargo(&args).stderr(Stdio::inherit()).output().context("cargo test")?;
    ensure!(output.status.success(), "the tests of {CRATE} do not build");
    let messages = String::from_utf8_lossy(&output.stdout);
    let program = messages.lines().filter_map(executable).next_back();
    program.context("cargo names no program with the unit tests")
}

/// The program that a line of cargo's messages is about.
fn executable(line: &str) -> Option<PathBuf> {
    let message: Value = serde_json::from_str(line).ok()?;
    message["executable"].as_str().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_among_the_messages() {
        assert_eq!(executable(r#"{"reason":"compiler-artifact","executable":null}"#), None);
        assert_eq!(executable("   Compiling"), None);
        let line = r#"{"reason":"compiler-artifact","executable":"target/deps/a"}"#;
        assert_eq!(executable(line), Some(PathBuf::from("target/deps/a")));
    }

    #[test]
    fn a_folder_without_the_runtime_has_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!has_runtime(folder.path()) && !has_runtime(&folder.path().join("missing")));
        fs::write(folder.path().join("librustc-stable_rt.asan.a"), "").unwrap();
        assert!(has_runtime(folder.path()));
    }
}
