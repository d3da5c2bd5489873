//! The table of results: what is trained, what is passed over, and what is written where.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};
use ssl_vision::train::Recipe;

/// A network and views so small that a run takes a fraction of a second.
const TINY: &str = "augment.size=8 backbone.width=2 method.projector_hidden=8 method.projector_dim=4 \
    train.batch_size=8 train.epochs=1 schedule.warmup_epochs=0";

fn reproduce(root: &Path, more: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["reproduce", "fashion-mnist", "--root"]).arg(root);
    command.args(more.split_whitespace()).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn succeeds(root: &Path, more: &str) -> String {
    let output = reproduce(root, more);
    assert!(output.status.success(), "{more}: {}", text(&output));
    text(&output)
}

fn fails(root: &Path, more: &str, part: &str) {
    let output = reproduce(root, more);
    assert!(!output.status.success(), "{more}");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(errors.contains(part), "{more}: {errors}");
}

/// A row as a run of `method` leaves it, with the hash of its present recipe.
fn row(method: &str, seed: u64, knn: f64) -> Value {
    let recipe = format!("{method}-fashion-mnist");
    let hash = Recipe::load(&recipe, &[("seed".to_owned(), seed.to_string())]).unwrap().hash().unwrap();
    json!({
        "method": method, "recipe_hash": hash, "seed": seed, "version": "0.1.0", "images": 10000,
        "test_images": 2000, "epochs": 6, "steps": 936, "seconds": 100.0 + seed as f64, "images_per_second": 450.5 - seed as f64,
        "peak_rss_bytes": 1u64 << 30, "threads": 2, "backbone": {"name": "resnet18", "width": 16},
        "knn": knn, "linear": 0.84, "untrained": {"knn": 0.5, "linear": 0.6}, "pixels": {"knn": 0.83, "linear": 0.85},
        "knn_k": 20, "knn_temperature": 0.07, "cpu": "a processor",
    })
}

fn write_rows(root: &Path, rows: &[Value]) {
    fs::create_dir_all(root.join("docs/results")).unwrap();
    let lines: String = rows.iter().map(|row| format!("{row}\n")).collect();
    fs::write(root.join("docs/results/fashion-mnist.jsonl"), lines).unwrap();
}

#[test]
fn the_table_stands_between_the_marks_and_nothing_else_changes() {
    let root = tempfile::tempdir().unwrap();
    let readme = root.path().join("README.md");
    fs::write(&readme, "# Title\n<!-- results: begin -->\nold\n<!-- results: end -->\nthe end\n").unwrap();
    let mut old = row("simclr", 2, 0.1);
    old["recipe_hash"] = json!("0123456789abcdef");
    write_rows(root.path(), &[row("simclr", 0, 0.80), row("simclr", 1, 0.82), old, row("byol", 0, 0.7)]);
    succeeds(root.path(), "--table-only");
    let table = fs::read_to_string(&readme).unwrap();
    assert!(table.starts_with("# Title\n<!-- results: begin -->\n| Method |"), "{table}");
    assert!(table.ends_with("<!-- results: end -->\nthe end\n") && !table.contains("old"), "{table}");
    for line in [
        "| simclr | 81.0 ± 1.4 % (2) | 84.0 ± 0.0 % (2) | +31.0 | 100 s | 450 | 1.00 GiB |",
        "| byol | 70.0 % | 84.0 % | +20.0 | 100 s | 450 | 1.00 GiB |",
        "| untrained network, as initialised | 50.0 ± 0.0 % (2) | 60.0 ± 0.0 % (2) | | | | |",
        "| raw pixels | 83.0 % | 85.0 % | | | | |",
    ] {
        assert!(table.lines().any(|own| own == line), "{line}\n{table}");
    }
    assert!(table.contains("2 threads of a processor") && table.contains("k = 20, T = 0.07"), "{table}");
    // Twice is once.
    succeeds(root.path(), "--table-only");
    assert_eq!(fs::read_to_string(&readme).unwrap(), table);
}

#[test]
fn what_stands_in_the_file_is_not_trained_again() {
    let root = tempfile::tempdir().unwrap();
    write_rows(root.path(), &[row("simclr", 0, 0.8)]);
    let printed = succeeds(root.path(), "--methods simclr");
    assert!(printed.contains("[1/1] simclr, seed 0: stands in"), "{printed}");
    assert!(!root.path().join("runs").exists());
    assert!(fs::read_to_string(root.path().join("README.md")).unwrap().contains("| simclr | 80.0 % |"));
}

