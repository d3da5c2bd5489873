//! Folders of image files.

use std::fs;
use std::path::Path;

use ssl_data::{Dataset, Error, OpenOptions};

use crate::fixtures::{encode, gradient, open, open_error, pixel, write, write_png};

/// The red value of each image, which tells them apart, and its label.
fn contents(dataset: &dyn Dataset) -> Vec<(u8, Option<u32>)> {
    let content = |index| {
        let sample = dataset.get(index).unwrap();
        assert_eq!(sample.label, dataset.label(index));
        (pixel(&sample.image, 0, 0)[0], sample.label)
    };
    (0..dataset.len()).map(content).collect()
}

#[test]
fn class_folders_give_labels_in_byte_order() {
    let folder = tempfile::tempdir().unwrap();
    write_png(folder.path(), "b/1.png", 30);
    write_png(folder.path(), "a/sub/deep/2.png", 20);
    write_png(folder.path(), "a/10.png", 10);
    write_png(folder.path(), "B/x.png", 5);
    fs::create_dir(folder.path().join("without images")).unwrap();
    let splits = open(folder.path()).unwrap();
    assert!(splits.test.is_none());
    assert_eq!(splits.train.class_names(), ["B", "a", "b"]);
    assert_eq!(contents(&*splits.train), [(5, Some(0)), (10, Some(1)), (20, Some(1)), (30, Some(2))]);
    let name = folder.path().file_name().unwrap().to_str().unwrap();
    assert_eq!(splits.train.describe(), format!("{name} (image folder), 4 images, 3 classes"));
    assert!(matches!(splits.train.get(4), Err(Error::Index { index: 4, len: 4 })));
    assert_eq!(splits.train.label(4), None);
}

#[test]
fn paths_are_sorted_as_bytes_and_classes_by_name() {
    // As paths "a-b/..." comes before "a/...", as names "a" comes before "a-b".
    let folder = tempfile::tempdir().unwrap();
    write_png(folder.path(), "a/x.png", 1);
    write_png(folder.path(), "a-b/x.png", 2);
    let train = open(folder.path()).unwrap().train;
    assert_eq!(train.class_names(), ["a", "a-b"]);
    assert_eq!(contents(&*train), [(2, Some(1)), (1, Some(0))]);
}

#[test]
fn an_image_outside_of_sub_folders_means_no_labels() {
    let folder = tempfile::tempdir().unwrap();
    write_png(folder.path(), "a/1.png", 1);
    write_png(folder.path(), "b/2.png", 2);
    write_png(folder.path(), "3.png", 3);
    let train = open(folder.path()).unwrap().train;
    assert!(train.class_names().is_empty());
    assert_eq!(contents(&*train), [(3, None), (1, None), (2, None)]);
    assert!(train.describe().ends_with("3 images, no labels"));
}

#[test]
fn images_are_known_by_extension_in_any_case() {
    let folder = tempfile::tempdir().unwrap();
    for name in
        ["a.JPG", "b.Jpeg", "c.png", "d.WebP", "e.bmp", "f.txt", "g", "h.gif", ".i.png", ".hidden/j.png"]
    {
        write(folder.path(), name, &encode(&gradient(2, 2), image::ImageFormat::Png));
    }
    let train = open(folder.path()).unwrap().train;
    assert_eq!(train.len(), 5);
    assert_eq!(train.get(0).unwrap().image.width(), 2);
}

#[test]
fn train_and_test_folders_are_splits() {
    for test_name in ["test", "val"] {
        let folder = tempfile::tempdir().unwrap();
        write_png(folder.path(), "train/cat/1.png", 1);
        write_png(folder.path(), "train/dog/2.png", 2);
        write_png(folder.path(), &format!("{test_name}/dog/3.png"), 3);
        write_png(folder.path(), "preview.png", 9);
        let splits = open(folder.path()).unwrap();
        let test = splits.test.unwrap();
        assert_eq!(contents(&*splits.train), [(1, Some(0)), (2, Some(1))]);
        // The label of "dog" is the one of training, though "cat" is missing here.
        assert_eq!(contents(&*test), [(3, Some(1))]);
        assert_eq!(test.class_names(), ["cat", "dog"]);
        assert!(test.describe().contains(&format!("/{test_name} (image folder), 1 images")));
    }
}

#[test]
fn test_comes_before_val() {
    let folder = tempfile::tempdir().unwrap();
    for (split, value) in [("train", 1), ("val", 2), ("test", 3)] {
        write_png(folder.path(), &format!("{split}/x.png"), value);
    }
    assert_eq!(contents(&*open(folder.path()).unwrap().test.unwrap()), [(3, None)]);
}

#[test]
fn splits_may_be_flat() {
    let folder = tempfile::tempdir().unwrap();
    write_png(folder.path(), "train/1.png", 1);
    write_png(folder.path(), "test/a/2.png", 2);
    let splits = open(folder.path()).unwrap();
    assert_eq!(contents(&*splits.train), [(1, None)]);
    assert_eq!(contents(&*splits.test.unwrap()), [(2, Some(0))]);
}

