//! Partners of the images of a folder.

use std::path::Path;

use ssl_data::{Dataset, OpenOptions, Result, Splits};

use crate::fixtures::{idx, write, write_png};

fn open(root: &Path, partners: &Path, cache_bytes: u64) -> Result<Splits> {
    let partners = Some(partners.to_path_buf());
    ssl_data::open(root, &OpenOptions { partners, cache_bytes, ..OpenOptions::default() })
}

/// The values of each image and of its partner.
fn pairs(dataset: &dyn Dataset) -> Vec<(u8, u8)> {
    let pair = |i| {
        let sample = dataset.get(i).unwrap();
        (sample.image.data()[0], sample.partner.unwrap().data()[0])
    };
    (0..dataset.len()).map(pair).collect()
}

#[test]
fn partners_are_found_by_path_with_and_without_splits() {
    let (images, partners) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (path, value) in [("train/cat/1.png", 10), ("train/cat/2.png", 20), ("train/dog/1.png", 30)] {
        write_png(images.path(), path, value);
    }
    write_png(images.path(), "val/cat/9.png", 90);
    let plain = ssl_data::open(images.path(), &OpenOptions::default()).unwrap().train.fingerprint();
    for split in ["train/", ""] {
        let partners = partners.path().join(if split.is_empty() { "flat" } else { "split" });
        // Another extension, and an image more.
        for (path, value) in [("dog/1.PNG", 31), ("cat/2.png", 21), ("cat/1.png", 11), ("cat/3.png", 41)] {
            write_png(&partners, &format!("{split}{path}"), value);
        }
        for cache_bytes in [0, 1 << 20] {
            let splits = open(images.path(), &partners, cache_bytes).unwrap();
            for _ in 0..2 {
                assert_eq!(pairs(&*splits.train), [(10, 11), (20, 21), (30, 31)]);
            }
            assert_ne!(splits.train.fingerprint(), plain);
            assert_eq!(splits.train.label(2), Some(1));
            assert!(splits.train.describe().ends_with(", each with a partner"));
            assert!(splits.test.unwrap().get(0).unwrap().partner.is_none());
        }
    }
}

#[test]
fn an_image_without_a_partner_one_with_two_and_data_without_files_are_named() {
    let (images, partners) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_png(images.path(), "1.png", 1);
    write_png(images.path(), "2.png", 2);
    write_png(partners.path(), "1.png", 3);
    let error = open(images.path(), partners.path(), 0).unwrap_err().to_string();
    assert!(error.contains("holds no partner of") && error.contains("2.png"), "{error}");
    write_png(partners.path(), "1.PNG", 4);
    let error = open(images.path(), partners.path(), 0).unwrap_err().to_string();
    assert!(error.contains("two partners for one image: ") && error.contains("1.PNG and 1.png"), "{error}");
    let packed = tempfile::tempdir().unwrap();
    write(packed.path(), "train-images-idx3-ubyte", &idx(&[1, 2, 2], &[0; 4]));
    let error = open(packed.path(), partners.path(), 0).unwrap_err().to_string();
    assert!(error.contains("holds no image files that they could be partners of"), "{error}");
}