#[test]
fn a_run_is_trained_once_resumed_if_need_be_and_leaves_its_row() {
    let folder = tempfile::tempdir().unwrap();
    let (root, data) = (folder.path().join("root"), folder.path().join("data"));
    write_images(&data);
    let settings: String = TINY.split_whitespace().map(|setting| format!(" --set {setting}")).collect();
    let more = format!("--methods simclr --threads 1 --set data.path={}{settings}", data.display());
    let run = root.join("runs/reproduce/simclr-0");
    // It was trained, and ended before it was evaluated.
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(["pretrain", "--recipe", "simclr-fashion-mnist", "--seed", "0", "--threads", "1", "--out"]);
    command.arg(&run).arg("--set").arg(format!("data.path={}", data.display()));
    command.args(TINY.split_whitespace().flat_map(|setting| ["--set", setting]));
    command.arg("--no-eval");
    assert!(command.output().unwrap().status.success());
    assert!(!run.join("result.json").exists());

    succeeds(&root, &more);
    let rows = fs::read_to_string(root.join("docs/results/fashion-mnist.jsonl")).unwrap();
    assert_eq!(rows.lines().count(), 1);
    let row: Value = serde_json::from_str(&rows).unwrap();
    assert_eq!((&row["method"], &row["images"], &row["steps"]), (&json!("simclr"), &json!(32), &json!(4)));
    // The time of the part that is done again is not that of the run.
    assert!(row["seconds"].is_null() && row["images_per_second"].is_null());
    assert!(fs::read_to_string(root.join("README.md")).unwrap().contains("| – | – | "));

    fs::remove_dir_all(&run).unwrap();
    let printed = succeeds(&root, &more);
    assert!(printed.contains("stands in") && !run.exists(), "{printed}");
    // Another recipe is another run.
    succeeds(&root, &format!("{more} --set optimizer.lr=0.01"));
    assert_eq!(fs::read_to_string(root.join("docs/results/fashion-mnist.jsonl")).unwrap().lines().count(), 2);
    let printed = succeeds(&root, &format!("{more} --set optimizer.lr=0.02"));
    assert!(printed.contains("a run of another recipe was there; it is now"), "{printed}");
    assert_eq!(fs::read_dir(root.join("runs/reproduce")).unwrap().count(), 2);
}

#[test]
fn mistakes_are_told_before_anything_is_trained() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path();
    fails(root, "--methods simclr,nothing", "no recipe nothing-fashion-mnist; there are simclr, ");
    fails(root, "--seeds 0", "--seeds = 0 is not in 1..=100");
    fails(root, "--full", "--full needs --data PATH");
    fails(root, "--data .", "--full");
    let data = root.join("data");
    write_images(&data);
    fails(
        root,
        &format!("--full --data {}", data.display()),
        "32 images to train and 16 to test on, the whole of Fashion-MNIST has 60000 and 10000",
    );
    fs::write(root.join("README.md"), "no marks").unwrap();
    fails(root, "--table-only", "has no place for the table");
    fs::write(root.join("README.md"), "<!-- results: begin --><!-- results: end -->").unwrap();
    write_rows(root, &[json!({"method": "simclr"})]);
    fails(root, "--table-only", "line 1 is not a row of results: `recipe_hash` is missing");
}

/// IDX files with 32 images to train on and 16 to test on, of two classes.
fn write_images(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for (split, n) in [("train", 32u8), ("t10k", 16)] {
        let pixels =
            (0..usize::from(n) * 64).map(|i| if i / 64 % 2 == 0 { i % 64 } else { 255 - i % 37 } as u8);
        let mut images = vec![0, 0, 8, 3, 0, 0, 0, n, 0, 0, 0, 8, 0, 0, 0, 8];
        images.extend(pixels);
        let mut labels = vec![0, 0, 8, 1, 0, 0, 0, n];
        labels.extend((0..n).map(|i| i % 2));
        fs::write(folder.join(format!("{split}-images-idx3-ubyte")), images).unwrap();
        fs::write(folder.join(format!("{split}-labels-idx1-ubyte")), labels).unwrap();
    }
}