#[test]
fn a_class_that_training_lacks_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    write_png(folder.path(), "train/cat/1.png", 1);
    write_png(folder.path(), "test/dog/2.png", 2);
    let message = open_error(folder.path());
    assert!(message.contains("test cannot be used: its class \"dog\" is not one of"), "{message}");
}

#[test]
fn a_split_without_images_is_named() {
    let folder = tempfile::tempdir().unwrap();
    write_png(folder.path(), "train/1.png", 1);
    fs::create_dir(folder.path().join("test")).unwrap();
    let message = open_error(folder.path());
    assert!(message.starts_with(&format!("{} is empty;", folder.path().join("test").display())), "{message}");
}

#[test]
fn train_alone_is_a_split_and_among_others_a_class() {
    let folder = tempfile::tempdir().unwrap();
    write_png(folder.path(), "train/cat/1.png", 1);
    write_png(folder.path(), "train/dog/2.png", 2);
    write(folder.path(), "README.txt", b"text");
    assert_eq!(open(folder.path()).unwrap().train.class_names(), ["cat", "dog"]);
    write_png(folder.path(), "aeroplane/3.png", 3);
    assert_eq!(open(folder.path()).unwrap().train.class_names(), ["aeroplane", "train"]);
}

#[test]
fn a_broken_image_is_listed_and_named_when_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    write_png(folder.path(), "a/1.png", 1);
    write(folder.path(), "a/2.jpg", b"");
    let train = open(folder.path()).unwrap().train;
    assert_eq!(train.len(), 2);
    let message = train.get(1).unwrap_err().to_string();
    assert_eq!(
        message,
        format!("cannot decode {}: the file is empty", folder.path().join("a/2.jpg").display())
    );
}

#[test]
fn the_fingerprint_sees_paths_and_sizes_but_not_the_place() {
    let make = |files: &[(&str, &[u8])]| {
        let folder = tempfile::tempdir().unwrap();
        files.iter().for_each(|(path, bytes)| write(folder.path(), path, bytes));
        open(folder.path()).unwrap().train.fingerprint()
    };
    let original = make(&[("a/1.png", b"12"), ("b/2.png", b"345")]);
    assert_eq!(original.len(), 16);
    assert_eq!(make(&[("b/2.png", b"345"), ("a/1.png", b"12"), ("notes.txt", b"more")]), original);
    assert_ne!(make(&[("a/1.png", b"12"), ("b/3.png", b"345")]), original);
    assert_ne!(make(&[("a/1.png", b"12"), ("b/2.png", b"3456")]), original);
    assert_ne!(make(&[("a/1.png", b"12")]), original);
}

#[cfg(unix)]
fn link(target: impl AsRef<Path>, root: &Path, relative: &str) {
    std::os::unix::fs::symlink(target, root.join(relative)).unwrap();
}

#[cfg(unix)]
#[test]
fn links_are_followed_but_not_into_loops() {
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    write_png(folder.path(), "a/1.png", 1);
    write_png(elsewhere.path(), "2.png", 2);
    link(elsewhere.path(), folder.path(), "b");
    link(folder.path().join("a/1.png"), folder.path(), "a/3.png");
    link("..", folder.path(), "a/up");
    link(".", folder.path(), "a/here");
    link("itself", folder.path(), "a/itself");
    link(folder.path(), elsewhere.path(), "back");
    let train = open(folder.path()).unwrap().train;
    assert_eq!(contents(&*train), [(1, Some(0)), (1, Some(0)), (2, Some(1))]);
}

#[cfg(unix)]
#[test]
fn a_link_to_nothing_is_a_broken_image() {
    let folder = tempfile::tempdir().unwrap();
    write_png(folder.path(), "1.png", 1);
    link("gone.png", folder.path(), "2.png");
    link("gone", folder.path(), "no image");
    let train = open(folder.path()).unwrap().train;
    assert_eq!(train.len(), 2);
    assert!(train.get(1).unwrap_err().to_string().contains("2.png: cannot be read"));
}

#[test]
fn a_cache_changes_no_image_and_no_error() {
    let folder = tempfile::tempdir().unwrap();
    for (i, name) in ["a/0.png", "a/1.png", "b/2.png", "b/3.png"].into_iter().enumerate() {
        write_png(folder.path(), name, 10 * i as u8);
    }
    write(folder.path(), "b/torn.png", b"no image");
    let plain = open(folder.path()).unwrap().train;
    // Nothing, the slots and two images of 12 bytes, and all.
    for cache_bytes in [0, 24 + 5 * 64, 1 << 20] {
        let options = OpenOptions { cache_bytes, ..OpenOptions::default() };
        let cached = ssl_data::open(folder.path(), &options).unwrap().train;
        assert_eq!(cached.fingerprint(), plain.fingerprint());
        assert_eq!(cached.describe(), plain.describe());
        for index in (0..6).chain(0..6) {
            let text = |set: &dyn Dataset| {
                set.get(index).map(|sample| (sample.image, sample.label)).map_err(|error| error.to_string())
            };
            assert_eq!(text(&*cached), text(&*plain));
        }
    }
}
