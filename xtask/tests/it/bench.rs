//! The benchmarks can be listed, run and read; what they measure is not judged here.

use std::process::{Command, Output};

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask")).arg("bench").args(arguments).output().unwrap()
}

#[test]
fn the_cases_of_a_suite_are_listed() {
    let eval = ["probe-60000x512", "measures-60000x2x512", "retrieval-60000x512", "all-60000x2x512"];
    let eval = eval.map(|case| format!("eval/{case}\n")).concat();
    for (suite, expected) in [("knn", "knn/60000x10000x512\n"), ("eval", &eval)] {
        let output = bench(&[suite, "--list"]);
        assert!(output.status.success());
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    }
}

#[test]
fn an_unknown_case_is_refused_with_those_there_are() {
    let output = bench(&["step", "--case", "resnet18"]);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(errors.contains("unknown case `resnet18`"), "{errors}");
    assert!(errors.contains("resnet18-cifar-32/simclr/b64") && errors.lines().count() == 1, "{errors}");
}

#[test]
fn numbers_out_of_range_are_refused_by_name() {
    for (option, value) in [("--runs", "0"), ("--threads", "2000")] {
        let errors = String::from_utf8(bench(&["knn", option, value]).stderr).unwrap();
        assert!(errors.contains(&format!("{option} = {value} is not in 1..=")), "{errors}");
        assert_eq!(errors.lines().count(), 1, "{errors}");
    }
}

#[test]
fn a_case_at_one_run_is_one_object() {
    let case = "linear-512-512/b128/forward";
    let output = bench(&["--case", case, "--runs", "1", "--threads", "1", "--json"]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let object: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((object["case"].as_str(), object["threads"].as_u64()), (Some(case), Some(1)));
    assert!(object["seconds"].as_f64().unwrap() > 0.0 && object["gflop_per_second"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_peer_that_cannot_start_is_named() {
    let output = bench(&["knn", "--peer", "no-such-python"]);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && errors.contains("no-such-python"), "{errors}");
}
