//! `cargo xtask sanitize` says what it needs.

use std::process::Command;

#[test]
fn a_missing_valgrind_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["sanitize", "--tool", "valgrind"])
        .env("PATH", "")
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert!(error.contains("valgrind was not found; install it, or use --tool address"), "{error}");
}
