//! One run of a case in a process of its own: this program, or Python.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::augment::photo_of;
use super::measure::{Case, Sample};

const PEER: &str = include_str!("../../python/bench_peer.py");

/// Runs `case` in a new process of this program.
pub(super) fn ours(case: &Case, threads: usize) -> Result<Sample> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["bench", "--child", &case.id, "--threads", &threads.to_string()]);
    // candle's matrix multiplication takes as many threads as this says, whatever the size of the pool.
    command.env("RAYON_NUM_THREADS", threads.to_string());
    // As .cargo/config.toml has it for `cargo xtask`, also where this program was started without cargo.
    command.env("MIMALLOC_PURGE_DELAY", "-1").env("CANDLE_NUM_THREADS", "1");
    Sample::from_json(&output(command, &[])?)
}

/// Runs the same case in Python, which gets the JPEG of the case, if it has one, on its standard input.
pub(super) fn peer(python: &Path, case: &Case, threads: usize) -> Result<Sample> {
    let mut command = Command::new(python);
    command.args(["-c", PEER, &case.id, &threads.to_string()]);
    command.env("OMP_NUM_THREADS", threads.to_string());
    Sample::from_json(&output(command, &photo_of(&case.id)?)?)
}

/// The versions of the packages that the peer is made of.
pub(super) fn peer_versions(python: &Path) -> Result<String> {
    let mut command = Command::new(python);
    command.args(["-c", PEER, "--versions"]);
    output(command, &[]).with_context(|| format!("--peer {}", python.display()))
}

/// The last line that the command prints.
fn output(mut command: Command, stdin: &[u8]) -> Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let program = command.get_program().display().to_string();
    let mut child = command.spawn().with_context(|| format!("cannot start {program}"))?;
    if let Some(mut pipe) = child.stdin.take() {
        // A case without a photo may end before it has read one.
        let _ = pipe.write_all(stdin);
    }
    let output = child.wait_with_output()?;
    let last_line = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().lines().last().map(str::to_owned);
    if !output.status.success() {
        bail!("{program}: {}: {}", output.status, last_line(&output.stderr).unwrap_or_default());
    }
    last_line(&output.stdout).with_context(|| format!("{program} has printed nothing"))
}
