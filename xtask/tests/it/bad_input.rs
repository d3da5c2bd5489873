//! Bad input as a new user produces it: each ends in one line that says what is wrong, or in a skip that is counted, and
//! nothing is lost. New tests of messages go here.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use candle_core::Device;
use image::{DynamicImage, ImageBuffer, ImageFormat, Rgb, RgbImage};
use ssl_vision::backbones::TensorFile;
use tempfile::TempDir;

/// A network and views so small that a run takes a fraction of a second.
const TINY: &str = "augment.size=8 backbone.width=2 method.projector_hidden=8 method.projector_dim=4 \
    train.batch_size=8 train.epochs=1 schedule.warmup_epochs=0 checkpoint.every_steps=1 checkpoint.keep=9";

/// An RGB image of 60,000 x 60,000 pixels whose pixels are missing.
const HUGE_PNG: &[u8] =
    b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\xea\x60\0\0\xea\x60\x08\x02\0\0\0\x0f\xb0\xe2\x15\
    \0\0\0\x08IDATx\x9c\x03\0\0\0\0\x01\x48\x06\x89\xd2\0\0\0\0IEND\xae\x42\x60\x82";

fn xtask() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.env("RUST_BACKTRACE", "1").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A tiny run on the images at `data` in the folder `out`, with more arguments separated by spaces.
fn pretrain(data: &Path, out: &Path, more: &str) -> Command {
    let mut command = xtask();
    command.args(["pretrain", "--threads", "1", "--data"]).arg(data).arg("--out").arg(out);
    command.args(TINY.split_whitespace().flat_map(|setting| ["--set", setting]));
    command.args(more.split_whitespace());
    command
}

fn resume(run: &Path, more: &str) -> Command {
    let mut command = xtask();
    command.args(["pretrain", "--threads", "1", "--resume"]).arg(run).args(more.split_whitespace());
    command
}

/// Runs the command, which must succeed, and returns what it printed on both streams.
fn succeeds(mut command: Command) -> String {
    let output = command.output().unwrap();
    let text = both(&output);
    assert!(output.status.success() && is_calm(&text), "{command:?}: {text}");
    text
}

/// Runs the command, which must fail with one line of error that holds all `parts`, and returns that line.
fn fails(mut command: Command, parts: &[&str]) -> String {
    let output = command.output().unwrap();
    let text = both(&output);
    let errors = String::from_utf8(output.stderr).unwrap();
    let last = errors.lines().last().unwrap_or_default();
    assert_eq!(output.status.code(), Some(1), "{command:?}: {text}");
    assert!(last.starts_with("error: ") && errors.matches("error: ").count() == 1, "{command:?}: {text}");
    assert!(is_calm(&text), "{command:?}: {text}");
    for part in parts {
        assert!(last.contains(part), "{command:?} does not say {part:?}: {text}");
    }
    last.to_owned()
}

