//! Small images of four kinds, and runs on them, for tests of what comes after a run.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

pub(crate) fn xtask(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask")).args(arguments).output().unwrap()
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// IDX files of 600 images to train on and 200 to test on, of four kinds: a bright square in one of four corners on noise.
pub(crate) fn images(folder: &Path) -> String {
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
pub(crate) fn pretrain(method: &str, data: &str, out: &Path) {
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
