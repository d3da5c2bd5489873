//! Integration tests over the umbrella crate, in one binary.

// The lints take only functions marked as tests for tests.
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)]

// Loading what was exported, here and in candle-transformers.
mod export;
// Short trainings on real images: that a method learns.
mod learning;
// The run folder, checkpoints, determinism.
mod resume;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use flate2::read::GzDecoder;

/// The images that ship with the project.
fn shipped_data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/fashion-mnist")
}

/// Few of them: the first 2,000 training and 200 test images, for tests of which only the bits matter.
fn few_images() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| first_images(2000, 200)).clone()
}

/// Half of them: the first 5,000 training and 1,000 test images, for tests that evaluate what they have trained.
fn half_of_the_images() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| first_images(5000, 1000)).clone()
}

/// A folder with the first `train` and `test` of the shipped images.
fn first_images(train: u32, test: u32) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("first-{train}-images"));
    fs::create_dir_all(&folder).unwrap();
    for (split, count) in [("train", train), ("t10k", test)] {
        shorten(&folder, &format!("{split}-images-idx3-ubyte"), count, 16);
        shorten(&folder, &format!("{split}-labels-idx1-ubyte"), count, 8);
    }
    fs::copy(shipped_data().join("class_names.txt"), folder.join("class_names.txt")).unwrap();
    folder
}

/// Writes the first `count` elements of a shipped IDX file, whose header has `header` bytes.
fn shorten(folder: &Path, name: &str, count: u32, header: usize) {
    let (mut bytes, packed) = (Vec::new(), shipped_data().join(format!("{name}.gz")));
    GzDecoder::new(fs::File::open(packed).unwrap()).read_to_end(&mut bytes).unwrap();
    let number = |place: usize| u32::from_be_bytes(bytes[place..place + 4].try_into().unwrap()) as usize;
    let element = (bytes.len() - header) / number(4);
    bytes.truncate(header + count as usize * element);
    bytes[4..8].copy_from_slice(&count.to_be_bytes());
    fs::write(folder.join(name), bytes).unwrap();
}
