//! What `cargo xtask eval` says beyond two accuracies: studies, and trainings with labels.

use std::path::Path;

use crate::corners::{images, pretrain, text, xtask};
use serde_json::Value;

/// Weights and data of a small run of `method` in `folder`.
fn run(method: &str, folder: &Path) -> (String, String) {
    let (out, data) = (folder.join("run"), images(folder));
    pretrain(method, &data, &out);
    (out.join("encoder.safetensors").to_str().unwrap().to_owned(), data)
}

fn eval(weights: &str, data: &str, more: &[&str]) -> Value {
    let output = xtask(&[&["eval", "--weights", weights, "--data", data, "--json"], more].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn a_study_of_an_encoder_has_a_figure_for_each_of_its_parts() {
    let folder = tempfile::tempdir().unwrap();
    let (weights, data) = run("mae", folder.path());
    let result = eval(&weights, &data, &["--study"]);
    let figures = result["study"].as_array().unwrap();
    let value = |name: &str| {
        let figure = figures.iter().find(|figure| figure["name"] == name);
        figure.unwrap_or_else(|| panic!("{name} is missing"))["value"].as_f64().unwrap()
    };
    for name in [
        "1 % of the labels",
        "10 labels a class",
        "adjusted Rand index",
        "mAP@100",
        "recall@1",
        "noise",
        "blur",
    ] {
        assert!((-0.1..=1.0).contains(&value(name)), "{name}: {}", value(name));
    }
    let truth = value("view_information");
    assert!(truth > 0.0 && value("InfoNCE critic") < 256f64.ln(), "{truth}");
    // Of a vision transformer two probes look at the last blocks.
    assert!((0.2..=1.0).contains(&value("dino, last block")));
    let grid =
        |figure: &&Value| figure["name"].as_str().is_some_and(|name| name.starts_with("dinov2, last block"));
    assert_eq!(figures.iter().filter(grid).count(), 1);
    // What there is not says why.
    let missing = figures.iter().find(|figure| figure["name"] == "mae").unwrap();
    assert_eq!(missing["value"], Value::Null);
    assert!(
        missing["missing"].as_str().is_some_and(|why| why.contains("LARS hardly moves weights in 90 steps"))
    );
}

/// Crops and flips that leave a bright corner where it is.
const IN_PLACE: [&str; 10] = [
    "--set",
    "fine_tune.crop_scale=[0.9, 1]",
    "--set",
    "fine_tune.flip_p=0",
    "--set",
    "fine_tune.epochs=6",
    "--set",
    "augmented_probe.crop_scale=[0.9, 1]",
    "--set",
    "augmented_probe.flip_p=0",
];

#[test]
fn trainings_with_labels_tell_corners_apart_and_repeat_themselves_on_any_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let (weights, data) = run("mae", folder.path());
    let tuned = folder.path().join("tuned.safetensors");
    let tuned = tuned.to_str().unwrap();
    let tune = |threads: &str| {
        let more = ["--fine-tune", "--augmented-probe", "--out", tuned, "--threads", threads];
        eval(&weights, &data, &[&more[..], &IN_PLACE].concat())
    };
    let found = tune("1");
    for (section, frozen) in [("fine_tune", false), ("augmented_probe", true)] {
        let top1 = found[section]["encoder"]["top1"].as_f64().unwrap();
        // Guessing finds a quarter.
        assert!(top1 > 0.6, "{section}: {}", found[section]);
        assert_eq!(found[section]["protocol"]["frozen"], frozen);
        let losses = found[section]["encoder"]["losses"].as_array().unwrap();
        assert!(losses.last().unwrap().as_f64() < losses[0].as_f64(), "{section}: {losses:?}");
    }
    assert_eq!(found["fine_tune"]["encoder"]["losses"].as_array().unwrap().len(), 6);
    // The tuned encoder is another one, of the same kind.
    let again = eval(tuned, &data, &[]);
    assert_ne!(std::fs::read(tuned).unwrap(), std::fs::read(&weights).unwrap());
    assert_eq!(again["protocol"], found["protocol"]);
    assert_eq!(tune("2"), found);
}

#[test]
fn settings_of_trainings_with_labels_are_checked_before_anything_is_read() {
    for (more, expected) in [
        (vec!["--set", "fine_tune.epochs=2"], "keys begin with `fine_tune.` beside --fine-tune"),
        (vec!["--fine-tune", "--set", "fine_tune.epoch=2"], "did you mean `fine_tune.epochs`?"),
        (vec!["--fine-tune", "--set", "fine_tune.epochs=0"], "fine_tune.epochs = 0 is not in 1..=100000"),
        (
            vec!["--fine-tune", "--set", "fine_tune.layer_decay=0"],
            "fine_tune.layer_decay = 0 is not in (0, 1]",
        ),
        (vec!["--fine-tune", "--set", "fine_tune.optimizer.lr=-1"], "fine_tune.optimizer.lr = -1 is not in"),
        (
            vec!["--augmented-probe", "--set", "augmented_probe.crop_scale=[0.5, 0.2]"],
            "augmented_probe.crop_scale = [0.5, 0.2] is not in (0, 1], the least first",
        ),
        (vec!["--out", "x"], "--fine-tune"),
        (vec!["--fine-tune", "--out", "none/tuned.safetensors"], "--out: there is no folder none"),
    ] {
        let output = xtask(&[&["eval", "--weights", "none"], &more[..]].concat());
        let told = text(&output.stderr);
        assert!(!output.status.success() && told.contains(expected), "{more:?}: {told}");
    }
}