fn both(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn is_calm(text: &str) -> bool {
    !["panicked", "backtrace", "   0: "].iter().any(|alarm| text.contains(alarm))
}

fn temporary() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn picture(width: u32, height: u32, seed: u32) -> RgbImage {
    let byte = |x: u32, y: u32, c: u32| ((x * 37 + y * 91 + c * 53 + seed * 29) * (seed + 7) % 251) as u8;
    ImageBuffer::from_fn(width, height, |x, y| Rgb([byte(x, y, 0), byte(x, y, 1), byte(x, y, 2)]))
}

/// A new folder `root/name` with `n` small images for each class; the class "" stands for the folder itself.
fn images(root: &TempDir, name: &str, classes: &[&str], n: u32) -> PathBuf {
    let folder = root.path().join(name);
    for (class, seed) in classes.iter().zip((0..).step_by(1000)) {
        fs::create_dir_all(folder.join(class)).unwrap();
        for i in 0..n {
            picture(8, 8, seed + i).save(folder.join(class).join(format!("{i:02}.png"))).unwrap();
        }
    }
    folder
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Every file below `folder` but the lock, with its bytes.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for path in entries(folder) {
        if path.is_dir() {
            found.extend(files(&path));
        } else if !path.ends_with(".lock") {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

fn checkpoint(run: &Path, step: usize) -> PathBuf {
    run.join(format!("checkpoints/step-{step:010}.safetensors"))
}

/// A run of four steps that ended, and a copy of it as if it had been stopped after `steps` of them.
fn stopped_run(root: &TempDir, steps: usize) -> (PathBuf, PathBuf) {
    let (whole, stopped) = (root.path().join("whole"), root.path().join("stopped"));
    succeeds(pretrain(&images(root, "images", &[""], 32), &whole, ""));
    fs::create_dir_all(stopped.join("checkpoints")).unwrap();
    for name in ["recipe.toml", "metrics.jsonl"] {
        fs::copy(whole.join(name), stopped.join(name)).unwrap();
    }
    for step in 1..=steps {
        fs::copy(checkpoint(&whole, step), checkpoint(&stopped, step)).unwrap();
    }
    (whole, stopped)
}

fn assert_same_end(whole: &Path, resumed: &Path) {
    for name in ["metrics.jsonl", "checkpoints/step-0000000004.safetensors", "encoder.safetensors"] {
        let [there, here] = [whole, resumed].map(|run| fs::read(run.join(name)).unwrap());
        assert!(there == here, "{name} differs from the uninterrupted run's");
    }
}

#[test]
fn a_broken_file_is_named_or_counted() {
    let root = temporary();
    let mut jpeg = std::io::Cursor::new(Vec::new());
    picture(64, 64, 1).write_to(&mut jpeg, ImageFormat::Jpeg).unwrap();
    let half_jpeg = &jpeg.get_ref()[..jpeg.get_ref().len() / 2];
    let broken: [(&str, &[u8], &str); 4] = [
        ("half.jpg", half_jpeg, "truncated"),
        ("text.jpg", b"holiday 2019, see the other folder\n", "its content is no image"),
        ("zero.png", b"", "the file is empty"),
        ("huge.png", HUGE_PNG, "60000x60000 pixels, more than the limit of 16384"),
    ];
    for (name, bytes, reason) in broken {
        let data = images(&root, name, &["cat", "dog"], 10);
        fs::write(data.join("cat").join(name), bytes).unwrap();
        let [stop, skip] = ["stop", "skip"].map(|policy| root.path().join(format!("{policy}-{name}")));
        fails(pretrain(&data, &stop, ""), &[name, reason]);
        let text = succeeds(pretrain(&data, &skip, "--set data.on_error=skip"));
        let told =
            text.lines().find(|line| line.starts_with("broken files skipped: 1; the first: ")).unwrap();
        assert!(told.contains(name) && told.contains(reason), "{told}");
        let result = fs::read_to_string(skip.join("result.json")).unwrap();
        let result: serde_json::Value = serde_json::from_str(&result).unwrap();
        assert_eq!(result["dataset"]["broken_images"], 1);
    }
}

#[test]
fn a_folder_that_is_mostly_broken_is_refused_under_either_policy() {
    let root = temporary();
    let data = images(&root, "photos", &[""], 8);
    (0..9).for_each(|i| fs::write(data.join(format!("bad{i}.jpg")), "no image").unwrap());
    fails(
        pretrain(&data, &root.path().join("run"), "--set data.on_error=skip"),
        &["of 17 images are broken, more than half", "bad0.jpg"],
    );
}

#[test]
fn pairs_of_images_are_trained_on_and_a_missing_partner_is_named() {
    let root = temporary();
    let (data, out) = (images(&root, "photos", &[""], 10), root.path().join("run"));
    let clip = |method: &str, more: &str| {
        let mut command = xtask();
        command.args(["pretrain", "--method", method, "--threads", "1", "--data"]).arg(&data);
        command.arg("--out").arg(&out);
        let tiny =
            "augment.size=8 backbone.width=2 train.batch_size=5 train.epochs=1 schedule.warmup_epochs=0";
        command.args(tiny.split_whitespace().chain(more.split_whitespace()).flat_map(|s| ["--set", s]));
        command
    };
    let pairs = "method.second_tower=image data.partners=../depth";
    fails(clip("clip", "method.second_tower=image"), &["data.partners is empty, but clip compares pairs"]);
    fails(
        clip("simclr", "data.partners=../depth"),
        &["data.partners = \"../depth\", but simclr looks at images alone"],
    );
    fails(clip("clip", pairs), &["depth", "No such file"]);
    images(&root, "depth", &[""], 9);
    fails(clip("clip", pairs), &["depth", "holds no partner of", "09.png"]);
    assert!(!out.exists());
    images(&root, "depth", &[""], 10);
    let text =
        succeeds(clip("clip", &format!("{pairs} augment.views=[{{size=8}},{{size=6,crop_scale=[0.5,1]}}]")));
    assert!(
        text.contains("each with a partner") && text.contains("views of 1 of 8x8, 1 of 6x6 pixels"),
        "{text}"
    );
}

#[test]
fn texts_that_images_lack_are_named_before_anything_is_written() {
    let root = temporary();
    let (data, out) = (images(&root, "photos", &[""], 10), root.path().join("run"));
    let clip = |captions: &str| {
        let mut command = xtask();
        command
            .args(["pretrain", "--method", "clip", "--threads", "1", "--data"])
            .arg(&data)
            .arg("--out")
            .arg(&out);
        let tiny = "augment.size=8 backbone.width=2 method.text_width=8 method.text_layers=1 train.batch_size=5 \
            train.epochs=1 schedule.warmup_epochs=0";
        command.args(tiny.split_whitespace().flat_map(|setting| ["--set", setting]));
        command.args(["--set", &format!("text.captions={captions}")]);
        command
    };
    fails(
        clip("\"\""),
        &["text.captions is empty and photos (image folder), 10 images, no labels has no classes"],
    );
    fails(clip("c.csv"), &["cannot read", "c.csv"]);
    fs::write(data.join("c.csv"), "file_name,text\n00.png,a cat\n").unwrap();
    fails(
        clip("c.csv"),
        &["c.csv cannot be used: 9 of 10 images have no caption in it; the first: \"01.png\""],
    );
    assert!(!out.exists());
    let rows: String = (0..10).map(|i| format!("{i:02}.png,cat number {i}\n")).collect();
    fs::write(data.join("c.csv"), format!("file_name,text\n{rows}")).unwrap();
    assert!(succeeds(clip("c.csv")).contains("with captions"));
}

#[test]
fn data_that_cannot_be_trained_on_is_refused_before_anything_is_written() {
    let root = temporary();
    let (empty, missing, out) =
        (root.path().join("empty"), root.path().join("missing"), root.path().join("run"));
    fs::create_dir(&empty).unwrap();
    let few = images(&root, "few", &[""], 7);
    let pairs = images(&root, "pairs", &["a", "b", "c", "d", "e"], 2);
    for (data, parts) in [
        (&empty, ["is empty", "expected a folder with images (.jpg"]),
        (&missing, ["missing does not exist", "expected a folder with images"]),
        (&few.join("00.png"), ["00.png is a file", "expected a folder with images"]),
        (&few, ["train.batch_size = 8 is larger than the data set", "has 7 images"]),
        (&pairs, ["data.holdout = 0.2 splits the 10 images of 5 classes", "add images or a folder `test`"]),
    ] {
        fails(pretrain(data, &out, ""), &parts);
        assert!(!out.exists(), "{parts:?}");
    }
}

#[test]
fn a_recipe_that_cannot_be_run_is_refused_before_anything_is_written() {
    let root = temporary();
    let out = root.path().join("run");
    let (data, none) = (images(&root, "images", &[""], 8), root.path().join("missing"));
    // The data does not exist, so these are refused before it is looked for.
    for (more, part) in [
        ("--set optimzer.lr=1", "unknown key `optimzer.lr`; did you mean `optimizer.lr`?"),
        ("--set optimizer.lr=fast", "optimizer.lr = \"fast\" is text, expected a number"),
        ("--set optimizer.lr=-1", "optimizer.lr = -1 is not in [0, 10000]"),
        ("--set train.accumulate=3", "train.accumulate = 3 must divide train.batch_size = 8"),
        ("--set schedule.warmup_epochs=2", "schedule.warmup_epochs = 2 is not in 0..1"),
        ("--set train.epochs=18446744073709551615", "train.epochs = "),
        ("--set lr", "--set lr: expected KEY=VALUE"),
        ("--recipe simclear", "`simclear` is neither a recipe (simclr-fashion-mnist, "),
        ("--method simclear", "method.name = \"simclear\" is unknown; available: simclr"),
        ("--backbone vgg16", "backbone.name = \"vgg16\" is unknown; available: resnet18"),
    ] {
        fails(pretrain(&none, &out, more), &[part]);
    }
    fails(
        pretrain(&data, &out, "--set augment.preset=dino"),
        &["make 10 views, but method.name = \"simclr\" needs 2"],
    );
    let mut command = xtask();
    command.args(["pretrain", "--threads", "0", "--data"]).arg(&data).arg("--out").arg(&out);
    fails(command, &["--threads = 0 is not in 1..="]);
    assert!(!out.exists());
    let toml = root.path().join("mine.toml");
    fs::write(&toml, "[optimizer]\nlr = = 3\n").unwrap();
    let mut command = pretrain(&data, &out, "--recipe");
    command.arg(&toml);
    fails(command, &["mine.toml: not TOML: line 2"]);
}

#[test]
fn a_word_that_is_no_command_gets_the_nearest_one() {
    let output = xtask().arg("pretrian").output().unwrap();
    let text = both(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.starts_with("error: unrecognized subcommand 'pretrian'") && text.contains("'pretrain'"),
        "{text}"
    );
}

#[test]
fn folders_that_are_no_place_for_a_run_are_refused() {
    let root = temporary();
    let data = images(&root, "images", &[""], 8);
    let (empty, missing) = (root.path().join("empty"), root.path().join("missing"));
    fs::create_dir(&empty).unwrap();
    fails(resume(&empty, ""), &["empty: holds no run", "recipe.toml"]);
    fails(resume(&missing, ""), &["missing: holds no run"]);
    assert!(entries(&empty).is_empty() && !missing.exists());

    let file = root.path().join("notes.txt");
    fs::write(&file, "mine").unwrap();
    let error = fails(pretrain(&data, &file.join("run"), ""), &["notes.txt/run: "]);
    assert_eq!(error.matches("os error").count(), 1, "the cause is told once: {error}");
    fails(pretrain(&data, &file, ""), &["notes.txt: "]);
    assert_eq!(fs::read(&file).unwrap(), b"mine");

    let run = root.path().join("run");
    succeeds(pretrain(&data, &run, "--no-eval"));
    let before = files(&run);
    fails(pretrain(&data, &run, ""), &["holds a run already", "--resume", "--out"]);
    assert_eq!(files(&run), before);
}

/// A run in the background, which ends with the test, however that ends.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn of_two_runs_in_one_folder_the_second_is_refused() {
    let root = temporary();
    let (data, run) = (images(&root, "images", &[""], 8), root.path().join("run"));
    let mut first = pretrain(&data, &run, "--set train.epochs=1000000 --set checkpoint.every_steps=1000000");
    let first = Background(first.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    // An empty file or none shows that the first step is still to come; a minute is more than that ever takes.
    let has_begun = || fs::metadata(run.join("metrics.jsonl")).is_ok_and(|file| file.len() > 0);
    for _ in 0..600 {
        if has_begun() {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(has_begun(), "the first run did not start");
    fails(pretrain(&data, &run, ""), &["is in use by another run", "--out"]);
    fails(resume(&run, ""), &["is in use by another run"]);
    drop(first);
    fails(pretrain(&data, &run, ""), &["holds a run already"]);
}

#[test]
fn weights_and_data_that_cannot_be_evaluated_are_refused() {
    let root = temporary();
    let (data, flat) = (images(&root, "images", &["a", "b"], 10), images(&root, "flat", &[""], 8));
    let (run, at) = (root.path().join("run"), |name: &str| root.path().join(name));
    succeeds(pretrain(&data, &run, "--no-eval"));
    let whole = run.join("encoder.safetensors");
    let bytes = fs::read(&whole).unwrap();
    fs::write(at("cut.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    fs::write(at("page.html"), "<!doctype html><title>404</title>").unwrap();
    let eval = |weights: &Path, data: &Path, more: &str| {
        let mut command = xtask();
        command.args(["eval", "--threads", "1", "--weights"]).arg(weights).arg("--data").arg(data);
        command.args(more.split_whitespace());
        command
    };
    fails(eval(&at("none.safetensors"), &data, ""), &["none.safetensors: No such file"]);
    fails(
        eval(&at("cut.safetensors"), &data, ""),
        &["cut.safetensors: not a safetensors file, or a damaged one"],
    );
    fails(eval(&at("page.html"), &data, ""), &["page.html: not a safetensors file"]);
    fails(eval(&checkpoint(&run, 1), &data, ""), &["holds no description of an encoder", "exported by"]);
    fails(eval(&whole, &flat, ""), &["flat", "needs labels of two classes or more"]);
    fails(eval(&whole, &data.join("a"), ""), &["needs labels of two classes or more"]);
    fails(eval(&whole, &at("none"), ""), &["none does not exist"]);
    fails(eval(&whole, &data, "--holdout 2"), &["holdout = 2 is not in (0, 1)"]);
    fails(eval(&whole, &data, "--knn-k 0"), &["k is 0, allowed is at least 1"]);
    fs::write(data.join("a/bad.jpg"), "no image").unwrap();
    fails(eval(&whole, &data, ""), &["bad.jpg", "its content is no image"]);
    assert!(
        succeeds(eval(&whole, &data, "--on-error skip")).contains("broken files skipped: 1; the first: ")
    );
}

#[test]
fn export_and_parity_need_what_they_read() {
    let root = temporary();
    let (data, run) = (images(&root, "images", &[""], 8), root.path().join("run"));
    succeeds(pretrain(&data, &run, "--no-eval"));
    entries(&run.join("checkpoints")).iter().for_each(|path| fs::remove_file(path).unwrap());
    let out = root.path().join("export.safetensors");
    let export = |run: &Path| {
        let mut command = xtask();
        command.arg("export").arg("--run").arg(run).arg("--out").arg(&out);
        command
    };
    fails(export(&run), &["has no checkpoint"]);
    fails(export(&data), &["holds no run"]);
    assert!(!out.exists());
    let mut parity = xtask();
    parity.args(["parity", "--golden"]).arg(&data);
    fails(parity, &["manifest.json: No such file"]);
}

#[test]
fn odd_folders_are_trained_on() {
    let root = temporary();
    let flat = images(&root, "flat", &[""], 8);
    let one = images(&root, "one", &["holiday"], 10);
    let threes = images(&root, "threes", &["a", "b", "c", "d"], 3);
    let mixed = images(&root, "mixed", &["a", "b"], 8);
    let rgb = DynamicImage::from(picture(9, 7, 5));
    let kinds = [rgb.to_luma8().into(), rgb.to_luma_alpha8().into(), rgb.to_rgba8().into()]
        .into_iter()
        .chain([rgb.to_luma16().into(), rgb.to_rgb16().into(), rgb.to_rgba16().into()]);
    for (i, image) in kinds.enumerate() {
        let image: DynamicImage = image;
        image.save(mixed.join(format!("a/kind{i}.png"))).unwrap();
    }
    let sizes = images(&root, "sizes", &["a", "b"], 8);
    for (width, height) in [(1, 1), (1, 400), (400, 1), (3, 2), (300, 200), (3000, 4)] {
        picture(width, height, 1).save(sizes.join(format!("b/{width}x{height}.png"))).unwrap();
    }
    for (data, told) in [
        (flat, "the images have no labels, so there is no accuracy to measure"),
        (one, "the images have one class, so there is no accuracy to measure"),
        (threes, "top-1 accuracy"),
        (mixed, "top-1 accuracy"),
        (sizes, "top-1 accuracy"),
    ] {
        let out = data.with_extension("run");
        let text = succeeds(pretrain(&data, &out, ""));
        assert!(text.contains(told), "{text}");
        assert!(out.join("result.json").is_file());
    }
}

/// A limit on the size of a file refuses a write by the same path as a full disk.
#[cfg(unix)]
fn with_full_disk(command: &Command, kibibytes: usize) -> Command {
    let mut limited = Command::new("bash");
    limited.arg("-c").arg(format!("trap '' XFSZ; ulimit -f {kibibytes}; exec \"$0\" \"$@\""));
    limited.arg(command.get_program()).args(command.get_args()).env("RUST_BACKTRACE", "1");
    limited
}

#[cfg(unix)]
#[test]
fn a_full_disk_costs_nothing_that_was_saved() {
    let root = temporary();
    let (whole, stopped) = stopped_run(&root, 2);
    let saved = [1, 2].map(|step| fs::read(checkpoint(&stopped, step)).unwrap());
    for (kibibytes, name) in [(0, "metrics.jsonl: "), (64, "step-0000000003.safetensors: ")] {
        fails(with_full_disk(&resume(&stopped, ""), kibibytes), &[name, "File too large"]);
        assert_eq!(entries(&stopped.join("checkpoints")), [1, 2].map(|step| checkpoint(&stopped, step)));
        assert!(saved == [1, 2].map(|step| fs::read(checkpoint(&stopped, step)).unwrap()));
    }
    succeeds(resume(&stopped, ""));
    assert_same_end(&whole, &stopped);

    let (data, fresh) = (root.path().join("images"), root.path().join("fresh"));
    fails(with_full_disk(&pretrain(&data, &fresh, ""), 0), &["recipe.toml: ", "File too large"]);
    succeeds(pretrain(&data, &fresh, ""));
    assert_same_end(&whole, &fresh);
}

#[test]
fn a_damaged_newest_checkpoint_is_passed_over() {
    let root = temporary();
    let (whole, stopped) = stopped_run(&root, 3);
    let intact = fs::read(checkpoint(&whole, 3)).unwrap();
    let mut flipped = intact.clone();
    flipped[intact.len() - 5] ^= 1;
    for damaged in [&flipped[..], &intact[..intact.len() / 2], b""] {
        fs::write(checkpoint(&stopped, 3), damaged).unwrap();
        let _ = fs::remove_file(checkpoint(&stopped, 4));
        let text = succeeds(resume(&stopped, ""));
        assert!(text.contains("checkpoint passed over: ") && text.contains("step-0000000003"), "{text}");
        assert!(text.contains("resumed after step 2 of 4"), "{text}");
        assert_same_end(&whole, &stopped);
    }
    (1..=4).for_each(|step| fs::write(checkpoint(&stopped, step), &flipped).unwrap());
    let before = files(&stopped);
    let mut resumed = resume(&stopped, "");
    let errors = String::from_utf8(resumed.output().unwrap().stderr).unwrap();
    assert_eq!(errors.matches("checkpoint passed over: ").count(), 4, "{errors}");
    fails(resumed, &["all 4 checkpoints are damaged"]);
    assert_eq!(files(&stopped), before);
}

#[test]
fn a_checkpoint_of_another_run_is_refused_with_both_sides() {
    let root = temporary();
    let (_, stopped) = stopped_run(&root, 2);
    let before = files(&stopped);
    let newest = "step-0000000002.safetensors: ";
    fails(resume(&stopped, "--set seed=5"), &[newest, "belongs to another recipe: seed: 0 there, 5 here"]);
    fails(resume(&stopped, "--recipe simclr-cifar10"), &["optimizer.name: \"adamw\" there, \"lars\" here"]);
    fails(resume(&stopped, "--set optimzer.lr=1"), &["did you mean `optimizer.lr`?"]);
    let other = images(&root, "other", &[""], 24);
    let mut elsewhere = resume(&stopped, "--data");
    elsewhere.arg(other);
    fails(elsewhere, &[newest, "belongs to other data: fingerprint ", " there, ", " here"]);
    assert_eq!(files(&stopped), before);

    let path = checkpoint(&stopped, 2);
    let mut file = TensorFile::read(&path, &Device::Cpu).unwrap();
    file.metadata.insert("ssl_vision.checkpoint".to_owned(), "3".to_owned());
    file.write(&path).unwrap();
    fails(resume(&stopped, ""), &[newest, "has format version 3; this program reads version 2"]);
}

#[test]
fn data_that_moved_is_found_where_the_user_says() {
    let root = temporary();
    let (whole, stopped) = stopped_run(&root, 2);
    let [old, new] = ["images", "archive"].map(|name| root.path().join(name));
    fs::rename(&old, &new).unwrap();
    fails(resume(&stopped, ""), &["images does not exist"]);
    let mut resumed = resume(&stopped, "--data");
    resumed.arg(&new);
    succeeds(resumed);
    assert_same_end(&whole, &stopped);
}
