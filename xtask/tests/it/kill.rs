//! A run killed at random moments ends with the bits of one that nobody killed, on one thread and on two.

use std::process::Command;

fn kill(arguments: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let runs = folder.path().join("runs");
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .arg("kill")
        .arg("--folder")
        .arg(&runs)
        .args(arguments)
        .output();
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{errors}");
    assert!(text.contains("equal to the bit"), "{text}");
}

#[test]
fn twenty_kills_change_no_bit() {
    kill(&["--kills", "20", "--steps", "40"]);
}

#[test]
fn other_optimisers_and_accumulation_resume_as_well() {
    for optimizer in ["sgd", "lars"] {
        let name = format!("optimizer.name={optimizer}");
        kill(&["--kills", "3", "--steps", "24", "--", "--set", &name, "--set", "train.accumulate=2"]);
    }
}
