//! The views of a recipe, as a picture and as tensors.

use std::path::Path;
use std::process::{Command, Output};

use candle_core::Device;

fn views(more: &str, out: &Path) -> Output {
    let settings =
        "views --threads 2 --method simclr --set augment.size=8 --epochs 1 --set schedule.warmup_epochs=0";
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.args(settings.split_whitespace()).args(more.split_whitespace()).arg(out).output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

#[test]
fn the_picture_has_a_row_for_each_image_and_a_column_for_each_view() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("views.png");
    let crops = "--set augment.views=[{copies=2},{copies=3,size=4}] --images 5 --out";
    let output = views(crops, &file);
    assert!(
        output.status.success() && text(&output).contains("5 images, each with 5 views"),
        "{}",
        text(&output)
    );
    let picture = image::open(&file).unwrap().to_rgb8();
    // Six tiles of 8 pixels with gaps of 2, twelve times as large.
    assert_eq!(picture.dimensions(), (12 * (6 * 10 + 2), 12 * (5 * 10 + 2)));
    // A small crop stands in the middle of its tile.
    let at = |tile: u32, pixel: u32| picture.get_pixel(12 * (2 + 10 * tile + pixel) + 6, 12 * (2 + 4) + 6).0;
    assert_eq!(at(3, 0), [255; 3]);
    let output = views("--images 65 --out", &file);
    assert!(
        !output.status.success() && text(&output).contains("--images = 65 is not in 1..=64"),
        "{}",
        text(&output)
    );
}

#[test]
fn the_tensors_are_all_views_of_an_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let output = views("--batch-size 1000 --tensors", folder.path());
    assert!(output.status.success(), "{}", text(&output));
    let epoch =
        candle_core::safetensors::load(folder.path().join("epoch-0.safetensors"), &Device::Cpu).unwrap();
    assert_eq!(epoch["view_1"].dims(), [10_000, 3, 8, 8]);
    let mut index = epoch["index"].to_vec1::<i64>().unwrap();
    index.sort_unstable();
    assert_eq!(index, (0..10_000).collect::<Vec<_>>());
}
