//! Codes of patches in a file, and runs that predict them.

use std::path::Path;
use std::process::{Command, Output};

use candle_core::{Device, Tensor};
use image::{Rgb, RgbImage};

/// Sixteen images whose patches of 4 pixels have one of four colours each.
fn images(folder: &Path) {
    for i in 0..16u32 {
        let colour = |x: u32, y: u32| match (i * 5 + x / 4 * 3 + y / 4 * (i % 3 + 1)) % 4 {
            0 => [10, 10, 10],
            1 => [200, 30, 30],
            2 => [30, 200, 60],
            _ => [250, 250, 250],
        };
        RgbImage::from_fn(16, 16, |x, y| Rgb(colour(x, y))).save(folder.join(format!("{i}.png"))).unwrap();
    }
}

fn xtask(command: &str, data: &Path, more: &[&str]) -> Output {
    let settings = "--method beit --threads 2 --batch-size 8 --set augment.size=16 --set augment.preset=\"ijepa\" \
                    --set augment.crop_scale=[1.0,1.0] --set backbone.depth=1 --set method.codes=4 \
                    --set method.min_block=2";
    let mut command_line = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command_line.arg(command).args(settings.split_whitespace()).arg("--data").arg(data).args(more);
    command_line.output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

fn encoder(run: &Path) -> Vec<(String, Vec<f32>)> {
    let tensors = candle_core::safetensors::load(run.join("encoder.safetensors"), &Device::Cpu).unwrap();
    let values = |tensor: Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let mut all: Vec<_> = tensors.into_iter().map(|(name, tensor)| (name, values(tensor))).collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

#[test]
fn a_run_with_the_file_is_the_run_that_learns_its_codes_itself() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("images");
    std::fs::create_dir(&data).unwrap();
    images(&data);
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let output = xtask("tokenizer", &data, &["--out", &path("codes"), "--picture", &path("codes.png")]);
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("4 codes of patches of 4 pixels, 4 of them used"), "{}", text(&output));
    // Four tiles of 4 pixels with gaps of 2, 24 times as large; the darkest comes first.
    let picture = image::open(path("codes.png")).unwrap().to_rgb8();
    assert_eq!(picture.dimensions(), (24 * 14, 24 * 14));
    let colours = [(4, 4), (10, 4), (4, 10), (10, 10)].map(|(x, y)| picture.get_pixel(24 * x, 24 * y).0);
    assert_eq!(colours, [[10, 10, 10], [200, 30, 30], [30, 200, 60], [250, 250, 250]]);

    let run = |out: &str, more: &[&str]| {
        let more: Vec<&str> =
            ["--no-eval", "--max-steps", "3", "--out", out].iter().chain(more).copied().collect();
        let output = xtask("pretrain", &data, &more);
        assert!(output.status.success(), "{}", text(&output));
        encoder(Path::new(out))
    };
    let weights = format!("method.tokenizer_weights=\"{}\"", path("codes"));
    assert!(run(&path("own"), &[]) == run(&path("file"), &["--set", &weights]));

    let fails = |more: &[&str], part: &str| {
        let output = xtask("tokenizer", &data, more);
        assert!(!output.status.success() && text(&output).contains(part), "{}", text(&output));
    };
    fails(&["--set", &weights, "--out", &path("twice")], "is a tokenizer already");
    fails(&["--set", "method.normalize_patches=true", "--picture", "codes.png"], "have no colours to draw");
    let other = ["--out", &path("other"), "--set", &weights, "--set", "augment.std=[0.5, 0.5, 0.5]"];
    let output = xtask("pretrain", &data, &other);
    assert!(
        !output.status.success() && text(&output).contains("was learned with augment.std"),
        "{}",
        text(&output)
    );
}
