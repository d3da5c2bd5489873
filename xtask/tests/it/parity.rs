//! All reference values that the project implements hold.

use std::process::Command;

#[test]
fn every_implemented_case_passes() {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask")).args(["parity", "--json"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let cases: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let count = |verdict: &str| cases.iter().filter(|case| case["verdict"] == verdict).count();
    let failed: Vec<_> = cases.iter().filter(|case| case["verdict"] == "fail").collect();
    assert!(output.status.success() && failed.is_empty(), "{failed:#?}");
    assert_eq!((count("pass"), count("not implemented")), (118, 0));
}
