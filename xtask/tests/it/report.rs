//! The page of a run, of one that trains, and of several.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use crate::corners::{images, pretrain, text, xtask};
use serde_json::Value;

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
