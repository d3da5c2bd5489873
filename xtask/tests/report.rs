//! The page of a run, of one that trains, and of several; the study of an encoder.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::Value;

fn xtask(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// IDX files of 600 images to train on and 200 to test on, of four kinds: a bright square in one of four corners on noise.
fn images(folder: &Path) -> String {
    let path = folder.join("images");
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("class_names.txt"), "north-west\nnorth-east\nsouth-west\nsouth-east\n").unwrap();
    for (split, n) in [("train", 600u32), ("t10k", 200)] {
        let (mut pixels, mut labels) = (vec![0, 0, 8, 3], vec![0, 0, 8, 1]);
        [n, 12, 12].iter().for_each(|size| pixels.extend(size.to_be_bytes()));
        labels.extend(n.to_be_bytes());
        for i in 0..n {
            let class = (i % 4) as usize;
            labels.push(class as u8);
            for at in 0..144usize {
                let inside = (at / 12 / 6, at % 12 / 6) == (class / 2, class % 2);
                let noise = (i as usize * 7919 + at * 104_729) % 97;
                pixels.push((noise + if inside { 120 } else { 0 }) as u8);
            }
        }
        fs::write(path.join(format!("{split}-images-idx3-ubyte")), pixels).unwrap();
        fs::write(path.join(format!("{split}-labels-idx1-ubyte")), labels).unwrap();
    }
    path.to_str().unwrap().to_owned()
}

/// A run of a few steps of a small network.
fn pretrain(method: &str, data: &str, out: &Path) {
    let network = if method == "mae" { "backbone.width=64" } else { "backbone.width=2" };
    let out = out.to_str().unwrap();
    let small =
        ["augment.size=8", "train.epochs=2", "train.max_steps=20", "schedule.warmup_epochs=0", network];
    let mut arguments =
        vec!["pretrain", "--method", method, "--data", data, "--out", out, "--batch-size", "60"];
    small.iter().for_each(|setting| arguments.extend(["--set", setting]));
    if method == "mae" {
        arguments.extend(["--set", "backbone.depth=1", "--set", "backbone.patch_size=2"]);
    }
    let output = xtask(&arguments);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

/// The page of the run in `folder` as `--follow` serves it once it asks for no newer one.
fn followed(folder: &Path) -> String {
    let mut server = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["report", folder.to_str().unwrap(), "--follow"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(server.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.split("http://").nth(1).unwrap().split('/').next().unwrap();
    let page = loop {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        if !page.contains("data-refresh") {
            break page;
        }
        thread::sleep(Duration::from_millis(100));
    };
    server.kill().unwrap();
    server.wait().unwrap();
    page
}

#[test]
fn a_run_ends_with_a_page_and_events_and_several_runs_are_compared() {
    let folder = tempfile::tempdir().unwrap();
    let [simclr, mae] = ["simclr", "mae"].map(|name| folder.path().join(name));
    let data = images(folder.path());
    pretrain("simclr", &data, &simclr);
    pretrain("mae", &data, &mae);
    for (run, own) in [(&simclr, "Bound on I(view; view)"), (&mae, "What the visible tells of the hidden")] {
        let page = fs::read_to_string(run.join("report.html")).unwrap();
        let parts = [
            "The doctor",
            "Loss",
            "Alignment and entropy",
            "Nearest neighbours",
            "Spectrum of the covariance",
            "Map of the features",
            "raw pixels",
        ];
        for part in parts.into_iter().chain([own]) {
            assert!(page.contains(part), "{part} is missing in the page of {}", run.display());
        }
        assert!(!page.contains("NaN"));
        let events = fs::read_dir(run.join("tensorboard")).unwrap().map(|entry| entry.unwrap().path());
        let events: Vec<_> = events.collect();
        assert_eq!(events.len(), 1, "{events:?}");
        assert!(fs::metadata(&events[0]).unwrap().len() > 1000);
        let result: Value =
            serde_json::from_str(&fs::read_to_string(run.join("result.json")).unwrap()).unwrap();
        assert!(result["doctor"].is_array() && result["measure_share"].as_f64().is_some());
        let [low, high] = [0, 1].map(|bound| result["knn"]["interval"][bound].as_f64().unwrap());
        assert!((low..=high).contains(&result["knn"]["top1"].as_f64().unwrap()));
    }
    let live = followed(&mae);
    for part in ["how it completes it", "Nearest neighbours", "t-SNE of the features", "After step 20."] {
        assert!(live.contains(part), "{part} is missing in the page that is served");
    }
    let page = folder.path().join("both.html");
    let charts = folder.path().join("charts");
    let [simclr, mae, page, charts] = [&simclr, &mae, &page, &charts].map(|path| path.to_str().unwrap());
    let output = xtask(&["report", simclr, mae, "--out", page, "--charts", charts]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let html = fs::read_to_string(page).unwrap();
    assert!(html.contains("2 runs") && html.contains("How methods trade alignment for entropy"));
    assert!(
        fs::read_to_string(Path::new(charts).join("alignment-and-entropy.svg")).unwrap().starts_with("<svg")
    );
}

#[test]
fn a_study_of_an_encoder_has_a_figure_for_each_of_its_parts() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let data = images(folder.path());
    pretrain("simclr", &data, &run);
    let weights = run.join("encoder.safetensors");
    let output =
        xtask(&["eval", "--weights", weights.to_str().unwrap(), "--data", &data, "--study", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
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
}

#[test]
fn what_is_no_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let empty = folder.path().to_str().unwrap();
    for (arguments, expected) in [
        (vec!["report", empty], "holds no run: there is no recipe.toml"),
        (vec!["report", empty, empty, "--follow"], "holds no run"),
        (
            vec!["eval", "--weights", "none", "--study", "--views", "nothing"],
            "--views nothing is unknown; available: ",
        ),
    ] {
        let output = xtask(&arguments);
        assert!(
            !output.status.success() && text(&output.stderr).contains(expected),
            "{}",
            text(&output.stderr)
        );
    }
}
