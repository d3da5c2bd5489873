//! The runner: `cargo xtask COMMAND`. One file a command.

// A program talks to its user and ends with an exit code; the lints against both are for the libraries.
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod bench;
mod choice;
mod ci;
mod eval;
mod inspect;
mod kill;
mod licences;
mod machine;
mod parity;
mod picture;
mod pretrain;
mod progress;
mod report;
mod reproduce;
mod sanitize;
mod table;
mod tidy;
mod tokenizer;
mod views;
mod weights;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Memory that a step frees is used again by the next instead of going back to the system.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Train a vision encoder on images without labels, see how good it is, and export it.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Pretrain(pretrain::Pretrain),
    Views(views::Views),
    Tokenizer(tokenizer::Tokenizer),
    Inspect(inspect::Inspect),
    Eval(eval::Eval),
    Report(report::Report),
    Export(weights::Export),
    Import(weights::Import),
    /// Compare losses, networks, optimisers, augmentations and evaluations with reference values.
    Parity {
        /// Folder with a manifest.json and the files it names; by default tests/golden.
        #[arg(long, value_name = "DIR")]
        golden: Option<PathBuf>,
        /// Print a list of JSON objects instead of a table.
        #[arg(long)]
        json: bool,
    },
    Bench(bench::Bench),
    Reproduce(reproduce::Reproduce),
    Kill(kill::Kill),
    Sanitize(sanitize::Sanitize),
    /// Run all tests: unit, integration and documentation.
    Test,
    /// Run all checks but the tests: format, house rules, licences, lints, each crate alone, documentation.
    Check,
    /// Run all checks and all tests: what main must pass.
    Ci,
    /// Check the house rules: edges between crates, file headers, links.
    Tidy,
    /// Check the licences of all dependencies.
    Licences,
}

fn main() -> ExitCode {
    // The backward pass follows the graph by recursion, so a deep network needs a deep stack.
    let worker = std::thread::Builder::new().name("main".to_owned()).stack_size(64 << 20).spawn(run);
    match worker.map(std::thread::JoinHandle::join) {
        Ok(Ok(Ok(code))) => code,
        Ok(Ok(Err(error))) => {
            eprintln!("error: {}", one_line(&error));
            ExitCode::FAILURE
        }
        Ok(Err(_)) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: no thread could be started: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    match Cli::parse().command {
        Command::Pretrain(command) => command.run(),
        Command::Views(command) => command.run(),
        Command::Tokenizer(command) => command.run(),
        Command::Inspect(command) => command.run(),
        Command::Eval(command) => command.run(),
        Command::Report(command) => command.run(),
        Command::Export(command) => command.run(),
        Command::Import(command) => command.run(),
        Command::Parity { golden, json } => {
            let golden = golden.unwrap_or_else(|| project_root().join("tests/golden"));
            let passed = parity::run(&golden, json)?;
            Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Bench(command) => command.run(),
        Command::Reproduce(command) => command.run(),
        Command::Kill(command) => command.run(),
        Command::Sanitize(command) => command.run(),
        Command::Test => ci::test().map(|()| ExitCode::SUCCESS),
        Command::Check => ci::check().map(|()| ExitCode::SUCCESS),
        Command::Ci => ci::run().map(|()| ExitCode::SUCCESS),
        Command::Tidy => tidy::run().map(|()| ExitCode::SUCCESS),
        Command::Licences => licences::run().map(|()| ExitCode::SUCCESS),
    }
}

/// The error with its causes, without the stack that candle appends when RUST_BACKTRACE is set.
fn one_line(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        let cause = cause.split("\n   0: ").next().unwrap_or_default().trim_end();
        // Some errors print their cause themselves.
        if !text.contains(cause) {
            text += if text.is_empty() { "" } else { ": " };
            text += cause;
        }
    }
    text
}

/// The top folder of the project.
fn project_root() -> PathBuf {
    let xtask = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().map_or(xtask.clone(), PathBuf::from)
}

/// Where the data of a recipe lies: the name of the data that ships with the project, or a path.
fn data_path(data: &str) -> PathBuf {
    match data {
        "fashion-mnist" => project_root().join("data/fashion-mnist"),
        path => PathBuf::from(path),
    }
}

/// Threads to compute with: those asked for, else all cores. Results do not depend on it.
fn use_threads(asked: Option<usize>) -> anyhow::Result<usize> {
    let threads = match asked {
        Some(threads) if !(1..=1024).contains(&threads) => {
            anyhow::bail!("--threads = {threads} is not in 1..=1024")
        }
        Some(threads) => threads,
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    // Steps run on these threads, and candle goes through a graph recursively: as much room as a main thread has.
    rayon::ThreadPoolBuilder::new().num_threads(threads).stack_size(8 << 20).build_global()?;
    Ok(threads)
}
